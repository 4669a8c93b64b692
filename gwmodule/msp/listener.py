"""Where gateways arrive: TLS, greeting, identity; then the link belongs to a session."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol
from weakref import WeakSet

from gwmodule.config import MuxConfig
from gwmodule.errors import Code, GatewayError, LinkLost, RemoteProtocolError
from gwmodule.msp.acceptor import Acceptor, listening_socket
from gwmodule.msp.journal import Journal, Recorder
from gwmodule.msp.registry import LinkDown, LinkUp, Observed
from gwmodule.msp.session import Session, Sessions
from gwmodule.msp.strangers import Strangers
from gwmodule.telemetry import EventLog
from gwmodule.uplink.link import Link, close_all
from gwmodule.uplink.tls import PeerIdentity, TlsEngine, server_context
from gwmodule.wire.codec import build_welcome
from gwmodule.wire.events import LinkDead
from gwmodule.wire.frames import VERSION, FrameType
from gwmodule.wire.handshake import Handshake
from gwmodule.wire.messages import GoAway, Greeting, Notice, Welcome

# Seconds from accept to greeting, TLS included.
_HANDSHAKE_TIMEOUT = 10.0
# Connections that have not proved who they are; a flood of them costs no known gateway its link.
MAX_STRANGERS = 512
# Two boxes with one identity push each other out: after three such swaps the newer one waits.
_SWAPS = 3
_SWAP_WINDOW = 600.0


class GatewayRegistry(Recorder, Protocol):
    """What the listener needs of msp.registry; RegistryError while the database cannot be used."""

    async def is_gateway_allowed(self, gateway: str, fingerprint: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    host: str
    port: int
    certificate: str
    key: str
    cafile: str
    # Seconds that a session waits for its gateway to come back.
    wait: float = 120.0
    user_timeout: float = 15.0
    mux: MuxConfig = field(default_factory=MuxConfig)


class GatewayListener:
    def __init__(
        self,
        config: ListenerConfig,
        registry: GatewayRegistry,
        sessions: Sessions,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._config = config
        self._registry = registry
        self._sessions = sessions
        self._on_change = on_change
        self._log = EventLog("gwmodule.msp")
        self._context = server_context(config.cafile, config.certificate, config.key)
        self.strangers: Strangers[_Arrival] = Strangers("link", MAX_STRANGERS)
        # Those whose socket is open, be it to linger: the loop holds them for as long.
        self._links: WeakSet[Link] = WeakSet()
        # Greeted, and waiting for what the registry says about them.
        self._arrivals: asyncio.Queue[_Arrival] = asyncio.Queue()
        self._journal = Journal(registry, self._changed)
        self._swaps: dict[str, deque[float]] = {}
        self._acceptor: Acceptor | None = None
        self.counters = self._journal.counters
        self.listening = asyncio.Event()

    @property
    def port(self) -> int:
        """The port in use, once `listening` is set."""
        assert self._acceptor is not None  # noqa: S101 - callers wait for `listening`
        return self._acceptor.port

    @property
    def context(self) -> ssl.SSLContext:
        return self._context

    async def run(self) -> None:
        sock = listening_socket(self._config.host, self._config.port)
        self._acceptor = Acceptor(sock, self._accepted)
        self._acceptor.start()
        self.listening.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._journal.run(), name="journal")
                group.create_task(self._admit_arrivals(), name="admission")
        finally:
            self._acceptor.close()
            for arrival in self.strangers.all():
                arrival.link.abort(LinkLost("the service stops"))
            for session in self._sessions.all():
                session.end(Code.SHUTDOWN, "the service stops")
            await self._journal.finish()
            await close_all(self._links, GoAway(Code.SHUTDOWN, "the service stops"))

    def _accepted(self, sock: socket.socket, address: str) -> None:
        arrival = _Arrival(self, sock)
        loser = self.strangers.enter(arrival, address, asyncio.get_running_loop().time())
        if loser is not arrival:
            self._links.add(arrival.link)
            arrival.link.start(self._config.user_timeout)
        if loser is not None:
            loser.link.abort(LinkLost("too many connections that nobody knows"))

    # ---- what an arrival asks -----------------------------------------------------------------

    def lost(self, arrival: _Arrival) -> None:
        if arrival in self.strangers:
            self.strangers.leave(arrival)
            self.counters["strangers_lost"] += 1

    def arrived(self, arrival: _Arrival) -> None:
        self._arrivals.put_nowait(arrival)

    async def _admit_arrivals(self) -> None:
        """One after the other, so that of two links of one gateway the later one wins."""
        while True:
            arrival = await self._arrivals.get()
            link, greeting, identity = arrival.link, arrival.greeting, arrival.identity
            if link.closed or greeting is None:
                continue
            try:
                known = bool(identity.name) and await self._registry.is_gateway_allowed(*identity)
            except GatewayError as exc:
                self.counters["admission_failed"] += 1
                self._log.error("registry_failed", gateway=identity.name, reason=exc)
                link.close(GoAway(Code.INTERNAL, "the registry cannot be read now"))
                continue
            self.strangers.leave(arrival)
            if not link.closed:
                try:
                    self._admit(link, identity, greeting, arrival.rest(), known=known)
                except RemoteProtocolError as exc:
                    link.close(GoAway(exc.code, str(exc)), exc)
            # SQLite answers inline: a storm of arrivals must leave the links their turns.
            await asyncio.sleep(0)

    def _admit(
        self, link: Link, identity: PeerIdentity, greeting: Greeting, rest: bytes, *, known: bool
    ) -> None:
        """Resume or start the session of this gateway, or send it away with the reason."""
        refusal = self._refusal(identity, greeting, known)
        if refusal is not None:
            self.counters[f"refused_{refusal.code.name.lower()}"] += 1
            self._log.warning(
                "gateway_refused",
                gateway=identity.name,
                peer=link.peer[0],
                reason=refusal.reason,
            )
            link.close(refusal)
            return
        session = self._sessions.locate(identity.name)
        resumed = session is not None and _may_resume(session, greeting)
        if session is None or not resumed:
            if session is not None:
                session.end(Code.REPLACED, "the gateway started a new session")
            session = Session(
                identity.name,
                greeting,
                self._config.mux,
                self._config.wait,
                self._on_notices,
                self._on_session_down,
            )
            self._sessions.add(session)
        elif session.connected:
            session.drop_link(GoAway(Code.REPLACED, "a newer link of the same session"))
        self._welcome(link, session, identity, greeting, resumed)
        # In a turn of its own: what goes wrong there is that link's matter.
        asyncio.get_running_loop().call_soon(link.resume_reading, rest)

    def _welcome(
        self,
        link: Link,
        session: Session,
        identity: PeerIdentity,
        greeting: Greeting,
        resumed: bool,
    ) -> None:
        address, port = link.peer
        welcome = Welcome(
            version=VERSION,
            resumed=resumed,
            token=session.next_token(),
            received=session.mux.received,
            wait=int(self._config.wait),
            observed_address=address,
            observed_port=port,
            gateway=session.gateway,
        )
        try:
            session.attach(link, greeting.received if resumed else 0)
        except RemoteProtocolError as exc:
            # The same counts would fail for ever: this session is over, the next one is fresh.
            session.end(exc.code, str(exc))
            raise
        link.write(build_welcome(welcome))
        session.resumes += resumed
        self._journal.put(
            LinkUp(session.gateway, identity.fingerprint, address, port, greeting.software, _now())
        )
        self._log.info(
            "gateway_connected",
            gateway=session.gateway,
            address=address,
            port=port,
            resumed=resumed,
            software=greeting.software,
        )
        self._changed()

    def _refusal(self, identity: PeerIdentity, greeting: Greeting, known: bool) -> GoAway | None:
        if not greeting.lowest_version <= VERSION <= greeting.highest_version:
            versions = f"{greeting.lowest_version} to {greeting.highest_version}"
            return GoAway(Code.VERSION, f"this service speaks {VERSION}, the gateway {versions}")
        if not known:
            return GoAway(Code.IDENTITY, "this certificate is not that of an enrolled gateway")
        if self._swapped_too_often(identity.name, greeting):
            return GoAway(
                Code.DUPLICATE_IDENTITY, "another gateway with the same identity is connected"
            )
        return None

    def _swapped_too_often(self, gateway: str, greeting: Greeting) -> bool:
        """Three times in ten minutes a different box pushed out a living one."""
        session = self._sessions.locate(gateway)
        if session is None or not session.connected or session.boot_id == greeting.boot_id:
            return False
        now = asyncio.get_running_loop().time()
        swaps = self._swaps.setdefault(gateway, deque(maxlen=_SWAPS))
        if len(swaps) == _SWAPS and now - swaps[0] < _SWAP_WINDOW:
            return True
        swaps.append(now)
        return False

    # ---- what a session tells -----------------------------------------------------------------

    def _on_notices(self, session: Session, notices: list[Notice]) -> None:
        """To the registry, and acknowledged when they are there; else the gateway repeats them."""
        now = _now()
        for notice in notices:
            observed = Observed(
                session.gateway,
                session.observed_address,
                session.observed_port,
                notice.observation,
                notice.age,
                now,
            )
            self._journal.put(observed, partial(session.acknowledge, notice.sequence))

    def _on_session_down(self, session: Session) -> None:
        current = self._sessions.locate(session.gateway)
        if session.ended or session.draining:
            # A draining session lives on for its streams, but its successor takes the name.
            self._sessions.remove(session)
        if current is None or current is session:
            self._journal.put(LinkDown(session.gateway, _now()))
        self._changed()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()


class _Arrival:
    """A connection that has yet to say who it is."""

    def __init__(self, listener: GatewayListener, sock: socket.socket) -> None:
        self._listener = listener
        loop = asyncio.get_running_loop()
        self.greeting: Greeting | None = None
        self.identity = PeerIdentity("", "")
        self._handshake = Handshake(FrameType.GREETING, loop.time() + _HANDSHAKE_TIMEOUT)
        self.link = Link(loop, sock, TlsEngine(listener.context, None), self)
        self.link.machine = self._handshake

    def rest(self) -> bytes:
        """What came in one piece with the greeting and belongs to the session."""
        return self._handshake.rest()

    def link_ready(self, link: Link) -> None:
        self.identity = link.identity

    def link_progress(self, link: Link) -> None:
        event = self._handshake.next_event()
        match event:
            case Greeting():
                self.greeting = event
                # What it sends before its WELCOME waits in the kernel, not here.
                link.pause_reading()
                self._listener.arrived(self)
            case LinkDead():
                link.close(GoAway(Code.TIMEOUT, f"no greeting within {_HANDSHAKE_TIMEOUT:.0f} s"))
            case None:
                pass
            case _:
                link.close()

    def link_lost(self, link: Link, reason: GatewayError) -> None:
        self._listener.lost(self)
        EventLog("gwmodule.msp").debug("stranger_lost", peer=link.peer[0], reason=reason)


def _may_resume(session: Session, greeting: Greeting) -> bool:
    return session.boot_id == greeting.boot_id and session.knows(greeting.token)


def _now() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()
