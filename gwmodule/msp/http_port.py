"""aiohttp's server behind a TCP port: strangers share it by networks, who is known by tenants."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from gwmodule.msp.acceptor import Acceptor
from gwmodule.msp.places import Places
from gwmodule.msp.strangers import Strangers

# A handshake takes a few round trips; the rest of somebody's patience is for his request.
HANDSHAKE_TIME = 10.0


class Callers:
    """What the application tells the port about its connections: `strangers` and `known` of them
    at the most.
    """

    def __init__(self, port: str, strangers: int, known: int = 0) -> None:
        self.strangers: Strangers[RequestHandler] = Strangers(port, strangers)
        # Those of them that have not sent a whole request yet.
        self.silent: set[RequestHandler] = set()
        # Between two requests a connection can go: its client makes another one.
        self.known: Places[RequestHandler] = Places(
            "connections", "tenant", port, known, lambda handler: handler not in self._asking
        )
        self._asking: set[RequestHandler] = set()

    @contextmanager
    def asking(self, handler: RequestHandler) -> Iterator[None]:
        """While a request is answered, or as long as its stream lasts."""
        self.silent.discard(handler)
        self._asking.add(handler)
        try:
            yield
        finally:
            self._asking.discard(handler)

    def is_known(self, handler: RequestHandler, tenant: str) -> bool:
        """False when there is no place for one more of the tenant; he stays a stranger then."""
        former = self.known.group_of(handler)
        if former == tenant or (former is None and handler not in self.strangers):
            # Neither: one of the unix socket, which is not shared.
            return True
        # Through one connection of a proxy come many; whoever asked last has it.
        self.known.leave(handler)
        if self.known.full:
            # aiohttp does not tell when a connection has ended.
            for other in self.known.all():
                if other.transport is None:
                    self.forget(other)
        loser = self.known.enter(handler, tenant, asyncio.get_running_loop().time())
        if loser is handler:
            return False
        self.strangers.leave(handler)
        if loser is not None:
            self.cut(loser)
        return True

    def cut(self, handler: RequestHandler) -> None:
        self.forget(handler)
        if handler.transport is not None:
            handler.transport.abort()

    def forget(self, handler: RequestHandler) -> None:
        self.silent.discard(handler)
        self.strangers.leave(handler)
        self.known.leave(handler)


def is_our_matter(record: logging.LogRecord) -> bool:
    """For aiohttp's log: a stranger sends what is no HTTP for nothing, and a line costs us."""
    theirs = HttpProcessingError, web.RequestPayloadError
    return not (record.exc_info and isinstance(record.exc_info[1], theirs))


class HttpPort:
    """Whoever nobody knows and who is silent is cut off after `patience` seconds."""

    def __init__(
        self,
        runner: web.AppRunner,
        sock: socket.socket,
        tls: ssl.SSLContext | None,
        callers: Callers,
        *,
        patience: float,
    ) -> None:
        assert runner.server is not None  # noqa: S101 - the runner was set up
        logging.getLogger("aiohttp.server").addFilter(is_our_matter)
        self._server = runner.server
        # For the next handshakes; those that have had theirs keep it.
        self.tls = tls
        self._callers = callers
        self._patience = patience
        self._acceptor = Acceptor(sock, self._accepted)
        self._handshakes: dict[RequestHandler, asyncio.Task[None]] = {}
        self._group = asyncio.TaskGroup()

    @property
    def port(self) -> int:
        return self._acceptor.port

    async def run(self) -> None:
        """Accept until cancelled; connections that stand are the runner's to end."""
        async with self._group:
            self._acceptor.start()
            try:
                await asyncio.Event().wait()
            finally:
                # First of all: a group that ends takes no more handshakes.
                self._acceptor.close()

    def _accepted(self, sock: socket.socket, address: str) -> None:
        loop = asyncio.get_running_loop()
        strangers = self._callers.strangers
        if strangers.full:
            self._forget_gone()
        handler = self._server()
        loser = strangers.enter(handler, address, loop.time())
        if loser is handler:
            sock.close()
            return
        if loser is not None:
            self._cut(loser)
        self._callers.silent.add(handler)
        task = self._group.create_task(self._handshake(sock, handler), name="handshake")
        self._handshakes[handler] = task
        task.add_done_callback(lambda _: self._end_handshake(sock, handler))
        loop.call_later(self._patience, self._end_patience, handler)

    async def _handshake(self, sock: socket.socket, handler: RequestHandler) -> None:
        loop = asyncio.get_running_loop()
        limit = None if self.tls is None else HANDSHAKE_TIME
        with contextlib.suppress(OSError):
            await loop.connect_accepted_socket(
                lambda: handler, sock, ssl=self.tls, ssl_handshake_timeout=limit
            )

    def _end_handshake(self, sock: socket.socket, handler: RequestHandler) -> None:
        del self._handshakes[handler]
        if handler.transport is None:
            # Cancelled before it began, it has closed nothing.
            sock.close()
            self._callers.forget(handler)

    def _end_patience(self, handler: RequestHandler) -> None:
        if handler.transport is None or handler in self._callers.silent:
            self._cut(handler)
        elif handler in self._callers.strangers:
            loop = asyncio.get_running_loop()
            loop.call_later(self._patience, self._end_patience, handler)

    def _cut(self, handler: RequestHandler) -> None:
        handshake = self._handshakes.get(handler)
        if handshake is not None:
            handshake.cancel()
        self._callers.cut(handler)

    def _forget_gone(self) -> None:
        """aiohttp does not tell when a connection has ended; it is asked when its place counts."""
        for handler in self._callers.strangers.all():
            if handler.transport is None and handler not in self._handshakes:
                self._callers.forget(handler)
