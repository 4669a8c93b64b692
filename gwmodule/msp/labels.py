"""What people say about a device: tags and a friendly name, apart from what the network says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import UUID

from gwmodule.msp.database import Database, Row


@dataclass(frozen=True, slots=True)
class Label:
    tags: tuple[str, ...] = ()
    friendly_name: str = ""


NO_LABEL = Label()


class Labels:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, tenant: str, uuid: UUID) -> Label:
        row = await self._database.fetch_one(
            "SELECT tags, friendly_name FROM labels WHERE tenant = $1 AND uuid = $2",
            tenant,
            uuid.bytes,
        )
        return NO_LABEL if row is None else _label(row)

    async def all(self, tenant: str) -> dict[UUID, Label]:
        rows = await self._database.fetch(
            "SELECT uuid, tags, friendly_name FROM labels WHERE tenant = $1", tenant
        )
        return {UUID(bytes=bytes(row["uuid"])): _label(row) for row in rows}

    async def between(self, tenant: str, first: UUID, last: UUID) -> dict[UUID, Label]:
        """Of the devices from `first` to `last`, both included."""
        rows = await self._database.fetch(
            "SELECT uuid, tags, friendly_name FROM labels"
            " WHERE tenant = $1 AND uuid BETWEEN $2 AND $3",
            tenant,
            first.bytes,
            last.bytes,
        )
        return {UUID(bytes=bytes(row["uuid"])): _label(row) for row in rows}

    async def put(self, tenant: str, uuid: UUID, label: Label) -> bool:
        """Whether it is another one than before."""
        changed = await self._database.execute(
            "INSERT INTO labels (tenant, uuid, tags, friendly_name) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (tenant, uuid) DO UPDATE SET tags = excluded.tags,"
            " friendly_name = excluded.friendly_name"
            " WHERE labels.tags <> excluded.tags"
            " OR labels.friendly_name <> excluded.friendly_name",
            tenant,
            uuid.bytes,
            json.dumps(label.tags),
            label.friendly_name,
        )
        return changed > 0

    async def remove(self, tenant: str, uuid: UUID) -> None:
        await self._database.execute(
            "DELETE FROM labels WHERE tenant = $1 AND uuid = $2", tenant, uuid.bytes
        )


def _label(row: Row) -> Label:
    return Label(tuple(json.loads(row["tags"])), row["friendly_name"])
