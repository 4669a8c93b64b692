import asyncio
from pathlib import Path

import pytest

from gwmodule.errors import ChannelReset, Code, LinkLost
from gwmodule.msp.traffic import Direction
from gwmodule.wire.events import ChannelOpened
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import GoAway
from tests.uplink.peers import peers, until
from tests.uplink.test_dialer import TARGET, open_stream


async def test_what_a_stream_carries_is_counted_over_links_and_sessions(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        traffic = msp.sessions.traffic
        stream, channel = await open_stream(msp, dialer, recorder)
        stream.write(b"root\r")
        dialer.session.mux.send(channel, b"login: ", 0.0)
        dialer.session.flush_soon()
        assert await stream.read() == b"login: "
        assert traffic.resumed == 0
        dialer.reconnect("test")
        await until(lambda: recorder.ups == [True, False])
        assert (traffic.resumed, traffic.lost) == (1, 0)
        stream.priority = Priority.BULK
        stream.write(bytes(1000))
        session = msp.sessions.locate("gw-1")
        assert session is not None
        assert session.buffered >= 1000
        session.end(Code.SESSION_LOST, "test")
        assert (traffic.resumed, traffic.lost) == (1, 1)
        assert dict(traffic.carried) == {
            (Priority.INTERACTIVE, Direction.TO_DEVICE): 5,
            (Priority.INTERACTIVE, Direction.FROM_DEVICE): 7,
            (Priority.BULK, Direction.TO_DEVICE): 1000,
        }


async def test_a_stream_that_is_not_opened_is_counted_by_its_reason(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        session = msp.sessions.locate("gw-1")
        assert session is not None

        async def refuse() -> None:
            await until(lambda: any(isinstance(e, ChannelOpened) for e in recorder.events))
            (channel,) = (e.channel for e in recorder.events if isinstance(e, ChannelOpened))
            dialer.session.mux.refuse(channel, Code.REFUSED_POLICY, "not on this LAN")
            dialer.session.flush_soon()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refuse())
            with pytest.raises(ChannelReset, match="not on this LAN"):
                await session.open_stream(TARGET, Priority.BULK)
        session.end(Code.SHUTDOWN, "test")
        with pytest.raises(ChannelReset):
            await session.open_stream(TARGET, Priority.BULK)
        assert dict(msp.sessions.traffic.refused) == {
            Code.REFUSED_POLICY: 1, Code.SESSION_LOST: 1,
        }  # fmt: skip


async def test_a_link_that_is_lost_is_counted(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        session = msp.sessions.locate("gw-1")
        assert session is not None
        link = session._link
        assert link is not None
        link.abort(LinkLost("test"))
        await until(lambda: recorder.ups == [True, False])
        assert dict(msp.sessions.traffic.links_lost) == {Code.CONNECTION_LOST: 1}
        dialer.reconnect("test")
        await until(lambda: recorder.ups == [True, False, False])
        assert sum(msp.sessions.traffic.links_lost.values()) == 2


async def test_a_link_that_another_one_replaces_is_counted_once(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        _, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        session = msp.sessions.locate("gw-1")
        assert session is not None
        session.drop_link(GoAway(Code.REPLACED, "a newer link"))
        assert dict(msp.sessions.traffic.links_lost) == {Code.REPLACED: 1}
