"""Our own terminal, while what carries it is killed: it says why, and opens the session again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from gwmodule.sim.services import LOGIN, UUIDS, System
from tests.lab.test_amtterm import Terminal
from tests.lab.test_restarts import kill

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]


@pytest.fixture
def terminal(system: System) -> Iterator[Terminal]:
    argv = system.technician_command("sol", UUIDS["pc1"], *LOGIN)
    opened = Terminal(system.lab.command("msp", argv))
    try:
        opened.wait_for("connected to", 30)
        opened.type("uuid\r")
        opened.wait_for(f"{UUIDS['pc1']}\\s+recovery> $", 20)
        yield opened
    finally:
        opened.close()


def kill_relay(system: System) -> None:
    kill(system, "relay")
    system.wait_for_link()


def kill_msp(system: System) -> None:
    system.lab.services["msp"].kill()
    system.restart_msp()


@pytest.mark.parametrize(
    ("strike", "reason"),
    [(kill_relay, "new session"), (kill_msp, "(?i)lost|closed|gone|away|connect")],
    ids=["relay", "msp"],
)
def test_the_terminal_says_why_and_opens_again(
    system: System, terminal: Terminal, strike: Callable[[System], None], reason: str
) -> None:
    calls = len(system.ask_msp("audit", "--limit", "1000"))
    strike(system)
    said = terminal.wait_for("opened again", 45)
    # One reset for the one stream, with its reason.
    assert said.count("opening the session again") == 1, said
    assert re.search(reason, said), said
    terminal.type("help\r")
    terminal.wait_for("help  uuid  reset  exit", 20)
    # Opening again is a stream, not a call: nothing was asked of the PC twice.
    again = system.ask_msp("audit", "--limit", "1000")
    assert [e for e in again[: len(again) - calls] if e["action"] == "call"] == []
