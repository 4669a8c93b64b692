"""RMCP/ASF presence ping and pong on UDP port 623: is there AMT, and is it provisioned?

Layout: DMTF DSP0136 (ASF 2.0) 3.2.4, and for the Intel part of the pong reference/amt-protocols.md
3.11. Nothing in a pong is authenticated; it only says what to try next.
"""

from __future__ import annotations

from dataclasses import dataclass

from construct import (
    BitsInteger,
    BitStruct,
    Const,
    ConstructError,
    Int8ub,
    Int16ub,
    Int32ub,
    Struct,
)

from gwmodule.ports import WSMAN_HTTP, WSMAN_HTTPS
from gwmodule.wire.notices import Provisioning

MAX_TAG = 0xFE  # 0xff means "no answer wanted".

IANA_ASF = 0x11BE
IANA_INTEL = 0x157
PING = 0x80
PONG = 0x40

_HEAD = (
    "version" / Const(6, Int8ub),
    "reserved" / Const(0, Int8ub),
    "sequence" / Int8ub,
    "message_class" / Const(6, Int8ub),
    "iana" / Const(IANA_ASF, Int32ub),
)
PRESENCE_PING = Struct(
    *_HEAD,
    "type" / Const(PING, Int8ub),
    "tag" / Int8ub,
    "reserved2" / Const(0, Int8ub),
    "length" / Const(0, Int8ub),
)
PRESENCE_PONG = Struct(
    *_HEAD,
    "type" / Const(PONG, Int8ub),
    "tag" / Int8ub,
    "reserved2" / Int8ub,
    "length" / Int8ub,
    "enterprise" / Const(IANA_INTEL, Int32ub),
    "port" / Int16ub,
    "amt" / BitStruct("major" / BitsInteger(4), "minor" / BitsInteger(4)),
    "state"
    / BitStruct("unused" / BitsInteger(5), "both" / BitsInteger(1), "value" / BitsInteger(2)),
)
_PONG_HEAD = 12
_INTEL_PART = 8  # Enterprise number, port, version, state: what `length` must at least cover.


@dataclass(slots=True)
class Pong:
    """An Intel AMT device's answer; `version` is the AMT version as the pong gives it."""

    tag: int
    provisioning: Provisioning
    ports: tuple[int, ...]
    version: tuple[int, int]


def build_presence_ping(tag: int) -> bytes:
    """A ping of 12 bytes; its pong carries the same tag (0..254)."""
    if not 0 <= tag <= MAX_TAG:
        raise ValueError(f"tag {tag}, must be between 0 and {MAX_TAG}")
    return bytes(PRESENCE_PING.build({"sequence": 0, "tag": tag}))


def parse_pong(data: bytes, tag: int) -> Pong | None:
    """The pong to our ping `tag`; None for anything else, another vendor's pong included."""
    try:
        pong = PRESENCE_PONG.parse(data)
    except ConstructError:
        return None
    if pong.tag != tag or not _INTEL_PART <= pong.length <= len(data) - _PONG_HEAD:
        return None
    if pong.state.both:
        ports: tuple[int, ...] = (WSMAN_HTTP, WSMAN_HTTPS)
    else:
        ports = (pong.port,) if pong.port in (WSMAN_HTTP, WSMAN_HTTPS) else ()
    return Pong(
        tag, Provisioning(pong.state.value), ports, (int(pong.amt.major), int(pong.amt.minor))
    )
