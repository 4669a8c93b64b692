"""The control messages of channel 0 as frames, and back: for each one how it is written and read.

The layouts are those of frames.py. Texts for people are cut where they are too long; names, logins
and answers to challenges must arrive unchanged, and are refused instead.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any
from uuid import UUID

from gwmodule.errors import FrameLayoutError, FrameSizeError
from gwmodule.wire.codec import (
    build_frame,
    build_payload,
    code_from,
    exact_text,
    parse_payload,
    short_text,
)
from gwmodule.wire.frames import (
    CONTROL_CHANNEL,
    MAX_PAYLOAD,
    RESPONSE_SIZE,
    CredentialMode,
    FrameType,
    TlsMode,
)
from gwmodule.wire.messages import (
    Call,
    Cancel,
    Challenge,
    Credential,
    Message,
    Notice,
    NoticeAck,
    Progress,
    Responses,
    Result,
)
from gwmodule.wire.notices import build_observation, parse_observation

_MAX_U32 = 0xFFFFFFFF
_MAX_U16 = 0xFFFF


def build_message(message: Message) -> bytes:
    """One control message as a whole frame; FrameSizeError when it does not fit.

    FrameLayoutError when a text of a CALL cannot be written as UTF-8.
    """
    frame_type = _TYPES[type(message)]
    _, write, _ = _FORMS[frame_type]
    payload = build_payload(frame_type, write(message))
    if len(payload) > MAX_PAYLOAD:
        raise FrameSizeError(f"{frame_type.name} of {len(payload)} bytes, maximum {MAX_PAYLOAD}")
    return build_frame(frame_type, CONTROL_CHANNEL, payload)


def parse_message(frame_type: FrameType, payload: bytes) -> Message:
    """The message of one frame; FrameLayoutError for anything else."""
    if frame_type not in _FORMS:
        raise FrameLayoutError(f"{frame_type.name} is no control message")
    _, _, read = _FORMS[frame_type]
    parsed = parse_payload(frame_type, payload)
    try:
        return read(parsed)
    except ValueError as exc:  # UnicodeDecodeError and unknown enumeration numbers
        raise FrameLayoutError(f"{frame_type.name}: {exc}") from None


def _write_notice(notice: Notice) -> dict[str, Any]:
    return {
        "sequence": notice.sequence,
        "age_ms": min(max(round(notice.age * 1000), 0), _MAX_U32),
        "observation": build_observation(notice.observation),
    }


def _read_notice(parsed: Any) -> Notice:
    observation = parse_observation(parsed.observation)
    return Notice(parsed.sequence, parsed.age_ms / 1000, observation)


def _write_notice_ack(ack: NoticeAck) -> dict[str, Any]:
    return {"sequence": ack.sequence, "want_snapshot": ack.want_snapshot}


def _read_notice_ack(parsed: Any) -> NoticeAck:
    return NoticeAck(parsed.sequence, bool(parsed.want_snapshot))


def _write_call(call: Call) -> dict[str, Any]:
    credential = call.credential
    # What makes the mode CHALLENGE worth its round trip is that nothing reusable leaves here.
    secret = "" if credential.mode is CredentialMode.CHALLENGE else credential.secret
    return {
        "call": call.call,
        "deadline_ms": round(call.deadline * 1000),
        "address": call.address.packed,
        "mac": call.mac,
        "uuid": call.uuid.bytes,
        "tls": call.tls,
        "pin": call.pin,
        "function": exact_text(call.function),
        "realm": exact_text(credential.realm),
        "credential_mode": credential.mode,
        "username": exact_text(credential.username),
        "secret": exact_text(secret),
        "arguments": call.arguments,
    }


def _read_call(parsed: Any) -> Call:
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


def _write_progress(progress: Progress) -> dict[str, Any]:
    return {
        "call": progress.call,
        "done": progress.done,
        "total": progress.total,
        "step": short_text(progress.step),
    }


def _read_progress(parsed: Any) -> Progress:
    step = parsed.step.decode(errors="replace")
    return Progress(parsed.call, parsed.done, parsed.total, step)


def _write_result(result: Result) -> dict[str, Any]:
    return {
        "call": result.call,
        "code": result.code,
        "elapsed_ms": min(round(result.elapsed * 1000), _MAX_U32),
        "exchanges": min(result.exchanges, _MAX_U16),
        "detached": result.detached,
        "deflated": result.deflated,
        "body": result.body,
    }


def _read_result(parsed: Any) -> Result:
    return Result(
        call=parsed.call,
        code=code_from(parsed.code),
        elapsed=parsed.elapsed_ms / 1000,
        exchanges=parsed.exchanges,
        body=parsed.body,
        detached=bool(parsed.detached),
        deflated=bool(parsed.deflated),
    )


def _write_cancel(cancel: Cancel) -> dict[str, Any]:
    return {"call": cancel.call}


def _read_cancel(parsed: Any) -> Cancel:
    return Cancel(parsed.call)


def _write_challenge(challenge: Challenge) -> dict[str, Any]:
    return {
        "call": challenge.call,
        "nonce_count": challenge.nonce_count,
        "count": challenge.count,
        "realm": exact_text(challenge.realm),
        "nonce": exact_text(challenge.nonce),
        "uri": exact_text(challenge.uri),
    }


def _read_challenge(parsed: Any) -> Challenge:
    return Challenge(
        call=parsed.call,
        realm=parsed.realm.decode(),
        nonce=parsed.nonce.decode(),
        uri=parsed.uri.decode(),
        nonce_count=parsed.nonce_count,
        count=parsed.count,
    )


def _write_responses(responses: Responses) -> dict[str, Any]:
    return {
        "call": responses.call,
        "cnonce": exact_text(responses.cnonce),
        "reason": short_text(responses.reason),
        "responses": b"".join(responses.responses),
    }


def _read_responses(parsed: Any) -> Responses:
    data: bytes = parsed.responses
    if len(data) % RESPONSE_SIZE:
        raise FrameLayoutError(
            f"RESPONSES with {len(data)} bytes, not a multiple of {RESPONSE_SIZE}"
        )
    return Responses(
        call=parsed.call,
        cnonce=parsed.cnonce.decode(),
        responses=tuple(data[i : i + RESPONSE_SIZE] for i in range(0, len(data), RESPONSE_SIZE)),
        reason=parsed.reason.decode(errors="replace"),
    )


_FORMS: dict[
    FrameType, tuple[type[Message], Callable[[Any], dict[str, Any]], Callable[[Any], Message]]
] = {
    FrameType.NOTICE: (Notice, _write_notice, _read_notice),
    FrameType.NOTICE_ACK: (NoticeAck, _write_notice_ack, _read_notice_ack),
    FrameType.CALL: (Call, _write_call, _read_call),
    FrameType.PROGRESS: (Progress, _write_progress, _read_progress),
    FrameType.RESULT: (Result, _write_result, _read_result),
    FrameType.CANCEL: (Cancel, _write_cancel, _read_cancel),
    FrameType.CHALLENGE: (Challenge, _write_challenge, _read_challenge),
    FrameType.RESPONSES: (Responses, _write_responses, _read_responses),
}
_TYPES = {cls: frame_type for frame_type, (cls, _, _) in _FORMS.items()}
