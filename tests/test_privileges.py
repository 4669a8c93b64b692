from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

_DROP = """
import json, os, socket, subprocess, sys
from gwmodule.privileges import drop_all_capabilities
drop_all_capabilities()
drop_all_capabilities()
with open("/proc/self/status") as status:
    lines = [line.rstrip().split(":\\t") for line in status]
state = dict(line for line in lines if line[0].startswith(("Cap", "NoNew")))
child = subprocess.run(["grep", "^CapEff", "/proc/self/status"], capture_output=True, text=True)
state["child"] = child.stdout.split()[1]
try:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
except PermissionError:
    state["packet"] = "refused"
json.dump(state, sys.stdout)
"""


def after_drop() -> dict[str, str]:
    answer = subprocess.run(
        [sys.executable, "-c", _DROP], capture_output=True, text=True, check=True
    )
    state: dict[str, str] = json.loads(answer.stdout)
    return state


def test_nothing_is_left_and_nothing_comes_back() -> None:
    state = after_drop()
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "child"):
        assert int(state[name], 16) == 0, name
    assert state["NoNewPrivs"] == "1"
    assert state["packet"] == "refused"


@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root for CAP_SETPCAP"
)
def test_with_the_privilege_to_do_so_the_bounding_set_is_emptied_too() -> None:
    assert int(after_drop()["CapBnd"], 16) == 0


_CRASH = """
import ctypes, os, resource
from gwmodule.privileges import drop_all_capabilities, forbid_core_dumps
drop_all_capabilities()
forbid_core_dumps()
dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
print(dumpable, *resource.getrlimit(resource.RLIMIT_CORE), flush=True)
os.abort()
"""


def test_a_crash_leaves_no_core(tmp_path: Path) -> None:
    crashed = subprocess.run(
        [sys.executable, "-c", _CRASH],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert crashed.returncode == -signal.SIGABRT
    assert crashed.stdout.split() == ["0", "0", "0"]
    assert list(tmp_path.iterdir()) == []
