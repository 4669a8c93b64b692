"""What gateways tell, on its way into the registry: a queue, one writer, batches.

    sessions --> put --> queue --> run: record(batch) --> committed --> acknowledge each

Nothing is acknowledged before its commit. A database that cannot write now keeps the queue and is
tried again; a full queue takes no more, and what it did not take the gateways repeat. Events are
written in the order in which they came.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from gwmodule.msp.database import RegistryError
from gwmodule.msp.registry import Event, Observed
from gwmodule.telemetry import Counters, EventLog

# Observations that wait for a disk, some 16 MiB of them; and those of one gateway, so that a flood
# costs nobody else a place: two full snapshots of the largest default gateway table.
MAX_WAITING = 16384
MAX_OF_ONE = 2048
# Events of one transaction. SQLite writes these in 4 ms, in which no keystroke passes; PostgreSQL
# lets no other node write meanwhile.
MAX_BATCH = 16
# Seconds until the next try with a database that failed, doubling.
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
# Seconds that the end of the service waits for the last batch.
LAST_WORDS = 2.0

# Called after the commit, with whether the gateway's whole table is wanted.
Acknowledge = Callable[[bool], None]


class Recorder(Protocol):
    async def record(self, events: Sequence[Event]) -> list[bool]: ...


class Journal:
    def __init__(self, recorder: Recorder, on_written: Callable[[], None]) -> None:
        self.counters = Counters()
        self._recorder = recorder
        self._on_written = on_written
        self._queue: deque[tuple[Event, Acknowledge | None]] = deque()
        self._waiting = Counter[str]()
        self._filled = asyncio.Event()
        self._log = EventLog("gwmodule.msp")

    def put(self, event: Event, acknowledge: Acknowledge | None = None) -> None:
        # Of link events each session has at most three, and they are not repeated.
        if isinstance(event, Observed) and (
            len(self._queue) >= MAX_WAITING or self._waiting[event.gateway] >= MAX_OF_ONE
        ):
            self.counters["journal_full"] += 1
            return
        self._waiting[event.gateway] += 1
        self._queue.append((event, acknowledge))
        self._filled.set()

    async def run(self) -> None:
        """Write until cancelled, and then once more what has come until then."""
        retry = FIRST_RETRY
        while True:
            await self._filled.wait()
            try:
                await self._write_batch()
                retry = FIRST_RETRY
                # SQLite runs inline: the links have their turn between two batches.
                await asyncio.sleep(0)
            except RegistryError as exc:
                self.counters["commit_failed"] += 1
                self._log.error("registry_failed", waiting=len(self._queue), reason=exc)
                await asyncio.sleep(retry)
                retry = min(2 * retry, LAST_RETRY)

    async def finish(self) -> None:
        """What waits still, tried once: the end of the service has ended its sessions."""
        with contextlib.suppress(RegistryError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                while self._queue:
                    await self._write_batch()

    async def _write_batch(self) -> None:
        batch = [self._queue[number] for number in range(min(len(self._queue), MAX_BATCH))]
        try:
            await self._write(batch)
        except RegistryError:
            raise
        except Exception:
            # A gateway's text that a rule or the engine chokes on must cost nobody else's events.
            for entry in batch:
                await self._write_alone(entry)
        for event, _ in batch:
            self._queue.popleft()
            self._waiting[event.gateway] -= 1
        if not self._queue:
            self._waiting.clear()
            self._filled.clear()
        self._on_written()

    async def _write_alone(self, entry: tuple[Event, Acknowledge | None]) -> None:
        try:
            await self._write([entry])
        except RegistryError:
            raise
        except Exception:
            self.counters["unrecordable"] += 1
            self._log.exception("unrecordable", gateway=entry[0].gateway)

    async def _write(self, batch: list[tuple[Event, Acknowledge | None]]) -> None:
        wanted = await self._recorder.record([event for event, _ in batch])
        for (_, acknowledge), whole_table in zip(batch, wanted, strict=True):
            if acknowledge is not None:
                acknowledge(whole_table)
