"""A local TCP port that is a port of a device: for amtterm, MeshCommander, wsman, browsers.

Raw sockets instead of asyncio's streams: one `recv` becomes one message and one message one `send`,
because amtterm loses what is glued behind a reply. Half-close travels; a stream that was cut resets
the tool's connection, and the reason goes to `report`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Callable

from gwmodule.errors import ChannelReset, Code, ConfigError, GatewayError
from gwmodule.msp.client import ApiClient, ClientStream
from gwmodule.msp.subprotocol import first_leaf

CHUNK = 16384
# A browser opens six connections, MeshCommander three; more than this is a loop.
MAX_CONNECTIONS = 64


class Forward:
    """One listening port. `report` gets one line per connection that did not end in order."""

    def __init__(
        self,
        client: ApiClient,
        guid: str,
        port: int,
        *,
        hold: bool = False,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._guid = guid
        self._port = port
        self._hold = hold
        self._report = report
        self._socket: socket.socket | None = None
        self.connections = 0

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Bind; the address in use (`port` 0 picks one). ConfigError when it is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(MAX_CONNECTIONS)
        except OSError as exc:
            sock.close()
            raise ConfigError(f"{host}:{port}", "listen", exc.strerror or str(exc)) from exc
        sock.setblocking(False)
        self._socket = sock
        address = sock.getsockname()
        return str(address[0]), int(address[1])

    async def run(self) -> None:
        """Accept until cancelled."""
        assert self._socket is not None  # noqa: S101 - `listen` comes first
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    sock, address = await loop.sock_accept(self._socket)
                    peer = f"{address[0]}:{address[1]}"
                    if self.connections >= MAX_CONNECTIONS:
                        self._report(f"{peer}: more than {MAX_CONNECTIONS} connections")
                        _abort(sock)
                        continue
                    self.connections += 1
                    group.create_task(self._serve(sock, peer), name=f"forward {peer}")
        finally:
            self._socket.close()

    async def _serve(self, sock: socket.socket, peer: str) -> None:
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = await self._client.open_stream(self._guid, self._port, hold=self._hold)
            await _splice(sock, stream)
        except* GatewayError as group:
            self._report(f"{peer}: {first_leaf(group)}")
            _abort(sock)
        finally:
            self.connections -= 1
            sock.close()


async def _splice(sock: socket.socket, stream: ClientStream) -> None:
    code, reason = Code.CANCELLED, "the forwarder stopped"
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_to_device(sock, stream), name="to device")
            await _from_device(sock, stream)
        code, reason = Code.OK, ""
    except* ChannelReset as cut:
        first = first_leaf(cut)
        code, reason = first.code, str(first)
        raise
    finally:
        await stream.close(code, reason)


async def _to_device(sock: socket.socket, stream: ClientStream) -> None:
    loop = asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(sock, CHUNK):
            await stream.write(data)
    except OSError as exc:
        raise _tool_error(exc) from exc
    await stream.write_eof()


async def _from_device(sock: socket.socket, stream: ClientStream) -> None:
    loop = asyncio.get_running_loop()
    try:
        while data := await stream.read():
            await loop.sock_sendall(sock, data)
        with contextlib.suppress(OSError):
            # The tool may have gone already; its own direction says so.
            sock.shutdown(socket.SHUT_WR)
    except OSError as exc:
        raise _tool_error(exc) from exc


def _tool_error(exc: OSError) -> ChannelReset:
    if exc.errno in (errno.ECONNRESET, errno.EPIPE):
        return ChannelReset(Code.CANCELLED, "the tool reset its connection")
    return ChannelReset(Code.CANCELLED, f"the tool's connection: {exc.strerror or exc}")


def _abort(sock: socket.socket) -> None:
    """Close with a reset: an orderly end would look like the device's own."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
