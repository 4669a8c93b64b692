"""The console's WebSocket: one browser that looks at a device's serial line, or types on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

from aiohttp import web

from gwmodule.errors import Code, NotProvisioned
from gwmodule.msp.accounts import Role
from gwmodule.msp.api.asking import Asked, device_of
from gwmodule.msp.api.auth import Authenticator
from gwmodule.msp.api.calls import Calls
from gwmodule.msp.api.streams import SOL, OpenStream, OpenStreams, busy, open_websocket
from gwmodule.msp.api.tokens import SpentTokens
from gwmodule.msp.console_protocol import CONSOLE_SUBPROTOCOL, Want
from gwmodule.msp.consoles import ConsoleRefused, Consoles, Line, Place, Viewer
from gwmodule.msp.database import RegistryError
from gwmodule.msp.records import NO_PIN
from gwmodule.msp.registry import Registry
from gwmodule.msp.sol import SolLogin, SolLost
from gwmodule.msp.subprotocol import CLOSE_BASE, close_reason
from gwmodule.msp.vault import Vault
from gwmodule.msp.viewers import ViewerSocket
from gwmodule.ports import REDIRECTION_TCP


class ConsoleRoutes:
    """Handlers of group `consoles`."""

    def __init__(
        self,
        registry: Registry,
        vault: Vault,
        calls: Calls,
        consoles: Consoles,
        streams: OpenStreams,
        spent: SpentTokens,
        authenticator: Authenticator,
        clock: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._vault = vault
        self._calls = calls
        self._consoles = consoles
        self._streams = streams
        self._spent = spent
        self._authenticator = authenticator
        self._clock = clock

    async def sol(self, asked: Asked) -> web.StreamResponse:
        device = await device_of(self._registry, asked.tenant, asked.path("guid"))
        tenant, uuid = asked.tenant, device.uuid
        may_type = asked.principal.role.covers(Role.TECHNICIAN)
        websocket = await open_websocket(asked, self._spent, self._clock(), (CONSOLE_SUBPROTOCOL,))

        async def find_line() -> Line:
            return await self._line(tenant, uuid)

        async def audit(actor: str, action: str, detail: dict[str, Any]) -> None:
            await self._calls.record(
                replace(asked.principal, name=actor), action, device.gateway, device, detail
            )

        async def attach(place: Place) -> Viewer:
            if may_type and place.want is not Want.WATCH:
                await self._free_line(asked, uuid, takeover=place.want is Want.TAKEOVER)
            return await self._consoles.attach(
                tenant, uuid, asked.actor, place, find_line, audit, may_type=may_type
            )

        async def leave(code: Code, reason: str) -> None:
            await websocket.close(code=CLOSE_BASE + code, message=close_reason(reason))

        async def close(code: Code, reason: str) -> None:
            # A browser alone would be back at once.
            await self._consoles.end(tenant, uuid, reason)
            await leave(code, reason)

        stream = OpenStream(
            tenant, uuid, REDIRECTION_TCP, SOL, asked.actor, close, since=self._clock(), viewer=True
        )
        transport, stall = asked.http.transport, self._consoles.settings.stall
        async with self._authenticator.watched(asked, leave):
            with self._streams.held(stream):
                await ViewerSocket(websocket, transport, stall).run(attach)
        return websocket

    async def _free_line(self, asked: Asked, uuid: UUID, *, takeover: bool) -> None:
        """Before a console is opened: ConsoleRefused where a raw stream has the line."""
        if self._consoles.is_open(asked.tenant, uuid):
            return
        lines = self._streams.lines(asked.tenant, uuid)
        if takeover:
            await self._streams.close(lines, Code.CANCELLED, f"taken over by {asked.actor}")
        elif lines:
            raise ConsoleRefused(Code.DEVICE_REFUSED, busy(lines[0].holder, lines[0].since))

    async def _line(self, tenant: str, uuid: UUID) -> Line:
        """As things are now: a device may have moved since its console was opened."""
        try:
            device = await self._registry.device(uuid, tenant=tenant)
            login = await self._vault.load(tenant, uuid)
        except RegistryError as exc:
            raise SolLost(str(exc)) from exc
        if device is None:
            raise ConsoleRefused(Code.UNREACHABLE, "the device is not in the registry any more")
        if device.mac is None:
            raise ConsoleRefused(Code.UNREACHABLE, "the gateway has not told the device's MAC yet")
        if login is None:
            raise NotProvisioned("no AMT login is stored for this device")
        pin = device.pin if device.pin != NO_PIN else None
        return Line(
            device.gateway,
            device.address,
            device.mac,
            device.uuid,
            SolLogin(login.username, login.password, device.realm, pin),
        )
