import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import cast

import pytest

from gwmodule.amt.presence import probe
from gwmodule.errors import DeviceUnreachable, PolicyRefused
from gwmodule.wire.notices import Presence, Provisioning
from tests.amt.replay import REALM, SERVER, DeviceServer, Request

HERE = IPv4Address("127.0.0.1")
MAC = bytes.fromhex("020000000001")
# AMT 12, both ports open, state post (reference/amt-protocols.md 3.11); the tag follows the type.
PONG = bytes.fromhex(
    "060000060000 11be 40 01 0010 00000157 4260 c0 06 000000000000 0000".replace(" ", "")
)

OpenSocket = Callable[[IPv4Address, int, bytes], Awaitable[socket.socket]]


async def refused(address: IPv4Address, port: int, mac: bytes) -> socket.socket:
    raise DeviceUnreachable(f"{address} port {port}: Connection refused")


async def silent(address: IPv4Address, port: int, mac: bytes) -> socket.socket:
    await asyncio.sleep(60)
    raise AssertionError("nobody waits that long")


async def forbidden(address: IPv4Address, port: int, mac: bytes) -> socket.socket:
    raise PolicyRefused("other-mac", "another PC has this address")


def to(ports: dict[int, int], kind: int = socket.SOCK_STREAM) -> OpenSocket:
    async def open_socket(address: IPv4Address, port: int, mac: bytes) -> socket.socket:
        if port not in ports:
            return await refused(address, port, mac)
        sock = socket.socket(socket.AF_INET, kind)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (str(address), ports[port]))
        return sock

    return open_socket


async def look(dial: OpenSocket, udp: OpenSocket, within: float = 2.0) -> Presence | None:
    started = asyncio.get_running_loop().time()
    presence = await probe(HERE, MAC, dial=dial, udp=udp, timeout=within)
    assert asyncio.get_running_loop().time() - started < within + 0.5
    return presence


def never(request: Request) -> bytes:
    raise AssertionError("a probe does not log in")


class Ponger(asyncio.DatagramProtocol):
    """Answers pings with `pong`, but only from the `from_ping`th on."""

    def __init__(self, pong: bytes, from_ping: int = 1) -> None:
        self._pong = pong
        self._left = from_ping

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._left -= 1
        if self._left <= 0:
            self.transport.sendto(self._pong, addr)


async def ponger(pong: bytes, from_ping: int = 1) -> tuple[asyncio.DatagramTransport, int]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: Ponger(pong, from_ping), local_addr=(str(HERE), 0)
    )
    return transport, transport.get_extra_info("sockname")[1]


@pytest.mark.parametrize("dial", [refused, silent, forbidden])
@pytest.mark.parametrize("udp", [refused, silent, forbidden])
async def test_a_host_without_amt_is_nothing(dial: OpenSocket, udp: OpenSocket) -> None:
    assert await look(dial, udp, within=0.2) is None


async def test_a_pong_alone_is_presence() -> None:
    transport, port = await ponger(PONG)
    presence = await look(silent, to({623: port}, socket.SOCK_DGRAM), within=0.5)
    transport.close()
    assert presence == Presence(MAC, HERE, Provisioning.POST)


async def test_a_lost_ping_is_repeated() -> None:
    transport, port = await ponger(PONG, from_ping=3)
    presence = await look(refused, to({623: port}, socket.SOCK_DGRAM), within=0.6)
    transport.close()
    assert presence is not None


async def test_a_device_that_just_starts_is_pinged_again() -> None:
    """It listened on TCP already, and refused the ping."""
    transport, port = await ponger(PONG)
    pings = 0

    async def udp(address: IPv4Address, number: int, mac: bytes) -> socket.socket:
        nonlocal pings
        pings += 1
        open_socket = refused if pings == 1 else to({623: port}, socket.SOCK_DGRAM)
        return await open_socket(address, number, mac)

    async with DeviceServer(never).serving() as server:
        presence = await look(to({16992: server.port}), udp, within=1.5)
    transport.close()
    assert presence is not None
    assert (presence.ports, presence.provisioning) == ((16992,), Provisioning.POST)
    assert pings == 2


async def test_garbage_for_a_pong_is_nothing() -> None:
    transport, port = await ponger(b"\x06" * 1400)
    presence = await look(refused, to({623: port}, socket.SOCK_DGRAM), within=0.3)
    transport.close()
    assert presence is None


async def test_realm_and_firmware_are_read_without_a_login() -> None:
    async with DeviceServer(never).serving() as server:
        presence = await look(to({16992: server.port}), silent, within=1.0)
    assert presence == Presence(
        MAC, HERE, Provisioning.UNKNOWN, ports=(16992,), realm=REALM, server=SERVER
    )
    assert [request.headers.get("authorization") for request in server.requests] == [None]


async def test_a_device_that_accepts_and_stays_silent_has_an_open_port() -> None:
    async with DeviceServer(never, delay=60).serving() as server:
        presence = await look(to({16992: server.port, 16994: server.port}), refused, within=0.3)
    assert presence is not None
    assert presence.ports == (16992, 16994)
    assert presence.realm == ""


async def test_tls_that_does_not_come_about_is_only_an_open_port() -> None:
    async with DeviceServer(never).serving() as server:
        presence = await look(to({16993: server.port}), refused, within=0.5)
    assert presence is not None
    assert (presence.ports, presence.pin) == ((16993,), bytes(32))
