"""Intel AMT's redirection protocol (TCP 16994, TLS 16995): messages, layouts, tracker. No I/O.

    console                                       device
      0x10 StartRedirectionSession          -->
                                            <--   0x11 status, versions
      0x13 AuthenticateSession, query       -->
                                            <--   0x14 the methods on offer
      0x13 digest without a response        -->
                                            <--   0x14 status 1: realm, nonce, qop
      0x13 digest with the response         -->
                                            <--   0x14 status 0
      0x20 StartSolRedirection, its timers  -->
                                            <--   0x21 status
      0x28 data  0x2B heartbeat             <-->  0x2A data  0x29 control lines  0x2B heartbeat

Integers are little-endian. No message carries its length in a common place: each type has its own
rule (`message_size`). Source of all of it: reference/amt-protocols.md section 2.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from construct import (
    Bytes,
    ConstructError,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32ul,
    Padding,
    Prefixed,
    Struct,
    Terminated,
)

from gwmodule.amt import digest
from gwmodule.errors import AmtError, Code

URI = "/RedirectionService"
HTTP_METHOD = "POST"
INTEL_IANA = 343

# The protocol's own constant: nobody counts, every client sends this text.
NONCE_COUNT = "00000002"
# Eight strings with a length byte each, the most a login can hold.
MAX_AUTHENTICATION = 8 * 256


class MessageType(enum.IntEnum):
    START_REDIRECTION_SESSION = 0x10
    START_REDIRECTION_SESSION_REPLY = 0x11
    END_REDIRECTION_SESSION = 0x12
    AUTHENTICATE_SESSION = 0x13
    AUTHENTICATE_SESSION_REPLY = 0x14
    START_SOL_REDIRECTION = 0x20
    START_SOL_REDIRECTION_REPLY = 0x21
    END_SOL_REDIRECTION = 0x22
    END_SOL_REDIRECTION_REPLY = 0x23
    SOL_KEEP_ALIVE_PING = 0x24
    SOL_KEEP_ALIVE_PONG = 0x25
    SOL_CONTROLS_TO_HOST = 0x27
    SOL_DATA_TO_HOST = 0x28
    SOL_CONTROLS_FROM_HOST = 0x29
    SOL_DATA_FROM_HOST = 0x2A
    SOL_HEARTBEAT = 0x2B


class Direction(enum.Enum):
    TO_DEVICE = "to device"
    FROM_DEVICE = "from device"


class SessionKind(enum.Enum):
    SOL = b"SOL "
    IDER = b"IDER"
    KVM = b"KVMR"
    UNKNOWN = b""


class SessionStatus(enum.IntEnum):
    """The status of 0x11 (and of 0x21)."""

    OK = 0
    UNKNOWN_TYPE = 1
    BUSY = 2
    UNSUPPORTED = 3
    ERROR = 0xFF


class LoginStatus(enum.IntEnum):
    """The status of 0x14; `REFUSED` also carries a challenge."""

    OK = 0
    REFUSED = 1
    UNSUPPORTED = 2


class LoginMethod(enum.IntEnum):
    QUERY = 0
    CLEAR_TEXT = 1
    KERBEROS = 2
    DIGEST_RFC2069 = 3
    DIGEST = 4


class Control(enum.IntFlag):
    """Lines of the host's serial port, first byte of 0x29."""

    RTS = 1
    DTR = 2
    BREAK = 4


class ControlStatus(enum.IntFlag):
    """Second byte of 0x29."""

    TX_OVERFLOW = 1
    LOOPBACK = 2
    SYSTEM_POWERED_ON = 4
    RX_FLUSH_TIMEOUT = 8
    TEST_MODE = 16


_header = ("type" / Int8ul, "status" / Int8ul, Padding(2), "sequence" / Int32ul)
_text8 = Prefixed(Int8ul, GreedyBytes)

START_SESSION = Struct("type" / Int8ul, "version" / Int8ul, Padding(2), "kind" / Bytes(4))
START_SESSION_REPLY = Struct(
    "type" / Int8ul,
    "status" / Int8ul,
    Padding(2),
    "protocol" / Bytes(2),
    "firmware" / Bytes(2),
    "oem_iana" / Int32ul,
    "oem" / _text8,
)
END_SESSION = Struct("type" / Int8ul, Padding(3))
# Requests (status 0) and replies look alike.
AUTHENTICATE = Struct(
    "type" / Int8ul,
    "status" / Int8ul,
    Padding(2),
    "method" / Int8ul,
    "data" / Prefixed(Int32ul, GreedyBytes),
)
START_SOL = Struct(
    *_header,
    "max_tx_buffer" / Int16ul,
    "tx_buffer_timeout_ms" / Int16ul,
    "tx_overflow_timeout_ms" / Int16ul,
    "host_session_rx_timeout_ms" / Int16ul,
    "host_fifo_rx_flush_timeout_ms" / Int16ul,
    "heartbeat_interval_ms" / Int16ul,
    Padding(4),
)
# Every client takes 23 bytes and looks at the status only.
START_SOL_REPLY = Struct(*_header, "body" / Bytes(15))
# 0x22..0x25 and 0x2B: the header and nothing else.
SOL_PLAIN = Struct(*_header)
SOL_CONTROLS_TO_HOST = Struct(*_header, "body" / Bytes(6))
SOL_CONTROLS = Struct(*_header, "control" / Int8ul, "line" / Int8ul)
SOL_DATA = Struct(*_header, "data" / Prefixed(Int16ul, GreedyBytes))

CLEAR_TEXT_LOGIN = Struct("username" / _text8, "password" / _text8, Terminated)
_login_fields = (
    "username" / _text8,
    "realm" / _text8,
    "nonce" / _text8,
    "uri" / _text8,
    "cnonce" / _text8,
    "nc" / _text8,
    "response" / _text8,
)
DIGEST_RFC2069_LOGIN = Struct(*_login_fields, Terminated)
DIGEST_LOGIN = Struct(*_login_fields, "qop" / _text8, Terminated)
_challenge_fields = ("realm" / _text8, "nonce" / _text8)
DIGEST_RFC2069_CHALLENGE = Struct(*_challenge_fields)
DIGEST_CHALLENGE = Struct(*_challenge_fields, "qop" / _text8)

_FIXED: dict[Direction, dict[int, int]] = {
    Direction.TO_DEVICE: {
        MessageType.START_REDIRECTION_SESSION: START_SESSION.sizeof(),
        MessageType.END_REDIRECTION_SESSION: END_SESSION.sizeof(),
        MessageType.START_SOL_REDIRECTION: START_SOL.sizeof(),
        MessageType.END_SOL_REDIRECTION: SOL_PLAIN.sizeof(),
        MessageType.SOL_KEEP_ALIVE_PING: SOL_PLAIN.sizeof(),
        MessageType.SOL_KEEP_ALIVE_PONG: SOL_PLAIN.sizeof(),
        MessageType.SOL_CONTROLS_TO_HOST: SOL_CONTROLS_TO_HOST.sizeof(),
        MessageType.SOL_HEARTBEAT: SOL_PLAIN.sizeof(),
    },
    Direction.FROM_DEVICE: {
        MessageType.START_SOL_REDIRECTION_REPLY: START_SOL_REPLY.sizeof(),
        MessageType.END_SOL_REDIRECTION_REPLY: SOL_PLAIN.sizeof(),
        MessageType.SOL_KEEP_ALIVE_PING: SOL_PLAIN.sizeof(),
        MessageType.SOL_KEEP_ALIVE_PONG: SOL_PLAIN.sizeof(),
        MessageType.SOL_CONTROLS_FROM_HOST: SOL_CONTROLS.sizeof(),
        MessageType.SOL_HEARTBEAT: SOL_PLAIN.sizeof(),
    },
}
# Offset and width of the length of what follows it.
_COUNTED: dict[Direction, dict[int, tuple[int, int]]] = {
    Direction.TO_DEVICE: {
        MessageType.AUTHENTICATE_SESSION: (5, 4),
        MessageType.SOL_DATA_TO_HOST: (8, 2),
    },
    Direction.FROM_DEVICE: {
        MessageType.START_REDIRECTION_SESSION_REPLY: (12, 1),
        MessageType.AUTHENTICATE_SESSION_REPLY: (5, 4),
        MessageType.SOL_DATA_FROM_HOST: (8, 2),
    },
}
_AUTHENTICATION = frozenset(
    {MessageType.AUTHENTICATE_SESSION, MessageType.AUTHENTICATE_SESSION_REPLY}
)
# A refusal may end after these four bytes; clients look at no more of it.
_REFUSAL = 4
_REFUSALS = frozenset(
    {MessageType.START_REDIRECTION_SESSION_REPLY, MessageType.START_SOL_REDIRECTION_REPLY}
)


class RedirectionFormatError(AmtError):
    """Bytes that are no redirection message at this place."""

    code = Code.DEVICE_ANSWER


@dataclass(frozen=True, slots=True)
class SolSettings:
    """The numbers of StartSolRedirection (reference/amt-protocols.md 2.3): bytes and milliseconds.

    The device sends what the serial line said when `max_tx_buffer` bytes are there or after
    `tx_buffer_timeout_ms`, and drops the session when it hears nothing for
    `host_session_rx_timeout_ms`. Our own defaults: echo without delay, and the longest patience
    that sixteen bits and a margin allow, so that a lost link costs no session.
    """

    max_tx_buffer: int = 1000
    tx_buffer_timeout_ms: int = 10
    tx_overflow_timeout_ms: int = 0
    host_session_rx_timeout_ms: int = 65000
    host_fifo_rx_flush_timeout_ms: int = 0
    heartbeat_interval_ms: int = 5000


@dataclass(slots=True)
class DigestLogin:
    """The strings of a digest login; all but user and URI are empty in its first step."""

    username: str
    realm: str = ""
    nonce: str = ""
    uri: str = URI
    cnonce: str = ""
    nc: str = ""
    response: str = field(default="", repr=False)
    qop: str = ""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the device wants a digest login to be made with; RFC 2069's form has no `qop`."""

    realm: str
    nonce: str
    qop: str | None

    @property
    def answerable(self) -> bool:
        """Whether it asks for a quality of protection that we have."""
        return self.qop is None or "auth" in [name.strip() for name in self.qop.split(",")]


def session_kind(first: bytes) -> SessionKind:
    """What a stream carries, by its first eight bytes (StartRedirectionSession)."""
    if len(first) < START_SESSION.sizeof() or first[0] != MessageType.START_REDIRECTION_SESSION:
        return SessionKind.UNKNOWN
    try:
        return SessionKind(bytes(first[4:8]))
    except ValueError:
        return SessionKind.UNKNOWN


def message_size(direction: Direction, data: bytes | bytearray) -> int | None:
    """The size of the message that `data` begins with, or None while it cannot be told.

    RedirectionFormatError on an unknown type and on a login that is larger than any can be.
    """
    if not data:
        return None
    kind = data[0]
    if kind in _REFUSALS and direction is Direction.FROM_DEVICE:
        if len(data) < 2:
            return None
        if data[1] != SessionStatus.OK:
            return _REFUSAL
    size = _FIXED[direction].get(kind)
    if size is not None:
        return size
    rule = _COUNTED[direction].get(kind)
    if rule is None:
        raise RedirectionFormatError(f"message type {kind:#04x} {direction.value} is unknown")
    offset, width = rule
    head = offset + width
    if len(data) < head:
        return None
    count = int.from_bytes(data[offset:head], "little")
    if kind in _AUTHENTICATION and count > MAX_AUTHENTICATION:
        raise RedirectionFormatError(f"login of {count} bytes, maximum {MAX_AUTHENTICATION}")
    return head + count


class MessageReader:
    """Cuts one direction of a session into whole messages, whatever the segmentation.

    Holds at most one message (65,545 bytes) and what came with it.
    """

    def __init__(self, direction: Direction) -> None:
        self._direction = direction
        self._buffer = bytearray()

    def receive(self, data: bytes) -> None:
        self._buffer += data

    def next_message(self) -> bytes | None:
        """One whole message or None; RedirectionFormatError when there can be none."""
        size = message_size(self._direction, self._buffer)
        if size is None or len(self._buffer) < size:
            return None
        message = bytes(self._buffer[:size])
        del self._buffer[:size]
        return message

    def rest(self) -> bytes:
        """What came and was not taken as a message; for who reads no more of them."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


def parse(layout: Any, data: bytes) -> Any:
    """Parse with one of this module's layouts; its one error is RedirectionFormatError."""
    try:
        return layout.parse(data)
    except ConstructError as exc:
        raise RedirectionFormatError(f"{len(data)} bytes do not fit their message type") from exc


def parse_sol_settings(message: bytes) -> SolSettings:
    """The settings in a StartSolRedirection message."""
    parsed = parse(START_SOL, message)
    return SolSettings(*(parsed[name] for name in SolSettings.__slots__))


def parse_digest_login(method: LoginMethod, data: bytes) -> DigestLogin:
    """Both steps; undecodable text is replaced, so that it matches no name."""
    parsed = parse(DIGEST_LOGIN if method is LoginMethod.DIGEST else DIGEST_RFC2069_LOGIN, data)
    return DigestLogin(
        **{
            name: value.decode(errors="replace")
            for name, value in parsed.items()
            if name in DigestLogin.__slots__
        }
    )


def parse_challenge(method: LoginMethod, data: bytes) -> Challenge:
    """The challenge in an AuthenticateSessionReply of status REFUSED."""
    with_qop = method is LoginMethod.DIGEST
    parsed = parse(DIGEST_CHALLENGE if with_qop else DIGEST_RFC2069_CHALLENGE, data)
    qop = _decoded(parsed.qop) if with_qop else None
    return Challenge(_decoded(parsed.realm), _decoded(parsed.nonce), qop)


def build_digest_login(method: LoginMethod, login: DigestLogin) -> bytes:
    layout = DIGEST_LOGIN if method is LoginMethod.DIGEST else DIGEST_RFC2069_LOGIN
    fields = {name: getattr(login, name).encode() for name in DigestLogin.__slots__}
    return bytes(layout.build(fields))


def build_authenticate(method: LoginMethod, data: bytes = b"") -> bytes:
    """An AuthenticateSession request."""
    return bytes(
        AUTHENTICATE.build(
            {
                "type": MessageType.AUTHENTICATE_SESSION,
                "status": 0,
                "method": method,
                "data": data,
            }
        )
    )


def build_start_sol(settings: SolSettings, sequence: int) -> bytes:
    values = {name: getattr(settings, name) for name in SolSettings.__slots__}
    head = {"type": MessageType.START_SOL_REDIRECTION, "status": 0, "sequence": sequence}
    return bytes(START_SOL.build(head | values))


def build_sol_plain(kind: MessageType, sequence: int) -> bytes:
    """0x22..0x25 and 0x2B."""
    return bytes(SOL_PLAIN.build({"type": kind, "status": 0, "sequence": sequence}))


def build_sol_data(kind: MessageType, sequence: int, data: bytes) -> bytes:
    """0x28 and 0x2A; `data` up to 65,535 bytes."""
    head = {"type": kind, "status": 0, "sequence": sequence}
    return bytes(SOL_DATA.build(head | {"data": data}))


def digest_response(method: LoginMethod, secret: str, login: DigestLogin) -> str:
    """The response of `login` under HA1 `secret` (reference/amt-protocols.md 2.2)."""
    second = digest.ha2(HTTP_METHOD, login.uri)
    if method is LoginMethod.DIGEST_RFC2069:
        return digest.response(secret, login.nonce, second)
    return digest.response(
        secret, login.nonce, second, nc=login.nc, cnonce=login.cnonce, qop=login.qop
    )


def build_proof(
    method: LoginMethod, challenge: Challenge, username: str, secret: str, cnonce: str
) -> bytes:
    """The AuthenticateSession that answers `challenge` with HA1 `secret`."""
    login = DigestLogin(
        username,
        challenge.realm,
        challenge.nonce,
        cnonce=cnonce,
        nc=NONCE_COUNT,
        qop="" if challenge.qop is None else "auth",
    )
    login.response = digest_response(method, secret, login)
    return build_authenticate(method, build_digest_login(method, login))


class MessageTracker:
    """Where one direction of a passing session stands; the bytes themselves are not kept.

    For those who must put a message of their own between two of somebody else's. After an unknown
    type, a refusal (its size is not certain) or a session that is not SOL it is `lost` for good.
    """

    def __init__(self, direction: Direction) -> None:
        self.lost = False
        self.heartbeats = 0
        self.settings: SolSettings | None = None
        self._direction = direction
        # The head of a message whose size is not known yet; a StartSolRedirection is kept whole.
        self._head = bytearray()
        # Bytes of the present message that are still to pass.
        self._left = 0
        self._type = 0

    @property
    def at_boundary(self) -> bool:
        """No message is half through. Never true once `lost`."""
        return not self.lost and not self._head and not self._left

    def receive_data(self, data: bytes) -> None:
        """Follow `data`, a chunk of any size, in order."""
        position = 0
        while position < len(data) and not self.lost:
            if self._left:
                step = min(self._left, len(data) - position)
                position += step
                self._left -= step
                if not self._left:
                    self._complete()
            else:
                self._head.append(data[position])
                position += 1
                self._follow_head()

    def _follow_head(self) -> None:
        head = self._head
        try:
            size = message_size(self._direction, head)
        except RedirectionFormatError:
            self._give_up()
            return
        if size is None:
            return
        self._type = head[0]
        if self._type in _REFUSALS and size == _REFUSAL:
            self._give_up()
        elif self._type in _KEPT and len(head) < size:
            return
        elif self._type == MessageType.START_REDIRECTION_SESSION and (
            session_kind(bytes(head)) is not SessionKind.SOL
        ):
            self._give_up()
        else:
            if self._type == MessageType.START_SOL_REDIRECTION:
                self.settings = parse_sol_settings(bytes(head))
            self._left = size - len(head)
            if not self._left:
                self._complete()
            head.clear()

    def _complete(self) -> None:
        self.heartbeats += self._type == MessageType.SOL_HEARTBEAT

    def _give_up(self) -> None:
        self.lost = True
        self._head.clear()
        self._left = 0


# Messages the tracker reads, not only measures: both are short.
_KEPT = frozenset({MessageType.START_REDIRECTION_SESSION, MessageType.START_SOL_REDIRECTION})


def _decoded(text: bytes) -> str:
    # Strict, because what we say must come back byte for byte: a replacement would change it.
    try:
        return text.decode()
    except UnicodeDecodeError as exc:
        raise RedirectionFormatError(f"challenge text {text[:20]!r} is not UTF-8") from exc
