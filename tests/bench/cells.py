"""The measurements themselves. Each returns plain numbers; rounds of the tools are interleaved."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.functions import CALL, KEY_GAP, TUNNEL
from tests.bench.technician import WARM_UP_IDLE
from tests.bench.tools import (
    ECHO,
    SINK,
    SOURCE,
    BenchError,
    Place,
    Tool,
    Workshop,
    entering,
)
from tests.lab.line import Line, Measured, Namespaces, Profile, validate

Maker = Callable[[Place], AbstractContextManager[Tool]]
Say = Callable[[str], None]

UP, DOWN, IDLE = "up", "down", "idle"


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: never a value that was not measured."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


@dataclass(slots=True)
class Spread:
    """Milliseconds of one set of keystrokes."""

    p50: float
    p95: float
    p99: float
    max: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        ms = [s * 1e3 for s in seconds]
        p50, p95, p99 = (round(percentile(ms, share), 3) for share in (0.5, 0.95, 0.99))
        return cls(p50, p95, p99, round(max(ms), 3), len(ms))


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """This process, and what it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _type(
    place: Place, tool: Tool, count: int, gap: tuple[float, float]
) -> tuple[list[float], int, float]:
    """Round-trip times, keystrokes without an echo, CPU seconds of the tool meanwhile."""
    argv = [sys.executable, "-m", "tests.bench.technician", "type", str(tool.ports[ECHO])]
    argv += [str(count), str(gap[0]), str(gap[1])]
    before = tool.cpu()
    with subprocess.Popen(
        entering(place.msp, argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        used = tool.cpu() - before
        process.stdin.close()
    if not line:
        raise BenchError(f"{tool.name}: the echo connection broke")
    result = json.loads(line)
    return result["times"], result["missing"], used


@contextlib.contextmanager
def _saturated(
    place: Place, tool: Tool, direction: str, warm_up: float, stats: str
) -> Iterator[dict[str, float]]:
    """Bulk runs inside the block; afterwards the dict has its `rate` and `rate_from_start`."""
    port = tool.ports[SOURCE if direction == UP else SINK]
    argv = [sys.executable, "-m", "tests.bench.technician", direction, str(port)]
    argv += [str(warm_up), stats]
    rates: dict[str, float] = {}
    with subprocess.Popen(
        entering(place.msp, argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                raise BenchError(f"{tool.name}: bulk {direction} did not start")
            yield rates
            process.stdin.close()
            rates.update(json.loads(process.stdout.readline()))
        finally:
            process.kill()


# ---- (a) idle echo ------------------------------------------------------------------------------


@dataclass(slots=True)
class IdleRow:
    tool: str
    p50_us: float
    p95_us: float
    p99_us: float
    max_us: float
    p50_us_range: tuple[float, float]
    p99_us_median: float
    vs_ssh: float
    vs_direct: float
    cpu_us_per_key: float
    hops: int

    @property
    def cpu_us_per_key_and_hop(self) -> float:
        return self.cpu_us_per_key / self.hops if self.hops else 0.0


_HOPS = {"direct": 0, "socat": 1}


def idle_echo(workshop: Workshop, rounds: int, count: int, cpu: int = 0) -> list[IdleRow]:
    """Everything on one core and one loopback; ratios are medians of per-round ratios."""
    place = Place()
    makers: list[Maker] = [
        workshop.direct,
        workshop.socat,
        workshop.haproxy,
        workshop.ssh,
        workshop.ours,
    ]
    if workshop.python != sys.executable:
        makers.append(workshop.ours_here)
    times: dict[str, list[list[float]]] = {}
    cpus: dict[str, list[float]] = {}
    with pinned(cpu), ExitStack() as stack:
        stack.enter_context(workshop.device(None))
        tools = [stack.enter_context(maker(place)) for maker in makers]
        for number in range(rounds):
            turn = number % len(tools)
            for tool in tools[turn:] + tools[:turn]:
                measured, missing, used = _type(place, tool, count, (0.0, 0.0))
                if missing:
                    raise BenchError(f"{tool.name}: {missing} echoes are missing")
                times.setdefault(tool.name, []).append(measured)
                cpus.setdefault(tool.name, []).append(used / (count + WARM_UP_IDLE) * 1e6)
    medians = {name: [statistics.median(r) for r in each] for name, each in times.items()}

    def ratio(name: str, base: str) -> float:
        pairs = zip(medians[name], medians[base], strict=True)
        return round(statistics.median(mine / theirs for mine, theirs in pairs), 3)

    rows: list[IdleRow] = []
    for name, each in times.items():
        together = [t * 1e6 for r in each for t in r]
        rows.append(
            IdleRow(
                tool=name,
                p50_us=round(statistics.median(medians[name]) * 1e6, 1),
                p95_us=round(percentile(together, 0.95), 1),
                p99_us=round(percentile(together, 0.99), 1),
                max_us=round(max(together), 1),
                p50_us_range=(
                    round(min(medians[name]) * 1e6, 1),
                    round(max(medians[name]) * 1e6, 1),
                ),
                p99_us_median=round(statistics.median(percentile(r, 0.99) for r in each) * 1e6, 1),
                vs_ssh=ratio(name, "ssh -R"),
                vs_direct=ratio(name, "direct"),
                cpu_us_per_key=round(statistics.median(cpus[name]), 1),
                hops=_HOPS.get(name, 2),
            )
        )
    return rows


# ---- (b), (d) echo beside bulk ------------------------------------------------------------------


@dataclass(slots=True)
class LoadedRow:
    tool: str
    queue_ms: float
    loss: float
    direction: str
    keys: Spread
    missing: int
    # Of the bulk beside it, as its receiver saw it.
    bulk_mbit: float = 0.0
    # What waited in the line's queue at most, in the direction of the bulk.
    line_queue_ms: float = 0.0


@dataclass(slots=True)
class LoadedResult:
    rows: list[LoadedRow] = field(default_factory=list)

    def find(self, tool: str, queue_ms: float, loss: float, direction: str) -> LoadedRow:
        return next(
            row
            for row in self.rows
            if (row.tool, row.queue_ms, row.loss, row.direction)
            == (tool, queue_ms, loss, direction)
        )


RATE, RTT = 8e6, 0.050


def loaded_echo(
    workshop: Workshop,
    line: Line,
    profile: Profile,
    *,
    rounds: int,
    count: int,
    warm_up: float,
    anew: bool,
    say: Say,
) -> list[LoadedRow]:
    """One line as it is set; `anew` starts the tool for each cell, so that none inherits."""
    place = Place.on_line(line.near, line.far)
    makers: list[Maker] = [workshop.ssh, workshop.ours]
    cells: dict[tuple[str, str], list[_Cell]] = {}
    with workshop.device(line.near):
        for number in range(rounds):
            for maker in makers if number % 2 == 0 else makers[::-1]:
                for group in ((IDLE,), (UP,), (DOWN,)) if anew else ((IDLE, UP, DOWN),):
                    with maker(place) as tool:
                        for direction in group:
                            cell = _loaded_cell(
                                place, tool, line, direction, count, warm_up, workshop.stats
                            )
                            say(f"  {tool.name:9} {direction:5} {cell}")
                            cells.setdefault((tool.name, direction), []).append(cell)
    return [
        LoadedRow(
            tool=tool,
            queue_ms=round(profile.queue * 1e3),
            loss=profile.loss,
            direction=direction,
            keys=Spread.of([t for cell in each for t in cell.times]),
            missing=sum(cell.missing for cell in each),
            bulk_mbit=round(statistics.median(cell.rate for cell in each) / 1e6, 3),
            line_queue_ms=round(max(cell.queue for cell in each) * 1e3, 1),
        )
        for (tool, direction), each in cells.items()
    ]


@dataclass(slots=True)
class _Cell:
    """Seconds, bit/s, seconds of queue."""

    times: list[float]
    missing: int
    rate: float
    queue: float

    def __str__(self) -> str:
        p50, p99 = (percentile(self.times, share) * 1e3 for share in (0.5, 0.99))
        return (
            f"p50 {p50:7.1f} p99 {p99:7.1f} ms, bulk {self.rate / 1e6:5.2f} Mbit/s,"
            f" queue {self.queue * 1e3:4.0f} ms"
        )


def _loaded_cell(
    place: Place,
    tool: Tool,
    line: Line,
    direction: str,
    count: int,
    warm_up: float,
    stats: str,
) -> _Cell:
    rates: dict[str, float] = {}
    with ExitStack() as stack:
        if direction != IDLE:
            rates = stack.enter_context(_saturated(place, tool, direction, warm_up, stats))
        line.report()
        times, missing, _ = _type(place, tool, count, KEY_GAP)
        report = line.report()
    waited = report[DOWN if direction == DOWN else UP]["longest_queue"]
    return _Cell(times, missing, rates.get("rate", 0.0), waited)


# ---- (c) bulk -----------------------------------------------------------------------------------


@dataclass(slots=True)
class BulkRow:
    tool: str
    rtt_ms: float
    direction: str
    # Steady state, and from the first byte on with slow start and growing windows.
    mbit: float
    mbit_from_start: float
    vs_tcp: float
    vs_tcp_from_start: float
    cpu_ms_per_mib: float


BULK_RATE, BULK_QUEUE = 50e6, 0.1


def bulk(
    workshop: Workshop,
    line: Line,
    rtt: float,
    *,
    rounds: int,
    seconds: float,
    warm_up: float,
    say: Say,
) -> list[BulkRow]:
    place = Place.on_line(line.near, line.far)
    makers: list[Maker] = [workshop.plain_tcp, workshop.ssh, workshop.ours]
    steady: dict[tuple[str, str], list[float]] = {}
    whole: dict[tuple[str, str], list[float]] = {}
    cpus: dict[tuple[str, str], list[float]] = {}
    with workshop.device(line.near):
        for number in range(rounds):
            turn = number % len(makers)
            for maker in makers[turn:] + makers[:turn]:
                for direction in (UP, DOWN):
                    with maker(place) as tool:
                        load = _saturated(place, tool, direction, warm_up, workshop.stats)
                        with load as rates:
                            before = tool.cpu()
                            time.sleep(seconds)
                            used = tool.cpu() - before
                    key = (tool.name, direction)
                    mib = rates["rate"] * seconds / 8 / 2**20
                    steady.setdefault(key, []).append(rates["rate"])
                    whole.setdefault(key, []).append(rates["rate_from_start"])
                    cpus.setdefault(key, []).append(used / max(mib, 1e-9) * 1e3)
                    say(
                        f"  {tool.name:9} {direction:4} {rates['rate'] / 1e6:6.2f} Mbit/s"
                        f" ({rates['rate_from_start'] / 1e6:.2f} from the start)"
                    )

    def ratio(of: dict[tuple[str, str], list[float]], key: tuple[str, str]) -> float:
        pairs = zip(of[key], of["plain TCP", key[1]], strict=True)
        return round(statistics.median(mine / theirs for mine, theirs in pairs), 3)

    return [
        BulkRow(
            tool=key[0],
            rtt_ms=round(rtt * 1e3),
            direction=key[1],
            mbit=round(statistics.median(values) / 1e6, 2),
            mbit_from_start=round(statistics.median(whole[key]) / 1e6, 2),
            vs_tcp=ratio(steady, key),
            vs_tcp_from_start=ratio(whole, key),
            cpu_ms_per_mib=round(statistics.median(cpus[key]), 2),
        )
        for key, values in steady.items()
    ]


# ---- (f) functions -------------------------------------------------------------------------------


@dataclass(slots=True)
class FunctionRow:
    """`round_trips` is what the way adds to the time on the gateway, in RTTs of the line."""

    function: str
    way: str
    think_ms: float
    exchanges: int
    seconds: float
    round_trips: float
    wan_bytes: int
    vs_call: float


FUNCTIONS = ("inventory.get", "eventlog.get")
FUNCTION_RTT = 0.050
FUNCTION_LINE = Profile(50e6, FUNCTION_RTT / 2, 0.1)


def functions(
    workshop: Workshop, line: Line, *, rounds: int, thinks: Sequence[float], say: Say
) -> list[FunctionRow]:
    """Medians; each way once before they are measured, so that nonce and connection are there."""
    place = Place.on_line(line.near, line.far)
    rows: list[FunctionRow] = []
    for think in thinks:
        with workshop.functions(place, think) as ask:
            for function in FUNCTIONS:
                seen: dict[str, list[dict[str, float]]] = {CALL: [], TUNNEL: []}
                for number in range(rounds + 1):
                    for way in seen:
                        line.report()
                        answer = ask(function=function, way=way)
                        report = line.report()
                        answer["octets"] = report[UP]["octets"] + report[DOWN]["octets"]
                        if number:
                            seen[way].append(answer)
                rows += _function_rows(function, think, seen, say)
    return rows


def _function_rows(
    function: str, think: float, seen: dict[str, list[dict[str, float]]], say: Say
) -> list[FunctionRow]:
    def median(way: str, name: str) -> float:
        return statistics.median(answer[name] for answer in seen[way])

    local = median(CALL, "at_device")
    rows = [
        FunctionRow(
            function=function,
            way=way,
            think_ms=round(think * 1e3),
            exchanges=round(median(way, "exchanges")),
            seconds=round(median(way, "seconds"), 4),
            round_trips=round((median(way, "seconds") - local) / FUNCTION_RTT, 2),
            wan_bytes=round(median(way, "octets")),
            vs_call=round(
                statistics.median(
                    mine["seconds"] / call["seconds"]
                    for mine, call in zip(seen[way], seen[CALL], strict=True)
                ),
                2,
            ),
        )
        for way in seen
    ]
    for row in rows:
        say(
            f"  {row.function:14} think {row.think_ms:3.0f} ms {row.way:6} {row.seconds:7.3f} s,"
            f" {row.exchanges} exchanges, {row.round_trips} WAN round trips, {row.wan_bytes} bytes"
        )
    return rows


@dataclass(slots=True)
class CrowdResult:
    """Keys on a stream to one PC, alone and while `devices` others are asked for inventory."""

    devices: int
    idle: Spread
    loaded: Spread
    inventories: int


CROWD = 64


def inventory_of_many(
    workshop: Workshop, line: Line, *, keys: int, rounds: int, say: Say
) -> CrowdResult:
    """On the line of part b, as it is set; all devices think of nothing and answer at once."""
    place = Place.on_line(line.near, line.far)
    times: dict[int, list[float]] = {0: [], CROWD: []}
    inventories = 0
    with workshop.device(line.near), workshop.functions(place, 0.0, CROWD) as ask:
        for _ in range(rounds):
            for devices, seen in times.items():
                answer = ask(keys=keys, devices=devices)
                seen += answer["times"]
                refused = {code: n for code, n in answer["inventories"].items() if code != "OK"}
                if refused:
                    raise BenchError(f"inventories failed: {refused}")
                inventories += answer["inventories"].get("OK", 0)
    result = CrowdResult(CROWD, Spread.of(times[0]), Spread.of(times[CROWD]), inventories)
    say(
        f"  echo p50 {result.idle.p50:.1f} p99 {result.idle.p99:.1f} ms alone,"
        f" {result.loaded.p50:.1f} and {result.loaded.p99:.1f} beside {inventories} inventories"
    )
    return result


# ---- (e) idle sessions --------------------------------------------------------------------------


@dataclass(slots=True)
class MemoryResult:
    sessions: int
    kib_per_session: float
    base_mib: float
    cpu_percent_of_core: float
    cpu_percent_at_2000: float
    sessions_per_second: float


# The first sessions fill the allocator's arenas and import what is imported late.
_FIRST_SESSIONS = 50


def idle_sessions(workshop: Workshop, count: int, watch: float, say: Say) -> MemoryResult:
    """Many gateways, one MSP process; its private memory before and after, and its CPU at rest."""
    with workshop.started() as started:
        state = str(workshop.authority.directory)
        argv = [workshop.python, "-m", "tests.bench.msp_end", "127.0.0.1", "4435", state]
        msp = started.start(None, argv, talks=True, environment=workshop.environment)
        argv = [sys.executable, "-m", "tests.bench.many_gateways", "127.0.0.1:4435", state]
        many = started.start(None, [*argv, str(workshop.directory / "many")], talks=True)
        assert many.stdin is not None
        assert msp.stdin is not None
        assert msp.stdout is not None

        def grow_to(total: int) -> None:
            assert many.stdin is not None
            assert many.stdout is not None
            many.stdin.write(f"{total}\n")
            many.stdin.flush()
            if not many.stdout.readline():
                raise BenchError(f"the gateways' process ended; logs in {started.directory}")

        grow_to(_FIRST_SESSIONS)
        base = private_memory(msp.pid)
        begun = time.monotonic()
        grow_to(count)
        took = time.monotonic() - begun
        say(f"  {count} sessions after {took:.1f} s")
        time.sleep(1.0)
        grown = private_memory(msp.pid)
        tool = Tool("msp", {}, [msp.pid])
        before = tool.cpu()
        time.sleep(watch)
        share = (tool.cpu() - before) / watch
        msp.stdin.write("count\n")
        msp.stdin.flush()
        alive = int(json.loads(msp.stdout.readline())["sessions"])
        if alive != count:
            raise BenchError(f"{alive} of {count} sessions are alive")
        many.kill()
    return MemoryResult(
        sessions=count,
        kib_per_session=round((grown - base) / (count - _FIRST_SESSIONS), 2),
        base_mib=round(base / 1024, 1),
        cpu_percent_of_core=round(share * 100, 2),
        cpu_percent_at_2000=round(share * 100 * 2000 / count, 2),
        sessions_per_second=round((count - _FIRST_SESSIONS) / took, 1),
    )


def private_memory(pid: int) -> int:
    """KiB that only this process has: pages shared with others are not the sessions'."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))


# ---- the line -----------------------------------------------------------------------------------


def check_line(line: Line, profile: Profile, probes: int) -> Measured:
    line.set(profile)
    return validate(line, probes)


@contextlib.contextmanager
def a_line(congestion: str) -> Iterator[Line]:
    """The line process has a core to itself as far as the bench can arrange it: the last one."""
    last = max(os.sched_getaffinity(0))
    with Namespaces() as (near, far), Line(near, far, last, congestion) as line:
        yield line
