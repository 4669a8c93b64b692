"""The datagrams of the capture socket; the first byte tells them apart.

0x01 ...                an observation, just made (its own version byte, wire.notices)
0x02 JSON               counters of the capture process
0x03 age u32 0x01 ...   an observation made `age` milliseconds ago, kept for whoever connects
0x05 at f64 length u32  a frame that the filter let through, as asked for; `at` is CLOCK_MONOTONIC

The relay says one thing only:

0x04 count u32 ms u32   send me the next `count` frames, for `ms` at most; 0 is: no more
"""

from __future__ import annotations

import dataclasses
import json
import struct
from dataclasses import dataclass
from typing import Any, TypeAlias

from gwmodule.errors import FrameLayoutError
from gwmodule.wire.notices import (
    MAX_OBSERVATION,
    Lease,
    Observation,
    build_observation,
    parse_observation,
)

COUNTERS = 0x02
KEPT = 0x03
RECORD = 0x04
FRAME = 0x05

_KEPT = struct.Struct("!BI")
MAX_DATAGRAM = MAX_OBSERVATION + _KEPT.size
_MAX_AGE_MS = 0xFFFFFFFF
_RECORD = struct.Struct("!BII")
_FRAME = struct.Struct("!BdI")
MAX_FRAME = MAX_DATAGRAM - _FRAME.size
# More than a request of the relay ever has: the rest of a longer one is thrown away.
MAX_REQUEST = 64


@dataclass(slots=True)
class Seen:
    """An observation and how many seconds ago it was made."""

    observation: Observation
    age: float


@dataclass(slots=True)
class Counters:
    """What `gwmodule status` shows about the capture process (JSON values only)."""

    values: dict[str, Any]


@dataclass(slots=True)
class Recorded:
    """A frame, whole or cut at MAX_FRAME; `length` is what it had on the wire."""

    frame: bytes
    length: int
    at: float


Datagram: TypeAlias = Seen | Counters | Recorded


def build_seen(observation: Observation, age: float = 0.0) -> bytes:
    """A new observation, or with `age` (seconds) a kept one.

    A kept lease goes out with what is left of it, so `Lease.seconds` always counts from now.
    """
    if not age:
        return build_observation(observation)
    if isinstance(observation, Lease):
        left = max(0, observation.seconds - int(age))
        observation = dataclasses.replace(observation, seconds=left)
    return _KEPT.pack(KEPT, min(int(age * 1000), _MAX_AGE_MS)) + build_observation(observation)


def build_counters(values: dict[str, Any]) -> bytes:
    """Counters as one datagram; ValueError when they do not fit."""
    data = bytes((COUNTERS,)) + json.dumps(values, separators=(",", ":")).encode()
    if len(data) > MAX_DATAGRAM:
        raise ValueError(f"counters of {len(data)} bytes, maximum {MAX_DATAGRAM}")
    return data


def build_record(count: int, seconds: float) -> bytes:
    """The relay's request for frames; a count of 0 ends it."""
    return _RECORD.pack(RECORD, count, int(seconds * 1000))


def parse_record(data: bytes) -> tuple[int, float] | None:
    """Count and seconds of a request; None for anything else that a relay may say."""
    if len(data) != _RECORD.size or data[0] != RECORD:
        return None
    _, count, milliseconds = _RECORD.unpack(data)
    return count, milliseconds / 1000


def build_frame(frame: bytes, at: float) -> bytes:
    return _FRAME.pack(FRAME, at, len(frame)) + frame[:MAX_FRAME]


def parse_datagram(data: bytes) -> Datagram:
    """One whole datagram; FrameLayoutError on anything else."""
    match data[:1]:
        case b"\x02":
            try:
                values = json.loads(data[1:])
            except (ValueError, RecursionError) as exc:
                raise FrameLayoutError(f"counters of {len(data)} bytes: {exc}") from exc
            if not isinstance(values, dict):
                raise FrameLayoutError("counters are no JSON object")
            return Counters(values)
        case b"\x03":
            if len(data) < _KEPT.size:
                raise FrameLayoutError(f"kept observation of {len(data)} bytes")
            _, age_ms = _KEPT.unpack_from(data)
            return Seen(parse_observation(data[_KEPT.size :]), age_ms / 1000)
        case b"\x05":
            if not _FRAME.size < len(data) <= MAX_DATAGRAM:
                raise FrameLayoutError(f"recorded frame of {len(data)} bytes")
            _, at, length = _FRAME.unpack_from(data)
            return Recorded(data[_FRAME.size :], length, at)
        case _:
            return Seen(parse_observation(data), 0.0)
