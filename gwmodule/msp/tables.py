"""The registry's SQL: rows in and out of one connection, usually that of a transaction."""

from __future__ import annotations

import json
from functools import cache, partial
from ipaddress import IPv4Address
from typing import Any
from uuid import UUID

from gwmodule.msp.database import Connection
from gwmodule.msp.records import (
    Device,
    Host,
    Seen,
    device_from,
    host_from,
    pin_value,
    ports_text,
)
from gwmodule.wire.notices import NO_MAC, Hello, format_mac

# What the LAN of one gateway can make us remember; a gateway's own table holds 1,024 by default.
MAX_HOSTS = 4096
MAX_DEVICES = 4096
# A board has one UUID, and another one when its BIOS was flashed anew.
MAX_DEVICES_PER_MAC = 8


class Tables:
    def __init__(self, db: Connection) -> None:
        self.saved: dict[tuple[str, UUID], Device] = {}  # what watchers are told after the commit
        self._db = db

    async def device(self, tenant: str, uuid: UUID) -> Device | None:
        row = await self._db.fetch_one(
            "SELECT * FROM devices WHERE tenant = $1 AND uuid = $2", tenant, uuid.bytes
        )
        return None if row is None else device_from(row)

    async def devices_at(self, seen: Seen, mac: bytes, address: IPv4Address) -> list[Device]:
        """Devices at this MAC, and those of this address whose Hello came without a MAC."""
        rows = await self._db.fetch(
            # Not one WHERE with OR: that walks over all devices of the gateway, at each notice.
            "SELECT * FROM devices WHERE gateway = $1 AND mac = $3 AND tenant = $2"
            " UNION ALL SELECT * FROM devices"
            " WHERE gateway = $1 AND mac IS NULL AND address = $4 AND tenant = $2",
            seen.gateway,
            seen.tenant,
            mac,
            str(address),
        )
        return [device_from(row) for row in rows]

    async def host(self, gateway: str, mac: bytes) -> Host | None:
        row = await self._db.fetch_one(
            "SELECT * FROM hosts WHERE gateway = $1 AND mac = $2", gateway, mac
        )
        return None if row is None else host_from(row)

    async def mac_of(self, gateway: str, address: IPv4Address) -> bytes | None:
        row = await self._db.fetch_one(
            "SELECT mac FROM hosts WHERE gateway = $1 AND address = $2 AND gone_at IS NULL"
            " ORDER BY placed_at DESC LIMIT 1",
            gateway,
            str(address),
        )
        return None if row is None else row["mac"]

    async def is_full(self, gateway: str, mac: bytes | None) -> bool:
        """Whether one gateway, or one MAC behind it, has named as many devices as it may."""
        if await self._count("devices WHERE gateway = $1", gateway) >= MAX_DEVICES:
            return True
        if mac is None:
            return False
        of_mac = await self._count("devices WHERE gateway = $1 AND mac = $2", gateway, mac)
        return of_mac >= MAX_DEVICES_PER_MAC

    async def save_device(self, device: Device) -> None:
        self.saved[device.tenant, device.uuid] = device
        values = {
            "tenant": device.tenant,
            "uuid": device.uuid.bytes,
            "state": device.state.value,
            "address": str(device.address),
            "mac": device.mac,
            "hostname": device.hostname,
            "gateway": device.gateway,
            "gateway_address": device.gateway_address,
            "gateway_port": device.gateway_port,
            "source": device.source.value,
            "first_seen": device.first_seen,
            "last_seen": device.last_seen,
            "placed_at": device.placed_at,
            "managed_at": device.managed_at,
            "proved_at": device.proved_at,
            "answered_at": device.answered_at,
            "gone_at": device.gone_at,
            "realm": device.realm,
            "server": device.server,
            "ports": ports_text(device.ports),
            "tls": int(device.tls),
            "pin": pin_value(device.pin),
            "claim_reason": device.claim_reason,
            "claim_gateway": device.claim_gateway,
            "claim_mac": device.claim_mac,
            "claim_address": device.claim_address,
            "claim_at": device.claim_at,
            "audit_full_at": device.audit_full_at,
            "unaudited": device.unaudited,
        }
        await self._upsert("devices", ("tenant", "uuid"), values)

    async def save_host(self, host: Host, *, new: bool) -> None:
        if new:
            await self._make_room(host.gateway)
        values = {
            "gateway": host.gateway,
            "mac": host.mac,
            "address": str(host.address),
            "hostname": host.hostname,
            "uuid": host.uuid.bytes if host.uuid else None,
            "placed_at": host.placed_at,
            "leased_at": host.leased_at,
            "lease_until": host.lease_until,
            "answered_at": host.answered_at,
            "provisioning": int(host.provisioning),
            "ports": ports_text(host.ports),
            "realm": host.realm,
            "server": host.server,
            "pin": pin_value(host.pin),
            "gone_at": host.gone_at,
        }
        await self._upsert("hosts", ("gateway", "mac"), values)

    async def save_hello(self, hello: Hello, mac: bytes | None, seen: Seen) -> None:
        await self._db.execute(
            "INSERT INTO hellos (tenant, uuid, gateway, address, mac, version, retry, source, raw,"
            " seen) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
            " ON CONFLICT (tenant, uuid) DO UPDATE SET"
            " gateway = excluded.gateway, address = excluded.address, mac = excluded.mac,"
            " version = excluded.version, retry = excluded.retry, source = excluded.source,"
            " raw = excluded.raw, seen = excluded.seen, count = hellos.count + 1",
            seen.tenant,
            hello.uuid.bytes,
            seen.gateway,
            str(hello.address),
            mac,
            hello.version,
            hello.retry,
            int(hello.source),
            hello.raw,
            seen.seen,
        )

    async def forget_device(self, device: Device) -> None:
        key = (device.tenant, device.uuid.bytes)
        await self._db.execute("DELETE FROM devices WHERE tenant = $1 AND uuid = $2", *key)
        await self._db.execute("DELETE FROM hellos WHERE tenant = $1 AND uuid = $2", *key)
        await self._db.execute("DELETE FROM credentials WHERE tenant = $1 AND uuid = $2", *key)
        # Its gateway is asked for its whole table at its next session.
        await self._db.execute("UPDATE gateways SET digest = NULL WHERE name = $1", device.gateway)

    async def audit(
        self,
        tenant: str,
        at: float,
        actor: str,
        action: str,
        gateway: str = "",
        uuid: UUID | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        await self._db.execute(
            "INSERT INTO audit (tenant, at, actor, action, gateway, uuid, detail)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7)",
            tenant,
            at,
            actor,
            action,
            gateway,
            uuid.bytes if uuid else None,
            json.dumps(detail) if detail else "",
        )

    async def audit_device(
        self,
        device: Device,
        at: float,
        actor: str,
        action: str,
        *,
        before: Device | None = None,
        **detail: str,
    ) -> None:
        place = partial("{0.gateway} {1} {0.address}".format)
        detail["place"] = place(device, format_mac(device.mac or NO_MAC))
        if before is not None:
            detail["before"] = place(before, format_mac(before.mac or NO_MAC))
        await self.audit(device.tenant, at, actor, action, device.gateway, device.uuid, detail)

    async def _make_room(self, gateway: str) -> None:
        if await self._count("hosts WHERE gateway = $1", gateway) >= MAX_HOSTS:
            # Those that never answered as AMT go first, then the ones longest unheard of.
            await self._db.execute(
                "DELETE FROM hosts WHERE gateway = $1 AND mac = (SELECT mac FROM hosts"
                " WHERE gateway = $1 ORDER BY answered_at IS NOT NULL, placed_at LIMIT 1)",
                gateway,
            )

    async def _count(self, where: str, *values: object) -> int:
        row = await self._db.fetch_one(f"SELECT count(*) AS n FROM {where}", *values)  # noqa: S608
        return 0 if row is None else int(row["n"])

    async def _upsert(self, table: str, key: tuple[str, ...], values: dict[str, Any]) -> None:
        await self._db.execute(_upserting(table, key, tuple(values)), *values.values())


@cache
def _upserting(table: str, key: tuple[str, ...], columns: tuple[str, ...]) -> str:
    """Table and column names are this module's own."""
    names = ", ".join(columns)
    marks = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    updates = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in key)
    return (
        f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608
        f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {updates}"
    )
