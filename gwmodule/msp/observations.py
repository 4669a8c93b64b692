"""What an observation of a gateway does to the records.

A LAN can say anything, so words alone never move a managed device:

    claim for a known UUID from          setup                        managed or proved
    --------------------------------------------------------------------------------------------
    its own gateway and MAC              updates it                   updates it
    its gateway, another MAC             the newest claim wins        contested, stays where it is
    its gateway, with its pinned TLS key moves, with an audit entry   moves, with an audit entry
    another gateway, whatever it shows   contested                    contested, stays where it is

A certificate is public, and the MSP has only a gateway's word for having seen it; so a device goes
to another gateway when somebody forgets it at the old one. What was observed earlier never
overwrites what was observed later.

Nor may it fill the disk, which all tenants share: of what happens to one device the audit takes
a few entries at once and then one an hour, which says how many were left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from gwmodule.msp.database import Connection
from gwmodule.msp.records import (
    NO_PIN,
    Device,
    Host,
    Origin,
    Seen,
    State,
    clean,
    from_host,
    moved,
    state_of,
    uncontested,
)
from gwmodule.msp.tables import Tables
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
    Source,
    format_mac,
)

# Entries of one device: it is provisioned, moved, contested. With MAX_DEVICES devices that change
# without end a gateway causes 30 MB a day.
AUDIT_BURST, AUDIT_EVERY = 8, 3600.0


class Observations:
    """The rules, within one transaction."""

    def __init__(self, db: Connection) -> None:
        self.refused = 0  # devices beyond MAX_DEVICES and MAX_DEVICES_PER_MAC
        self._db = db
        self._tables = Tables(db)
        self.saved = self._tables.saved

    async def apply(self, observation: Observation, seen: Seen) -> bool:
        """Record it; whether the gateway's whole table is wanted now."""
        match observation:
            case Lease():
                await self._on_lease(observation, seen)
            case LeaseEnd():
                await self._on_lease_end(observation, seen)
            case Hello():
                await self._on_hello(observation, seen)
            case Presence():
                await self._on_presence(observation, seen)
            case Gone():
                await self._on_gone(observation, seen)
            case Digest():
                return await self._on_digest(observation, seen)
            case _:
                assert_never(observation)
        return False

    async def _on_lease(self, lease: Lease, seen: Seen) -> None:
        host = await self._tables.host(seen.gateway, lease.mac)
        if host is not None and not seen.newer(host.leased_at):
            return
        hostname = clean(lease.hostname)
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
        await self._tables.save_host(fresh, new=host is None)
        for device in await self._tables.devices_at(seen, lease.mac, lease.address):
            await self._tables.save_device(
                replace(self._placed(device, fresh, seen), hostname=fresh.hostname)
            )
        await self._appears(fresh, seen)

    async def _on_lease_end(self, end: LeaseEnd, seen: Seen) -> None:
        host = await self._tables.host(seen.gateway, end.mac)
        if host is None or host.address != end.address or not seen.newer(host.leased_at):
            return
        await self._tables.save_host(replace(host, lease_until=seen.seen), new=False)

    async def _on_presence(self, presence: Presence, seen: Seen) -> None:
        host = await self._tables.host(seen.gateway, presence.mac)
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
            realm=clean(presence.realm),
            server=clean(presence.server),
            pin=presence.pin if presence.pin != NO_PIN else fresh.pin,
            gone_at=None,
        )
        await self._tables.save_host(fresh, new=host is None)
        for device in await self._tables.devices_at(seen, presence.mac, presence.address):
            await self._answered(self._placed(device, fresh, seen), presence, fresh, seen)
        await self._appears(fresh, seen)

    async def _on_gone(self, gone: Gone, seen: Seen) -> None:
        host = await self._tables.host(seen.gateway, gone.mac)
        if host is not None and host.address == gone.address and seen.newer(host.answered_at):
            await self._tables.save_host(replace(host, gone_at=seen.seen), new=False)
        for device in await self._tables.devices_at(seen, gone.mac, gone.address):
            if device.address == gone.address and seen.newer(device.answered_at):
                await self._tables.save_device(replace(device, gone_at=seen.seen))

    async def _on_digest(self, digest: Digest, seen: Seen) -> bool:
        """Whether its table differs from what we know, so that we want its snapshot.

        The gateway keeps the snapshot that a difference brought until all of it is acknowledged, so
        equal means that nothing is missing here; a device that is forgotten takes the digest along.
        """
        row = await self._db.fetch_one("SELECT digest FROM gateways WHERE name = $1", seen.gateway)
        if row is not None and row["digest"] == digest.sha256:
            return False
        await self._db.execute(
            "UPDATE gateways SET digest = $1 WHERE name = $2", digest.sha256, seen.gateway
        )
        return True

    async def _on_hello(self, hello: Hello, seen: Seen) -> None:
        mac = (
            hello.mac
            if hello.mac != NO_MAC
            else await self._tables.mac_of(seen.gateway, hello.address)
        )
        device = await self._tables.device(seen.tenant, hello.uuid)
        if hello.uuid == NO_UUID:
            # An unprogrammed board; many would share it.
            self.refused += 1
            return
        if device is None:
            await self._register_hello(hello, mac, seen)
            return
        await self._tables.save_hello(hello, mac, seen)
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
                here = await self._audited(here, seen, "device.setup")
            await self._tables.save_device(here)
        elif device.protected or device.gateway != seen.gateway:
            await self._contest(device, place, "sent a Hello from another place", seen)
        else:
            await self._tables.save_device(moved(device, place, seen))

    async def _register_hello(self, hello: Hello, mac: bytes | None, seen: Seen) -> None:
        if await self._tables.is_full(seen.gateway, mac):
            self.refused += 1
            return
        host = await self._tables.host(seen.gateway, mac) if mac else None
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
        await self._tables.save_device(device)
        await self._tables.save_hello(hello, mac, seen)
        await self._tables.audit_device(device, seen.at, "gateway", "device.registered")

    def _placed(self, device: Device, host: Host, seen: Seen) -> Device:
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

    async def _answered(self, device: Device, presence: Presence, host: Host, seen: Seen) -> None:
        if presence.pin != NO_PIN and device.pin not in (NO_PIN, presence.pin):
            shown = presence.pin.hex()[:16]
            await self._contest(device, host, f"shows another certificate, {shown}...", seen)
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
        if state_of(host) is State.MANAGED:
            changed = replace(changed, state=State.MANAGED, managed_at=seen.seen)
            if device.state is not State.MANAGED:
                changed = await self._audited(changed, seen, "device.managed")
        await self._tables.save_device(changed)

    async def _appears(self, host: Host, seen: Seen) -> None:
        """DHCP told the UUID of a host that answers as AMT."""
        if host.uuid is None or host.uuid == NO_UUID or host.answered_at is None:
            return
        device = await self._tables.device(seen.tenant, host.uuid)
        if device is None:
            if await self._tables.is_full(seen.gateway, host.mac):
                self.refused += 1
                return
            device = from_host(host.uuid, host, seen)
            await self._tables.save_device(device)
            await self._tables.audit_device(device, seen.at, "gateway", "device.registered")
            return
        if device.gateway == host.gateway and device.mac == host.mac:
            return
        if not seen.newer(device.placed_at):
            return
        # At its own gateway only: a certificate is public, and another customer's gateway may say
        # that it saw it.
        at_home = device.gateway == host.gateway
        if at_home and device.pin != NO_PIN and host.pin == device.pin:
            settled = uncontested(moved(device, host, seen))
            settled = await self._audited(settled, seen, "device.moved", before=device)
            await self._tables.save_device(settled)
        elif device.protected or device.gateway != host.gateway:
            await self._contest(device, host, "appeared at another place", seen)
        else:
            await self._tables.save_device(moved(device, host, seen))

    async def _contest(self, device: Device, claim: Host, reason: str, seen: Seen) -> None:
        """Mark the device and leave it where it is; one audit entry until somebody settles it."""
        changed = replace(
            device,
            claim_reason=reason,
            claim_gateway=claim.gateway,
            claim_mac=None if claim.mac == NO_MAC else claim.mac,
            claim_address=str(claim.address),
            claim_at=seen.seen,
        )
        if not device.contested:
            changed = await self._audited(
                changed,
                seen,
                "device.contested",
                reason=reason,
                claim=f"{claim.gateway} {format_mac(claim.mac)} {claim.address}",
            )
        await self._tables.save_device(changed)

    async def _audited(
        self,
        device: Device,
        seen: Seen,
        action: str,
        *,
        before: Device | None = None,
        **detail: str,
    ) -> Device:
        """`device` with this entry on its account, or as one more that was left out."""
        # A token bucket, as GCRA. A time too far ahead is from before the clock was set back.
        full_at = max(device.audit_full_at, seen.at)
        if full_at > seen.at + AUDIT_BURST * AUDIT_EVERY:
            full_at = seen.at
        if full_at > seen.at + (AUDIT_BURST - 1) * AUDIT_EVERY:
            return replace(device, unaudited=device.unaudited + 1)
        if device.unaudited:
            detail["left_out"] = str(device.unaudited)
        await self._tables.audit_device(device, seen.at, "gateway", action, before=before, **detail)
        return replace(device, audit_full_at=full_at + AUDIT_EVERY, unaudited=0)
