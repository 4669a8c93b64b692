"""One asyncio protocol for each kind of port of a simulated device: thin adapters.

    HttpConnection -------- HttpServer             RedirectionConnection -- RedirectionServer
    Presence -------------- pong

They translate and decide nothing. Whatever may have changed the machine calls `Host.changed`.
"""

from __future__ import annotations

import asyncio
import email.utils
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol, cast

import h11

from gwmodule.sim.http import MAX_BODY, HttpServer, Response
from gwmodule.sim.machine import Machine
from gwmodule.sim.redirection import MAX_BACKLOG, Login, RedirectionServer
from gwmodule.sim.rmcp import pong

HTTP_IDLE = 60.0
MAX_HEADERS = 16 * 1024
# How long a closed connection may take to hand over its last bytes.
LINGER = 2.0
# So that what a slow console does not read waits in the RedirectionServer, which bounds it.
WRITE_BUFFER = 4096
# The sizes real firmware cuts its answers into: the first chunk, and those after it.
FIRST_CHUNK = 0x220
NEXT_CHUNK = 0x2FA


class Host(Protocol):
    """The device that a connection belongs to."""

    machine: Machine

    def admit(self, connection: Connection) -> bool: ...

    def dismiss(self, connection: Connection) -> None: ...

    def changed(self) -> None: ...


class Connection(Protocol):
    def flush(self, now: float) -> None: ...

    def abort(self) -> None: ...


class HttpConnection(asyncio.Protocol):
    """One client of 16992 or 16993; h11 knows HTTP, `server` what to answer."""

    def __init__(self, device: Host, server: HttpServer) -> None:
        self._device = device
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADERS)
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._idle: asyncio.TimerHandle | None = None
        # The answer that a slow device is still thinking about.
        self._thinking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._device.admit(self):
            self._transport.abort()
        self._rearm()

    def connection_lost(self, exc: Exception | None) -> None:
        for handle in (self._idle, self._thinking):
            if handle is not None:
                handle.cancel()
        self._device.dismiss(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._h11.receive_data(data)
            self._take_events()
        except h11.RemoteProtocolError as exc:
            if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self._send(self._server.refuse(exc.error_status_hint))
            self._transport.close()
        self._rearm()

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def flush(self, now: float) -> None:
        """An answer is written when its request is complete; nothing waits here."""

    def abort(self) -> None:
        self._transport.abort()

    def _take_events(self) -> None:
        while True:
            event = self._h11.next_event()
            match event:
                case h11.Request():
                    self._request = event
                    self._body.clear()
                    if self._h11.they_are_waiting_for_100_continue:
                        go_on = h11.InformationalResponse(status_code=100, headers=[])
                        self._transport.write(self._h11.send(go_on) or b"")
                case h11.Data():
                    self._body += event.data
                    if len(self._body) > MAX_BODY:
                        self._send(self._server.refuse(413))
                        self._transport.close()
                        return
                case h11.EndOfMessage() if self._request is not None:
                    response = self._answer(self._request)
                    if response.delay:
                        self._thinking = self._loop.call_later(
                            response.delay, self._resume, response
                        )
                        return
                    if not self._finish(response):
                        return
                case _:
                    # NEED_DATA, PAUSED, ConnectionClosed: nothing more to take now.
                    return

    def _answer(self, request: h11.Request) -> Response:
        authorization = dict(request.headers).get(b"authorization", b"")
        response = self._server.respond(
            request.method.decode("latin-1"),
            request.target.decode("latin-1"),
            authorization.decode("latin-1"),
            bytes(self._body),
            self._loop.time(),
        )
        # Before the answer is out, so that whoever reads it finds the device as it says.
        self._device.changed()
        return response

    def _resume(self, response: Response) -> None:
        self._thinking = None
        if self._finish(response):
            self._take_events()

    def _finish(self, response: Response) -> bool:
        """Answer; False when the connection takes no more requests."""
        if response.drop:
            self._transport.abort()
            return False
        self._send(response)
        if self._h11.our_state is h11.MUST_CLOSE:
            self._transport.close()
            return False
        self._h11.start_next_cycle()
        return True

    def _send(self, response: Response) -> None:
        headers = [("Date", email.utils.formatdate(usegmt=True)), *response.headers]
        reason = HTTPStatus(response.status).phrase
        head = h11.Response(status_code=response.status, headers=headers, reason=reason.encode())
        output = [self._h11.send(head) or b""]
        body = memoryview(response.body)
        for piece in (body[:FIRST_CHUNK], *_cut(body[FIRST_CHUNK:], NEXT_CHUNK)):
            output += _padded(self._h11.send_with_data_passthrough(h11.Data(data=bytes(piece))))
        output.append(self._h11.send(h11.EndOfMessage()) or b"")
        self._transport.write(b"".join(output))

    def _rearm(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self._loop.call_later(HTTP_IDLE, self._transport.close)


class RedirectionConnection(asyncio.Protocol):
    """One console on 16994 or 16995, around one RedirectionServer."""

    def __init__(self, device: Host, login: Login, nonce: Callable[[], str]) -> None:
        self._device = device
        self._loop = asyncio.get_running_loop()
        self._server = RedirectionServer(
            device.machine, now=self._loop.time(), login=login, nonce=nonce
        )
        self._timer: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)
        if not self._device.admit(self):
            self._transport.abort()
        self.flush(self._loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.receive_data(b"", self._loop.time())
        for handle in (self._timer, self._linger):
            if handle is not None:
                handle.cancel()
        self._device.dismiss(self)
        self._device.changed()

    def data_received(self, data: bytes) -> None:
        self._server.receive_data(data, self._loop.time())
        self._device.changed()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._device.changed()

    def abort(self) -> None:
        self._server.abort("the device stops")
        self._transport.abort()

    def flush(self, now: float) -> None:
        server = self._server
        server.pump(now)
        while not self._paused and (data := server.data_to_send(MAX_BACKLOG)):
            self._transport.write(data)
        # A console that asks and does not read is not read either.
        if server.pending > MAX_BACKLOG:
            self._transport.pause_reading()
        elif not self._transport.is_closing():
            self._transport.resume_reading()
        if self._timer is not None:
            self._timer.cancel()
        if server.closed and self._linger is None:
            self._linger = self._loop.call_later(LINGER, self._transport.abort)
        if server.closed and not server.pending:
            self._transport.close()
        elif (deadline := server.next_timeout()) is not None:
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._server.handle_timeout(self._loop.time())
        self._device.changed()


class Presence(asyncio.DatagramProtocol):
    """UDP 623. `port` is where its WS-Man answers."""

    def __init__(self, machine: Machine, port: Callable[[], int]) -> None:
        self._machine = machine
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str | Any, int]) -> None:
        if reply := pong(data, self._machine, self._port()):
            self._transport.sendto(reply, address)


def _cut(data: memoryview, size: int) -> list[memoryview]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _padded(pieces: list[bytes] | None) -> list[bytes]:
    """h11 writes a chunk's size as `220`, firmware as `0220`."""
    if pieces and len(pieces) == 3:
        return [pieces[0].zfill(len(b"0220\r\n")), *pieces[1:]]
    return pieces or []
