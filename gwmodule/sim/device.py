"""A simulated device on real sockets: thin adapters around one Machine.

    16992 HTTP, 16993 HTTPS ------ HttpConnection --------- HttpServer ----------+
    16994, 16995 with TLS -------- RedirectionConnection -- RedirectionServer ---+
    623/udp ---------------------- Presence --------------- pong ----------------+--> Machine
    to port 9971, setup only ----- _send_hellos ----------- build_hello ---------+
    control socket --------------- ControlServer ---------- state, activate -----+

Whatever may have changed the machine calls `changed`, which lets every session write what is due,
and opens or closes the redirection ports as the machine wants it. The connections themselves are in
connections.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import secrets
import socket
import ssl
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from gwmodule.errors import GatewayError
from gwmodule.sim import tls
from gwmodule.sim.connections import Connection, HttpConnection, Presence, RedirectionConnection
from gwmodule.sim.control import ControlServer, claim
from gwmodule.sim.hello import HelloTarget, build_hello
from gwmodule.sim.http import HttpServer
from gwmodule.sim.machine import Machine, Provisioning
from gwmodule.sim.profiles import Feature
from gwmodule.sim.redirection import Login
from gwmodule.sim.resolver import resolve

log = logging.getLogger(__name__)

# AMT is a small computer: it has few sockets and little patience with those who hold them.
MAX_CONNECTIONS = 32
HANDSHAKE_TIMEOUT = 10.0
HELLO_TIMEOUT = 5.0


class CannotListen(GatewayError):
    """A port or the control socket of the simulator cannot be opened."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the device listens; 0 lets the kernel choose, and once it runs, means closed."""

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
        self._connections: set[Connection] = set()
        # Who serves redirection; empty while its listener is off.
        self._doors: list[asyncio.Server] = []
        self._redirecting = machine.remote.listener
        self._contexts: dict[str, ssl.SSLContext | None] = {}
        self._group: asyncio.TaskGroup | None = None
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
            # Last, because it would wrap what those raise.
            self._group = await stack.enter_async_context(asyncio.TaskGroup())
            if self._hello is not None:
                task = self._group.create_task(self._send_hellos(self._hello), name="hello")
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
        self._follow_listener()
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

    def spoken(self) -> bytes:
        return bytes(self.machine.serial.spoken)

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
            # What the person in front of the PC sees.
            "consent": machine.consent.state.name.lower(),
            "consent_code": machine.consent.code,
            "software": machine.serial.software.value if machine.serial.software else "",
            "last_boot_source": machine.last_plan.source or "",
            "events": len(machine.events),
            "clock": machine.clock.seconds(self._loop.time()),
            "hello_attempts": self.hello_attempts,
            "hellos_sent": self.hellos_sent,
        }

    def admit(self, connection: Connection) -> bool:
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def dismiss(self, connection: Connection) -> None:
        self._connections.discard(connection)

    async def _listen(self, stack: contextlib.AsyncExitStack) -> None:
        name = self.machine.hostname
        pem = tls.self_signed(name, datetime.datetime.now(datetime.UTC))
        context = tls.device_context(pem)
        self.machine.certificate = tls.certificate_in(pem)
        http = partial(HttpConnection, self, self._http)
        ports = self.ports
        plain = self.machine.profile.has(Feature.PLAIN)
        self._contexts["redirection_tls"] = context
        if plain:
            self._contexts["redirection"] = None
        opened = {
            "wsman": await self._serve(stack, http, ports.wsman, None) if plain else 0,
            "wsman_tls": await self._serve(stack, http, ports.wsman_tls, context),
            "rmcp": await self._serve_presence(stack, ports.rmcp),
        }
        stack.callback(self._close_doors)
        for name, tls_context in self._contexts.items() if self._redirecting else ():
            sock = _listening(self.bind, getattr(ports, name))
            opened[name] = int(sock.getsockname()[1])
            await self._open_door(sock, tls_context)
        closed = {"redirection": ports.redirection if plain else 0}
        self.ports = replace(ports, **(closed | opened))

    def _follow_listener(self) -> None:
        """The sockets listen at once, so that an answer that says so is true."""
        if self.machine.remote.listener == self._redirecting or self._group is None:
            return
        self._redirecting = self.machine.remote.listener
        if not self._redirecting:
            self._close_doors()
            return
        for name, context in self._contexts.items():
            try:
                sock = _listening(self.bind, getattr(self.ports, name))
            except CannotListen as exc:
                log.warning("redirection stays closed: %s", exc)
                continue
            self._group.create_task(self._open_door(sock, context), name=name)

    async def _open_door(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        factory = partial(RedirectionConnection, self, self._login, self._nonce)
        timeout = HANDSHAKE_TIMEOUT if context else None
        server = await self._loop.create_server(
            factory, sock=sock, ssl=context, ssl_handshake_timeout=timeout
        )
        self._doors.append(server)
        if not self._redirecting or self._stopped:
            self._close_doors()

    def _close_doors(self) -> None:
        for server in self._doors:
            server.close()
        self._doors.clear()

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
                partial(Presence, self.machine, self._wsman_port), local_addr=(self.bind, port)
            )
        except OSError as exc:
            raise CannotListen(f"{self.bind} UDP port {port}: {exc.strerror or exc}") from exc
        stack.callback(transport.close)
        return int(transport.get_extra_info("sockname")[1])

    def _wsman_port(self) -> int:
        return self.ports.wsman or self.ports.wsman_tls

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


def _listening(address: str, port: int) -> socket.socket:
    """A socket that takes connections from now on; CannotListen."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(MAX_CONNECTIONS)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise CannotListen(f"{address} port {port}: {exc.strerror or exc}") from exc
    return sock
