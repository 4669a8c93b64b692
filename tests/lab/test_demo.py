from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gwmodule.sim import isolate
from gwmodule.sim.hosts import python

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

STEPS = {
    "msp", "link", "leases", "portal", "nat", "hello_typed", "hello_dns", "probe", "activate",
    "power_get", "reset_sol",
}  # fmt: skip
ORDINARY_USER = "12345"
REPOSITORY = Path(__file__).resolve().parents[2]

# In a mount namespace of its own: directories that only root may pass (a home with the interpreter
# or the clone in it) are replaced by ones that hold nothing but what the demo needs.
OPEN_TO_ALL = """
import os, stat, subprocess, sys
needed = sorted({*sys.argv[1].split(os.pathsep)})
for number, path in enumerate(needed):
    os.makedirs(f"/run/kept/{number}")
    subprocess.run(["mount", "--rbind", path, f"/run/kept/{number}"], check=True)
closed = []
for path in needed:
    parts = path.strip("/").split("/")
    for end in range(1, len(parts)):
        above = "/" + "/".join(parts[:end])
        if not os.stat(above).st_mode & stat.S_IXOTH:
            closed += [] if above in closed else [above]
            break
for path in closed:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", path], check=True)
for number, path in enumerate(needed):
    if any(path.startswith(above + "/") for above in closed):
        os.makedirs(path, exist_ok=True)
        subprocess.run(["mount", "--rbind", f"/run/kept/{number}", path], check=True)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def outside() -> dict[str, str]:
    """The environment of somebody who is not in a lab yet."""
    return {key: value for key, value in os.environ.items() if key != isolate.MARK}


def demo(argv: list[str]) -> dict[str, Any]:
    result = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=outside()
    )
    assert result.returncode == 0, result.stdout + result.stderr
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def test_the_demo_ends_with_one_json_line_and_every_step_good() -> None:
    answer = demo(python("gwmodule.sim.cli", "demo"))
    assert answer["ok"] is True
    assert set(answer["steps"]) == STEPS
    assert all(step["ok"] for step in answer["steps"].values())
    assert answer["seconds"] < 90


def test_the_demo_works_as_an_ordinary_user() -> None:
    if not isolate.privileged():
        pytest.skip("this is an ordinary user already: the test above was the same")
    needed = os.pathsep.join((sys.base_prefix, sys.prefix, str(REPOSITORY)))
    drop = ["setpriv", f"--reuid={ORDINARY_USER}", f"--regid={ORDINARY_USER}", "--clear-groups"]
    user = [*drop, "env", "-u", isolate.MARK, "HOME=/tmp", "PYTHONDONTWRITEBYTECODE=1"]
    trial = subprocess.run(
        [*drop, "unshare", "--user", "--map-root-user", "--net", "true"],
        capture_output=True,
        text=True,
    )
    if trial.returncode != 0:
        pytest.skip(f"the kernel gives ordinary users no namespaces: {trial.stderr.strip()}")
    argv = [*user, *python("gwmodule.sim.cli", "demo")]
    opened = [sys.executable, "-c", OPEN_TO_ALL, needed, *argv]
    answer = demo(python("gwmodule.sim.isolate", "--", *opened))
    assert answer["ok"] is True
    assert set(answer["steps"]) == STEPS


def test_a_failing_demo_says_why_and_ends_with_exit_status_1() -> None:
    without_nft = 'mount --bind /dev/null "$(readlink -f "$(command -v nft)")" && exec "$@"'
    inner = ["env", "-u", isolate.MARK, *python("gwmodule.sim.cli", "demo")]
    result = subprocess.run(
        python("gwmodule.sim.isolate", "--", "sh", "-c", without_nft, "sh", *inner),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=outside(),
    )
    answer = json.loads(result.stdout.splitlines()[-1])
    assert result.returncode == 1
    assert answer["ok"] is False
    assert "not installed: nft" in answer["problem"]
