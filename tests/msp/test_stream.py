from __future__ import annotations

import asyncio

import pytest

from gwmodule.amt.hold import ToolHold
from gwmodule.amt.redirection import MessageType, SolSettings, build_sol_plain, build_start_sol
from gwmodule.errors import ChannelReset, Code
from gwmodule.msp.stream import Stream
from gwmodule.msp.traffic import Direction, Traffic
from gwmodule.wire.events import ChannelEnded, ChannelWritable, DataReceived, EofReceived
from gwmodule.wire.frames import Priority
from gwmodule.wire.mux import SEND_QUEUE
from tests.wire.pair import Pair, events

HEARTBEAT = build_sol_plain(MessageType.SOL_HEARTBEAT, 0)


class Carrier:
    """The MSP's end of a pair, which delivers whatever is flushed."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.mux = self.pair.msp
        self.traffic = Traffic()
        self.stopped = False

    def flush(self) -> None:
        if not self.stopped:
            self.pair.deliver()

    flush_soon = flush

    def consumed(self, channel: int, size: int) -> None:
        if self.mux.consume(channel, size, 0.0):
            self.flush()

    def reset_stream(self, channel: int, code: Code, reason: str) -> None:
        self.mux.reset(channel, code, reason)
        self.flush()

    def tell(self, stream: Stream) -> None:
        """Pass on what has come for the only stream."""
        for event in events(self.mux):
            match event:
                case DataReceived(_, data):
                    stream.data_received(data)
                case EofReceived():
                    stream.eof_received()
                case ChannelWritable():
                    stream.room_made()
                case ChannelEnded(_, code, reason):
                    stream.ended(ChannelReset(code, reason))
                case _:
                    raise AssertionError(event)

    def say(self, stream: Stream, data: bytes) -> None:
        """The device says something."""
        self.pair.gateway.send(stream.channel, data, 0.0)
        self.flush()
        self.tell(stream)

    def heard(self) -> list[object]:
        return list(events(self.pair.gateway))


@pytest.fixture
async def carrier() -> Carrier:
    return Carrier()


def opened(carrier: Carrier, hold: ToolHold | None = None) -> Stream:
    return Stream(carrier, carrier.pair.open(), Priority.INTERACTIVE, hold)


async def test_chunks_go_and_come_as_they_are_and_are_counted(carrier: Carrier) -> None:
    stream = opened(carrier)
    stream.write(b"ls")
    stream.write(b"\r")
    assert carrier.heard() == [
        DataReceived(stream.channel, b"ls"),
        DataReceived(stream.channel, b"\r"),
    ]
    for chunk in (b"a", b"bc"):
        carrier.say(stream, chunk)
    assert [await stream.read(), await stream.read()] == [b"a", b"bc"]
    assert carrier.traffic.carried == {
        (Priority.INTERACTIVE, Direction.TO_DEVICE): 3,
        (Priority.INTERACTIVE, Direction.FROM_DEVICE): 3,
    }


async def test_what_is_read_may_be_sent_again(carrier: Carrier) -> None:
    stream = opened(carrier)
    window = carrier.pair.config.interactive_window
    carrier.pair.gateway.send(stream.channel, bytes(3 * window), 0.0)
    received = 0
    while received < 3 * window:
        carrier.flush()
        carrier.tell(stream)
        async with asyncio.timeout(5):
            received += len(await stream.read())


async def test_a_reader_that_waits_is_woken_by_data_eof_and_the_end(carrier: Carrier) -> None:
    stream = opened(carrier)
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(stream.read())
        await asyncio.sleep(0)
        carrier.say(stream, b"x")
    assert reader.result() == b"x"
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(stream.read())
        await asyncio.sleep(0)
        stream.eof_received()
    assert reader.result() == b""
    other = opened(carrier)
    async with asyncio.TaskGroup() as group:
        ended = group.create_task(broken(other))
        await asyncio.sleep(0)
        other.ended(ChannelReset(Code.SESSION_LOST, "gone"))
    assert ended.result().code is Code.SESSION_LOST


async def broken(stream: Stream) -> ChannelReset:
    with pytest.raises(ChannelReset) as info:
        await stream.read()
    return info.value


async def test_what_has_arrived_is_read_before_the_end(carrier: Carrier) -> None:
    stream = opened(carrier)
    carrier.say(stream, b"last words")
    carrier.pair.gateway.reset(stream.channel, Code.CONNECTION_LOST, "the device is gone")
    carrier.flush()
    carrier.tell(stream)
    assert await stream.read() == b"last words"
    assert (await broken(stream)).code is Code.CONNECTION_LOST
    with pytest.raises(ChannelReset, match="the device is gone"):
        stream.write(b"x")
    with pytest.raises(ChannelReset, match="the device is gone"):
        await stream.drain()
    stream.write_eof()
    stream.reset(Code.CANCELLED, "too late")
    assert (await broken(stream)).code is Code.CONNECTION_LOST


async def test_a_writer_waits_for_room_and_goes_on(carrier: Carrier) -> None:
    stream = opened(carrier)
    await stream.drain()
    carrier.stopped = True
    stream.write(bytes(SEND_QUEUE[Priority.INTERACTIVE]))
    async with asyncio.TaskGroup() as group:
        drained = group.create_task(stream.drain())
        await asyncio.sleep(0)
        assert not drained.done()
        carrier.stopped = False
        carrier.flush()
        carrier.tell(stream)


async def test_a_writer_that_waits_hears_of_the_end(carrier: Carrier) -> None:
    stream = opened(carrier)
    carrier.stopped = True
    stream.write(bytes(SEND_QUEUE[Priority.INTERACTIVE]))

    async def drain() -> None:
        with pytest.raises(ChannelReset, match="gone"):
            await stream.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(drain())
        await asyncio.sleep(0)
        stream.ended(ChannelReset(Code.SESSION_LOST, "gone"))


async def test_each_direction_ends_by_itself(carrier: Carrier) -> None:
    stream = opened(carrier)
    stream.write_eof()
    assert carrier.heard() == [EofReceived(stream.channel)]
    carrier.say(stream, b"still here")
    assert await stream.read() == b"still here"


async def test_a_reset_tells_the_gateway_why(carrier: Carrier) -> None:
    stream = opened(carrier)
    stream.reset(Code.CANCELLED, "closed by anna")
    assert carrier.heard() == [ChannelEnded(stream.channel, Code.CANCELLED, "closed by anna")]
    assert (await broken(stream)).code is Code.CANCELLED


async def test_a_stream_is_open_when_it_is_accepted_and_never_when_it_is_refused(
    carrier: Carrier,
) -> None:
    accepted, refused = opened(carrier), opened(carrier)
    accepted.accepted()
    await accepted.opened()
    refused.ended(ChannelReset(Code.REFUSED_POLICY, "not in the LAN"))
    with pytest.raises(ChannelReset, match="not in the LAN"):
        await refused.opened()


async def test_a_stream_that_changes_its_class_is_sent_and_counted_in_it(carrier: Carrier) -> None:
    stream = opened(carrier)
    stream.priority = Priority.BULK
    stream.write(b"image")
    assert carrier.traffic.carried == {(Priority.BULK, Direction.TO_DEVICE): 5}
    assert carrier.mux.room(stream.channel) == SEND_QUEUE[Priority.BULK]


async def test_a_held_stream_keeps_its_tool_patient(carrier: Carrier) -> None:
    hold = ToolHold()
    stream = opened(carrier, hold)
    # Nothing is due before the tool has said what it counts on; then the reader must learn of it.
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(stream.read())
        await asyncio.sleep(0)
        stream.write(bytes.fromhex("10000000534f4c20"))
        settings = SolSettings(host_session_rx_timeout_ms=30, heartbeat_interval_ms=20)
        stream.write(build_start_sol(settings, 0))
        async with asyncio.timeout(5):
            assert await reader == HEARTBEAT
    assert hold.heartbeats == 1
    carrier.say(stream, b"x")
    assert await stream.read() == b"x"
