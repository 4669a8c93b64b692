from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator

import pytest

from gwmodule.sim.hosts import DIRECTORY, Lab, wait_until
from gwmodule.sim.services import LOGIN, UUIDS, System
from gwmodule.sim.topology import TWO_WANS
from tests.lab.conftest import bring_up

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

TRACE = DIRECTORY / "trace"
# Every call that makes, changes or removes a name, or opens a file.
CALLS = (
    "open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,link,linkat,symlink,symlinkat,"
    "rename,renameat,renameat2,unlink,unlinkat,rmdir,truncate,chmod,fchmodat,bind"
)
STRACE = ("strace", "-f", "--seccomp-bpf", "-qq", "-s", "300", "-o", str(TRACE), "-e", CALLS)
WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND")
LINE = re.compile(r"\d+\s+(?P<call>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+)")


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with Lab(TWO_WANS) as lab:
        system = System(lab, gateway_wrapper=STRACE)
        bring_up(system)
        yield system


def changes(trace: str) -> Iterator[str]:
    """The calls that succeeded and changed something in the file system."""
    for line in trace.splitlines():
        match = LINE.match(line)
        if match is None or int(match["result"]) < 0:
            continue
        arguments = match["arguments"]
        if match["call"].startswith("open") and not WRITES.search(arguments):
            continue
        if match["call"] == "bind" and "AF_UNIX" not in arguments:
            continue
        yield line


def process(system: System, pattern: str) -> int:
    lines = system.lab.processes(system.lab.topology.relay)
    return next(pid for pid, line in lines.items() if re.search(pattern, line))


def test_status_tells_memory_and_time_to_the_link(system: System) -> None:
    status = system.status()
    for process in ("relay", "capture"):
        memory = status["memory"][process]
        assert 5_000 < memory["pss_kib"] <= memory["rss_kib"] < 120_000
    assert 0 < status["start_to_link_up_seconds"] < 20


def test_the_gateway_writes_no_file_but_its_sockets_under_run(system: System) -> None:
    for pc, name in UUIDS.items():
        assert system.call(pc, "power.get"), name
    system.technician("sol", UUIDS["pc2"], *LOGIN, "--expect", "login:", "--timeout", "10")
    os.kill(process(system, f"^{re.escape(sys.executable)} -m gwmodule run"), signal.SIGTERM)
    wait_until("the end of strace", lambda: not system.lab.services["gwmodule"].alive, 10)
    trace = TRACE.read_text()
    assert trace.count("openat(") > 100, "strace saw too little to prove anything"
    seen = list(changes(trace))
    assert any("capture.sock" in line for line in seen)
    assert any("control.sock" in line for line in seen)
    allowed = re.compile(r'"(/run/gwmodule[^"]*|/dev/null|/proc/self/oom_score_adj)"')
    assert [line for line in seen if not allowed.search(line)] == []
