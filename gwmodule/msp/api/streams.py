"""Streams to devices: the raw WebSocket relay, and who holds which stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from aiohttp import web

from gwmodule.amt.digest import ha1
from gwmodule.amt.interceptor import LoginInterceptor
from gwmodule.amt.redirection import SessionKind
from gwmodule.errors import ChannelReset, Code, IdentityMismatch
from gwmodule.msp.api.answers import ApiError, time_text
from gwmodule.msp.api.asking import Asked, device_of
from gwmodule.msp.api.auth import Authenticator
from gwmodule.msp.api.calls import Calls, session_of
from gwmodule.msp.api.payloads import RelayQuery
from gwmodule.msp.api.tokens import SpentTokens
from gwmodule.msp.consoles import Consoles
from gwmodule.msp.records import NO_PIN, Device
from gwmodule.msp.registry import Registry
from gwmodule.msp.seam import SessionsSeam
from gwmodule.msp.subprotocol import MAX_CLOSE_REASON, MAX_MESSAGE, SUBPROTOCOL
from gwmodule.msp.vault import Vault
from gwmodule.msp.webrelay import Ending, WebRelay
from gwmodule.ports import REDIRECTION_TCP
from gwmodule.telemetry import EventLog
from gwmodule.wire.messages import StreamTarget

# How long the service waits at its end for requests that are still running.
SHUTDOWN_TIMEOUT = 2.0
# For a session to end in order at the device, which some take two seconds for.
TAKEOVER_TIMEOUT = 5.0
SOL = "sol"
_KINDS = {SessionKind.SOL: SOL, SessionKind.IDER: "ider", SessionKind.KVM: "kvm"}


@dataclass(eq=False, slots=True)
class OpenStream:
    """`close(code, reason)` ends it; `port` is the device's; `kind` is sol, kvm, ider or empty, and
    empty until that is known and allowed; `since` in unix seconds.

    A console's `viewer` does not hold its line: who has the seat does (msp.consoles). A `tool` that
    comes back after its connection was lost says the same as before.
    """

    tenant: str
    uuid: UUID
    port: int
    kind: str
    holder: str
    close: Callable[[Code, str], Awaitable[object]]
    since: float
    viewer: bool = False
    tool: str = ""


class OpenStreams:
    """Every stream that somebody holds through this process."""

    def __init__(self) -> None:
        self._open: set[OpenStream] = set()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def held(self, stream: OpenStream) -> Iterator[None]:
        self._open.add(stream)
        try:
            yield
        finally:
            self._open.discard(stream)

    def to(self, tenant: str, uuid: UUID) -> list[OpenStream]:
        return [s for s in self._open if s.tenant == tenant and s.uuid == uuid]

    def lines(self, tenant: str, uuid: UUID) -> list[OpenStream]:
        """Who has the device's serial line, other than a console."""
        return [s for s in self.to(tenant, uuid) if s.kind == SOL and not s.viewer]

    async def close(self, streams: Iterable[OpenStream], code: Code, reason: str) -> None:
        async with asyncio.TaskGroup() as group:
            for stream in streams:
                group.create_task(_close(stream, code, reason), name="close a stream")

    async def close_all(self, code: Code, reason: str) -> None:
        await self.close(self._open, code, reason)


async def _close(stream: OpenStream, code: Code, reason: str) -> None:
    await stream.close(code, reason)


def busy(holder: str, since: float) -> str:
    """A close frame's reason, of which the console's page wants both ends."""
    text = f"busy: held by {{}} since {time_text(since)}"
    room = MAX_CLOSE_REASON - len(text.format(""))
    return text.format(holder if len(holder) <= room else f"{holder[: room - 3]}...")


async def open_websocket(
    asked: Asked, spent: SpentTokens, now: float, protocols: tuple[str, ...] = (SUBPROTOCOL,)
) -> web.WebSocketResponse:
    """Upgrade; a redirection token is spent here, when nothing else can refuse any more."""
    offered = _offered(asked.http)
    names = tuple(name for name in protocols if name in offered)
    if not names and asked.token is not None:
        # A browser gives up a connection that accepts none of what it offered.
        names = tuple(name for name in offered if name.count(".") == 2)[:1]
    websocket = web.WebSocketResponse(
        timeout=SHUTDOWN_TIMEOUT, protocols=names, compress=False, max_msg_size=MAX_MESSAGE
    )
    if not websocket.can_prepare(asked.http):
        raise ApiError(426, "UPGRADE_REQUIRED", "this is a WebSocket")
    if asked.token is not None and not await spent.spend(asked.token, now):
        raise ApiError(401, "UNAUTHORIZED", "this token has been used; ask for another one")
    await websocket.prepare(asked.http)
    return websocket


def _offered(request: web.Request) -> list[str]:
    lines = request.headers.getall("Sec-WebSocket-Protocol", [])
    return [name.strip() for line in lines for name in line.split(",")]


class Streams:
    """Handlers of group `streams`."""

    def __init__(
        self,
        registry: Registry,
        sessions: SessionsSeam,
        calls: Calls,
        streams: OpenStreams,
        consoles: Consoles,
        spent: SpentTokens,
        authenticator: Authenticator,
        vault: Vault,
        clock: Callable[[], float],
    ) -> None:
        self._vault = vault
        self._authenticator = authenticator
        self._registry = registry
        self._sessions = sessions
        self._calls = calls
        self._streams = streams
        self._consoles = consoles
        self._spent = spent
        self._clock = clock
        self._log = EventLog("gwmodule.msp.api")

    async def webrelay(self, asked: Asked) -> web.StreamResponse:
        query: RelayQuery = asked.query
        device = await device_of(self._registry, asked.tenant, query.host)
        session = session_of(self._sessions, device.gateway)
        if device.mac is None:
            raise ApiError(409, "MAC_UNKNOWN", "the gateway has not told this device's MAC yet")
        target = StreamTarget(
            device.address, query.port, device.mac, device.uuid, hold=query.hold == "1"
        )
        login = await self._stored_login(asked, device, target)
        websocket = await open_websocket(asked, self._spent, self._clock())
        if websocket.ws_protocol == SUBPROTOCOL:
            # Ours, and what is forwarded through it, logs in end to end.
            login = None
        pin = NO_PIN if login is None else device.pin
        relay = WebRelay(websocket, asked.http.transport, query.mode)
        await self._record(asked, "stream.open", device, target, None)
        ending = Ending(Code.CANCELLED, "broken off")
        stream = OpenStream(
            asked.tenant,
            device.uuid,
            query.port,
            "",
            asked.actor,
            relay.close,
            self._clock(),
            tool=query.tool,
        )

        async def claim(kind: SessionKind) -> None:
            # What it says to the device before what it said to us: tools behind `forward` say
            # nothing, and those inside TLS cannot be heard.
            name = _KINDS.get(kind, query.mode)
            if name == SOL:
                await self._free_line(asked, device)
            stream.kind = name

        try:
            async with self._authenticator.watched(asked, relay.close):
                with self._streams.held(stream):
                    ending = await relay.run(session, target, claim, login, pin)
        finally:
            await self._record(asked, "stream.close", device, target, ending)
        return websocket

    async def _stored_login(
        self, asked: Asked, device: Device, target: StreamTarget
    ) -> LoginInterceptor | None:
        """For a tool that leaves the login to the server, as those of Open AMT do."""
        if target.port != REDIRECTION_TCP:
            return None
        stored = await self._vault.load(asked.tenant, device.uuid)
        if stored is None:
            return None

        def secret(realm: str) -> str:
            if device.realm and realm != device.realm:
                # Another device, or a new provisioning: nothing for this secret.
                raise IdentityMismatch(f"realm {realm[:80]!r}, expected {device.realm!r}")
            return ha1(stored.username, realm, stored.password)

        return LoginInterceptor(stored.username, secret)

    async def _free_line(self, asked: Asked, device: Device) -> None:
        """For a stream that is a serial line: ChannelReset where somebody else has it."""
        query: RelayQuery = asked.query
        tenant, uuid = asked.tenant, device.uuid
        if query.takeover == "1":
            reason = f"taken over by {asked.actor}"
            # Of one that does not even take its end, the device will say that it is busy.
            with suppress(TimeoutError):
                async with asyncio.timeout(TAKEOVER_TIMEOUT):
                    await self._consoles.end(tenant, uuid, reason)
                    # Until nobody has it: of two at once the later one keeps it.
                    while lines := self._streams.lines(tenant, uuid):
                        await self._streams.close(lines, Code.CANCELLED, reason)
                        for line in lines:
                            # It may need a while to go, but it has nothing any more.
                            line.kind = ""
            return
        if (seat := self._consoles.seat(tenant, uuid)) is not None:
            raise ChannelReset(Code.LIMIT, busy(seat.name, seat.since))
        lines = self._streams.lines(tenant, uuid)
        own = [s for s in lines if s.holder == asked.actor and s.tool == query.tool]
        if other := next((s for s in lines if s not in own), None):
            raise ChannelReset(Code.LIMIT, busy(other.holder, other.since))
        # A connection that was lost without our knowing left it behind. Of a tool that does not say
        # who it is, the device knows whether it lives.
        if query.tool:
            await self._streams.close(own, Code.REPLACED, "this tool opened its stream again")

    async def _record(
        self,
        asked: Asked,
        action: str,
        device: Device,
        target: StreamTarget,
        ending: Ending | None,
    ) -> None:
        detail: dict[str, Any] = {"port": target.port}
        if ending is not None:
            detail |= {
                "code": ending.code.name.lower(),
                "reason": ending.reason,
                "toDevice": ending.to_device,
                "fromDevice": ending.from_device,
            }
        self._log.info(
            action.replace(".", "_"), device=device.uuid, gateway=device.gateway, **detail
        )
        await self._calls.record(asked.principal, action, device.gateway, device, detail)
