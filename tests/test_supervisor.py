from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Stands for `python -B -m gwmodule SERVICE --config FILE`: the supervisor runs sys.executable.
SERVICE = """#!{python}
import os, signal, sys, time
name, path = sys.argv[4], sys.argv[6]
log = open(os.path.join(path, "log"), "a", buffering=1)
def note(text):
    log.write(f"{{name}} {{os.getpid()}} {{text}}\\n")
signal.signal(signal.SIGUSR1, lambda *_: note("usr1"))
signal.signal(signal.SIGHUP, lambda *_: note("hup"))
def stop(*_):
    note("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
if os.path.exists(os.path.join(path, name + ".bad")):
    note("bad config")
    sys.exit(78)
note("started")
while True:
    time.sleep(60)
"""
RUN = (
    "import sys; from gwmodule.supervisor import supervise; sys.executable = sys.argv[1];"
    "sys.exit(supervise(['relay', 'capture'], sys.argv[2]))"
)


class Supervised:
    def __init__(self, directory: Path, before: str = "") -> None:
        self.directory = directory
        service = directory / "service"
        service.write_text(SERVICE.format(python=sys.executable))
        service.chmod(0o755)
        self.errors = directory / "errors"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", before + RUN, str(service), str(directory)], stderr=errors
            )

    def lines(self) -> list[list[str]]:
        log = self.directory / "log"
        return [line.split(" ", 2) for line in log.read_text().splitlines()] if log.exists() else []

    def wait(self, name: str, text: str, count: int = 1) -> list[int]:
        """The pids that said so, once there are `count`."""
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            pids = [int(p) for n, p, t in self.lines() if (n, t) == (name, text)]
            if len(pids) >= count:
                return pids
            time.sleep(0.05)
        raise AssertionError(f"{name} never said {text!r} {count} times: {self.lines()}")


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    made = Supervised(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def test_a_killed_service_is_started_again_and_the_other_does_not_notice(
    supervised: Supervised,
) -> None:
    (relay,) = supervised.wait("relay", "started")
    (capture,) = supervised.wait("capture", "started")
    os.kill(relay, signal.SIGKILL)
    assert supervised.wait("relay", "started", 2)[1] != relay
    assert supervised.wait("capture", "started") == [capture]


def test_a_service_that_cannot_be_started_is_tried_again_and_the_other_does_not_notice(
    supervised: Supervised,
) -> None:
    (relay,) = supervised.wait("relay", "started")
    (capture,) = supervised.wait("capture", "started")
    service = supervised.directory / "service"
    service.chmod(0)
    os.kill(relay, signal.SIGKILL)
    deadline = time.monotonic() + 15
    while "Permission denied" not in supervised.errors.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    service.chmod(0o755)
    assert supervised.wait("relay", "started", 2)[1] != relay
    assert supervised.wait("capture", "started") == [capture]
    assert "service=relay status=-9" in supervised.errors.read_text()


@pytest.mark.parametrize(
    "raised",
    ["OSError(11, 'Resource temporarily unavailable')", "subprocess.SubprocessError('preexec_fn')"],
)
def test_whatever_keeps_a_service_from_starting_is_no_end(tmp_path: Path, raised: str) -> None:
    once = (
        "import subprocess\n"
        "class Popen(subprocess.Popen):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        subprocess.Popen = Popen.__base__\n"
        f"        raise {raised}\n"
        "subprocess.Popen = Popen\n"
    )
    made = Supervised(tmp_path, once)
    try:
        made.wait("relay", "started")
        made.wait("capture", "started")
    finally:
        made.process.kill()
        made.process.wait()


def test_sigterm_stops_the_services_first(supervised: Supervised) -> None:
    supervised.wait("relay", "started")
    supervised.wait("capture", "started")
    supervised.process.terminate()
    assert supervised.process.wait(10) == 0
    assert {line[0] for line in supervised.lines() if line[2] == "stopped"} == {
        "relay",
        "capture",
    }


@pytest.mark.parametrize("name", ["usr1", "hup"])
def test_a_signal_for_the_relay_reaches_the_relay_alone(supervised: Supervised, name: str) -> None:
    supervised.wait("relay", "started")
    supervised.wait("capture", "started")
    supervised.process.send_signal(getattr(signal, f"SIG{name.upper()}"))
    supervised.wait("relay", name)
    assert ["capture", name] not in [[n, t] for n, _, t in supervised.lines()]


def test_no_service_outlives_a_killed_supervisor(supervised: Supervised) -> None:
    pids = [*supervised.wait("relay", "started"), *supervised.wait("capture", "started")]
    supervised.process.kill()
    supervised.process.wait()
    supervised.wait("relay", "stopped")
    supervised.wait("capture", "stopped")
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            _wait_gone(pid)


def _wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        os.kill(pid, 0)
        # An orphan is reaped by init; where init does not reap, a zombie is dead enough.
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            raise ProcessLookupError
        time.sleep(0.05)


def test_a_bad_configuration_ends_it_with_78(tmp_path: Path) -> None:
    (tmp_path / "capture.bad").touch()
    made = Supervised(tmp_path)
    try:
        assert made.process.wait(15) == 78
    finally:
        made.process.kill()
        made.process.wait()
