from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwmodule.config import Config, LanConfig
from gwmodule.gateway import Relay
from gwmodule.lan.model import AddressChange, Interface, InterfaceChange
from gwmodule.relay.listener import MAX_CONNECTIONS, MAX_CONNECTIONS_PER_SOURCE, HelloListener
from gwmodule.relay.policy import Lockdown
from gwmodule.wire.notices import MAX_HELLO
from tests.capture.frames import HELLO_A, HELLO_B, HELLO_C, UUID_A, UUID_C
from tests.uplink.peers import until

LOOPBACK = IPv4Address("127.0.0.1")
UNKNOWN_VERSION = HELLO_A[:2] + b"\x07\0" + HELLO_A[4:]
TIME_LIMIT = 0.3


@dataclass
class Lan:
    listener: HelloListener
    hellos: list[tuple[UUID, IPv4Address, int, int, bytes]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.listener.listening[LOOPBACK]

    async def connect(self, source: str = "127.0.0.1") -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, (str(LOOPBACK), self.port))
        return sock

    async def send(self, *pieces: bytes, fin: bool = True, source: str = "127.0.0.1") -> bytes:
        """Send the pieces as a device does; what the listener answered until it closed."""
        loop = asyncio.get_running_loop()
        with await self.connect(source) as sock:
            # The listener may have closed already, which is the point of many a test.
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    await loop.sock_sendall(sock, piece)
                    await asyncio.sleep(0)
                if fin:
                    sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(5):
                    return await loop.sock_recv(sock, 1000)
        return b""


@contextlib.asynccontextmanager
async def listening(time_limit: float = 5.0) -> AsyncIterator[Lan]:
    lan = Lan(HelloListener(0, lambda *hello: lan.hellos.append(hello), time_limit))
    await lan.listener.set_addresses({("lo", LOOPBACK)})
    try:
        yield lan
    finally:
        await lan.listener.close()
        await asyncio.sleep(0)


async def test_hellos_of_every_version_are_handed_on_and_nothing_is_answered() -> None:
    async with listening() as lan:
        for hello in (HELLO_A, HELLO_B, HELLO_C, UNKNOWN_VERSION):
            assert await lan.send(hello) == b""
        assert lan.hellos == [
            (UUID_A, LOOPBACK, 3, 0, HELLO_A),
            (UUID_A, LOOPBACK, 2, 3, HELLO_B),
            (UUID_C, LOOPBACK, 3, 14, HELLO_C),
            (UUID_A, LOOPBACK, 7, 0, UNKNOWN_VERSION),
        ]
        assert lan.listener.counters == {"accepted": 4, "hello": 4}


async def test_a_device_that_does_not_close_is_understood_all_the_same() -> None:
    async with listening() as lan:
        await lan.send(HELLO_A, fin=False)
        assert [hello[4] for hello in lan.hellos] == [HELLO_A]


async def test_the_source_is_the_device_s_address() -> None:
    async with listening() as lan:
        await lan.send(HELLO_A, source="127.0.0.9")
        assert lan.hellos[0][1] == IPv4Address("127.0.0.9")


@settings(max_examples=15)
@given(st.lists(st.integers(1, len(HELLO_A) - 1), max_size=10))
def test_any_segmentation_gives_the_same_hello(cuts: list[int]) -> None:
    async def main() -> None:
        async with listening() as lan:
            bounds = sorted({0, len(HELLO_A), *cuts})
            await lan.send(*(HELLO_A[a:b] for a, b in pairwise(bounds)))
            assert [hello[4] for hello in lan.hellos] == [HELLO_A]

    asyncio.run(main())


async def test_a_message_is_handed_on_once_whatever_follows_it() -> None:
    async with listening() as lan:
        await lan.send(HELLO_A + HELLO_A, HELLO_A)
        assert len(lan.hellos) == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "garbage"),
        (b"\x16\x03\x01" + bytes(200), "garbage"),
        (HELLO_A[:-1], "truncated"),
        (HELLO_A[:10], "truncated"),
        (UNKNOWN_VERSION + bytes(MAX_HELLO), "oversized"),
        (b"", "empty"),
    ],
)
async def test_what_is_no_hello_is_counted_by_reason(data: bytes, reason: str) -> None:
    async with listening() as lan:
        assert await lan.send(data) == b""
        assert lan.hellos == []
        assert lan.listener.counters == {"accepted": 1, reason: 1}
        await lan.send(HELLO_A)
        assert len(lan.hellos) == 1


async def test_a_slow_sender_is_cut_off() -> None:
    async with listening(TIME_LIMIT) as lan:
        with await lan.connect() as sock:
            loop = asyncio.get_running_loop()
            sent = 0
            with contextlib.suppress(ConnectionError):
                for byte in HELLO_A:
                    await loop.sock_sendall(sock, bytes((byte,)))
                    await asyncio.sleep(TIME_LIMIT / 20)
                    sent += 1
        assert sent < len(HELLO_A)
        assert lan.hellos == []
        assert lan.listener.counters == {"accepted": 1, "slow": 1}


async def test_a_sender_that_ended_in_time_is_not_slow_later() -> None:
    async with listening(TIME_LIMIT) as lan:
        with await lan.connect() as sock:
            await asyncio.get_running_loop().sock_sendall(sock, HELLO_A)
            await until(lambda: lan.hellos)
            await asyncio.sleep(2 * TIME_LIMIT)
        assert lan.listener.counters == {"accepted": 1, "hello": 1}


async def test_a_connection_that_breaks_off_is_counted() -> None:
    async with listening() as lan:
        with await lan.connect() as sock:
            await asyncio.get_running_loop().sock_sendall(sock, HELLO_A[:10])
            await until(lambda: lan.listener.counters["accepted"])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await until(lambda: len(lan.listener.counters) > 1)
        assert lan.listener.counters == {"accepted": 1, "lost": 1}


async def test_one_source_cannot_keep_others_out() -> None:
    async with listening() as lan:
        held = [await lan.connect("127.0.0.66") for _ in range(MAX_CONNECTIONS_PER_SOURCE + 3)]
        await until(lambda: lan.listener.counters.total() == len(held))
        assert lan.listener.counters["limit_source"] == 3
        await lan.send(HELLO_A, source="127.0.0.9")
        assert len(lan.hellos) == 1
        for sock in held:
            sock.close()
        await until(lambda: lan.listener.counters["empty"] == MAX_CONNECTIONS_PER_SOURCE)
        await lan.send(HELLO_A, source="127.0.0.66")
        assert len(lan.hellos) == 2


async def test_the_number_of_connections_is_bounded() -> None:
    async with listening() as lan:
        held = [await lan.connect(f"127.0.1.{n // 4}") for n in range(MAX_CONNECTIONS + 2)]
        await until(lambda: lan.listener.counters.total() == len(held))
        assert lan.listener.counters["limit"] == 2
        for sock in held:
            sock.close()


async def test_addresses_come_and_go_without_disturbing_the_others() -> None:
    second = IPv4Address("127.0.0.2")
    async with listening() as lan:
        port = lan.port
        await lan.listener.set_addresses({("lo", LOOPBACK), ("lo", second)})
        assert lan.port == port
        assert set(lan.listener.listening) == {LOOPBACK, second}
        await lan.listener.set_addresses({("lo", second)})
        assert set(lan.listener.listening) == {second}
        with pytest.raises(ConnectionRefusedError), socket.socket() as sock:
            sock.connect((str(LOOPBACK), port))


async def test_an_address_that_cannot_be_used_is_named_once_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    foreign = IPv4Address("203.0.113.1")
    async with listening() as lan:
        for _ in range(3):
            await lan.listener.set_addresses({("lo", LOOPBACK), ("wan", foreign)})
        assert caplog.text.count("listener_failed") == 1
        assert list(lan.listener.listening) == [LOOPBACK]
        assert "assign" in lan.listener.failed[foreign]
        await lan.listener.set_addresses({("lo", LOOPBACK)})
        assert lan.listener.failed == {}


async def test_closing_drops_connections() -> None:
    async with listening() as lan:
        with await lan.connect() as sock:
            await until(lambda: lan.listener.counters["accepted"])
            await lan.listener.close()
            assert await asyncio.get_running_loop().sock_recv(sock, 10) == b""
            assert lan.listener.counters["aborted"] == 1


async def test_an_inherited_socket_serves_the_lan_alone_and_outlives_the_listener() -> None:
    hellos: list[IPv4Address] = []
    with socket.create_server(("0.0.0.0", 0)) as inherited:
        inherited.setblocking(False)
        port = inherited.getsockname()[1]
        for _ in range(2):
            listener = HelloListener(port, lambda *h: hellos.append(h[1]), 5.0, inherited)
            lan = Lan(listener)
            await listener.set_addresses({("lo", IPv4Address("127.0.0.2"))})
            assert listener.listening == {IPv4Address("127.0.0.2"): port}
            for address in ("127.0.0.1", "127.0.0.2"):
                reader, writer = await asyncio.open_connection(address, port)
                writer.write(HELLO_A)
                # The connection to the other address is reset.
                with contextlib.suppress(OSError):
                    writer.write_eof()
                    await reader.read()
                writer.close()
            assert lan.listener.counters["not_lan"] == 1
            await listener.close()
        assert len(hellos) == 2
        # Between two listeners, callers wait instead of being refused.
        socket.create_connection(("127.0.0.2", port), timeout=1).close()


async def test_a_flood_of_hellos_leaves_the_log_to_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    relay = Relay(Config(), random.Random(7), Lockdown(False))
    monkeypatch.setattr(relay._watcher.model, "on_link", lambda address: "br-lan")
    monkeypatch.setattr(relay, "_observed", lambda: None)
    with caplog.at_level(logging.INFO, "gwmodule.relay"):
        for number in range(500):
            # Each from another address, as one host may.
            source = IPv4Address("10.0.0.1") + number
            relay._on_hello(UUID(int=number + 1), source, 2, 0, HELLO_A)
    lines = [record for record in caplog.records if "event=hello" in record.getMessage()]
    assert 20 <= len(lines) <= 25
    assert len(relay._devices.listing(0.0)) == 500


async def test_an_address_that_comes_while_another_is_opened_is_opened_too() -> None:
    relay = Relay(Config(lan=LanConfig(("lo",), 0)), random.Random(7), Lockdown(False))
    watcher = relay._watcher

    def appears(address: str) -> None:
        watcher.model.apply(AddressChange(1, IPv4Interface(f"{address}/8")))
        watcher._deliver()

    watcher.model.apply(InterfaceChange(Interface(1, "lo", up=True, running=True)))
    appears("127.0.0.1")
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(relay._listen())
        # Opening a socket takes a turn of the loop, and this is in it.
        asyncio.get_running_loop().call_soon(appears, "127.0.0.2")
        await until(lambda: len(relay._listener.listening) == 2)
        listening.cancel()
