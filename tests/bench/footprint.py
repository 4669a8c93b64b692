"""What the gateway's software weighs (`make footprint`).

Size of the packages as built (dist/ipk, dist/deb), then one idle gateway in the lab with its link
up and the default timings: memory of both processes, wakeups per second, time from exec to a link.
Prints a Markdown table; exit 1 if something is over its bar.
"""

from __future__ import annotations

import datetime
import gzip
import io
import os
import platform
import re
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

from gwmodule.config import BackoffConfig, DevicesConfig, LivenessConfig, ProbeConfig
from gwmodule.sim.hosts import Lab, wait_until
from gwmodule.sim.services import System
from gwmodule.sim.topology import TWO_WANS
from gwmodule.telemetry import memory

DIST = Path(__file__).parents[2] / "dist"
# Until everything that happens only once has happened.
SETTLE = 20.0
WINDOW = 60.0
MIB = 1024


class Bar(NamedTuple):
    bar: float
    goal: float


# design figures of the project: PSS in MiB, wakeups per second of both processes together
BARS = {"relay": Bar(44, 30), "capture": Bar(44, 36), "wakeups": Bar(2, 1)}


class Row(NamedTuple):
    what: str
    value: float
    unit: str
    bar: Bar | None = None

    @property
    def over(self) -> bool:
        return self.bar is not None and self.value > self.bar.bar

    def __str__(self) -> str:
        bar, goal = (f"{n:g}" for n in self.bar) if self.bar else ("", "")
        return f"| {self.what} | {self.value:,.1f} {self.unit} | {bar} | {goal} |"


def packages() -> list[Row]:
    """Compressed, as they are fetched, and unpacked, as they lie in a file system without."""
    rows: list[Row] = []
    for path in sorted(DIST.glob("ipk/*.ipk")):
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(path.read_bytes()))) as outer:
            data = outer.extractfile("./data.tar.gz")
            assert data is not None
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data.read()))) as inner:
                unpacked = sum(member.size for member in inner)
        name = path.name.partition("_")[0]
        rows.append(Row(f"{name}.ipk, bytecode, compressed", path.stat().st_size / 1024, "KiB"))
        rows.append(Row(f"{name}.ipk, unpacked", unpacked / 1024, "KiB"))
    for path in sorted(DIST.glob("deb/*.deb")):
        name = path.name.partition("_")[0]
        rows.append(Row(f"{name}.deb, sources, compressed", path.stat().st_size / 1024, "KiB"))
    return rows


def running() -> list[Row]:
    with Lab(TWO_WANS) as lab:
        system = System(lab)
        system.start_msp()
        # The lab hurries; a real gateway has these.
        defaults: dict[str, object] = {
            "backoff": values(BackoffConfig()),
            "liveness": values(LivenessConfig()),
            "probe": values(ProbeConfig()),
            "devices": values(DevicesConfig()),
        }
        system.enrol(defaults)
        system.start_gateway()
        wait_until("the capture", lambda: system.status()["capture"]["connected"], 30)
        pids = {name: process(system, name) for name in ("relay", "capture")}
        time.sleep(SETTLE)
        before = {name: wakeups(pid) for name, pid in pids.items()}
        time.sleep(WINDOW)
        rate = {name: (wakeups(pid) - before[name]) / WINDOW for name, pid in pids.items()}
        sizes = {name: memory(pid) for name, pid in pids.items()}
        start = float(system.status()["start_to_link_up_seconds"])
    rows = []
    for name, size in sizes.items():
        rows.append(Row(f"{name}: PSS, idle", size["pss_kib"] / MIB, "MiB", BARS[name]))
        rows.append(Row(f"{name}: RSS, idle", size["rss_kib"] / MIB, "MiB"))
    rows += [Row(f"{name}: wakeups, idle", value, "/s") for name, value in rate.items()]
    rows.append(Row("both: wakeups, idle", sum(rate.values()), "/s", BARS["wakeups"]))
    rows.append(Row("relay: from exec to the link", start, "s"))
    return rows


def values(config: object) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__slots__}  # type: ignore[attr-defined]


def process(system: System, verb: str) -> int:
    lines = system.lab.processes(system.lab.topology.relay)
    return next(pid for pid, line in lines.items() if re.search(rf"-m gwmodule {verb}\b", line))


def wakeups(pid: int) -> int:
    """How often its threads went to sleep, and so were woken."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status.read_text(), re.M)
        assert found is not None
        total += int(found[1])
    return total


def main() -> int:
    rows = [*packages(), *running()]
    today = datetime.datetime.now(datetime.UTC).date()
    print(
        f"{today}, {platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {platform.libc_ver()[0]}\n"
    )
    print("| what | measured | bar | goal |\n|---|---|---|---|")
    for row in rows:
        print(row)
    over = [row for row in rows if row.over]
    for row in over:
        print(f"over its bar: {row.what}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
