"""What our functions read, in the shapes in which Open AMT MPS answers. No I/O.

Members are those of the device's classes, whose names Open AMT hands through. What a function does
not read is not there (tests/msp/api/test_amt.py lists it).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from itertools import product
from typing import Any
from uuid import UUID

from gwmodule.msp.api import payloads as p
from gwmodule.msp.api.asking import GUID

# What Open AMT numbers for an action, and its name there.
POWER_ACTIONS = {
    2: "Power up", 4: "Sleep", 5: "Power cycle", 7: "Hibernate", 8: "Power down", 10: "Reset",
    12: "Soft-off", 14: "Soft-reset",
}  # fmt: skip
# Our function looks itself whether the PC must be reset or switched on.
BOOTS = {
    100: "bios", 101: "bios", 105: "uefi-https", 106: "uefi-https", 200: "ider-floppy",
    201: "ider-floppy", 202: "ider-cd", 203: "ider-cd", 300: "diagnostics", 301: "diagnostics",
    400: "pxe", 401: "pxe",
}  # fmt: skip
BOOT_CAPABILITIES = {
    "BIOSSetup": {"Power up to BIOS": 100, "Reset to BIOS": 101},
    "ForceUEFIHTTPSBoot": {"Reset to HTTPS Boot": 105, "Power up to HTTPS Boot": 106},
    "IDER": {
        "Reset to IDE-R Floppy": 200, "Power on to IDE-R Floppy": 201,
        "Reset to IDE-R CDROM": 202, "Power on to IDE-R CDROM": 203,
    },
    "ForceDiagnosticBoot": {"Power on to diagnostic": 300, "Reset to diagnostic": 301},
    "ForcePXEBoot": {"Reset to PXE": 400, "Power on to PXE": 401},
}  # fmt: skip
# Actions that Open AMT numbers and this service does not have.
UNSUPPORTED = {
    104: "secure erase", 107: "boot to a local PBA", 108: "boot to a local PBA",
    109: "boot to WinRE", 110: "boot to WinRE",
    500: "the operating system's power saving", 501: "the operating system's power saving",
}  # fmt: skip
CONNECTION_TYPES: dict[int | None, str] = {
    0: "Integrated LAN NIC", 1: "Discrete LAN NIC", 2: "LAN via Thunderbolt Dock",
    3: "Wireless LAN",
}  # fmt: skip
WIRELESS = 3
LINK_POLICIES = {1: "S0 AC", 14: "Sx AC", 16: "S0 DC", 224: "Sx DC"}
_COMMON_NAME = re.compile(r"(?:^|,\s*)CN=([^,]+)")
CONSENT = {0: "none", 1: "kvm", 0xFFFFFFFF: "all"}
CONSENT_NUMBERS = {name: number for number, name in CONSENT.items()}


def power_capabilities(power: dict[str, Any], boots: Any) -> dict[str, int]:
    """`boots` is the instance of AMT_BootCapabilities, if the device has one."""
    taken = {entry.get("state") for entry in listed(power, "available")}
    capabilities = {name: n for n, name in POWER_ACTIONS.items() if not taken or n in taken}
    for capability, actions in BOOT_CAPABILITIES.items():
        if isinstance(boots, dict) and _truth(boots, capability):
            capabilities |= actions
    return capabilities


def boot_sources(instances: list[dict[str, Any]]) -> list[p.BootSource]:
    return [
        p.BootSource(
            bios_boot_string=_text(source, "BIOSBootString"),
            boot_string=_text(source, "BootString"),
            element_name=_text(source, "ElementName"),
            fail_through_supported=number(source.get("FailThroughSupported")) or 0,
            instance_id=_text(source, "InstanceID"),
            structured_bios_boot_string=_text(source, "StructuredBootString"),
        )
        for source in instances
    ]


def version(read: dict[str, Any]) -> dict[str, Any]:
    versions = {"AMT": "version", "Build Number": "build", "Sku": "sku"}
    return {
        "CIM_SoftwareIdentity": {
            "responses": [
                {"InstanceID": name, "VersionString": read.get(ours, "")}
                for name, ours in versions.items()
            ],
            "status": 200,
        },
        "AMT_SetupAndConfigurationService": {
            "response": {
                "ProvisioningMode": read.get("provisioning_mode"),
                "ProvisioningState": read.get("provisioning_state"),
            },
            "status": 200,
        },
    }


def general_settings(read: dict[str, Any]) -> dict[str, Any]:
    members = {
        "HostName": "host_name", "DomainName": "domain_name", "HostOSFQDN": "os_name",
        "DigestRealm": "realm", "AMTNetworkEnabled": "network_enabled",
        "NetworkInterfaceEnabled": "interface_enabled",
        "PingResponseEnabled": "ping_response",
        "RmcpPingResponseEnabled": "rmcp_ping_response", "SharedFQDN": "shared_fqdn",
        "WsmanOnlyMode": "wsman_only", "DDNSUpdateEnabled": "ddns_enabled",
        "IdleWakeTimeout": "idle_wake_timeout", "PrivacyLevel": "privacy_level",
        "PowerSource": "power_source",
    }  # fmt: skip
    body = {name: read.get(ours) for name, ours in members.items()}
    # The class has a number here, and no truth value.
    body["AMTNetworkEnabled"] = number(body["AMTNetworkEnabled"])
    return {"Body": body}


def hardware_info(read: dict[str, Any]) -> dict[str, Any]:
    hardware = {
        "Manufacturer": "manufacturer", "Model": "model", "SerialNumber": "serial",
        "Version": "version",
    }  # fmt: skip
    bios = _as_class(read, "bios", {"Manufacturer": "manufacturer", "Version": "version"})
    for instance, known in zip(bios, listed(read, "bios"), strict=True):
        instance["ReleaseDate"] = {"Datetime": known.get("released", "")}
    packages = _as_class(read, "boards", hardware), _as_class(read, "chassis", hardware)
    processors = {
        "DeviceID": "name", "Family": "family", "Stepping": "stepping",
        "CurrentClockSpeed": "clock", "MaxClockSpeed": "max_clock", "CPUStatus": "status",
    }  # fmt: skip
    memory = {
        "BankLabel": "bank", "Capacity": "size", "MemoryType": "type",
        "FormFactor": "form_factor", "Speed": "speed", "MaxMemorySpeed": "max_speed",
        "Manufacturer": "manufacturer", "PartNumber": "part", "SerialNumber": "serial",
    }  # fmt: skip
    chips = {"Tag": "name", "Version": "brand"}
    cores = _as_class(read, "processors", processors)
    for core in cores:
        core["Stepping"] = number(core["Stepping"])
    modules = [module | {"IsSpeedInMhz": True} for module in _as_class(read, "memory", memory)]
    disks = [
        {
            "DeviceID": disk.get("name"),
            # In units of 1000 bytes.
            "MaxMediaSize": size // 1000 if isinstance(size := disk.get("size"), int) else None,
        }
        for disk in listed(read, "disks")
    ]
    return {
        "CIM_ComputerSystemPackage": {
            "response": {"PlatformGUID": _platform_guid(read.get("uuid"))},
            "status": 200,
        },
        "CIM_Chassis": _first(_as_class(read, "chassis", hardware)),
        "CIM_Card": _first(_as_class(read, "boards", hardware)),
        "CIM_BIOSElement": _first(bios),
        "CIM_Chip": _all(
            [
                *_named("CIM_Chip", _as_class(read, "processors", chips)),
                *_named("CIM_PhysicalMemory", modules),
            ]
        ),
        "CIM_Processor": _all(cores),
        "CIM_PhysicalMemory": _all(modules),
        "CIM_MediaAccessDevice": _all(disks),
        "CIM_PhysicalPackage": _all(
            [*_named("CIM_Card", packages[0]), *_named("CIM_Chassis", packages[1])]
        ),
    }


def network_settings(read: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"wired": None, "wireless": None}
    for port in listed(read, "ports"):
        dns = port.get("dns") or []
        # Firmware before AMT 11 does not tell the kind; the number in the name never changes.
        wireless = port.get("connection") == WIRELESS or str(port.get("name")).endswith(" 1")
        kind = "wireless" if wireless else "wired"
        policies = [entry.get("policy") for entry in port.get("link_policy") or []]
        answer[kind] = answer[kind] or {
            "instanceID": port.get("name"),
            "macAddress": str(port.get("mac") or "").replace(":", "-"),
            "linkIsUp": port.get("link"),
            "dhcpEnabled": port.get("dhcp"),
            "ipAddress": port.get("address"),
            "subnetMask": port.get("netmask"),
            "defaultGateway": port.get("gateway"),
            "primaryDNS": dns[0] if dns else "",
            "secondaryDNS": dns[1] if len(dns) > 1 else "",
            "sharedMAC": port.get("shared_mac"),
            "ipSyncEnabled": port.get("ip_sync"),
            "linkPolicy": [LINK_POLICIES.get(policy, "Unknown") for policy in policies],
            "physicalConnectionType": CONNECTION_TYPES.get(number(port.get("connection")), ""),
        }
    return answer


def certificates(certificates: list[dict[str, Any]], keys: list[dict[str, Any]]) -> dict[str, Any]:
    """Which profile uses which of them is not read."""
    pairs = [
        (_text(certificate, "InstanceID"), _text(key, "InstanceID"))
        for certificate, key in product(certificates, keys)
        # An RSA key stands in its certificate as it stands by itself (RFC 5280 section 4.1).
        if (der := _base64(key, "DERKey")) and der in _base64(certificate, "X509Certificate")
    ]
    key_of = dict(pairs)
    certificate_of = {key: certificate for certificate, key in pairs}
    return {
        "profileAssociation": [],
        "certificates": {
            "publicKeyCertificateItems": [
                _shown_certificate(certificate, key_of) for certificate in certificates
            ]
        },
        "publicKeys": {
            "publicPrivateKeyPairItems": [_shown_key(key, certificate_of) for key in keys]
        },
    }


def event_records(read: dict[str, Any]) -> list[dict[str, Any]]:
    members = {
        "DeviceAddress": "device_address", "EventSensorType": "sensor_type",
        "EventType": "event_type", "EventOffset": "offset", "EventSourceType": "source_type",
        "EventSeverity": "severity", "SensorNumber": "sensor_number", "Entity": "entity",
        "EntityInstance": "entity_instance", "EntityStr": "entity_name", "Desc": "text",
        "TimeStamp": "time_text", "Time": "time_text",
    }  # fmt: skip
    records = _as_class(read, "records", members)
    for record, known in zip(records, listed(read, "records"), strict=True):
        record["EventData"] = list(_hex(known.get("data")))
    return records


def audit_records(read: dict[str, Any]) -> list[dict[str, Any]]:
    members = {
        "AuditAppID": "application", "AuditApp": "application_name", "EventID": "event",
        "Event": "text", "InitiatorType": "initiator_type", "Initiator": "initiator",
        "Time": "time_text", "MCLocationType": "location_type", "NetAddress": "address",
        "Ex": "extended",
    }  # fmt: skip
    return _as_class(read, "records", members)


def alarms(read: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "ElementName": alarm.get("name"),
            "InstanceID": alarm.get("name"),
            "StartTime": {"Datetime": alarm.get("time_text")},
            "Interval": {"Interval": _duration(number(alarm.get("interval")) or 0)},
            "IntervalInMinutes": alarm.get("interval") or 0,
            "DeleteOnCompletion": alarm.get("once"),
        }
        for alarm in listed(read, "alarms")
    ]


def listed(read: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = read.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _as_class(read: dict[str, Any], name: str, members: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {theirs: each.get(ours) for theirs, ours in members.items()} for each in listed(read, name)
    ]


def _first(instances: list[dict[str, Any]]) -> dict[str, Any]:
    return {"response": instances[0] if instances else {}, "status": 200}


def _all(instances: list[dict[str, Any]]) -> dict[str, Any]:
    return {"responses": instances, "status": 200}


def _named(cls: str, instances: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"CreationClassName": cls, **instance} for instance in instances]


def _text(instance: dict[str, Any], name: str) -> str:
    value = instance.get(name)
    return value if isinstance(value, str) else ""


def _shown_certificate(certificate: dict[str, Any], key_of: dict[str, str]) -> dict[str, Any]:
    name, subject = _text(certificate, "InstanceID"), _text(certificate, "Subject")
    common = _COMMON_NAME.search(subject)
    return {
        "elementName": _text(certificate, "ElementName"),
        "instanceID": name,
        "x509Certificate": _text(certificate, "X509Certificate"),
        "trustedRootCertificate": _truth(certificate, "TrustedRootCertificate"),
        "issuer": _text(certificate, "Issuer"),
        "subject": subject,
        "readOnlyCertificate": _truth(certificate, "ReadOnlyCertificate"),
        "publicKeyHandle": key_of.get(name, ""),
        "displayName": common[1] if common else name,
    }


def _shown_key(key: dict[str, Any], certificate_of: dict[str, str]) -> dict[str, Any]:
    name = _text(key, "InstanceID")
    return {
        "elementName": _text(key, "ElementName"),
        "instanceID": name,
        "derKey": _text(key, "DERKey"),
        "certificateHandle": certificate_of.get(name, ""),
    }


def _truth(instance: dict[str, Any], name: str) -> bool:
    return str(instance.get(name)).lower() == "true"


def _base64(instance: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(_text(instance, name))
    except ValueError:
        return b""


def number(value: Any) -> int | None:
    """What the device may have told as text."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else None
    return int(value) if isinstance(value, int) else None


def _duration(minutes: int) -> str:
    """ISO 8601, as the class has it; 0 for an alarm of one time."""
    hours, rest = divmod(minutes, 60)
    return f"P{hours // 24}DT{hours % 24}H{rest}M" if minutes else "0"


def _platform_guid(uuid: Any) -> str:
    """As the device writes it: the bytes of SMBIOS, in which the first three fields are swapped."""
    if not isinstance(uuid, str) or not GUID.fullmatch(uuid):
        return ""
    return UUID(uuid).bytes_le.hex().upper()


def _hex(text: Any) -> bytes:
    try:
        return bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        return b""
