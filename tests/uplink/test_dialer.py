from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import socket
import zlib
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from gwmodule.config import BackoffConfig, MspPeerConfig, UplinkConfig
from gwmodule.errors import ChannelReset, Code, DeadlineExceeded, LinkLost
from gwmodule.msp.stream import Stream
from gwmodule.uplink.dialer import Dialer
from gwmodule.wire.bodies import MAX_BODY, deflate
from gwmodule.wire.events import (
    ChannelEnded,
    ChannelOpened,
    DataReceived,
    EofReceived,
    MessageReceived,
)
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import (
    Call,
    Credential,
    Notice,
    NoticeAck,
    Result,
    ResultTarget,
    StreamTarget,
)
from gwmodule.wire.notices import Lease
from tests.uplink.peers import Peers, Recorder, peers, until

TARGET = StreamTarget(IPv4Address("192.0.2.7"), 16994, b"\x02\0\0\0\0\x07")
UUID_1 = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")


async def call(msp: Peers, deadline: float = 5.0) -> Result:
    session = msp.sessions.locate("gw-1")
    assert session is not None
    return await session.call(
        function="power.get",
        arguments=b"{}",
        address=TARGET.address,
        mac=TARGET.mac,
        uuid=UUID_1,
        credential=Credential(),
        deadline=deadline,
    )


def message_of(recorder: Recorder, kind: type) -> list[object]:
    return [
        event.message
        for event in recorder.events
        if isinstance(event, MessageReceived) and isinstance(event.message, kind)
    ]


async def open_stream(msp: Peers, dialer: Dialer, recorder: Recorder) -> tuple[Stream, int]:
    session = msp.sessions.locate("gw-1")
    assert session is not None

    async def accept() -> int:
        await until(lambda: any(isinstance(e, ChannelOpened) for e in recorder.events))
        (channel,) = (e.channel for e in recorder.events if isinstance(e, ChannelOpened))
        dialer.session.mux.accept(channel)
        dialer.session.flush_soon()
        return channel

    async with asyncio.TaskGroup() as tasks:
        accepted = tasks.create_task(accept())
        opened = tasks.create_task(session.open_stream(TARGET, Priority.INTERACTIVE))
    return opened.result(), accepted.result()


async def test_a_gateway_with_a_certificate_gets_a_session(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        assert recorder.ups == [True]
        assert msp.registry.connected == ["gw-1"]
        session = msp.sessions.locate("gw-1")
        assert session is not None
        assert session.observed_address == "127.0.0.1"
        assert dialer.session.welcome is not None
        assert dialer.session.welcome.gateway == "gw-1"
        assert dialer.session.welcome.observed_port == session.observed_port


async def test_a_notice_is_acknowledged_after_its_commit(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        lease = Lease(TARGET.mac, TARGET.address, 3600, "pc-7")
        dialer.session.mux.send_message(Notice(41, 0.5, lease))
        dialer.session.flush_soon()
        await until(lambda: message_of(recorder, NoticeAck))
        assert message_of(recorder, NoticeAck) == [NoticeAck(41)]
        assert msp.registry.observed == [lease]
        assert msp.registry.committed == 1


async def test_a_call_reaches_the_gateway_and_its_result_comes_back(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)

        async def answer() -> None:
            await until(lambda: message_of(recorder, Call))
            (received,) = message_of(recorder, Call)
            assert isinstance(received, Call)
            dialer.session.mux.send_message(Result(received.call, Code.OK, 0.1, 3, b'{"state": 2}'))
            dialer.session.flush_soon()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(answer())
            result = await call(msp)
        assert (result.code, result.exchanges, json.loads(result.body)) == (
            Code.OK,
            3,
            {"state": 2},
        )


async def test_a_large_result_comes_on_a_channel_of_its_own(tmp_path: Path) -> None:
    body = json.dumps({"records": ["x" * 100] * 3000}).encode()
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)

        async def answer() -> None:
            await until(lambda: message_of(recorder, Call))
            (received,) = message_of(recorder, Call)
            assert isinstance(received, Call)
            channel = dialer.session.mux.open(ResultTarget(received.call), Priority.BULK)
            dialer.session.mux.send_message(
                Result(received.call, Code.OK, 0.1, 3, b"", detached=True)
            )
            dialer.session.flush_soon()
            sent = 0
            while sent < len(body):
                await until(lambda: dialer.session.mux.room(channel) > 0)
                dialer.session.mux.send(channel, body[sent : sent + 16384], 0.0)
                sent += 16384
                dialer.session.flush_soon()
            dialer.session.mux.send_eof(channel)
            dialer.session.flush_soon()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(answer())
            result = await call(msp)
        assert result.body == body


@pytest.mark.parametrize(
    ("sent", "code", "expected"),
    [
        (deflate(b'{"records": []}'), Code.OK, b'{"records": []}'),
        (b"no zlib stream", Code.FRAME_LAYOUT, b"is broken"),
        (zlib.compress(bytes(MAX_BODY + 1), 9), Code.FRAME_LAYOUT, b"holds more than 2097152"),
    ],
)
async def test_a_deflated_result_is_inflated_within_bounds(
    tmp_path: Path, sent: bytes, code: Code, expected: bytes
) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)

        async def answer() -> None:
            await until(lambda: message_of(recorder, Call))
            (received,) = message_of(recorder, Call)
            assert isinstance(received, Call)
            result = Result(received.call, Code.OK, 0.1, 3, sent, deflated=True)
            dialer.session.mux.send_message(result)
            dialer.session.flush_soon()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(answer())
            result = await call(msp)
        assert result.code is code
        assert expected in result.body


async def test_a_call_without_an_answer_ends_after_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gwmodule.msp.session._GRACE", 0.05)
    async with peers(tmp_path) as msp:
        _, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        with pytest.raises(DeadlineExceeded, match="outcome unknown"):
            await call(msp, deadline=0.05)


async def test_bytes_of_a_stream_arrive_in_both_directions_and_end(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        stream, channel = await open_stream(msp, dialer, recorder)
        stream.write(b"\r")
        await until(lambda: DataReceived(channel, b"\r") in recorder.events)
        dialer.session.mux.send(channel, b"login: ", 0.0)
        dialer.session.mux.send_eof(channel)
        dialer.session.flush_soon()
        assert await stream.read() == b"login: "
        assert await stream.read() == b""
        stream.write_eof()
        await until(lambda: EofReceived(channel) in recorder.events)
        await until(lambda: dialer.session.mux.channels == 0)


async def test_a_stream_survives_its_link_without_a_lost_or_doubled_byte(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        stream, channel = await open_stream(msp, dialer, recorder)
        for number in range(5):
            stream.write(b"before %d " % number)
            dialer.reconnect("test")
            stream.write(b"after %d " % number)
            await until(functools.partial(resumed, recorder, number + 1))
        await until(lambda: b"after 4" in received(recorder, channel))
        expected = b"".join(b"before %d after %d " % (n, n) for n in range(5))
        assert received(recorder, channel) == expected
        assert recorder.ups == [True] + [False] * 5


def resumed(recorder: Recorder, times: int) -> bool:
    return recorder.ups[1:] == [False] * times


def received(recorder: Recorder, channel: int) -> bytes:
    return b"".join(
        e.data for e in recorder.events if isinstance(e, DataReceived) and e.channel == channel
    )


async def test_goaway_is_make_before_break(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        stream, channel = await open_stream(msp, dialer, recorder)
        old, leaving = dialer.session, msp.sessions.locate("gw-1")
        assert leaving is not None
        leaving.send_away("maintenance", "", 30)
        await until(lambda: recorder.ups == [True, True])
        assert msp.sessions.locate("gw-1") is not leaving
        stream.write(b"still here")
        await until(lambda: DataReceived(channel, b"still here") in recorder.events)
        stream.write_eof()
        await until(lambda: EofReceived(channel) in recorder.events)
        old.mux.send_eof(channel)
        old.flush_soon()
        assert await stream.read() == b""
        await until(lambda: leaving.ended)
        assert dialer.connected


async def test_a_session_that_is_left_stays_for_what_runs_in_it(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        leaving = msp.sessions.locate("gw-1")
        assert leaving is not None
        recorder.used.add(dialer.session)
        leaving.send_away("maintenance", "", 30)
        await until(lambda: recorder.ups == [True, True])
        await asyncio.sleep(0.5)
        assert not leaving.ended
        recorder.used.clear()
        await until(lambda: leaving.ended)
        assert dialer.connected


async def test_of_two_sessions_that_are_left_the_older_ends(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        streams = []
        for links in (1, 2):
            recorder.events.clear()
            stream, channel = await open_stream(msp, dialer, recorder)
            streams.append(stream)
            leaving = msp.sessions.locate("gw-1")
            assert leaving is not None
            leaving.send_away("maintenance", "", 30)
            await until(functools.partial(lambda count: len(recorder.ups) > count, links))
        with pytest.raises(ChannelReset, match="moved to another session"):
            await streams[0].read()
        ends = [e for e in recorder.events if isinstance(e, ChannelEnded)]
        reason = "the MSP sends us on once more"
        assert ends == [ChannelEnded(channel, Code.SESSION_LOST, reason)]
        streams[1].write(b"still here")
        await until(lambda: DataReceived(channel, b"still here") in recorder.events)


async def send_away_each(
    msp: Peers, monkeypatch: pytest.MonkeyPatch, healthy: float
) -> tuple[Dialer, Recorder]:
    """A gateway whose every WELCOME has a GOAWAY behind it; its first pause would be 30 s."""
    admit = msp.listener._welcome

    def welcome_and_away(link: Any, session: Any, *rest: Any) -> None:
        admit(link, session, *rest)
        asyncio.get_running_loop().call_later(0.1, session.send_away, "again", "", 5)

    monkeypatch.setattr(msp.listener, "_welcome", welcome_and_away)
    backoff = BackoffConfig(first=30.0, cap=60.0, healthy=healthy)
    dialer, recorder, _ = msp.start_gateway(dataclasses.replace(msp.config(), backoff=backoff))
    return dialer, recorder


async def test_an_msp_that_sends_everybody_on_is_not_dialled_without_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder = await send_away_each(msp, monkeypatch, healthy=10.0)
        # At once for the first GOAWAY: an orderly restart right after we came costs no pause.
        await until(lambda: len(recorder.ups) == 2)
        await asyncio.sleep(0.7)
        assert len(recorder.ups) == 2
        assert not dialer.connected
        # Where nothing is connected a change of the WAN cuts the pause.
        dialer.wan_changed("test")
        await until(lambda: len(recorder.ups) > 2)


async def test_each_link_that_lived_earns_the_next_one_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peers(tmp_path) as msp:
        _, recorder = await send_away_each(msp, monkeypatch, healthy=0.05)
        await until(lambda: len(recorder.ups) == 5)


async def test_goaway_does_not_send_the_gateway_where_its_configuration_does_not(
    tmp_path: Path,
) -> None:
    async with peers(tmp_path) as msp:
        trap = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        port = trap.sockets[0].getsockname()[1]
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        for address in (f"127.0.0.1:{port}", "no address", "a..b:443"):
            session = msp.sessions.locate("gw-1")
            assert session is not None
            links = len(recorder.ups)
            session.send_away("elsewhere", address, 5)
            await until(functools.partial(lambda seen: len(recorder.ups) > seen, links))
        assert dialer.counters["attempts_failed"] == 0
        trap.close()
        await trap.wait_closed()


async def test_a_goaway_right_behind_the_welcome_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peers(tmp_path) as msp:
        admit = msp.listener._welcome

        def welcome_and_away(link: Any, session: Any, *rest: Any) -> None:
            admit(link, session, *rest)
            if not msp.registry.observed:
                # In the same turn: the gateway reads both at once.
                msp.registry.observed.append(Lease(TARGET.mac, TARGET.address, 1))
                session.send_away("at once", "", 5)

        monkeypatch.setattr(msp.listener, "_welcome", welcome_and_away)
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups == [True, True])
        assert dialer.connected


async def test_what_does_not_leave_in_time_is_reset(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        stream, _ = await open_stream(msp, dialer, recorder)
        leaving = msp.sessions.locate("gw-1")
        assert leaving is not None
        leaving.send_away("maintenance", "", 1)
        with pytest.raises(ChannelReset, match="maintenance"):
            await stream.read()
        await until(lambda: any(isinstance(e, ChannelEnded) for e in recorder.events))
        assert dialer.connected


async def test_a_restarted_msp_means_one_reset_for_each_stream(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        stream, channel = await open_stream(msp, dialer, recorder)
        await msp.stop_msp()
        with pytest.raises(ChannelReset, match="service stops"):
            await stream.read()
        await msp.start_msp()
        await until(lambda: len(recorder.ups) == 2)
        assert recorder.ups == [True, True]
        ends = [e for e in recorder.events if isinstance(e, ChannelEnded)]
        assert [(e.channel, e.code) for e in ends] == [(channel, Code.SESSION_LOST)]


async def test_a_call_whose_session_is_lost_has_an_unknown_outcome(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        _, recorder, task = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)

        async def restart() -> None:
            await until(lambda: message_of(recorder, Call))
            task.cancel()
            await asyncio.wait([task])
            msp.start_gateway(msp.config())

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(restart())
            with pytest.raises(LinkLost, match="outcome unknown"):
                await call(msp)


async def test_the_certificate_of_an_unknown_gateway_is_refused(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config("stranger"))
        await until(lambda: "not that of an enrolled gateway" in dialer.last_error)
        assert recorder.ups == []
        assert msp.sessions.all() == []


async def test_a_certificate_of_another_ca_is_refused_in_the_handshake(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        other = Peers(tmp_path / "other")
        foreign = other.config()
        config = dataclasses.replace(msp.config(), tls=foreign.tls)
        dialer, recorder, _ = msp.start_gateway(config)
        await until(lambda: "certificate of the peer" in dialer.last_error)
        assert recorder.ups == []


async def test_an_msp_with_another_name_is_refused(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        peer = MspPeerConfig((f"127.0.0.1:{msp.port}",), "other.example", 5.0)
        config = dataclasses.replace(msp.config(), msp=peer)
        dialer, recorder, _ = msp.start_gateway(config)
        await until(lambda: "ostname mismatch" in dialer.last_error)
        assert recorder.ups == []


async def test_a_second_box_with_the_same_identity_is_held_off(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        config = msp.config()
        msp.start_gateway(config)
        dialer, _, _ = msp.start_gateway(config)
        await until(
            lambda: (
                "DUPLICATE_IDENTITY" in dialer.last_error
                or msp.listener.counters["refused_duplicate_identity"]
            )
        )
        assert len(msp.sessions.all()) == 1


async def test_the_link_leaves_from_the_configured_source(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        config = dataclasses.replace(msp.config(), uplink=UplinkConfig(source="127.0.0.9"))
        _, recorder, _ = msp.start_gateway(config)
        await until(lambda: recorder.ups)
        session = msp.sessions.locate("gw-1")
        assert session is not None
        assert session.observed_address == "127.0.0.9"


async def test_every_address_is_tried(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            dead = unused.getsockname()[1]
        config = msp.config()
        peer = dataclasses.replace(config.msp, address=(f"127.0.0.1:{dead}", *config.msp.address))
        dialer, recorder, _ = msp.start_gateway(dataclasses.replace(config, msp=peer))
        await until(lambda: recorder.ups)
        assert dialer.counters["attempts_failed"] == 1


async def test_the_link_goes_over_ipv6_as_well(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        await msp.stop_msp()
        await msp.start_msp(host="::1")
        config = msp.config()
        address = (f"127.0.0.1:{msp.port}", f"[::1]:{msp.port}")
        peer = dataclasses.replace(config.msp, address=address)
        _, recorder, _ = msp.start_gateway(dataclasses.replace(config, msp=peer))
        await until(lambda: recorder.ups)
        session = msp.sessions.locate("gw-1")
        assert session is not None
        assert session.observed_address == "::1"


async def test_once_the_clock_is_set_certificates_are_verified_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = False
    monkeypatch.setattr("gwmodule.uplink.dialer.clock_is_trusted", lambda: trusted)
    monkeypatch.setattr("gwmodule.uplink.dialer.CLOCK_CHECK", 0.02)
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        await asyncio.sleep(0.1)
        assert recorder.ups == [True]
        trusted = True
        await until(lambda: recorder.ups == [True, False])
        assert "verified again" in dialer.last_error


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", bytes(64), b"\x16\x03\x01\xff\xff" + bytes(200)],
    ids=["http", "zeros", "broken client hello"],
)
async def test_garbage_at_the_listener_costs_a_connection_and_nothing_else(
    tmp_path: Path, garbage: bytes
) -> None:
    async with peers(tmp_path) as msp:
        reader, writer = await asyncio.open_connection("127.0.0.1", msp.port)
        writer.write(garbage)
        await writer.drain()
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()
        assert msp.listener.counters["strangers_lost"] == 1
        _, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
