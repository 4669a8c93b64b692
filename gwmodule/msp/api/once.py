"""Answers that are kept, so that a repeated request acts once (Idempotency-Key).

    Answers     in this process: the answer itself, the last ones of a tenant
    UsedKeys    in the database: only that there was a request; on every node, over a restart

Each tenant has its own room, so that nobody can push another's answers out; and what is still
running is never pushed out, so that its repetition can wait for the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass, field

from aiohttp import web

from gwmodule.msp.api.answers import ApiError
from gwmodule.msp.database import Database

# Of one tenant. A result has up to 2 MiB; the oldest are forgotten when there are more bytes.
MAX_ANSWERS = 256
MAX_KEPT = 8 * 1024 * 1024
# Seconds for which a key does not act again. Who repeats a request later means a new one.
REMEMBERED = 86400.0


@dataclass(slots=True)
class Answer:
    """`fingerprint` tells two requests apart; waiters `shield` the response."""

    fingerprint: bytes
    response: asyncio.Future[web.Response]

    @property
    def size(self) -> int:
        body = self.response.result().body if self.response.done() else None
        return len(body) if isinstance(body, bytes | bytearray) else 0


@dataclass(slots=True)
class Answers:
    _kept: dict[str, OrderedDict[tuple[str, str], Answer]] = field(default_factory=dict)

    def find(self, tenant: str, actor: str, key: str) -> Answer | None:
        kept = self._kept.get(tenant)
        return None if kept is None else kept.get((actor, key))

    def begin(self, tenant: str, actor: str, key: str, fingerprint: bytes) -> Answer:
        """ApiError 429 when so many are running that there is nothing to forget."""
        kept = self._kept.setdefault(tenant, OrderedDict())
        if len(kept) >= MAX_ANSWERS and not self._forget_one(kept):
            raise ApiError(
                429, "TOO_MANY", f"{MAX_ANSWERS} requests with an Idempotency-Key are running"
            )
        answer = Answer(fingerprint, asyncio.get_running_loop().create_future())
        kept[actor, key] = answer
        return answer

    def forget(self, tenant: str, actor: str, key: str) -> None:
        """It has not acted: its repetition may."""
        self._kept[tenant].pop((actor, key), None)

    def end(self, tenant: str, answer: Answer, response: web.Response) -> None:
        answer.response.set_result(response)
        kept = self._kept[tenant]
        size = sum(each.size for each in kept.values())
        while size > MAX_KEPT and (forgotten := self._forget_one(kept)) is not None:
            size -= forgotten.size

    @staticmethod
    def _forget_one(kept: OrderedDict[tuple[str, str], Answer]) -> Answer | None:
        """The oldest one that has ended."""
        for name, answer in kept.items():
            if answer.response.done():
                return kept.pop(name)
        return None


class UsedKeys:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def use(self, tenant: str, actor: str, key: str, now: float) -> bool:
        """False when it was used within REMEMBERED; RegistryError when nobody can say."""
        name = hashlib.sha256(json.dumps([tenant, actor, key]).encode()).digest()
        async with self._database.transaction() as db:
            await db.execute("DELETE FROM used_keys WHERE used_at <= $1", now - REMEMBERED)
            changed = await db.execute(
                "INSERT INTO used_keys (id, used_at) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                name,
                now,
            )
        return changed == 1
