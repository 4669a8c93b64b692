"""Records of the registry as the API shows them."""

from __future__ import annotations

import re

from gwmodule.msp.api import payloads as p
from gwmodule.msp.api.answers import mac_text, time_text
from gwmodule.msp.api.calls import is_connected
from gwmodule.msp.labels import NO_LABEL, Label
from gwmodule.msp.records import NO_PIN, AuditEntry, Device, Gateway, Host
from gwmodule.msp.seam import SessionsSeam
from gwmodule.wire.notices import format_mac

_AMT_SERVER = re.compile(r"Intel\(R\) Active Management Technology ([0-9.]{1,32})")


def shown_device(device: Device, sessions: SessionsSeam, label: Label = NO_LABEL) -> p.DeviceAnswer:
    claim = p.Claim(
        device.claim_reason,
        device.claim_gateway,
        mac_text(device.claim_mac),
        device.claim_address,
        time_text(device.claim_at),
    )
    return p.DeviceAnswer(
        guid=str(device.uuid),
        tenant_id=device.tenant,
        hostname=device.hostname,
        friendly_name=label.friendly_name,
        tags=list(label.tags),
        connection_status=is_connected(sessions, device.gateway) and device.gone_at is None,
        state=device.state.value,
        contested=device.contested,
        claim=claim if device.contested else None,
        address=str(device.address),
        mac=mac_text(device.mac),
        gateway=device.gateway,
        gateway_address=device.gateway_address,
        gateway_port=device.gateway_port,
        source=device.source.value,
        first_seen=time_text(device.first_seen),
        last_seen=time_text(device.last_seen),
        last_answer=time_text(device.answered_at),
        gone=time_text(device.gone_at),
        proved=time_text(device.proved_at),
        realm=device.realm,
        server=device.server,
        ports=list(device.ports),
        tls=device.tls.name.lower(),
        pin=device.pin.hex() if device.pin != NO_PIN else None,
        device_info=p.DeviceInfo(
            fw_version=_version_of(device.server),
            ip_address=str(device.address),
            last_updated=time_text(device.answered_at),
        ),
    )


def _version_of(server: str) -> str:
    """AMT tells its version in the header Server, before any login."""
    found = _AMT_SERVER.match(server)
    return found[1] if found else ""


def shown_host(host: Host, sessions: SessionsSeam) -> p.Candidate:
    return p.Candidate(
        gateway=host.gateway,
        mac=format_mac(host.mac),
        address=str(host.address),
        hostname=host.hostname,
        connection_status=is_connected(sessions, host.gateway) and host.gone_at is None,
        provisioning=host.provisioning.name.lower(),
        ports=list(host.ports),
        realm=host.realm,
        server=host.server,
        pin=host.pin.hex() if host.pin != NO_PIN else None,
        last_answer=time_text(host.answered_at),
        lease_until=time_text(host.lease_until),
        gone=time_text(host.gone_at),
    )


def shown_gateway(gateway: Gateway, sessions: SessionsSeam) -> p.GatewayAnswer:
    session = sessions.locate(gateway.name)
    return p.GatewayAnswer(
        name=gateway.name,
        tenant_id=gateway.tenant,
        connection_status=session is not None and session.connected,
        address=gateway.address,
        port=gateway.port,
        software=gateway.software,
        fingerprint=gateway.fingerprint,
        rtt=session.rtt if session is not None else None,
        first_link=time_text(gateway.first_link),
        last_link=time_text(gateway.last_link),
        last_disconnected=time_text(gateway.unlinked_at),
        revoked=gateway.revoked_at is not None,
    )


def shown_audit(entry: AuditEntry) -> p.AuditAnswer:
    return p.AuditAnswer(
        id=entry.id,
        at=time_text(entry.at),
        actor=entry.actor,
        action=entry.action,
        gateway=entry.gateway,
        guid=None if entry.uuid is None else str(entry.uuid),
        detail=entry.detail,
    )
