import asyncio
import contextlib
import json
import os
import pty
import signal
from typing import Any

import pytest

from gwmodule.errors import Code, LinkLost
from gwmodule.msp.commands.calls import BOOT_DEVICES
from gwmodule.msp.commands.output import progress_line
from gwmodule.wire.frames import CredentialMode
from gwmodule.wire.messages import Progress, Result
from tests.msp.commands.conftest import Desk
from tests.msp.conftest import NOW, PC, Service, answer, result
from tests.msp.test_cli import run, start

STARTED = {"device": "pxe", "power_state_before_name": "on", "requested_name": "reset"}


def asked(service: Service) -> tuple[str, dict[str, Any]]:
    call = service.session.calls[-1]
    return call["function"], json.loads(call["arguments"])


async def test_power_shows_the_state_or_changes_it(service: Service) -> None:
    code, out, _ = await run(service, "power", "55e3")
    assert (code, out) == (0, "power_state: 2\n")
    assert asked(service) == ("power.get", {})
    code, _, _ = await run(service, "power", "55e3", "off", "--wait", "120")
    function, arguments = asked(service)
    assert (code, function) == (0, "power.set")
    assert (arguments["state"], arguments["wait"]) == ("off", 120)
    # The gateway must not give up before it has waited.
    assert service.session.calls[-1]["deadline"] == 150


async def test_boot_names_its_device(service: Service) -> None:
    service.session.answer = answer(Code.OK, STARTED)
    code, _, _ = await run(service, "boot", "55e3", "pxe", "--sol", "--later")
    assert code == 0
    assert asked(service) == ("boot.once", {"device": "pxe", "sol": True, "power": "later"})
    await run(service, "boot", "55e3", "uefi-https", "--url", "https://boot.example/x.efi")
    assert asked(service)[1]["url"] == "https://boot.example/x.efi"
    assert "default" in BOOT_DEVICES


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["power", "55e3", "nonsense"], "invalid choice"),
        (["power", "55e3", "off", "--wait", "301"], "between 0 and 300"),
        (["power", "55e3", "off", "--wait", "x"], "invalid whole number value: 'x'"),
        (["boot", "55e3", "tape"], "invalid choice"),
        (["audit", "--limit", "-1"], "between 0 and 10000"),
        (["sol", "55e3", "--reset", "--boot", "pxe"], "not allowed with"),
    ],
)
async def test_wrong_usage_asks_no_service(
    service: Service, arguments: list[str], text: str
) -> None:
    code, out, err = await run(service, *arguments)
    assert (code, out) == (2, "")
    assert text in err
    assert service.session.calls == []


async def test_the_login_that_is_stored_serves_where_no_other_is_given(service: Service) -> None:
    await service.vault.store("default", None, "admin", "everywhere", NOW, actor="test")
    code, _, err = await run(service, "power", "55e3", password=None)
    assert (code, service.session.credential.username) == (0, "admin"), err
    await service.vault.store("default", PC, "shop", "its own", NOW, actor="test", mode="challenge")
    code, _, _ = await run(service, "power", "55e3", password=None)
    assert (code, service.session.credential.username) == (0, "shop")
    assert service.session.credential.mode is CredentialMode.CHALLENGE
    # What is given on the command line is meant.
    code, _, _ = await run(service, "power", "55e3", "--user", "other")
    assert (code, service.session.credential.username) == (0, "other")
    code, _, err = await run(service, "power", "55e3", "--user", "other", password=None)
    assert (code, "no password" in err) == (2, True)


class Terminal:
    """A command whose messages go to a pseudo terminal."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self.process = process
        self.seen = ""
        self._master = master
        os.set_blocking(master, False)

    async def wait_for(self, text: str) -> None:
        async with asyncio.timeout(15):
            while text not in self.seen:
                with contextlib.suppress(BlockingIOError):
                    self.seen += os.read(self._master, 4096).decode()
                await asyncio.sleep(0.01)

    async def end(self) -> tuple[int, str]:
        out, _ = await self.process.communicate()
        with contextlib.suppress(OSError):
            self.seen += os.read(self._master, 65536).decode()
        os.close(self._master)
        assert self.process.returncode is not None
        return self.process.returncode, out.decode()


async def on_terminal(service: Service, *arguments: str) -> Terminal:
    master, slave = pty.openpty()
    process = await start("--api", str(service.path), *arguments, stderr=slave)
    os.close(slave)
    return Terminal(process, master)


async def test_a_long_call_shows_how_far_it_is_and_leaves_no_trace_of_it(service: Service) -> None:
    drawn = asyncio.Event()

    async def slow(arguments: dict[str, Any]) -> Result:
        done = 0
        while not drawn.is_set():
            done = min(done + 13, 389)
            arguments["on_progress"](Progress(1, done, 390, "reading\x1b[2J"))
            await asyncio.sleep(0.05)
        return result({"records": []})

    service.session.answer = slow
    terminal = await on_terminal(service, "call", "55e3", "eventlog.get")
    await terminal.wait_for("/390 reading\\x1b[2J")
    drawn.set()
    code, out = await terminal.end()
    assert (code, out) == (0, "records: []\n")
    assert "#" in terminal.seen
    # The line is wiped before the last word.
    assert terminal.seen.rpartition("\x1b[K")[2].startswith("[eventlog.get: ")


async def test_a_call_on_a_service_without_events_runs_all_the_same(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gwmodule.msp.api.events.MAX_WATCHERS", 0)
    terminal = await on_terminal(service, "call", "55e3", "power.get")
    assert (await terminal.end())[0] == 0


async def interrupted(service: Service, function: str, *interrupts: str) -> tuple[int, str]:
    """A call that never ends by itself, and ^C after each of these texts."""
    running = asyncio.Event()

    async def never(_: dict[str, Any]) -> Result:
        running.set()
        await asyncio.Event().wait()
        raise AssertionError

    service.session.answer = never
    terminal = await on_terminal(service, "call", "55e3", function, "state=8")
    await running.wait()
    for text in interrupts:
        await terminal.wait_for(text)
        terminal.process.send_signal(signal.SIGINT)
    code, out = await terminal.end()
    assert out == ""
    return code, terminal.seen


async def test_the_keyboard_cancels_a_call_and_hears_what_became_of_it(service: Service) -> None:
    code, said = await interrupted(service, "power.set", "")
    assert code == 130
    assert "cancelled by" in said
    assert "may have been carried out: read the state before you repeat it" in said
    entries = await service.registry.audit_entries(limit=1)
    assert (entries[0].action, entries[0].detail["outcome"]) == ("call", "unknown")


async def test_a_cancelled_reading_can_be_repeated(service: Service) -> None:
    code, said = await interrupted(service, "inventory.get", "")
    assert code == 130
    assert "changes nothing and can be repeated" in said


async def test_who_does_not_wait_for_the_cancellation_leaves_without_knowing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.api.calls, "cancel", lambda principal, name: True)
    code, said = await interrupted(service, "power.set", "", "again leaves")
    assert code == 130
    assert "left without an answer; it may have been carried out" in said


@pytest.mark.parametrize(("function", "code"), [("power.set", 3), ("power.get", 1)])
async def test_a_lost_answer_has_its_own_code_where_it_matters(
    service: Service, function: str, code: int
) -> None:
    async def lost(_: dict[str, Any]) -> Result:
        raise LinkLost("outcome unknown: the gateway was away for 60 s")

    service.session.answer = lost
    found, out, err = await run(service, "call", "55e3", function, "state=8")
    assert (found, out) == (code, "")
    assert "outcome unknown" in err
    assert ("read the state before you repeat it" in err) == (code == 3)


async def test_a_service_that_stops_in_the_middle_leaves_the_outcome_unknown(
    service: Service,
) -> None:
    running = asyncio.Event()

    async def never(_: dict[str, Any]) -> Result:
        running.set()
        await asyncio.Event().wait()
        raise AssertionError

    service.session.answer = never
    process = await start("--api", str(service.path), "--json", "power", "55e3", "off")
    await running.wait()
    await service.runner.cleanup()
    _, err = await process.communicate()
    assert process.returncode == 3
    assert json.loads(err)["error"] == "OUTCOME_UNKNOWN"


async def test_calls_pass_over_https_too(desk: Desk) -> None:
    await desk.login("tom")
    code, out, err = await desk.run("call", "55e3", "power.get", AMT_PASSWORD="P@ssw0rd")
    assert (code, out) == (0, "power_state: 2\n"), err


def test_a_line_of_progress_fits_its_numbers() -> None:
    assert progress_line(0, 4, "x") == "[........................] 0/4 x"
    assert progress_line(1, 4, "x") == "[######..................] 1/4 x"
    assert progress_line(9, 4, "x") == "[########################] 9/4 x"
    assert progress_line(9, 0, "x\n") == "9 x\\x0a"


@pytest.mark.parametrize(
    ("state", "extra", "code"),
    [
        ("off", [], 1),
        ("cycle", [], 1),
        ("off", ["--force"], 0),
        ("reset", [], 0),
    ],
)
async def test_a_console_of_somebody_else_is_closed_only_by_force(
    desk: Desk, state: str, extra: list[str], code: int
) -> None:
    await desk.login("tom")
    stream = await desk.service.client.open_stream(str(PC), 16994, mode="sol")
    await stream.write(b"\x10\x00\x00\x00SOL ")
    await desk.service.session.streams.get()
    found, _, err = await desk.run("power", "55e3", state, *extra, AMT_PASSWORD="P@ssw0rd")
    assert found == code, err
    if code:
        assert "held by root since 2027-01-15T08:00:00.000Z; force closes it" in err
    assert len(desk.service.session.calls) == 1 - code
    await stream.close()


async def test_his_own_console_is_in_nobodys_way(service: Service) -> None:
    stream = await service.client.open_stream(str(PC), 16994, mode="sol")
    await stream.write(b"\x10\x00\x00\x00SOL ")
    await service.session.streams.get()
    code, _, err = await run(service, "power", "55e3", "off")
    assert code == 0, err
    await stream.close()
