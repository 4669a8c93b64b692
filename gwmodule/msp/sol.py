"""What carries a SOL session of ours: one stream to a device, from its opening to its end.

    type --> SolClient --> drive ----> stream --> gateway --> device
    data <-- SolClient <-- receive <-- stream

`amt.sol` speaks the protocol; this gives it a stream, TLS, time and an owner to tell.
`gwmodule-msp sol` runs it at the technician's end of a WebSocket, the console inside the service.
Keepalives go on while nobody takes what the device says: only `receive` waits for its reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from gwmodule.amt.connection import HandshakeFailed, legacy_context, modern_context
from gwmodule.amt.digest import ha1
from gwmodule.amt.redirection import ControlStatus, SessionStatus, SolSettings
from gwmodule.amt.sol import SolClient, SolClosed, SolControls, SolData, SolOpened, SolRefused
from gwmodule.errors import ChannelReset, Code, GatewayError
from gwmodule.msp.subprotocol import first_leaf
from gwmodule.msp.tls import ByteStream, TlsStream
from gwmodule.ports import REDIRECTION_TCP, REDIRECTION_TLS

# An ME of 2008 needs almost two seconds for its RSA operation.
HANDSHAKE_TIMEOUT = 15.0
CHUNK = 4096
# What may wait for the device: a paste is slowed down here, not collected.
MAX_PENDING = 16 * 1024
# The device sends a heartbeat every 5 s; three missing ones are worth a word.
SILENCE_NOTICE = 15.0
# Longer than a gateway's session survives without a link, which is what breaks a stream.
SILENCE_LIMIT = 150.0
# Between two attempts, and how long they go on.
REOPEN_DELAYS = (0.5, 1.0, 2.0, 5.0)
REOPEN_LIMIT = 300.0
# Ends after which the same stream can be had again.
_REOPEN = frozenset(
    {
        Code.SESSION_LOST,
        Code.SHUTDOWN,
        Code.REPLACED,
        Code.CONNECTION_LOST,
        Code.POWER_ACTION,
        Code.UNREACHABLE,
        Code.CONNECTION_REFUSED,
    }
)


class SolFailed(GatewayError):
    """The session could not be opened, or ended early, and another attempt would not do better."""


class SolLost(GatewayError):
    """The stream ended, or could not be opened, for a reason that passes."""


class Retries:
    """When a line that was lost is tried again, and until when."""

    def __init__(self, *, succeeded_once: bool = False) -> None:
        self.succeeded_once = succeeded_once
        self._lost_at: float | None = None
        self._delays = iter(REOPEN_DELAYS)

    def succeeded(self) -> None:
        self.succeeded_once = True
        self._lost_at = None
        self._delays = iter(REOPEN_DELAYS)

    def failed(self, error: SolLost, now: float) -> bool:
        """Whether it is the first failure in a row; SolFailed where no other attempt follows."""
        if not self.succeeded_once:
            raise SolFailed(str(error)) from error
        if self._lost_at is None:
            self._lost_at = now
            return True
        if now - self._lost_at > REOPEN_LIMIT:
            raise SolFailed(f"{error}; gave up after {REOPEN_LIMIT:.0f} s") from error
        return False

    async def wait(self, stop: asyncio.Event) -> None:
        """For the next attempt, or `stop`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(next(self._delays, REOPEN_DELAYS[-1])):
                await stop.wait()


@dataclass(frozen=True, slots=True)
class SolLogin:
    """With a `pin` (SHA-256 of the device's certificate) the session runs in TLS on port 16995.

    With a `realm` nothing is computed for a device that names another one.
    """

    username: str
    password: str = field(repr=False)
    realm: str = ""
    pin: bytes | None = None
    allow_clear_text: bool = False
    settings: SolSettings = field(default_factory=SolSettings)


OpenPort = Callable[[int], Awaitable[ByteStream]]


class SolOwner(Protocol):
    """Who wants to know. `sol_data` is followed by `sol_room` before more is read."""

    def sol_opened(self) -> None: ...

    def sol_data(self, data: bytes) -> None: ...

    async def sol_room(self) -> None:
        """Returns when more may come; until then the device is held back."""
        ...

    def sol_said(self, text: str, *, gap: bool = False) -> None:
        """Something about the session that a technician should see between the lines; `gap`:
        output is missing here.
        """
        ...


class SolSession:
    """`run` once."""

    def __init__(self, login: SolLogin, owner: SolOwner) -> None:
        self._login = login
        self._owner = owner
        self._sol: SolClient | None = None
        self._ending: SolClosed | SolRefused | None = None
        self._closing = False
        self._wake = asyncio.Event()
        self._driven = asyncio.Event()
        self.opened = False

    async def run(self, open_port: OpenPort, *, again: bool = False) -> None:
        """To the end that `close` asks for. SolLost when another session may do better.

        `again`: a busy device has perhaps not noticed yet that our last session is over.
        """
        stream = await self._open(open_port)
        if self._closing:
            await stream.close()
            return
        sol = self._sol = _client(self._login)
        try:
            async with asyncio.TaskGroup() as group:
                receive = group.create_task(self._receive(stream, sol), name="receive")
                await self._drive(stream, sol)
                receive.cancel()
        except BaseExceptionGroup as group:
            raise _lost_or_not(first_leaf(group)) from group
        finally:
            self._sol = None
            self._driven.set()
            await stream.close()
        self._judge_end(again)

    def send(self, data: bytes) -> None:
        """Type without waiting; what is more than a line or two goes through `type`."""
        if self._sol is not None and self.opened:
            self._sol.send(data)
            self._wake.set()

    async def type(self, data: bytes) -> None:
        """Returns when the device's side has taken most of it.

        What is typed while no session is open is dropped: nobody saw where it would go.
        """
        for start in range(0, len(data), MAX_PENDING):
            self.send(data[start : start + MAX_PENDING])
            while self._sol is not None and self._sol.pending > MAX_PENDING:
                self._driven.clear()
                await self._driven.wait()

    def ping(self) -> None:
        """Ask the device for a sign; `round_trip` tells how long it took."""
        if self._sol is not None and self.opened:
            self._sol.ping(asyncio.get_running_loop().time())
            self._wake.set()

    @property
    def round_trip(self) -> float | None:
        """Seconds from here to the device and back, at the last ping that it answered."""
        return self._sol.round_trip if self._sol is not None else None

    def close(self) -> None:
        """End in order: `run` returns."""
        self._closing = True
        if self._sol is not None:
            self._sol.close()
            self._wake.set()

    async def _open(self, open_port: OpenPort) -> ByteStream:
        try:
            if self._login.pin is None:
                return await open_port(REDIRECTION_TCP)
            return await open_tls(open_port, self._login.pin)
        except HandshakeFailed as exc:
            raise SolLost(str(exc)) from exc
        except ChannelReset as exc:
            raise _lost_or_not(exc) from exc

    def _judge_end(self, again: bool) -> None:
        match self._ending:
            case SolRefused(status, reason):
                if again and status == SessionStatus.BUSY:
                    raise SolLost(reason)
                raise SolFailed(reason)
            case SolClosed(reason):
                if not self._closing:
                    raise SolFailed(reason)
            case None:
                pass
            case _:
                assert_never(self._ending)

    async def _drive(self, stream: ByteStream, sol: SolClient) -> None:
        """Send what the client has to say, and keep its time, until it has ended."""
        loop = asyncio.get_running_loop()
        while True:
            while data := sol.data_to_send(CHUNK):
                await stream.write(data)
                self._driven.set()
            if self._ending is not None:
                return
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(sol.next_timeout()):
                    await self._wake.wait()
            sol.handle_timeout(loop.time())
            self._deliver(sol)

    async def _receive(self, stream: ByteStream, sol: SolClient) -> None:
        loop = asyncio.get_running_loop()
        silent = 0.0
        while True:
            try:
                async with asyncio.timeout(SILENCE_NOTICE):
                    data = await stream.read()
            except TimeoutError as exc:
                silent += SILENCE_NOTICE
                if silent >= SILENCE_LIMIT:
                    raise SolFailed(f"the device has been silent for {silent:.0f} s") from exc
                if silent == SILENCE_NOTICE and self.opened:
                    self._owner.sol_said(f"no sign of the device for {silent:.0f} s")
                continue
            silent = 0.0
            sol.receive_data(data, loop.time())
            self._deliver(sol)
            self._wake.set()
            if not data:
                return
            await self._owner.sol_room()

    def _deliver(self, sol: SolClient) -> None:
        while (event := sol.next_event()) is not None:
            match event:
                case SolOpened():
                    self.opened = True
                    self._owner.sol_opened()
                case SolData(data):
                    self._owner.sol_data(data)
                case SolControls(_, status):
                    if ControlStatus.TX_OVERFLOW in status:
                        text = "the device's buffer ran over: some output is missing"
                        self._owner.sol_said(text, gap=True)
                case SolClosed() | SolRefused():
                    self._ending = event
                case _:
                    assert_never(event)


def _client(login: SolLogin) -> SolClient:
    secret = ha1(login.username, login.realm, login.password) if login.realm else ""
    return SolClient(
        login.username,
        now=asyncio.get_running_loop().time(),
        password="" if login.realm else login.password,
        ha1=secret,
        realm=login.realm,
        settings=login.settings,
        allow_clear_text=login.allow_clear_text,
        # `_receive` watches the device, because it knows when we do not read on purpose.
        silence_timeout=0,
    )


async def open_tls(open_port: OpenPort, pin: bytes) -> TlsStream:
    """The device's redirection port inside TLS, if its certificate is the pinned one.

    HandshakeFailed, TlsPinMismatch, SolFailed when it does not answer, ChannelReset.
    """
    try:
        return await _open_tls(open_port, modern_context(), pin)
    except HandshakeFailed:
        # Firmware before AMT 12; the pin is the same.
        return await _open_tls(open_port, legacy_context(), pin)


async def _open_tls(open_port: OpenPort, context: ssl.SSLContext, pin: bytes) -> TlsStream:
    stream = await open_port(REDIRECTION_TLS)
    tls = TlsStream(stream, context)
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT):
            await tls.open(pin)
    except TimeoutError as exc:
        await stream.close(Code.TIMEOUT, "no TLS handshake")
        raise SolFailed(f"no TLS handshake within {HANDSHAKE_TIMEOUT:.0f} s") from exc
    except BaseException:
        await stream.close(Code.CANCELLED, "the TLS handshake failed")
        raise
    return tls


def _lost_or_not(error: BaseException) -> BaseException:
    if isinstance(error, ChannelReset) and error.code in _REOPEN:
        return SolLost(str(error))
    return error
