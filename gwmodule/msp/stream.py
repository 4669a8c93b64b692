"""One raw stream to a port of a device, at the MSP's end of the session that carries it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from gwmodule.amt.hold import ToolHold
from gwmodule.errors import ChannelReset, Code
from gwmodule.msp.traffic import Direction, Traffic
from gwmodule.wire.frames import Priority
from gwmodule.wire.mux import Mux


class Carrier(Protocol):
    """The session, as its streams use it."""

    mux: Mux
    traffic: Traffic

    def flush(self) -> None: ...
    def flush_soon(self) -> None: ...

    def consumed(self, channel: int, size: int) -> None:
        """Bytes of a stream that have been read."""

    def reset_stream(self, channel: int, code: Code, reason: str) -> None:
        """Without effect on a stream that the session no longer has."""


class Stream:
    """One raw channel to a port of a device; chunks come out as they came in."""

    def __init__(
        self, session: Carrier, channel: int, priority: Priority, hold: ToolHold | None
    ) -> None:
        self._session = session
        self._channel = channel
        self._priority = priority
        self._hold = hold
        self._incoming: deque[bytes] = deque()
        self._eof = False
        self._ended: ChannelReset | None = None
        self._loop = asyncio.get_running_loop()
        # A future a wait, not an asyncio.Event: one reader, and each keystroke wakes it.
        self._readable: asyncio.Future[None] = self._loop.create_future()
        self._writable = asyncio.Event()
        self._accepted: asyncio.Future[None] = self._loop.create_future()

    @property
    def channel(self) -> int:
        return self._channel

    @property
    def priority(self) -> Priority:
        return self._priority

    @priority.setter
    def priority(self, priority: Priority) -> None:
        self._priority = priority
        self._session.mux.set_priority(self._channel, priority)

    async def read(self) -> bytes:
        """The next chunk, b"" at the end; ChannelReset when the stream broke."""
        while not self._incoming:
            if self._ended is not None:
                raise self._ended
            if self._eof:
                return b""
            self._readable = self._loop.create_future()
            if self._hold is None:
                await self._readable
            elif heartbeat := await self._wait_held(self._hold):
                return heartbeat
        data = self._incoming.popleft()
        self._session.traffic.carried[self._priority, Direction.FROM_DEVICE] += len(data)
        if self._ended is None:
            self._session.consumed(self._channel, len(data))
        if self._hold is not None:
            self._hold.from_device(data, self._now())
        return data

    async def _wait_held(self, hold: ToolHold) -> bytes:
        """Until there is something to read, or a heartbeat for the tool is due."""
        try:
            async with asyncio.timeout_at(hold.next_timeout()):
                await self._readable
        except TimeoutError:
            return hold.handle_timeout(self._now())
        return b""

    def _wake_reader(self) -> None:
        if not self._readable.done():
            self._readable.set_result(None)

    def _now(self) -> float:
        return self._loop.time()

    def write(self, data: bytes) -> None:
        """Queue one chunk; `drain` before the next. ChannelReset when the stream broke."""
        if self._ended is not None:
            raise self._ended
        if self._hold is not None:
            self._hold.to_device(data, self._now())
            # A reader waits by the timeouts of before.
            self._wake_reader()
        self._session.mux.send(self._channel, data, self._now())
        self._session.traffic.carried[self._priority, Direction.TO_DEVICE] += len(data)
        # At once: the next loop turn would cost a keystroke one more look at every socket.
        self._session.flush()

    async def drain(self) -> None:
        """Wait until the send queue has room; ChannelReset when the stream broke."""
        while self._ended is None and self._session.mux.room(self._channel) <= 0:
            self._writable.clear()
            await self._writable.wait()
        if self._ended is not None:
            raise self._ended

    def write_eof(self) -> None:
        if self._ended is None:
            self._session.mux.send_eof(self._channel)
            self._session.flush_soon()

    def reset(self, code: Code, reason: str) -> None:
        """End it now. Without effect when it has ended already."""
        self._session.reset_stream(self._channel, code, reason)
        self.ended(ChannelReset(code, reason))

    # What the session tells its stream:

    def data_received(self, data: bytes) -> None:
        self._incoming.append(data)
        self._wake_reader()

    def eof_received(self) -> None:
        self._eof = True
        self._wake_reader()

    def accepted(self) -> None:
        if not self._accepted.done():
            self._accepted.set_result(None)

    def room_made(self) -> None:
        self._writable.set()

    def ended(self, reason: ChannelReset) -> None:
        """Wake every waiter; what has arrived can still be read."""
        if self._ended is None:
            self._ended = reason
        if not self._accepted.done():
            self._accepted.set_exception(reason)
            # The opener may have been cancelled; then nobody fetches this.
            self._accepted.exception()
        self._wake_reader()
        self._writable.set()

    async def opened(self) -> None:
        await self._accepted
