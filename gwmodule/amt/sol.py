"""The client of a Serial-over-LAN session: login, data both ways, keepalives, the end. No I/O.

Its messages and their order: `amt.redirection`. What moves the bytes and the time: `msp.sol`.
"""

from __future__ import annotations

import enum
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from gwmodule.amt import digest
from gwmodule.amt.redirection import (
    AUTHENTICATE,
    CLEAR_TEXT_LOGIN,
    END_SESSION,
    SOL_CONTROLS,
    SOL_DATA,
    SOL_PLAIN,
    START_SESSION,
    Control,
    ControlStatus,
    DigestLogin,
    Direction,
    LoginMethod,
    LoginStatus,
    MessageReader,
    MessageType,
    RedirectionFormatError,
    SessionKind,
    SessionStatus,
    SolSettings,
    build_authenticate,
    build_digest_login,
    build_proof,
    build_sol_data,
    build_sol_plain,
    build_start_sol,
    parse,
    parse_challenge,
)
from gwmodule.errors import LocalProtocolError

# What Intel's header calls RECEIVE_BUFFER_SIZE: a paste is cut into pieces the device can take.
MAX_DATA_TO_HOST = 256


@dataclass(slots=True)
class SolOpened:
    """The serial line is connected; `method` says how we logged in."""

    method: LoginMethod


@dataclass(slots=True)
class SolData:
    """What the host's serial port said."""

    data: bytes


@dataclass(slots=True)
class SolControls:
    """The host's control lines changed, or the device dropped bytes (TX_OVERFLOW)."""

    control: Control
    status: ControlStatus


@dataclass(slots=True)
class SolClosed:
    """The session is over; nothing follows."""

    reason: str


@dataclass(slots=True)
class SolRefused:
    """The device did not let us in; nothing follows. `status` is that of its last message."""

    status: int
    reason: str


SolEvent: TypeAlias = SolOpened | SolData | SolControls | SolClosed | SolRefused


def fresh_cnonce() -> str:
    """32 hex digits, the most that firmware is known to take."""
    return secrets.token_hex(16)


class _State(enum.Enum):
    STARTING = enum.auto()
    QUERYING = enum.auto()
    CHALLENGED = enum.auto()
    PROVING = enum.auto()
    OPENING = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class SolClient:
    """One Serial-over-LAN session, from StartRedirectionSession to its end.

    Either `password`, or `ha1` with the `realm` it was made for. Clear text is used only if
    `allow_clear_text` and the device offers no digest. The transport reads `data_to_send` after
    every call and closes when SolClosed or SolRefused has come and nothing is left to send.
    `receive_data(b"")` says that the device closed. Nothing that a device sends raises.

    `login_timeout`, `silence_timeout` (0: the device may be silent for ever) and `now` are seconds.
    """

    # How long we wait for EndSolRedirectionReply before we leave without it.
    CLOSE_TIMEOUT = 2.0
    # Our keepalives per host_session_rx_timeout: three may be late before the device gives up.
    KEEPALIVES = 4
    # To a device that never gives up (timeout 0), for the sake of the NATs on the way.
    IDLE_KEEPALIVE = 20.0

    def __init__(
        self,
        username: str,
        *,
        now: float,
        password: str = "",
        ha1: str = "",
        realm: str = "",
        settings: SolSettings | None = None,
        allow_clear_text: bool = False,
        login_timeout: float = 20.0,
        silence_timeout: float = 20.0,
        cnonce: Callable[[], str] = fresh_cnonce,
    ) -> None:
        if bool(password) == bool(ha1) or (ha1 and not realm):
            raise LocalProtocolError("a SOL login takes a password, or HA1 and its realm")
        if any(len(text.encode()) > 255 for text in (username, password)):
            raise LocalProtocolError("user name and password hold at most 255 bytes each")
        self._username = username
        self._password = password
        self._ha1 = ha1
        self._realm = realm
        self._settings = settings or SolSettings()
        self._allow_clear_text = allow_clear_text
        self._silence = silence_timeout
        self._cnonce = cnonce
        self._state = _State.STARTING
        self._method = LoginMethod.QUERY
        self._reader = MessageReader(Direction.FROM_DEVICE)
        self._events: deque[SolEvent] = deque()
        self._outgoing = bytearray()
        self._sequence = 0
        # Whether we said anything since the last keepalive deadline.
        self._spoke = False
        self._keepalive_at: float | None = None
        # The moment at which we stop waiting for the device.
        self._patience_until: float | None = now + login_timeout
        self._now = now
        self._pinged_at: float | None = None
        # Seconds to the device and back, by the last ping that it answered.
        self.round_trip: float | None = None
        self._outgoing += START_SESSION.build(
            {
                "type": MessageType.START_REDIRECTION_SESSION,
                "version": 0,
                "kind": SessionKind.SOL.value,
            }
        )

    @property
    def pending(self) -> int:
        """Bytes that `data_to_send` still holds."""
        return len(self._outgoing)

    def receive_data(self, data: bytes, now: float) -> None:
        if self._closed:
            return
        self._now = now
        if not data:
            self._close("the device closed the connection")
            return
        if self._state is _State.OPEN and self._silence:
            self._patience_until = now + self._silence
        self._reader.receive(data)
        try:
            # A message may end the session; what stands behind it is not looked at.
            while not self._closed and (message := self._reader.next_message()):
                self._on_message(message)
        except RedirectionFormatError as exc:
            self._outgoing.clear()
            self._close(f"the device does not speak the redirection protocol: {exc}")

    def data_to_send(self, budget: int) -> bytes:
        data = bytes(self._outgoing[:budget])
        del self._outgoing[:budget]
        return data

    def next_event(self) -> SolEvent | None:
        return self._events.popleft() if self._events else None

    def next_timeout(self) -> float | None:
        deadlines = [d for d in (self._keepalive_at, self._patience_until) if d is not None]
        return min(deadlines, default=None)

    def handle_timeout(self, now: float) -> None:
        self._now = now
        if self._patience_until is not None and now >= self._patience_until:
            self._close("closed by us" if self._state is _State.CLOSING else "the device is silent")
        elif self._keepalive_at is not None and now >= self._keepalive_at:
            if not self._spoke:
                self._send_plain(MessageType.SOL_HEARTBEAT)
            self._spoke = False
            self._keepalive_at = now + self._keepalive_interval

    def send(self, data: bytes) -> None:
        """Type `data` on the host's serial line; ignored once the session ends.

        LocalProtocolError before SolOpened.
        """
        if self._state in (_State.CLOSING, _State.CLOSED):
            return
        if self._state is not _State.OPEN:
            raise LocalProtocolError("data before SolOpened")
        for start in range(0, len(data), MAX_DATA_TO_HOST):
            piece = data[start : start + MAX_DATA_TO_HOST]
            self._outgoing += build_sol_data(
                MessageType.SOL_DATA_TO_HOST, self._next_sequence(), piece
            )
        self._spoke = True

    def ping(self, now: float) -> None:
        """Ask for a pong, which sets `round_trip`; one that is on its way is waited for."""
        if self._state is _State.OPEN and self._pinged_at is None:
            self._pinged_at = now
            self._send_plain(MessageType.SOL_KEEP_ALIVE_PING)

    def close(self) -> None:
        """End the session in order; SolClosed follows within CLOSE_TIMEOUT."""
        if self._state is _State.OPEN:
            self._send_plain(MessageType.END_SOL_REDIRECTION)
            self._state = _State.CLOSING
            self._keepalive_at = None
            self._patience_until = self._now + self.CLOSE_TIMEOUT
        elif self._state is not _State.CLOSING:
            self._close("closed by us")

    @property
    def _closed(self) -> bool:
        return self._state is _State.CLOSED

    @property
    def _keepalive_interval(self) -> float:
        patience = self._settings.host_session_rx_timeout_ms / 1000
        return patience / self.KEEPALIVES or self.IDLE_KEEPALIVE

    def _on_message(self, message: bytes) -> None:
        handler = self._HANDLERS[self._state].get(message[0])
        if handler is None:
            expected = self._state.name.lower()
            raise RedirectionFormatError(f"message type {message[0]:#04x} while {expected}")
        handler(self, message)

    def _on_session(self, message: bytes) -> None:
        if message[1] != SessionStatus.OK:
            self._refuse(message[1], _refusal_text(message[1]))
            return
        self._outgoing += build_authenticate(LoginMethod.QUERY)
        self._state = _State.QUERYING

    def _on_methods(self, message: bytes) -> None:
        reply = parse(AUTHENTICATE, message)
        offered = reply.data if reply.status == LoginStatus.OK else b""
        for method in (LoginMethod.DIGEST, LoginMethod.DIGEST_RFC2069):
            if method in offered:
                self._method = method
                first = DigestLogin(self._username)
                self._outgoing += build_authenticate(method, build_digest_login(method, first))
                self._state = _State.CHALLENGED
                return
        # Firmware that knows no query knows clear text.
        clear_text = LoginMethod.CLEAR_TEXT in offered or not offered
        if not (clear_text and self._allow_clear_text and self._password):
            names = ", ".join(str(method) for method in offered[:8]) or "none"
            self._refuse(reply.status, f"no login method we may use (offered: {names})")
            return
        self._method = LoginMethod.CLEAR_TEXT
        login = {"username": self._username.encode(), "password": self._password.encode()}
        self._outgoing += build_authenticate(self._method, CLEAR_TEXT_LOGIN.build(login))
        self._state = _State.PROVING

    def _on_challenge(self, message: bytes) -> None:
        reply = parse(AUTHENTICATE, message)
        if reply.status != LoginStatus.REFUSED or reply.method != self._method:
            self._refuse(reply.status, f"no digest challenge but status {reply.status}")
            return
        challenge = parse_challenge(self._method, reply.data)
        if not challenge.answerable:
            text = f"quality of protection {str(challenge.qop)[:40]!r}, expected 'auth'"
            self._refuse(reply.status, text)
            return
        if self._realm and challenge.realm != self._realm:
            # Another realm is another device, or a new provisioning: nothing for this secret.
            text = f"realm {challenge.realm[:80]!r}, expected {self._realm!r}"
            self._refuse(reply.status, text)
            return
        secret = self._ha1 or digest.ha1(self._username, challenge.realm, self._password)
        self._outgoing += build_proof(
            self._method, challenge, self._username, secret, self._cnonce()
        )
        self._state = _State.PROVING

    def _on_verdict(self, message: bytes) -> None:
        reply = parse(AUTHENTICATE, message)
        if reply.status != LoginStatus.OK:
            # Even if it looks like another challenge: an answer to it would be the same secret
            # again, and the device counts failures.
            self._refuse(reply.status, "wrong user name or password")
            return
        self._outgoing += build_start_sol(self._settings, self._next_sequence())
        self._state = _State.OPENING

    def _on_opened(self, message: bytes) -> None:
        if message[1] != SessionStatus.OK:
            self._refuse(message[1], _refusal_text(message[1]))
            return
        self._state = _State.OPEN
        self._events.append(SolOpened(self._method))
        self._patience_until = self._now + self._silence if self._silence else None
        self._keepalive_at = self._now + self._keepalive_interval

    def _on_data(self, message: bytes) -> None:
        if data := parse(SOL_DATA, message).data:
            self._events.append(SolData(data))

    def _on_controls(self, message: bytes) -> None:
        parsed = parse(SOL_CONTROLS, message)
        self._events.append(SolControls(Control(parsed.control), ControlStatus(parsed.line)))

    def _on_heartbeat(self, message: bytes) -> None:
        self._send_plain(MessageType.SOL_HEARTBEAT)

    def _on_ping(self, message: bytes) -> None:
        sequence = parse(SOL_PLAIN, message).sequence
        self._outgoing += build_sol_plain(MessageType.SOL_KEEP_ALIVE_PONG, sequence)
        self._spoke = True

    def _on_pong(self, message: bytes) -> None:
        if self._pinged_at is not None:
            self.round_trip = self._now - self._pinged_at
            self._pinged_at = None

    def _on_nothing(self, message: bytes) -> None:
        """That it came is all it says."""

    def _on_ended(self, message: bytes) -> None:
        self._close("closed by us" if self._state is _State.CLOSING else "the device ended SOL")

    def _next_sequence(self) -> int:
        sequence = self._sequence
        self._sequence = (sequence + 1) & 0xFFFFFFFF
        return sequence

    def _send_plain(self, kind: MessageType) -> None:
        self._outgoing += build_sol_plain(kind, self._next_sequence())
        self._spoke = True

    def _refuse(self, status: int, reason: str) -> None:
        self._end(SolRefused(status, reason))

    def _close(self, reason: str) -> None:
        if not self._closed:
            self._end(SolClosed(reason))

    def _end(self, event: SolEvent) -> None:
        self._outgoing += END_SESSION.build({"type": MessageType.END_REDIRECTION_SESSION})
        self._state = _State.CLOSED
        self._keepalive_at = self._patience_until = None
        self._password = self._ha1 = ""
        self._events.append(event)

    _HANDLERS: ClassVar[dict[_State, dict[int, Callable[[SolClient, bytes], None]]]] = {
        _State.STARTING: {MessageType.START_REDIRECTION_SESSION_REPLY: _on_session},
        _State.QUERYING: {MessageType.AUTHENTICATE_SESSION_REPLY: _on_methods},
        _State.CHALLENGED: {MessageType.AUTHENTICATE_SESSION_REPLY: _on_challenge},
        _State.PROVING: {MessageType.AUTHENTICATE_SESSION_REPLY: _on_verdict},
        _State.OPENING: {MessageType.START_SOL_REDIRECTION_REPLY: _on_opened},
        _State.OPEN: {
            MessageType.SOL_DATA_FROM_HOST: _on_data,
            MessageType.SOL_CONTROLS_FROM_HOST: _on_controls,
            MessageType.SOL_HEARTBEAT: _on_heartbeat,
            MessageType.SOL_KEEP_ALIVE_PING: _on_ping,
            MessageType.SOL_KEEP_ALIVE_PONG: _on_pong,
            MessageType.END_SOL_REDIRECTION_REPLY: _on_ended,
        },
        _State.CLOSING: {
            MessageType.SOL_DATA_FROM_HOST: _on_data,
            MessageType.SOL_CONTROLS_FROM_HOST: _on_controls,
            MessageType.SOL_HEARTBEAT: _on_nothing,
            MessageType.SOL_KEEP_ALIVE_PING: _on_nothing,
            MessageType.SOL_KEEP_ALIVE_PONG: _on_nothing,
            MessageType.END_SOL_REDIRECTION_REPLY: _on_ended,
        },
    }


def _refusal_text(status: int) -> str:
    match status:
        case SessionStatus.UNKNOWN_TYPE:
            return "the device does not know SOL sessions"
        case SessionStatus.BUSY:
            return "busy: another SOL session is open"
        case SessionStatus.UNSUPPORTED:
            return "the device does not offer SOL (switched off, or not provisioned)"
        case _:
            return f"the device refused the session with status {status}"
