"""Frames as bytes, and back: cutting a stream into them, and the contents of all but messages.

Every layout comes from frames.py; control messages are in control.py. The hot frames (header,
DATA, CREDIT, PING, PONG, ACK) also have a `struct` form here, which tests/wire/test_codec.py proves
equal to the construct form.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import Any, NamedTuple
from uuid import UUID

from construct import ConstructError

from gwmodule.errors import Code, FrameLayoutError, FrameSizeError
from gwmodule.wire.frames import (
    CONTROL_CHANNEL,
    HEADER_SIZE,
    MAX_PAYLOAD,
    MAX_REASON,
    PAYLOADS,
    ChannelKind,
    FrameType,
    Priority,
)
from gwmodule.wire.messages import (
    GoAway,
    Greeting,
    ResultTarget,
    StreamTarget,
    Target,
    Welcome,
)

_HEADER = struct.Struct(">BBHI")
_PING = struct.Struct(">IQI")
_PONG = struct.Struct(">IQ")
_ACK = struct.Struct(">Q")
_CREDIT = struct.Struct(">QQ")
_TYPES = {int(t): t for t in FrameType}


class Frame(NamedTuple):
    type: FrameType
    channel: int
    payload: bytes


class Decoder:
    """Cuts a byte stream into frames; any segmentation gives the same frames."""

    def __init__(self) -> None:
        self._data = b""
        self._offset = 0

    def receive(self, data: bytes) -> None:
        if self._offset == len(self._data):
            self._data = data
        else:
            self._data = self._data[self._offset :] + data
        self._offset = 0

    def next_frame(self) -> Frame | None:
        """The next whole frame; RemoteProtocolError as soon as a header cannot be right."""
        data, start = self._data, self._offset
        if len(data) - start < HEADER_SIZE:
            return None
        number, flags, channel, length = _HEADER.unpack_from(data, start)
        if length > MAX_PAYLOAD:
            raise FrameSizeError(f"payload of {length} bytes, maximum {MAX_PAYLOAD}")
        frame_type = _TYPES.get(number)
        if frame_type is None or flags:
            raise FrameLayoutError(f"frame type {number:#04x} with flags {flags:#04x}")
        end = start + HEADER_SIZE + length
        if len(data) < end:
            return None
        self._offset = end
        return Frame(frame_type, channel, data[start + HEADER_SIZE : end])

    def rest(self) -> bytes:
        """The bytes behind the last frame that was taken out."""
        return self._data[self._offset :]


def build_frame(frame_type: FrameType, channel: int, payload: bytes) -> bytes:
    return _HEADER.pack(frame_type, 0, channel, len(payload)) + payload


def build_ping(cookie: int, received: int, rtt: float) -> bytes:
    rtt_us = min(int(rtt * 1e6), 0xFFFFFFFF)
    return build_frame(FrameType.PING, CONTROL_CHANNEL, _PING.pack(cookie, received, rtt_us))


def build_pong(cookie: int, received: int) -> bytes:
    return build_frame(FrameType.PONG, CONTROL_CHANNEL, _PONG.pack(cookie, received))


def build_ack(received: int) -> bytes:
    return build_frame(FrameType.ACK, CONTROL_CHANNEL, _ACK.pack(received))


def build_credit(channel: int, limit: int, received: int) -> bytes:
    return build_frame(FrameType.CREDIT, channel, _CREDIT.pack(limit, received))


def parse_ping(payload: bytes) -> tuple[int, int, float]:
    cookie, received, rtt_us = _unpack(_PING, payload, "PING")
    return cookie, received, rtt_us / 1e6


def parse_pong(payload: bytes) -> tuple[int, int]:
    cookie, received = _unpack(_PONG, payload, "PONG")
    return cookie, received


def parse_ack(payload: bytes) -> int:
    (received,) = _unpack(_ACK, payload, "ACK")
    return int(received)


def parse_credit(payload: bytes) -> tuple[int, int]:
    limit, received = _unpack(_CREDIT, payload, "CREDIT")
    return limit, received


def _unpack(layout: struct.Struct, payload: bytes, name: str) -> tuple[Any, ...]:
    if len(payload) != layout.size:
        raise FrameLayoutError(f"{name} of {len(payload)} bytes, expected {layout.size}")
    return layout.unpack(payload)


def build_open(priority: Priority, limit: int, target: Target) -> bytes:
    match target:
        case StreamTarget():
            kind = ChannelKind.STREAM
            body = {
                "address": target.address.packed,
                "port": target.port,
                "mac": target.mac,
                "uuid": target.uuid.bytes,
                "hold": target.hold,
            }
        case _:
            kind, body = ChannelKind.RESULT, {"call": target.call}
    return build_payload(
        FrameType.OPEN, {"kind": kind, "priority": priority, "limit": limit, "target": body}
    )


def parse_open(payload: bytes) -> tuple[Priority, int, Target]:
    parsed = parse_payload(FrameType.OPEN, payload)
    try:
        priority, kind = Priority(parsed.priority), ChannelKind(parsed.kind)
    except ValueError as exc:
        raise FrameLayoutError(f"OPEN: {exc}") from exc
    if priority is Priority.CONTROL:
        raise FrameLayoutError("OPEN with priority CONTROL, which is channel 0's alone")
    body = parsed.target
    if kind is ChannelKind.RESULT:
        return priority, parsed.limit, ResultTarget(body.call)
    return (
        priority,
        parsed.limit,
        StreamTarget(
            IPv4Address(body.address), body.port, body.mac, UUID(bytes=body.uuid), bool(body.hold)
        ),
    )


def build_accept(limit: int) -> bytes:
    return build_payload(FrameType.ACCEPT, {"limit": limit})


def parse_accept(payload: bytes) -> int:
    return int(parse_payload(FrameType.ACCEPT, payload).limit)


def build_end(frame_type: FrameType, code: Code, reason: str) -> bytes:
    """The payload of REFUSE and RESET."""
    return build_payload(frame_type, {"code": code, "reason": short_text(reason)})


def parse_end(frame_type: FrameType, payload: bytes) -> tuple[Code, str]:
    parsed = parse_payload(frame_type, payload)
    return code_from(parsed.code), parsed.reason.decode(errors="replace")


def build_greeting(greeting: Greeting) -> bytes:
    payload = build_payload(
        FrameType.GREETING,
        {
            "lowest_version": greeting.lowest_version,
            "highest_version": greeting.highest_version,
            "boot_id": greeting.boot_id,
            "token": greeting.token,
            "received": greeting.received,
            "timeout_ms": round(greeting.timeout * 1000),
            "clock_trusted": greeting.clock_trusted,
            "deployment": short_text(greeting.deployment),
            "software": short_text(greeting.software),
        },
    )
    return build_frame(FrameType.GREETING, CONTROL_CHANNEL, payload)


def parse_greeting(payload: bytes) -> Greeting:
    parsed = parse_payload(FrameType.GREETING, payload)
    return Greeting(
        boot_id=parsed.boot_id,
        token=parsed.token,
        received=parsed.received,
        timeout=parsed.timeout_ms / 1000,
        clock_trusted=bool(parsed.clock_trusted),
        deployment=parsed.deployment.decode(errors="replace"),
        software=parsed.software.decode(errors="replace"),
        lowest_version=parsed.lowest_version,
        highest_version=parsed.highest_version,
    )


def build_welcome(welcome: Welcome) -> bytes:
    payload = build_payload(
        FrameType.WELCOME,
        {
            "version": welcome.version,
            "resumed": welcome.resumed,
            "token": welcome.token,
            "received": welcome.received,
            "wait": welcome.wait,
            "observed_port": welcome.observed_port,
            "observed_address": short_text(welcome.observed_address),
            "gateway": short_text(welcome.gateway),
        },
    )
    return build_frame(FrameType.WELCOME, CONTROL_CHANNEL, payload)


def parse_welcome(payload: bytes) -> Welcome:
    parsed = parse_payload(FrameType.WELCOME, payload)
    return Welcome(
        version=parsed.version,
        resumed=bool(parsed.resumed),
        token=parsed.token,
        received=parsed.received,
        wait=parsed.wait,
        observed_address=parsed.observed_address.decode(errors="replace"),
        observed_port=parsed.observed_port,
        gateway=parsed.gateway.decode(errors="replace"),
    )


def build_goaway(goaway: GoAway) -> bytes:
    payload = build_payload(
        FrameType.GOAWAY,
        {
            "code": goaway.code,
            "deadline": goaway.deadline,
            "address": short_text(goaway.address),
            "reason": short_text(goaway.reason),
        },
    )
    return build_frame(FrameType.GOAWAY, CONTROL_CHANNEL, payload)


def parse_goaway(payload: bytes) -> GoAway:
    parsed = parse_payload(FrameType.GOAWAY, payload)
    return GoAway(
        code_from(parsed.code),
        parsed.reason.decode(errors="replace"),
        parsed.address.decode(errors="replace"),
        parsed.deadline,
    )


def short_text(text: str) -> bytes:
    """For texts that people read: at most 255 bytes of UTF-8."""
    return text.encode(errors="replace")[:MAX_REASON]


def exact_text(text: str) -> bytes:
    """For texts that must arrive unchanged; FrameLayoutError as a lone surrogate has no UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Without the cause, which would quote the text: it may be a secret.
        raise FrameLayoutError("a text that is not Unicode") from None


def code_from(number: int) -> Code:
    """INTERNAL for a number that is unknown here."""
    # A newer peer may know codes that we do not; its reason text still tells a person.
    try:
        return Code(number)
    except ValueError:
        return Code.INTERNAL


def build_payload(frame_type: FrameType, body: dict[str, Any]) -> bytes:
    """FrameSizeError when a value does not fit its field."""
    try:
        return bytes(PAYLOADS[frame_type].build(body))
    except ConstructError as exc:
        raise FrameSizeError(f"{frame_type.name} cannot be built: {_first_line(exc)}") from None


def parse_payload(frame_type: FrameType, payload: bytes) -> Any:
    """FrameLayoutError when the payload is not as frames.py has it."""
    try:
        return PAYLOADS[frame_type].parse(payload)
    except ConstructError as exc:
        size = len(payload)
        raise FrameLayoutError(f"{frame_type.name} of {size} bytes: {_first_line(exc)}") from None


def _first_line(exc: ConstructError) -> str:
    # construct's texts may quote field values over many lines; a CALL holds a credential.
    return type(exc).__name__
