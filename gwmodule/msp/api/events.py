"""Server-sent events: what changes, told to those who watch (text/event-stream).

Kinds: `device` (registered, seen, moved, contested, gone), `gateway` (link up, link down), `call`
(progress and end of a call), `lagged` (this watcher was too slow, and some events are lost: read
the lists again). An event tells that something changed, and the lists tell what is true.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from gwmodule.errors import GatewayError

# Events that wait for one watcher: a boot storm of a whole gateway.
MAX_QUEUE = 1024
# Each watcher keeps a connection and a queue.
MAX_WATCHERS = 512
MAX_WATCHERS_PER_TENANT = 128


class TooManyWatchers(GatewayError):
    """Every place is taken."""


class Watcher:
    """One reader's queue; bounded, because the reader may have stopped to read."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self._queue: deque[bytes] = deque()
        self._lost = 0
        self._ready = asyncio.Event()

    def put(self, event: bytes) -> None:
        if len(self._queue) >= MAX_QUEUE:
            self._lost += len(self._queue)
            self._queue.clear()
        self._queue.append(event)
        self._ready.set()

    def wake(self) -> None:
        self._ready.set()

    async def next(self, patience: float) -> bytes:
        """What there is, as it is written to the stream; a comment after `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                await self._ready.wait()
        except TimeoutError:
            # A line that is no event keeps proxies from closing the connection.
            return b": still here\n\n"
        self._ready.clear()
        lost, self._lost = self._lost, 0
        parts = [_event("lagged", {"lost": lost})] if lost else []
        parts.extend(self._queue)
        self._queue.clear()
        return b"".join(parts)


class Events:
    def __init__(self) -> None:
        self._watchers: list[Watcher] = []

    def __len__(self) -> int:
        return len(self._watchers)

    def wake(self) -> None:
        """Let every watcher look whether the service stops."""
        for watcher in self._watchers:
            watcher.wake()

    def publish(self, tenant: str, kind: str, data: object) -> None:
        """Never waits; without watchers it costs nothing."""
        watchers = [watcher for watcher in self._watchers if watcher.tenant == tenant]
        if not watchers:
            return
        event = _event(kind, data)
        for watcher in watchers:
            watcher.put(event)

    @contextmanager
    def watch(self, tenant: str) -> Iterator[Watcher]:
        of_tenant = sum(watcher.tenant == tenant for watcher in self._watchers)
        if len(self._watchers) >= MAX_WATCHERS or of_tenant >= MAX_WATCHERS_PER_TENANT:
            raise TooManyWatchers(f"{of_tenant} clients watch already; close one")
        watcher = Watcher(tenant)
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)


def _event(kind: str, data: object) -> bytes:
    # JSON has no line breaks of its own, so one `data:` line always holds it.
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode(data))
