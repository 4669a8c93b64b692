"""The active probe: is there AMT at this address, and what does it say without a login?

All at once and within one timeout, because most of a home's hosts answer none of it:

    UDP 623            RMCP presence ping                    provisioning state
    TCP 16992, 16993   POST /wsman without Authorization     realm, Server, TLS leaf
    TCP 16994, 16995   connect and close                     open or not

Nothing here is authenticated and no credential is involved (reference/amt-protocols.md 3.1, 3.11).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import IPv4Address

from gwmodule.amt import wsman
from gwmodule.amt.connection import (
    HttpConnection,
    connect_plain,
    connect_tls,
    legacy_context,
)
from gwmodule.amt.digest import parse_challenge
from gwmodule.capture.rmcp import Pong, build_presence_ping, parse_pong
from gwmodule.errors import DeviceAnswerError, GatewayError
from gwmodule.ports import REDIRECTION_TCP, REDIRECTION_TLS, RMCP_PORT, WSMAN_HTTP, WSMAN_HTTPS
from gwmodule.wire.notices import Presence, Provisioning

# Pings in one probe: UDP gets lost, and the first may only have woken the ME.
PINGS = 3
_MAX_PONG = 1500
# One for all of a probe: a pong that comes late is still an answer to it.
_TAG = 1

# (address, port, mac) to a connected, non-blocking socket of the right kind.
OpenSocket = Callable[[IPv4Address, int, bytes], Awaitable[socket.socket]]


async def probe(
    address: IPv4Address,
    mac: bytes,
    *,
    dial: OpenSocket,
    udp: OpenSocket,
    timeout: float,  # noqa: ASYNC109  (what came in by then is the result)
) -> Presence | None:
    """What answered within `timeout` seconds; None when nothing did or the gateway may not ask."""
    probing = _Probing(address, mac, dial, udp, timeout)
    # What came in until now is the result; the rest of the host stays silent for good.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(probing.ping(), name="ping")
                tasks.create_task(probing.ask_plain(), name="http")
                tasks.create_task(probing.ask_tls(), name="https")
                for port in (REDIRECTION_TCP, REDIRECTION_TLS):
                    tasks.create_task(probing.look(port), name=f"port-{port}")
            await probing.ping_again()
    return probing.result()


async def ping(sock: socket.socket, interval: float, pings: int = PINGS) -> Pong | None:
    """The pong to one of `pings` presence pings; each is waited for `interval` seconds. OSError."""
    loop = asyncio.get_running_loop()
    for _ in range(pings):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval):
                await loop.sock_sendall(sock, build_presence_ping(_TAG))
                while True:
                    pong = parse_pong(await loop.sock_recv(sock, _MAX_PONG), _TAG)
                    if pong is not None:
                        return pong
    return None


async def ask(connection: HttpConnection, host: str) -> tuple[str, str]:
    """Server header and realm of an unauthenticated POST, each empty where there is none: firmware
    answers 401 with its realm, in every state. DeviceUnreachable or DeviceAnswerError.
    """
    headers = [("Host", host), ("Content-Type", "application/soap+xml;charset=UTF-8")]
    answer = await connection.post(headers, wsman.identify())
    realm = ""
    for value in answer.all("www-authenticate"):
        with contextlib.suppress(DeviceAnswerError):
            realm = parse_challenge(value).realm
    return answer.header("server"), realm


class _Probing:
    def __init__(
        self, address: IPv4Address, mac: bytes, dial: OpenSocket, udp: OpenSocket, timeout: float
    ) -> None:
        self._presence = Presence(mac, address, Provisioning.UNKNOWN)
        self._ports: set[int] = set()
        self._dial = dial
        self._udp = udp
        self._ping_interval = timeout / PINGS
        self._answered = False

    def result(self) -> Presence | None:
        presence = self._presence
        presence.ports = tuple(sorted(self._ports))
        return presence if self._answered or self._ports else None

    async def ping(self) -> None:
        presence = self._presence
        with contextlib.suppress(OSError, GatewayError):
            sock = await self._udp(presence.address, RMCP_PORT, presence.mac)
            with sock:
                pong = await ping(sock, self._ping_interval)
            if pong is not None:
                presence.provisioning = pong.provisioning
                self._answered = True

    async def ping_again(self) -> None:
        """The ping was refused, and yet there is AMT: a device that just starts, or has RMCP off.
        Without a pong one in setup looks like one that is provisioned.
        """
        if self._ports and not self._answered:
            await asyncio.sleep(self._ping_interval)
            await self.ping()

    async def ask_plain(self) -> None:
        with contextlib.suppress(OSError, GatewayError):
            sock = await self._open(WSMAN_HTTP)
            async with _closing(await connect_plain(sock)) as connection:
                await self._ask(connection)

    async def ask_tls(self) -> None:
        with contextlib.suppress(OSError, GatewayError):
            sock = await self._open(WSMAN_HTTPS)
            # Any version and cipher: this reads a certificate, it protects nothing.
            async with _closing(await connect_tls(sock, legacy_context())) as connection:
                self._presence.pin = connection.pin
                await self._ask(connection)

    async def _ask(self, connection: HttpConnection) -> None:
        presence = self._presence
        server, realm = await ask(connection, str(presence.address))
        presence.server = server or presence.server
        presence.realm = realm or presence.realm

    async def look(self, port: int) -> None:
        with contextlib.suppress(OSError, GatewayError):
            (await self._open(port)).close()

    async def _open(self, port: int) -> socket.socket:
        sock = await self._dial(self._presence.address, port, self._presence.mac)
        self._ports.add(port)
        return sock


@contextlib.asynccontextmanager
async def _closing(connection: HttpConnection) -> AsyncIterator[HttpConnection]:
    try:
        yield connection
    finally:
        connection.close()
