"""Which PC is where: gateways, hosts, devices and the audit, in one SQLite file.

A *host* is what a gateway said about one MAC of its LAN. A *device* is an AMT firmware, known by
(tenant, UUID); it becomes known by a Hello, by a lease with option 97 on a host that answers as
AMT, or by `identity.get`. A LAN can say anything, so words alone never move a managed device:

    claim for a known UUID from          setup                        managed or proved
    --------------------------------------------------------------------------------------------
    its own gateway and MAC              updates it                   updates it
    its gateway, another MAC             the newest claim wins        contested, stays where it is
    its gateway, with its pinned TLS key moves, with an audit entry   moves, with an audit entry
    another gateway, whatever it shows   contested                    contested, stays where it is

A certificate is public, and the MSP has only a gateway's word for having seen it; so a device goes
to another gateway when somebody forgets it at the old one.

Time is always an argument: `at` is the MSP's wall clock in unix seconds, `age` how long ago the
gateway observed. What was observed earlier never overwrites what was observed later.

`observe` only queues; `commit` writes the queue in one transaction and a failed `commit` keeps it.
So a full or locked disk costs an acknowledgement, never a registration, and no session can lose
what another one has queued.
"""

from __future__ import annotations

import enum
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, assert_never
from uuid import UUID

from gwmodule.errors import GatewayError
from gwmodule.msp.migrations import MIGRATIONS
from gwmodule.wire.frames import TlsMode
from gwmodule.wire.notices import (
    NO_MAC,
    NO_UUID,
    Digest,
    Gone,
    Hello,
    Lease,
    LeaseEnd,
    Observation,
    Presence,
    Provisioning,
    Source,
    format_mac,
)

DEFAULT_TENANT = "default"
NO_PIN = bytes(32)

# A writer elsewhere (a shell, a backup) holds the loop, and every keystroke, for no longer.
BUSY_TIMEOUT = 0.1
# Observations that wait for a disk: two full snapshots of the largest default gateway table.
MAX_PENDING = 4096
# What the LAN of one gateway can make us remember; a gateway's own table holds 1,024 by default.
MAX_HOSTS = 4096
MAX_DEVICES = 4096
# A board has one UUID, and another one when its BIOS was flashed anew.
MAX_DEVICES_PER_MAC = 8
MAX_TEXT = 255


class RegistryError(GatewayError):
    """The database cannot be read or written now; nothing of the request has happened."""


class RegistryConflict(GatewayError):
    """The request contradicts what is recorded."""


class State(enum.StrEnum):
    SETUP = "setup"  # asks for provisioning: no admin login yet
    MANAGED = "managed"  # provisioned: by its presence answer or by a login
    FOUND = "found"  # answers as AMT, but does not say whether it is provisioned


class Origin(enum.StrEnum):
    """How a device became known."""

    HELLO = "hello"
    HELLO_TRANSIT = "hello-transit"
    LEASE = "lease"
    IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class Gateway:
    name: str
    tenant: str
    fingerprint: str | None
    address: str
    port: int
    software: str
    connected: bool
    first_link: float | None
    last_link: float | None
    unlinked_at: float | None
    revoked_at: float | None


@dataclass(frozen=True, slots=True)
class Host:
    """What a gateway said about one MAC; `uuid` comes from DHCP and proves nothing."""

    gateway: str
    mac: bytes
    address: IPv4Address
    placed_at: float
    hostname: str = ""
    uuid: UUID | None = None
    leased_at: float | None = None
    lease_until: float | None = None
    answered_at: float | None = None
    provisioning: Provisioning = Provisioning.UNKNOWN
    ports: tuple[int, ...] = ()
    realm: str = ""
    server: str = ""
    pin: bytes = NO_PIN
    gone_at: float | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """`placed_at`: when its place was observed; `proved_at`: when a login showed the UUID there."""

    tenant: str
    uuid: UUID
    state: State
    address: IPv4Address
    mac: bytes | None
    gateway: str
    gateway_address: str
    gateway_port: int
    source: Origin
    first_seen: float
    last_seen: float
    placed_at: float
    hostname: str = ""
    managed_at: float | None = None
    proved_at: float | None = None
    answered_at: float | None = None
    gone_at: float | None = None
    realm: str = ""
    server: str = ""
    ports: tuple[int, ...] = ()
    tls: TlsMode = TlsMode.AUTO
    pin: bytes = NO_PIN
    claim_reason: str = ""
    claim_gateway: str = ""
    claim_mac: bytes | None = None
    claim_address: str = ""
    claim_at: float | None = None

    @property
    def contested(self) -> bool:
        return bool(self.claim_reason)

    @property
    def protected(self) -> bool:
        """Whether words alone must not move it."""
        # Once managed, a Hello in its name does not make it anybody's again.
        managed = self.state is State.MANAGED or self.managed_at is not None
        return managed or self.proved_at is not None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    id: int
    tenant: str
    at: float
    actor: str
    action: str
    gateway: str
    uuid: UUID | None
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One observation's circumstances."""

    tenant: str
    gateway: str
    address: str
    port: int
    seen: float
    at: float

    def newer(self, recorded: float | None) -> bool:
        # A record from the future means that the MSP's clock was set back; it must not freeze us.
        return recorded is None or self.seen >= recorded or recorded > self.at


@dataclass(slots=True)
class _Link:
    """The newest news about one gateway's link that is not written yet."""

    connected: bool
    at: float
    fingerprint: str | None = None
    address: str = ""
    port: int = 0
    software: str = ""


class Registry:
    """Synchronous: a read takes some ten microseconds, a commit some hundred (WAL, no fsync)."""

    def __init__(self, path: Path, *, node: str = "") -> None:
        self.refused = 0  # devices beyond MAX_DEVICES and MAX_DEVICES_PER_MAC
        self.failures = 0  # writes the disk did not take
        self._path = path
        self._node = node
        self._pending: list[tuple[str, str, int, Observation, float, float]] = []
        self._links: dict[str, _Link] = {}
        try:
            # Who is where is nobody else's business; SQLite gives its side files the same mode.
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
        except OSError as exc:
            raise RegistryError(f"registry {path}: {exc.strerror}") from exc
        except sqlite3.Error as exc:
            raise self._error(exc) from exc
        try:
            self._prepare()
        except RegistryError:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    # Gateways.

    def add_gateway(
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
        known = self.gateway(name)
        if known is not None and known.fingerprint is not None and not replace:
            raise RegistryConflict(f"gateway {name} exists; ask for a replacement certificate")
        if known is not None and known.tenant != tenant:
            raise RegistryConflict(f"gateway {name} belongs to another tenant")
        with self._transaction():
            self._db.execute(
                "INSERT INTO gateways (name, tenant, fingerprint, enrolled_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET fingerprint = excluded.fingerprint,"
                " enrolled_at = excluded.enrolled_at, revoked_at = NULL",
                (name, tenant, fingerprint, at),
            )
            self._audit(tenant, at, actor, "gateway.add", name, detail={"fingerprint": fingerprint})

    def is_gateway_allowed(self, gateway: str, fingerprint: str) -> bool:
        record = self.gateway(gateway)
        return (
            record is not None and record.revoked_at is None and record.fingerprint == fingerprint
        )

    def gateway_connected(
        self,
        gateway: str,
        fingerprint: str,
        address: str,
        port: int,
        software: str,
        at: float,
    ) -> None:
        """A new link; never fails: what the disk does not take now goes with the next commit."""
        self._links[gateway] = _Link(True, at, fingerprint, address, port, _clean(software))
        self._try_commit()

    def gateway_disconnected(self, gateway: str, at: float) -> None:
        self._links[gateway] = _Link(False, at)
        self._try_commit()

    def gateway(self, name: str) -> Gateway | None:
        row = self._one("SELECT * FROM gateways WHERE name = ?", name)
        return None if row is None else _gateway(row)

    def gateways(self, tenant: str = DEFAULT_TENANT) -> list[Gateway]:
        rows = self._all("SELECT * FROM gateways WHERE tenant = ? ORDER BY name", tenant)
        return [_gateway(row) for row in rows]

    # Observations.

    def observe(
        self,
        gateway: str,
        address: str,
        port: int,
        observation: Observation,
        age: float,
        at: float,
    ) -> None:
        """Queue a notice of `gateway`, seen after NAT as `address`:`port`, until `commit`."""
        if len(self._pending) >= MAX_PENDING:
            raise RegistryError(f"registry {self._path}: {MAX_PENDING} observations wait for it")
        self._pending.append((gateway, address, port, observation, at - max(age, 0.0), at))

    def commit(self) -> None:
        """Write what was queued; after that, and not before, it may be acknowledged."""
        if not self._pending and not self._links:
            return
        try:
            with self._transaction():
                for gateway, link in self._links.items():
                    self._write_link(gateway, link)
                for gateway, address, port, observation, seen, at in self._pending:
                    tenant = self._tenant_of(gateway)
                    self._apply(observation, _Seen(tenant, gateway, address, port, seen, at))
        except RegistryError as exc:
            self.failures += 1
            if not isinstance(exc.__cause__, sqlite3.OperationalError):
                # Not the disk's fault, so another try would end the same way.
                self._pending.clear()
            raise
        self._pending.clear()
        self._links.clear()

    def stored_digest(self, gateway: str) -> bytes | None:
        """What the gateway's table hashed to at its last session; None when ours lost something.

        The gateway keeps the snapshot that a difference brought until all of it is acknowledged, so
        equal means that nothing is missing here.
        """
        row = self._one("SELECT digest FROM gateways WHERE name = ?", gateway)
        return None if row is None else row["digest"]

    # Devices and hosts.

    def device(self, uuid: UUID, tenant: str = DEFAULT_TENANT) -> Device | None:
        """Look up by UUID in either byte order: boards and tools print both."""
        return self._device(tenant, uuid) or self._device(tenant, UUID(bytes_le=uuid.bytes))

    def devices(self, tenant: str = DEFAULT_TENANT) -> list[Device]:
        rows = self._all("SELECT * FROM devices WHERE tenant = ? ORDER BY uuid", tenant)
        return [_device(row) for row in rows]

    def host(self, gateway: str, mac: bytes) -> Host | None:
        row = self._one("SELECT * FROM hosts WHERE gateway = ? AND mac = ?", gateway, mac)
        return None if row is None else _host(row)

    def candidates(self, tenant: str = DEFAULT_TENANT) -> list[Host]:
        """Hosts that answer as AMT and whose UUID is unknown."""
        rows = self._all(
            "SELECT hosts.* FROM hosts JOIN gateways ON gateways.name = hosts.gateway"
            " WHERE gateways.tenant = ? AND hosts.answered_at IS NOT NULL AND NOT EXISTS"
            " (SELECT 1 FROM devices WHERE devices.tenant = gateways.tenant"
            "  AND devices.gateway = hosts.gateway AND devices.mac = hosts.mac)"
            " ORDER BY hosts.gateway, hosts.mac",
            tenant,
        )
        return [_host(row) for row in rows]

    def identified(
        self, gateway: str, mac: bytes, uuid: UUID, at: float, *, actor: str, realm: str = ""
    ) -> Device:
        """A login at this host showed `uuid`: make the device, or move or confirm a known one.

        RegistryConflict when a known device is pinned to another certificate than the host shows.
        """
        host = self.host(gateway, mac)
        record = self.gateway(gateway)
        if host is None or record is None:
            raise RegistryConflict(f"{format_mac(mac)} is unknown at gateway {gateway}")
        place = _Seen(record.tenant, gateway, record.address, record.port, at, at)
        with self._transaction():
            known = self._device(record.tenant, uuid)
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
            device = _moved(known, host, place) if known else _from_host(uuid, host, place)
            device = replace(
                device,
                state=State.MANAGED,
                source=device.source if known else Origin.IDENTITY,
                managed_at=at,
                proved_at=at,
                last_seen=at,
                realm=_clean(realm) or device.realm,
            )
            self._save(device)
            action = (
                "device.registered"
                if known is None
                else "device.confirmed"
                if (known.gateway, known.mac) == (gateway, mac)
                else "device.moved"
            )
            self._audit_device(device, at, actor, action, before=known)
        return device

    def call_succeeded(
        self, uuid: UUID, at: float, *, tls: TlsMode | None = None, tenant: str = DEFAULT_TENANT
    ) -> None:
        """A function with login worked at the recorded place, so the device is provisioned."""
        with self._transaction():
            device = self._device(tenant, uuid)
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
            self._save(changed)
            if device.state is not State.MANAGED:
                self._audit_device(changed, at, "msp", "device.managed")

    def unpin(
        self, uuid: UUID, at: float, *, actor: str, tenant: str = DEFAULT_TENANT
    ) -> Device | None:
        """Forget certificate, realm and claims, so that the next answer is trusted afresh."""
        with self._transaction():
            device = self._device(tenant, uuid)
            if device is None:
                return None
            changed = _uncontested(replace(device, pin=NO_PIN, realm="", tls=TlsMode.AUTO))
            self._save(changed)
            self._audit_device(changed, at, actor, "device.unpinned", pin=device.pin.hex())
        return changed

    def forget(self, uuid: UUID, at: float, *, actor: str, tenant: str = DEFAULT_TENANT) -> bool:
        """Drop a device; its gateway will be asked for its whole table at its next link."""
        with self._transaction():
            device = self._device(tenant, uuid)
            if device is None:
                return False
            key = (tenant, device.uuid.bytes)
            self._db.execute("DELETE FROM devices WHERE tenant = ? AND uuid = ?", key)
            self._db.execute("DELETE FROM hellos WHERE tenant = ? AND uuid = ?", key)
            self._db.execute("UPDATE gateways SET digest = NULL WHERE name = ?", (device.gateway,))
            self._audit_device(device, at, actor, "device.forgotten")
        return True

    # Audit.

    def audit(
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
        with self._transaction():
            self._audit(tenant, at, actor, action, gateway, uuid, detail)

    def audit_entries(
        self, *, uuid: UUID | None = None, limit: int = 100, tenant: str = DEFAULT_TENANT
    ) -> list[AuditEntry]:
        """The newest entries, newest first."""
        if uuid is None:
            rows = self._all(
                "SELECT * FROM audit WHERE tenant = ? ORDER BY id DESC LIMIT ?", tenant, limit
            )
        else:
            rows = self._all(
                "SELECT * FROM audit WHERE tenant = ? AND uuid = ? ORDER BY id DESC LIMIT ?",
                tenant,
                uuid.bytes,
                limit,
            )
        return [
            AuditEntry(
                row["id"],
                row["tenant"],
                row["at"],
                row["actor"],
                row["action"],
                row["gateway"],
                _uuid(row["uuid"]),
                json.loads(row["detail"] or "{}"),
            )
            for row in rows
        ]

    # The rules.

    def _apply(self, observation: Observation, seen: _Seen) -> None:
        match observation:
            case Lease():
                self._on_lease(observation, seen)
            case LeaseEnd():
                self._on_lease_end(observation, seen)
            case Hello():
                self._on_hello(observation, seen)
            case Presence():
                self._on_presence(observation, seen)
            case Gone():
                self._on_gone(observation, seen)
            case Digest():
                self._on_digest(observation, seen)
            case _:
                assert_never(observation)

    def _on_lease(self, lease: Lease, seen: _Seen) -> None:
        host = self.host(seen.gateway, lease.mac)
        if host is not None and not seen.newer(host.leased_at):
            return
        hostname = _clean(lease.hostname)
        fresh = host or Host(seen.gateway, lease.mac, lease.address, seen.seen)
        if seen.newer(fresh.placed_at):
            fresh = replace(fresh, address=lease.address, placed_at=seen.seen)
        fresh = replace(
            fresh,
            hostname=hostname or fresh.hostname,
            uuid=lease.uuid or fresh.uuid,
            leased_at=seen.seen,
            lease_until=seen.seen + lease.seconds,
        )
        self._save_host(fresh, new=host is None)
        for device in self._devices_at(seen, lease.mac, lease.address):
            self._save(replace(self._placed(device, fresh, seen), hostname=fresh.hostname))
        self._appears(fresh, seen)

    def _on_lease_end(self, end: LeaseEnd, seen: _Seen) -> None:
        host = self.host(seen.gateway, end.mac)
        if host is None or host.address != end.address or not seen.newer(host.leased_at):
            return
        self._save_host(replace(host, lease_until=seen.seen), new=False)

    def _on_presence(self, presence: Presence, seen: _Seen) -> None:
        host = self.host(seen.gateway, presence.mac)
        if host is not None and not seen.newer(host.answered_at):
            return
        fresh = host or Host(seen.gateway, presence.mac, presence.address, seen.seen)
        if seen.newer(fresh.placed_at):
            fresh = replace(fresh, address=presence.address, placed_at=seen.seen)
        fresh = replace(
            fresh,
            uuid=presence.uuid or fresh.uuid,
            answered_at=seen.seen,
            provisioning=presence.provisioning,
            ports=presence.ports,
            realm=_clean(presence.realm),
            server=_clean(presence.server),
            pin=presence.pin if presence.pin != NO_PIN else fresh.pin,
            gone_at=None,
        )
        self._save_host(fresh, new=host is None)
        for device in self._devices_at(seen, presence.mac, presence.address):
            self._answered(self._placed(device, fresh, seen), presence, fresh, seen)
        self._appears(fresh, seen)

    def _on_gone(self, gone: Gone, seen: _Seen) -> None:
        host = self.host(seen.gateway, gone.mac)
        if host is not None and host.address == gone.address and seen.newer(host.answered_at):
            self._save_host(replace(host, gone_at=seen.seen), new=False)
        for device in self._devices_at(seen, gone.mac, gone.address):
            if device.address == gone.address and seen.newer(device.answered_at):
                self._save(replace(device, gone_at=seen.seen))

    def _on_digest(self, digest: Digest, seen: _Seen) -> None:
        self._db.execute(
            "UPDATE gateways SET digest = ? WHERE name = ?", (digest.sha256, seen.gateway)
        )

    def _on_hello(self, hello: Hello, seen: _Seen) -> None:
        mac = hello.mac if hello.mac != NO_MAC else self._mac_of(seen.gateway, hello.address)
        device = self._device(seen.tenant, hello.uuid)
        if hello.uuid == NO_UUID:
            # An unprogrammed board; many would share it.
            self.refused += 1
            return
        if device is None:
            self._register_hello(hello, mac, seen)
            return
        self._save_hello(hello, mac, seen)
        if not seen.newer(device.placed_at):
            return
        place = Host(seen.gateway, mac or NO_MAC, hello.address, seen.seen)
        if device.gateway == seen.gateway and (mac is None or device.mac in (None, mac)):
            if mac is None and device.protected:
                # Without a MAC it is no place that a call could check.
                return
            here = self._placed(device, replace(place, mac=mac or device.mac or NO_MAC), seen)
            if device.state is not State.SETUP and seen.newer(device.managed_at):
                # A provisioned device sends no Hello: somebody unprovisioned it.
                here = replace(here, state=State.SETUP)
                self._audit_device(here, seen.at, "gateway", "device.setup")
            self._save(here)
        elif device.protected or device.gateway != seen.gateway:
            self._contest(device, place, "sent a Hello from another place", seen)
        else:
            self._save(_moved(device, place, seen))

    def _register_hello(self, hello: Hello, mac: bytes | None, seen: _Seen) -> None:
        if self._full(seen.gateway, mac):
            self.refused += 1
            return
        host = self.host(seen.gateway, mac) if mac else None
        device = Device(
            tenant=seen.tenant,
            uuid=hello.uuid,
            state=State.SETUP,
            address=hello.address,
            mac=mac,
            gateway=seen.gateway,
            gateway_address=seen.address,
            gateway_port=seen.port,
            source=Origin.HELLO_TRANSIT if hello.source is Source.TRANSIT else Origin.HELLO,
            first_seen=seen.seen,
            last_seen=seen.seen,
            placed_at=seen.seen,
            hostname=host.hostname if host else "",
            realm=host.realm if host else "",
            server=host.server if host else "",
            pin=host.pin if host else NO_PIN,
        )
        self._save(device)
        self._save_hello(hello, mac, seen)
        self._audit_device(device, seen.at, "gateway", "device.registered")

    def _full(self, gateway: str, mac: bytes | None) -> bool:
        """Whether one gateway, or one MAC behind it, has named as many devices as it may."""
        (all_of_it,) = self._db.execute(
            "SELECT count(*) FROM devices WHERE gateway = ?", (gateway,)
        ).fetchone()
        (of_mac,) = self._db.execute(
            "SELECT count(*) FROM devices WHERE gateway = ? AND mac = ?", (gateway, mac)
        ).fetchone()
        return bool(all_of_it >= MAX_DEVICES or (mac and of_mac >= MAX_DEVICES_PER_MAC))

    def _placed(self, device: Device, host: Host, seen: _Seen) -> Device:
        """`device` at the host's address, when that is newer than what is recorded."""
        if not seen.newer(device.placed_at):
            return device
        return replace(
            device,
            address=host.address,
            mac=None if host.mac == NO_MAC else host.mac,
            gateway_address=seen.address,
            gateway_port=seen.port,
            placed_at=seen.seen,
            last_seen=max(device.last_seen, seen.seen),
        )

    def _answered(self, device: Device, presence: Presence, host: Host, seen: _Seen) -> None:
        if presence.pin != NO_PIN and device.pin not in (NO_PIN, presence.pin):
            shown = presence.pin.hex()[:16]
            self._contest(device, host, f"shows another certificate, {shown}...", seen)
            return
        # The facts of a pinned device change only with its certificate.
        trusted = device.pin in (NO_PIN, presence.pin)
        changed = replace(
            device,
            answered_at=seen.seen,
            last_seen=max(device.last_seen, seen.seen),
            gone_at=None,
            ports=presence.ports or device.ports,
            realm=host.realm if trusted and host.realm else device.realm,
            server=host.server if trusted and host.server else device.server,
            pin=device.pin if presence.pin == NO_PIN else presence.pin,
        )
        if _state_of(host) is State.MANAGED:
            changed = replace(changed, state=State.MANAGED, managed_at=seen.seen)
            if device.state is not State.MANAGED:
                self._audit_device(changed, seen.at, "gateway", "device.managed")
        self._save(changed)

    def _appears(self, host: Host, seen: _Seen) -> None:
        """DHCP told the UUID of a host that answers as AMT."""
        if host.uuid is None or host.uuid == NO_UUID or host.answered_at is None:
            return
        device = self._device(seen.tenant, host.uuid)
        if device is None:
            if self._full(seen.gateway, host.mac):
                self.refused += 1
                return
            device = _from_host(host.uuid, host, seen)
            self._save(device)
            self._audit_device(device, seen.at, "gateway", "device.registered")
            return
        if device.gateway == host.gateway and device.mac == host.mac:
            return
        if not seen.newer(device.placed_at):
            return
        # At its own gateway only: a certificate is public, and another customer's gateway may say
        # that it saw it.
        at_home = device.gateway == host.gateway
        if at_home and device.pin != NO_PIN and host.pin == device.pin:
            moved = _uncontested(_moved(device, host, seen))
            self._save(moved)
            self._audit_device(moved, seen.at, "gateway", "device.moved", before=device)
        elif device.protected or device.gateway != host.gateway:
            self._contest(device, host, "appeared at another place", seen)
        else:
            self._save(_moved(device, host, seen))

    def _contest(self, device: Device, claim: Host, reason: str, seen: _Seen) -> None:
        """Mark the device and leave it where it is; one audit entry until somebody settles it."""
        changed = replace(
            device,
            claim_reason=reason,
            claim_gateway=claim.gateway,
            claim_mac=None if claim.mac == NO_MAC else claim.mac,
            claim_address=str(claim.address),
            claim_at=seen.seen,
        )
        self._save(changed)
        if not device.contested:
            self._audit_device(
                changed,
                seen.at,
                "gateway",
                "device.contested",
                reason=reason,
                claim=f"{claim.gateway} {format_mac(claim.mac)} {claim.address}",
            )

    # SQL.

    def _prepare(self) -> None:
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            # A commit survives the death of the process. A power failure may take the last ones;
            # the gateways' digests then differ and bring them back.
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._migrate()
        except sqlite3.Error as exc:
            raise self._error(exc) from exc
        with self._transaction():
            self._db.execute("UPDATE gateways SET connected = 0 WHERE node = ?", (self._node,))

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise RegistryError(
                f"registry {self._path}: schema {version} is newer than this program's"
                f" {len(MIGRATIONS)}"
            )
        for number in range(version, len(MIGRATIONS)):
            # executescript would commit first, so BEGIN is part of the script.
            self._db.executescript(
                f"BEGIN IMMEDIATE; {MIGRATIONS[number]};"
                f" PRAGMA user_version = {number + 1}; COMMIT;"
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back after a full disk or an I/O error.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as exc:
            raise self._error(exc) from exc

    def _error(self, exc: sqlite3.Error) -> RegistryError:
        return RegistryError(f"registry {self._path}: {exc}")

    def _try_commit(self) -> None:
        try:
            self.commit()
        except RegistryError:
            # Counted; the next notice will meet the same disk and say so.
            return

    def _one(self, sql: str, *values: object) -> sqlite3.Row | None:
        try:
            row: sqlite3.Row | None = self._db.execute(sql, values).fetchone()
        except sqlite3.Error as exc:
            raise self._error(exc) from exc
        return row

    def _all(self, sql: str, *values: object) -> list[sqlite3.Row]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as exc:
            raise self._error(exc) from exc

    def _tenant_of(self, gateway: str) -> str:
        row = self._one("SELECT tenant FROM gateways WHERE name = ?", gateway)
        return DEFAULT_TENANT if row is None else row["tenant"]

    def _device(self, tenant: str, uuid: UUID) -> Device | None:
        row = self._one("SELECT * FROM devices WHERE tenant = ? AND uuid = ?", tenant, uuid.bytes)
        return None if row is None else _device(row)

    def _devices_at(self, seen: _Seen, mac: bytes, address: IPv4Address) -> list[Device]:
        """Devices at this MAC, and those of this address whose Hello came without a MAC."""
        rows = self._all(
            "SELECT * FROM devices WHERE gateway = ? AND tenant = ?"
            " AND (mac = ? OR (mac IS NULL AND address = ?))",
            seen.gateway,
            seen.tenant,
            mac,
            str(address),
        )
        return [_device(row) for row in rows]

    def _mac_of(self, gateway: str, address: IPv4Address) -> bytes | None:
        row = self._one(
            "SELECT mac FROM hosts WHERE gateway = ? AND address = ? AND gone_at IS NULL"
            " ORDER BY placed_at DESC LIMIT 1",
            gateway,
            str(address),
        )
        return None if row is None else row["mac"]

    def _write_link(self, gateway: str, link: _Link) -> None:
        if not link.connected:
            self._db.execute(
                "UPDATE gateways SET connected = 0, unlinked_at = ?"
                " WHERE name = ? AND connected = 1",
                (link.at, gateway),
            )
            return
        self._db.execute(
            "INSERT INTO gateways"
            " (name, fingerprint, address, port, software, node, connected, first_link, last_link)"
            " VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET address = excluded.address, port = excluded.port,"
            " software = excluded.software, node = excluded.node, connected = 1,"
            " first_link = coalesce(first_link, excluded.first_link),"
            " last_link = excluded.last_link",
            (
                gateway,
                link.fingerprint,
                link.address,
                link.port,
                link.software,
                self._node,
                link.at,
                link.at,
            ),
        )
        self._db.execute(
            "UPDATE devices SET gateway_address = ?, gateway_port = ? WHERE gateway = ?",
            (link.address, link.port, gateway),
        )

    def _save(self, device: Device) -> None:
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
            "ports": _ports_text(device.ports),
            "tls": int(device.tls),
            "pin": _pin_value(device.pin),
            "claim_reason": device.claim_reason,
            "claim_gateway": device.claim_gateway,
            "claim_mac": device.claim_mac,
            "claim_address": device.claim_address,
            "claim_at": device.claim_at,
        }
        self._upsert("devices", ("tenant", "uuid"), values)

    def _save_host(self, host: Host, *, new: bool) -> None:
        if new:
            self._make_room(host.gateway)
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
            "ports": _ports_text(host.ports),
            "realm": host.realm,
            "server": host.server,
            "pin": _pin_value(host.pin),
            "gone_at": host.gone_at,
        }
        self._upsert("hosts", ("gateway", "mac"), values)

    def _make_room(self, gateway: str) -> None:
        (count,) = self._db.execute(
            "SELECT count(*) FROM hosts WHERE gateway = ?", (gateway,)
        ).fetchone()
        if count >= MAX_HOSTS:
            # Those that never answered as AMT go first, then the ones longest unheard of.
            self._db.execute(
                "DELETE FROM hosts WHERE gateway = ? AND mac = (SELECT mac FROM hosts"
                " WHERE gateway = ? ORDER BY answered_at IS NOT NULL, placed_at LIMIT 1)",
                (gateway, gateway),
            )

    def _save_hello(self, hello: Hello, mac: bytes | None, seen: _Seen) -> None:
        self._db.execute(
            "INSERT INTO hellos (tenant, uuid, gateway, address, mac, version, retry, source, raw,"
            " seen) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, uuid) DO UPDATE SET"
            " gateway = excluded.gateway, address = excluded.address, mac = excluded.mac,"
            " version = excluded.version, retry = excluded.retry, source = excluded.source,"
            " raw = excluded.raw, seen = excluded.seen, count = count + 1",
            (
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
            ),
        )

    def _upsert(self, table: str, key: tuple[str, ...], values: dict[str, Any]) -> None:
        # Table and column names are this module's own.
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        updates = ", ".join(f"{name} = excluded.{name}" for name in values if name not in key)
        self._db.execute(
            f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608
            f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {updates}",
            values,
        )

    def _audit(
        self,
        tenant: str,
        at: float,
        actor: str,
        action: str,
        gateway: str = "",
        uuid: UUID | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        self._db.execute(
            "INSERT INTO audit (tenant, at, actor, action, gateway, uuid, detail)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                tenant,
                at,
                actor,
                action,
                gateway,
                uuid.bytes if uuid else None,
                json.dumps(detail) if detail else "",
            ),
        )

    def _audit_device(
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
        self._audit(device.tenant, at, actor, action, device.gateway, device.uuid, detail)


def _moved(device: Device, host: Host, seen: _Seen) -> Device:
    """`device` at `host`; what the old place told about it goes, the pin never does."""
    here = device.gateway == host.gateway and device.mac == host.mac
    return _uncontested(
        replace(
            device,
            gateway=host.gateway,
            gateway_address=seen.address,
            gateway_port=seen.port,
            address=host.address,
            mac=None if host.mac == NO_MAC else host.mac,
            hostname=host.hostname or (device.hostname if here else ""),
            realm=host.realm or device.realm,
            server=host.server or device.server,
            ports=host.ports or device.ports,
            pin=device.pin if device.pin != NO_PIN else host.pin,
            answered_at=host.answered_at if not here else device.answered_at,
            gone_at=None,
            placed_at=seen.seen,
            last_seen=max(device.last_seen, seen.seen),
        )
    )


def _from_host(uuid: UUID, host: Host, seen: _Seen) -> Device:
    state = _state_of(host)
    return Device(
        tenant=seen.tenant,
        uuid=uuid,
        state=state,
        address=host.address,
        mac=host.mac,
        gateway=host.gateway,
        gateway_address=seen.address,
        gateway_port=seen.port,
        source=Origin.LEASE,
        first_seen=seen.seen,
        last_seen=seen.seen,
        placed_at=host.placed_at,
        hostname=host.hostname,
        managed_at=seen.seen if state is State.MANAGED else None,
        answered_at=host.answered_at,
        realm=host.realm,
        server=host.server,
        ports=host.ports,
        pin=host.pin,
    )


def _uncontested(device: Device) -> Device:
    return replace(
        device,
        claim_reason="",
        claim_gateway="",
        claim_mac=None,
        claim_address="",
        claim_at=None,
    )


def _state_of(host: Host) -> State:
    match host.provisioning:
        case Provisioning.POST:
            return State.MANAGED
        case Provisioning.PRE | Provisioning.IN:
            return State.SETUP
        case Provisioning.UNKNOWN:
            # RMCP may be off; only a provisioned device asks for a digest login.
            return State.MANAGED if host.realm else State.FOUND
        case _:
            assert_never(host.provisioning)


def _clean(text: str) -> str:
    """Attacker's text as it can be stored; showing it harmlessly is the reader's part."""
    return text[:MAX_TEXT].encode(errors="replace").decode()


def _uuid(value: bytes | None) -> UUID | None:
    return None if value is None else UUID(bytes=value)


def _ports_text(ports: tuple[int, ...]) -> str:
    return ",".join(str(port) for port in ports)


def _ports(text: str) -> tuple[int, ...]:
    return tuple(int(port) for port in text.split(",") if port)


def _pin_value(pin: bytes) -> bytes | None:
    return None if pin == NO_PIN else pin


def _gateway(row: sqlite3.Row) -> Gateway:
    return Gateway(
        name=row["name"],
        tenant=row["tenant"],
        fingerprint=row["fingerprint"],
        address=row["address"],
        port=row["port"],
        software=row["software"],
        connected=bool(row["connected"]),
        first_link=row["first_link"],
        last_link=row["last_link"],
        unlinked_at=row["unlinked_at"],
        revoked_at=row["revoked_at"],
    )


def _host(row: sqlite3.Row) -> Host:
    return Host(
        gateway=row["gateway"],
        mac=row["mac"],
        address=IPv4Address(row["address"]),
        placed_at=row["placed_at"],
        hostname=row["hostname"],
        uuid=_uuid(row["uuid"]),
        leased_at=row["leased_at"],
        lease_until=row["lease_until"],
        answered_at=row["answered_at"],
        provisioning=Provisioning(row["provisioning"]),
        ports=_ports(row["ports"]),
        realm=row["realm"],
        server=row["server"],
        pin=row["pin"] or NO_PIN,
        gone_at=row["gone_at"],
    )


def _device(row: sqlite3.Row) -> Device:
    return Device(
        tenant=row["tenant"],
        uuid=UUID(bytes=row["uuid"]),
        state=State(row["state"]),
        address=IPv4Address(row["address"]),
        mac=row["mac"],
        gateway=row["gateway"],
        gateway_address=row["gateway_address"],
        gateway_port=row["gateway_port"],
        source=Origin(row["source"]),
        first_seen=row["first_seen"],
        last_seen=row["last_seen"],
        placed_at=row["placed_at"],
        hostname=row["hostname"],
        managed_at=row["managed_at"],
        proved_at=row["proved_at"],
        answered_at=row["answered_at"],
        gone_at=row["gone_at"],
        realm=row["realm"],
        server=row["server"],
        ports=_ports(row["ports"]),
        tls=TlsMode(row["tls"]),
        pin=row["pin"] or NO_PIN,
        claim_reason=row["claim_reason"],
        claim_gateway=row["claim_gateway"],
        claim_mac=row["claim_mac"],
        claim_address=row["claim_address"],
        claim_at=row["claim_at"],
    )
