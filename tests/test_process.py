"""What a service manager hears of the relay; no systemd is needed for that."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gwmodule.control import ask

CONFIG = """
[msp]
address = ["{msp}"]
[tls]
mode = "off"
[lan]
interface = ["lo"]
hello_port = 0
[control]
socket = "{folder}/control.sock"
[capture]
enabled = false
"""


class Relay:
    """`gwmodule relay` with no MSP anywhere, and what it tells its manager."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "gwmodule.toml"
        self.folder = folder
        self.write("127.0.0.1:1")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gwmodule", "relay", "--config", str(self.config)],
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(folder / "notify"),
                "WATCHDOG_USEC": "600000",
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, msp: str) -> None:
        self.config.write_text(CONFIG.format(msp=msp, folder=self.folder))

    def heard(self, wanted: str) -> list[str]:
        """The first message from now on that has such a line."""
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            lines = self.hear(15.0)
            if wanted in lines:
                return lines
        raise AssertionError(f"never heard {wanted}")

    def hear(self, timeout: float) -> list[str]:
        self._socket.settimeout(timeout)
        return self._socket.recv(4096).decode().split("\n")

    def drain(self) -> None:
        """What was said before the process was stopped."""
        with contextlib.suppress(TimeoutError):
            self.hear(0.1)
            self.hear(0.1)

    def reload(self, msp: str) -> None:
        self.write(msp)
        self.process.send_signal(signal.SIGHUP)
        self.heard("RELOADING=1")
        self.heard("READY=1")

    def lockdown(self, on: bool, seconds: int | None = None) -> None:
        ask(str(self.folder / "control.sock"), "lockdown", {"on": on, "seconds": seconds})

    def wait_for_log(self, event: str) -> None:
        """The test's time limit is this one's."""
        assert self.process.stderr is not None
        assert any(f"event={event}" in line for line in self.process.stderr)

    def rest_of_log(self) -> str:
        """It ends with it."""
        assert self.process.stderr is not None
        self.process.kill()
        return self.process.stderr.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
        self._socket.close()


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    made = Relay(tmp_path)
    yield made
    made.close()


def test_it_is_ready_without_a_link_once_it_can_be_asked(relay: Relay) -> None:
    assert relay.heard("READY=1")[1] == "STATUS=running, MSP 127.0.0.1:1"
    assert (relay.folder / "control.sock").is_socket()
    relay.process.terminate()
    relay.heard("STOPPING=1")
    assert relay.process.wait(10) == 0


def test_a_stopped_loop_feeds_no_watchdog(relay: Relay) -> None:
    for _ in range(3):
        relay.heard("WATCHDOG=1")
    relay.process.send_signal(signal.SIGSTOP)
    relay.drain()
    with pytest.raises(TimeoutError):
        relay.hear(1.0)
    relay.process.send_signal(signal.SIGCONT)
    relay.heard("WATCHDOG=1")


def test_a_good_configuration_is_taken_over_and_a_bad_one_is_not(relay: Relay) -> None:
    relay.heard("READY=1")
    relay.write("127.0.0.1:2")
    relay.process.send_signal(signal.SIGHUP)
    relay.heard("RELOADING=1")
    assert relay.heard("READY=1")[1] == "STATUS=running, MSP 127.0.0.1:2"
    relay.write("nowhere")
    relay.process.send_signal(signal.SIGHUP)
    status = relay.heard("READY=1")[1]
    assert status.startswith("STATUS=running with the old configuration (")
    assert "msp.address" in status
    assert "MSP 127.0.0.1:2" in status
    # The same again dials, and a signal still ends it.
    relay.write("127.0.0.1:2")
    for number, message in ((signal.SIGHUP, "READY=1"), (signal.SIGTERM, "STOPPING=1")):
        relay.process.send_signal(number)
        relay.heard(message)
    assert relay.process.wait(10) == 0


def test_the_end_of_a_lockdown_is_in_the_log_once_whoever_was_asked(relay: Relay) -> None:
    relay.heard("READY=1")
    relay.lockdown(on=True, seconds=4)
    relay.reload("127.0.0.1:2")
    # Said to the second relay, of what the first one was asked: that one did not end by itself.
    relay.lockdown(on=False)
    relay.lockdown(on=True, seconds=4)
    relay.reload("127.0.0.1:3")
    relay.wait_for_log("lockdown_over")
    assert not ask(str(relay.folder / "control.sock"), "lockdown", {})["on"]
    assert "lockdown_over" not in relay.rest_of_log()
