"""The device's end of a redirection session, without I/O: login, Serial-over-LAN and its timers.

    STARTING ---> LOGGING_IN ---> LOGGED_IN ---> RUNNING (SOL) <---> ENDED ---> CLOSED

Source: reference/amt-protocols.md 2.1 to 2.3, and 2.6 for the pause behind some replies.
"""

from __future__ import annotations

import enum
import hmac
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from gwmodule.amt import digest
from gwmodule.amt.redirection import (
    AUTHENTICATE,
    CLEAR_TEXT_LOGIN,
    DIGEST_CHALLENGE,
    DIGEST_RFC2069_CHALLENGE,
    INTEL_IANA,
    SOL_CONTROLS,
    SOL_DATA,
    SOL_PLAIN,
    START_SESSION_REPLY,
    START_SOL_REPLY,
    Control,
    ControlStatus,
    Direction,
    LoginMethod,
    LoginStatus,
    MessageReader,
    MessageType,
    RedirectionFormatError,
    SessionKind,
    SessionStatus,
    SolSettings,
    build_sol_data,
    build_sol_plain,
    digest_response,
    parse,
    parse_digest_login,
    parse_sol_settings,
    session_kind,
)
from gwmodule.sim.machine import USERNAME, Machine, PowerState, Provisioning

# amtterm drops what it reads together with the bytes before it behind one of these messages
# (reference/amt-protocols.md 2.6), so they travel alone. Seconds; an answer ends the pause early.
STAND_ALONE = frozenset(
    {
        MessageType.AUTHENTICATE_SESSION_REPLY,
        MessageType.START_SOL_REDIRECTION_REPLY,
        MessageType.END_SOL_REDIRECTION_REPLY,
        MessageType.SOL_CONTROLS_FROM_HOST,
    }
)
STAND_ALONE_PAUSE = 0.05
LOGIN_TIMEOUT = 60.0
MAX_FAILED_LOGINS = 3
# What may wait here for a console that does not read; more waits in the host's own buffer.
MAX_BACKLOG = 16 * 1024


class Login(enum.Enum):
    """Which methods the device offers: a switch in its firmware setup."""

    DIGEST = "digest"
    PLAIN = "plain"
    BOTH = "both"


class _State(enum.Enum):
    STARTING = enum.auto()
    LOGGING_IN = enum.auto()
    LOGGED_IN = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()
    CLOSED = enum.auto()


class RedirectionServer:
    """One connection to a machine's redirection port.

    The five verbs, without events: what a console asks happens to `machine` at once, and what the
    machine's serial line says is fetched by `pump(now)`. `closed` tells the transport to close
    when nothing is left to send; `closed_because` says why. `receive_data(b"")`: the console left.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        now: float,
        login: Login = Login.DIGEST,
        nonce: Callable[[], str],
    ) -> None:
        self._machine = machine
        self._login = login
        self._make_nonce = nonce
        self._nonce = ""
        self._state = _State.STARTING
        self._kind = SessionKind.UNKNOWN
        self._reader = MessageReader(Direction.TO_DEVICE)
        self._failed_logins = 0
        self._settings = SolSettings()
        self._outgoing = bytearray()
        self._waiting: deque[bytes] = deque()
        self._alone_until = now
        self._serial = bytearray()
        self._serial_since = now
        self._full_since: float | None = None
        self._overflow = False
        self._dropped_before = machine.serial_dropped
        self._powered: bool | None = None
        self._sequence = 0
        self._heard = now
        self._heartbeat_at: float | None = None
        self.dropped = 0
        self.closed_because = ""

    @property
    def closed(self) -> bool:
        return self._state is _State.CLOSED

    @property
    def pending(self) -> int:
        """Bytes that wait for the transport, those behind a pause included."""
        return len(self._outgoing) + sum(map(len, self._waiting))

    def receive_data(self, data: bytes, now: float) -> None:
        if self.closed:
            return
        if not data:
            self._close("the console closed")
            return
        self._heard = now
        self._machine.handle_timeout(now)
        self._reader.receive(data)
        try:
            while not self.closed and (message := self._reader.next_message()):
                self._on_message(message, now)
        except RedirectionFormatError as exc:
            self._close(str(exc))
        self.pump(now)

    def data_to_send(self, budget: int) -> bytes:
        data = bytes(self._outgoing[:budget])
        del self._outgoing[:budget]
        return data

    def pump(self, now: float) -> None:
        """Take what the serial line said and send what is due."""
        if self._state is _State.RUNNING and SessionKind.SOL not in self._machine.sessions:
            self._close("the administrator ended the session")
        if self._state is _State.RUNNING:
            self._take_controls(now)
            self._take_serial(now)
        self._release(now)

    def next_timeout(self) -> float | None:
        if self.closed:
            return self._alone_until if self._waiting else None
        deadlines = [self._heard + self._patience] if self._patience else []
        if self._waiting:
            deadlines.append(self._alone_until)
        if self._state is _State.RUNNING:
            if self._heartbeat_at is not None:
                deadlines.append(self._heartbeat_at)
            if self._serial and self._settings.tx_buffer_timeout_ms:
                deadlines.append(self._serial_since + self._settings.tx_buffer_timeout_ms / 1000)
            if self._full_since is not None and self._settings.tx_overflow_timeout_ms:
                deadlines.append(self._full_since + self._settings.tx_overflow_timeout_ms / 1000)
        return min(deadlines, default=None)

    def handle_timeout(self, now: float) -> None:
        if not self.closed and self._patience and now >= self._heard + self._patience:
            self._close(f"heard nothing for {self._patience:g} s")
        elif self._heartbeat_at is not None and now >= self._heartbeat_at:
            self._heartbeat_at = now + self._settings.heartbeat_interval_ms / 1000
            self._send_plain(MessageType.SOL_HEARTBEAT, now)
        self.pump(now)

    def abort(self, reason: str) -> None:
        """The device ends the session from its side."""
        self._close(reason)

    @property
    def _patience(self) -> float:
        """Seconds without a byte from the console after which we close; 0 is for ever."""
        if self._state is _State.RUNNING:
            return self._settings.host_session_rx_timeout_ms / 1000
        return LOGIN_TIMEOUT

    @property
    def _methods(self) -> tuple[int, ...]:
        plain = () if self._login is Login.DIGEST else (LoginMethod.CLEAR_TEXT,)
        digests = () if self._login is Login.PLAIN else self._machine.profile.digest_methods
        return (*plain, *digests)

    def _on_message(self, message: bytes, now: float) -> None:
        kind = message[0]
        if kind == MessageType.END_REDIRECTION_SESSION:
            self._close("the console ended the session")
            return
        handler = self._HANDLERS[self._state].get(kind)
        if handler is None:
            state = self._state.name.lower().replace("_", " ")
            raise RedirectionFormatError(f"message type {kind:#04x} while {state}")
        if kind in (MessageType.AUTHENTICATE_SESSION, MessageType.START_SOL_REDIRECTION):
            # The console has read our reply, or it would not ask the next thing.
            self._alone_until = now
        handler(self, message, now)

    def _on_start(self, message: bytes, now: float) -> None:
        self._kind = session_kind(message)
        status = self._admission(self._kind)
        major, minor, *_ = (int(part) for part in self._machine.profile.version.split("."))
        # Thirteen bytes also for a refusal: amtterm waits for all of them before it looks.
        reply = {
            "type": MessageType.START_REDIRECTION_SESSION_REPLY,
            "status": status,
            "protocol": b"\x01\x00",
            "firmware": bytes([major, minor]),
            "oem_iana": INTEL_IANA,
            "oem": b"",
        }
        self._send(START_SESSION_REPLY.build(reply), now)
        if status is SessionStatus.OK:
            self._state = _State.LOGGING_IN
        else:
            self._close(f"refused with status {status.name}")

    def _admission(self, kind: SessionKind) -> SessionStatus:
        machine = self._machine
        if kind is SessionKind.UNKNOWN:
            return SessionStatus.UNKNOWN_TYPE
        # IDE-R and KVM can be enabled, but this device has neither.
        offered = kind is SessionKind.SOL and kind in machine.remote.enabled
        if not offered or machine.provisioning is not Provisioning.MANAGED:
            return SessionStatus.UNSUPPORTED
        if machine.consent.wants(kind):
            return SessionStatus.ERROR
        return SessionStatus.BUSY if kind in machine.sessions else SessionStatus.OK

    def _on_login(self, message: bytes, now: float) -> None:
        request = parse(AUTHENTICATE, message)
        if request.method == LoginMethod.QUERY:
            self._reply_login(LoginStatus.OK, LoginMethod.QUERY, bytes(self._methods), now)
        elif request.method not in self._methods:
            self._reply_login(LoginStatus.UNSUPPORTED, request.method, b"", now)
            self._count_failure()
        elif request.method == LoginMethod.CLEAR_TEXT:
            self._judge(request.method, self._knows_password(request.data), now)
        else:
            self._on_digest(LoginMethod(request.method), request.data, now)

    def _on_digest(self, method: LoginMethod, data: bytes, now: float) -> None:
        login = parse_digest_login(method, data)
        if not login.response and not login.nonce:
            self._nonce = self._make_nonce()
            challenge = {
                "realm": self._machine.realm.encode(),
                "nonce": self._nonce.encode(),
                "qop": b"auth",
            }
            with_qop = method is LoginMethod.DIGEST
            layout = DIGEST_CHALLENGE if with_qop else DIGEST_RFC2069_CHALLENGE
            self._reply_login(LoginStatus.REFUSED, method, layout.build(challenge), now)
            return
        secret = digest.ha1(USERNAME, self._machine.realm, self._machine.password)
        # All 32 digits are compared: firmware that compared as many as came let the empty
        # response in (CVE-2017-5689).
        proved = hmac.compare_digest(
            login.response.encode(), digest_response(method, secret, login).encode()
        )
        fresh = bool(self._nonce) and login.nonce == self._nonce
        known = login.username == USERNAME and login.realm == self._machine.realm
        self._nonce = ""
        self._judge(method, proved and fresh and known, now)

    def _knows_password(self, data: bytes) -> bool:
        login = parse(CLEAR_TEXT_LOGIN, data)
        return login.username == USERNAME.encode() and hmac.compare_digest(
            login.password, self._machine.password.encode()
        )

    def _judge(self, method: int, accepted: bool, now: float) -> None:
        status = LoginStatus.OK if accepted else LoginStatus.REFUSED
        self._machine.login_judged(proved=accepted)
        self._reply_login(status, method, b"", now)
        if accepted:
            self._state = _State.LOGGED_IN
        else:
            self._count_failure()

    def _count_failure(self) -> None:
        self._failed_logins += 1
        if self._failed_logins == MAX_FAILED_LOGINS:
            self._close(f"{MAX_FAILED_LOGINS} failed logins")

    def _reply_login(self, status: LoginStatus, method: int, data: bytes, now: float) -> None:
        reply = {
            "type": MessageType.AUTHENTICATE_SESSION_REPLY,
            "status": status,
            "method": method,
            "data": data,
        }
        self._send(AUTHENTICATE.build(reply), now)

    def _on_start_sol(self, message: bytes, now: float) -> None:
        self._settings = parse_sol_settings(message)
        granted = self._machine.open_session(SessionKind.SOL)
        reply = {
            "type": MessageType.START_SOL_REDIRECTION_REPLY,
            "status": SessionStatus.OK if granted else SessionStatus.BUSY,
            "sequence": 0,
            "body": bytes(15),
        }
        self._send(START_SOL_REPLY.build(reply), now)
        if not granted:
            self._close("another SOL session is open")
            return
        self._state = _State.RUNNING
        if self._settings.heartbeat_interval_ms:
            self._heartbeat_at = now + self._settings.heartbeat_interval_ms / 1000

    def _on_data(self, message: bytes, now: float) -> None:
        self._machine.receive_data(parse(SOL_DATA, message).data, now)

    def _on_ping(self, message: bytes, now: float) -> None:
        sequence = parse(SOL_PLAIN, message).sequence
        self._send(build_sol_plain(MessageType.SOL_KEEP_ALIVE_PONG, sequence), now)

    def _on_nothing(self, message: bytes, now: float) -> None:
        """That it came is all that matters, and `receive_data` has noted it."""

    def _on_end_sol(self, message: bytes, now: float) -> None:
        self._flush_serial(now)
        self._machine.close_session(SessionKind.SOL)
        self._heartbeat_at = None
        self._state = _State.ENDED
        self._send_plain(MessageType.END_SOL_REDIRECTION_REPLY, now)

    def _take_controls(self, now: float) -> None:
        powered = self._machine.power is PowerState.ON
        room = self._overflow and self.pending < MAX_BACKLOG // 2
        if powered == self._powered and not room:
            return
        self._powered = powered
        line = ControlStatus(0)
        if powered:
            line |= ControlStatus.SYSTEM_POWERED_ON
        if room:
            line |= ControlStatus.TX_OVERFLOW
            self._overflow = False
        message = {
            "type": MessageType.SOL_CONTROLS_FROM_HOST,
            "status": 0,
            "sequence": self._next_sequence(),
            "control": Control.DTR if powered else Control(0),
            "line": line,
        }
        self._send(SOL_CONTROLS.build(message), now)

    def _take_serial(self, now: float) -> None:
        room = max(0, MAX_BACKLOG - self.pending - len(self._serial))
        if data := self._machine.data_to_send(room):
            if not self._serial:
                self._serial_since = now
            self._serial += data
        self._overflow_when_full(len(data) == room, now)
        full = max(1, self._settings.max_tx_buffer)
        while len(self._serial) >= full:
            self._send_serial(full, now)
        timeout = self._settings.tx_buffer_timeout_ms / 1000
        if self._serial and timeout and now >= self._serial_since + timeout:
            self._flush_serial(now)

    def _overflow_when_full(self, full: bool, now: float) -> None:
        """TxOverflowTimeout: how long a full buffer may wait before its bytes are dropped."""
        if not full:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
        timeout = self._settings.tx_overflow_timeout_ms / 1000
        if self._full_since is not None and timeout and now >= self._full_since + timeout:
            while lost := self._machine.data_to_send(MAX_BACKLOG):
                self.dropped += len(lost)
                self._overflow = True
            self._full_since = now
        if self._machine.serial_dropped != self._dropped_before:
            self.dropped += self._machine.serial_dropped - self._dropped_before
            self._dropped_before = self._machine.serial_dropped
            self._overflow = True

    def _flush_serial(self, now: float) -> None:
        while self._serial:
            self._send_serial(max(1, self._settings.max_tx_buffer), now)

    def _send_serial(self, size: int, now: float) -> None:
        data = bytes(self._serial[:size])
        del self._serial[:size]
        self._serial_since = now
        self._send(build_sol_data(MessageType.SOL_DATA_FROM_HOST, self._next_sequence(), data), now)

    def _send_plain(self, kind: MessageType, now: float) -> None:
        self._send(build_sol_plain(kind, self._next_sequence()), now)

    def _next_sequence(self) -> int:
        sequence = self._sequence
        self._sequence = (sequence + 1) & 0xFFFFFFFF
        return sequence

    def _send(self, message: bytes, now: float) -> None:
        self._waiting.append(message)
        self._release(now)

    def _release(self, now: float) -> None:
        while self._waiting and now >= self._alone_until:
            message = self._waiting.popleft()
            self._outgoing += message
            if message[0] in STAND_ALONE:
                self._alone_until = now + STAND_ALONE_PAUSE

    def _close(self, reason: str) -> None:
        if self.closed:
            return
        if self._state is _State.RUNNING:
            self._machine.close_session(SessionKind.SOL)
        self._state = _State.CLOSED
        self._heartbeat_at = None
        self.closed_because = reason

    _HANDLERS: ClassVar[
        dict[_State, dict[int, Callable[[RedirectionServer, bytes, float], None]]]
    ] = {
        _State.STARTING: {MessageType.START_REDIRECTION_SESSION: _on_start},
        _State.LOGGING_IN: {MessageType.AUTHENTICATE_SESSION: _on_login},
        _State.LOGGED_IN: {MessageType.START_SOL_REDIRECTION: _on_start_sol},
        _State.RUNNING: {
            MessageType.SOL_DATA_TO_HOST: _on_data,
            MessageType.SOL_HEARTBEAT: _on_nothing,
            MessageType.SOL_KEEP_ALIVE_PING: _on_ping,
            MessageType.SOL_KEEP_ALIVE_PONG: _on_nothing,
            MessageType.SOL_CONTROLS_TO_HOST: _on_nothing,
            MessageType.END_SOL_REDIRECTION: _on_end_sol,
        },
        # amtterm's last keystroke, ^], follows EndSolRedirection.
        _State.ENDED: {
            MessageType.SOL_DATA_TO_HOST: _on_nothing,
            MessageType.SOL_HEARTBEAT: _on_nothing,
            MessageType.SOL_KEEP_ALIVE_PING: _on_ping,
            MessageType.SOL_KEEP_ALIVE_PONG: _on_nothing,
            MessageType.START_SOL_REDIRECTION: _on_start_sol,
        },
    }
