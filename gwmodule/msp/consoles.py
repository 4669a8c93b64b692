"""Serial-over-LAN sessions that live in this service, and who looks at them.

    device <--> gateway <--> SolSession --> SolLog --> Viewer --> WebSocket --> browser
                                  ^                      |
                                  +------ keys ----------+   of one viewer, who has the seat

A browser that drops loses nothing: its seat and the log are kept for a while, and it goes on at the
offset it had. The log is the only buffer. What the holder of the seat has not acknowledged is never
overwritten; the device is held back instead. Others who fall behind are dropped.
"""

from __future__ import annotations

import asyncio
import enum
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, TypeAlias
from uuid import UUID

from gwmodule.errors import ChannelReset, Code, GatewayError
from gwmodule.msp.console_protocol import MAX_OFFSET, State, Want
from gwmodule.msp.seam import SessionsSeam
from gwmodule.msp.secured import SeamStream
from gwmodule.msp.sol import Retries, SolFailed, SolLogin, SolLost, SolSession
from gwmodule.msp.sol_log import Mark, SolLog
from gwmodule.telemetry import EventLog
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import StreamTarget

# Often enough for a figure that is watched, too rarely to be load for an ME.
PING_INTERVAL = 1.0
# One message to a browser.
CHUNK = 16 * 1024
GAP = "output between may be missing"
STOPS = "the service stops"


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    """Bytes and seconds."""

    # Six minutes of a serial line at 115,200 baud.
    kept: int = 4 * 1024 * 1024
    # A quarter of it: from there on the device waits for whoever has the seat.
    unread: int = 1024 * 1024
    # On its way to one browser; a fast line at 200 ms.
    window: int = 256 * 1024
    # A browser that takes nothing for so long is gone, whatever its TCP says. Pages in the
    # background run their timers once a minute.
    stall: float = 75.0
    # For a browser that drops, and for a technician who looks something up.
    detached: float = 120.0
    # Over all tenants; one alone can have half of them.
    consoles: int = 128
    viewers: int = 16


@dataclass(frozen=True, slots=True)
class Line:
    """Where a serial line is now, and the login that opens it."""

    gateway: str
    address: IPv4Address
    mac: bytes
    uuid: UUID
    login: SolLogin


# Raises a GatewayError where there is no such line; asked again for each attempt to open it.
FindLine: TypeAlias = Callable[[], Awaitable[Line]]
# (actor, action, detail)
Audit: TypeAlias = Callable[[str, str, dict[str, Any]], Awaitable[None]]


class ConsoleRefused(GatewayError):
    """Nobody may attach like this; `code` goes into the close frame."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class ConsoleEnded(GatewayError):
    """For a viewer: there is nothing more to come."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Happened(enum.Enum):
    """To a console's session with its device."""

    OPENED = enum.auto()
    LOST = enum.auto()
    ENDED = enum.auto()


_NEXT: dict[State, dict[Happened, State]] = {
    # Lost before it was ever open is only a console that goes on for an earlier one.
    State.OPENING: {
        Happened.OPENED: State.OPEN,
        Happened.LOST: State.LOST,
        Happened.ENDED: State.CLOSED,
    },
    State.OPEN: {Happened.LOST: State.LOST, Happened.ENDED: State.CLOSED},
    State.LOST: {Happened.OPENED: State.OPEN, Happened.ENDED: State.CLOSED},
    State.CLOSED: {},
}


@dataclass(slots=True)
class Seat:
    """Who may type. Its `key` lets the same browser have it back."""

    key: str
    name: str
    since: float
    acknowledged: int
    viewer: Viewer | None = None
    expiry: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """What a viewer shows around the terminal."""

    state: State
    reason: str
    # The stream's id, for `boot.once`; 0 while there is none.
    stream: int
    writer: bool
    holder: str
    since: float
    viewers: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a browser that was here before goes on; `console` is the id it was told.

    One that was not gets the last `tail` bytes of the log.
    """

    console: str = ""
    seat: str = ""
    offset: int = 0
    mark: int = 0
    want: Want = Want.SEAT
    tail: int = MAX_OFFSET


class Viewer:
    """One browser. `next_item` is for one task only."""

    def __init__(self, console: Console, name: str, *, may_type: bool) -> None:
        self._console = console
        self.name = name
        self.may_type = may_type
        self.seat = ""
        self.offset = 0
        self.mark = 0
        self.lost = 0
        self.acknowledged = 0
        self._wake = asyncio.Event()
        self._ended: ConsoleEnded | None = None
        self._after_log = False
        self._told: Status | None = None
        # When it must have acknowledged something; None while it has everything.
        self._due: float | None = None

    async def next_item(self) -> Status | Mark | bytes:
        """ConsoleEnded when there is nothing more, or when this viewer has taken nothing."""
        settings = self._console.settings
        while True:
            if self._ended is not None and not self._after_log:
                raise self._ended
            status = self._console.status(self)
            if status != self._told:
                self._told = status
                return status
            room = settings.window - (self.offset - self.acknowledged)
            item = self._console.log.next_item(self.offset, self.mark, min(CHUNK, max(room, 0)))
            if isinstance(item, Mark):
                self.mark = item.number + 1
                return item
            if item:
                self.offset += len(item)
                if self._due is None:
                    self._due = self._now() + settings.stall
                return item
            if self._ended is not None and self.offset == self._console.log.end:
                raise self._ended
            self._wake.clear()
            try:
                async with asyncio.timeout_at(self._due):
                    await self._wake.wait()
            except TimeoutError:
                reason = f"nothing was taken for {settings.stall:.0f} s"
                raise ConsoleEnded(Code.TIMEOUT, reason) from None

    def acknowledge(self, offset: int) -> None:
        """The browser has shown everything before `offset`; ConsoleRefused if it cannot have."""
        if not self.acknowledged <= offset <= self.offset:
            text = f"offset {offset}, expected {self.acknowledged} to {self.offset}"
            raise ConsoleRefused(Code.PROTOCOL_ERROR, text)
        if offset > self.acknowledged:
            self.acknowledged = offset
            behind = offset < self.offset
            self._due = self._now() + self._console.settings.stall if behind else None
            self._console.acknowledged(self)
            self._wake.set()

    async def type(self, data: bytes) -> bool:
        """False when somebody else has the seat."""
        return await self._console.type(self, data)

    async def take_over(self) -> None:
        await self._console.take_over(self)

    async def hang_up(self) -> None:
        await self._console.hang_up(self)

    def detach(self) -> None:
        self._console.detach(self)

    def latency(self) -> tuple[float | None, float | None]:
        """Seconds to the gateway and back, and from there to the device and back."""
        return self._console.latency()

    @property
    def console(self) -> str:
        return self._console.id

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # What the console tells its viewer.

    def changed(self) -> None:
        self._wake.set()

    def end(self, code: Code, reason: str, *, after_log: bool = False) -> None:
        """Now, or when it has seen the rest of the log."""
        if self._ended is None or (self._after_log and not after_log):
            self._ended = ConsoleEnded(code, reason)
            self._after_log = after_log
            self._wake.set()


class Console:
    """One device's serial line; a SolSession's owner.

    One that `goes_on` is for somebody who was at an earlier one and was not told that it ended, as
    before this service was started again: his gateway may be on its way back as well, and is waited
    for.
    """

    def __init__(
        self,
        sessions: SessionsSeam,
        find_line: FindLine,
        audit: Audit,
        clock: Callable[[], float],
        settings: ConsoleSettings,
        *,
        goes_on: bool,
    ) -> None:
        self._sessions = sessions
        self._find_line = find_line
        self._audit = audit
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self.settings = settings
        self.id = secrets.token_hex(8)
        self.log = SolLog(settings.kept)
        self._state = State.OPENING
        self._reason = ""
        self._seat: Seat | None = None
        # Whose doing the session was, also when nobody has the seat any more.
        self._last_holder = ""
        self._viewers: set[Viewer] = set()
        self._session: SolSession | None = None
        self._stream = 0
        self._gateway = ""
        self._retries = Retries(succeeded_once=goes_on)
        self._pinged_at = 0.0
        self._away_at = float("-inf")
        self._room = asyncio.Event()
        self._stop = asyncio.Event()
        self.over = asyncio.Event()
        self._stopped_with = Code.OK, ""
        self._expiry: asyncio.TimerHandle | None = None

    # Its life.

    async def run(self) -> None:
        """Until somebody hangs up, nobody looks any more or the device ends it."""
        code, reason = Code.INTERNAL, "our own fault; the log says more"
        try:
            await self._sessions_in_turn()
            code, reason = self._stopped_with
        except ChannelReset as exc:
            code, reason = exc.code, exc.reason
        except GatewayError as exc:
            code, reason = getattr(exc, "code", Code.DEVICE_REFUSED), str(exc)
        except asyncio.CancelledError:
            code, reason = Code.SHUTDOWN, STOPS
            raise
        finally:
            self._close(code, reason)
        detail = {"reason": reason, "bytes": self.log.end}
        await self._audit(self._last_holder, "console.close", detail)

    async def _sessions_in_turn(self) -> None:
        while not self._stop.is_set():
            try:
                await self._one_session()
            except SolLost as exc:
                if self._retries.failed(exc, self._loop.time()):
                    self.log.mark(f"{exc}: {GAP}", self._clock(), gap=True)
                    self._advance(Happened.LOST, str(exc))
            await self._retries.wait(self._stop)

    async def _one_session(self) -> None:
        line = await self._find_line()
        self._gateway = line.gateway
        session = self._session = SolSession(line.login, self)

        async def open_port(port: int) -> SeamStream:
            gateway = self._sessions.locate(line.gateway)
            if gateway is None:
                raise SolLost(f"gateway {line.gateway} is not connected")
            target = StreamTarget(line.address, port, line.mac, line.uuid, hold=True)
            stream = await gateway.open_stream(target, Priority.INTERACTIVE)
            self._stream = stream.channel
            return SeamStream(stream)

        if self._stop.is_set():
            return
        try:
            await session.run(open_port, again=self._retries.succeeded_once)
        except SolFailed:
            if not self._stop.is_set():
                raise
        finally:
            self._session = None
            self._stream = 0

    def stop(self, code: Code, reason: str) -> None:
        """End in order; who asks first gives the reason."""
        if self._stop.is_set():
            return
        self._stopped_with = code, reason
        self._stop.set()
        # A session that is held back must see its end.
        self._room.set()
        if self._session is not None:
            self._session.close()

    def _close(self, code: Code, reason: str) -> None:
        for timer in (self._expiry, self._seat.expiry if self._seat is not None else None):
            if timer is not None:
                timer.cancel()
        self._advance(Happened.ENDED, reason)
        self.over.set()
        for viewer in self._viewers:
            viewer.end(code, reason, after_log=True)

    @property
    def closed(self) -> bool:
        return self._state is State.CLOSED

    @property
    def stopping(self) -> bool:
        """Nobody should come any more: it has ended, or is about to."""
        return self._stop.is_set() or self.closed

    @property
    def seat(self) -> Seat | None:
        return self._seat

    # What a session tells its owner.

    def sol_opened(self) -> None:
        again = self._retries.succeeded_once
        self.log.mark("opened again" if again else "connected", self._clock())
        self._retries.succeeded()
        self._advance(Happened.OPENED)

    def sol_data(self, data: bytes) -> None:
        self.log.append(data)
        for viewer in list(self._viewers):
            if viewer.offset < self.log.start:
                behind = self.log.end - viewer.acknowledged
                viewer.end(Code.LIMIT, f"{behind} bytes behind, more than are kept")
            viewer.changed()

    async def sol_room(self) -> None:
        while self._held_back and not self._stop.is_set():
            self._room.clear()
            await self._room.wait()

    def sol_said(self, text: str, *, gap: bool = False) -> None:
        self.log.mark(text, self._clock(), gap=gap)
        self._tell()

    @property
    def _held_back(self) -> bool:
        seat = self._seat
        return seat is not None and self.log.end - seat.acknowledged > self.settings.unread

    # Viewers.

    async def attach(self, name: str, place: Place, *, may_type: bool) -> Viewer:
        viewer = Viewer(self, name, may_type=may_type)
        seat = self._seat
        wants = may_type and place.want is not Want.WATCH
        returns = (
            wants
            and seat is not None
            and seat.name == name
            and secrets.compare_digest(seat.key, place.seat)
        )
        if returns and seat is not None and seat.viewer is not None:
            seat.viewer.end(Code.REPLACED, "this browser attached again")
            self._viewers.discard(seat.viewer)
        if len(self._viewers) >= self.settings.viewers:
            text = f"{self.settings.viewers} browsers look at this console"
            raise ConsoleRefused(Code.LIMIT, text)
        self._find_place(viewer, place)
        self._viewers.add(viewer)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        try:
            if wants and (seat is None or returns):
                self._sit(viewer, self._new_seat(viewer) if seat is None else seat)
            elif wants and place.want is Want.TAKEOVER:
                await self.take_over(viewer)
            self._tell()
            action = "console.open" if viewer.seat else "console.watch"
            await self._audit(name, action, {"console": self.id, "offset": viewer.offset})
        except BaseException:
            # Nobody else knows this viewer yet: a seat that it took would stay taken.
            self.detach(viewer)
            raise
        return viewer

    def _find_place(self, viewer: Viewer, place: Place) -> None:
        if place.console == self.id and place.offset <= self.log.end:
            offset, mark = place.offset, min(place.mark, self.log.next_mark)
        elif place.tail < self.log.end:
            offset, mark = max(self.log.end - place.tail, self.log.start), self.log.next_mark
        else:
            offset, mark = 0, 0
        viewer.offset = viewer.acknowledged = max(offset, self.log.start)
        viewer.lost = viewer.offset - offset
        viewer.mark = mark

    def detach(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)
        viewer.end(Code.OK, "detached")
        seat = self._seat
        if self.closed:
            return
        if seat is not None and seat.viewer is viewer:
            seat.viewer = None
            seat.expiry = self._loop.call_later(self.settings.detached, self._free_seat, seat)
        if not self._viewers:
            text = f"nobody looked for {self.settings.detached:.0f} s"
            self._expiry = self._loop.call_later(self.settings.detached, self.stop, Code.OK, text)
        self._tell()

    async def take_over(self, viewer: Viewer) -> None:
        """ConsoleRefused for those who may only look."""
        if not viewer.may_type:
            raise ConsoleRefused(Code.REFUSED_POLICY, "your role may only look")
        seat = self._seat
        if seat is not None and seat.viewer is viewer:
            return
        before = self._holder_name
        if seat is not None and seat.viewer is not None:
            seat.viewer.seat = ""
        if seat is not None and seat.expiry is not None:
            seat.expiry.cancel()
        self._sit(viewer, self._new_seat(viewer))
        text = f"{viewer.name} took over from {before}" if before else f"{viewer.name} took over"
        self.log.mark(text, self._clock())
        self._tell()
        await self._audit(viewer.name, "console.takeover", {"console": self.id, "from": before})

    async def hang_up(self, viewer: Viewer) -> None:
        if self._seat is None or self._seat.viewer is not viewer:
            raise ConsoleRefused(Code.REFUSED_POLICY, "somebody else holds this console")
        self.stop(Code.OK, f"closed by {viewer.name}")

    async def type(self, viewer: Viewer, data: bytes) -> bool:
        if self._seat is None or self._seat.viewer is not viewer:
            return False
        if self._session is not None:
            await self._session.type(data)
        return True

    def acknowledged(self, viewer: Viewer) -> None:
        if self._seat is not None and self._seat.viewer is viewer:
            self._seat.acknowledged = viewer.acknowledged
            self._room.set()

    def latency(self) -> tuple[float | None, float | None]:
        gateway = self._sessions.locate(self._gateway)
        now = self._loop.time()
        if gateway is None or not gateway.connected or self._session is None:
            self._away_at = now
            return None, None
        if now - self._pinged_at >= PING_INTERVAL:
            self._pinged_at = now
            self._session.ping()
        whole = self._session.round_trip
        # A ping that waited for the link says nothing about the device.
        if whole is None or gateway.rtt is None or whole > now - self._away_at:
            return gateway.rtt, None
        return gateway.rtt, max(whole - gateway.rtt, 0.0)

    def status(self, viewer: Viewer) -> Status:
        seat = self._seat
        return Status(
            state=self._state,
            reason=self._reason,
            stream=self._stream if self._state is State.OPEN else 0,
            writer=seat is not None and seat.viewer is viewer,
            holder=seat.name if seat is not None else "",
            since=seat.since if seat is not None else 0.0,
            viewers=len(self._viewers),
        )

    @property
    def _holder_name(self) -> str:
        return self._seat.name if self._seat is not None else ""

    def _new_seat(self, viewer: Viewer) -> Seat:
        return Seat(secrets.token_hex(16), viewer.name, self._clock(), viewer.acknowledged)

    def _sit(self, viewer: Viewer, seat: Seat) -> None:
        if seat.expiry is not None:
            seat.expiry.cancel()
            seat.expiry = None
        seat.viewer = viewer
        seat.acknowledged = viewer.acknowledged
        viewer.seat = seat.key
        self._seat = seat
        self._last_holder = seat.name
        self._room.set()

    def _free_seat(self, seat: Seat) -> None:
        if self._seat is seat:
            self._seat = None
            self._room.set()
            self._tell()

    def _advance(self, happened: Happened, reason: str = "") -> None:
        self._state, self._reason = _NEXT[self._state][happened], reason
        self._tell()

    def _tell(self) -> None:
        for viewer in self._viewers:
            viewer.changed()


@dataclass(slots=True)
class Consoles:
    """All consoles of this process, by tenant and device."""

    sessions: SessionsSeam
    clock: Callable[[], float]
    settings: ConsoleSettings = field(default_factory=ConsoleSettings)
    _open: dict[tuple[str, UUID], Console] = field(default_factory=dict)
    _tasks: asyncio.TaskGroup | None = None
    _log: EventLog = field(default_factory=lambda: EventLog("gwmodule.msp.consoles"))

    async def lifetime(self, _: object = None) -> AsyncIterator[None]:
        """For aiohttp's `cleanup_ctx`: consoles can be opened between start and cleanup."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            yield
            self.stop()

    def stop(self) -> None:
        """Every viewer is told that the service stops, and nobody opens another console."""
        self._tasks = None
        for console in self._open.values():
            console.stop(Code.SHUTDOWN, STOPS)

    def __len__(self) -> int:
        return len(self._open)

    def is_open(self, tenant: str, device: UUID) -> bool:
        console = self._open.get((tenant, device))
        return console is not None and not console.stopping

    def seat(self, tenant: str, device: UUID) -> Seat | None:
        """Who holds the device's line, also while his browser is away."""
        console = self._open.get((tenant, device))
        return None if console is None or console.closed else console.seat

    async def attach(
        self,
        tenant: str,
        device: UUID,
        name: str,
        place: Place,
        find_line: FindLine,
        audit: Audit,
        *,
        may_type: bool,
    ) -> Viewer:
        """ConsoleRefused when there is no room, or none is open and this one may not open it."""
        key = (tenant, device)
        # One that ends still has the device's only line.
        while (console := self._open.get(key)) is not None and console.stopping:
            await console.over.wait()
            self._forget(key, console)
        if console is None:
            if not may_type or place.want is Want.WATCH:
                raise ConsoleRefused(Code.REFUSED_POLICY, "nobody has this console open")
            console = self._new(key, find_line, audit, goes_on=bool(place.console))
        return await console.attach(name, place, may_type=may_type)

    def _new(
        self, key: tuple[str, UUID], find_line: FindLine, audit: Audit, *, goes_on: bool
    ) -> Console:
        if self._tasks is None:
            raise ConsoleRefused(Code.SHUTDOWN, STOPS)
        # As many as are free, and no more: however many one tenant opens, another one finds room,
        # and nobody has to say beforehand how many tenants there will be.
        own = sum(tenant == key[0] for tenant, _ in self._open)
        if own >= self.settings.consoles - len(self._open):
            text = f"{own} consoles are open; the rest is left to others"
            raise ConsoleRefused(Code.LIMIT, text)
        console = Console(
            self.sessions, find_line, audit, self.clock, self.settings, goes_on=goes_on
        )
        self._open[key] = console
        self._tasks.create_task(self._run(key, console), name=f"console-{key[1]}")
        return console

    def _forget(self, key: tuple[str, UUID], console: Console) -> None:
        if self._open.get(key) is console:
            del self._open[key]

    async def end(self, tenant: str, device: UUID, reason: str) -> None:
        """Hang up, whoever holds it, and return when the device's line is free."""
        console = self._open.get((tenant, device))
        if console is not None:
            console.stop(Code.CANCELLED, reason)
            await console.over.wait()

    async def _run(self, key: tuple[str, UUID], console: Console) -> None:
        try:
            await console.run()
        except Exception:
            # One console's fault must not take the others with it.
            self._log.exception("console_failed", device=key[1])
        finally:
            self._forget(key, console)
