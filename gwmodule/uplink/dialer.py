"""The gateway's way to the MSP: dial, greet, resume, and again, for ever.

resolve -> connect (bound to the WAN) -> TLS -> GREETING/WELCOME -> mux -> lost -> back-off -+
   ^                                                                                         |
   +------------------ a WAN change, SIGUSR1 or `gwmodule reconnect` cuts the wait ----------+
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import ssl
from typing import Any, NoReturn, Protocol, TypeAlias
from weakref import WeakSet

from gwmodule import __version__
from gwmodule.config import Config, split_address
from gwmodule.errors import Code, GatewayError, HandshakeRefused, LinkLost, RemoteProtocolError
from gwmodule.telemetry import Counters, EventLog
from gwmodule.uplink.backoff import Backoff
from gwmodule.uplink.connect import connect, is_own, require_private_peer
from gwmodule.uplink.link import Link, close_all
from gwmodule.uplink.tls import TlsEngine, client_context, clock_is_trusted
from gwmodule.wire.codec import build_greeting
from gwmodule.wire.events import Event, LinkDead, PeerGoingAway
from gwmodule.wire.frames import NO_TOKEN, VERSION, FrameType
from gwmodule.wire.handshake import Handshake
from gwmodule.wire.messages import GoAway, Greeting, Welcome
from gwmodule.wire.mux import Mux, Side

# Seconds between two looks at a clock that was not set when the link was made.
CLOCK_CHECK = 10.0


class GatewaySession:
    """One session with the MSP, and the link that carries it now."""

    def __init__(self, config: Config, rng: random.Random) -> None:
        self.mux = Mux(Side.GATEWAY, config.mux, config.liveness, rng)
        self.token = NO_TOKEN
        self.link: Link | None = None
        self.welcome: Welcome | None = None
        # The MSP asked us to leave: no new channels, and gone when nothing runs in it any more.
        self.draining = False
        self.lost: asyncio.Future[GatewayError] = asyncio.get_running_loop().create_future()

    def flush(self) -> None:
        if self.link is not None:
            self.link.flush()

    def flush_soon(self) -> None:
        if self.link is not None:
            self.link.flush_soon()


Carried: TypeAlias = tuple[GatewaySession, "asyncio.Future[GatewayError]"]


class SessionHandler(Protocol):
    def session_up(self, session: GatewaySession, fresh: bool) -> None:
        """A link carries the session; `fresh` when the MSP knows nothing of before."""

    def session_event(self, session: GatewaySession, event: Event) -> None: ...

    def in_use(self, session: GatewaySession) -> bool:
        """Whether something runs that will yet say a word in this session, or its end would cut."""


class Dialer:
    """Owns the session and the one link that carries it (two while one drains)."""

    def __init__(
        self,
        config: Config,
        handler: SessionHandler,
        tasks: asyncio.TaskGroup,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._handler = handler
        self._tasks = tasks
        self._rng = rng
        self._log = EventLog("gwmodule.uplink")
        self._backoff = Backoff(config.backoff, rng)
        self._wake = asyncio.Event()
        self._boot_id = secrets.token_bytes(8)
        self.session = GatewaySession(config, rng)
        # Those whose socket is open, be it to linger: the loop holds them for as long.
        self._links: WeakSet[Link] = WeakSet()
        # Where a GOAWAY told us to go; tried first, once.
        self._next_address = ""
        # The one session that may drain: each holds its windows' worth of memory.
        self._leaving: GatewaySession | None = None
        self.counters = Counters()
        self.msp = ""
        self.connected_since: float | None = None
        self.last_error = ""

    # ---- for the rest of the relay ------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self.connected_since is not None

    def reconnect(self, reason: str) -> None:
        """Dial now: drop the link if there is one, cut the back-off if there is none."""
        self._log.info("reconnect", reason=reason)
        self._backoff.reset()
        self._wake.set()
        if self.session.link is not None:
            self.session.link.abort(LinkLost(reason))

    def wan_changed(self, reason: str) -> None:
        """Cut a back-off; drop a link only when the address it was made from is gone."""
        if not self.connected:
            self._backoff.reset()
            self._wake.set()
        elif self.session.link is not None and not is_own(self.session.link.local_address):
            self.reconnect(f"WAN changed: {reason}")

    def status(self, now: float) -> dict[str, Any]:
        welcome = self.session.welcome
        since = self.connected_since
        return {
            "connected": self.connected,
            "msp": self.msp,
            "connected_seconds": None if since is None else round(now - since, 3),
            "rtt_ms": round(self.session.mux.rtt * 1000, 3),
            "observed_address": "" if welcome is None else welcome.observed_address,
            "observed_port": 0 if welcome is None else welcome.observed_port,
            "gateway": "" if welcome is None else welcome.gateway,
            "channels": self.session.mux.channels,
            "unacknowledged_bytes": self.session.mux.unacknowledged,
            "last_error": self.last_error,
            "counters": dict(self.counters),
        }

    # ---- the endless loop ---------------------------------------------------------------------

    async def run(self) -> None:
        try:
            await self._dial_for_ever()
        finally:
            await close_all(self._links, GoAway(Code.SHUTDOWN, "the gateway stops"))

    async def _dial_for_ever(self) -> NoReturn:
        loop = asyncio.get_running_loop()
        while True:
            for entry in self._addresses():
                self._wake.clear()
                started = loop.time()
                try:
                    reason = await self._one_link(entry)
                    self._backoff.link_ended(loop.time() - started)
                except (GatewayError, OSError, ValueError) as exc:
                    # OSError: out of descriptors, a key file just being replaced. ValueError: a
                    # name that cannot be encoded. None of them is a reason to stop dialling.
                    self.counters["attempts_failed"] += 1
                    reason = exc if isinstance(exc, GatewayError) else LinkLost(str(exc))
                self.last_error = str(reason)
                self._log.warning("link_down", msp=entry, reason=reason)
                if self._next_address:
                    break
            # Of an MSP that sends everybody on at once, each gateway would be back without a pause.
            if not self._next_address or not self._backoff.skip():
                await self._pause(self._backoff.next_delay())

    def _addresses(self) -> tuple[str, ...]:
        first, self._next_address = self._next_address, ""
        return (first, *self._config.msp.address) if first else self._config.msp.address

    async def _pause(self, delay: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wake.wait()

    async def _one_link(self, entry: str) -> GatewayError:
        """Carry the session over one link; returns why it ended. GatewayError: never came up."""
        host, port = split_address(entry)
        loop = asyncio.get_running_loop()
        sock = await connect(host, port, self._config.uplink, self._config.msp.connect_timeout)
        try:
            engine = self._engine(host, sock)
        except BaseException:
            sock.close()
            raise
        session = self.session
        session.lost = loop.create_future()
        departure = _Departure(self, session, loop.time() + self._config.msp.connect_timeout)
        departure.clock_trusted = clock_is_trusted()
        self.msp = entry
        session.link = link = Link(loop, sock, engine, departure)
        self._links.add(link)
        link.machine = departure.handshake
        link.start(self._config.liveness.timeout)
        try:
            session, lost = await departure.done
            if not departure.clock_trusted:
                await self._wait_for_clock(lost, link)
            return await lost
        finally:
            if not session.draining:
                link.close(GoAway(Code.SHUTDOWN, "the gateway stops"))
                session.link = None

    async def _wait_for_clock(self, lost: asyncio.Future[GatewayError], link: Link) -> None:
        """Until NTP has set the clock or the link ended; then every date is verified after all."""
        while not lost.done() and not clock_is_trusted():
            await asyncio.wait([lost], timeout=CLOCK_CHECK)
        if not lost.done():
            link.abort(LinkLost("the clock is set: certificates are verified again"))

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

    def greeting(self, session: GatewaySession) -> Greeting:
        return Greeting(
            boot_id=self._boot_id,
            token=session.token,
            received=session.mux.received,
            timeout=self._config.liveness.timeout,
            clock_trusted=clock_is_trusted(),
            deployment=self._config.deployment,
            software=f"gwmodule/{__version__}",
            lowest_version=VERSION,
            highest_version=VERSION,
        )

    def welcomed(self, link: Link, welcome: Welcome, rest: bytes) -> Carried:
        """The session that the link carries now, and what will say why it ended."""
        now = asyncio.get_running_loop().time()
        fresh = not welcome.resumed
        if fresh:
            self._renew(Code.SESSION_LOST, "the MSP has a fresh session", link)
        session = self.session
        session.mux.attach(0 if fresh else welcome.received, now, link.rtt)
        session.token = welcome.token
        session.welcome = welcome
        self.connected_since = now
        self.counters["sessions" if fresh else "resumes"] += 1
        link.owner = _Carrier(self, session)
        link.machine = session.mux
        self._log.info(
            "link_up",
            gateway=welcome.gateway,
            resumed=welcome.resumed,
            observed=f"{welcome.observed_address}:{welcome.observed_port}",
        )
        # Taken before the rest is read: a GOAWAY in it makes room for another session.
        carried = (session, session.lost)
        self._handler.session_up(session, fresh)
        if rest:
            session.mux.receive_data(rest, now)
            link.owner.link_progress(link)
        return carried

    def _renew(self, code: Code, reason: str, link: Link | None) -> None:
        """Every stream of the old session hears of its end; then a fresh one takes its place."""
        old = self.session
        self._abandon(old, code, reason)
        self.session = GatewaySession(self._config, self._rng)
        self.session.link, self.session.lost = link, old.lost

    def _abandon(self, session: GatewaySession, code: Code, reason: str) -> None:
        session.mux.abandon(code, reason)
        while (event := session.mux.next_event()) is not None:
            self._handler.session_event(session, event)

    # ---- what a carrying link tells -----------------------------------------------------------

    def progress(self, session: GatewaySession, link: Link) -> None:
        while (event := session.mux.next_event()) is not None:
            if isinstance(event, LinkDead):
                link.abort(LinkLost(f"nothing received for {event.silent:.1f} s"))
            elif isinstance(event, PeerGoingAway):
                self._on_goaway(session, event.goaway)
            self._handler.session_event(session, event)
        if session.draining and self._is_done(session):
            link.close(GoAway(Code.SHUTDOWN, "nothing runs here any more"))

    def _is_done(self, session: GatewaySession) -> bool:
        """Nothing runs in it, and the last word has arrived: each PONG brings us here."""
        mux = session.mux
        left = mux.channels or mux.queued_messages or mux.unacknowledged
        return not left and not self._handler.in_use(session)

    def _on_goaway(self, session: GatewaySession, goaway: GoAway) -> None:
        self._log.info("goaway", code=goaway.code.name.lower(), reason=goaway.reason)
        if goaway.code is not Code.SHUTDOWN or not goaway.deadline or session.draining:
            return
        # Make before break: a second link and session now, the old one ends with its streams.
        session.draining = True
        older, self._leaving = self._leaving, session
        if older is not None and older.link is not None:
            reason = "the MSP sends us on once more"
            older.link.close(GoAway(Code.SHUTDOWN, reason), LinkLost(reason))
        # Only where the configuration sends us anyway: an MSP's word must not make the gateway dial
        # into its own LAN.
        known = goaway.address in self._config.msp.address
        self._next_address = goaway.address if known else self.msp
        self.connected_since = None
        self.session = GatewaySession(self._config, self._rng)
        leaving, session.lost = session.lost, asyncio.get_running_loop().create_future()
        self._tasks.create_task(self._drain(session, goaway.deadline), name="drain")
        leaving.set_result(LinkLost(f"the MSP sends us on: {goaway.reason}"))

    async def _drain(self, session: GatewaySession, deadline: int) -> None:
        try:
            async with asyncio.timeout(deadline):
                await session.lost
        except TimeoutError:
            if session.link is not None:
                session.link.close(GoAway(Code.SHUTDOWN, "the deadline to leave has passed"))

    def lost(self, session: GatewaySession, reason: GatewayError) -> None:
        session.link = None
        session.mux.detach()
        if session.draining:
            if session is self._leaving:
                self._leaving = None
            self._abandon(session, Code.SESSION_LOST, str(reason))
        else:
            self.connected_since = None
            if isinstance(reason, RemoteProtocolError):
                self._renew(reason.code, f"protocol error: {reason}", None)
        if not session.lost.done():
            session.lost.set_result(reason)


class _Carrier:
    """A link that carries a session."""

    def __init__(self, dialer: Dialer, session: GatewaySession) -> None:
        self._dialer = dialer
        self._session = session

    def link_ready(self, link: Link) -> None:
        """TLS was up before the session got this link."""

    def link_progress(self, link: Link) -> None:
        self._dialer.progress(self._session, link)

    def link_lost(self, link: Link, reason: GatewayError) -> None:
        self._dialer.lost(self._session, reason)


class _Departure:
    """A link on which we have greeted and wait for the welcome."""

    def __init__(self, dialer: Dialer, session: GatewaySession, deadline: float) -> None:
        self._dialer = dialer
        self._session = session
        self.handshake = Handshake(FrameType.WELCOME, deadline)
        self.clock_trusted = True
        self.done: asyncio.Future[Carried] = asyncio.get_running_loop().create_future()

    def link_ready(self, link: Link) -> None:
        link.write(build_greeting(self._dialer.greeting(self._session)))

    def link_progress(self, link: Link) -> None:
        event = self.handshake.next_event()
        match event:
            case Welcome():
                try:
                    carried = self._dialer.welcomed(link, event, self.handshake.rest())
                except RemoteProtocolError as exc:
                    link.close(GoAway(exc.code, str(exc)), exc)
                    self._fail(exc)
                else:
                    self._finish(carried)
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

    def _finish(self, carried: Carried) -> None:
        if not self.done.done():
            self.done.set_result(carried)

    def _fail(self, reason: GatewayError) -> None:
        if not self.done.done():
            self.done.set_exception(reason)
