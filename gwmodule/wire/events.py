"""What `Mux.next_event` tells its owner. Consumers use `match` and end with `assert_never`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from gwmodule.errors import Code
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import GoAway, Message, Target


@dataclass(slots=True)
class ChannelOpened:
    """The peer wants a channel: answer with `accept` or `refuse`."""

    channel: int
    priority: Priority
    target: Target


@dataclass(slots=True)
class ChannelAccepted:
    channel: int


@dataclass(slots=True)
class ChannelEnded:
    """Refused, reset by the peer, or lost with the session: nothing more comes or goes."""

    channel: int
    code: Code
    reason: str


@dataclass(slots=True)
class DataReceived:
    """Charged to the channel's window until `consume` gives it back."""

    channel: int
    data: bytes


@dataclass(slots=True)
class EofReceived:
    channel: int


@dataclass(slots=True)
class ChannelWritable:
    """The send queue fell below half of what `room` allows, after it had been full."""

    channel: int


@dataclass(slots=True)
class MessageReceived:
    message: Message


@dataclass(slots=True)
class PeerGoingAway:
    goaway: GoAway


@dataclass(slots=True)
class RoundTrip:
    """A PONG came back: `seconds` for this round trip of the link."""

    seconds: float


@dataclass(slots=True)
class LinkDead:
    """Nothing was received for the liveness timeout; drop the link."""

    silent: float


@dataclass(slots=True)
class SessionReset:
    """The peer has a fresh session: all channels of the old one have ended."""


Event: TypeAlias = (
    ChannelOpened
    | ChannelAccepted
    | ChannelEnded
    | DataReceived
    | EofReceived
    | ChannelWritable
    | MessageReceived
    | PeerGoingAway
    | RoundTrip
    | LinkDead
    | SessionReset
)
