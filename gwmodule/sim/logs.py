"""The two logs of the firmware, as binary records (reference/amt-protocols.md 3.6 and 3.7).

Times are the device's clock, whole seconds since 1970.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

MAX_EVENTS = 390
MAX_AUDIT = 1000
# One ReadRecords returns this many; the next asks from where it ended.
AUDIT_PAGE = 10

MONITOR = 1
INFORMATION = 2
CRITICAL = 16
_BIOS = 0x22
_FIRMWARE = 0x26
_EVENT = struct.Struct("<I9B8s")
_AUDIT_HEAD = struct.Struct(">HHB")
_AUDIT_TIME = struct.Struct(">IBB")
_DIGEST_USER = 0
_NO_LOCATION = 2


@dataclass(frozen=True, slots=True)
class Event:
    """What goes into a record beside its time."""

    sensor_type: int
    severity: int
    data: bytes
    offset: int = 0
    entity: int = _FIRMWARE
    # The low byte of the event source and the sensor class that every recorded example has.
    source_type: int = 0x68
    event_type: int = 0x6F


def firmware_progress(step: int) -> Event:
    """POST is at `step`, a number of IPMI's table for system firmware progress."""
    return Event(15, MONITOR, bytes([0x40, step]), offset=2, entity=_BIOS)


def no_bootable_media() -> Event:
    return Event(30, CRITICAL, b"", entity=_BIOS)


def login_failed(times: int) -> Event:
    return Event(6, CRITICAL, bytes([0xAA]) + min(times, 0xFFFF).to_bytes(2, "little"), offset=5)


def redirection_session(number: int) -> Event:
    """0 and 1: SOL opened, closed; 2 and 3: IDE-R."""
    return Event(192, INFORMATION, bytes([0xAA, 0x30, number]))


BOOT_STARTED = 7  # PCI resource configuration.
BOOT_HANDED_OVER = 19  # Starting the operating system's boot process.


class EventLog:
    """AMT_MessageLog: the newest first, the oldest overwritten, nothing added while frozen."""

    def __init__(self) -> None:
        self._records: deque[bytes] = deque(maxlen=MAX_EVENTS)
        self.frozen = False

    def __len__(self) -> int:
        return len(self._records)

    def add(self, time: int, event: Event) -> None:
        if self.frozen:
            return
        fields = (
            *(0xFF, event.sensor_type, event.event_type, event.offset),
            *(event.source_type, event.severity, 0xFF, event.entity, 0),
        )
        data = event.data.ljust(8, b"\0")
        self._records.appendleft(_EVENT.pack(time & 0xFFFFFFFF, *fields, data))

    def fill(self, time: int) -> None:
        """As after years of use: every record taken, the newest at `time`."""
        steps = (BOOT_STARTED, BOOT_HANDED_OVER)
        for age in range(MAX_EVENTS, 0, -1):
            self.add(time - age * 3600, firmware_progress(steps[age % 2]))

    def clear(self) -> None:
        self._records.clear()

    def read(self, first: int, count: int) -> list[bytes]:
        """`count` records from the `first`-th, counted from 1."""
        return list(self._records)[first - 1 : first - 1 + count]


@dataclass(frozen=True, slots=True)
class Action:
    """What the audit log writes down: an application of the firmware, and what happened in it."""

    application: int
    event: int


POWER_UP = Action(17, 0)
POWER_DOWN = Action(17, 1)
POWER_CYCLE = Action(17, 2)
RESET = Action(17, 3)
BOOT_OPTIONS = Action(17, 4)
SOL_OPENED = Action(18, 4)
SOL_CLOSED = Action(18, 5)
CLOCK_SET = Action(21, 0)
EVENT_LOG_CLEARED = Action(24, 2)
EVENT_LOG_FROZEN = Action(24, 3)
CONSENT_POLICY = Action(30, 0)
CONSENT_CODE = Action(30, 1)


class AuditLog:
    """AMT_AuditLog: the oldest first."""

    def __init__(self) -> None:
        self._records: deque[bytes] = deque(maxlen=MAX_AUDIT)
        self.last = 0

    def __len__(self) -> int:
        return len(self._records)

    def add(self, time: int, action: Action, user: str, extended: bytes = b"") -> None:
        name = user.encode()
        self.last = time
        self._records.append(
            _AUDIT_HEAD.pack(action.application, action.event, _DIGEST_USER)
            + bytes([len(name)])
            + name
            + _AUDIT_TIME.pack(time & 0xFFFFFFFF, _NO_LOCATION, 0)
            + bytes([len(extended)])
            + extended
        )

    def read(self, first: int) -> list[bytes]:
        """At most AUDIT_PAGE records from the `first`-th, counted from 1."""
        return list(self._records)[first - 1 : first - 1 + AUDIT_PAGE]
