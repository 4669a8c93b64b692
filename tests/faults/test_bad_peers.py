"""A gateway with a good certificate and bad manners: it is cut off and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from gwmodule.errors import Code
from gwmodule.uplink.tls import TlsEngine, client_context
from gwmodule.wire.codec import (
    Decoder,
    build_ack,
    build_credit,
    build_frame,
    build_greeting,
    build_pong,
    parse_goaway,
    parse_welcome,
)
from gwmodule.wire.frames import NO_TOKEN, FrameType
from gwmodule.wire.messages import GoAway, Greeting, Welcome
from gwmodule.wire.notices import LeaseEnd, build_observation
from tests.uplink.peers import Peers, peers, until

# Bytes that a test may make the service keep for one bad peer.
BOUND = 64 * 1024 * 1024


def greeting(token: bytes = NO_TOKEN, received: int = 0) -> bytes:
    return build_greeting(
        Greeting(
            boot_id=b"12345678",
            token=token,
            received=received,
            timeout=5.0,
            clock_trusted=True,
            deployment="gateway",
            software="test",
            lowest_version=1,
            highest_version=1,
        )
    )


@contextlib.asynccontextmanager
async def bad_peer(msp: Peers) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TLS connection with the certificate of gw-2, and nothing sent yet."""
    context = client_context(msp.config("gw-2").tls, clock_trusted=True)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", msp.port, ssl=context, server_hostname="msp.example"
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def goaway(reader: asyncio.StreamReader) -> GoAway:
    """What the MSP said last before it hung up."""
    decoder = Decoder()
    last: GoAway | None = None
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                decoder.receive(data)
                while (frame := decoder.next_frame()) is not None:
                    if frame.type is FrameType.GOAWAY:
                        last = parse_goaway(frame.payload)
    assert last is not None, "no GOAWAY before the end"
    return last


DATA = build_frame(FrameType.DATA, 1, b"x")
OPEN = build_frame(FrameType.OPEN, 1, struct.pack(">BBI", 2, 2, 65536) + struct.pack(">I", 7))


@pytest.mark.parametrize(
    ("sent", "code", "text"),
    [
        (struct.pack(">BBHI", 0x13, 0, 1, 0xFFFFFFFF), Code.FRAME_SIZE, "4294967295"),
        (struct.pack(">BBHI", 0x13, 0, 1, 16385), Code.FRAME_SIZE, "maximum 16384"),
        (struct.pack(">BBHI", 0x7F, 0, 0, 0), Code.FRAME_LAYOUT, "0x7f"),
        (struct.pack(">BBHI", 0x13, 1, 1, 0), Code.FRAME_LAYOUT, "flags 0x01"),
        (DATA, Code.CHANNEL_STATE, "channel 1"),
        (build_frame(FrameType.EOF, 9, b""), Code.CHANNEL_STATE, "channel 9"),
        (build_frame(FrameType.OPEN, 2, OPEN[8:]), Code.CHANNEL_STATE, "channel 2"),
        (OPEN + OPEN, Code.CHANNEL_STATE, "channel 1"),
        (build_frame(FrameType.CALL, 0, b"short"), Code.FRAME_LAYOUT, "CALL of 5 bytes"),
        (build_frame(FrameType.NOTICE, 4, bytes(12)), Code.CHANNEL_STATE, "channel 4"),
        (build_ack(1000), Code.PROTOCOL_ERROR, "acknowledges 1000"),
        (build_credit(0, 1 << 40, 99), Code.PROTOCOL_ERROR, "acknowledges 99"),
        (build_pong(1, 0), Code.PROTOCOL_ERROR, "answers no PING"),
        (greeting(), Code.FRAME_LAYOUT, "second GREETING"),
    ],
    ids=[
        "endless length", "one byte too long", "unknown type", "unknown flag", "data, no channel",
        "eof, no channel", "the other's channel number", "opened twice", "truncated message",
        "message on a channel", "ack of nothing", "credit with a count of nothing", "stray pong",
        "second greeting",
    ],
)  # fmt: skip
async def test_what_breaks_the_protocol_is_named_and_ends_that_link(
    tmp_path: Path, sent: bytes, code: Code, text: str
) -> None:
    async with peers(tmp_path) as msp:
        good, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        async with bad_peer(msp) as (reader, writer):
            writer.write(greeting() + sent)
            said = await goaway(reader)
        assert (said.code, text in said.reason) == (code, True), said
        await until(lambda: [s.gateway for s in msp.sessions.all()] == ["gw-1"])
        assert good.connected
        assert recorder.ups == [True]


@pytest.mark.parametrize("gateway", ["gw-2", "revoked"])
async def test_a_greeting_with_a_broken_record_behind_it_ends_that_link_only(
    tmp_path: Path, gateway: str
) -> None:
    async with peers(tmp_path) as msp:
        good, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        context = client_context(msp.config(gateway).tls, clock_trusted=True)
        engine = TlsEngine(context, "msp.example")
        reader, writer = await asyncio.open_connection("127.0.0.1", msp.port)
        async with asyncio.timeout(5):
            while not engine.handshake():
                writer.write(engine.data_to_send())
                engine.receive(await reader.read(65536))
            writer.write(engine.data_to_send())
            # In one piece, so that one read of the service gets both.
            writer.write(engine.encrypt(greeting()) + b"\x17\x03\x03\x00\x40" + bytes(64))
            with contextlib.suppress(ConnectionError):
                while await reader.read(65536):
                    pass
        writer.transport.abort()
        await until(lambda: not msp.listener.strangers.all())
        assert [session.gateway for session in msp.sessions.all()] == ["gw-1"]
        assert good.connected
        assert recorder.ups == [True]


async def test_data_beyond_its_credit_is_cut_off_with_the_numbers(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        async with bad_peer(msp) as (reader, writer):
            writer.write(greeting())
            notice = build_frame(FrameType.NOTICE, 0, bytes(12) + b"\xff" * 16000)
            # 256 KiB of control credit, and not a byte of it given back for what is no notice.
            for _ in range(20):
                writer.write(notice)
            said = await goaway(reader)
        assert said.code in (Code.FRAME_LAYOUT, Code.FLOW_CONTROL)


async def test_a_resume_with_a_wrong_token_is_a_fresh_session(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp, bad_peer(msp) as (reader, writer):
        writer.write(greeting(token=b"0123456789abcdef", received=12345))
        async with asyncio.timeout(5):
            data = await reader.read(1024)
        assert data[0] == FrameType.WELCOME
        assert data[8:10] == b"\x01\x00"  # version 1, not resumed


async def test_a_stolen_token_is_worth_nothing_to_another_gateway(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        victim, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        async with bad_peer(msp) as (reader, writer):
            writer.write(greeting(token=victim.session.token))
            async with asyncio.timeout(5):
                data = await reader.read(1024)
        assert data[8:10] == b"\x01\x00"
        assert recorder.ups == [True]
        assert victim.connected


async def welcome(msp: Peers, token: bytes, *, speak: bool) -> Welcome:
    """One link: greet, read the answer, say something or not, and be gone."""
    async with bad_peer(msp) as (reader, writer):
        writer.write(greeting(token=token))
        decoder = Decoder()
        async with asyncio.timeout(5):
            while (frame := decoder.next_frame()) is None:
                decoder.receive(await reader.read(1024))
        if speak:
            writer.write(build_credit(0, 65536, 0))
            await writer.drain()
            session = msp.sessions.locate("gw-2")
            assert session is not None
            await until(lambda: session.mux.heard)
    return parse_welcome(frame.payload)


async def test_a_token_is_good_once_but_a_lost_welcome_costs_no_session(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        first = (await welcome(msp, NO_TOKEN, speak=True)).token
        # The welcome of the second link never reached the gateway: it comes again as before.
        assert (await welcome(msp, first, speak=False)).resumed
        third = await welcome(msp, first, speak=True)
        assert third.resumed
        # That link has proved itself, and with it the old token is spent.
        assert not (await welcome(msp, first, speak=False)).resumed


async def test_a_resume_with_an_impossible_count_is_refused(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, task = msp.start_gateway(msp.config("gw-2"))
        await until(lambda: recorder.ups)
        token, boot_id = dialer.session.token, dialer._boot_id
        task.cancel()
        await asyncio.wait([task])
        session = msp.sessions.locate("gw-2")
        assert session is not None
        await until(lambda: not session.connected)
        async with bad_peer(msp) as (reader, writer):
            first = greeting(token=token, received=1 << 50).replace(b"12345678", boot_id)
            writer.write(first)
            said = await goaway(reader)
        assert said.code is Code.PROTOCOL_ERROR
        assert "1125899906842624" in said.reason
        assert msp.sessions.locate("gw-2") is None


async def test_a_peer_that_says_nothing_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gwmodule.msp.listener._HANDSHAKE_TIMEOUT", 0.3)
    async with peers(tmp_path) as msp, bad_peer(msp) as (reader, _):
        said = await goaway(reader)
        assert said.code is Code.TIMEOUT


async def test_a_connection_without_a_byte_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before TLS, too: 512 silent connections would keep every gateway out."""
    monkeypatch.setattr("gwmodule.msp.listener._HANDSHAKE_TIMEOUT", 0.2)
    async with peers(tmp_path) as msp:
        reader, writer = await asyncio.open_connection("127.0.0.1", msp.port)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_messages_that_ask_and_never_give_credit_are_cut_off(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp, bad_peer(msp) as (reader, writer):
        writer.write(greeting())
        end = build_observation(LeaseEnd(b"\x02\0\0\0\0\x01", IPv4Address("192.0.2.1")))
        notice = build_frame(FrameType.NOTICE, 0, bytes(12) + end)
        with contextlib.suppress(ConnectionError):
            # Not faster than they are written: what finds the journal full gets no answer.
            for _ in range(200):
                writer.write(notice * 60)
                await writer.drain()
                await asyncio.sleep(0.002)
        said = await goaway(reader)
        assert said.code is Code.PROTOCOL_ERROR
        assert "4096 messages wait" in said.reason


async def test_one_byte_at_a_time_does_not_keep_a_link_alive(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp, bad_peer(msp) as (reader, writer):
        # A deadline of 1 s runs on whole frames; half a frame in small pieces is none.
        slow = Greeting(b"12345678", NO_TOKEN, 0, 1.0, True, "gateway", "test", 1, 1)
        writer.write(build_greeting(slow))
        frame = build_frame(FrameType.NOTICE, 0, bytes(4000))
        started = asyncio.get_running_loop().time()
        with contextlib.suppress(ConnectionError):
            for byte in frame:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
                if reader.at_eof() or asyncio.get_running_loop().time() - started > 5:
                    break
        assert asyncio.get_running_loop().time() - started < 4
        session = msp.sessions.locate("gw-2")
        assert session is None or not session.connected


async def test_a_flood_of_opens_is_answered_within_bounds_and_then_cut(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        good, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        async with bad_peer(msp) as (_, writer):
            writer.write(greeting())
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(5):
                    # 100,000 OPENs whose answers nobody reads.
                    for number in range(100_000):
                        channel = 1 + 2 * (number % 32_000)
                        writer.write(build_frame(FrameType.OPEN, channel, OPEN[8:]))
                        if number % 500 == 0:
                            await writer.drain()
            session = msp.sessions.locate("gw-2")
            assert session is None or session.mux.unacknowledged < BOUND
        assert good.connected
        assert recorder.ups == [True]
