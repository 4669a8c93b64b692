from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

from gwmodule.errors import Code, FrameSizeError, GatewayError, LinkLost, RemoteProtocolError
from gwmodule.uplink.link import NOTSENT_LOWAT, Link, close_all
from gwmodule.wire.codec import Decoder, parse_goaway
from gwmodule.wire.messages import GoAway
from tests.uplink.peers import until


class Machine:
    """A machine that keeps what it gets and gives what it was given."""

    bulk_chunk = 0

    def __init__(self) -> None:
        self.shared = False
        self.received = b""
        self.output = b""
        self.zeros = 0
        self.pulled: list[int] = []
        self.timeout: float | None = None
        self.timeouts = 0
        self.error: Exception | None = None

    def shares_the_line(self, now: float) -> bool:
        return self.shared

    def receive_data(self, data: bytes, now: float) -> None:
        if self.error is not None:
            raise self.error
        self.received += data

    def data_to_send(self, budget: int) -> bytes:
        data, self.output = self.output[:budget], self.output[budget:]
        if not data:
            data = bytes(min(budget, self.zeros))
            self.zeros -= len(data)
        if data:
            self.pulled.append(len(data))
        return data

    def next_timeout(self) -> float | None:
        return self.timeout

    def handle_timeout(self, now: float) -> None:
        if self.timeout is None or now < self.timeout:
            return
        self.timeouts += 1
        self.timeout = None


class Owner:
    def __init__(self) -> None:
        self.ready = 0
        self.progress = 0
        self.lost: list[GatewayError] = []

    def link_ready(self, link: Link) -> None:
        self.ready += 1

    def link_progress(self, link: Link) -> None:
        self.progress += 1

    def link_lost(self, link: Link, reason: GatewayError) -> None:
        self.lost.append(reason)


@contextlib.asynccontextmanager
async def plain() -> AsyncIterator[tuple[Link, Machine, Owner, socket.socket]]:
    """A link without TLS over a real connection, and the far end of it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    far.setblocking(False)
    machine, owner = Machine(), Owner()
    link = Link(asyncio.get_running_loop(), ours, None, owner)
    link.machine = machine
    link.start(10.0)
    await until(lambda: owner.ready)
    try:
        yield link, machine, owner, far
    finally:
        link.abort(LinkLost("the test is over"))
        far.close()


async def read(far: socket.socket) -> bytes:
    async with asyncio.timeout(5):
        return await asyncio.get_running_loop().sock_recv(far, 1 << 20)


async def test_another_machine_brings_its_own_deadline() -> None:
    async with plain() as (link, machine, _, _far):
        machine.timeout = asyncio.get_running_loop().time() + 60
        link.flush()
        link.machine = successor = Machine()
        successor.timeout = asyncio.get_running_loop().time() + 0.05
        link.flush()
        await until(lambda: successor.timeouts == 1)
        assert machine.timeouts == 0


async def test_a_deadline_that_moved_later_is_still_met() -> None:
    async with plain() as (link, machine, _, _far):
        loop = asyncio.get_running_loop()
        machine.timeout = loop.time() + 0.02
        link.flush()
        later = machine.timeout = loop.time() + 0.1
        await until(lambda: machine.timeouts == 1)
        assert loop.time() >= later


async def test_what_the_machine_has_is_written_and_what_comes_is_fed() -> None:
    async with plain() as (link, machine, owner, far):
        machine.output = b"keystroke"
        link.flush_soon()
        assert await read(far) == b"keystroke"
        far.send(b"echo")
        await until(lambda: machine.received == b"echo")
        assert owner.progress > 0


async def test_nothing_is_pulled_while_the_kernel_holds_enough() -> None:
    async with plain() as (link, machine, _, far):
        machine.zeros = 64 * 1024 * 1024
        link.flush()
        before = 0
        while before != machine.zeros:
            before = machine.zeros
            await asyncio.sleep(0.2)
        # Nobody reads: what went is the peer's window and our socket's small unsent rest.
        assert 64 * 1024 * 1024 - before < 16 * 1024 * 1024
        await asyncio.sleep(0.5)
        assert before - machine.zeros <= NOTSENT_LOWAT
        total = 0
        while total < 64 * 1024 * 1024:
            total += len(await read(far))
        assert machine.zeros == 0


async def test_a_timer_fires_once_for_its_deadline() -> None:
    async with plain() as (link, machine, _, _):
        machine.timeout = asyncio.get_running_loop().time() + 0.05
        link.flush()
        await until(lambda: machine.timeouts)
        await asyncio.sleep(0.1)
        assert machine.timeouts == 1


async def test_a_link_that_its_owner_ends_while_it_is_paced_is_left_alone() -> None:
    """A draining session whose link dies: with it go the channels that the pace was for."""
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    async with plain() as (link, machine, owner, far):
        machine.shared = True
        far.send(b"x")
        await until(lambda: link._pacing is not None)

        def end(link: Link) -> None:
            machine.shared = False
            link.abort(LinkLost("nothing received"))

        owner.link_progress = end  # type: ignore[method-assign]
        machine.timeout = loop.time() + 0.02
        link._arm_timer()
        await until(lambda: owner.lost)
        await asyncio.sleep(0.05)
    assert failures == []


async def test_pacing_ends_when_a_flood_does_though_nothing_comes_or_goes() -> None:
    async with plain() as (link, machine, _, far):
        machine.shared = True
        far.send(b"x")
        await until(lambda: link._pacer is not None)
        machine.shared = False
        await until(lambda: link._pacer is None)
        assert link._pacing is None


async def test_a_protocol_error_is_told_even_if_the_goaway_cannot_be_written() -> None:
    """Its bytes and then a reset came before they were read: the session must not be resumed."""
    async with plain() as (link, machine, owner, far):
        link.pause_reading()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        await asyncio.sleep(0.05)
        machine.error = RemoteProtocolError("a bad frame")
        link.resume_reading(b"x")
        assert [type(reason) for reason in owner.lost] == [RemoteProtocolError]


async def test_an_end_of_the_peer_is_told_once() -> None:
    async with plain() as (link, _, owner, far):
        far.close()
        await until(lambda: owner.lost)
        link.abort(LinkLost("again"))
        assert [str(reason) for reason in owner.lost] == ["closed by the peer"]


async def test_a_protocol_error_is_said_goodbye_to_with_its_code() -> None:
    async with plain() as (_, machine, owner, far):
        machine.error = FrameSizeError("payload of 70000 bytes, maximum 16384")
        far.send(b"x")
        decoder = Decoder()
        while data := await read(far):
            decoder.receive(data)
        frame = decoder.next_frame()
        assert frame is not None
        assert parse_goaway(frame.payload) == GoAway(
            Code.FRAME_SIZE, "payload of 70000 bytes, maximum 16384"
        )
        assert owner.lost == [machine.error]


async def test_the_last_words_arrive_although_the_peer_still_sends() -> None:
    async with plain() as (link, _, _, far):
        far.send(bytes(100_000))
        await asyncio.sleep(0.05)
        far.send(bytes(100_000))
        link.close(GoAway(Code.SHUTDOWN, "bye"))
        data = b""
        while chunk := await read(far):
            data += chunk
        assert b"bye" in data


async def test_after_the_end_everything_is_quiet() -> None:
    async with plain() as (link, machine, owner, _):
        link.abort(LinkLost("enough"))
        machine.output = b"late"
        link.flush()
        link.flush_soon()
        link.close()
        await asyncio.sleep(0.01)
        assert machine.pulled == []
        assert len(owner.lost) == 1
        assert link.closed
        assert link.peer == ("", 0)
        assert link.local_address == ""


async def test_what_stops_waits_until_the_peers_have_read_why() -> None:
    async with plain() as (link, _, _, far), asyncio.TaskGroup() as tasks:
        # What nobody will read: to close over it sends a RST, which destroys what is on its way.
        far.send(b"a keystroke that came too late")
        stopping = tasks.create_task(close_all([link], GoAway(Code.SHUTDOWN, "we stop")))
        decoder = Decoder()
        while data := await read(far):
            decoder.receive(data)
        frame = decoder.next_frame()
        assert frame is not None
        assert parse_goaway(frame.payload).reason == "we stop"
        assert not stopping.done()
        far.close()
        async with asyncio.timeout(0.5):
            await stopping


async def test_a_peer_that_never_closes_is_not_waited_for_long() -> None:
    async with plain() as (link, _, _, _far), asyncio.timeout(5):
        link.close()
        await link.wait_closed()


async def test_an_aborted_link_is_gone_at_once() -> None:
    async with plain() as (link, _, _, _far):
        link.abort(LinkLost("nothing received"))
        async with asyncio.timeout(0.1):
            await link.wait_closed()
