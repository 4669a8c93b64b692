"""The Hello message of a device in setup mode (TCP, port 9971), whole, in pieces and in passing.

Layout: reference/amt-protocols.md section 1. All integers are little-endian, and the UUID is in
SMBIOS order: its first three groups little-endian, too. There is no length field; a message ends
with its last counted entry or, for a version we do not know, with the FIN.

    listener:  data --> HelloReader --> ParsedHello
    transit:   TCP segments --> TransitReassembler --> HelloReader of the flow --> Hello
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TypeAlias
from uuid import UUID

from construct import (
    Bytes,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32ul,
    Prefixed,
    PrefixedArray,
    Struct,
)

from gwmodule.capture.packet import FIN, RST, SYN, TcpSegment
from gwmodule.errors import GatewayError
from gwmodule.ports import HELLO_PORT
from gwmodule.wire.notices import MAX_HELLO, Hello, Source

VERSION_PSK = 2
VERSION_PKI = 3

HELLO_HEAD = Struct(
    "credentials_set" / Int16ul,
    "version" / Int16ul,
    "retry" / Int32ul,
    "uuid" / Bytes(16),
)
HELLO_V2 = Struct("head" / HELLO_HEAD, "pid" / Bytes(8))
HELLO_V3 = Struct(
    "head" / HELLO_HEAD,
    "hashes"
    / PrefixedArray(Int8ul, Struct("type" / Int8ul, "value" / Prefixed(Int8ul, GreedyBytes))),
)
_HEAD = 24
_V2 = 32

# Digest sizes of the hash types we know: SHA-1, SHA-256, SHA-384.
HASH_SIZES = {1: 20, 2: 32, 3: 48}

# Broken SMBIOS tables carry these instead of a UUID; they name no machine.
_NO_MACHINE = frozenset({bytes(16), b"\xff" * 16})

# Hellos in transit are a bonus; what a hostile LAN can make us remember for them is bounded by
# MAX_FLOWS x 2 x MAX_HELLO = 1 MiB. Per sender, so that one host cannot push out all others.
MAX_FLOWS = 64
MAX_FLOWS_PER_SENDER = 4
MAX_FLOW_AGE = 30.0
MAX_PENDING_SEGMENTS = 16


class HelloFault(enum.Enum):
    """Why bytes on port 9971 are no Hello; the values name counters."""

    GARBAGE = "garbage"
    TRUNCATED = "truncated"
    OVERSIZED = "oversized"


class HelloError(GatewayError):
    """The peer sent something else; `fault` says what to count."""

    def __init__(self, fault: HelloFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class RootHash:
    """A root certificate trusted for provisioning (type 1 SHA-1, 2 SHA-256, 3 SHA-384)."""

    type: int
    value: bytes


@dataclass(slots=True)
class ParsedHello:
    """`pid` belongs to version 2, `hashes` to version 3; an unknown version has neither.

    `raw` is the message without anything that may have followed it.
    """

    uuid: UUID
    version: int
    retry: int
    credentials_set: bool
    raw: bytes
    pid: bytes = b""
    hashes: tuple[RootHash, ...] = ()


def parse_hello(data: bytes, at_end: bool) -> ParsedHello | None:
    """The Hello at the start of `data`, or None when more bytes are needed.

    With `at_end` no more bytes will come. HelloError when this cannot be, or become, a Hello.
    """
    if len(data) >= 2 and data[:2] not in (b"\0\0", b"\1\0"):
        raise HelloError(
            HelloFault.GARBAGE, f"admin credentials flag {data[:2].hex()}, must be 0 or 1"
        )
    size = _size(data, at_end)
    if size is None or size > len(data):
        if len(data) >= MAX_HELLO:
            raise HelloError(HelloFault.OVERSIZED, f"no end within {MAX_HELLO} bytes")
        if at_end:
            raise HelloError(HelloFault.TRUNCATED, f"ended after {len(data)} bytes")
        return None
    if size > MAX_HELLO:
        raise HelloError(HelloFault.OVERSIZED, f"{size} bytes, maximum {MAX_HELLO}")
    return _parse(data[:size])


def _size(data: bytes, at_end: bool) -> int | None:
    """How long the message that starts with `data` is, as soon as that can be known."""
    if len(data) < _HEAD:
        return None
    version = int.from_bytes(data[2:4], "little")
    if version == VERSION_PSK:
        return _V2
    if version == VERSION_PKI:
        return _entries_end(data)
    return len(data) if at_end else None


def _entries_end(data: bytes) -> int | None:
    if len(data) <= _HEAD:
        return None
    end = _HEAD + 1
    for _ in range(data[_HEAD]):
        if len(data) < end + 2:
            return None
        kind, size = data[end], data[end + 1]
        if size != HASH_SIZES.get(kind, size):
            raise HelloError(
                HelloFault.GARBAGE,
                f"hash type {kind} with {size} bytes, must be {HASH_SIZES[kind]}",
            )
        end += 2 + size
    return end


def _parse(raw: bytes) -> ParsedHello:
    head = HELLO_HEAD.parse(raw)
    if head.uuid in _NO_MACHINE:
        raise HelloError(HelloFault.GARBAGE, f"UUID {head.uuid.hex()} names no machine")
    hello = ParsedHello(
        uuid=UUID(bytes_le=head.uuid),
        version=head.version,
        retry=head.retry,
        credentials_set=bool(head.credentials_set),
        raw=raw,
    )
    # `_size` has made sure that all of it is there: these cannot fail.
    if head.version == VERSION_PSK:
        hello.pid = HELLO_V2.parse(raw).pid
    elif head.version == VERSION_PKI:
        entries = HELLO_V3.parse(raw).hashes
        hello.hashes = tuple(RootHash(entry.type, entry.value) for entry in entries)
    return hello


class HelloReader:
    """One connection's bytes, in any segmentation, into one Hello; at most MAX_HELLO of them."""

    def __init__(self) -> None:
        self._data = bytearray()

    def receive_data(self, data: bytes) -> ParsedHello | None:
        """The Hello, once it is complete; HelloError as soon as it can no longer become one."""
        self._data += data[: MAX_HELLO - len(self._data)]
        return parse_hello(bytes(self._data), at_end=False)

    def receive_eof(self) -> ParsedHello:
        """The Hello that the FIN ended; HelloError if it is not whole."""
        hello = parse_hello(bytes(self._data), at_end=True)
        assert hello is not None  # noqa: S101 - at_end leaves only a Hello or an error.
        return hello


_FlowKey: TypeAlias = tuple[IPv4Address, int, IPv4Address]


@dataclass(slots=True)
class _Flow:
    mac: bytes
    start: int  # Sequence number of the first byte.
    opened: float
    received: int = 0  # How many bytes from `start` on have gone to the reader.
    end: int | None = None  # Offset of the FIN.
    pending: dict[int, bytes] = field(default_factory=dict)
    reader: HelloReader = field(default_factory=HelloReader)

    def keep(self, offset: int, data: bytes) -> None:
        if offset + len(data) <= self.received or len(data) <= len(self.pending.get(offset, b"")):
            return
        waiting = sum(map(len, self.pending.values()))
        has_room = waiting + len(data) <= MAX_HELLO and len(self.pending) < MAX_PENDING_SEGMENTS
        if has_room or offset <= self.received:  # The latter is taken at once.
            self.pending[offset] = data

    def take(self) -> bytes:
        """The bytes that come next, empty while they are missing."""
        while self.pending and (offset := min(self.pending)) <= self.received:
            data = self.pending.pop(offset)[self.received - offset :]
            if data:
                self.received += len(data)
                return data
        return b""


class TransitReassembler:
    """Hellos on their way to another host, from the TCP segments that pass by.

    A flow starts with its SYN and ends with a Hello, an error, a FIN, a RST or MAX_FLOW_AGE
    seconds; segments may come in any order, doubled or
    overlapping.
    """

    def __init__(self) -> None:
        self._flows: OrderedDict[_FlowKey, _Flow] = OrderedDict()
        self.faults: dict[HelloFault, int] = dict.fromkeys(HelloFault, 0)
        self.evicted = 0

    def receive_segment(self, segment: TcpSegment, now: float) -> Hello | None:
        """The Hello that this segment completes; never raises, whatever the segment holds."""
        if segment.destination_port != HELLO_PORT:
            return None
        self._expire(now)
        key = (segment.source, segment.source_port, segment.destination)
        if segment.flags & RST:
            self._flows.pop(key, None)
            return None
        first = (segment.sequence + bool(segment.flags & SYN)) & 0xFFFFFFFF
        if segment.flags & SYN:
            self._open(key, segment.mac, first, now)
        flow = self._flows.get(key)
        if flow is None:
            return None
        try:
            parsed = self._add(flow, _signed(first - flow.start), segment)
        except HelloError as exc:
            self.faults[exc.fault] += 1
            del self._flows[key]
            return None
        if parsed is None:
            return None
        del self._flows[key]
        return Hello(
            parsed.uuid,
            segment.source,
            flow.mac,
            parsed.version,
            parsed.retry,
            Source.TRANSIT,
            parsed.raw,
        )

    def _add(self, flow: _Flow, offset: int, segment: TcpSegment) -> ParsedHello | None:
        if segment.flags & FIN:
            flow.end = offset + len(segment.payload)
        if offset <= MAX_HELLO:
            flow.keep(offset, segment.payload[:MAX_HELLO])
        while data := flow.take():
            parsed = flow.reader.receive_data(data)
            if parsed is not None:
                return parsed
        if flow.end is not None and flow.received >= flow.end:
            return flow.reader.receive_eof()
        return None

    def _open(self, key: _FlowKey, mac: bytes, start: int, now: float) -> None:
        known = self._flows.get(key)
        if known is not None and known.start == start:
            return  # A repeated SYN; what was collected stays.
        self._flows.pop(key, None)
        same = [k for k, flow in self._flows.items() if flow.mac == mac]
        if len(same) >= MAX_FLOWS_PER_SENDER:
            self._evict(same[0])
        elif len(self._flows) >= MAX_FLOWS:
            self._evict(next(iter(self._flows)))
        self._flows[key] = _Flow(mac, start, now)

    def _expire(self, now: float) -> None:
        while self._flows:
            key, flow = next(iter(self._flows.items()))
            if now - flow.opened < MAX_FLOW_AGE:
                return
            self._evict(key)

    def _evict(self, key: _FlowKey) -> None:
        del self._flows[key]
        self.evicted += 1


def _signed(difference: int) -> int:
    """A difference of sequence numbers, which wrap at 2**32 (RFC 9293 3.4)."""
    difference &= 0xFFFFFFFF
    return difference - (1 << 32) if difference >= 1 << 31 else difference
