from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time

import pytest

from gwmodule.sim.hosts import wait_until
from gwmodule.sim.services import PASSWORD, UUIDS, System

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


class Terminal:
    """A program on a pseudo terminal, and what it has shown since the last `wait_for`."""

    def __init__(self, argv: list[str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str, timeout: float) -> str:
        """What it showed up to the end of the match."""
        deadline = time.monotonic() + timeout
        while (match := re.search(pattern, self.shown)) is None:
            left = deadline - time.monotonic()
            ready = select.select([self._master], [], [], max(left, 0.0))[0]
            assert ready, f"{pattern!r} not within {timeout} s; shown: {self.shown!r}"
            self.shown += os.read(self._master, 4096).decode(errors="replace")
        seen, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def test_amtterm_shows_the_serial_text_and_the_echo_of_a_typed_line(system: System) -> None:
    forward = system.technician_command(
        "forward", UUIDS["pc1"], "16994", "--listen", "127.0.0.1:16994"
    )
    service = system.lab.start("msp", forward, log="forward")
    ports = ["ss", "-ltnH"]
    wait_until(
        "the forwarded port", lambda: "127.0.0.1:16994" in system.lab.run("msp", ports).stdout, 15
    )
    terminal = Terminal(
        system.lab.command("msp", ["amtterm", "-p", PASSWORD, "127.0.0.1", "16994"])
    )
    try:
        terminal.wait_for("serial-over-lan redirection ok", 15)
        terminal.wait_for("recovery> ", 10)
        system.call("pc1", "power.set", "state=reset")
        terminal.wait_for("Memory test: 8192 MB OK", 15)
        terminal.wait_for("recovery> ", 15)
        terminal.type("uuid\r")
        terminal.wait_for(f"uuid\\s+{UUIDS['pc1']}", 10)
        # amtterm asks the device to give up after 10 s of silence: its heartbeats must arrive.
        time.sleep(12)
        terminal.type("help\r")
        terminal.wait_for("help  uuid  reset  exit", 10)
    finally:
        terminal.close()
        service.kill()
