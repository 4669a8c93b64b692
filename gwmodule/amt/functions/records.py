"""Binary records of the event log and the audit log, decoded.

Layouts and numbers: reference/amt-protocols.md 3.6 and 3.7; the texts of firmware events are those
of IPMI 2.0 table 42-3, sensor type 0Fh.
"""

from __future__ import annotations

import datetime
import struct
from typing import Any

from construct import (
    Bytes,
    ConstructError,
    GreedyBytes,
    Int8ub,
    Int8ul,
    Int16ub,
    Int32ub,
    Int32ul,
    PascalString,
    Pass,
    Prefixed,
    Struct,
    Switch,
    this,
)

from gwmodule.amt.functions.reading import named
from gwmodule.amt.functions.schema import Result
from gwmodule.errors import DeviceAnswerError

EVENT = Struct(
    "time" / Int32ul,
    "device_address" / Int8ul,
    "sensor_type" / Int8ul,
    "event_type" / Int8ul,
    "offset" / Int8ul,
    "source_type" / Int8ul,
    "severity" / Int8ul,
    "sensor_number" / Int8ul,
    "entity" / Int8ul,
    "entity_instance" / Int8ul,
    "data" / Bytes(8),
)
# The same 21 bytes (a test proves it): a log has 390 of them, and the relay's loop waits.
_EVENT = struct.Struct("<L9B8s")
EVENT_SIZE = _EVENT.size

AUDIT = Struct(
    "application" / Int16ub,
    "event" / Int16ub,
    "initiator_type" / Int8ub,
    "initiator"
    / Switch(
        this.initiator_type,
        {
            0: PascalString(Int8ub, "utf-8"),
            1: Struct("domain" / Int32ub, "sid" / Prefixed(Int8ub, GreedyBytes)),
        },
        Pass,
    ),
    "time" / Int32ub,
    "location_type" / Int8ub,
    "address" / PascalString(Int8ub, "utf-8"),
    "extended" / Prefixed(Int8ub, GreedyBytes),
)

SEVERITIES = {
    0: "unspecified",
    1: "monitor",
    2: "information",
    4: "ok",
    8: "non-critical",
    16: "critical",
    32: "non-recoverable",
}
ENTITIES = {
    0: "unspecified",
    1: "other",
    2: "unknown",
    3: "processor",
    4: "disk",
    5: "peripheral",
    6: "system management module",
    7: "system board",
    8: "memory module",
    9: "processor module",
    10: "power supply",
    11: "add-in card",
    34: "BIOS",
    35: "operating system",
    38: "management engine",
}
_FIRMWARE_ERRORS = (
    "unspecified",
    "no system memory is installed",
    "no usable system memory",
    "unrecoverable hard disk failure",
    "unrecoverable system board failure",
    "unrecoverable diskette failure",
    "unrecoverable hard disk controller failure",
    "unrecoverable keyboard failure",
    "removable boot media not found",
    "unrecoverable video controller failure",
    "no video device detected",
    "BIOS ROM corruption detected",
    "CPU voltage mismatch",
    "CPU speed matching failure",
)
_FIRMWARE_PROGRESS = (
    "unspecified",
    "memory initialization",
    "hard disk initialization and test",
    "secondary processor initialization",
    "user authentication",
    "user-initiated system setup",
    "USB resource configuration",
    "PCI resource configuration",
    "option ROM initialization",
    "video initialization",
    "cache initialization",
    "SM bus initialization",
    "keyboard controller initialization",
    "management controller initialization",
    "docking station attachment",
    "enabling docking station",
    "docking station ejection",
    "disabling docking station",
    "calling the operating system's wake-up vector",
    "starting the operating system's boot process",
    "baseboard initialization",
    "reserved",
    "floppy initialization",
    "keyboard test",
    "pointing device test",
    "primary processor initialization",
)
_SENSORS = {
    5: "case intrusion",
    18: "agent watchdog",
    30: "no bootable media",
    32: "operating system lockup or power interrupt",
    35: "boot failure",
    36: "network filter matched",
    37: "firmware started",
    192: "security policy invoked",
    193: "the user asked for a remote connection",
}
# EventData[2] of sensor type 192 when the record is about a redirection session.
_SESSIONS = (
    "Serial-over-LAN session opened",
    "Serial-over-LAN session closed",
    "IDE redirection session opened",
    "IDE redirection session closed",
)

INITIATORS = {0: "digest user", 1: "Kerberos user", 2: "local", 3: "KVM default port"}
APPLICATIONS = {
    16: "security administration",
    17: "remote control",
    18: "redirection",
    19: "firmware update",
    20: "audit log",
    21: "network time",
    22: "network administration",
    23: "storage administration",
    24: "event manager",
    29: "KVM",
    30: "user opt-in",
}
_AUDIT_EVENTS = {
    (17, 0): "power up",
    (17, 1): "power down",
    (17, 2): "power cycle",
    (17, 3): "reset",
    (17, 4): "boot options set",
    (18, 0): "IDE redirection opened",
    (18, 1): "IDE redirection closed",
    (18, 4): "Serial-over-LAN opened",
    (18, 5): "Serial-over-LAN closed",
    (18, 8): "KVM opened",
    (18, 9): "KVM closed",
}
_VERSION = struct.Struct(">4H")


def decode_event(data: bytes) -> Result | None:
    """One record of AMT_MessageLog; None for an empty slot. DeviceAnswerError on another size."""
    if len(data) != EVENT_SIZE:
        raise DeviceAnswerError(f"event record of {len(data)} bytes, expected {EVENT_SIZE}")
    (
        time,
        device_address,
        sensor_type,
        event_type,
        offset,
        source_type,
        severity,
        sensor_number,
        entity,
        entity_instance,
        details,
    ) = _EVENT.unpack(data)
    if time in (0, 0xFFFFFFFF):
        return None
    return {
        "time": time,
        "time_text": iso(time),
        **named("severity", severity, SEVERITIES),
        **named("entity", entity, ENTITIES),
        "entity_instance": entity_instance,
        "sensor_type": sensor_type,
        "sensor_number": sensor_number,
        "event_type": event_type,
        "offset": offset,
        "source_type": source_type,
        "device_address": device_address,
        "data": details.hex(),
        "text": _event_text(sensor_type, offset, details),
    }


def _event_text(sensor_type: int, offset: int, data: bytes) -> str:
    match sensor_type:
        case 6:
            return f"authentication failed {data[1] | data[2] << 8} times"
        case 15 if offset == 0:
            return f"firmware error: {_member(_FIRMWARE_ERRORS, data[1])}"
        case 15:
            return f"firmware progress: {_member(_FIRMWARE_PROGRESS, data[1])}"
        case 35 if data[0] == 64:
            return "boot failure: the power-on self-test did not end in time"
        case 192 if data[:2] == b"\xaa\x30" and data[2] < len(_SESSIONS):
            return _SESSIONS[data[2]]
        case _:
            return _SENSORS.get(sensor_type, f"sensor type {sensor_type}")


def _member(texts: tuple[str, ...], index: int) -> str:
    return texts[index] if index < len(texts) else f"number {index}"


def decode_audit(data: bytes) -> Result:
    """One record of AMT_AuditLog; DeviceAnswerError when it is cut or no text where one belongs."""
    try:
        record = AUDIT.parse(data)
    except (ConstructError, UnicodeDecodeError) as exc:
        raise DeviceAnswerError(f"audit record of {len(data)} bytes cannot be read") from exc
    number = (record.application, record.event)
    return {
        "time": record.time,
        "time_text": iso(record.time),
        **named("application", record.application, APPLICATIONS),
        "event": record.event,
        **named("initiator_type", record.initiator_type, INITIATORS),
        "initiator": _initiator(record.initiator_type, record.initiator),
        "location_type": record.location_type,
        "address": record.address,
        "extended": record.extended.hex(),
        "text": _AUDIT_EVENTS.get(number) or _audit_text(number, record.extended),
    }


def _initiator(kind: int, value: Any) -> str:
    match kind:
        case 0:
            return str(value)
        case 1:
            return f"{value.sid.hex()}-{value.domain}"
        case _:
            return ""


def _audit_text(number: tuple[int, int], extended: bytes) -> str:
    application, event = number
    if number == (19, 0) and len(extended) == 2 * _VERSION.size:
        old, new = _VERSION.iter_unpack(extended)
        return f"firmware update from {'.'.join(map(str, old))} to {'.'.join(map(str, new))}"
    return f"{APPLICATIONS.get(application, f'application {application}')}: event {event}"


def iso(seconds: int) -> str:
    """Seconds since 1970 in UTC; AMT's clock is as right as it was set."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
