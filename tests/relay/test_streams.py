from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import select
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from gwmodule.amt.redirection import (
    MessageType,
    SolSettings,
    build_sol_data,
    build_sol_plain,
    build_start_sol,
)
from gwmodule.errors import ChannelReset, Code, DeviceUnreachable, PolicyRefused
from gwmodule.msp.session import Session
from gwmodule.msp.stream import Stream
from gwmodule.relay.streams import Streams
from gwmodule.telemetry import Counters
from gwmodule.uplink.dialer import GatewaySession
from gwmodule.wire.events import (
    ChannelEnded,
    ChannelOpened,
    ChannelWritable,
    DataReceived,
    EofReceived,
    Event,
    SessionReset,
)
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import StreamTarget
from tests.uplink.peers import Peers, peers, until

ADDRESS = IPv4Address("192.0.2.7")
TARGET = StreamTarget(ADDRESS, 16994, b"\x02\0\0\0\0\x07")


@dataclass
class Device:
    """The far end of each dialled socket, handled by the test."""

    connections: list[socket.socket] = field(default_factory=list)
    error: Exception | None = None
    delay: float = 0.0

    async def dial(self, address: IPv4Address, port: int, mac: bytes) -> socket.socket:
        await asyncio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.connections.append(theirs)
        return ours

    async def read(self, size: int = 65536) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.connections[-1], size)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.connections[-1], data)


class Gateway:
    """A SessionHandler that has nothing but streams."""

    def __init__(self, device: Device, tasks: asyncio.TaskGroup, limit: int) -> None:
        self.counters = Counters()
        self.streams = Streams(device.dial, tasks, limit, self.counters)
        self.up = 0
        self.sessions: set[GatewaySession] = set()

    def session_up(self, session: GatewaySession, fresh: bool) -> None:
        self.up += 1
        self.sessions.add(session)

    def in_use(self, session: GatewaySession) -> bool:
        return self.streams.uses(session)

    def session_event(self, session: GatewaySession, event: Event) -> None:
        match event:
            case DataReceived(channel, data):
                self.streams.data_received(session, channel, data)
            case ChannelOpened(channel, _, target):
                assert isinstance(target, StreamTarget)
                self.streams.opened(session, channel, target)
            case ChannelWritable(channel):
                self.streams.writable(session, channel)
            case EofReceived(channel):
                self.streams.eof_received(session, channel)
            case ChannelEnded(channel, _, reason):
                self.streams.ended(session, channel, reason)
            case SessionReset():
                self.streams.session_over(session)
            case _:
                pass


@contextlib.asynccontextmanager
async def chain(
    directory: Path, device: Device, limit: int = 8
) -> AsyncIterator[tuple[Peers, Gateway, Session]]:
    """MSP session <- TLS link -> gateway with streams to `device`."""
    async with peers(directory) as msp:
        gateway = Gateway(device, msp.group, limit)
        msp.start_dialer(msp.config(), gateway)
        await until(lambda: gateway.up)
        session = msp.sessions.locate("gw-1")
        assert session is not None
        try:
            yield msp, gateway, session
        finally:
            gateway.streams.close()
            for connection in device.connections:
                connection.close()


async def test_chunks_pass_unchanged_and_unmerged(tmp_path: Path) -> None:
    device = Device()
    async with chain(tmp_path, device) as (_, _, session):
        stream = await session.open_stream(TARGET, Priority.INTERACTIVE)
        stream.write(b"\x10\0\0\0SOL ")
        assert await device.read() == b"\x10\0\0\0SOL "
        for chunk in (b"\x21" + bytes(22), b"\x29" + bytes(9), b"login: "):
            await device.write(chunk)
            assert await stream.read() == chunk
        stream.reset(Code.CANCELLED, "done")
        assert await device.read() == b""


async def test_half_close_travels_both_ways(tmp_path: Path) -> None:
    device = Device()
    async with chain(tmp_path, device) as (_, gateway, session):
        stream = await session.open_stream(TARGET, Priority.BULK)
        stream.write(b"request")
        stream.write_eof()
        assert await device.read() == b"request"
        assert await device.read() == b""
        await device.write(b"answer")
        device.connections[-1].shutdown(socket.SHUT_WR)
        assert await stream.read() == b"answer"
        assert await stream.read() == b""
        await until(lambda: len(gateway.streams) == 0)


async def test_a_device_that_closes_first_is_still_written_to(tmp_path: Path) -> None:
    device = Device()
    async with chain(tmp_path, device) as (_, gateway, session):
        stream = await session.open_stream(TARGET, Priority.BULK)
        device.connections[-1].shutdown(socket.SHUT_WR)
        assert await stream.read() == b""
        stream.write(b"the rest")
        assert await device.read() == b"the rest"
        stream.write_eof()
        assert await device.read() == b""
        await until(lambda: len(gateway.streams) == 0)


@contextlib.asynccontextmanager
async def half_taken(directory: Path, device: Device) -> AsyncIterator[tuple[Peers, Gateway, int]]:
    """Both sides have said their end, and the device has not read what it was sent."""
    async with chain(directory, device) as (msp, gateway, session):
        stream = await session.open_stream(TARGET, Priority.BULK)
        (ours,) = gateway.sessions
        device.connections[-1].shutdown(socket.SHUT_WR)
        assert await stream.read() == b""
        # More than the kernel holds for the device, less than the stream's window besides.
        sent = 350_000
        stream.write(bytes(sent))
        stream.write_eof()
        await until(lambda: ours.mux.channels == 0)
        yield msp, gateway, sent


async def test_a_device_may_take_the_rest_after_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gwmodule.relay.streams.REST_TIMEOUT", 0.4)
    device = Device()
    async with half_taken(tmp_path, device) as (_, gateway, sent):
        received = 0
        # Longer than the timeout all in all: what counts is that it goes on.
        while chunk := await device.read(32768):
            received += len(chunk)
            await asyncio.sleep(0.1)
        assert received == sent
        await until(lambda: len(gateway.streams) == 0)


async def test_a_device_that_does_not_take_the_rest_gives_its_place_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gwmodule.relay.streams.REST_TIMEOUT", 0.2)
    caplog.set_level("INFO", "gwmodule.streams")
    device = Device()
    async with half_taken(tmp_path, device) as (_, gateway, _sent):
        assert len(gateway.streams) == 1
        await until(lambda: len(gateway.streams) == 0)
        assert 'reason="the device took nothing of the rest for 0.2 s"' in caplog.text


async def test_a_session_that_is_left_stays_for_a_device_to_take_the_rest(tmp_path: Path) -> None:
    device = Device()
    async with half_taken(tmp_path, device) as (msp, gateway, sent):
        session = msp.sessions.locate("gw-1")
        assert session is not None
        session.send_away("maintenance", "", 30)
        await until(lambda: gateway.up == 2)
        received = 0
        while chunk := await device.read():
            received += len(chunk)
        assert received == sent
        await until(lambda: session.ended)


async def test_a_rest_makes_room_for_the_next_stream_of_its_number(tmp_path: Path) -> None:
    """The channel may be free already, when a heartbeat of our own is all that waits."""
    device = Device()
    async with half_taken(tmp_path, device) as (_, gateway, _sent):
        (session,) = gateway.sessions
        (old,) = gateway.streams._streams.values()
        gateway.streams.opened(session, old.channel, TARGET)
        await until(lambda: len(device.connections) == 2)
        await until(lambda: len(gateway.streams) == 1)
        assert old not in gateway.streams._streams.values()


async def test_the_end_of_a_session_ends_a_rest_that_nobody_takes(tmp_path: Path) -> None:
    device = Device()
    async with half_taken(tmp_path, device) as (msp, gateway, _):
        assert len(gateway.streams) == 1
        session = msp.sessions.locate("gw-1")
        assert session is not None
        session.end(Code.SESSION_LOST, "gone")
        await until(lambda: len(gateway.streams) == 0)


async def test_a_refusal_carries_its_reason(tmp_path: Path) -> None:
    device = Device(error=PolicyRefused("port", "port 22 is not one of 16992-16995"))
    async with chain(tmp_path, device) as (_, gateway, session):
        with pytest.raises(ChannelReset, match="port 22") as caught:
            await session.open_stream(TARGET, Priority.BULK)
        assert caught.value.code is Code.REFUSED_POLICY
        assert gateway.counters["streams_refused_refused_policy"] == 1


async def test_an_unreachable_device_is_told_apart_from_a_forbidden_one(tmp_path: Path) -> None:
    device = Device(error=DeviceUnreachable("192.0.2.7 port 16994: No route to host"))
    async with chain(tmp_path, device) as (_, _, session):
        with pytest.raises(ChannelReset, match="No route") as caught:
            await session.open_stream(TARGET, Priority.BULK)
        assert caught.value.code is Code.UNREACHABLE


async def test_streams_are_limited(tmp_path: Path) -> None:
    device = Device()
    async with chain(tmp_path, device, limit=1) as (_, _, session):
        first = await session.open_stream(TARGET, Priority.BULK)
        with pytest.raises(ChannelReset, match="1 streams are open"):
            await session.open_stream(TARGET, Priority.BULK)
        first.write(b"the first lives on")
        assert await device.read() == b"the first lives on"


async def test_a_stream_that_is_being_opened_counts_for_the_limit(tmp_path: Path) -> None:
    device = Device(delay=0.1)
    async with chain(tmp_path, device, limit=1) as (_, gateway, session):
        opened = await asyncio.gather(
            *(session.open_stream(TARGET, Priority.BULK) for _ in range(3)), return_exceptions=True
        )
        assert [isinstance(each, ChannelReset) for each in opened].count(True) == 2
        assert len(gateway.streams) == 1


async def test_a_stream_is_open_to_its_own_device_only(tmp_path: Path) -> None:
    device = Device()
    async with chain(tmp_path, device) as (_, gateway, session):
        await session.open_stream(TARGET, Priority.BULK)
        (ours,) = gateway.sessions
        assert gateway.streams.is_open(ours, 2, ADDRESS)
        assert not gateway.streams.is_open(ours, 2, IPv4Address("192.0.2.8"))
        assert not gateway.streams.is_open(ours, 4, ADDRESS)


async def test_a_broken_device_resets_its_stream_alone(tmp_path: Path) -> None:
    device = Device()
    async with chain(tmp_path, device) as (_, _, session):
        doomed = await session.open_stream(TARGET, Priority.BULK)
        other = await session.open_stream(TARGET, Priority.BULK)
        # Closing over unread data is a reset on a unix socket pair.
        doomed.write(b"never read")
        await until(lambda: select.select([device.connections[0]], [], [], 0)[0])
        device.connections[0].close()
        with pytest.raises(ChannelReset) as caught:
            await doomed.read()
        assert caught.value.code is Code.CONNECTION_LOST
        other.write(b"x")
        assert await device.read() == b"x"


async def test_a_reader_that_stops_stops_the_device_and_nobody_else(tmp_path: Path) -> None:
    device = Device()
    async with chain(tmp_path, device) as (_, _, session):
        slow = await session.open_stream(TARGET, Priority.BULK)
        flood = device.connections[0]
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while True:
                    await asyncio.get_running_loop().sock_sendall(flood, bytes(65536))
                    sent += 65536
        # A window, a send queue, and what the kernel holds: far from endless.
        assert sent < 4 * 1024 * 1024
        quick = await session.open_stream(TARGET, Priority.INTERACTIVE)
        await device.write(b"$ ")
        assert await quick.read() == b"$ "
        received = 0
        while received < sent:
            received += len(await slow.read())


async def test_the_msp_may_lose_interest_while_the_gateway_still_dials(tmp_path: Path) -> None:
    device = Device(delay=0.2)
    async with chain(tmp_path, device) as (_, gateway, session):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await session.open_stream(TARGET, Priority.BULK)
        await asyncio.sleep(0.4)
        assert device.connections == []
        assert len(gateway.streams) == 0


async def test_a_channel_that_is_opened_again_at_once_is_no_second_stream(tmp_path: Path) -> None:
    """As a hostile MSP would, to get more streams than it may have, out of reach of a lockdown."""
    device = Device(delay=0.1)
    async with chain(tmp_path, device, limit=1) as (_, gateway, _session):
        (session,) = gateway.sessions
        for _ in range(4):
            gateway.streams.opened(session, 2, TARGET)
            await asyncio.sleep(0.01)
            gateway.streams.ended(session, 2, "reset by the MSP")
            gateway.streams.opened(session, 2, TARGET)
            await asyncio.sleep(0.01)
            gateway.streams.ended(session, 2, "reset by the MSP")
        await asyncio.sleep(0.3)
        assert device.connections == []
        assert len(gateway.streams) == 0


async def test_small_chunks_for_a_device_that_does_not_read_take_little_memory(
    tmp_path: Path,
) -> None:
    device = Device()
    async with chain(tmp_path, device) as (_, gateway, session):
        stream = await session.open_stream(TARGET, Priority.BULK)
        (relayed,) = gateway.streams._streams.values()
        sent = b"".join(number.to_bytes(2, "big") for number in range(60_000))
        for at in range(0, len(sent), 2):
            stream.write(sent[at : at + 2])
            if at % 4096 == 0:
                await stream.drain()
        await until(lambda: sum(len(chunk) for chunk, _ in relayed._to_device) > 100_000)
        assert len(relayed._to_device) < 300
        received = bytearray()
        while len(received) < len(sent):
            received += await device.read()
        assert received == sent


async def test_a_power_action_closes_the_streams_of_that_device(tmp_path: Path) -> None:
    device = Device()
    async with chain(tmp_path, device) as (_, gateway, session):
        page = await session.open_stream(dataclasses.replace(TARGET, port=16992), Priority.BULK)
        stream = await session.open_stream(TARGET, Priority.INTERACTIVE)
        assert gateway.streams.release_device(IPv4Address("192.0.2.8"), "x") == 0
        assert gateway.streams.release_device(ADDRESS, "power action by tech1") == 1
        with pytest.raises(ChannelReset, match="power action by tech1") as caught:
            await stream.read()
        assert caught.value.code is Code.POWER_ACTION
        assert await device.read() == b""
        # AMT refuses over redirection only, and the answer to a request may be on its way.
        assert len(gateway.streams) == 1
        page.reset(Code.CANCELLED, "done")


SOL_STARTED = b"\x21" + bytes(22)
OUR_HEARTBEAT = build_sol_plain(MessageType.SOL_HEARTBEAT, 0)
DEVICE_HEARTBEAT = build_sol_plain(MessageType.SOL_HEARTBEAT, 3)


@contextlib.asynccontextmanager
async def held(
    directory: Path, device: Device, port: int = 16994
) -> AsyncIterator[tuple[Gateway, Stream]]:
    """A SOL session over a stream that is to be held, up to StartSolRedirectionReply."""
    settings = SolSettings(host_session_rx_timeout_ms=600, heartbeat_interval_ms=300)
    target = StreamTarget(ADDRESS, port, TARGET.mac, hold=True)
    async with chain(directory, device) as (_, gateway, session):
        stream = await session.open_stream(target, Priority.INTERACTIVE)
        stream.write(b"\x10\0\0\0SOL ")
        assert await device.read() == b"\x10\0\0\0SOL "
        await device.write(bytes.fromhex("11000000010000000000000000"))
        await stream.read()
        start = build_start_sol(settings, 0)
        stream.write(start)
        assert await device.read() == start
        await device.write(SOL_STARTED)
        yield gateway, stream


async def test_the_gateway_answers_a_heartbeat_that_the_console_cannot(tmp_path: Path) -> None:
    device = Device()
    async with held(tmp_path, device) as (gateway, stream):
        await device.write(DEVICE_HEARTBEAT)
        assert await device.read() == OUR_HEARTBEAT
        # The tool's side stays patient by itself, too.
        assert await stream.read() == SOL_STARTED + DEVICE_HEARTBEAT
        assert await stream.read() == OUR_HEARTBEAT
        # It was the gateway's own, and costs the console neither bytes nor credit.
        typed = build_sol_data(MessageType.SOL_DATA_TO_HOST, 1, b"\r")
        stream.write(typed)
        assert await device.read() == typed
        stream.reset(Code.CANCELLED, "done")
        await until(lambda: gateway.counters["held_heartbeats"] == 1)


async def test_nobody_answers_a_heartbeat_for_a_console_that_has_closed(tmp_path: Path) -> None:
    device = Device()
    async with held(tmp_path, device) as (gateway, stream):
        await device.write(DEVICE_HEARTBEAT)
        stream.write_eof()
        assert await device.read() == b""
        await asyncio.sleep(0.4)
        assert len(gateway.streams) == 1


async def test_tls_is_not_held(tmp_path: Path) -> None:
    device = Device()
    async with held(tmp_path, device, port=16995) as (_, _stream):
        await device.write(DEVICE_HEARTBEAT)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4):
                await device.read()


async def test_streams_that_are_being_opened_are_cut_too(tmp_path: Path) -> None:
    """The lockdown may be over before the device answers."""
    device = Device(delay=0.2)
    async with chain(tmp_path, device) as (_, gateway, session), asyncio.TaskGroup() as tasks:

        async def open_it() -> None:
            with pytest.raises(ChannelReset, match="locked down") as cut:
                await session.open_stream(TARGET, Priority.INTERACTIVE)
            assert cut.value.code is Code.REFUSED_POLICY

        opening = tasks.create_task(open_it())
        await until(lambda: gateway.streams._opening)
        assert gateway.streams.reset_all(Code.REFUSED_POLICY, "locked down at the gateway") == 1
        await opening
        await asyncio.sleep(0.3)
        assert device.connections == []
        assert len(gateway.streams) == 0


async def test_all_streams_are_cut_at_once_with_the_reason(tmp_path: Path) -> None:
    device = Device()
    async with chain(tmp_path, device) as (_, gateway, session):
        streams = [
            await session.open_stream(dataclasses.replace(TARGET, hold=hold), Priority.INTERACTIVE)
            for hold in (True, False)
        ]
        assert gateway.streams.to_device(ADDRESS) == (2, 1)
        assert gateway.streams.to_device(IPv4Address("192.0.2.8")) == (0, 0)
        assert gateway.streams.reset_all(Code.REFUSED_POLICY, "locked down at the gateway") == 2
        for stream in streams:
            with pytest.raises(ChannelReset, match="locked down at the gateway") as cut:
                await stream.read()
            assert cut.value.code is Code.REFUSED_POLICY
        assert len(gateway.streams) == 0
