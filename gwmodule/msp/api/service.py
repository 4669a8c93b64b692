"""The service itself: health, metrics, version, its own description, and events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from gwmodule import __version__
from gwmodule.msp.api import payloads as p
from gwmodule.msp.api.answers import ApiError
from gwmodule.msp.api.asking import Asked
from gwmodule.msp.api.auth import Authenticator
from gwmodule.msp.api.events import Events, TooManyWatchers
from gwmodule.msp.api.metrics import CONTENT_TYPE, Metrics
from gwmodule.msp.database import RegistryError
from gwmodule.msp.registry import Registry

# A comment this often keeps proxies from closing an idle stream, and checks the reader's right.
HEARTBEAT = 15.0
# A reader that takes nothing for so long has gone, or never was one.
WRITE_TIMEOUT = 30.0


class Service:
    """Handlers of group `service`."""

    def __init__(
        self,
        registry: Registry,
        events: Events,
        metrics: Metrics,
        authenticator: Authenticator,
        document: Callable[[], Mapping[str, Any]],
        dialect: str,
    ) -> None:
        self._dialect = dialect
        self._registry = registry
        self._events = events
        self._metrics = metrics
        self._authenticator = authenticator
        self._document = document
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()
        self._events.wake()

    async def healthz(self, asked: Asked) -> p.Alive:
        return p.Alive("ok")

    async def readyz(self, asked: Asked) -> p.Alive:
        # RegistryError becomes 503.
        await self._registry.gateway("")
        return p.Alive("ok")

    async def health(self, asked: Asked) -> p.Health:
        await self._registry.gateway("")
        # A service without its vault's key does not start.
        vault = p.VaultHealth("REGISTRY", p.VaultStatus(initialized=True, sealed=False))
        return p.Health(p.DatabaseHealth(self._dialect.upper(), "OK"), vault)

    async def version(self, asked: Asked) -> p.Version:
        return p.Version(__version__, __version__)

    async def openapi(self, asked: Asked) -> Mapping[str, Any]:
        return self._document()

    async def metrics(self, asked: Asked) -> web.Response:
        try:
            self._metrics.devices(await self._registry.states())
        except RegistryError:
            # All other numbers are wanted most when the registry fails.
            self._metrics.devices({})
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def events(self, asked: Asked) -> web.StreamResponse:
        try:
            with self._events.watch(asked.tenant) as watcher:
                response = web.StreamResponse(
                    headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
                )
                await response.prepare(asked.http)
                await response.write(b": gwmodule\n\n")
                while not self._stopping.is_set():
                    text = await watcher.next(HEARTBEAT)
                    if not text:
                        continue
                    # Whoever was locked out meanwhile, or whose token has expired, hears no more.
                    # While the registry fails nobody can be locked out.
                    with contextlib.suppress(RegistryError):
                        await self._authenticator.admit(asked.http, asked.route)
                    async with asyncio.timeout(WRITE_TIMEOUT):
                        await response.write(text)
        except TooManyWatchers as exc:
            raise ApiError(429, "TOO_MANY_REQUESTS", str(exc), retry_after=30) from exc
        except (ApiError, TimeoutError, ConnectionError):
            # The answer has begun: all that is left to say is its end, if anybody is there still.
            if asked.http.transport is not None:
                asked.http.transport.abort()
        return response
