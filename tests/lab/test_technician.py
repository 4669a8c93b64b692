"""A technician elsewhere, with `gwmodule-msp` over HTTPS: log in, call, cancel, watch a boot."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from gwmodule.sim.control import request
from gwmodule.sim.hosts import Lab, wait_until
from gwmodule.sim.lab import DEVICES, hello_target
from gwmodule.sim.services import LOGIN, MSP_STATE, PASSWORD_FILE, UUIDS, System, control_path
from gwmodule.sim.topology import TWO_WANS
from tests.lab.conftest import bring_up
from tests.lab.test_amtterm import Terminal

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

URL = "https://127.0.0.1:8445"
HTTP = (
    "--name", "127.0.0.1", "--http", "127.0.0.1:8445",
    "--http-certificate", str(MSP_STATE / "server.crt"),
    "--http-key", str(MSP_STATE / "server.key"),
)  # fmt: skip
PC = UUIDS["pc1"]
CONTROL = Path(control_path("pc1"))


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """One PC whose BIOS is silent unless it is asked, and a technician who has logged in."""
    with Lab(TWO_WANS) as lab:
        system = System(lab, msp_options=HTTP)
        bring_up(system, ())
        hello = hello_target("pc1", lab.topology.relay_address)
        system.start_device(
            "pc1", *DEVICES["pc1"], "--hello", hello, "--bios-console", "on-request",
            "--events", "full",
        )  # fmt: skip
        system.wait_for_device("pc1")
        system.activate("pc1")

        def known() -> bool:
            device = system.device(PC) or {}
            return bool(device.get("realm") and device.get("hostname"))

        wait_until("its realm and its name", known, 20)
        yield system


@pytest.fixture(scope="module", autouse=True)
def logged_in(system: System) -> None:
    # The AMT password is long enough for a person's, too.
    password = ("--password-file", str(PASSWORD_FILE))
    done(system, "user", "add", "tom", "--role", "technician", *password)
    done(system, "credential", "set", PC, *LOGIN)
    ca = ("--ca-file", str(MSP_STATE / "ca.crt"))
    assert "tom, technician" in done(system, "login", URL, "--user", "tom", *ca, *password)


def done(system: System, *arguments: str) -> str:
    result = system.technician(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def on_terminal(system: System, *arguments: str) -> Terminal:
    return Terminal(system.lab.command("msp", system.technician_command(*arguments)))


def ended(terminal: Terminal) -> int:
    code = terminal.process.wait(30)
    terminal.close()
    return code


def waiting_call(system: System) -> Terminal:
    """A reset that waits at the gateway, because AMT wants 10 s between two of them."""
    done(system, "power", PC, "reset")
    terminal = on_terminal(system, "power", PC, "reset")
    wait_until("the call at the gateway", lambda: system.status()["calls"] == 1, 9)
    return terminal


def spoken() -> bytes:
    """Everything that the PC's serial line has said to a session."""
    return base64.b64decode(request(CONTROL, "serial")["serial"])


def test_the_login_serves_every_command(system: System) -> None:
    who = json.loads(done(system, "whoami", "--json"))
    assert (who["name"], who["via"], who["api"]) == ("tom", "password", URL)
    (device,) = json.loads(done(system, "devices", "pc1", "--json"))
    assert device["guid"] == PC
    # With the stored login: nobody here knows the password of the PC.
    assert json.loads(done(system, "power", PC, "--json"))["result"]["power_state"] == 2
    assert "nothing stands in the way" in done(system, "explain", PC)
    assert "power.get" in done(system, "audit", PC)
    refused = system.technician("forget", PC)
    assert (refused.returncode, "needs role admin" in refused.stderr) == (1, True)


def test_a_long_call_shows_its_progress(system: System) -> None:
    terminal = on_terminal(system, "call", PC, "eventlog.get")
    terminal.wait_for(r"\[[#.]+\] \d+/390 ", 30)
    terminal.wait_for(r"\[eventlog.get: \d+ exchanges in", 30)
    assert ended(terminal) == 0


def test_the_keyboard_cancels_a_call_at_the_gateway(system: System) -> None:
    terminal = waiting_call(system)
    booted = request(CONTROL, "state")["boots"]
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("may have been carried out: read the state", 20)
    assert ended(terminal) == 130
    assert system.status()["calls"] == 0
    # The PC is free again at once, and was left alone.
    assert json.loads(done(system, "power", PC, "--json"))["result"]["power_state"] == 2
    assert request(CONTROL, "state")["boots"] == booted


@pytest.mark.parametrize(
    ("start", "last"),
    [(["--reset"], "Starting the recovery console."), (["--boot", "pxe"], "Network boot program")],
)
def test_the_terminal_sees_the_boot_that_it_asks_for_from_its_first_line(
    system: System, start: list[str], last: str
) -> None:
    # The boot before may still have had something to say.
    steps = ("--expect", "BIOS 2.14", "--expect", last)
    seen = system.technician("sol", PC, *LOGIN, *start, *steps, "--timeout", "60")
    assert seen.returncode == 0, seen.stderr
    assert "the PC was on; reset" in seen.stderr
    post = seen.stdout[seen.stdout.index("\x1b[2J") :]
    for line in ("BIOS 2.14", "Management Engine", "Memory test: 8192 MB OK", "SATA port 0"):
        assert line in post
    assert post in spoken().decode().replace("\r\n", "\n")


def test_without_being_asked_the_bios_says_nothing(system: System) -> None:
    """So that the test above proves something."""
    terminal = on_terminal(system, "sol", PC, *LOGIN)
    terminal.wait_for("connected to", 20)
    done(system, "power", PC, "reset")
    seen = terminal.wait_for("Starting the recovery console", 30)
    terminal.close()
    assert not re.search("BIOS 2.14|Memory test", seen)


# Between the technician and the service: nothing passes, and nobody is told.
CUT = """
table ip technician {
  chain cut { type filter hook input priority -10; tcp dport 8445 drop; tcp sport 8445 drop; }
}
"""


@contextmanager
def technician_cut(system: System) -> Iterator[None]:
    system.lab.run("msp", ["nft", "-f", "-"], stdin=CUT)
    try:
        yield
    finally:
        system.lab.run("msp", ["nft", "delete", "table", "ip", "technician"])


@contextmanager
def wan_cut(system: System) -> Iterator[None]:
    with system.lab.wan_cut():
        yield


class Session:
    """`sol` on pipes: what the line said is one file, what is said about it another."""

    def __init__(self, system: System, directory: Path, *arguments: str) -> None:
        self.shown, self.notices = directory / "shown", directory / "notices"
        argv = system.technician_command("sol", PC, *arguments)
        with self.shown.open("wb") as shown, self.notices.open("wb") as notices:
            self.process = subprocess.Popen(
                system.lab.command("msp", argv),
                stdin=subprocess.PIPE,
                stdout=shown,
                stderr=notices,
            )

    def sees(self, text: str, timeout: float = 40.0) -> None:
        wait_until(text, lambda: text.encode() in self.shown.read_bytes(), timeout)

    def is_told(self, text: str, timeout: float = 40.0) -> None:
        wait_until(text, lambda: text in self.notices.read_text(), timeout)

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)


@contextmanager
def session(system: System, directory: Path, *arguments: str) -> Iterator[Session]:
    opened = Session(system, directory, *arguments)
    try:
        yield opened
    finally:
        opened.process.kill()
        opened.process.communicate()


@pytest.mark.parametrize("cut", [wan_cut, technician_cut])
def test_without_the_password_a_boot_is_watched_over_a_cut_byte_for_byte(
    system: System, tmp_path: Path, cut: Callable[[System], AbstractContextManager[None]]
) -> None:
    before = len(spoken())
    with session(system, tmp_path, "--reset") as sol:
        sol.is_told(f"attached to {PC} with the login that the service has")
        sol.is_told("the PC was on; reset")
        sol.sees("Management Engine")
        # The rest of the boot is said while nothing gets through.
        with cut(system):
            if cut is technician_cut:
                sol.is_told("attaching again")
            else:
                time.sleep(5)
        sol.sees("recovery> ")
        sol.type("uuid\n")
        sol.sees(PC)
        assert sol.end() == 0
        said = spoken()[before:]
        assert b"Memory test: 8192 MB OK" in said
        assert sol.shown.read_bytes() == said
        notices = sol.notices.read_text()
        assert notices.count("attached again") == (cut is technician_cut)
        assert "missing" not in notices


def test_a_service_that_is_killed_under_a_session_is_attached_to_again(
    system: System, tmp_path: Path
) -> None:
    with session(system, tmp_path) as sol:
        sol.is_told("[connected]")
        system.lab.services["msp"].kill()
        sol.is_told("attaching again")
        system.restart_msp()
        system.wait_for_link()
        sol.is_told("attached to a new session; output between may be missing")
        sol.type("uuid\n")
        sol.sees(PC)
        assert sol.end() == 0


def test_who_comes_second_watches_or_takes_over(system: System, tmp_path: Path) -> None:
    with session(system, tmp_path) as first:
        first.is_told("[connected]")
        second = system.technician("sol", PC, "--expect", "recovery")
        assert second.returncode == 1
        assert "busy: held by tom since 20" in second.stderr
        watching = on_terminal(system, "sol", PC, "--watch")
        watching.wait_for(f"watching {PC}, held by tom since 20", 20)
        first.type("uuid\n")
        watching.wait_for(PC, 20)
        script = ("--takeover", "--send", "help", "--expect", "uuid  reset")
        assert done(system, "sol", PC, *script)
        assert first.process.wait(20) == 1
        assert "taken over by tom" in first.notices.read_text()
        watching.wait_for("closed by tom", 20)
        assert ended(watching) == 1


def test_a_service_that_dies_in_a_call_leaves_the_outcome_unknown(system: System) -> None:
    terminal = waiting_call(system)
    system.lab.services["msp"].kill()
    terminal.wait_for("may have been carried out: read the state", 20)
    assert ended(terminal) == 3
    system.restart_msp()
    system.wait_for_link()


def test_a_login_ends_with_the_account(system: System) -> None:
    done(system, "--api", "/run/gwmodule-msp/api.sock", "user", "set", "tom", "--disable")
    refused = system.technician("devices")
    assert refused.returncode == 77
    assert refused.stderr.count("\n") == 1
    assert done(system, "logout") == ""
