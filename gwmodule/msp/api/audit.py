"""Who did what: read by a tenant, shortened by the operator alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from uuid import UUID

from aiohttp import web

from gwmodule.msp.api import payloads as p
from gwmodule.msp.api.answers import bad_request, list_response, time_text
from gwmodule.msp.api.asking import Asked, guid_of
from gwmodule.msp.api.shown import shown_audit
from gwmodule.msp.registry import NEWEST, Registry

# Entries of one part of the answer.
PART = 64


class Audit:
    """Handlers of group `audit`."""

    def __init__(self, registry: Registry, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._clock = clock

    async def entries(self, asked: Asked) -> web.Response:
        query: p.AuditQuery = asked.query
        # By the UUID itself: the history of a device outlives its record.
        uuid = guid_of(query.guid) if isinstance(query.guid, str) else None
        return await list_response(self._entries(asked.tenant, uuid, query.limit))

    async def _entries(
        self, tenant: str, uuid: UUID | None, most: int
    ) -> AsyncIterator[list[p.AuditAnswer]]:
        before = NEWEST
        while most > 0:
            entries = await self._registry.audit_entries(
                uuid=uuid, before=before, limit=min(most, PART), tenant=tenant
            )
            if not entries:
                return
            yield [shown_audit(entry) for entry in entries]
            await asyncio.sleep(0)
            before, most = entries[-1].id, most - len(entries)

    async def prune(self, asked: Asked) -> p.Pruned:
        query: p.PruneQuery = asked.query
        before, now = query.before.timestamp(), self._clock()
        if before > now:
            raise bad_request(f"before lies in the future; it is {time_text(now)} here")
        return p.Pruned(await self._registry.prune_audit(before, now, actor=asked.actor))
