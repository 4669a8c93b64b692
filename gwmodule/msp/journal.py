"""What gateways tell, on its way into the registry: a queue, one writer, batches.

    sessions --> put --> queue --> run: record(batch) --> committed --> acknowledge each

Nothing is acknowledged before its commit. A database that cannot write now keeps the queue and is
tried again; a full queue takes no more, and what it did not take the gateways repeat. Events are
written in the order in which they came; of a link that comes and goes only the newest end and the
newest beginning wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
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
_Entry = tuple[Event, Acknowledge | None]


class Recorder(Protocol):
    async def record(self, events: Sequence[Event]) -> list[bool]: ...


class Journal:
    def __init__(self, recorder: Recorder, on_written: Callable[[], None]) -> None:
        self.counters = Counters()
        self._recorder = recorder
        self._on_written = on_written
        # By its number, or a link event by what it replaces.
        self._queue: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._numbers = itertools.count()
        self._waiting = Counter[str]()
        self._filled = asyncio.Event()
        self._log = EventLog("gwmodule.msp")

    def put(self, event: Event, acknowledge: Acknowledge | None = None) -> None:
        key: Hashable = next(self._numbers)
        if isinstance(event, Observed):
            if len(self._queue) >= MAX_WAITING or self._waiting[event.gateway] >= MAX_OF_ONE:
                self.counters["journal_full"] += 1
                return
        else:
            # Nobody repeats it, so it always fits; and a gateway's are two at the most.
            key = (event.gateway, type(event))
            self._remove(key)
        self._waiting[event.gateway] += 1
        self._queue[key] = (event, acknowledge)
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
        batch = list(itertools.islice(self._queue.items(), MAX_BATCH))
        entries = [entry for _, entry in batch]
        try:
            await self._write(entries)
        except RegistryError:
            raise
        except Exception:
            # A gateway's text that a rule or the engine chokes on must cost nobody else's events.
            for entry in entries:
                await self._write_alone(entry)
        for key, entry in batch:
            # Unless a newer one has taken its place meanwhile.
            if self._queue.get(key) is entry:
                self._remove(key)
        if not self._queue:
            self._waiting.clear()
            self._filled.clear()
        self._on_written()

    def _remove(self, key: Hashable) -> None:
        entry = self._queue.pop(key, None)
        if entry is not None:
            self._waiting[entry[0].gateway] -= 1

    async def _write_alone(self, entry: _Entry) -> None:
        try:
            await self._write([entry])
        except RegistryError:
            raise
        except Exception:
            self.counters["unrecordable"] += 1
            self._log.exception("unrecordable", gateway=entry[0].gateway)

    async def _write(self, batch: list[_Entry]) -> None:
        wanted = await self._recorder.record([event for event, _ in batch])
        for (_, acknowledge), whole_table in zip(batch, wanted, strict=True):
            if acknowledge is not None:
                acknowledge(whole_table)
