"""What the registry knows: gateways, hosts, devices and the audit, as rows and as objects.

A *host* is what a gateway said about one MAC of its LAN. A *device* is an AMT firmware, known by
(tenant, UUID).
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any, assert_never
from uuid import UUID

from gwmodule.msp.database import Row, storable
from gwmodule.wire.frames import TlsMode
from gwmodule.wire.notices import NO_MAC, Provisioning

DEFAULT_TENANT = "default"
NO_PIN = bytes(32)
MAX_TEXT = 255


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
    node: str
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
    """`placed_at`: when its place was observed; `proved_at`: when a login showed the UUID there.

    `audit_full_at`: when its bucket of audit entries is full again; `unaudited`: how many were left
    out since the last one.
    """

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
    audit_full_at: float = 0.0
    unaudited: int = 0

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
class Seen:
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


def moved(device: Device, host: Host, seen: Seen) -> Device:
    """`device` at `host`; what the old place told about it goes, the pin never does."""
    here = device.gateway == host.gateway and device.mac == host.mac
    return uncontested(
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


def from_host(uuid: UUID, host: Host, seen: Seen) -> Device:
    state = state_of(host)
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


def uncontested(device: Device) -> Device:
    return replace(
        device,
        claim_reason="",
        claim_gateway="",
        claim_mac=None,
        claim_address="",
        claim_at=None,
    )


def state_of(host: Host) -> State:
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


def clean(text: str) -> str:
    """Attacker's text as it can be stored; showing it harmlessly is the reader's part."""
    return str(storable(text[:MAX_TEXT]))


def uuid_from(value: bytes | None) -> UUID | None:
    return None if value is None else UUID(bytes=value)


def ports_text(ports: tuple[int, ...]) -> str:
    return ",".join(str(port) for port in ports)


def ports_from(text: str) -> tuple[int, ...]:
    return tuple(int(port) for port in text.split(",") if port)


def pin_value(pin: bytes) -> bytes | None:
    return None if pin == NO_PIN else pin


def gateway_from(row: Row) -> Gateway:
    return Gateway(
        name=row["name"],
        tenant=row["tenant"],
        fingerprint=row["fingerprint"],
        address=row["address"],
        port=row["port"],
        software=row["software"],
        node=row["node"],
        connected=bool(row["connected"]),
        first_link=row["first_link"],
        last_link=row["last_link"],
        unlinked_at=row["unlinked_at"],
        revoked_at=row["revoked_at"],
    )


def host_from(row: Row) -> Host:
    return Host(
        gateway=row["gateway"],
        mac=row["mac"],
        address=IPv4Address(row["address"]),
        placed_at=row["placed_at"],
        hostname=row["hostname"],
        uuid=uuid_from(row["uuid"]),
        leased_at=row["leased_at"],
        lease_until=row["lease_until"],
        answered_at=row["answered_at"],
        provisioning=Provisioning(row["provisioning"]),
        ports=ports_from(row["ports"]),
        realm=row["realm"],
        server=row["server"],
        pin=row["pin"] or NO_PIN,
        gone_at=row["gone_at"],
    )


def device_from(row: Row) -> Device:
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
        ports=ports_from(row["ports"]),
        tls=TlsMode(row["tls"]),
        pin=row["pin"] or NO_PIN,
        claim_reason=row["claim_reason"],
        claim_gateway=row["claim_gateway"],
        claim_mac=row["claim_mac"],
        claim_address=row["claim_address"],
        claim_at=row["claim_at"],
        audit_full_at=row["audit_full_at"],
        unaudited=row["unaudited"],
    )


def audit_entry_from(row: Row) -> AuditEntry:
    return AuditEntry(
        row["id"],
        row["tenant"],
        row["at"],
        row["actor"],
        row["action"],
        row["gateway"],
        uuid_from(row["uuid"]),
        json.loads(row["detail"] or "{}"),
    )
