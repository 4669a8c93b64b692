import asyncio
import contextlib
import json
import os
import pty
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from gwmodule.errors import ChannelReset, Code, GatewayError, TlsPinMismatch
from gwmodule.msp import sol as sol_module
from gwmodule.msp.client import ApiClient, ApiRefused
from gwmodule.msp.lines import Line, OwnSession
from gwmodule.msp.sol import SolFailed, SolLogin
from gwmodule.msp.terminal import EscapeKeys, Script, Step, Terminal, TerminalOptions
from gwmodule.sim.device import ANY_PORTS, SimulatedDevice
from gwmodule.sim.machine import Machine
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import Result, StreamTarget
from tests.msp.conftest import PC, Service, TcpStream, answer, result

PASSWORD = "P@ssw0rd"


@dataclass
class Device:
    """A simulated PC behind the fake session."""

    simulated: SimulatedDevice
    streams: list[TcpStream] = field(default_factory=list)
    priorities: list[Priority] = field(default_factory=list)

    async def open(self, target: StreamTarget, priority: Priority) -> TcpStream:
        ports = self.simulated.ports
        port = {16994: ports.redirection, 16995: ports.redirection_tls}[target.port]
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError as exc:
            raise ChannelReset(Code.CONNECTION_REFUSED, "the device refused") from exc
        self.streams.append(TcpStream(reader, writer, priority))
        self.priorities.append(priority)
        return self.streams[-1]


@dataclass
class Pipes:
    """Both ends of stdin and stdout."""

    stdin: int
    stdout: int
    typed: int
    shown: int
    notices: list[str] = field(default_factory=list)

    def type(self, data: bytes) -> None:
        os.write(self.typed, data)

    def end(self) -> None:
        os.close(self.typed)
        self.typed = -1

    async def see(self, text: bytes) -> bytes:
        os.set_blocking(self.shown, False)
        seen = b""
        async with asyncio.timeout(10):
            while text not in seen:
                with contextlib.suppress(BlockingIOError):
                    seen += os.read(self.shown, 65536)
                await asyncio.sleep(0.01)
        return seen


@pytest.fixture
async def device(service: Service) -> AsyncIterator[Device]:
    machine = Machine(
        PC, PASSWORD, now=asyncio.get_running_loop().time(), hostname="pc", serial_pace=0.01
    )
    async with SimulatedDevice("127.0.0.1", machine, ports=ANY_PORTS) as simulated:
        device = Device(simulated)
        service.session.open = device.open
        yield device
        for stream in device.streams:
            stream.reset(Code.OK, "")


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    stdin, typed = os.pipe()
    shown, stdout = os.pipe()
    pipes = Pipes(stdin, stdout, typed, shown)
    yield pipes
    for descriptor in (pipes.stdin, pipes.stdout, pipes.typed, pipes.shown):
        if descriptor >= 0:
            os.close(descriptor)


@pytest.fixture
def window() -> Iterator[Pipes]:
    """One pseudo terminal as stdin and stdout."""
    master, slave = pty.openpty()
    yield Pipes(slave, slave, master, master)
    os.close(slave)
    os.close(master)


def sol(
    client: ApiClient,
    pipes: Pipes,
    *steps: Step,
    guid: str = str(PC),
    password: str = PASSWORD,
    pin: bytes | None = None,
    takeover: bool = False,
    **changes: Any,
) -> Terminal:
    login = {"credential": {"username": "admin", "password": password}}
    line = OwnSession(client, guid, SolLogin("admin", password, pin=pin), takeover=takeover)
    arguments: dict[str, Any] = {
        "guid": guid, "steps": steps, "timeout": 15, "idle": 0.2, "login": login,
    }  # fmt: skip
    return terminal(client, line, pipes, **(arguments | changes))


def terminal(client: ApiClient, line: Line, pipes: Pipes, **options: Any) -> Terminal:
    return Terminal(
        client,
        line,
        TerminalOptions(**options),
        stdin=pipes.stdin,
        stdout=pipes.stdout,
        notice=pipes.notices.append,
    )


async def failure(session: Terminal) -> str:
    with pytest.raises(SolFailed) as caught:
        await session.run()
    return str(caught.value)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def said(pipes: Pipes) -> str:
    return "".join(pipes.notices)


async def test_a_script_types_and_sees_the_answer(
    service: Service, device: Device, pipes: Pipes
) -> None:
    steps: tuple[Step, ...] = (("send", "hello"), ("expect", "hello"))
    await sol(service.client, pipes, *steps).run()
    assert b"hello" in await pipes.see(b"hello")
    assert device.priorities == [Priority.INTERACTIVE]
    assert "connected to" in said(pipes)


async def test_the_boot_is_asked_for_once_the_line_is_open(
    service: Service, device: Device, pipes: Pipes
) -> None:
    async def boot(call: dict[str, Any]) -> Result:
        assert device.streams, "the line must be open first"
        return result({"power_state_before_name": "on", "requested_name": "reset"})

    service.session.answer = boot
    session = sol(service.client, pipes, boot="pxe")
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(session.run())
        await until(lambda: "boot pxe: the PC was on; reset" in said(pipes))
        pipes.end()
    (call,) = service.session.calls
    assert call["function"] == "boot.once"
    assert json.loads(call["arguments"]) == {"device": "pxe", "stream": device.streams[0].channel}
    assert said(pipes).index("connected to") < said(pipes).index("boot pxe")


async def test_a_boot_that_is_refused_ends_the_session_with_the_reason(
    service: Service, device: Device, pipes: Pipes
) -> None:
    service.session.answer = answer(Code.NOT_SUPPORTED, {"error": "this PC cannot boot so"})
    text = await failure(sol(service.client, pipes, boot="diagnostics"))
    assert text == "boot diagnostics: this PC cannot boot so"


async def test_a_text_that_does_not_come_is_an_error_with_its_name(
    service: Service, device: Device, pipes: Pipes
) -> None:
    with pytest.raises(SolFailed, match=r"'no such text' did not come within 1 s"):
        await sol(service.client, pipes, ("expect", "no such text"), timeout=1).run()


async def test_pipes_carry_lines_and_leave_when_all_is_said(
    service: Service, device: Device, pipes: Pipes
) -> None:
    pipes.type(b"hello\n")
    pipes.end()
    await sol(service.client, pipes).run()
    assert b"hello" in await pipes.see(b"hello")


async def test_a_wrong_password_is_refused_in_words(
    service: Service, device: Device, pipes: Pipes
) -> None:
    with pytest.raises(SolFailed, match="password"):
        await sol(service.client, pipes, ("expect", "x"), password="wrong").run()


async def test_a_second_session_is_told_who_has_the_line(
    service: Service, device: Device, pipes: Pipes
) -> None:
    async with asyncio.TaskGroup() as group:
        first = group.create_task(sol(service.client, pipes, ("expect", "never")).run())
        await until(lambda: "connected" in said(pipes))
        other = Pipes(pipes.stdin, pipes.stdout, -1, -1)
        with pytest.raises(ChannelReset, match=r"busy: held by \S+ since 2027-"):
            await sol(service.client, other, ("expect", "x")).run()
        first.cancel()


async def test_a_takeover_ends_the_first_session_which_does_not_come_back(
    service: Service, device: Device, pipes: Pipes
) -> None:
    async def cut_off() -> str:
        with pytest.raises(ChannelReset) as caught:
            await sol(service.client, pipes, ("expect", "never")).run()
        return str(caught.value)

    async with asyncio.TaskGroup() as group:
        first = group.create_task(cut_off())
        await until(lambda: "connected" in said(pipes))
        other = Pipes(pipes.stdin, pipes.stdout, -1, -1)
        await sol(service.client, other, ("expect", "login: "), takeover=True).run()
    assert first.result().startswith("taken over by ")
    assert "opening the session again" not in said(pipes)


@pytest.mark.parametrize("code", [Code.SESSION_LOST, Code.POWER_ACTION, Code.CONNECTION_LOST])
async def test_a_lost_stream_is_opened_again_by_itself(
    service: Service, device: Device, pipes: Pipes, monkeypatch: pytest.MonkeyPatch, code: Code
) -> None:
    monkeypatch.setattr(sol_module, "REOPEN_DELAYS", (0.05,))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sol(service.client, pipes).run())
        await until(lambda: "connected" in said(pipes))
        device.streams[0].cut(code, "the session was lost")
        await until(lambda: "opened again" in said(pipes))
        pipes.type(b"after the cut\n")
        await pipes.see(b"after the cut")
        pipes.end()
        await task
    assert "the session was lost; opening the session again" in said(pipes)
    assert len(device.streams) >= 2


async def test_a_gateway_that_is_away_is_waited_for_once_the_session_was_open(
    service: Service, device: Device, pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sol_module, "REOPEN_DELAYS", (0.05,))
    monkeypatch.setattr(sol_module, "REOPEN_LIMIT", 0.3)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(failure(sol(service.client, pipes, ("expect", "never"))))
        await until(lambda: "connected" in said(pipes))
        service.session.connected = False
        device.streams[0].cut(Code.SESSION_LOST, "the session was lost")
    assert task.result() == "gateway home1 is not connected; gave up after 0 s"


async def test_a_gateway_that_is_away_at_the_start_is_an_error_at_once(
    service: Service, device: Device, pipes: Pipes
) -> None:
    service.session.connected = False
    with pytest.raises(SolFailed, match="home1 is not connected"):
        await sol(service.client, pipes, ("expect", "x")).run()


async def test_a_policy_refusal_is_final(service: Service, pipes: Pipes) -> None:
    async def refuse(*_: object) -> None:
        raise ChannelReset(Code.REFUSED_POLICY, "the neighbour has another MAC")

    service.session.open = refuse
    with pytest.raises(GatewayError, match="another MAC"):
        await sol(service.client, pipes, ("expect", "x")).run()


async def test_an_unknown_device_is_an_error(service: Service, pipes: Pipes) -> None:
    other = "00112233-4455-6677-8899-aabbccddeeff"
    with pytest.raises(ApiRefused, match="no device"):
        await sol(service.client, pipes, ("expect", "x"), guid=other).run()


async def test_a_device_that_ends_the_session_is_an_error(
    service: Service, device: Device, pipes: Pipes
) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(failure(sol(service.client, pipes, ("expect", "never"))))
        await until(lambda: "connected" in said(pipes))
        device.streams[0].end()
    assert task.result() == "the device closed the connection"


async def test_stdout_that_is_closed_ends_the_session(
    service: Service, device: Device, pipes: Pipes
) -> None:
    os.close(pipes.shown)
    pipes.shown = -1
    with pytest.raises(SolFailed, match="output"):
        await sol(service.client, pipes, ("send", "x"), ("expect", "never")).run()


async def test_inside_tls_the_pin_decides(service: Service, device: Device, pipes: Pipes) -> None:
    with pytest.raises(TlsPinMismatch) as caught:
        await sol(service.client, pipes, ("expect", "x"), pin=bytes([1]) * 32).run()
    shown = str(caught.value).split()[4].rstrip(",")
    steps: tuple[Step, ...] = (("send", "hello"), ("expect", "hello"))
    await sol(service.client, pipes, *steps, pin=bytes.fromhex(shown)).run()
    assert device.priorities[-1] is Priority.INTERACTIVE


async def test_a_terminal_is_raw_while_connected_and_restored_by_the_escape_key(
    service: Service, device: Device, window: Pipes
) -> None:
    before = termios.tcgetattr(window.stdin)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sol(service.client, window).run())
        await until(lambda: "connected" in said(window))
        during = termios.tcgetattr(window.stdin)
        assert not during[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        window.type(b"hello\r")
        await window.see(b"hello")
        window.type(b"\x1d?")
        await until(lambda: "^] ^] sends ^]" in said(window))
        window.type(b"\x1dq")
        await task
    assert termios.tcgetattr(window.stdin) == before
    assert b"\x1b[?25h" in await window.see(b"\x1b[?25h")


async def test_a_small_window_is_worth_a_word(
    service: Service, device: Device, window: Pipes
) -> None:
    termios.tcsetwinsize(window.stdin, (20, 70))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sol(service.client, window).run())
        await until(lambda: "70x20" in said(window))
        window.type(b"\x1d.")
        await task


async def test_a_terminal_is_restored_when_the_session_fails_or_is_killed(
    service: Service, device: Device, window: Pipes
) -> None:
    before = termios.tcgetattr(window.stdin)
    with pytest.raises(SolFailed):
        await sol(service.client, window, password="wrong").run()
    assert termios.tcgetattr(window.stdin) == before
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sol(service.client, window).run())
        await until(lambda: "connected" in said(window))
        task.cancel()
    assert termios.tcgetattr(window.stdin) == before


async def test_the_escape_key_works_while_the_session_is_away(
    service: Service, device: Device, window: Pipes
) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sol(service.client, window).run())
        await until(lambda: "connected" in said(window))
        service.session.connected = False
        device.streams[0].cut(Code.SESSION_LOST, "lost")
        await until(lambda: "opening the session again" in said(window))
        window.type(b"typed into the void\r\x1dq")
        await task


async def test_a_silent_device_is_worth_a_word_and_then_an_error(
    service: Service, device: Device, pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sol_module, "SILENCE_NOTICE", 0.3)
    monkeypatch.setattr(sol_module, "SILENCE_LIMIT", 0.9)

    with pytest.raises(SolFailed, match="silent for 1 s"):
        await sol(service.client, pipes, ("expect", "never")).run()
    assert said(pipes).count("no sign of the device") == 1


def test_escape_keys_in_any_segmentation() -> None:
    keys = EscapeKeys()
    assert keys.feed(b"ab\x1d\x1dc") == (b"ab\x1dc", False, False)
    assert keys.feed(b"x\x1d") == (b"x", True, False)
    assert keys.feed(b"qy") == (b"", False, True)


def test_a_script_keeps_its_order_and_its_place() -> None:
    script = Script([("expect", "a"), ("send", "one"), ("expect", "a"), ("send", "two")])
    assert script.next_send() is None
    script.receive_data(b"xxa")
    assert script.next_send() == b"one\r"
    assert script.next_send() is None
    assert script.waits_for == "a"
    script.receive_data(b"a")
    assert script.next_send() == b"two\r"
    assert script.finished
