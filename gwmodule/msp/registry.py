"""Which PC is where: gateways, hosts, devices and the audit.

A device becomes known by a Hello, by a lease with option 97 on a host that answers as AMT, or by
`identity.get`; what may move it then is decided in msp.observations.

Time is always an argument: `at` is the MSP's wall clock in unix seconds, `age` how long ago the
gateway observed. `record` is one transaction: when it has returned, and not before, a notice may be
acknowledged. Nothing is kept in this process, so that several nodes can share one database.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from gwmodule.errors import GatewayError
from gwmodule.msp.database import Connection, Database
from gwmodule.msp.observations import Observations
from gwmodule.msp.records import (
    DEFAULT_TENANT,
    NO_PIN,
    AuditEntry,
    Device,
    Gateway,
    Host,
    Origin,
    Seen,
    State,
    audit_entry_from,
    clean,
    device_from,
    from_host,
    gateway_from,
    host_from,
    moved,
    uncontested,
)
from gwmodule.msp.tables import Tables
from gwmodule.wire.frames import TlsMode
from gwmodule.wire.notices import Observation, format_mac

# A limit that is none: both engines take it.
ALL = 1 << 31
# Audit entries of one statement: some milliseconds, in which others wait to write.
PRUNED_AT_ONCE = 1000
# More than any audit entry's number.
NEWEST = (1 << 63) - 1


class RegistryConflict(GatewayError):
    """The request contradicts what is recorded."""


@dataclass(frozen=True, slots=True)
class Observed:
    """A notice of `gateway`, seen after NAT as `address`:`port`."""

    gateway: str
    address: str
    port: int
    observation: Observation
    age: float
    at: float


@dataclass(frozen=True, slots=True)
class LinkUp:
    gateway: str
    fingerprint: str
    address: str
    port: int
    software: str
    at: float


@dataclass(frozen=True, slots=True)
class LinkDown:
    gateway: str
    at: float


Event = Observed | LinkUp | LinkDown


@dataclass(frozen=True, slots=True)
class Census:
    """How many devices of one gateway are gone or not, contested or not."""

    gateway: str
    gone: bool
    contested: bool
    devices: int


class Registry:
    """`node` names this process among those that share the database.

    RegistryError from every method while the database cannot be used.
    """

    def __init__(self, database: Database, *, node: str = "") -> None:
        self.refused = 0  # devices beyond MAX_DEVICES and MAX_DEVICES_PER_MAC
        # Told what has been committed: devices as they are now, links as (tenant, gateway, up).
        self.on_devices: Callable[[Collection[Device]], None] = lambda devices: None
        self.on_links: Callable[[Collection[tuple[str, str, bool]]], None] = lambda links: None
        self._database = database
        self._node = node

    async def start(self) -> None:
        """No gateway is connected to this node yet, whatever an earlier process wrote."""
        await self._database.execute(
            # Without a node: written before nodes had names.
            "UPDATE gateways SET connected = 0 WHERE connected = 1 AND (node = $1 OR node = '')",
            self._node,
        )

    # What gateways tell.

    async def record(self, events: Sequence[Event]) -> list[bool]:
        """Write all or nothing; for each event, whether the gateway's whole table is wanted.

        What still comes of a gateway that went with its tenant is nobody's, and dropped.
        """
        wanted: list[bool] = []
        links: list[tuple[str, str, bool]] = []
        # Gateways whose digest differs tell their whole table again.
        async with self._database.transaction(durable=False) as db:
            rules = Observations(db)
            tenants: dict[str, str | None] = {}
            for event in events:
                if event.gateway not in tenants:
                    tenants[event.gateway] = await _tenant_of(db, event.gateway)
                tenant = tenants[event.gateway]
                if tenant is None:
                    wanted.append(False)
                    continue
                match event:
                    case Observed(gateway, address, port, observation, age, at):
                        seen = at - max(age, 0.0)
                        place = Seen(tenant, gateway, address, port, seen, at)
                        wanted.append(await rules.apply(observation, place))
                    case LinkUp():
                        await self._link_up(db, event)
                        links.append((tenant, event.gateway, True))
                        wanted.append(False)
                    case LinkDown(gateway, at):
                        # Unless another node has it by now.
                        down = await db.execute(
                            "UPDATE gateways SET connected = 0, unlinked_at = $1"
                            " WHERE name = $2 AND node = $3 AND connected = 1",
                            at,
                            gateway,
                            self._node,
                        )
                        if down:
                            links.append((tenant, gateway, False))
                        wanted.append(False)
        self.refused += rules.refused
        self.on_devices(rules.saved.values())
        self.on_links(links)
        return wanted

    async def _link_up(self, db: Connection, link: LinkUp) -> None:
        await db.execute(
            "UPDATE gateways SET address = $1, port = $2, software = $3, node = $4, connected = 1,"
            " first_link = coalesce(first_link, $5), last_link = $5 WHERE name = $6",
            link.address,
            link.port,
            clean(link.software),
            self._node,
            link.at,
            link.gateway,
        )
        await db.execute(
            "UPDATE gateways SET fingerprint = next_fingerprint, next_fingerprint = NULL"
            " WHERE name = $1 AND next_fingerprint = $2",
            link.gateway,
            link.fingerprint,
        )
        await db.execute(
            "UPDATE devices SET gateway_address = $1, gateway_port = $2 WHERE gateway = $3",
            link.address,
            link.port,
            link.gateway,
        )

    # Gateways.

    async def add_gateway(
        self,
        name: str,
        fingerprint: str,
        at: float,
        *,
        tenant: str = DEFAULT_TENANT,
        replace: bool = False,
        actor: str = "msp",
    ) -> None:
        """Enrol a gateway, or with `replace` give a known one another certificate."""
        async with self._database.transaction() as db:
            known = await db.fetch_one("SELECT * FROM gateways WHERE name = $1", name)
            if known is not None and known["fingerprint"] is not None and not replace:
                raise RegistryConflict(f"gateway {name} exists; ask for a replacement certificate")
            if known is not None and known["tenant"] != tenant:
                raise RegistryConflict(f"gateway {name} belongs to another tenant")
            await db.execute(
                "INSERT INTO gateways (name, tenant, fingerprint, enrolled_at)"
                " VALUES ($1, $2, $3, $4)"
                " ON CONFLICT (name) DO UPDATE SET fingerprint = excluded.fingerprint,"
                " next_fingerprint = NULL, enrolled_at = excluded.enrolled_at, revoked_at = NULL",
                name,
                tenant,
                fingerprint,
                at,
            )
            # Else whoever has stolen one would take the gateway again.
            await db.execute(
                "DELETE FROM enrolment_tokens WHERE gateway = $1 AND used_at IS NULL", name
            )
            await Tables(db).audit(
                tenant, at, actor, "gateway.add", name, detail={"fingerprint": fingerprint}
            )

    async def revoke_gateway(
        self, name: str, at: float, *, actor: str, tenant: str = DEFAULT_TENANT
    ) -> bool:
        """Neither its certificate nor a token that is open lets it in any more.

        One that is made from then on does, and `add_gateway(replace=True)`. False when there is
        nothing to revoke.
        """
        async with self._database.transaction() as db:
            changed = await db.execute(
                "UPDATE gateways SET revoked_at = $1"
                " WHERE name = $2 AND tenant = $3 AND (revoked_at IS NULL OR EXISTS"
                " (SELECT 1 FROM enrolment_tokens WHERE gateway = name AND used_at IS NULL"
                "  AND enrolment_tokens.created_at > revoked_at))",
                at,
                name,
                tenant,
            )
            if changed:
                await Tables(db).audit(tenant, at, actor, "gateway.revoke", name)
        return changed > 0

    async def is_gateway_allowed(self, gateway: str, fingerprint: str) -> bool:
        row = await self._database.fetch_one("SELECT * FROM gateways WHERE name = $1", gateway)
        if row is None or row["revoked_at"] is not None:
            return False
        # The answer to a renewal may be lost: until the next certificate is used, both are good.
        return fingerprint in (row["fingerprint"], row["next_fingerprint"])

    async def gateway(self, name: str, tenant: str | None = None) -> Gateway | None:
        """By its name, which is unique over all tenants; with `tenant` only if it is theirs."""
        row = await self._database.fetch_one("SELECT * FROM gateways WHERE name = $1", name)
        if row is None or (tenant is not None and row["tenant"] != tenant):
            return None
        return gateway_from(row)

    async def gateways(self, tenant: str = DEFAULT_TENANT) -> list[Gateway]:
        rows = await self._database.fetch(
            "SELECT * FROM gateways WHERE tenant = $1 ORDER BY name", tenant
        )
        return [gateway_from(row) for row in rows]

    # Devices and hosts.

    async def device(self, uuid: UUID, tenant: str = DEFAULT_TENANT) -> Device | None:
        """Look up by UUID in either byte order: boards and tools print both."""
        tables = Tables(self._database)
        found = await tables.device(tenant, uuid)
        return found or await tables.device(tenant, UUID(bytes_le=uuid.bytes))

    async def devices(
        self,
        tenant: str = DEFAULT_TENANT,
        *,
        equal: Mapping[str, str] = {},
        after: UUID | None = None,
        skip: int = 0,
        most: int = ALL,
    ) -> list[Device]:
        """In the order of their UUIDs; `equal` gives columns, by this program's own names."""
        where, values = _matching(tenant, equal)
        number = len(values)
        rows = await self._database.fetch(
            f"SELECT * FROM devices WHERE {where} AND uuid > ${number + 1}"  # noqa: S608
            f" ORDER BY uuid LIMIT ${number + 2} OFFSET ${number + 3}",
            *values,
            after.bytes if after else b"",
            most,
            skip,
        )
        return [device_from(row) for row in rows]

    async def count_devices(
        self, tenant: str = DEFAULT_TENANT, *, equal: Mapping[str, str] = {}
    ) -> int:
        where, values = _matching(tenant, equal)
        row = await self._database.fetch_one(
            f"SELECT count(*) AS devices FROM devices WHERE {where}",  # noqa: S608
            *values,
        )
        return 0 if row is None else int(row["devices"])

    async def census(self, tenant: str = DEFAULT_TENANT) -> list[Census]:
        rows = await self._database.fetch(
            "SELECT gateway, gone_at IS NOT NULL AS gone, claim_reason <> '' AS contested,"
            " count(*) AS devices FROM devices WHERE tenant = $1"
            " GROUP BY gateway, gone_at IS NOT NULL, claim_reason <> ''",
            tenant,
        )
        return [
            Census(row["gateway"], bool(row["gone"]), bool(row["contested"]), row["devices"])
            for row in rows
        ]

    async def states(self) -> dict[State, int]:
        """How many devices of all tenants are in each state."""
        rows = await self._database.fetch(
            "SELECT state, count(*) AS devices FROM devices GROUP BY state"
        )
        return dict.fromkeys(State, 0) | {State(row["state"]): row["devices"] for row in rows}

    async def host(self, gateway: str, mac: bytes) -> Host | None:
        return await Tables(self._database).host(gateway, mac)

    async def candidates(
        self,
        tenant: str = DEFAULT_TENANT,
        *,
        after: tuple[str, bytes] = ("", b""),
        most: int = ALL,
    ) -> list[Host]:
        """Hosts that answer as AMT and whose UUID is unknown, in the order of gateway and MAC."""
        rows = await self._database.fetch(
            "SELECT hosts.* FROM hosts JOIN gateways ON gateways.name = hosts.gateway"
            " WHERE gateways.tenant = $1 AND hosts.answered_at IS NOT NULL AND NOT EXISTS"
            " (SELECT 1 FROM devices WHERE devices.tenant = gateways.tenant"
            "  AND devices.gateway = hosts.gateway AND devices.mac = hosts.mac)"
            " AND (hosts.gateway, hosts.mac) > ($2, $3)"
            " ORDER BY hosts.gateway, hosts.mac LIMIT $4",
            tenant,
            *after,
            most,
        )
        return [host_from(row) for row in rows]

    async def identified(
        self, gateway: str, mac: bytes, uuid: UUID, at: float, *, actor: str, realm: str = ""
    ) -> Device:
        """A login at this host showed `uuid`: make the device, or move or confirm a known one.

        RegistryConflict when a known device is pinned to another certificate than the host shows.
        """
        host = await self.host(gateway, mac)
        record = await self.gateway(gateway)
        if host is None or record is None:
            raise RegistryConflict(f"{format_mac(mac)} is unknown at gateway {gateway}")
        place = Seen(record.tenant, gateway, record.address, record.port, at, at)
        async with self._database.transaction() as db:
            tables = Tables(db)
            known = await tables.device(record.tenant, uuid)
            if known is not None and known.gateway != gateway and known.protected:
                # The UUID is what that gateway says the device said.
                raise RegistryConflict(
                    f"device {uuid} belongs to gateway {known.gateway}; forget it there first"
                )
            if known is not None and known.pin != NO_PIN and known.pin != host.pin:
                raise RegistryConflict(
                    f"device {uuid} is pinned to certificate {known.pin.hex()[:16]}..., this host"
                    f" shows {host.pin.hex()[:16] if host.pin != NO_PIN else 'none'}"
                )
            device = moved(known, host, place) if known else from_host(uuid, host, place)
            device = replace(
                device,
                state=State.MANAGED,
                source=device.source if known else Origin.IDENTITY,
                managed_at=at,
                proved_at=at,
                last_seen=at,
                realm=clean(realm) or device.realm,
            )
            await tables.save_device(device)
            action = (
                "device.registered"
                if known is None
                else "device.confirmed"
                if (known.gateway, known.mac) == (gateway, mac)
                else "device.moved"
            )
            await tables.audit_device(device, at, actor, action, before=known)
        self.on_devices([device])
        return device

    async def call_succeeded(
        self, uuid: UUID, at: float, *, tls: TlsMode | None = None, tenant: str = DEFAULT_TENANT
    ) -> None:
        """A function with login worked at the recorded place, so the device is provisioned."""
        # The next call shows it again.
        async with self._database.transaction(durable=False) as db:
            tables = Tables(db)
            device = await tables.device(tenant, uuid)
            if device is None:
                return
            changed = replace(
                device,
                state=State.MANAGED,
                managed_at=at,
                answered_at=at,
                last_seen=at,
                gone_at=None,
                tls=device.tls if tls is None else tls,
            )
            await tables.save_device(changed)
            if device.state is not State.MANAGED:
                await tables.audit_device(changed, at, "msp", "device.managed")
        self.on_devices([changed])

    async def unpin(
        self, uuid: UUID, at: float, *, actor: str, tenant: str = DEFAULT_TENANT
    ) -> Device | None:
        """Forget certificate, realm and claims, so that the next answer is trusted afresh."""
        async with self._database.transaction() as db:
            tables = Tables(db)
            device = await tables.device(tenant, uuid)
            if device is None:
                return None
            changed = uncontested(replace(device, pin=NO_PIN, realm="", tls=TlsMode.AUTO))
            await tables.save_device(changed)
            await tables.audit_device(changed, at, actor, "device.unpinned", pin=device.pin.hex())
        self.on_devices([changed])
        return changed

    async def forget(
        self, uuid: UUID, at: float, *, actor: str, tenant: str = DEFAULT_TENANT
    ) -> bool:
        """Drop a device; its gateway will be asked for its whole table at its next link."""
        async with self._database.transaction() as db:
            tables = Tables(db)
            device = await tables.device(tenant, uuid)
            if device is None:
                return False
            await tables.forget_device(device)
            await tables.audit_device(device, at, actor, "device.forgotten")
        return True

    # Audit.

    async def audit(
        self,
        actor: str,
        action: str,
        at: float,
        *,
        gateway: str = "",
        uuid: UUID | None = None,
        detail: dict[str, Any] | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> None:
        await Tables(self._database).audit(tenant, at, actor, action, gateway, uuid, detail)

    async def audit_entries(
        self,
        *,
        uuid: UUID | None = None,
        before: int = NEWEST,
        limit: int = 100,
        tenant: str = DEFAULT_TENANT,
    ) -> list[AuditEntry]:
        """The newest entries, newest first; `before` is the number of an entry."""
        rows = await self._database.fetch(
            f"SELECT * FROM audit WHERE tenant = $1 AND id < $2"  # noqa: S608
            f" {'' if uuid is None else 'AND uuid = $4'} ORDER BY id DESC LIMIT $3",
            tenant,
            before,
            limit,
            *(() if uuid is None else (uuid.bytes,)),
        )
        return [audit_entry_from(row) for row in rows]

    async def prune_audit(self, before: float, at: float, *, actor: str) -> int:
        """Delete the entries of all tenants from before `before`; how many.

        What says so stays for ever, and comes first: it is what the database's triggers let them
        go by. They go in parts, so that others write meanwhile; if that is broken off, the next
        time deletes the rest.
        """
        row = await self._database.fetch_one(
            # Not both of one SELECT: SQLite would walk over all of it.
            "SELECT (SELECT min(id) FROM audit) AS low, (SELECT max(id) FROM audit) AS high"
        )
        if row is None or row["low"] is None:
            return 0
        parts = [
            (low, low + PRUNED_AT_ONCE)
            for low in range(row["low"], row["high"] + 1, PRUNED_AT_ONCE)
        ]
        old = "FROM audit WHERE id >= $1 AND id < $2 AND at < $3 AND action <> 'audit.prune'"
        entries = Counter[str]()
        for part in parts:
            rows = await self._database.fetch(
                f"SELECT tenant, count(*) AS entries {old} GROUP BY tenant", *part, before
            )
            entries.update({row["tenant"]: row["entries"] for row in rows})
            # SQLite reads inline.
            await asyncio.sleep(0)
        if not entries:
            return 0
        async with self._database.transaction() as db:
            await db.execute("DELETE FROM audit_pruned WHERE before <= $1", before)
            await db.execute("INSERT INTO audit_pruned (before) VALUES ($1)", before)
            until = datetime.fromtimestamp(before, UTC).isoformat()
            for tenant, count in sorted(entries.items()):
                detail = {"before": until, "entries": count}
                await Tables(db).audit(tenant, at, actor, "audit.prune", detail=detail)
        return sum([await self._database.execute(f"DELETE {old}", *part, before) for part in parts])


async def _tenant_of(db: Connection, gateway: str) -> str | None:
    row = await db.fetch_one("SELECT tenant FROM gateways WHERE name = $1", gateway)
    return None if row is None else str(row["tenant"])


def _matching(tenant: str, equal: Mapping[str, str]) -> tuple[str, list[str]]:
    """A WHERE clause and its values."""
    names = ("tenant", *equal)
    where = " AND ".join(f"{name} = ${number}" for number, name in enumerate(names, 1))
    return where, [tenant, *equal.values()]
