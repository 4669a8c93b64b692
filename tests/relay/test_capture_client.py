from __future__ import annotations

import asyncio
import contextlib
import datetime
import io
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import rdpcap

from gwmodule.capture.datagrams import build_counters, build_frame, build_seen, parse_record
from gwmodule.capture.pcap import FILE_HEADER
from gwmodule.capture.service import listen
from gwmodule.errors import CaptureError
from gwmodule.relay.capture_client import CaptureClient
from gwmodule.wire.notices import Lease, Observation
from tests.capture.frames import PC, PC_MAC, ack, dhcp_frame

LEASE = Lease(PC_MAC, PC, 3600, "pc")


@dataclass
class Received:
    client: CaptureClient
    observations: asyncio.Queue[tuple[Observation, float]] = field(default_factory=asyncio.Queue)
    counters: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)


@contextlib.asynccontextmanager
async def client(path: Path) -> AsyncIterator[Received]:
    received = Received(
        CaptureClient(
            str(path),
            lambda observation, age: received.observations.put_nowait((observation, age)),
            lambda values: received.counters.put_nowait(values),
        )
    )
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(received.client.run())
        yield received
        task.cancel()


async def accept(listener: socket.socket) -> socket.socket:
    sock, _ = await asyncio.get_running_loop().sock_accept(listener)
    return sock


async def test_observations_and_counters_are_handed_on(tmp_path: Path) -> None:
    path = tmp_path / "capture.sock"
    with listen(path, 0o600) as listener:
        async with client(path) as received:
            with await accept(listener) as service:
                service.send(build_seen(LEASE))
                service.send(build_seen(LEASE, 60.0))
                service.send(build_counters({"frames": 1}))
                assert await received.observations.get() == (LEASE, 0.0)
                assert await received.observations.get() == (
                    Lease(PC_MAC, PC, 3540, "pc"),
                    60.0,
                )
                assert await received.counters.get() == {"frames": 1}
                assert received.client.connected


async def test_a_malformed_datagram_is_counted_and_the_next_one_read(tmp_path: Path) -> None:
    path = tmp_path / "capture.sock"
    with listen(path, 0o600) as listener:
        async with client(path) as received:
            with await accept(listener) as service:
                for datagram in (b"\x09", b"\x02{", build_seen(LEASE)[:-1], bytes(20000)):
                    service.send(datagram)
                service.send(build_seen(LEASE))
                assert await received.observations.get() == (LEASE, 0.0)
                assert received.client.malformed == 4


async def test_a_service_that_dies_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "capture.sock"
    async with client(path) as received:
        for _ in range(2):
            with listen(path, 0o600) as listener, await accept(listener) as service:
                service.send(build_seen(LEASE))
                assert await received.observations.get() == (LEASE, 0.0)
            path.unlink()
        assert received.client.connections == 2


async def test_a_service_that_refuses_us_is_not_connected(tmp_path: Path) -> None:
    path = tmp_path / "capture.sock"
    with listen(path, 0o600) as listener:
        async with client(path) as received:
            for _ in range(2):
                (await accept(listener)).close()
            assert not received.client.connected
            assert received.client.connections == 0


async def test_a_flood_of_datagrams_leaves_time_for_other_tasks(tmp_path: Path) -> None:
    path = tmp_path / "capture.sock"
    with listen(path, 0o600) as listener:
        async with client(path) as received:
            with await accept(listener) as service:
                for _ in range(100):
                    service.send(build_seen(LEASE))
                turns = 0
                while received.observations.qsize() < 100:
                    await asyncio.sleep(0)
                    turns += 1
    assert turns >= 100 // 16


async def asked(service: socket.socket) -> tuple[int, float] | None:
    return parse_record(await asyncio.get_running_loop().sock_recv(service, 64))


async def test_a_recording_is_a_pcap_of_what_the_service_sends(tmp_path: Path) -> None:
    path = tmp_path / "capture.sock"
    frame = dhcp_frame(ack())
    with listen(path, 0o600) as listener:
        async with client(path) as received:
            with pytest.raises(CaptureError, match="not connected"):
                received.client.record(1, 1)
            with await accept(listener) as service:
                service.setblocking(False)
                service.send(build_counters({}))
                await received.counters.get()
                chunks = received.client.record(2, 5)
                pieces = [await anext(chunks)]
                assert await asked(service) == (2, 5.0)
                with pytest.raises(CaptureError, match="somebody records already"):
                    received.client.record(1, 1)
                for _ in range(3):
                    service.send(build_frame(frame, asyncio.get_running_loop().time()))
                pieces += [piece async for piece in chunks]
                assert await asked(service) == (0, 0.0)
    packets = rdpcap(io.BytesIO(b"".join(pieces)))
    assert [bytes(packet) for packet in packets] == [frame, frame]
    now = datetime.datetime.now(datetime.UTC).timestamp()
    assert abs(float(packets[0].time) - now) < 5


async def test_a_recording_ends_with_its_time_its_reader_and_the_service(tmp_path: Path) -> None:
    path = tmp_path / "capture.sock"
    with listen(path, 0o600) as listener:
        async with client(path) as received:
            with await accept(listener) as service:
                service.setblocking(False)
                service.send(build_counters({}))
                await received.counters.get()
                assert [piece async for piece in received.client.record(9, 0.1)] == [FILE_HEADER]
                assert await asked(service) == (9, 0.1)
                assert await asked(service) == (0, 0.0)
                chunks = received.client.record(9, 5)
                await anext(chunks)
                await chunks.aclose()
                assert await asked(service) == (9, 5.0)
                assert await asked(service) == (0, 0.0)
                chunks = received.client.record(9, 5)
                await anext(chunks)
            assert [piece async for piece in chunks] == []
