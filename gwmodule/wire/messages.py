"""Typed messages and channel targets; codec.py and control.py turn them into frames and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TypeAlias
from uuid import UUID

from gwmodule.errors import Code
from gwmodule.wire.frames import CredentialMode, TlsMode
from gwmodule.wire.notices import NO_UUID, Observation


@dataclass(slots=True)
class StreamTarget:
    """A port of a device; the gateway's policy decides whether it connects."""

    address: IPv4Address
    port: int
    mac: bytes
    uuid: UUID = NO_UUID
    hold: bool = False


@dataclass(slots=True)
class ResultTarget:
    call: int


Target: TypeAlias = StreamTarget | ResultTarget


@dataclass(slots=True)
class Notice:
    """At least once; `age` is how many seconds ago the gateway observed it."""

    sequence: int
    age: float
    observation: Observation


@dataclass(slots=True)
class NoticeAck:
    """The notice with this number is committed; `want_snapshot` answers a digest that differs."""

    sequence: int
    want_snapshot: bool = False


@dataclass(slots=True)
class Credential:
    """Valid for one call. Never shown: neither `repr` nor an error text contains the secret.

    With CHALLENGE the secret is the HA1 as long as the credential is at the MSP, and empty on the
    wire.
    """

    mode: CredentialMode = CredentialMode.NONE
    username: str = ""
    secret: str = field(default="", repr=False)
    realm: str = ""


@dataclass(slots=True)
class Call:
    """Run `function` against one device before `deadline` (seconds from receipt) has passed."""

    call: int
    deadline: float
    address: IPv4Address
    mac: bytes
    uuid: UUID
    function: str
    arguments: bytes = b"{}"
    credential: Credential = field(default_factory=Credential)
    tls: TlsMode = TlsMode.AUTO
    pin: bytes = bytes(32)


@dataclass(slots=True)
class Progress:
    call: int
    done: int
    total: int
    step: str


@dataclass(slots=True)
class Result:
    """`body` is JSON: the function's result, or `{"error": ..., "detail": ...}`."""

    call: int
    code: Code
    elapsed: float
    exchanges: int
    body: bytes
    detached: bool = False
    deflated: bool = False


@dataclass(slots=True)
class Cancel:
    call: int


@dataclass(slots=True)
class Challenge:
    """A device's nonce that a call in mode CHALLENGE must answer.

    Wanted are `count` responses for POSTs to `uri`, for the nonce counts from `nonce_count` on.
    """

    call: int
    realm: str
    nonce: str
    uri: str
    nonce_count: int
    count: int


@dataclass(slots=True)
class Responses:
    """The digests in the order of their counts, or none and the `reason` for that."""

    call: int
    cnonce: str = ""
    responses: tuple[bytes, ...] = field(default=(), repr=False)
    reason: str = ""


Message: TypeAlias = Notice | NoticeAck | Call | Progress | Result | Cancel | Challenge | Responses


@dataclass(slots=True)
class Greeting:
    """The gateway's first frame on a link. `token` names the session to resume, or is zero."""

    boot_id: bytes
    token: bytes = field(repr=False)
    received: int
    timeout: float
    clock_trusted: bool
    deployment: str
    software: str
    lowest_version: int
    highest_version: int


@dataclass(slots=True)
class Welcome:
    """The MSP's answer. `token` is good for one resume; `observed_*` is the gateway after NAT."""

    version: int
    resumed: bool
    token: bytes = field(repr=False)
    received: int
    wait: int
    observed_address: str
    observed_port: int
    gateway: str


@dataclass(slots=True)
class GoAway:
    code: Code
    reason: str
    address: str = ""
    deadline: int = 0
