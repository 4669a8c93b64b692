"""The LAN listener for Hello messages (TCP, port 9971).

A device connects to the address that somebody typed into it, or to the host `provisionserver`,
writes one message and closes. Nothing is ever answered (reference/amt-protocols.md 1). Whoever
sends something else, too slowly, too much or too often is counted and cut off; the others do not
notice.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from typing import TypeAlias, cast
from uuid import UUID

from gwmodule.capture.hello import HelloError, HelloReader, ParsedHello
from gwmodule.telemetry import EventLog

# A device writes its Hello at once; a slow network may take a few retransmissions.
TIME_LIMIT = 10.0
MAX_CONNECTIONS = 64
MAX_CONNECTIONS_PER_SOURCE = 4

log = EventLog("gwmodule.relay")

# uuid, source address, version, retry count, the message as received
OnHello: TypeAlias = Callable[[UUID, IPv4Address, int, int, bytes], None]


class HelloListener:
    """Accepts Hellos on the given addresses and calls `on_hello` for each.

    `counters` holds what became of the connections: accepted, hello, garbage, truncated,
    oversized, slow, empty, lost, limit (too many), limit_source (too many of one address), not_lan
    (an inherited socket heard it on another address).
    """

    def __init__(
        self,
        port: int,
        on_hello: OnHello,
        time_limit: float = TIME_LIMIT,
        inherited: socket.socket | None = None,
    ) -> None:
        """`inherited` is a socket that somebody else keeps open at our port, on every address."""
        self._port = port
        self._inherited = inherited
        self._wanted: set[tuple[str, IPv4Address]] = set()
        self._on_hello = on_hello
        self._time_limit = time_limit
        self._servers: dict[tuple[str, IPv4Address], asyncio.Server] = {}
        self._failed: dict[tuple[str, IPv4Address], str] = {}
        self._connections: set[_Connection] = set()
        self._per_source: Counter[IPv4Address] = Counter()
        self.counters: Counter[str] = Counter()

    @property
    def listening(self) -> dict[IPv4Address, int]:
        """Which addresses are served, and at which port."""
        if self._inherited is not None:
            port = self._inherited.getsockname()[1]
            return {address: port for _, address in self._wanted if self._servers}
        return {
            address: server.sockets[0].getsockname()[1]
            for (_, address), server in self._servers.items()
        }

    @property
    def failed(self) -> dict[IPv4Address, str]:
        """Which wanted addresses are not served, and why; `set_addresses` tries them again."""
        return {address: reason for (_, address), reason in self._failed.items()}

    async def set_addresses(self, addresses: Iterable[tuple[str, IPv4Address]]) -> None:
        """Serve exactly these (interface name, address) pairs; those that stay are not disturbed.

        An address that cannot be bound is in `failed` afterwards; call again to retry.
        """
        wanted = set(addresses)
        self._wanted = wanted
        if self._inherited is not None:
            await self._serve_inherited(self._inherited)
            return
        for place in self._servers.keys() - wanted:
            self._servers.pop(place).close()
            log.info("listener_closed", interface=place[0], address=place[1])
        self._failed = {place: why for place, why in self._failed.items() if place in wanted}
        loop = asyncio.get_running_loop()
        for place in sorted(wanted - self._servers.keys()):
            ifname, address = place
            try:
                # Bound here and not by the loop, whose message for a failure names no reason.
                sock = socket.create_server((str(address), self._port), backlog=MAX_CONNECTIONS)
                self._servers[place] = await loop.create_server(
                    lambda: _Connection(self), sock=sock
                )
            except OSError as exc:
                reason = exc.strerror or str(exc)
                if self._failed.get(place) != reason:
                    log.warning("listener_failed", address=address, port=self._port, reason=reason)
                self._failed[place] = reason
            else:
                self._failed.pop(place, None)
                log.info("listener_open", interface=ifname, address=address, port=self._port)

    async def _serve_inherited(self, inherited: socket.socket) -> None:
        place = ("", IPv4Address(0))
        if not self._wanted:
            for server in self._servers.values():
                server.close()
            self._servers.clear()
        elif not self._servers:
            loop = asyncio.get_running_loop()
            # A copy: the socket outlives this listener, and keeps what arrives meanwhile.
            self._servers[place] = await loop.create_server(
                lambda: _Connection(self), sock=inherited.dup()
            )
            log.info("listener_open", interface="inherited", address="*", port=self._port)

    async def close(self) -> None:
        """Stop listening and drop the connections."""
        await self.set_addresses(())
        for connection in tuple(self._connections):
            connection.abort()

    def _admit(self, connection: _Connection, source: IPv4Address, own: IPv4Address) -> bool:
        # An inherited socket hears on every address, the WAN's too.
        if self._inherited is not None and own not in {address for _, address in self._wanted}:
            self.counters["not_lan"] += 1
            return False
        if len(self._connections) >= MAX_CONNECTIONS:
            self.counters["limit"] += 1
            return False
        if self._per_source[source] >= MAX_CONNECTIONS_PER_SOURCE:
            self.counters["limit_source"] += 1
            return False
        self.counters["accepted"] += 1
        self._connections.add(connection)
        self._per_source[source] += 1
        return True

    def _release(self, connection: _Connection, source: IPv4Address) -> None:
        self._connections.remove(connection)
        self._per_source[source] -= 1
        if not self._per_source[source]:
            del self._per_source[source]

    def _hello(self, hello: ParsedHello, source: IPv4Address) -> None:
        self.counters["hello"] += 1
        self._on_hello(hello.uuid, source, hello.version, hello.retry, hello.raw)


class _Connection(asyncio.Protocol):
    def __init__(self, listener: HelloListener) -> None:
        self._listener = listener
        self._reader = HelloReader()
        self._transport: asyncio.Transport | None = None
        self._source = IPv4Address(0)
        self._deadline: asyncio.TimerHandle | None = None
        self._empty = True
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._source = IPv4Address(transport.get_extra_info("peername")[0])
        own = IPv4Address(transport.get_extra_info("sockname")[0])
        if not self._listener._admit(self, self._source, own):
            self._over = True
            self._transport.abort()
            return
        self._deadline = asyncio.get_running_loop().call_later(
            self._listener._time_limit, self._end, "slow"
        )

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        self._empty = False
        try:
            hello = self._reader.receive_data(data)
        except HelloError as exc:
            self._end(exc.fault.value)
        else:
            if hello is not None:
                self._finish(hello)

    def eof_received(self) -> None:
        if self._over:
            return
        if self._empty:  # A port scan, or a health check.
            self._end("empty")
            return
        try:
            self._finish(self._reader.receive_eof())
        except HelloError as exc:
            self._end(exc.fault.value)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is None:
            return  # Never admitted.
        if not self._over:
            self._end("lost")
        self._listener._release(self, self._source)

    def abort(self) -> None:
        self._end("aborted")

    def _finish(self, hello: ParsedHello) -> None:
        self._end("")
        self._listener._hello(hello, self._source)

    def _end(self, reason: str) -> None:
        assert self._transport is not None  # noqa: S101
        assert self._deadline is not None  # noqa: S101
        self._over = True
        self._deadline.cancel()
        if reason:
            self._listener.counters[reason] += 1
            self._transport.abort()
        else:
            self._transport.close()
