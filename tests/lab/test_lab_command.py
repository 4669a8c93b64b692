from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gwmodule.sim import isolate
from gwmodule.sim.hosts import python, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who is not in a lab, with a runtime directory of his own."""
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    return {k: v for k, v in os.environ.items() if k != isolate.MARK} | runtime


def sleepers(mark: str) -> list[str]:
    """Processes with that argument, in whatever namespace."""
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in lines.stdout.splitlines() if line == f"sleep {mark}"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_an_isolated_command(outside: dict[str, str], number: int) -> None:
    mark = f"98{number}1"
    command = python("gwmodule.sim.isolate", "--", "sh", "-c", f"setsid sleep {mark} & sleep 60")
    process = subprocess.Popen(command, env=outside)
    wait_until("the grandchild", lambda: sleepers(mark), 20)
    os.kill(process.pid, number)
    process.wait(20)
    wait_until("its end", lambda: not sleepers(mark), 20)


# What a shell without job control does for `&`.
IN_THE_BACKGROUND = ("sh", "-c", "trap '' INT; exec \"$@\"", "background")


@pytest.fixture
def running_lab(outside: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*IN_THE_BACKGROUND, *python("gwmodule.sim.cli", "lab")],
        env=outside,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.communicate()


def shown_until(process: subprocess.Popen[str], text: str) -> str:
    shown = ""
    assert process.stdout is not None
    for line in process.stdout:
        shown += line
        if text in line:
            return shown
    raise AssertionError(f"{text!r} never came: {shown}")


def test_the_lab_stays_up_is_entered_and_ends_with_ctrl_c_even_one_from_a_script(
    running_lab: subprocess.Popen[str], outside: dict[str, str]
) -> None:
    shown = shown_until(running_lab, "Logs are in")
    assert "gwmodule-sim enter msp gwmodule-msp devices" in shown
    enter = python("gwmodule.sim.cli", "enter")
    deadline = time.monotonic() + 30
    while True:
        devices = subprocess.run(
            [*enter, "msp", "gwmodule-msp", "devices"], env=outside, capture_output=True, text=True
        )
        if "00:00:5e:00:53:01" in devices.stdout or time.monotonic() > deadline:
            break
    assert "00:00:5e:00:53:01" in devices.stdout, devices.stderr
    os.killpg(running_lab.pid, signal.SIGINT)
    assert running_lab.wait(10) == 0
    after = subprocess.run([*enter, "msp", "true"], env=outside, capture_output=True, text=True)
    assert after.returncode == 1
    assert "no lab is running" in after.stderr
