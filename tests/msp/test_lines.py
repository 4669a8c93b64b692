# ruff: noqa: F401, F811 - fixtures of test_terminal
"""`sol` without a password: attached to the console that the service holds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gwmodule.errors import Code
from gwmodule.msp import sol as sol_module
from gwmodule.msp.api import unix_socket
from gwmodule.msp.client import ApiClient
from gwmodule.msp.console_protocol import Want
from gwmodule.msp.consoles import Console
from gwmodule.msp.lines import Attachment
from gwmodule.msp.terminal import Step, Terminal
from gwmodule.sim.device import ANY_PORTS, SimulatedDevice
from gwmodule.sim.machine import Machine
from gwmodule.wire.messages import Result
from tests.msp.conftest import NOW, PC, REALM, Service, result
from tests.msp.test_terminal import (
    PASSWORD,
    Device,
    Pipes,
    failure,
    pipes,
    said,
    sol,
    terminal,
    until,
    window,
)

HELLO: tuple[Step, ...] = (("send", "hello"), ("expect", "hello"))


@pytest.fixture
async def device(service: Service) -> AsyncIterator[Device]:
    """With its login at the service."""
    now = asyncio.get_running_loop().time()
    machine = Machine(PC, PASSWORD, now=now, realm=REALM, hostname="pc", serial_pace=0.01)
    async with SimulatedDevice("127.0.0.1", machine, ports=ANY_PORTS) as simulated:
        device = Device(simulated)
        service.session.open = device.open
        await service.vault.store("default", PC, "admin", PASSWORD, NOW, actor="test")
        yield device
        for stream in device.streams:
            stream.reset(Code.OK, "")


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sol_module, "REOPEN_DELAYS", (0.05,))


def attached(
    client: ApiClient,
    at: Pipes,
    *steps: Step,
    want: Want = Want.SEAT,
    tail: int = 0,
    **changes: Any,
) -> Terminal:
    line = Attachment(client, str(PC), want, tail=tail)
    arguments: dict[str, Any] = {"guid": str(PC), "steps": steps, "timeout": 15, "idle": 0.2}
    return terminal(client, line, at, **(arguments | changes))


def others(at: Pipes) -> Pipes:
    """Another terminal, whose output goes where nobody looks."""
    return Pipes(at.stdin, at.stdout, -1, -1)


def cut(service: Service) -> None:
    """What a lost network does to whoever is connected."""
    server = service.runner.server
    assert server is not None
    for handler in server.connections:
        assert handler.transport is not None
        handler.transport.abort()


def console_of(service: Service) -> Console:
    return service.api.consoles._open["default", PC]


async def test_a_script_types_and_leaves_a_free_line_behind(
    service: Service,
    device: Device,
    pipes: Pipes,
) -> None:
    for _ in range(2):
        await attached(service.client, pipes, *HELLO).run()
    assert b"hello" in await pipes.see(b"hello")
    assert f"attached to {PC} with the login that the service has" in said(pipes)
    assert "[connected]" in said(pipes)
    closed = 0
    async with asyncio.timeout(5):
        # They are written when the line's last word is on its way already.
        while closed < 2:
            entries = await service.registry.audit_entries(uuid=PC)
            closed = [entry.action for entry in entries].count("console.close")
            await asyncio.sleep(0.01)
    assert closed == 2


async def test_without_a_stored_login_the_reason_is_said(
    service: Service,
    pipes: Pipes,
) -> None:
    text = await failure(attached(service.client, pipes, *HELLO))
    assert text == "no AMT login is stored for this device"


async def test_who_comes_second_is_told_who_has_it_and_can_take_over(
    service: Service,
    device: Device,
    pipes: Pipes,
) -> None:
    async with asyncio.TaskGroup() as group:
        first = group.create_task(failure(attached(service.client, pipes, ("expect", "never"))))
        await until(lambda: "connected" in said(pipes))
        busy = await failure(attached(service.client, others(pipes), *HELLO))
        assert busy.startswith("busy: held by root since 2027-01-15T08:00:00.000Z")
        # One who brings the password is told the same.
        with pytest.raises(Exception, match="busy: held by root since 2027-"):
            await sol(service.client, others(pipes), *HELLO).run()
        await attached(service.client, others(pipes), *HELLO, want=Want.TAKEOVER).run()
    assert first.result() == "taken over by root"
    assert "attaching again" not in said(pipes)


async def test_who_watches_sees_everything_and_types_nothing(
    service: Service,
    device: Device,
    pipes: Pipes,
    window: Pipes,
) -> None:
    text = await failure(attached(service.client, window, want=Want.WATCH))
    assert text == "nobody has this console open"
    async with asyncio.TaskGroup() as group:
        holder = group.create_task(attached(service.client, pipes).run())
        await until(lambda: "connected" in said(pipes))
        await pipes.see(b"login: ")
        looking = attached(service.client, window, want=Want.WATCH, tail=100)
        watcher = group.create_task(failure(looking))
        await window.see(b"login: ")
        assert f"watching {PC}, held by root since 2027-" in said(window)
        window.type(b"x")
        await until(lambda: "read-only" in said(window))
        pipes.type(b"root\n")
        assert b"login: x" not in await window.see(b"Hello, root.")
        pipes.end()
        await holder
    assert watcher.result() == "closed by root"


async def test_who_watches_leaves_with_the_escape_key_and_ends_nothing(
    service: Service,
    device: Device,
    pipes: Pipes,
    window: Pipes,
) -> None:
    async with asyncio.TaskGroup() as group:
        holder = group.create_task(attached(service.client, pipes).run())
        await until(lambda: "connected" in said(pipes))
        watcher = group.create_task(attached(service.client, window, want=Want.WATCH).run())
        await until(lambda: "watching" in said(window))
        window.type(b"\x1dq")
        await watcher
        pipes.type(b"still here\n")
        await pipes.see(b"still here")
        pipes.end()
        await holder


async def test_nothing_is_lost_or_doubled_when_the_connection_is_cut_while_output_flows(
    service: Service,
    device: Device,
    pipes: Pipes,
) -> None:
    async with asyncio.timeout(15), asyncio.TaskGroup() as group:
        task = group.create_task(attached(service.client, pipes).run())
        await until(lambda: "connected" in said(pipes))
        seen = await pipes.see(b"login: ")
        log = console_of(service).log
        for number in range(5):
            await until(lambda: service.api.consoles.seat("default", PC).viewer)  # type: ignore[union-attr]
            for line in range(20):
                # As if the device had said it: what is typed into a dead connection is gone.
                console_of(service).sol_data(b"line %d of %d\r\n" % (line, number) * 40)
                await asyncio.sleep(0)
                if line == 10:
                    cut(service)
            seen += await pipes.see(b"line 19 of %d\r\n" % number)
        pipes.type(b"bye\n")
        seen += await pipes.see(b"bye")
        pipes.end()
        await task
    seen += await _rest(pipes)
    assert seen == log.next_item(0, 1000, 10**6)
    assert said(pipes).count("attached again") >= 5
    assert "missing" not in said(pipes)
    assert len(device.streams) == 1


async def _rest(pipes: Pipes) -> bytes:
    try:
        async with asyncio.timeout(0.2):
            return await pipes.see(b"no such text")
    except TimeoutError:
        return b""


async def test_a_service_that_opens_the_session_again_says_so_and_goes_on(
    service: Service,
    device: Device,
    pipes: Pipes,
) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(attached(service.client, pipes).run())
        await until(lambda: "connected" in said(pipes))
        device.streams[0].cut(Code.SESSION_LOST, "the gateway restarted")
        await until(lambda: "opened again" in said(pipes))
        pipes.type(b"after the cut\n")
        await pipes.see(b"after the cut")
        pipes.end()
        await task
    assert "the gateway restarted: output between may be missing" in said(pipes)


async def test_a_boot_goes_with_the_stored_login_and_the_consoles_stream(
    service: Service,
    device: Device,
    pipes: Pipes,
) -> None:
    async def boot(call: dict[str, Any]) -> Result:
        return result({"power_state_before_name": "on", "requested_name": "reset"})

    service.session.answer = boot
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(attached(service.client, pipes, boot="pxe").run())
        await until(lambda: "boot pxe: the PC was on; reset" in said(pipes))
        pipes.end()
    (call,) = service.session.calls
    assert call["arguments"] == b'{"device":"pxe","stream":2}'
    assert call["credential"].username == "admin"


async def test_who_is_killed_leaves_a_free_line_behind(
    service: Service,
    device: Device,
    pipes: Pipes,
) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(attached(service.client, pipes, ("expect", "never")).run())
        await until(lambda: "connected" in said(pipes))
        task.cancel()
    await attached(service.client, others(pipes), *HELLO).run()


async def test_a_service_that_does_not_come_back_is_given_up(
    service: Service,
    device: Device,
    pipes: Pipes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sol_module, "REOPEN_LIMIT", 0.3)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(failure(attached(service.client, pipes, ("expect", "never"))))
        await until(lambda: "connected" in said(pipes))
        await service.runner.cleanup()
    assert "the service stops; attaching again" in said(pipes)
    assert "gave up after 0 s" in task.result()


async def test_the_escape_key_works_while_the_service_is_away(
    service: Service,
    device: Device,
    window: Pipes,
) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(attached(service.client, window).run())
        await until(lambda: "connected" in said(window))
        await service.runner.cleanup()
        await until(lambda: "attaching again" in said(window))
        window.type(b"typed into the void\r\x1dq")
        await task


@asynccontextmanager
async def speaking(path: Path, *texts: str) -> AsyncIterator[ApiClient]:
    """A service that says this to whoever attaches, each time."""

    async def speak(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.receive()
        for text in texts:
            await websocket.send_str(text)
        await websocket.send_bytes(b"x")
        return websocket

    application = web.Application()
    application.router.add_get(f"/api/v1/amt/sol/{PC}", speak)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, unix_socket(path)).start()
    async with ApiClient(str(path)) as client:
        yield client
    await runner.cleanup()


@pytest.mark.parametrize(
    "text", ["hello", "{}", '{"type":"attached"}', "[" * 100_000, '{"type":"hangup"}']
)
async def test_a_service_that_speaks_something_else_is_left(
    tmp_path: Path,
    pipes: Pipes,
    text: str,
) -> None:
    async with speaking(tmp_path / "s", text) as client:
        assert "speaks something else" in await failure(attached(client, pipes, *HELLO))
