"""A simulated device on real sockets: thin adapters around one Machine.

    16992 HTTP, 16993 HTTPS ------ HttpConnection --------- HttpServer ----------+
    16994, 16995 with TLS -------- RedirectionConnection -- RedirectionServer ---+
    623/udp ---------------------- _Presence -------------- pong ----------------+--> Machine
    to port 9971, setup only ----- _send_hellos ----------- build_hello ---------+
    control socket --------------- ControlServer ---------- state, activate -----+

Whatever may have changed the machine calls `changed`, which lets every session write what is due.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import logging
import os
import secrets
import ssl
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import h11

from gwmodule.errors import GatewayError
from gwmodule.sim import tls
from gwmodule.sim.control import ControlServer, claim
from gwmodule.sim.hello import HelloTarget, build_hello
from gwmodule.sim.http import MAX_BODY, HttpServer, Response
from gwmodule.sim.machine import Machine, Provisioning
from gwmodule.sim.redirection import MAX_BACKLOG, Login, RedirectionServer
from gwmodule.sim.resolver import resolve
from gwmodule.sim.rmcp import pong

log = logging.getLogger(__name__)

# AMT is a small computer: it has few sockets and little patience with those who hold them.
MAX_CONNECTIONS = 32
HTTP_IDLE = 60.0
MAX_HEADERS = 16 * 1024
HANDSHAKE_TIMEOUT = 10.0
HELLO_TIMEOUT = 5.0
# How long a closed connection may take to hand over its last bytes.
LINGER = 2.0
# So that what a slow console does not read waits in the RedirectionServer, which bounds it.
WRITE_BUFFER = 4096
# The sizes real firmware cuts its answers into: the first chunk, and those after it.
FIRST_CHUNK = 0x220
NEXT_CHUNK = 0x2FA


class CannotListen(GatewayError):
    """A port or the control socket of the simulator cannot be opened."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the device listens; 0 lets the kernel choose."""

    wsman: int = 16992
    wsman_tls: int = 16993
    redirection: int = 16994
    redirection_tls: int = 16995
    rmcp: int = 623

    @classmethod
    def with_offset(cls, offset: int) -> Ports:
        return cls(*(number + offset for number in astuple(cls())))


ANY_PORTS = Ports(0, 0, 0, 0, 0)


class SimulatedDevice:
    """Serves `machine` on the IPv4 address `bind` while the context is open.

    To be made inside the running loop.
    CannotListen when a port is taken or may not be used. `hello` is where a machine in setup state
    sends its Hellos, every `hello_interval` seconds, until somebody activates it.
    """

    def __init__(
        self,
        bind: str,
        machine: Machine,
        *,
        ports: Ports | None = None,
        login: Login = Login.DIGEST,
        hello: HelloTarget | None = None,
        hello_interval: float = 3.0,
        control: Path | None = None,
        nonce: Callable[[], str] = partial(secrets.token_hex, 16),  # noqa: B008
    ) -> None:
        self.bind = bind
        self.machine = machine
        # After the start: the ports that are really open.
        self.ports = ports or Ports()
        self.hellos_sent = 0
        self.hello_attempts = 0
        self._login = login
        self._hello = hello
        self._hello_interval = hello_interval
        self._control = control
        self._nonce = nonce
        self._http = HttpServer(machine, nonce)
        self._connections: set[HttpConnection | RedirectionConnection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._activated = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()
        self._stopped = False
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> SimulatedDevice:
        async with contextlib.AsyncExitStack() as stack:
            await self._listen(stack)
            if self._control is not None:
                await self._open_control(stack, self._control)
            if self._hello is not None:
                group = await stack.enter_async_context(asyncio.TaskGroup())
                task = group.create_task(self._send_hellos(self._hello), name="hello")
                stack.callback(task.cancel)
            self._stack = stack.pop_all()
        self.changed()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._connections):
            connection.abort()
        await self._stack.aclose()

    def changed(self) -> None:
        """Something may have happened to the machine: sessions say so, the clock is re-armed."""
        if self._stopped:
            return
        now = self._loop.time()
        self.machine.handle_timeout(now)
        for connection in list(self._connections):
            connection.flush(now)
        if self._timer is not None:
            self._timer.cancel()
        deadline = self.machine.next_timeout()
        self._timer = None if deadline is None else self._loop.call_at(deadline, self.changed)

    def activate(self) -> bool:
        """Provision the machine; False when it was provisioned already."""
        changed = self.machine.activate()
        self._activated.set()
        return changed

    def state(self) -> dict[str, Any]:
        machine = self.machine
        return {
            "uuid": str(machine.uuid),
            "provisioning": machine.provisioning.value,
            "power": machine.power.name.lower(),
            "power_state": int(machine.power),
            "sessions": sorted(kind.name for kind in machine.sessions),
            "boots": machine.boots,
            "power_requests": machine.power_requests,
            "hurried_requests": machine.hurried_requests,
            "hello_attempts": self.hello_attempts,
            "hellos_sent": self.hellos_sent,
        }

    def admit(self, connection: HttpConnection | RedirectionConnection) -> bool:
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def dismiss(self, connection: HttpConnection | RedirectionConnection) -> None:
        self._connections.discard(connection)

    async def _listen(self, stack: contextlib.AsyncExitStack) -> None:
        name = self.machine.hostname
        pem = tls.self_signed(name, datetime.datetime.now(datetime.UTC))
        context = tls.device_context(pem)
        http = partial(HttpConnection, self, self._http)
        redirection = partial(RedirectionConnection, self, self._login, self._nonce)
        ports = self.ports
        self.ports = Ports(
            wsman=await self._serve(stack, http, ports.wsman, None),
            wsman_tls=await self._serve(stack, http, ports.wsman_tls, context),
            redirection=await self._serve(stack, redirection, ports.redirection, None),
            redirection_tls=await self._serve(stack, redirection, ports.redirection_tls, context),
            rmcp=await self._serve_presence(stack, ports.rmcp),
        )

    async def _serve(
        self,
        stack: contextlib.AsyncExitStack,
        factory: Callable[[], asyncio.Protocol],
        port: int,
        context: ssl.SSLContext | None,
    ) -> int:
        timeout = HANDSHAKE_TIMEOUT if context else None
        try:
            server = await self._loop.create_server(
                factory, self.bind, port, ssl=context, ssl_handshake_timeout=timeout
            )
        except OSError as exc:
            raise CannotListen(f"{self.bind} port {port}: {exc.strerror or exc}") from exc
        await stack.enter_async_context(server)
        return int(server.sockets[0].getsockname()[1])

    async def _serve_presence(self, stack: contextlib.AsyncExitStack, port: int) -> int:
        try:
            transport, _ = await self._loop.create_datagram_endpoint(
                partial(_Presence, self), local_addr=(self.bind, port)
            )
        except OSError as exc:
            raise CannotListen(f"{self.bind} UDP port {port}: {exc.strerror or exc}") from exc
        stack.callback(transport.close)
        return int(transport.get_extra_info("sockname")[1])

    async def _open_control(self, stack: contextlib.AsyncExitStack, path: Path) -> None:
        claim(path)
        try:
            server = await self._loop.create_unix_server(partial(ControlServer, self), path)
            os.chmod(path, 0o600)
        except OSError as exc:
            raise CannotListen(f"{path}: {exc.strerror or exc}") from exc
        stack.callback(path.unlink, missing_ok=True)
        await stack.enter_async_context(server)

    async def _send_hellos(self, target: HelloTarget) -> None:
        while self.machine.provisioning is Provisioning.SETUP:
            message = build_hello(self.machine.uuid, self.hello_attempts)
            self.hello_attempts += 1
            try:
                async with asyncio.timeout(HELLO_TIMEOUT):
                    await self._send_hello(target, message)
                self.hellos_sent += 1
            except OSError as exc:
                log.info("no Hello to %s:%d: %s", target.host, target.port, exc)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._hello_interval):
                    await self._activated.wait()

    async def _send_hello(self, target: HelloTarget, message: bytes) -> None:
        # One write and a FIN: receivers exist that keep only the first chunk
        # (reference/amt-protocols.md section 1).
        address = await resolve(target.host)
        _, writer = await asyncio.open_connection(address, target.port, local_addr=(self.bind, 0))
        try:
            writer.write(message)
            writer.write_eof()
            await writer.drain()
        finally:
            writer.close()
        await writer.wait_closed()


class HttpConnection(asyncio.Protocol):
    """One client of 16992 or 16993; h11 knows HTTP, `server` what to answer."""

    def __init__(self, device: SimulatedDevice, server: HttpServer) -> None:
        self._device = device
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADERS)
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._device.admit(self):
            self._transport.abort()
        self._rearm()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle is not None:
            self._idle.cancel()
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
                    self._answer(self._request)
                    if self._h11.our_state is h11.MUST_CLOSE:
                        self._transport.close()
                        return
                    self._h11.start_next_cycle()
                case _:
                    # NEED_DATA, PAUSED, ConnectionClosed: nothing more to take now.
                    return

    def _answer(self, request: h11.Request) -> None:
        authorization = dict(request.headers).get(b"authorization", b"")
        response = self._server.respond(
            request.method.decode("latin-1"),
            request.target.decode("latin-1"),
            authorization.decode("latin-1"),
            bytes(self._body),
            self._loop.time(),
        )
        self._send(response)
        self._device.changed()

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

    def __init__(self, device: SimulatedDevice, login: Login, nonce: Callable[[], str]) -> None:
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


class _Presence(asyncio.DatagramProtocol):
    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str | Any, int]) -> None:
        if reply := pong(data, self._device.machine, self._device.ports.wsman):
            self._transport.sendto(reply, address)


def _cut(data: memoryview, size: int) -> list[memoryview]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _padded(pieces: list[bytes] | None) -> list[bytes]:
    """h11 writes a chunk's size as `220`, firmware as `0220`."""
    if pieces and len(pieces) == 3:
        return [pieces[0].zfill(len(b"0220\r\n")), *pieces[1:]]
    return pieces or []
