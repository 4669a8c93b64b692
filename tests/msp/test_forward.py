import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from gwmodule.errors import ChannelReset, Code, ConfigError
from gwmodule.msp import forward as forward_module
from gwmodule.msp.forward import Forward
from gwmodule.wire.frames import Priority
from tests.msp.conftest import PC, FakeStream, Service

SOL_START = b"\x10\x00\x00\x00SOL "


@dataclass
class Forwarded:
    address: tuple[str, int]
    forward: Forward
    reports: list[str] = field(default_factory=list)


@pytest.fixture
async def forwarded(service: Service) -> AsyncIterator[Forwarded]:
    reports: list[str] = []
    forward = Forward(service.client, str(PC), 16994, report=reports.append)
    address = forward.listen("127.0.0.1", 0)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(forward.run())
        yield Forwarded(address, forward, reports)
        task.cancel()


async def connect(forwarded: Forwarded) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, forwarded.address)
    return sock


def send(sock: socket.socket, data: bytes) -> Awaitable[None]:
    return asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket) -> bytes:
    async with asyncio.timeout(5):
        return await asyncio.get_running_loop().sock_recv(sock, 65536)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def opened(service: Service) -> FakeStream:
    async with asyncio.timeout(5):
        return await service.session.streams.get()


async def test_bytes_pass_both_ways_in_the_class_of_the_session(
    service: Service, forwarded: Forwarded
) -> None:
    with await connect(forwarded) as sock:
        await send(sock, SOL_START)
        stream = await opened(service)
        assert (stream.target.port, stream.priority) == (16994, Priority.INTERACTIVE)
        stream.incoming.put_nowait(b"\x11\x00\x00\x00")
        assert await receive(sock) == b"\x11\x00\x00\x00"
        await stream.wait_for(lambda: stream.written == [SOL_START])


async def test_a_reply_and_what_follows_are_not_glued_together(
    service: Service, forwarded: Forwarded
) -> None:
    with await connect(forwarded) as sock:
        await send(sock, SOL_START)
        stream = await opened(service)
        for number in range(50):
            stream.incoming.put_nowait(bytes([number]) * 3)
            assert await receive(sock) == bytes([number]) * 3


async def test_half_close_travels_both_ways(service: Service, forwarded: Forwarded) -> None:
    with await connect(forwarded) as sock:
        await send(sock, b"request")
        sock.shutdown(socket.SHUT_WR)
        stream = await opened(service)
        async with asyncio.timeout(5):
            await stream.eof.wait()
        stream.incoming.put_nowait(b"answer")
        assert await receive(sock) == b"answer"
        stream.incoming.put_nowait(b"")
        assert await receive(sock) == b""
    await until(lambda: forwarded.forward.connections == 0)
    assert stream.reset_with is None
    assert forwarded.reports == []


async def test_the_device_may_end_first(service: Service, forwarded: Forwarded) -> None:
    with await connect(forwarded) as sock:
        await send(sock, SOL_START)
        stream = await opened(service)
        stream.incoming.put_nowait(b"")
        assert await receive(sock) == b""
        await send(sock, b"last words")
        await stream.wait_for(lambda: stream.written[-1] == b"last words")
    async with asyncio.timeout(5):
        await stream.eof.wait()
    await until(lambda: forwarded.forward.connections == 0)


async def test_a_cut_stream_resets_the_tool_and_says_why(
    service: Service, forwarded: Forwarded
) -> None:
    with await connect(forwarded) as sock:
        await send(sock, SOL_START)
        stream = await opened(service)
        stream.incoming.put_nowait(ChannelReset(Code.POWER_ACTION, "power action by anna"))
        with pytest.raises(ConnectionResetError):
            await receive(sock)
    await until(lambda: forwarded.reports)
    assert forwarded.reports[0].endswith("power action by anna")


async def test_a_tool_that_resets_cuts_the_stream(service: Service, forwarded: Forwarded) -> None:
    sock = await connect(forwarded)
    await send(sock, SOL_START)
    stream = await opened(service)
    forward_module._abort(sock)
    await stream.wait_for(lambda: stream.reset_with is not None)
    assert stream.reset_with == (Code.CANCELLED, "the tool reset its connection")


async def test_connections_do_not_hold_each_other_up(
    service: Service, forwarded: Forwarded
) -> None:
    with await connect(forwarded) as blocked, await connect(forwarded) as free:
        await send(blocked, SOL_START)
        stuck = await opened(service)
        stuck.room.clear()
        await send(blocked, bytes(1000))
        await send(free, SOL_START)
        stream = await opened(service)
        stream.incoming.put_nowait(b"here")
        assert await receive(free) == b"here"
        assert forwarded.forward.connections == 2
        stuck.room.set()


async def test_a_tool_that_does_not_read_stops_the_device(
    service: Service, forwarded: Forwarded
) -> None:
    with await connect(forwarded) as sock:
        await send(sock, SOL_START)
        stream = await opened(service)
        for number in range(512):
            stream.incoming.put_nowait(bytes([number % 256]) * 65536)
        await asyncio.sleep(0.5)
        assert stream.incoming.qsize() > 256
        stream.incoming.put_nowait(b"")
        received = 0
        while data := await receive(sock):
            received += len(data)
        assert received == 512 * 65536


async def test_an_unreachable_device_resets_the_tool(
    service: Service, forwarded: Forwarded
) -> None:
    service.session.connected = False
    with await connect(forwarded) as sock, pytest.raises(ConnectionResetError):
        await receive(sock)
    await until(lambda: forwarded.reports)
    assert "gateway home1 is not connected" in forwarded.reports[0]


async def test_too_many_connections_are_turned_away(
    service: Service, forwarded: Forwarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_module, "MAX_CONNECTIONS", 1)
    with await connect(forwarded) as first, await connect(forwarded) as second:
        with pytest.raises(ConnectionResetError):
            await receive(second)
        await send(first, SOL_START)
        (await opened(service)).incoming.put_nowait(b"ok")
        assert await receive(first) == b"ok"


async def test_stopping_the_forwarder_cuts_what_is_open(service: Service) -> None:
    forward = Forward(service.client, str(PC), 16994)
    address = forward.listen("127.0.0.1", 0)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(forward.run())
        with await connect(Forwarded(address, forward)) as sock:
            await send(sock, SOL_START)
            stream = await opened(service)
            task.cancel()
            await stream.wait_for(lambda: stream.reset_with is not None)
    assert stream.reset_with is not None
    assert stream.reset_with[1] == "the forwarder stopped"


async def test_a_port_that_cannot_be_had_is_a_clear_error(service: Service) -> None:
    forward = Forward(service.client, str(PC), 16994)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="in use"),
    ):
        forward.listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError):
        forward.listen("no address", 0)
