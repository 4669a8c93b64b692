"""`python -m tests.bench [--quick] [--only LIST] [--out DIRECTORY]`: measure, print, write.

Runs itself in namespaces of its own (gwmodule.sim.isolate), needs root, and leaves nothing behind.
Parts: a idle echo, b echo beside bulk, c bulk, d as b with loss, e memory of idle sessions,
f functions of a device on the gateway and through a byte stream, g the MSP service.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gwmodule.sim import isolate
from tests.bench import cells, report
from tests.bench.cells import BULK_QUEUE, BULK_RATE, RATE, RTT
from tests.bench.service_cells import ServiceEffort, service
from tests.bench.tools import BenchError, Workshop, missing_packages
from tests.lab.line import Measured, Profile

_PARTS = "abcdefg"
# Those whose figures have a bar.
_QUICK_PARTS = "abcef"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to look. `quick` has fewer rows and more noise."""

    idle_rounds: int
    idle_count: int
    queues: tuple[float, ...]
    losses: tuple[float, ...]
    loaded_rounds: int
    loaded_count: int
    loaded_warm_up: float
    anew: bool
    rtts: tuple[float, ...]
    bulk_rounds: int
    bulk_seconds: float
    bulk_warm_up: float
    sessions: int
    watch: float
    probes: int
    function_rounds: int
    thinks: tuple[float, ...]
    service: ServiceEffort


FULL = Effort(
    idle_rounds=11,
    idle_count=700,
    queues=(0.032, 0.1, 0.4),
    losses=(0.0, 0.01),
    loaded_rounds=3,
    loaded_count=110,
    loaded_warm_up=3.0,
    anew=True,
    rtts=(0.0, 0.1),
    bulk_rounds=3,
    bulk_seconds=5.0,
    bulk_warm_up=5.0,
    sessions=2000,
    watch=12.0,
    probes=60,
    function_rounds=7,
    thinks=(0.0, 0.1),
    service=ServiceEffort(rounds=7, seconds=2.0, calls=300, sessions=2000, registrations=4000),
)
QUICK = Effort(
    idle_rounds=3,
    idle_count=400,
    queues=(0.1,),
    losses=(0.0,),
    loaded_rounds=1,
    loaded_count=90,
    loaded_warm_up=1.5,
    anew=False,
    rtts=(0.1,),
    bulk_rounds=1,
    bulk_seconds=1.0,
    bulk_warm_up=1.5,
    sessions=250,
    watch=2.0,
    probes=8,
    function_rounds=2,
    thinks=(0.0,),
    service=ServiceEffort(rounds=2, seconds=0.5, calls=60, sessions=250, registrations=600),
)


def say(line: str) -> None:
    print(line, flush=True)


def measure(effort: Effort, parts: str, congestion: str, workshop: Workshop) -> report.Results:
    results = report.Results(_machine(congestion, workshop.python))
    if "a" in parts:
        say("(a) idle echo ...")
        results.idle = cells.idle_echo(workshop, effort.idle_rounds, effort.idle_count)
    if set(parts) & set("bcdf"):
        with cells.a_line(congestion) as line:
            for loss in effort.losses:
                if ("d" if loss else "b") not in parts:
                    continue
                for queue in effort.queues:
                    profile = Profile(RATE, RTT / 2, queue, loss)
                    _check(results, cells.check_line(line, profile, effort.probes), profile)
                    results.loaded += cells.loaded_echo(
                        workshop,
                        line,
                        profile,
                        rounds=effort.loaded_rounds,
                        count=effort.loaded_count,
                        warm_up=effort.loaded_warm_up,
                        anew=effort.anew,
                        say=say,
                    )
            for rtt in effort.rtts if "c" in parts else ():
                profile = Profile(BULK_RATE, rtt / 2, BULK_QUEUE)
                _check(results, cells.check_line(line, profile, effort.probes), profile)
                results.bulk += cells.bulk(
                    workshop,
                    line,
                    rtt,
                    rounds=effort.bulk_rounds,
                    seconds=effort.bulk_seconds,
                    warm_up=effort.bulk_warm_up,
                    say=say,
                )
            if "f" in parts:
                profile = cells.FUNCTION_LINE
                _check(results, cells.check_line(line, profile, effort.probes), profile)
                results.functions = cells.functions(
                    workshop, line, rounds=effort.function_rounds, thinks=effort.thinks, say=say
                )
                profile = Profile(RATE, RTT / 2, 0.1)
                _check(results, cells.check_line(line, profile, effort.probes), profile)
                results.crowd = cells.inventory_of_many(
                    workshop,
                    line,
                    keys=effort.loaded_count,
                    rounds=effort.loaded_rounds,
                    say=say,
                )
    if "e" in parts:
        say(f"(e) {effort.sessions} idle sessions ...")
        results.memory = cells.idle_sessions(workshop, effort.sessions, effort.watch, say)
    if "g" in parts:
        say("(g) the MSP service ...")
        results.service = service(workshop, effort.service, say)
    return results


def _check(results: report.Results, measured: Measured, profile: Profile) -> None:
    name = (
        f"{profile.rate / 1e6:g} Mbit/s, {profile.delay * 2e3:g} ms RTT,"
        f" {profile.queue * 1e3:g} ms queue, {profile.loss * 100:g} % loss"
    )
    say(f"line {name}:\n  {measured}")
    results.line.append({"profile": name, "measured": str(measured), **asdict(measured)})


def _machine(congestion: str, python: str) -> dict[str, object]:
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": f"{len(cpu)} x {cpu[0] if cpu else platform.machine()}",
        "kernel": platform.release(),
        "python": subprocess.run(
            [python, "-c", "import platform; print(platform.python_version())"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        + (" of the distribution" if python.startswith("/usr/") else ""),
        "load_before": os.getloadavg()[0],
        "congestion_control": congestion,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="two minutes: the parts with a bar, and more noise"
    )
    parser.add_argument(
        "--only",
        metavar="LIST",
        help=f"parts, such as a,b (default {_PARTS}; quick {_QUICK_PARTS})",
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--name", default="", help="of the files, default full or quick")
    parser.add_argument("--congestion", default="cubic", help="TCP's algorithm on the line")
    parser.add_argument("--keep", action="store_true", help="keep the logs of all processes")
    arguments = parser.parse_args()
    if arguments.only is None:
        arguments.only = _QUICK_PARTS if arguments.quick else _PARTS
    unknown = set(arguments.only.replace(",", "")) - set(_PARTS)
    if unknown:
        parser.error(f"no such parts: {' '.join(sorted(unknown))} (there are: {_PARTS})")
    return arguments


def main() -> int:
    arguments = _arguments()
    missing = missing_packages()
    if missing:
        print(f"missing: apt-get install -y --no-install-recommends {' '.join(missing)}")
        return 69
    if not isolate.isolated():
        isolate.execute([sys.executable, "-m", "tests.bench", *sys.argv[1:]])
    begun = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="gwmodule-bench-"))
    try:
        effort = QUICK if arguments.quick else FULL
        workshop = Workshop(directory)
        results = measure(effort, arguments.only, arguments.congestion, workshop)
    except BenchError as exc:
        print(f"bench: {exc}", file=sys.stderr)
        arguments.keep = True
        return 1
    finally:
        if arguments.keep:
            print(f"logs are in {directory}")
        else:
            shutil.rmtree(directory)
    name = arguments.name or ("quick" if arguments.quick else "full")
    written = report.write(results, arguments.out, name)
    say(report.text(results))
    say(f"\n{time.monotonic() - begun:.0f} s; wrote {', '.join(map(str, written))}")
    say(json.dumps(report.figures(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
