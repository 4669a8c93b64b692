"""Subprotocol `gwmodule.console.1`: a serial line that the service holds (docs/console.md).

Text messages are these, as JSON with a `type`; binary ones are bytes of the line. The service is
strict about what it is told, a client passes over members that it does not know.
"""

from __future__ import annotations

import enum
from typing import Annotated, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

CONSOLE_SUBPROTOCOL = "gwmodule.console.1"
# JSON's numbers are exact up to here.
MAX_OFFSET = 2**53 - 1

Offset: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_OFFSET)]
Key: TypeAlias = Annotated[str, Meta(max_length=64, pattern=r"^[\x21-\x7e]*$")]


class State(enum.StrEnum):
    OPENING = "opening"
    OPEN = "open"
    LOST = "lost"
    CLOSED = "closed"


class Want(enum.StrEnum):
    """What somebody attaches for: to type if nobody else does, only to look, to type anyway."""

    SEAT = "seat"
    WATCH = "watch"
    TAKEOVER = "takeover"


class _FromViewer(Struct, tag_field="type", forbid_unknown_fields=True):
    pass


class Attach(_FromViewer, tag="attach"):
    """`tail` is how much of the log he wants who was not here before; without it, all."""

    console: Key = ""
    seat: Key = ""
    offset: Offset = 0
    mark: Offset = 0
    want: Want = Want.SEAT
    tail: Offset = MAX_OFFSET


class Ack(_FromViewer, tag="ack"):
    offset: int


class Ping(_FromViewer, tag="ping"):
    id: int


class TakeOver(_FromViewer, tag="takeover"):
    pass


class HangUp(_FromViewer, tag="hangup"):
    pass


class _FromService(Struct, tag_field="type"):
    pass


class Attached(_FromService, tag="attached"):
    console: str
    seat: str
    offset: int
    mark: int
    lost: int


class Marked(_FromService, tag="mark"):
    number: int
    offset: int
    at: str
    text: str
    gap: bool


class StatusTold(_FromService, tag="status"):
    state: State
    reason: str
    stream: int
    writer: bool
    seat: str
    holder: str
    since: str | None
    viewers: int


class Pong(_FromService, tag="pong"):
    id: int
    gateway: float | None
    device: float | None


class ReadOnly(_FromService, tag="readonly"):
    pass


FromViewer: TypeAlias = Attach | Ack | Ping | TakeOver | HangUp
FromService: TypeAlias = Attached | Marked | StatusTold | Pong | ReadOnly

_M = TypeVar("_M")

_FROM_VIEWER: msgspec.json.Decoder[FromViewer] = msgspec.json.Decoder(FromViewer)
_FROM_SERVICE: msgspec.json.Decoder[FromService] = msgspec.json.Decoder(FromService)
_ENCODER = msgspec.json.Encoder()


class NotOurs(ValueError):
    """A text message that is none of these."""


def encode(message: FromViewer | FromService) -> str:
    return _ENCODER.encode(message).decode()


def from_viewer(text: str) -> FromViewer:
    return _decode(_FROM_VIEWER, text)


def from_service(text: str) -> FromService:
    return _decode(_FROM_SERVICE, text)


def _decode(decoder: msgspec.json.Decoder[_M], text: str) -> _M:
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise NotOurs(str(exc)[:100]) from exc
