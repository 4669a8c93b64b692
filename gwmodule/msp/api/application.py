"""The API: one application for the unix socket and for TCP, made of the table of routes.

request -> origin -> route's row -> who asks, may he -> query, body -> handler -> JSON
                                                                \\-> ApiError: one shape
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import UUID

from aiohttp import web

from gwmodule.errors import Code
from gwmodule.msp.accounts import Accounts as Directory
from gwmodule.msp.api.accounts import Accounts
from gwmodule.msp.api.amt import Amt
from gwmodule.msp.api.answers import (
    ApiError,
    error_response,
    from_aiohttp,
    json_response,
    time_text,
)
from gwmodule.msp.api.asking import MAX_BODY, Asked, body_of, query_of
from gwmodule.msp.api.audit import Audit
from gwmodule.msp.api.auth import RECHECK, Authenticator
from gwmodule.msp.api.calls import Calls, Held, is_connected
from gwmodule.msp.api.consoles import ConsoleRoutes
from gwmodule.msp.api.devices import Devices
from gwmodule.msp.api.events import Events
from gwmodule.msp.api.gateways import Gateways
from gwmodule.msp.api.listening import MAX_CONNECTIONS, MAX_STRANGERS
from gwmodule.msp.api.metrics import Metrics
from gwmodule.msp.api.once import UsedKeys
from gwmodule.msp.api.openapi import document
from gwmodule.msp.api.routes import ROUTES, Route
from gwmodule.msp.api.service import Service
from gwmodule.msp.api.streams import OpenStreams, Streams
from gwmodule.msp.api.tokens import DEFAULT_LIFETIME, SpentTokens, Tokens
from gwmodule.msp.console import add_console
from gwmodule.msp.consoles import Consoles
from gwmodule.msp.database import Database, RegistryError, StatementError
from gwmodule.msp.enrolment_site import EnrolmentSite
from gwmodule.msp.http_port import Callers
from gwmodule.msp.labels import Labels
from gwmodule.msp.pki import Authority
from gwmodule.msp.records import Device
from gwmodule.msp.registry import Registry, RegistryConflict
from gwmodule.msp.seam import SessionsSeam
from gwmodule.msp.vault import Vault
from gwmodule.ports import WSMAN_PORTS
from gwmodule.telemetry import EventLog

Handler = Callable[[Asked], Awaitable[Any]]
# For a whole answer: the longest, some ten MB of devices, over the slowest line that shows a page.
SEND_TIMEOUT = 120.0
# Seconds until a connection may be free again.
RETRY = 10


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """`names` is what the gateways' listener is known by; times in seconds."""

    names: Sequence[str] = ()
    token_lifetime: float = DEFAULT_LIFETIME
    recheck: float = RECHECK
    proxies: Collection[str] = ()
    origins: Collection[str] = ()


@dataclass(slots=True)
class Parts:
    """What the API stands on; `clock` gives unix seconds, `monotonic` seconds of any origin."""

    database: Database
    registry: Registry
    accounts: Directory
    vault: Vault
    sessions: SessionsSeam
    authority: Authority
    signing_key: bytes = field(repr=False)
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    enrolment: EnrolmentSite | None = None


def _pattern(path: str) -> str:
    """`path` for the router: a last {part} does not stand for what has a row of its own.

    Else `DELETE /devices/stats` would be about a device called stats.
    """
    parent, _, last = path.rpartition("/")
    if not last.startswith("{"):
        return path
    literals = {route.path.rpartition("/") for route in ROUTES}
    others = "|".join(sorted(name for up, _, name in literals if up == parent and name != last))
    return f"{parent}/{{{last[1:-1]}:(?!(?:{others})$)[^/]+}}" if others else path


class Api:
    """`groups` maps the first half of a route's handler to the object that has the second half."""

    def __init__(self, parts: Parts, options: ApiOptions = ApiOptions()) -> None:
        self._log = EventLog("gwmodule.msp.api")
        clock = parts.clock
        self.events = Events()
        self.metrics = Metrics()
        self.streams = OpenStreams()
        self.spent = SpentTokens(parts.database)
        self.tokens = Tokens(parts.signing_key, clock, lifetime=options.token_lifetime)
        self.authenticator = Authenticator(
            parts.accounts,
            self.tokens,
            clock,
            proxies=options.proxies,
            origins=options.origins,
            recheck=options.recheck,
        )
        self.calls = Calls(
            parts.registry,
            parts.sessions,
            parts.vault,
            self.events,
            UsedKeys(parts.database),
            clock,
            self.metrics.called,
            self._held,
        )
        self.consoles = Consoles(parts.sessions, clock)
        labels = Labels(parts.database)
        self._service = Service(
            parts.registry,
            self.events,
            self.metrics,
            self.authenticator,
            # Making it takes 40 ms, which everybody else would wait.
            cache(document),
            parts.database.dialect.value,
        )
        self.groups: dict[str, object] = {
            "service": self._service,
            "accounts": Accounts(
                parts.accounts,
                parts.registry,
                self.tokens,
                self.authenticator,
                clock,
                parts.monotonic,
                self.metrics.login,
            ),
            "audit": Audit(parts.registry, clock),
            "devices": Devices(
                parts.registry,
                labels,
                parts.vault,
                parts.sessions,
                self.calls,
                self.streams,
                self.events,
                clock,
            ),
            "gateways": Gateways(
                parts.registry,
                parts.sessions,
                parts.authority,
                options.names,
                clock,
                parts.enrolment,
            ),
            "amt": Amt(parts.registry, self.calls),
            "consoles": ConsoleRoutes(
                parts.registry,
                parts.vault,
                self.calls,
                self.consoles,
                self.streams,
                self.spent,
                self.authenticator,
                clock,
            ),
            "streams": Streams(
                parts.registry,
                parts.sessions,
                self.calls,
                self.streams,
                self.consoles,
                self.spent,
                self.authenticator,
                parts.vault,
                clock,
            ),
        }
        # By what the router calls.
        self._routes: dict[object, Route] = {}
        self._sessions = parts.sessions
        parts.registry.on_devices = self._devices_changed
        parts.registry.on_links = self._links_changed
        self.callers = Callers("http", MAX_STRANGERS, MAX_CONNECTIONS)
        self._gauges(parts.sessions)

    def _gauges(self, sessions: SessionsSeam) -> None:
        def links() -> dict[str, float]:
            up = sum(session.connected for session in sessions.all())
            return {"up": up, "away": len(sessions.all()) - up}

        self.metrics.gauge("gateways", "Gateways with a session here, by link", links, "link")
        self.metrics.sessions(sessions)
        self.metrics.gauge("streams", "Open streams to devices", lambda: {"": len(self.streams)})
        self.metrics.gauge("watchers", "Clients of /events", lambda: {"": len(self.events)})

    def _devices_changed(self, devices: Collection[Device]) -> None:
        for device in devices:
            up = is_connected(self._sessions, device.gateway) and device.gone_at is None
            self.events.publish(
                device.tenant,
                "device",
                {
                    "guid": str(device.uuid),
                    "gateway": device.gateway,
                    "hostname": device.hostname,
                    "state": device.state,
                    "contested": device.contested,
                    "connectionStatus": up,
                    "lastAnswer": time_text(device.answered_at),
                },
            )

    def _links_changed(self, links: Collection[tuple[str, str, bool]]) -> None:
        for tenant, gateway, up in links:
            self.events.publish(tenant, "gateway", {"name": gateway, "connectionStatus": up})

    def _held(self, tenant: str, device: UUID) -> list[Held]:
        """What a power action would end, by who holds it."""
        held = [
            Held(stream.holder, stream.since)
            for stream in self.streams.to(tenant, device)
            if not stream.viewer and stream.port not in WSMAN_PORTS
        ]
        seat = self.consoles.seat(tenant, device)
        return held if seat is None else [*held, Held(seat.name, seat.since)]

    def application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_BODY, middlewares=[self._answer])
        for route in ROUTES:
            handle = self._handle(route)
            self._routes[handle] = route
            application.router.add_route(route.method, _pattern(route.path), handle)
        add_console(application)
        application.cleanup_ctx.append(self.consoles.lifetime)
        application.on_shutdown.append(self._shutdown)
        return application

    async def _shutdown(self, _: web.Application) -> None:
        self._service.stop()
        self.consoles.stop()
        await self.streams.close_all(Code.SHUTDOWN, "the service stops")

    def _handle(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        group, _, method = route.handler.partition(".")
        handler: Handler = getattr(self.groups[group], method)

        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._serve(request, route, handler)

        return handle

    async def _serve(
        self, request: web.Request, route: Route, handler: Handler
    ) -> web.StreamResponse:
        principal, token = await self.authenticator.admit(request, route)
        if route.role is not None and not self.callers.is_known(request.protocol, principal.tenant):
            raise ApiError(
                429,
                "TOO_MANY_REQUESTS",
                f"all {MAX_CONNECTIONS} connections are in use, and no idle one of tenant"
                f" {principal.tenant} can go for this: close some, or try again in {RETRY} s",
                retry_after=RETRY,
            )
        asked = Asked(request, route, principal, token=token)
        asked.query = query_of(request, route.query)
        if route.body is not None:
            asked.body = await body_of(request, route.body)
        answer = await handler(asked)
        if isinstance(answer, web.StreamResponse):
            return answer
        if answer is None:
            return web.Response(status=route.status)
        return json_response(answer, route.status)

    @web.middleware
    async def _answer(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        with self.callers.asking(request.protocol):
            response = await self._answered(request, handler)
            route = self._routes.get(request.match_info.handler)
            if route is not None:
                self.metrics.answered(route.method, route.path, response.status)
            if not response.prepared:
                await self._send(request, response)
        return response

    async def _answered(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """The boundary: whatever goes wrong leaves here as one JSON error."""
        try:
            response = await handler(request)
        except ApiError as exc:
            response = exc.response()
        except web.HTTPException as exc:
            response = from_aiohttp(exc)
        except RegistryConflict as exc:
            response = error_response(409, "CONFLICT", str(exc))
        except (RegistryError, StatementError) as exc:
            self._log.error("registry_failed", path=request.path, reason=exc)
            # Where the database is, is nobody's business who has not logged in.
            text = "the registry cannot be used now; the log says why"
            response = error_response(503, "REGISTRY_UNAVAILABLE", text)
        except web.RequestPayloadError:
            response = error_response(400, "BAD_REQUEST", "the body is not what its headers say")
        except ConnectionError:
            # Whoever asked has gone, which is no error of ours.
            response = error_response(400, "BAD_REQUEST", "nobody is left to hear this")
        except Exception:
            self._log.exception("request_failed", path=request.path)
            response = error_response(500, "INTERNAL", "our own fault; the log says more")
        if request.path.startswith("/api/") and not response.prepared:
            # Answers hold host names that somebody else chose, and now and then a key.
            response.headers.setdefault("Cache-Control", "no-store")
            response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse) -> None:
        """Here and not by aiohttp, whose patience with somebody who does not read has no end."""
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            _cut(request)
        except (RegistryError, StatementError) as exc:
            # In the middle of a list: a whole one must not be made of it.
            self._log.error("registry_failed", path=request.path, reason=exc)
            _cut(request)
        except ConnectionError:
            pass
        except RuntimeError:
            # uvloop's word for a connection that is closed.
            if request.transport is not None and not request.transport.is_closing():
                raise


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
