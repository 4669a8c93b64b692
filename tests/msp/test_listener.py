"""What the listener does while the registry takes its time, or cannot be asked at all.

That two ends of a link get along is tests/uplink/test_dialer.py.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from gwmodule.errors import Code
from gwmodule.msp import listener
from gwmodule.msp.database import RegistryError
from gwmodule.msp.registry import Event
from gwmodule.wire.events import MessageReceived
from gwmodule.wire.messages import Notice, NoticeAck
from gwmodule.wire.notices import LeaseEnd
from tests.faults.test_bad_peers import bad_peer, goaway, greeting
from tests.uplink.peers import MemoryRegistry, Peers, Recorder, peers, until
from tests.uplink.test_dialer import open_stream

NOTICE = Notice(41, 0.5, LeaseEnd(b"\2\0\0\0\0\1", IPv4Address("192.168.1.10")))


@dataclass
class SlowRegistry(MemoryRegistry):
    """Answers when the test says so, or not at all."""

    away: bool = False
    open: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0

    async def is_gateway_allowed(self, gateway: str, fingerprint: str) -> bool:
        self.asked += 1
        await self._wait()
        return await super().is_gateway_allowed(gateway, fingerprint)

    async def record(self, events: Sequence[Event]) -> list[bool]:
        await self._wait()
        return await super().record(events)

    async def _wait(self) -> None:
        await self.open.wait()
        if self.away:
            raise RegistryError("database x: connection refused")


async def with_registry(msp: Peers) -> SlowRegistry:
    await msp.stop_msp()
    registry = SlowRegistry()
    registry.open.set()
    msp.registry = registry
    await msp.start_msp()
    return registry


def acks(recorder: Recorder) -> list[NoticeAck]:
    return [
        event.message
        for event in recorder.events
        if isinstance(event, MessageReceived) and isinstance(event.message, NoticeAck)
    ]


async def test_a_notice_is_acknowledged_when_the_database_is_back(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        registry = await with_registry(msp)
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups and registry.connected)
        registry.away = True
        dialer.session.mux.send_message(NOTICE)
        dialer.session.flush_soon()
        await until(lambda: msp.listener.counters["commit_failed"])
        assert acks(recorder) == []
        assert dialer.connected
        registry.away = False
        await until(lambda: acks(recorder) == [NoticeAck(41)])
        assert registry.observed == [NOTICE.observation]


async def test_an_acknowledgement_reaches_the_gateway_over_its_next_link(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        registry = await with_registry(msp)
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups and registry.connected)
        registry.open.clear()
        dialer.session.mux.send_message(NOTICE)
        dialer.session.flush_soon()
        await asyncio.sleep(0.05)
        dialer.reconnect("test")
        await until(lambda: registry.asked == 2)
        registry.open.set()
        await until(lambda: acks(recorder) == [NoticeAck(41)])
        assert recorder.ups == [True, False]


async def test_a_gateway_that_cannot_be_looked_up_is_told_and_comes_again(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        registry = await with_registry(msp)
        registry.away = True
        async with bad_peer(msp) as (reader, writer):
            writer.write(greeting())
            said = await goaway(reader)
        assert (said.code, said.reason) == (Code.INTERNAL, "the registry cannot be read now")
        _, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: msp.listener.counters["admission_failed"] >= 2)
        assert recorder.ups == []
        registry.away = False
        await until(lambda: recorder.ups == [True])


async def test_what_comes_before_the_welcome_waits_and_is_not_lost(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        registry = await with_registry(msp)
        registry.open.clear()
        async with bad_peer(msp) as (reader, writer):
            writer.write(greeting())
            await until(lambda: registry.asked)
            # It fills the kernel's buffers and not the service's memory.
            with pytest.raises(TimeoutError):
                await push(writer, 64 << 20)
            registry.open.set()
            said = await goaway(reader)
        assert said.code is Code.FRAME_LAYOUT


async def push(writer: asyncio.StreamWriter, size: int) -> None:
    async with asyncio.timeout(1):
        for _ in range(size >> 20):
            writer.write(bytes(1 << 20))
            await writer.drain()


async def test_a_link_that_dies_while_it_waits_leaves_nothing(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        registry = await with_registry(msp)
        registry.open.clear()
        async with bad_peer(msp) as (_, writer):
            writer.write(greeting())
            await until(lambda: registry.asked)
        registry.open.set()
        _, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        await until(lambda: all(s.gateway == "gw-1" or not s.connected for s in msp.sessions.all()))
        assert not msp.listener.strangers


async def test_the_end_of_a_session_that_was_replaced_does_not_end_its_gateway(
    tmp_path: Path,
) -> None:
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups and msp.registry.connected)
        # A stream keeps the old session until its successor has come.
        await open_stream(msp, dialer, recorder)
        leaving = msp.sessions.locate("gw-1")
        assert leaving is not None
        leaving.send_away("maintenance", "", 30)
        await until(lambda: recorder.ups == [True, True] and msp.registry.connected)
        leaving.end(Code.SHUTDOWN, "maintenance")
        await asyncio.sleep(0.05)
        assert msp.registry.connected == ["gw-1"]


async def test_silent_connections_do_not_wait_for_the_registry(tmp_path: Path) -> None:
    async with peers(tmp_path) as msp:
        registry = await with_registry(msp)
        idle = [socket.create_connection(("127.0.0.1", msp.port)) for _ in range(50)]
        _, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        assert registry.asked == 1
        for sock in idle:
            sock.close()


async def test_one_host_cannot_keep_gateways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_STRANGERS", 8)
    async with peers(tmp_path) as msp:
        address = ("127.0.0.1", msp.port)
        held = [
            socket.create_connection(address, source_address=("127.0.0.2", 0)) for _ in range(30)
        ]
        await until(lambda: msp.listener.strangers.refused)
        _, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        assert msp.listener.strangers.displaced == 1
        for sock in held:
            sock.close()


async def test_many_gateways_behind_one_address_get_in_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_STRANGERS", 3)
    async with peers(tmp_path) as msp:
        names = [f"home-{number}" for number in range(30)]
        msp.registry.allowed.update(names)
        recorders = [msp.start_gateway(msp.config(name))[1] for name in names]
        await until(lambda: all(recorder.ups for recorder in recorders))
        assert msp.listener.strangers.refused
        assert len(msp.listener.strangers) == 0
