"""The MSP's end of one gateway's session: calls and streams over whatever link is up."""

from __future__ import annotations

import asyncio
import hmac
import json
import random
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from typing import assert_never
from uuid import UUID

from gwmodule.amt.digest import Responder, Wanted
from gwmodule.amt.hold import ToolHold
from gwmodule.config import MAX_LINK_TIMEOUT, LivenessConfig, MuxConfig
from gwmodule.errors import (
    AuthenticationFailed,
    ChannelReset,
    ChannelStateError,
    Code,
    DeadlineExceeded,
    GatewayError,
    LinkLost,
    RemoteProtocolError,
)
from gwmodule.msp.stream import Stream
from gwmodule.msp.traffic import Traffic
from gwmodule.telemetry import EventLog
from gwmodule.uplink.link import Link
from gwmodule.wire.bodies import MAX_BODY, BodyError, inflate
from gwmodule.wire.events import (
    ChannelAccepted,
    ChannelEnded,
    ChannelOpened,
    ChannelWritable,
    DataReceived,
    EofReceived,
    Event,
    LinkDead,
    MessageReceived,
    PeerGoingAway,
    RoundTrip,
    SessionReset,
)
from gwmodule.wire.frames import NO_TOKEN, TOKEN_SIZE, CredentialMode, Priority, TlsMode
from gwmodule.wire.functions import EXPLAIN, STATUS
from gwmodule.wire.messages import (
    Call,
    Cancel,
    Challenge,
    Credential,
    GoAway,
    Greeting,
    Message,
    Notice,
    NoticeAck,
    Progress,
    Responses,
    Result,
    ResultTarget,
    StreamTarget,
)
from gwmodule.wire.mux import Mux, Side
from gwmodule.wire.notices import NO_MAC, NO_UUID

# The gateway answers a call at its deadline by itself; this much later it is not going to.
_GRACE = 5.0
# Ends of a session that a resumption would have spared its streams.
_NOT_RESUMED = (Code.SESSION_LOST, Code.REPLACED)


class _PendingCall:
    def __init__(
        self, on_progress: Callable[[Progress], None] | None, responder: Responder | None
    ) -> None:
        self.responder = responder
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.on_progress = on_progress
        # A result that comes on a bulk channel of its own waits here for its body.
        self.header: Result | None = None
        self.body = bytearray()
        self.complete = False


class Session:
    """Everything the MSP keeps for one gateway while its session lasts."""

    def __init__(
        self,
        gateway: str,
        greeting: Greeting,
        mux_config: MuxConfig,
        wait: float,
        on_notices: Callable[[Session, list[Notice]], None],
        on_down: Callable[[Session], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._log = EventLog("gwmodule.msp")
        self.gateway = gateway
        self.boot_id = greeting.boot_id
        self.software = greeting.software
        self.observed_address = ""
        self.observed_port = 0
        self.connected_at = 0.0
        self.resumes = 0
        # Its own until it is added to `Sessions`, which share one.
        self.traffic = Traffic()
        timeout = min(max(greeting.timeout, 0.3), MAX_LINK_TIMEOUT)
        liveness = LivenessConfig(interval=timeout / 3, timeout=timeout)
        # The jitter of pings only; they come from the gateway.
        self.mux = Mux(Side.MSP, mux_config, liveness, random.Random())
        self.token = self._former_token = NO_TOKEN
        self._wait = wait
        self._on_notices = on_notices
        self._on_down = on_down
        self._link: Link | None = None
        self._streams: dict[int, Stream] = {}
        self._results: dict[int, int] = {}
        self._calls: dict[int, _PendingCall] = {}
        self._last_call = 0
        self._expiry: asyncio.TimerHandle | None = None
        self.draining = False
        self.ended = False

    @property
    def connected(self) -> bool:
        return self._link is not None

    @property
    def rtt(self) -> float | None:
        """Seconds, as the gateway measured it last; None before the first PONG."""
        return self.mux.rtt or None

    # ---- links --------------------------------------------------------------------------------

    def next_token(self) -> bytes:
        """A new token for each link: one that was used once is worth nothing.

        Unless its WELCOME was lost with the new link: the one before stays good until the first
        frame proves that the gateway has the new one.
        """
        if self.mux.heard:
            self._former_token = self.token
        self.token = secrets.token_bytes(TOKEN_SIZE)
        return self.token

    def knows(self, token: bytes) -> bool:
        """Whether this token resumes the session."""
        known = hmac.compare_digest(token, self.token)
        former = not self.mux.heard and hmac.compare_digest(token, self._former_token)
        return token != NO_TOKEN and (known or former)

    def attach(self, link: Link, received: int) -> None:
        """Go on over this link. RemoteProtocolError when the counts do not fit."""
        self.mux.attach(received, self._loop.time(), link.rtt)
        self.traffic.resumed += len(self._streams)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._link = link
        self.observed_address, self.observed_port = link.peer
        self.connected_at = self._loop.time()
        link.owner = self
        link.machine = self.mux

    def detach(self) -> None:
        self.mux.detach()
        self._link = None

    def drop_link(self, goaway: GoAway) -> None:
        """Let go of a link that another one replaces."""
        link = self._link
        if link is not None:
            self.detach()
            link.close(goaway)
            self.traffic.links_lost[goaway.code] += 1

    def send_away(self, reason: str, address: str, deadline: int) -> None:
        """Make before break: the gateway opens a new session at `address` (empty: here again), this
        one takes no new channels and ends with its last stream, at the latest in `deadline` s.
        """
        self.draining = True
        self.mux.go_away(GoAway(Code.SHUTDOWN, reason, address, deadline))
        self.flush_soon()
        self._expiry = self._loop.call_later(deadline, self.end, Code.SHUTDOWN, reason)
        self._on_down(self)

    def link_ready(self, link: Link) -> None:
        """TLS was up before the session got this link."""

    def link_progress(self, link: Link) -> None:
        notices: list[Notice] = []
        while (event := self.mux.next_event()) is not None:
            self._handle(event, notices)
        if notices:
            self._on_notices(self, notices)

    def acknowledge(self, sequence: int, want_snapshot: bool) -> None:
        """A notice is stored; without a link the gateway hears of it at the next one."""
        if not self.ended:
            self.mux.send_message(NoticeAck(sequence, want_snapshot))
            self.flush_soon()

    def link_lost(self, link: Link, reason: GatewayError) -> None:
        if link is not self._link:
            return
        self._log.info("link_lost", gateway=self.gateway, reason=reason)
        self.detach()
        if isinstance(reason, RemoteProtocolError):
            self.traffic.links_lost[reason.code] += 1
            self.end(reason.code, f"protocol error: {reason}")
            return
        self.traffic.links_lost[Code.SHUTDOWN if self.draining else Code.CONNECTION_LOST] += 1
        if self.draining:
            self.end(Code.SHUTDOWN, "the gateway moved to another session")
            return
        self._expiry = self._loop.call_later(
            self._wait, self.end, Code.SESSION_LOST, f"the gateway was away for {self._wait:.0f} s"
        )
        self._on_down(self)

    def end(self, code: Code, reason: str) -> None:
        """The session is over: every stream and call learns it now."""
        if self.ended:
            return
        self.ended = True
        if self._expiry is not None:
            self._expiry.cancel()
        link, self._link = self._link, None
        if link is not None:
            link.close(GoAway(code, reason))
        if code in _NOT_RESUMED:
            self.traffic.lost += len(self._streams)
        self.mux.abandon(code, reason)
        while (event := self.mux.next_event()) is not None:
            self._handle(event, [])
        for pending in self._calls.values():
            if not pending.result.done():
                pending.result.set_exception(LinkLost(f"outcome unknown: {reason}"))
        self._calls.clear()
        self._on_down(self)

    @property
    def buffered(self) -> int:
        """Bytes for the gateway that it has not acknowledged."""
        return self.mux.unacknowledged

    def flush(self) -> None:
        if self._link is not None:
            self._link.flush()

    def flush_soon(self) -> None:
        if self._link is not None:
            self._link.flush_soon()

    # ---- calls --------------------------------------------------------------------------------

    async def call(
        self,
        *,
        function: str,
        arguments: bytes,
        address: IPv4Address,
        mac: bytes,
        uuid: UUID,
        credential: Credential,
        deadline: float,
        tls: TlsMode = TlsMode.AUTO,
        pin: bytes = bytes(32),
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Result:
        """Run one function on the gateway; never repeated, whatever happens to the link.

        A credential of mode CHALLENGE holds the HA1 as its secret, which stays here.

        LinkLost when the gateway is away, or with "outcome unknown" when it went away before the
        result; DeadlineExceeded when not even the gateway's own deadline brought an answer.
        """
        if self._link is None or self.draining:
            raise LinkLost(f"gateway {self.gateway} is not connected")
        self._last_call = (self._last_call + 1) & 0xFFFFFFFF
        number = self._last_call
        responder = None
        if credential.mode is CredentialMode.CHALLENGE:
            # The secret stays with the responder; the codec does not write it either.
            responder = Responder(credential, partial(secrets.token_hex, 16))
            credential = replace(credential, secret="")
        pending = self._calls[number] = _PendingCall(on_progress, responder)
        message = Call(
            call=number,
            deadline=deadline,
            address=address,
            mac=mac,
            uuid=uuid,
            function=function,
            arguments=arguments,
            credential=credential,
            tls=tls,
            pin=pin,
        )
        try:
            self.mux.send_message(message)
            self.flush_soon()
            async with asyncio.timeout(deadline + _GRACE):
                return await pending.result
        except TimeoutError as exc:
            self._cancel(number)
            raise DeadlineExceeded(f"no answer within {deadline:.1f} s; outcome unknown") from exc
        except asyncio.CancelledError:
            self._cancel(number)
            raise
        finally:
            self._calls.pop(number, None)

    async def explain(
        self,
        *,
        address: IPv4Address,
        mac: bytes,
        uuid: UUID,
        pin: bytes = bytes(32),
        deadline: float = 20.0,
    ) -> Result:
        """The gateway's checklist of why this device can be reached or not; without a login.
        Errors as `call`.
        """
        return await self._ask_gateway(EXPLAIN, address, mac, uuid, pin, deadline)

    async def status(self, deadline: float = 10.0) -> Result:
        """What `gwmodule status` says there, `lockdown` among it. Errors as `call`."""
        nobody = IPv4Address(0)
        return await self._ask_gateway(STATUS, nobody, NO_MAC, NO_UUID, bytes(32), deadline)

    async def _ask_gateway(
        self,
        function: str,
        address: IPv4Address,
        mac: bytes,
        uuid: UUID,
        pin: bytes,
        deadline: float,
    ) -> Result:
        return await self.call(
            function=function,
            arguments=b"{}",
            address=address,
            mac=mac,
            uuid=uuid,
            credential=Credential(),
            deadline=deadline,
            pin=pin,
        )

    def _cancel(self, number: int) -> None:
        if not self.ended:
            self.mux.send_message(Cancel(number))
            self.flush_soon()

    # ---- streams ------------------------------------------------------------------------------

    async def open_stream(self, target: StreamTarget, priority: Priority) -> Stream:
        """ChannelReset with the gateway's code and reason when it refuses."""
        try:
            return await self._open(target, priority)
        except ChannelReset as exc:
            self.traffic.refused[exc.code] += 1
            raise

    async def _open(self, target: StreamTarget, priority: Priority) -> Stream:
        if self._link is None or self.draining:
            raise ChannelReset(Code.SESSION_LOST, f"gateway {self.gateway} is not connected")
        try:
            channel = self.mux.open(target, priority)
        except ChannelStateError as exc:
            raise ChannelReset(Code.LIMIT, str(exc)) from exc
        hold = ToolHold() if target.hold else None
        stream = self._streams[channel] = Stream(self, channel, priority, hold)
        self.flush_soon()
        try:
            await stream.opened()
        except asyncio.CancelledError:
            stream.reset(Code.CANCELLED, "the technician's tool went away")
            raise
        return stream

    def consumed(self, channel: int, size: int) -> None:
        if self.mux.consume(channel, size, self._loop.time()):
            self.flush_soon()

    def reset_stream(self, channel: int, code: Code, reason: str) -> None:
        if self._streams.pop(channel, None) is not None:
            self.mux.reset(channel, code, reason)
            self.flush_soon()

    # ---- events -------------------------------------------------------------------------------

    def _handle(self, event: Event, notices: list[Notice]) -> None:
        match event:
            case DataReceived(channel, data):
                self._on_data(channel, data)
            case MessageReceived(message):
                self._on_message(message, notices)
            case ChannelAccepted(channel):
                if channel in self._streams:
                    self._streams[channel].accepted()
            case ChannelWritable(channel):
                if channel in self._streams:
                    self._streams[channel].room_made()
            case EofReceived(channel):
                self._on_eof(channel)
            case ChannelEnded(channel, code, reason):
                self._on_channel_ended(channel, code, reason)
            case ChannelOpened(channel, _, target):
                if isinstance(target, ResultTarget) and target.call in self._calls:
                    self._results[channel] = target.call
                    self.mux.accept(channel)
                else:
                    self.mux.refuse(channel, Code.CANCELLED, "nobody waits for this")
            case PeerGoingAway(goaway):
                self._log.info("gateway_leaves", gateway=self.gateway, reason=goaway.reason)
            case LinkDead(silent):
                if self._link is not None:
                    self._link.abort(LinkLost(f"nothing received for {silent:.1f} s"))
            case RoundTrip() | SessionReset():
                pass
            case _:
                assert_never(event)

    def _on_data(self, channel: int, data: bytes) -> None:
        if channel in self._streams:
            self._streams[channel].data_received(data)
            return
        pending = self._calls.get(self._results.get(channel, 0))
        if pending is None or len(pending.body) + len(data) > MAX_BODY:
            self.mux.reset(channel, Code.LIMIT, f"a result is at most {MAX_BODY} bytes")
            self._results.pop(channel, None)
            return
        pending.body += data
        self.mux.consume(channel, len(data), self._loop.time())

    def _on_eof(self, channel: int) -> None:
        if channel in self._streams:
            self._streams[channel].eof_received()
            return
        call = self._results.pop(channel, None)
        if call is not None:
            self.mux.send_eof(channel)
            if call in self._calls:
                self._calls[call].complete = True
                self._finish(self._calls[call])

    def _on_channel_ended(self, channel: int, code: Code, reason: str) -> None:
        stream = self._streams.pop(channel, None)
        if stream is not None:
            stream.ended(ChannelReset(code, reason))
        call = self._results.pop(channel, None)
        if call is not None and call in self._calls:
            pending = self._calls[call]
            if not pending.result.done():
                pending.result.set_exception(LinkLost(f"the result was cut off: {reason}"))

    def _on_message(self, message: Message, notices: list[Notice]) -> None:
        match message:
            case Notice():
                notices.append(message)
            case Result():
                pending = self._calls.get(message.call)
                if pending is not None:
                    pending.header = message
                    self._finish(pending)
            case Progress():
                pending = self._calls.get(message.call)
                if pending is not None and pending.on_progress is not None:
                    pending.on_progress(message)
            case Challenge():
                self._on_challenge(message)
            case NoticeAck() | Call() | Cancel() | Responses():
                self.end(Code.PROTOCOL_ERROR, f"{type(message).__name__} from a gateway")
            case _:
                assert_never(message)

    def _on_challenge(self, asked: Challenge) -> None:
        pending = self._calls.get(asked.call)
        if pending is None:
            return
        try:
            if pending.responder is None:
                raise AuthenticationFailed("this call is not in mode challenge")
            wanted = Wanted(asked.realm, asked.nonce, asked.uri, asked.nonce_count, asked.count)
            cnonce, responses = pending.responder.respond(wanted)
        except AuthenticationFailed as exc:
            self.mux.send_message(Responses(asked.call, reason=str(exc)))
        else:
            self.mux.send_message(Responses(asked.call, cnonce, responses))

    def _finish(self, pending: _PendingCall) -> None:
        header = pending.header
        if header is None or pending.result.done() or (header.detached and not pending.complete):
            return
        if header.detached:
            header.body = bytes(pending.body)
        if header.deflated:
            try:
                header.body = inflate(header.body)
            except BodyError as exc:
                # The call is done all the same; only what it brought cannot be read.
                header.code, header.body = exc.code, json.dumps({"error": str(exc)}).encode()
        pending.result.set_result(header)


class Sessions:
    """Who is connected to this process: the one seam for several nodes (`locate`)."""

    def __init__(self) -> None:
        self._by_gateway: dict[str, Session] = {}
        self.traffic = Traffic()

    def locate(self, gateway: str) -> Session | None:
        return self._by_gateway.get(gateway)

    def all(self) -> list[Session]:
        return list(self._by_gateway.values())

    def add(self, session: Session) -> None:
        session.traffic = self.traffic
        self._by_gateway[session.gateway] = session

    def remove(self, session: Session) -> None:
        if self._by_gateway.get(session.gateway) is session:
            del self._by_gateway[session.gateway]
