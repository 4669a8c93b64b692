"""The gateway's way to the MSP: dial, greet, resume, and again, for ever.

resolve -> connect (bound to the WAN) -> TLS -> GREETING/WELCOME -> mux -> lost -> back-off -+
   ^                                                                                         |
   +------------------ a WAN change, SIGUSR1 or `gwmodule reconnect` cuts the wait ----------+
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import secrets
import socket
import ssl
from typing import Any, Protocol

from gwmodule import __version__
from gwmodule.config import Config, split_address
from gwmodule.errors import Code, GatewayError, HandshakeRefused, LinkLost, RemoteProtocolError
from gwmodule.telemetry import Counters, EventLog
from gwmodule.uplink.backoff import Backoff
from gwmodule.uplink.link import Link
from gwmodule.uplink.tls import TlsEngine, client_context, clock_is_trusted
from gwmodule.wire.codec import build_greeting
from gwmodule.wire.events import Event, LinkDead, PeerGoingAway
from gwmodule.wire.frames import NO_TOKEN, VERSION, FrameType
from gwmodule.wire.handshake import Handshake
from gwmodule.wire.messages import GoAway, Greeting, Welcome
from gwmodule.wire.mux import Mux, Side

_SO_BINDTODEVICE = getattr(socket, "SO_BINDTODEVICE", 25)


class SessionHandler(Protocol):
    def session_up(self, fresh: bool) -> None:
        """A link carries the session; `fresh` when the MSP knows nothing of before."""

    def session_down(self) -> None:
        """The link is gone; the session may come back."""

    def session_event(self, event: Event) -> None: ...


class Dialer:
    """Owns the session and the one link that carries it."""

    def __init__(self, config: Config, handler: SessionHandler, rng: random.Random) -> None:
        self._config = config
        self._handler = handler
        self._rng = rng
        self._log = EventLog("gwmodule.uplink")
        self._backoff = Backoff(config.backoff, rng)
        self._wake = asyncio.Event()
        self._boot_id = secrets.token_bytes(8)
        self._token = NO_TOKEN
        self._link: Link | None = None
        self._lost: asyncio.Future[GatewayError] | None = None
        self.mux = self._new_mux()
        self.counters = Counters()
        self.welcome: Welcome | None = None
        self.msp = ""
        self.connected_since: float | None = None
        self.last_error = ""

    # ---- for the rest of the relay ------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self.connected_since is not None

    def flush_soon(self) -> None:
        if self._link is not None:
            self._link.flush_soon()

    def reconnect(self, reason: str) -> None:
        """Dial now: drop the link if there is one, cut the back-off if there is none."""
        self._log.info("reconnect", reason=reason)
        self._backoff.reset()
        self._wake.set()
        if self._link is not None:
            self._link.abort(LinkLost(reason))

    def wan_changed(self, reason: str) -> None:
        """Cut a back-off; drop a link only when the address it was made from is gone."""
        if not self.connected:
            self._backoff.reset()
            self._wake.set()
        elif self._link is not None and not _is_own_address(self._link.local_address):
            self.reconnect(f"WAN changed: {reason}")

    def status(self, now: float) -> dict[str, Any]:
        welcome = self.welcome
        return {
            "connected": self.connected,
            "msp": self.msp,
            "connected_seconds": None
            if self.connected_since is None
            else round(now - self.connected_since, 3),
            "rtt_ms": round(self.mux.rtt * 1000, 3),
            "observed_address": "" if welcome is None else welcome.observed_address,
            "observed_port": 0 if welcome is None else welcome.observed_port,
            "gateway": "" if welcome is None else welcome.gateway,
            "channels": self.mux.channels,
            "unacknowledged_bytes": self.mux.unacknowledged,
            "last_error": self.last_error,
            "counters": dict(self.counters),
        }

    # ---- the endless loop ---------------------------------------------------------------------

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for entry in self._config.msp.address:
                self._wake.clear()
                started = loop.time()
                try:
                    reason = await self._one_link(entry)
                    self._backoff.link_ended(loop.time() - started)
                except GatewayError as exc:
                    self.counters["attempts_failed"] += 1
                    reason = exc
                self.last_error = str(reason)
                self._log.warning("link_down", msp=entry, reason=reason)
            await self._pause(self._backoff.next_delay())

    async def _pause(self, delay: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wake.wait()

    async def _one_link(self, entry: str) -> GatewayError:
        """Carry the session over one link; returns why it ended. GatewayError: never came up."""
        host, port = split_address(entry)
        loop = asyncio.get_running_loop()
        sock = await self._connect(host, port)
        try:
            engine = self._engine(host, sock)
        except BaseException:
            sock.close()
            raise
        self._lost = loop.create_future()
        arrival = _Departure(self, loop.time() + self._config.msp.connect_timeout)
        self._link = link = Link(loop, sock, engine, arrival)
        link.machine = arrival.handshake
        link.start(self._config.liveness.timeout)
        try:
            await arrival.done
            self.msp = entry
            return await self._lost
        finally:
            link.close(GoAway(Code.SHUTDOWN, "the gateway stops"))
            self._link = None

    async def _connect(self, host: str, port: int) -> socket.socket:
        """Every address of the name in turn, as resolved now. LinkLost names the last failure."""
        loop = asyncio.get_running_loop()
        timeout = self._config.msp.connect_timeout
        try:
            async with asyncio.timeout(timeout):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError as exc:
            raise LinkLost(f"{host} was not resolved within {timeout:.0f} s") from exc
        except OSError as exc:
            raise LinkLost(f"{host} is not resolved: {exc.strerror}") from exc
        failure: LinkLost | None = None
        for family, _, _, _, address in found:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                self._bind(sock)
                async with asyncio.timeout(timeout):
                    await loop.sock_connect(sock, address)
                return sock
            except TimeoutError:
                failure = LinkLost(f"{address[0]} port {port}: no answer within {timeout:.0f} s")
            except OSError as exc:
                failure = LinkLost(f"{address[0]} port {port}: {exc.strerror or exc}")
            except asyncio.CancelledError:
                sock.close()
                raise
            sock.close()
        raise failure or LinkLost(f"{host} has no address")

    def _bind(self, sock: socket.socket) -> None:
        uplink = self._config.uplink
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if uplink.interface:
            sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, uplink.interface.encode() + b"\0")
        if uplink.source and (":" in uplink.source) == (sock.family == socket.AF_INET6):
            sock.bind((uplink.source, 0))
        if uplink.dscp:
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, uplink.dscp << 2)
            else:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, uplink.dscp << 2)

    def _engine(self, host: str, sock: socket.socket) -> TlsEngine | None:
        """Read key and certificates anew for each link: a renewed certificate needs no restart."""
        if self._config.tls.mode == "off":
            require_private_peer(sock)
            return None
        trusted = clock_is_trusted()
        if not trusted:
            self._log.warning("clock_untrusted", effect="certificate dates are not checked")
        context: ssl.SSLContext = client_context(self._config.tls, trusted)
        return TlsEngine(context, self._config.msp.server_name or host)

    # ---- what a departing link tells ----------------------------------------------------------

    def greeting(self) -> Greeting:
        return Greeting(
            boot_id=self._boot_id,
            token=self._token,
            received=self.mux.received,
            timeout=self._config.liveness.timeout,
            clock_trusted=clock_is_trusted(),
            deployment=self._config.deployment,
            software=f"gwmodule/{__version__}",
            lowest_version=VERSION,
            highest_version=VERSION,
        )

    def welcomed(self, link: Link, welcome: Welcome, rest: bytes) -> None:
        now = asyncio.get_running_loop().time()
        fresh = not welcome.resumed
        if fresh:
            self._abandon(Code.SESSION_LOST, "the MSP has a fresh session")
        self.mux.attach(0 if fresh else welcome.received, now)
        self._token = welcome.token
        self.welcome = welcome
        self.connected_since = now
        self.counters["sessions" if fresh else "resumes"] += 1
        link.owner = self
        link.machine = self.mux
        self._log.info(
            "link_up",
            gateway=welcome.gateway,
            resumed=welcome.resumed,
            observed=f"{welcome.observed_address}:{welcome.observed_port}",
        )
        self._handler.session_up(fresh)
        if rest:
            self.mux.receive_data(rest, now)
            self.link_progress(link)

    def _abandon(self, code: Code, reason: str) -> None:
        self._token = NO_TOKEN
        self.mux.abandon(code, reason)
        while (event := self.mux.next_event()) is not None:
            self._handler.session_event(event)
        self.mux = self._new_mux()

    def _new_mux(self) -> Mux:
        return Mux(Side.GATEWAY, self._config.mux, self._config.liveness, self._rng)

    # ---- the link's owner ---------------------------------------------------------------------

    def link_ready(self, link: Link) -> None:
        """TLS was up before the session got this link."""

    def link_progress(self, link: Link) -> None:
        while (event := self.mux.next_event()) is not None:
            if isinstance(event, LinkDead):
                link.abort(LinkLost(f"nothing received for {event.silent:.1f} s"))
            elif isinstance(event, PeerGoingAway):
                self._log.info(
                    "goaway", code=event.goaway.code.name.lower(), reason=event.goaway.reason
                )
            self._handler.session_event(event)

    def link_lost(self, link: Link, reason: GatewayError) -> None:
        self.connected_since = None
        self.mux.detach()
        if isinstance(reason, RemoteProtocolError):
            self._abandon(reason.code, f"protocol error: {reason}")
        self._handler.session_down()
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(reason)


class _Departure:
    """A link on which we have greeted and wait for the welcome."""

    def __init__(self, dialer: Dialer, deadline: float) -> None:
        self._dialer = dialer
        self.handshake = Handshake(FrameType.WELCOME, deadline)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def link_ready(self, link: Link) -> None:
        link.write(build_greeting(self._dialer.greeting()))

    def link_progress(self, link: Link) -> None:
        event = self.handshake.next_event()
        match event:
            case Welcome():
                try:
                    self._dialer.welcomed(link, event, self.handshake.rest())
                except RemoteProtocolError as exc:
                    link.close(GoAway(exc.code, str(exc)), exc)
                    self._fail(exc)
                else:
                    self._finish()
            case GoAway():
                self._fail(HandshakeRefused(event.code, event.reason))
                link.close()
            case LinkDead():
                self._fail(LinkLost("the MSP did not answer the greeting"))
                link.close()
            case None | Greeting():
                pass

    def link_lost(self, link: Link, reason: GatewayError) -> None:
        self._fail(reason)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _fail(self, reason: GatewayError) -> None:
        if not self.done.done():
            self.done.set_exception(reason)


def require_private_peer(sock: socket.socket) -> None:
    """Without TLS only a loopback or private peer; LinkLost otherwise."""
    address = ipaddress.ip_address(sock.getpeername()[0].partition("%")[0])
    if not address.is_private:
        raise LinkLost(f'tls.mode is "off", but {address} is neither loopback nor private')


def _is_own_address(address: str) -> bool:
    """Whether this host still has the address: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True
