"""What a gateway observes in its LAN, as typed values and as bytes.

The same layout travels from the capture service to the relay (one datagram per observation) and,
inside a NOTICE frame, from the gateway to the MSP.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, TypeAlias
from uuid import UUID

from construct import (
    Bytes,
    Const,
    ConstructError,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int32ub,
    Prefixed,
    Struct,
    Switch,
    Terminated,
    this,
)

from gwmodule.errors import FrameLayoutError

MAX_HOSTNAME = 255  # DHCP option 12 is at most 255 bytes.
# 23 SHA-384 entries make 1,175 bytes; firmware seen so far sends 24 SHA-256 entries, 841 bytes.
MAX_HELLO = 8192
# A Hello, its head, and room to spare; also the largest datagram on the capture socket.
MAX_OBSERVATION = MAX_HELLO + 512


class Source(enum.IntEnum):
    """How a device or a Hello became known."""

    LISTENER = 1  # The device connected to the gateway's own port 9971.
    TRANSIT = 2  # Seen passing by to another host.
    PROBE = 3  # Answered RMCP or its AMT ports.


class Provisioning(enum.IntEnum):
    """RMCP presence pong byte 19, bits 0-1 (reference/amt-protocols.md 3.11)."""

    PRE = 0
    IN = 1
    POST = 2
    UNKNOWN = 3


@dataclass(slots=True)
class Lease:
    """A DHCPACK: `seconds` is what is left of the lease when it was seen."""

    mac: bytes
    address: IPv4Address
    seconds: int
    hostname: str = ""
    uuid: UUID | None = None


@dataclass(slots=True)
class LeaseEnd:
    """A DHCPRELEASE or DHCPDECLINE."""

    mac: bytes
    address: IPv4Address


@dataclass(slots=True)
class Hello:
    """A registration request: a device in setup mode asks to be provisioned.

    `mac` is zero when the neighbour table did not know it yet. `raw` is the message as received.
    """

    uuid: UUID
    address: IPv4Address
    mac: bytes
    version: int
    retry: int
    source: Source
    raw: bytes


@dataclass(slots=True)
class Presence:
    """The answer of a device to the active probe.

    `ports` are the open ones of 16992-16995; `realm` and `server` come from the unauthenticated
    HTTP answer (empty when there was none); `pin` is the SHA-256 of the TLS leaf, zero without TLS.
    `uuid` is only known when the DHCP option 97 or a Hello told it.
    """

    mac: bytes
    address: IPv4Address
    provisioning: Provisioning
    ports: tuple[int, ...] = ()
    realm: str = ""
    server: str = ""
    pin: bytes = bytes(32)
    uuid: UUID | None = None


@dataclass(slots=True)
class Gone:
    """The neighbour stopped answering (three probes in a row)."""

    mac: bytes
    address: IPv4Address


@dataclass(slots=True)
class Digest:
    """A fresh session's first notice: what the gateway's whole table hashes to."""

    devices: int
    sha256: bytes


Observation: TypeAlias = Lease | LeaseEnd | Hello | Presence | Gone | Digest

NO_UUID = UUID(int=0)
NO_MAC = bytes(6)

_text8 = Prefixed(Int8ub, GreedyBytes)
_LEASE = Struct(
    "mac" / Bytes(6),
    "address" / Bytes(4),
    "seconds" / Int32ub,
    "uuid" / Bytes(16),
    "hostname" / _text8,
)
_LEASE_END = Struct("mac" / Bytes(6), "address" / Bytes(4))
_HELLO = Struct(
    "uuid" / Bytes(16),
    "address" / Bytes(4),
    "mac" / Bytes(6),
    "version" / Int16ub,
    "retry" / Int32ub,
    "source" / Int8ub,
    "raw" / Prefixed(Int16ub, GreedyBytes),
)
_PRESENCE = Struct(
    "mac" / Bytes(6),
    "address" / Bytes(4),
    "provisioning" / Int8ub,
    "ports" / Int8ub,  # Bit n stands for port 16992 + n.
    "uuid" / Bytes(16),
    "pin" / Bytes(32),
    "realm" / _text8,
    "server" / _text8,
)
_DIGEST = Struct("devices" / Int32ub, "sha256" / Bytes(32))
_KINDS: dict[int, tuple[type[Any], Any]] = {
    1: (Lease, _LEASE),
    2: (LeaseEnd, _LEASE_END),
    3: (Hello, _HELLO),
    4: (Presence, _PRESENCE),
    5: (Gone, _LEASE_END),
    6: (Digest, _DIGEST),
}
_KIND_OF = {cls: kind for kind, (cls, _) in _KINDS.items()}
OBSERVATION = Struct(
    "version" / Const(1, Int8ub),
    "kind" / Int8ub,
    "body" / Switch(this.kind, {kind: layout for kind, (_, layout) in _KINDS.items()}),
    Terminated,
)
FIRST_PORT = 16992


def build_observation(observation: Observation) -> bytes:
    """The bytes of one observation; texts are cut at 255 bytes of UTF-8."""
    kind = _KIND_OF[type(observation)]
    body = {name: _pack(name, getattr(observation, name)) for name in observation.__slots__}
    return bytes(OBSERVATION.build({"kind": kind, "body": body}))


def parse_observation(data: bytes) -> Observation:
    """Parse one whole observation; FrameLayoutError on anything else."""
    if len(data) > MAX_OBSERVATION:
        raise FrameLayoutError(f"observation of {len(data)} bytes, maximum {MAX_OBSERVATION}")
    try:
        parsed = OBSERVATION.parse(data)
        cls, _ = _KINDS[parsed.kind]
        observation: Observation = cls(
            **{name: _unpack(name, parsed.body[name]) for name in cls.__slots__}
        )
    except (ConstructError, KeyError, ValueError) as exc:
        raise FrameLayoutError(f"observation of {len(data)} bytes: {exc}") from exc
    if isinstance(observation, Lease | Presence) and observation.uuid == NO_UUID:
        observation.uuid = None
    if isinstance(observation, Hello) and len(observation.raw) > MAX_HELLO:
        raise FrameLayoutError(f"Hello of {len(observation.raw)} bytes, maximum {MAX_HELLO}")
    return observation


def _pack(name: str, value: Any) -> Any:
    match name:
        case "address":
            return value.packed
        case "uuid":
            return (value or NO_UUID).bytes
        case "hostname" | "realm" | "server":
            return value.encode(errors="replace")[:MAX_HOSTNAME]
        case "ports":
            return sum(1 << (port - FIRST_PORT) for port in value)
        case _:
            return value


def _unpack(name: str, value: Any) -> Any:
    match name:
        case "address":
            return IPv4Address(value)
        case "uuid":
            return UUID(bytes=value)
        case "hostname" | "realm" | "server":
            return value.decode(errors="replace")
        case "ports":
            return tuple(FIRST_PORT + bit for bit in range(8) if value & (1 << bit))
        case "source":
            return Source(value)
        case "provisioning":
            return Provisioning(value)
        case _:
            return value


def format_mac(mac: bytes) -> str:
    return mac.hex(":")


def parse_mac(text: str) -> bytes:
    """`aa:bb:..` or `AA-BB-..` as six bytes; ValueError otherwise."""
    mac = bytes.fromhex(text.replace("-", "").replace(":", ""))
    if len(mac) != 6:
        raise ValueError(f"{text!r} is no MAC address")
    return mac
