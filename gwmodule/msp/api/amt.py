"""Open AMT MPS's paths and payloads, each over functions of our catalogue.

Where Open AMT hands the device's classes through, the answer has the same classes and members, made
from what the function read; what the function does not read is not there (tests/msp/api/test_amt.py
lists it). What its clients send is taken as they send it; what this service cannot do is refused
with 501 NOT_SUPPORTED rather than answered with a success.
"""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Iterable
from itertools import product
from typing import Any
from uuid import UUID

import msgspec
from aiohttp import web

from gwmodule.amt.functions.logs import MAX_EVENTS
from gwmodule.msp.api import payloads as p
from gwmodule.msp.api.answers import ApiError, bad_request, json_response
from gwmodule.msp.api.asking import GUID, Asked, device_of
from gwmodule.msp.api.calls import Calls, body_of
from gwmodule.msp.records import Device
from gwmodule.msp.registry import Registry

SUCCESS = p.ReturnAnswer(p.ReturnBody())
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
# Open AMT reads the audit log in blocks of this many, as the device gives them.
AUDIT_BLOCK = 10
CONNECTION_TYPES: dict[int | None, str] = {
    0: "Integrated LAN NIC", 1: "Discrete LAN NIC", 2: "LAN via Thunderbolt Dock",
    3: "Wireless LAN",
}  # fmt: skip
WIRELESS = 3
LINK_POLICIES = {1: "S0 AC", 14: "Sx AC", 16: "S0 DC", 224: "Sx DC"}
_COMMON_NAME = re.compile(r"(?:^|,\s*)CN=([^,]+)")
CONSENT = {0: "none", 1: "kvm", 0xFFFFFFFF: "all"}
CONSENT_NUMBERS = {name: number for number, name in CONSENT.items()}


class Amt:
    """Handlers of group `amt`."""

    def __init__(self, registry: Registry, calls: Calls) -> None:
        self._registry = registry
        self._calls = calls

    async def _device(self, asked: Asked) -> Device:
        return await device_of(self._registry, asked.tenant, asked.path("guid"))

    async def _call(self, asked: Asked, function: str, **arguments: Any) -> dict[str, Any]:
        device = await self._device(asked)
        result = await self._calls.on_device(asked, device, p.CallRequest(function, arguments))
        body = body_of(result)
        if not isinstance(body, dict):
            raise ApiError(502, "DEVICE_ANSWER", "the gateway's answer is no object")
        return body

    async def _act(
        self, asked: Asked, answer: Any, function: str, **arguments: Any
    ) -> web.Response:
        async def act() -> web.Response:
            await self._call(asked, function, **arguments)
            return json_response(answer)

        return await self._calls.once(asked, act)

    # Power.

    async def power_state(self, asked: Asked) -> p.PowerState:
        state = (await self._call(asked, "power.get")).get("power_state")
        if not isinstance(state, int):
            raise ApiError(502, "DEVICE_ANSWER", "the device did not tell its power state")
        return p.PowerState(state)

    async def power_capabilities(self, asked: Asked) -> dict[str, int]:
        available = _list(await self._call(asked, "power.get"), "available")
        taken = {entry.get("state") for entry in available}
        capabilities = {name: n for n, name in POWER_ACTIONS.items() if not taken or n in taken}
        read = await self._call(asked, "wsman.get", **{"class": "AMT_BootCapabilities"})
        boots = read.get("instance")
        for capability, actions in BOOT_CAPABILITIES.items():
            if isinstance(boots, dict) and str(boots.get(capability)).lower() == "true":
                capabilities |= actions
        return capabilities

    async def power_action(self, asked: Asked) -> web.Response:
        body: p.ActionRequest = asked.body
        _check_supported(body.action)
        return await self._act(asked, SUCCESS, "power.set", state=body.action)

    async def boot_options(self, asked: Asked) -> web.Response:
        body: p.BootRequest = asked.body
        _check_supported(body.action)
        arguments: dict[str, Any] = {"device": BOOTS[body.action], "sol": body.useSOL}
        details = body.bootDetails or p.BootDetails()
        if details.username or details.password or details.boot_path:
            raise _not_supported("a login or a path for the boot")
        if not details.enforce_secure_boot:
            raise _not_supported("a boot without secure boot")
        if details.url:
            arguments["url"] = details.url
        return await self._act(asked, SUCCESS, "boot.once", **arguments)

    async def boot_sources(self, asked: Asked) -> list[p.BootSource]:
        return [
            p.BootSource(
                bios_boot_string=_text(source, "BIOSBootString"),
                boot_string=_text(source, "BootString"),
                element_name=_text(source, "ElementName"),
                fail_through_supported=_number(source.get("FailThroughSupported")) or 0,
                instance_id=_text(source, "InstanceID"),
                structured_bios_boot_string=_text(source, "StructuredBootString"),
            )
            for source in await self._instances(asked, "CIM_BootSourceSetting")
        ]

    # Reading.

    async def version(self, asked: Asked) -> dict[str, Any]:
        read = await self._call(asked, "identity.get")
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

    async def general_settings(self, asked: Asked) -> dict[str, Any]:
        read = await self._call(asked, "general.get")
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
        body["AMTNetworkEnabled"] = _number(body["AMTNetworkEnabled"])
        return {"Body": body}

    async def hardware_info(self, asked: Asked) -> dict[str, Any]:
        read = await self._call(asked, "inventory.get")
        hardware = {
            "Manufacturer": "manufacturer", "Model": "model", "SerialNumber": "serial",
            "Version": "version",
        }  # fmt: skip
        bios = _as_class(read, "bios", {"Manufacturer": "manufacturer", "Version": "version"})
        for instance, known in zip(bios, _list(read, "bios"), strict=True):
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
            core["Stepping"] = _number(core["Stepping"])
        modules = [module | {"IsSpeedInMhz": True} for module in _as_class(read, "memory", memory)]
        disks = [
            {
                "DeviceID": disk.get("name"),
                # In units of 1000 bytes.
                "MaxMediaSize": size // 1000 if isinstance(size := disk.get("size"), int) else None,
            }
            for disk in _list(read, "disks")
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

    async def network_settings(self, asked: Asked) -> dict[str, Any]:
        answer: dict[str, Any] = {"wired": None, "wireless": None}
        for port in _list(await self._call(asked, "network.get"), "ports"):
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
                "physicalConnectionType": CONNECTION_TYPES.get(_number(port.get("connection")), ""),
            }
        return answer

    async def certificates(self, asked: Asked) -> dict[str, Any]:
        """Which profile uses which of them is not read."""
        certificates = await self._instances(asked, "AMT_PublicKeyCertificate")
        keys = await self._instances(asked, "AMT_PublicPrivateKeyPair")
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

    async def _instances(self, asked: Asked, cls: str) -> list[dict[str, Any]]:
        return _list(await self._call(asked, "wsman.enumerate", **{"class": cls}), "instances")

    # Logs.

    async def event_log(self, asked: Asked) -> list[dict[str, Any]] | p.EventPage:
        query: p.EventLogQuery = asked.query
        paged = isinstance(query.top, int) or isinstance(query.skip, int)
        skip = query.skip if isinstance(query.skip, int) else 0
        top = query.top if isinstance(query.top, int) else MAX_EVENTS
        # One more than asked for tells whether there are more.
        read = await self._call(asked, "eventlog.get", limit=min(skip + top + 1, MAX_EVENTS))
        members = {
            "DeviceAddress": "device_address", "EventSensorType": "sensor_type",
            "EventType": "event_type", "EventOffset": "offset", "EventSourceType": "source_type",
            "EventSeverity": "severity", "SensorNumber": "sensor_number", "Entity": "entity",
            "EntityInstance": "entity_instance", "EntityStr": "entity_name", "Desc": "text",
            "TimeStamp": "time_text", "Time": "time_text",
        }  # fmt: skip
        records = _as_class(read, "records", members)
        for record, known in zip(records, _list(read, "records"), strict=True):
            record["EventData"] = list(_hex(known.get("data")))
        return p.EventPage(records[skip:][:top], len(records) > skip + top) if paged else records

    async def audit_log(self, asked: Asked) -> dict[str, Any]:
        """Newest first, as Open AMT does; the device counts from its oldest record, which is 1."""
        query: p.AuditLogQuery = asked.query
        read = await self._audit_block(asked, 1, AUDIT_BLOCK)
        total = _number(read.get("total")) or 0
        left = total - query.start_index
        if left > 0 and total > AUDIT_BLOCK:
            first = max(left - AUDIT_BLOCK, 0) + 1
            read = await self._audit_block(asked, first, left - first + 1)
        members = {
            "AuditAppID": "application", "AuditApp": "application_name", "EventID": "event",
            "Event": "text", "InitiatorType": "initiator_type", "Initiator": "initiator",
            "Time": "time_text", "MCLocationType": "location_type", "NetAddress": "address",
            "Ex": "extended",
        }  # fmt: skip
        records = _as_class(read, "records", members)[: max(left, 0)] if left > 0 else []
        return {"totalCnt": total, "records": records[::-1]}

    async def _audit_block(self, asked: Asked, start: int, limit: int) -> dict[str, Any]:
        return await self._call(asked, "auditlog.get", start=start, limit=limit)

    # Features and consent.

    async def features(self, asked: Asked) -> p.FeaturesAnswer:
        read = await self._call(asked, "redirection.get")
        consent: dict[str, Any] = {}
        try:
            consent = await self._call(asked, "consent.get")
        except ApiError as exc:
            # Firmware before AMT 6 knows no consent, and then none is asked for.
            if exc.error != "NOT_SUPPORTED":
                raise
        return p.FeaturesAnswer(
            userConsent=CONSENT.get(consent.get("required", 0), "none"),
            optInState=consent.get("state") or 0,
            redirection=read.get("listener"),
            KVM=bool(read.get("kvm")),
            SOL=bool(read.get("sol")),
            IDER=bool(read.get("ider")),
            kvmAvailable=read.get("kvm_state") is not None,
        )

    async def set_features(self, asked: Asked) -> web.Response:
        body: p.FeaturesRequest = asked.body
        if body.ocr:
            raise _not_supported("switching one-click recovery on")
        if body.rpe or body.enablePlatformErase or body.platformEraseEnabled:
            raise _not_supported("switching remote platform erase on")
        if isinstance(body.userConsent, str):
            # Before anything is switched: half of a request is worse than none.
            self._calls.check_role(asked, "wsman.put")

        async def act() -> web.Response:
            await self._set_features(asked, body)
            return json_response(p.StatusAnswer("Updated AMT Features"))

        return await self._calls.once(asked, act)

    async def _set_features(self, asked: Asked, body: p.FeaturesRequest) -> None:
        wanted: dict[str, bool] = {}
        if isinstance(body.enableSOL, bool):
            wanted["sol"] = body.enableSOL
        if isinstance(body.enableIDER, bool):
            wanted["ider"] = body.enableIDER
        if isinstance(body.redirection, bool):
            wanted["listener"] = body.redirection
        if any(wanted.values()) or body.enableKVM is True:
            # Without the listener ports 16994 and 16995 look dead, whatever is enabled.
            wanted["listener"] = True
        if wanted:
            await self._call(asked, "redirection.set", **wanted)
        if isinstance(body.enableKVM, bool):
            await self._call(asked, "kvm.set", enabled=body.enableKVM)
        if isinstance(body.userConsent, str):
            cls = {"class": "IPS_OptInService"}
            read = (await self._call(asked, "wsman.get", **cls)).get("instance")
            if not isinstance(read, dict):
                raise ApiError(502, "DEVICE_ANSWER", "the device did not show its consent policy")
            read["OptInRequired"] = CONSENT_NUMBERS[body.userConsent]
            await self._call(asked, "wsman.put", **cls, properties=read)

    async def start_consent(self, asked: Asked) -> web.Response:
        return await self._act(asked, SUCCESS, "consent.start")

    async def send_consent(self, asked: Asked) -> web.Response:
        body: p.ConsentRequest = asked.body
        return await self._act(asked, SUCCESS, "consent.send", code=int(body.consent_code))

    async def cancel_consent(self, asked: Asked) -> web.Response:
        return await self._act(asked, SUCCESS, "consent.cancel")

    # Alarms and data storage.

    async def alarms(self, asked: Asked) -> list[dict[str, Any]]:
        return [
            {
                "ElementName": alarm.get("name"),
                "InstanceID": alarm.get("name"),
                "StartTime": {"Datetime": alarm.get("time_text")},
                "Interval": {"Interval": _duration(_number(alarm.get("interval")) or 0)},
                "IntervalInMinutes": alarm.get("interval") or 0,
                "DeleteOnCompletion": alarm.get("once"),
            }
            for alarm in _list(await self._call(asked, "alarm.list"), "alarms")
        ]

    async def add_alarm(self, asked: Asked) -> web.Response:
        body: p.AlarmRequest = asked.body
        if isinstance(body.instance_id, str) and body.instance_id != body.element_name:
            raise bad_request("InstanceID must be the ElementName, or left out")
        start = body.start_time
        return await self._act(
            asked,
            p.AlarmAdded(),
            "alarm.add",
            name=body.element_name,
            time=_seconds(start if isinstance(start, str) else start.datetime),
            interval=body.interval,
            once=body.delete_on_completion,
        )

    async def delete_alarm(self, asked: Asked) -> web.Response:
        body: p.AlarmName = asked.body
        return await self._act(asked, p.StatusAnswer("SUCCESS"), "alarm.delete", name=body.name)

    async def nvm(self, asked: Asked) -> dict[str, Any]:
        given: dict[str, Any] = msgspec.to_builtins(asked.query)
        if "block" in given:
            return await self._call(asked, "nvm.read", **given)
        if "offset" in given or "size" in given:
            raise bad_request("offset and size belong to a block")
        return await self._call(asked, "nvm.list", **given)


def _list(read: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = read.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _as_class(read: dict[str, Any], name: str, members: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {theirs: each.get(ours) for theirs, ours in members.items()} for each in _list(read, name)
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


def _number(value: Any) -> int | None:
    """What the device may have told as text."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else None
    return int(value) if isinstance(value, int) else None


def _check_supported(action: int) -> None:
    if action in UNSUPPORTED:
        raise _not_supported(f"action {action} ({UNSUPPORTED[action]})")


def _not_supported(what: str) -> ApiError:
    return ApiError(501, "NOT_SUPPORTED", f"{what} is not supported")


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


def _seconds(text: str) -> int:
    """AMT's clock in UTC, as seconds since 1970."""
    try:
        moment = datetime.datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError as exc:
        raise bad_request(f"StartTime: {exc}") from exc
    return int(moment.replace(tzinfo=datetime.UTC).timestamp())
