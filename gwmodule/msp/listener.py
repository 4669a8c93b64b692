"""Where gateways arrive: TLS, greeting, identity; then the link belongs to a session."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gwmodule.config import MuxConfig
from gwmodule.errors import Code, GatewayError, LinkLost, RemoteProtocolError
from gwmodule.msp.session import Session, Sessions
from gwmodule.telemetry import Counters, EventLog
from gwmodule.uplink.link import Link
from gwmodule.uplink.tls import PeerIdentity, TlsEngine, server_context
from gwmodule.wire.codec import build_welcome
from gwmodule.wire.events import LinkDead
from gwmodule.wire.frames import VERSION, FrameType
from gwmodule.wire.handshake import Handshake
from gwmodule.wire.messages import GoAway, Greeting, Notice, NoticeAck, Welcome
from gwmodule.wire.notices import Digest, Observation

# Seconds from accept to greeting, TLS included.
_HANDSHAKE_TIMEOUT = 10.0
# Connections that have not proved who they are; a flood of them costs no known gateway its link.
_MAX_STRANGERS = 512
_BACKLOG = 1024
# Two boxes with one identity push each other out: after three such swaps the newer one waits.
_SWAPS = 3
_SWAP_WINDOW = 600.0
_ACCEPTS_PER_TURN = 32


class GatewayRegistry(Protocol):
    """What the listener needs of msp.registry: `at` is unix time, failures are GatewayError."""

    def is_gateway_allowed(self, gateway: str, fingerprint: str) -> bool: ...
    def gateway_connected(
        self, gateway: str, fingerprint: str, address: str, port: int, software: str, at: float
    ) -> None: ...
    def gateway_disconnected(self, gateway: str, at: float) -> None: ...
    def observe(
        self,
        gateway: str,
        address: str,
        port: int,
        observation: Observation,
        age: float,
        at: float,
    ) -> None: ...
    def stored_digest(self, gateway: str) -> bytes | None: ...
    def commit(self) -> None: ...


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
        self._strangers: set[_Arrival] = set()
        self._swaps: dict[str, deque[float]] = {}
        self._socket: socket.socket | None = None
        self.counters = Counters()
        self.listening = asyncio.Event()

    @property
    def port(self) -> int:
        """The port in use, once `listening` is set."""
        assert self._socket is not None  # noqa: S101 - callers wait for `listening`
        return int(self._socket.getsockname()[1])

    @property
    def context(self) -> ssl.SSLContext:
        return self._context

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._socket = _listen(self._config.host, self._config.port)
        loop.add_reader(self._socket.fileno(), self._accept)
        self.listening.set()
        self._log.info("listening", address=self._config.host, port=self.port)
        try:
            await loop.create_future()
        finally:
            loop.remove_reader(self._socket.fileno())
            self._socket.close()
            for arrival in list(self._strangers):
                arrival.link.abort(LinkLost("the service stops"))
            for session in self._sessions.all():
                session.end(Code.SHUTDOWN, "the service stops")

    def _accept(self) -> None:
        assert self._socket is not None  # noqa: S101 - registered with the socket
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, _address = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                # Out of descriptors: the backlog keeps the caller, the next turn tries again.
                self.counters["accept_failed"] += 1
                self._log.warning("accept_failed", reason=exc.strerror)
                return
            if len(self._strangers) >= _MAX_STRANGERS:
                self.counters["too_many_strangers"] += 1
                sock.close()
                continue
            arrival = _Arrival(self, sock, self._config.user_timeout)
            self._strangers.add(arrival)
            arrival.link.start(self._config.user_timeout)

    # ---- what an arrival asks -----------------------------------------------------------------

    def forget(self, arrival: _Arrival) -> None:
        self._strangers.discard(arrival)

    def admit(self, link: Link, identity: PeerIdentity, greeting: Greeting, rest: bytes) -> None:
        """Resume or start the session of this gateway, or send it away with the reason."""
        refusal = self._refusal(identity, greeting)
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
        if rest and not link.closed:
            session.mux.receive_data(rest, asyncio.get_running_loop().time())
            session.link_progress(link)

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
        with contextlib.suppress(GatewayError):
            self._registry.gateway_connected(
                session.gateway, identity.fingerprint, address, port, greeting.software, _now()
            )
            self._registry.commit()
        self._log.info(
            "gateway_connected",
            gateway=session.gateway,
            address=address,
            port=port,
            resumed=resumed,
            software=greeting.software,
        )
        self._changed()

    def _refusal(self, identity: PeerIdentity, greeting: Greeting) -> GoAway | None:
        if not greeting.lowest_version <= VERSION <= greeting.highest_version:
            versions = f"{greeting.lowest_version} to {greeting.highest_version}"
            return GoAway(Code.VERSION, f"this service speaks {VERSION}, the gateway {versions}")
        if not identity.name or not self._registry.is_gateway_allowed(*identity):
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

    def _on_notices(self, session: Session, notices: list[Notice]) -> list[NoticeAck]:
        """Store, commit, and only then acknowledge; without the commit the gateway repeats."""
        now = _now()
        acks: list[NoticeAck] = []
        try:
            for notice in notices:
                wanted = isinstance(notice.observation, Digest) and (
                    self._registry.stored_digest(session.gateway) != notice.observation.sha256
                )
                self._registry.observe(
                    session.gateway,
                    session.observed_address,
                    session.observed_port,
                    notice.observation,
                    notice.age,
                    now,
                )
                acks.append(NoticeAck(notice.sequence, wanted))
            self._registry.commit()
        except GatewayError as exc:
            self.counters["commit_failed"] += 1
            self._log.error("registry_failed", gateway=session.gateway, reason=exc)
            return []
        self._changed()
        return acks

    def _on_session_down(self, session: Session) -> None:
        if session.ended or session.draining:
            # A draining session lives on for its streams, but its successor takes the name.
            self._sessions.remove(session)
        try:
            self._registry.gateway_disconnected(session.gateway, _now())
            self._registry.commit()
        except GatewayError as exc:
            self._log.error("registry_failed", gateway=session.gateway, reason=exc)
        self._changed()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()


class _Arrival:
    """A connection that has yet to say who it is."""

    def __init__(self, listener: GatewayListener, sock: socket.socket, timeout: float) -> None:
        self._listener = listener
        loop = asyncio.get_running_loop()
        self._handshake = Handshake(FrameType.GREETING, loop.time() + _HANDSHAKE_TIMEOUT)
        self.link = Link(loop, sock, TlsEngine(listener.context, None), self)
        self.link.machine = self._handshake

    def link_ready(self, link: Link) -> None:
        """TLS is up; the greeting is still to come."""

    def link_progress(self, link: Link) -> None:
        event = self._handshake.next_event()
        match event:
            case Greeting():
                self._listener.forget(self)
                try:
                    self._listener.admit(link, link.identity, event, self._handshake.rest())
                except RemoteProtocolError as exc:
                    link.close(GoAway(exc.code, str(exc)), exc)
            case LinkDead():
                link.close(GoAway(Code.TIMEOUT, f"no greeting within {_HANDSHAKE_TIMEOUT:.0f} s"))
            case None:
                pass
            case _:
                link.close()

    def link_lost(self, link: Link, reason: GatewayError) -> None:
        self._listener.forget(self)
        self._listener.counters["strangers_lost"] += 1
        EventLog("gwmodule.msp").debug("stranger_lost", peer=link.peer[0], reason=reason)


def _may_resume(session: Session, greeting: Greeting) -> bool:
    return session.boot_id == greeting.boot_id and session.knows(greeting.token)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
    sock.bind((host, port))
    sock.listen(_BACKLOG)
    return sock


def _now() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()
