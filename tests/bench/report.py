"""Tables for people, JSON and a plot for docs/benchmarks, and the verdict as one line of JSON."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.cells import (
    DOWN,
    IDLE,
    UP,
    BulkRow,
    CrowdResult,
    FunctionRow,
    IdleRow,
    LoadedRow,
    MemoryResult,
)
from tests.bench.functions import CALL, TUNNEL
from tests.bench.service_cells import SQLITE, ServiceResult

# Bars apply at this queue and without loss.
BAR_QUEUE_MS = 100


@dataclass(slots=True)
class Results:
    machine: dict[str, Any]
    line: list[dict[str, Any]] = field(default_factory=list)
    idle: list[IdleRow] = field(default_factory=list)
    loaded: list[LoadedRow] = field(default_factory=list)
    bulk: list[BulkRow] = field(default_factory=list)
    memory: MemoryResult | None = None
    functions: list[FunctionRow] = field(default_factory=list)
    crowd: CrowdResult | None = None
    service: ServiceResult | None = None

    def row(self, tool: str, direction: str, queue: float, loss: float) -> LoadedRow | None:
        for row in self.loaded:
            if (row.tool, row.direction, row.queue_ms, row.loss) == (tool, direction, queue, loss):
                return row
        return None


def figures(results: Results) -> dict[str, dict[str, Any]]:
    """Value, bar and verdict of what was measured; the worse direction counts."""
    found: dict[str, dict[str, Any]] = {}

    def put(name: str, value: float, bar: float, goal: float, *, lower: bool = True) -> None:
        ok = value <= bar if lower else value >= bar
        found[name] = {"value": round(value, 3), "bar": bar, "goal": goal, "ok": ok}

    for row in results.idle:
        if row.tool == "gwmodule":
            put("echo_idle_vs_ssh", row.vs_ssh, 1.8, 1.0)
    increases: list[float] = []
    ratios: list[float] = []
    idle = results.row("gwmodule", IDLE, BAR_QUEUE_MS, 0.0)
    for direction in (UP, DOWN):
        ours = results.row("gwmodule", direction, BAR_QUEUE_MS, 0.0)
        ssh = results.row("ssh -R", direction, BAR_QUEUE_MS, 0.0)
        if ours is not None and ssh is not None and idle is not None:
            increases.append(ours.keys.p99 - idle.keys.p99)
            ratios.append(ssh.keys.p99 / ours.keys.p99)
    if increases:
        put("echo_loaded_p99_over_idle_ms", max(increases), 40, 10)
        put("echo_loaded_p99_ssh_vs_us", min(ratios), 8, 12, lower=False)
    for rtt, name in ((100, "bulk_100ms_vs_tcp"), (0, "bulk_0ms_vs_tcp")):
        rows = [r.vs_tcp for r in results.bulk if r.tool == "gwmodule" and r.rtt_ms == rtt]
        if rows:
            put(name, min(rows), 0.8, 0.95, lower=False)
    if results.memory is not None:
        put("idle_session_kib", results.memory.kib_per_session, 48, 24)
        put("idle_2000_cpu_percent", results.memory.cpu_percent_at_2000, 15, 5)
    for function, name, bar in (
        ("inventory.get", "inventory", 8),
        ("eventlog.get", "eventlog", 3),
    ):
        ways = {(r.way, r.think_ms): r for r in results.functions if r.function == function}
        if (CALL, 0) in ways:
            call, tunnel = ways[CALL, 0], ways[TUNNEL, 0]
            put(f"{name}_vs_tunnel", tunnel.vs_call, bar, tunnel.exchanges, lower=False)
            put(f"{name}_round_trips", call.round_trips, 1.5, 1.0)
        if (CALL, 100) in ways and function == "inventory.get":
            call, tunnel = ways[CALL, 100], ways[TUNNEL, 100]
            saved = tunnel.round_trips - call.round_trips
            put(
                f"{name}_round_trips_saved",
                saved,
                tunnel.exchanges - 2,
                tunnel.exchanges,
                lower=False,
            )
    if results.crowd is not None:
        more = results.crowd.loaded.p99 - results.crowd.idle.p99
        put("inventory_64_echo_p99_over_idle_ms", more, 40, 10)
    if results.service is not None:
        found |= {
            name: {"value": value, "bar": None, "goal": None, "ok": None}
            for name, value in _service_figures(results.service).items()
        }
    return found


def _service_figures(service: ServiceResult) -> dict[str, float]:
    """What nobody has set a bar for; of SQLite, which is the default."""
    values: dict[str, float] = {}
    for read in service.reads:
        if read.engine == SQLITE and read.way.startswith("http"):
            name = "reads" if read.what == "one device" else "lists"
            values[f"service_{name}_per_s"] = read.per_second
            values[f"service_{name}_vs_aiohttp"] = read.vs_peer
    if service.call is not None:
        values["service_call_overhead_ms"] = service.call.overhead_ms
        values["service_call_p99_ms"] = service.call.api.p99
    if service.connects is not None:
        values["service_connects_per_s"] = service.connects.per_second
        values["service_idle_gateway_kib"] = service.connects.kib_each
    if service.storm is not None:
        values["service_storm_seconds"] = service.storm.all_seconds
    for row in service.registrations:
        if row.engine == SQLITE:
            values["service_registrations_per_s"] = row.per_second
    return values


def text(results: Results) -> str:
    """All tables, in Markdown."""
    lines: list[str] = []
    if results.line:
        lines += ["", "## The line, checked with UDP probes", ""]
        lines += [f"* {check['profile']}: {check['measured']}" for check in results.line]
    if results.idle:
        lines += ["", "## (a) Keystroke echo, idle, all processes on one core (us)", ""]
        lines += _table(
            "tool | p50 | p50 of rounds | p95 | p99 | max | x ssh -R | x direct"
            " | CPU per key | per key and hop",
            [
                (
                    r.tool,
                    r.p50_us,
                    f"{r.p50_us_range[0]}..{r.p50_us_range[1]}",
                    r.p95_us,
                    r.p99_us,
                    r.max_us,
                    r.vs_ssh,
                    r.vs_direct,
                    r.cpu_us_per_key or "-",
                    round(r.cpu_us_per_key_and_hop, 1) or "-",
                )
                for r in results.idle
            ],
        )
    for letter, lossy in (("b", False), ("d", True)):
        rows = [r for r in results.loaded if bool(r.loss) == lossy]
        if rows:
            loss = f", {rows[0].loss * 100:g} % loss" if lossy else ""
            lines += [
                "",
                f"## ({letter}) Keystroke echo beside bulk, 8 Mbit/s, 50 ms RTT{loss} (ms)",
                "",
            ]
            lines += _table(
                "queue | bulk | tool | p50 | p95 | p99 | max | keys | bulk Mbit/s | line queue",
                [
                    (
                        f"{r.queue_ms:.0f}",
                        r.direction,
                        r.tool,
                        f"{r.keys.p50:.1f}",
                        f"{r.keys.p95:.1f}",
                        f"{r.keys.p99:.1f}",
                        f"{r.keys.max:.1f}",
                        f"{r.keys.count}" + (f" (-{r.missing})" if r.missing else ""),
                        f"{r.bulk_mbit:.2f}",
                        f"{r.line_queue_ms:.0f}",
                    )
                    for r in sorted(
                        rows,
                        key=lambda r: (r.queue_ms, (IDLE, UP, DOWN).index(r.direction), r.tool),
                    )
                ],
            )
    if results.bulk:
        lines += ["", "## (c) Bulk, 50 Mbit/s", ""]
        lines += _table(
            "RTT ms | direction | tool | Mbit/s | x TCP | from start Mbit/s | x TCP"
            " | CPU ms per MiB",
            [
                (
                    f"{r.rtt_ms:.0f}",
                    r.direction,
                    r.tool,
                    r.mbit,
                    r.vs_tcp,
                    r.mbit_from_start,
                    r.vs_tcp_from_start,
                    r.cpu_ms_per_mib,
                )
                for r in results.bulk
            ],
        )
    if results.memory is not None:
        m = results.memory
        lines += ["", "## (e) Idle gateway sessions in one MSP process", ""]
        lines += _table(
            "sessions | KiB each | before MiB | CPU % of a core | at 2,000 | new per s",
            [
                (
                    m.sessions,
                    m.kib_per_session,
                    m.base_mib,
                    m.cpu_percent_of_core,
                    m.cpu_percent_at_2000,
                    m.sessions_per_second,
                )
            ],
        )
    if results.functions:
        lines += ["", "## (f) A function on the gateway and through a byte stream, 50 ms RTT", ""]
        lines += _table(
            "function | think ms | way | SOAP exchanges | s | WAN round trips | WAN bytes | x call",
            [
                (
                    r.function,
                    f"{r.think_ms:.0f}",
                    r.way,
                    r.exchanges,
                    r.seconds,
                    r.round_trips,
                    r.wan_bytes,
                    r.vs_call,
                )
                for r in results.functions
            ],
        )
    if results.crowd is not None:
        c = results.crowd
        lines += [
            "",
            f"Echo at another PC while {c.devices} are asked at once (ms):",
            "",
        ]
        lines += _table(
            "meanwhile | p50 | p95 | p99 | max | keys | inventories",
            [
                ("nothing", c.idle.p50, c.idle.p95, c.idle.p99, c.idle.max, c.idle.count, 0),
                (
                    "inventory_64",
                    c.loaded.p50,
                    c.loaded.p95,
                    c.loaded.p99,
                    c.loaded.max,
                    c.loaded.count,
                    c.inventories,
                ),
            ],
        )
    if results.service is not None:
        lines += _service_tables(results.service)
    lines += ["", "## Figures", ""]
    lines += _table(
        "figure | value | bar | goal | ok",
        [
            (name, f["value"], *(("-",) * 3 if f["bar"] is None else _verdict(f)))
            for name, f in figures(results).items()
        ],
    )
    return "\n".join(lines)


def _verdict(figure: dict[str, Any]) -> tuple[Any, Any, str]:
    return figure["bar"], figure["goal"], "yes" if figure["ok"] else "NO"


def _service_tables(service: ServiceResult) -> list[str]:
    lines = ["", "## (g) The MSP service: reads, against a bare aiohttp with the same answers", ""]
    lines += _table(
        "registry | what | way | bytes | per s | aiohttp per s | x aiohttp | p50 ms | p99 ms"
        " | CPU us | aiohttp's",
        [
            (
                r.engine, r.what, r.way, r.bytes, r.per_second, r.peer_per_second, r.vs_peer,
                r.p50_ms, r.p99_ms, r.cpu_us, r.peer_cpu_us,
            )
            for r in service.reads
        ],
    )  # fmt: skip
    lines += ["", "PCs that were not known, told by 4 gateways and committed:", ""]
    lines += _table(
        "registry | PCs | per s | CPU us each",
        [(r.engine, r.devices, r.per_second, r.cpu_us_each) for r in service.registrations],
    )
    if service.call is not None:
        c = service.call
        lines += ["", "A call (power.get, gateway and simulated device on the same machine):", ""]
        lines += _table(
            "way | p50 ms | p99 ms | max ms | calls | audit entries each",
            [
                ("API", c.api.p50, c.api.p99, c.api.max, c.api.count, c.audit_entries),
                ("session", c.session.p50, c.session.p99, c.session.max, c.session.count, 0),
            ],
        )
    if service.connects is not None:
        n = service.connects
        lines += ["", "Gateways that connect, and then do nothing:", ""]
        lines += _table(
            "gateways | new per s | CPU ms each | KiB each | before MiB",
            [(n.sessions, n.per_second, n.cpu_ms_each, n.kib_each, n.base_mib)],
        )
    if service.storm is not None:
        g = service.storm
        lines += ["", "Gateways behind one address that all dial at the same moment:", ""]
        lines += _table(
            "gateways | half after s | all after s | turned away on the way",
            [(g.gateways, g.half_seconds, g.all_seconds, g.refused)],
        )
    return lines


def _table(head: str, rows: list[tuple[Any, ...]]) -> list[str]:
    cells = [[part.strip() for part in head.split("|")]]
    cells += [[str(value) for value in row] for row in rows]
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def write(results: Results, directory: Path, name: str) -> list[Path]:
    """JSON and Markdown always, the plot where matplotlib is installed."""
    directory.mkdir(parents=True, exist_ok=True)
    data = {**asdict(results), "figures": figures(results)}
    written = [directory / f"{name}.json", directory / f"{name}.md"]
    written[0].write_text(json.dumps(data, indent=1) + "\n")
    head = f"# Benchmark run `{name}`\n\nMachine: {results.machine}\n"
    written[1].write_text(head + text(results) + "\n")
    try:
        pyplot = _pyplot()
    except ImportError:
        return written
    written.append(directory / f"{name}.png")
    _plot(pyplot, results, written[-1])
    return written


def _pyplot() -> Any:
    importlib.import_module("matplotlib").use("Agg")
    return importlib.import_module("matplotlib.pyplot")


_COLOURS = {
    "gwmodule": "#1f6f8b",
    "gwmodule, this Python": "#7fb3c8",
    "ssh -R": "#d1495b",
    "plain TCP": "#6c757d",
}


def _plot(pyplot: Any, results: Results, path: Path) -> None:
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8.5))
    _plot_idle(axes[0][0], results)
    _plot_loaded(axes[0][1], results, lossy=False)
    _plot_loaded(axes[1][0], results, lossy=True)
    _plot_bulk(axes[1][1], results)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _plot_idle(axis: Any, results: Results) -> None:
    rows = results.idle
    names = [row.tool for row in rows]
    axis.barh(names, [r.p50_us for r in rows], color=[_COLOURS.get(n, "#adb5bd") for n in names])
    axis.plot([r.p99_us_median for r in rows], names, "k|", markersize=14, label="p99")
    axis.set_title("(a) Echo, idle, one core: median")
    axis.set_xlabel("microseconds")
    axis.invert_yaxis()
    if rows:
        axis.legend()


def _plot_loaded(axis: Any, results: Results, *, lossy: bool) -> None:
    rows = [row for row in results.loaded if bool(row.loss) == lossy]
    groups = sorted({(r.queue_ms, r.direction) for r in rows}, key=lambda g: (g[0], g[1] != IDLE))
    for offset, tool in ((-0.2, "ssh -R"), (0.2, "gwmodule")):
        for number, (queue, direction) in enumerate(groups):
            row = next(
                (r for r in rows if (r.tool, r.queue_ms, r.direction) == (tool, queue, direction)),
                None,
            )
            if row is not None:
                label = f"{tool} p99" if number == 0 else None
                at = number + offset
                axis.bar(at, row.keys.p99, 0.38, color=_COLOURS[tool], alpha=0.75, label=label)
                axis.plot([at - 0.19, at + 0.19], [row.keys.p50] * 2, color="black")
    axis.set_xticks(range(len(groups)))
    axis.set_xticklabels([f"{queue:.0f} ms\n{direction}" for queue, direction in groups])
    axis.set_yscale("log")
    loss = ", 1 % loss" if lossy else ""
    axis.set_title(f"({'d' if lossy else 'b'}) Echo beside bulk, 8 Mbit/s, 50 ms RTT{loss}")
    axis.set_ylabel("ms (line: median)")
    if rows:
        axis.legend()


def _plot_bulk(axis: Any, results: Results) -> None:
    groups = list(dict.fromkeys((r.rtt_ms, r.direction) for r in results.bulk))
    for offset, tool in ((-0.27, "plain TCP"), (0.0, "ssh -R"), (0.27, "gwmodule")):
        rows = {(r.rtt_ms, r.direction): r for r in results.bulk if r.tool == tool}
        values = [rows[group].mbit if group in rows else 0.0 for group in groups]
        places = [number + offset for number in range(len(groups))]
        axis.bar(places, values, 0.26, color=_COLOURS[tool], label=tool)
    axis.set_xticks(range(len(groups)))
    axis.set_xticklabels([f"{rtt:.0f} ms\n{direction}" for rtt, direction in groups])
    axis.set_title("(c) Bulk, 50 Mbit/s line")
    axis.set_ylabel("Mbit/s")
    if groups:
        axis.legend(loc="lower right")
