"""The two sources of a serial line for `gwmodule-msp sol`; `terminal` looks the same over both.

    OwnSession   device <-- stream -- msp.sol, here              the login is the technician's
    Attachment   device <-- msp.sol, in the service -- console   the login is stored at the service

Both go on by themselves after a loss. An own session is opened again, and what the device said in
between is not seen. An attachment goes on at the byte it had, while the service kept the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from typing import Protocol, assert_never

from msgspec.structs import replace

from gwmodule.errors import ChannelReset, Code
from gwmodule.msp.client import ApiClient, ApiRefused, ApiUnavailable, ClientConsole, ClientStream
from gwmodule.msp.console_protocol import (
    Ack,
    Attach,
    Attached,
    HangUp,
    Marked,
    Pong,
    ReadOnly,
    State,
    StatusTold,
    Want,
)
from gwmodule.msp.sol import Retries, SolFailed, SolLogin, SolLost, SolOwner, SolSession
from gwmodule.msp.subprotocol import first_leaf

# Answers of the service that pass.
_PASSING_STATUS = frozenset({503, 504})
# Ends of an attachment after which another one may go on.
_PASSING = frozenset(
    {Code.CONNECTION_LOST, Code.SHUTDOWN, Code.SESSION_LOST, Code.TIMEOUT, Code.LIMIT}
)
# An acknowledgement is worth a message after so long.
ACK_AFTER = 0.1
# For a session to end in order at the device, which some take two seconds for.
LEAVE_TIMEOUT = 5.0
# The last screens, so that a picture which nobody draws again is there.
TAIL = 16 * 1024
GAP = "output between may be missing"


class LineOwner(SolOwner, Protocol):
    """A session's owner that also wants to know what comes between two sessions."""

    def line_greets(self, text: str) -> None:
        """Once: whose login it is, and what else to know of this line."""
        ...

    def line_lost(self) -> None:
        """What is typed goes nowhere until `sol_opened`."""
        ...


class Line(Protocol):
    """`run` once: it returns when `close` asked for the end, and raises at any other."""

    @property
    def stream(self) -> int:
        """What `boot.once` knows it by while it is open; else 0."""
        ...

    async def run(self, owner: LineOwner) -> None: ...

    async def type(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class OwnSession:
    """`hold`: the gateway answers the device's heartbeats while the link is down."""

    def __init__(
        self,
        client: ApiClient,
        guid: str,
        login: SolLogin,
        *,
        hold: bool = True,
        takeover: bool = False,
    ) -> None:
        self._client = client
        self._guid = guid
        self._login = login
        self._hold = hold
        self._takeover = takeover
        self._tool = secrets.token_hex(8)
        self._retries = Retries()
        self._session: SolSession | None = None
        self._stream: ClientStream | None = None
        self._closing = asyncio.Event()
        self._owner: LineOwner

    @property
    def stream(self) -> int:
        return self._stream.id if self._stream is not None else 0

    async def run(self, owner: LineOwner) -> None:
        self._owner = owner
        loop = asyncio.get_running_loop()
        while not self._closing.is_set():
            try:
                await self._one_session()
                return
            except SolLost as exc:
                if self._closing.is_set():
                    return
                if self._retries.failed(exc, loop.time()):
                    owner.line_lost()
                    owner.sol_said(f"{exc}; opening the session again")
            await self._retries.wait(self._closing)

    async def type(self, data: bytes) -> None:
        if self._session is not None:
            await self._session.type(data)

    def close(self) -> None:
        self._closing.set()
        if self._session is not None:
            self._session.close()

    async def _one_session(self) -> None:
        """One stream, to its end; SolLost when another one may do better."""
        self._session = SolSession(self._login, self)
        try:
            await self._session.run(self._open_port, again=self._retries.succeeded_once)
        except SolFailed:
            if not self._closing.is_set():
                raise
        finally:
            self._session = None

    async def _open_port(self, port: int) -> ClientStream:
        with _losses():
            self._stream = await self._client.open_stream(
                self._guid,
                port,
                hold=self._hold,
                mode="sol",
                # Who came in while our connection was lost stays.
                takeover=self._takeover and not self._retries.succeeded_once,
                tool=self._tool,
            )
        return self._stream

    # What a session tells its owner.

    def sol_opened(self) -> None:
        if self._retries.succeeded_once:
            self._owner.sol_said("opened again")
        else:
            self._owner.line_greets(f"connected to {self._guid} with your own login")
        self._retries.succeeded()
        self._owner.sol_opened()

    def sol_data(self, data: bytes) -> None:
        self._owner.sol_data(data)

    async def sol_room(self) -> None:
        await self._owner.sol_room()

    def sol_said(self, text: str, *, gap: bool = False) -> None:
        self._owner.sol_said(text, gap=gap)


class Attachment:
    """`tail` is how much of what was said before is worth seeing."""

    def __init__(
        self, client: ApiClient, guid: str, want: Want = Want.SEAT, *, tail: int = TAIL
    ) -> None:
        self._client = client
        self._guid = guid
        self._place = Attach(want=want, tail=tail)
        self._watches = want is Want.WATCH
        self._retries = Retries()
        self._console: ClientConsole | None = None
        self._status: StatusTold | None = None
        self._has_seat = False
        self._open = False
        self._shown = 0
        self._shown_more = asyncio.Event()
        self._closing = asyncio.Event()
        self._owner: LineOwner

    @property
    def stream(self) -> int:
        return self._status.stream if self._status is not None else 0

    async def run(self, owner: LineOwner) -> None:
        self._owner = owner
        loop = asyncio.get_running_loop()
        while not self._closing.is_set():
            try:
                await self._one_connection()
            except SolLost as exc:
                if self._closing.is_set():
                    return
                if self._retries.failed(exc, loop.time()):
                    self._status = None
                    self._set_open(False)
                    owner.sol_said(f"{exc}; attaching again")
                await self._retries.wait(self._closing)

    async def type(self, data: bytes) -> None:
        if self._watches:
            self._owner.sol_said("read-only: you watch")
        elif self._console is not None and data:
            # What is typed while nobody is there to take it is dropped.
            with contextlib.suppress(ChannelReset):
                await self._console.type(data)

    def close(self) -> None:
        self._closing.set()

    async def _one_connection(self) -> None:
        """To the end that `close` asks for; SolLost when another connection may go on."""
        with _losses():
            console = await self._client.open_console(self._guid)
        try:
            async with asyncio.TaskGroup() as group:
                receive = group.create_task(self._receive(console), name="receive")
                others = (
                    group.create_task(self._acknowledge(console), name="acknowledge"),
                    group.create_task(self._leave(console, receive), name="leave"),
                )
                await asyncio.wait({receive})
                for task in others:
                    task.cancel()
        except BaseExceptionGroup as group:
            end = first_leaf(group)
            if not isinstance(end, ChannelReset):
                raise end from group
            if not self._closing.is_set():
                raise self._judge(end) from group
        except asyncio.CancelledError:
            # Nobody comes back for this seat.
            if self._has_seat:
                with contextlib.suppress(ChannelReset, TimeoutError):
                    async with asyncio.timeout(LEAVE_TIMEOUT):
                        await console.say(HangUp())
            raise
        finally:
            self._console = None
            await console.close()

    def _judge(self, end: ChannelReset) -> SolLost | SolFailed:
        reason = end.reason or "the service closed the console"
        # Who had it open is on his way back, too.
        gone = self._watches and end.code is Code.REFUSED_POLICY
        return SolLost(reason) if end.code in _PASSING or gone else SolFailed(reason)

    async def _leave(self, console: ClientConsole, receive: asyncio.Task[None]) -> None:
        await self._closing.wait()
        if self._has_seat:
            await console.say(HangUp())
            await asyncio.wait({receive}, timeout=LEAVE_TIMEOUT)
        receive.cancel()

    async def _acknowledge(self, console: ClientConsole) -> None:
        while True:
            await self._shown_more.wait()
            await asyncio.sleep(ACK_AFTER)
            self._shown_more.clear()
            await console.say(Ack(self._shown))

    async def _receive(self, console: ClientConsole) -> None:
        """Until it is cancelled, or the connection ends."""
        await console.say(self._place)
        while True:
            match await console.read():
                case bytes() as data:
                    self._place = replace(self._place, offset=self._place.offset + len(data))
                    self._owner.sol_data(data)
                    await self._owner.sol_room()
                    self._shown = self._place.offset
                    self._shown_more.set()
                case Attached() as attached:
                    self._attached(attached)
                    self._console = console
                case Marked(number=number, text=text, gap=gap):
                    self._place = replace(self._place, mark=number + 1)
                    self._owner.sol_said(text, gap=gap)
                case StatusTold() as status:
                    self._told(status)
                case Pong() | ReadOnly():
                    pass
                case other:
                    assert_never(other)

    def _attached(self, attached: Attached) -> None:
        if self._retries.succeeded_once:
            if attached.console != self._place.console:
                self._owner.sol_said("attached to a new session; " + GAP, gap=True)
            elif attached.lost:
                text = f"attached again; {attached.lost} bytes are no longer kept by the service"
                self._owner.sol_said(text, gap=True)
            else:
                self._owner.sol_said("attached again")
        self._shown = attached.offset
        # Who came in while our connection was lost stays.
        self._place = Attach(
            console=attached.console,
            seat=attached.seat,
            offset=attached.offset,
            mark=attached.mark,
            want=Want.WATCH if self._watches else Want.SEAT,
        )

    def _told(self, status: StatusTold) -> None:
        if status.state is not State.CLOSED and not (status.writer or self._watches):
            raise SolFailed(self._why_not(status))
        if not self._retries.succeeded_once:
            text = f"attached to {self._guid} with the login that the service has"
            if self._watches and status.holder:
                text = f"watching {self._guid}, held by {status.holder} since {status.since}"
            self._owner.line_greets(text)
        self._retries.succeeded()
        self._status = status
        self._has_seat = status.writer
        if self._has_seat:
            self._place = replace(self._place, seat=status.seat)
        self._set_open(status.state is State.OPEN)

    def _why_not(self, status: StatusTold) -> str:
        if self._has_seat:
            return f"taken over by {status.holder}"
        if not status.holder:
            return "your role may only look: --watch does"
        held = f"busy: held by {status.holder} since {status.since}"
        return f"{held}; --watch looks on, --takeover takes it"

    def _set_open(self, is_open: bool) -> None:
        if is_open and not self._open:
            self._owner.sol_opened()
        elif self._open and not is_open:
            self._owner.line_lost()
        self._open = is_open


@contextlib.contextmanager
def _losses() -> Iterator[None]:
    """SolLost where the service cannot be reached, or says what passes."""
    try:
        yield
    except ApiUnavailable as exc:
        raise SolLost(str(exc)) from exc
    except ApiRefused as exc:
        if exc.status in _PASSING_STATUS:
            raise SolLost(str(exc)) from exc
        raise
