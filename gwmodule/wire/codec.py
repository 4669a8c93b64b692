"""Frames and their typed contents as bytes, and back.

Every layout comes from frames.py. The hot frames (header, DATA, CREDIT, PING, PONG, ACK) also
have a `struct` form here, which tests/wire/test_codec.py proves equal to the construct form.
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
    RESPONSE_SIZE,
    TOKEN_SIZE,
    ChannelKind,
    CredentialMode,
    FrameType,
    Priority,
    TlsMode,
)
from gwmodule.wire.messages import (
    Call,
    Cancel,
    Challenge,
    Credential,
    GoAway,
    Greeting,
    Message,
    Notice,
    NoticeAck,
    Progress,
    Responses,
    Result,
    ResultTarget,
    StreamTarget,
    Target,
    Welcome,
)
from gwmodule.wire.notices import build_observation, parse_observation

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
    return _build(
        FrameType.OPEN, {"kind": kind, "priority": priority, "limit": limit, "target": body}
    )


def parse_open(payload: bytes) -> tuple[Priority, int, Target]:
    parsed = _parse(FrameType.OPEN, payload)
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
    return _build(FrameType.ACCEPT, {"limit": limit})


def parse_accept(payload: bytes) -> int:
    return int(_parse(FrameType.ACCEPT, payload).limit)


def build_end(frame_type: FrameType, code: Code, reason: str) -> bytes:
    """The payload of REFUSE and RESET."""
    return _build(frame_type, {"code": code, "reason": _text(reason)})


def parse_end(frame_type: FrameType, payload: bytes) -> tuple[Code, str]:
    parsed = _parse(frame_type, payload)
    return _code(parsed.code), parsed.reason.decode(errors="replace")


def build_greeting(greeting: Greeting) -> bytes:
    payload = _build(
        FrameType.GREETING,
        {
            "lowest_version": greeting.lowest_version,
            "highest_version": greeting.highest_version,
            "boot_id": greeting.boot_id,
            "token": greeting.token,
            "received": greeting.received,
            "timeout_ms": round(greeting.timeout * 1000),
            "clock_trusted": greeting.clock_trusted,
            "deployment": _text(greeting.deployment),
            "software": _text(greeting.software),
        },
    )
    return build_frame(FrameType.GREETING, CONTROL_CHANNEL, payload)


def parse_greeting(payload: bytes) -> Greeting:
    parsed = _parse(FrameType.GREETING, payload)
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
    payload = _build(
        FrameType.WELCOME,
        {
            "version": welcome.version,
            "resumed": welcome.resumed,
            "token": welcome.token,
            "received": welcome.received,
            "wait": welcome.wait,
            "observed_port": welcome.observed_port,
            "observed_address": _text(welcome.observed_address),
            "gateway": _text(welcome.gateway),
        },
    )
    return build_frame(FrameType.WELCOME, CONTROL_CHANNEL, payload)


def parse_welcome(payload: bytes) -> Welcome:
    parsed = _parse(FrameType.WELCOME, payload)
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
    payload = _build(
        FrameType.GOAWAY,
        {
            "code": goaway.code,
            "deadline": goaway.deadline,
            "address": _text(goaway.address),
            "reason": _text(goaway.reason),
        },
    )
    return build_frame(FrameType.GOAWAY, CONTROL_CHANNEL, payload)


def parse_goaway(payload: bytes) -> GoAway:
    parsed = _parse(FrameType.GOAWAY, payload)
    return GoAway(
        _code(parsed.code),
        parsed.reason.decode(errors="replace"),
        parsed.address.decode(errors="replace"),
        parsed.deadline,
    )


def build_message(message: Message) -> bytes:
    """One control message as a whole frame; FrameSizeError when it does not fit.

    FrameLayoutError when a text of a CALL cannot be written as UTF-8.
    """
    match message:
        case Notice():
            frame_type = FrameType.NOTICE
            body: dict[str, Any] = {
                "sequence": message.sequence,
                "age_ms": min(max(round(message.age * 1000), 0), 0xFFFFFFFF),
                "observation": build_observation(message.observation),
            }
        case NoticeAck():
            frame_type = FrameType.NOTICE_ACK
            body = {"sequence": message.sequence, "want_snapshot": message.want_snapshot}
        case Call():
            frame_type = FrameType.CALL
            body = {
                "call": message.call,
                "deadline_ms": round(message.deadline * 1000),
                "address": message.address.packed,
                "mac": message.mac,
                "uuid": message.uuid.bytes,
                "tls": message.tls,
                "pin": message.pin,
                "function": _exactly(message.function),
                "realm": _exactly(message.credential.realm),
                "credential_mode": message.credential.mode,
                "username": _exactly(message.credential.username),
                "secret": _exactly(_secret_to_send(message.credential)),
                "arguments": message.arguments,
            }
        case Progress():
            frame_type = FrameType.PROGRESS
            body = {
                "call": message.call,
                "done": message.done,
                "total": message.total,
                "step": _text(message.step),
            }
        case Result():
            frame_type = FrameType.RESULT
            body = {
                "call": message.call,
                "code": message.code,
                "elapsed_ms": min(round(message.elapsed * 1000), 0xFFFFFFFF),
                "exchanges": min(message.exchanges, 0xFFFF),
                "detached": message.detached,
                "deflated": message.deflated,
                "body": message.body,
            }
        case Challenge():
            frame_type = FrameType.CHALLENGE
            body = {
                "call": message.call,
                "nonce_count": message.nonce_count,
                "count": message.count,
                "realm": _exactly(message.realm),
                "nonce": _exactly(message.nonce),
                "uri": _exactly(message.uri),
            }
        case Responses():
            frame_type = FrameType.RESPONSES
            body = {
                "call": message.call,
                "cnonce": _exactly(message.cnonce),
                "reason": _text(message.reason),
                "responses": b"".join(message.responses),
            }
        case _:
            frame_type, body = FrameType.CANCEL, {"call": message.call}
    payload = _build(frame_type, body)
    if len(payload) > MAX_PAYLOAD:
        raise FrameSizeError(f"{frame_type.name} of {len(payload)} bytes, maximum {MAX_PAYLOAD}")
    return build_frame(frame_type, CONTROL_CHANNEL, payload)


def parse_message(frame_type: FrameType, payload: bytes) -> Message:
    parsed = _parse(frame_type, payload)
    try:
        match frame_type:
            case FrameType.NOTICE:
                observation = parse_observation(parsed.observation)
                return Notice(parsed.sequence, parsed.age_ms / 1000, observation)
            case FrameType.NOTICE_ACK:
                return NoticeAck(parsed.sequence, bool(parsed.want_snapshot))
            case FrameType.CALL:
                return Call(
                    call=parsed.call,
                    deadline=parsed.deadline_ms / 1000,
                    address=IPv4Address(parsed.address),
                    mac=parsed.mac,
                    uuid=UUID(bytes=parsed.uuid),
                    function=parsed.function.decode(),
                    arguments=parsed.arguments,
                    credential=Credential(
                        CredentialMode(parsed.credential_mode),
                        parsed.username.decode(),
                        parsed.secret.decode(),
                        parsed.realm.decode(),
                    ),
                    tls=TlsMode(parsed.tls),
                    pin=parsed.pin,
                )
            case FrameType.PROGRESS:
                step = parsed.step.decode(errors="replace")
                return Progress(parsed.call, parsed.done, parsed.total, step)
            case FrameType.RESULT:
                return Result(
                    parsed.call,
                    _code(parsed.code),
                    parsed.elapsed_ms / 1000,
                    parsed.exchanges,
                    parsed.body,
                    bool(parsed.detached),
                    bool(parsed.deflated),
                )
            case FrameType.CANCEL:
                return Cancel(parsed.call)
            case FrameType.CHALLENGE:
                return Challenge(
                    parsed.call,
                    parsed.realm.decode(),
                    parsed.nonce.decode(),
                    parsed.uri.decode(),
                    parsed.nonce_count,
                    parsed.count,
                )
            case FrameType.RESPONSES:
                reason = parsed.reason.decode(errors="replace")
                return Responses(
                    parsed.call, parsed.cnonce.decode(), _responses(parsed.responses), reason
                )
    except ValueError as exc:  # UnicodeDecodeError and unknown enumeration numbers
        raise FrameLayoutError(f"{frame_type.name}: {exc}") from None
    raise FrameLayoutError(f"{frame_type.name} is no control message")


def _secret_to_send(credential: Credential) -> str:
    """What makes the mode CHALLENGE worth its round trip is that nothing reusable leaves here."""
    return "" if credential.mode is CredentialMode.CHALLENGE else credential.secret


def _responses(data: bytes) -> tuple[bytes, ...]:
    if len(data) % RESPONSE_SIZE:
        raise FrameLayoutError(f"RESPONSES with {len(data)} bytes, not a multiple of 16")
    return tuple(data[i : i + RESPONSE_SIZE] for i in range(0, len(data), RESPONSE_SIZE))


def _text(text: str) -> bytes:
    return text.encode(errors="replace")[:MAX_REASON]


def _exactly(text: str) -> bytes:
    """For texts that must arrive unchanged; a lone surrogate has no UTF-8 form."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Without the cause, which would quote the text: it may be a secret.
        raise FrameLayoutError("a text that is not Unicode") from None


def _code(number: int) -> Code:
    # A newer peer may know codes that we do not; its reason text still tells a person.
    try:
        return Code(number)
    except ValueError:
        return Code.INTERNAL


def _build(frame_type: FrameType, body: dict[str, Any]) -> bytes:
    try:
        return bytes(PAYLOADS[frame_type].build(body))
    except ConstructError as exc:
        raise FrameSizeError(f"{frame_type.name} cannot be built: {_first_line(exc)}") from None


def _parse(frame_type: FrameType, payload: bytes) -> Any:
    try:
        return PAYLOADS[frame_type].parse(payload)
    except ConstructError as exc:
        size = len(payload)
        raise FrameLayoutError(f"{frame_type.name} of {size} bytes: {_first_line(exc)}") from None


def _first_line(exc: ConstructError) -> str:
    # construct's texts may quote field values over many lines; a CALL holds a credential.
    return type(exc).__name__


assert TOKEN_SIZE == 16  # noqa: S101 - the layouts above and docs/protocol.md rely on it
