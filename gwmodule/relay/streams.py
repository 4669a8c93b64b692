"""Raw streams to the ports of devices: bytes are passed on as they come, never changed, and never
merged as long as the device takes them.

device socket --recv--> mux.send      paused while the channel's send queue is full
mux DataReceived -----> socket.send   credit goes back when the device's TCP took the bytes
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import Protocol

from gwmodule.amt.hold import DeviceHold
from gwmodule.errors import Code, DeviceUnreachable, PolicyRefused
from gwmodule.ports import REDIRECTION_TCP, WSMAN_PORTS
from gwmodule.telemetry import Counters, EventLog
from gwmodule.wire.messages import StreamTarget
from gwmodule.wire.mux import Mux
from gwmodule.wire.notices import format_mac

# Chunks that wait for a device are merged up to here: TCP would do the same behind a full buffer,
# and a window of single bytes, each kept by itself, takes sixty times its size.
_MERGED = 1024
# One read: a whole frame's payload, and so one frame for what the device sent at once.
_READ = 16384
# Seconds without a byte taken after both ends have closed: the channel is gone by then, and nothing
# that the MSP does reaches the stream any more.
REST_TIMEOUT = 30.0

DialDevice = Callable[[IPv4Address, int, bytes], Awaitable[socket.socket]]


class Session(Protocol):
    """What roles need of a session: its mux, and a flush."""

    mux: Mux

    def flush(self) -> None: ...

    def flush_soon(self) -> None: ...


class Streams:
    """All streams, by session and channel."""

    def __init__(
        self,
        dial: DialDevice,
        tasks: asyncio.TaskGroup,
        max_streams: int,
        counters: Counters,
    ) -> None:
        self._dial = dial
        self._tasks = tasks
        self._max_streams = max_streams
        self._counters = counters
        self._log = EventLog("gwmodule.streams")
        self._streams: dict[tuple[Session, int], _Stream] = {}
        self._opening: dict[tuple[Session, int], asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def opened(self, session: Session, channel: int, target: StreamTarget) -> None:
        """The MSP asks for a stream: connect, then accept or refuse with the reason."""
        # A device may still take the rest of the one before, whose channel has ended.
        self.ended(session, channel, "its channel was opened again")
        if len(self._streams) + len(self._opening) >= self._max_streams:
            self._refuse(session, channel, Code.LIMIT, f"{self._max_streams} streams are open")
            return
        task = self._tasks.create_task(self._open(session, channel, target), name=f"open-{channel}")
        self._opening[session, channel] = task

    async def _open(self, session: Session, channel: int, target: StreamTarget) -> None:
        key = (session, channel)
        try:
            sock = await self._dial(target.address, target.port, target.mac)
        except PolicyRefused as exc:
            self._log.warning("stream_refused", rule=exc.rule, reason=exc)
            self._refuse(session, channel, exc.code, str(exc))
            return
        except DeviceUnreachable as exc:
            self._refuse(session, channel, exc.code, str(exc))
            return
        finally:
            # One that is cancelled is taken out before, and the MSP may have opened the same
            # channel again by now.
            if self._opening.get(key) is asyncio.current_task():
                del self._opening[key]
        self._streams[key] = _Stream(session, channel, sock, target, self._closed)
        session.mux.accept(channel)
        session.flush_soon()
        self._counters["streams_opened"] += 1
        self._log.info(
            "stream_opened",
            channel=channel,
            address=target.address,
            port=target.port,
            mac=format_mac(target.mac),
        )

    def _refuse(self, session: Session, channel: int, code: Code, reason: str) -> None:
        self._counters[f"streams_refused_{code.name.lower()}"] += 1
        session.mux.refuse(channel, code, reason)
        session.flush_soon()

    def data_received(self, session: Session, channel: int, data: bytes) -> None:
        stream = self._streams.get((session, channel))
        if stream is not None:
            stream.data_received(data)

    def eof_received(self, session: Session, channel: int) -> None:
        stream = self._streams.get((session, channel))
        if stream is not None:
            stream.eof_received()

    def writable(self, session: Session, channel: int) -> None:
        stream = self._streams.get((session, channel))
        if stream is not None:
            stream.resume_reading()

    def ended(self, session: Session, channel: int, reason: str) -> None:
        """The MSP reset it, or its session is lost."""
        key = (session, channel)
        if key in self._streams:
            self._streams[key].close(reason)
        elif key in self._opening:
            self._opening.pop(key).cancel()

    def uses(self, session: Session) -> bool:
        """Whether a stream of this session is left, be it for its device to take the rest."""
        return any(stream.session is session for stream in self._streams.values())

    def session_over(self, session: Session) -> None:
        """Its channels have ended; what is left waits for devices to take the rest."""
        for stream in [each for each in self._streams.values() if each.session is session]:
            stream.close("the session is over")

    def release_device(self, address: IPv4Address, reason: str) -> int:
        """Close our redirection streams to a device, which refuses power off and cycle while one
        is open. Returns how many there were.
        """
        mine = [
            stream
            for stream in self._streams.values()
            if stream.target.address == address and stream.target.port not in WSMAN_PORTS
        ]
        for stream in mine:
            stream.reset(Code.POWER_ACTION, reason)
        return len(mine)

    def reset_all(self, code: Code, reason: str) -> int:
        """Cut off the MSP from every device. Returns how many streams there were, those included
        that were being opened.
        """
        streams, opening = list(self._streams.values()), list(self._opening)
        for stream in streams:
            stream.reset(code, reason)
        for key in opening:
            self._opening.pop(key).cancel()
            self._refuse(*key, code, reason)
        return len(streams) + len(opening)

    def to_device(self, address: IPv4Address) -> tuple[int, int]:
        """How many streams are open to a device, and how many of them are held."""
        mine = [s.target for s in self._streams.values() if s.target.address == address]
        return len(mine), sum(target.hold for target in mine)

    def close(self) -> None:
        """The relay stops: the devices see it at once."""
        for stream in list(self._streams.values()):
            stream.close("the gateway stops")

    def is_open(self, session: Session, channel: int, address: IPv4Address) -> bool:
        """Whether this channel is a stream to this device: `boot.once` with SOL asks."""
        stream = self._streams.get((session, channel))
        return stream is not None and stream.target.address == address

    def _closed(self, stream: _Stream, reason: str) -> None:
        del self._streams[stream.session, stream.channel]
        self._counters["bytes_to_devices"] += stream.bytes_to_device
        self._counters["bytes_from_devices"] += stream.bytes_from_device
        self._counters["held_heartbeats"] += stream.held_heartbeats
        self._log.info(
            "stream_closed",
            channel=stream.channel,
            address=stream.target.address,
            to_device=stream.bytes_to_device,
            from_device=stream.bytes_from_device,
            reason=reason,
        )


class _Stream:
    """One channel spliced to one socket."""

    def __init__(
        self,
        session: Session,
        channel: int,
        sock: socket.socket,
        target: StreamTarget,
        on_closed: Callable[[_Stream, str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.session = session
        self.channel = channel
        self._sock = sock
        self.target = target
        self._on_closed = on_closed
        # With each chunk, whether it came over the channel and its credit has to go back.
        self._to_device: deque[tuple[bytes, bool]] = deque()
        self._eof_to_device = False
        self._eof_from_device = False
        self._shut_down = False
        self._writing = False
        self._closed = False
        self.bytes_to_device = 0
        self.bytes_from_device = 0
        self._reading = False
        # On 16995 everything is TLS, and nobody can put a heartbeat into that.
        holds = target.hold and target.port == REDIRECTION_TCP
        self._hold = DeviceHold() if holds else None
        self._hold_timer: asyncio.TimerHandle | None = None
        self._rest_timer: asyncio.TimerHandle | None = None
        self.resume_reading()

    # ---- device to MSP ------------------------------------------------------------------------

    def resume_reading(self) -> None:
        if not self._reading and not self._eof_from_device and not self._closed:
            self._reading = True
            self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())

    def _on_readable(self) -> None:
        mux = self.session.mux
        if mux.room(self.channel) <= 0:
            self._pause_reading()
            return
        try:
            data = self._sock.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self.reset(Code.CONNECTION_LOST, f"the device's connection broke: {exc.strerror}")
            return
        if data:
            self.bytes_from_device += len(data)
            now = self._loop.time()
            mux.send(self.channel, data, now)
            if self._hold is not None:
                self._hold.from_device(data, now)
                self._arm_hold()
        else:
            self._eof_from_device = True
            self._pause_reading()
            mux.send_eof(self.channel)
            self._close_when_done()
        # At once: the next loop turn would cost a keystroke one more look at every socket.
        self.session.flush()

    # ---- MSP to device ------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._hold is not None:
            self._hold.to_device(data, self._loop.time())
        if self._writing and self._to_device:
            waiting, credited = self._to_device[-1]
            if credited and len(waiting) + len(data) <= _MERGED:
                self._to_device[-1] = (waiting + data, True)
                return
        self._to_device.append((data, True))
        if not self._writing:
            self._write()

    def eof_received(self) -> None:
        self._eof_to_device = True
        if not self._writing:
            self._write()
        self._close_when_done()

    def _write(self) -> None:
        while self._to_device:
            chunk, credited = self._to_device[0]
            try:
                sent = self._sock.send(chunk)
            except (BlockingIOError, InterruptedError):
                self._watch_writable(True)
                return
            except OSError as exc:
                self.reset(Code.CONNECTION_LOST, f"the device's connection broke: {exc.strerror}")
                return
            self.bytes_to_device += sent
            if credited and self.session.mux.consume(self.channel, sent, self._loop.time()):
                self.session.flush_soon()
            if sent == len(chunk):
                self._to_device.popleft()
            else:
                self._to_device[0] = (chunk[sent:], credited)
        if self._writing:
            self._watch_writable(False)
        if self._eof_to_device and not self._shut_down:
            self._shut_down = True
            # The device may have closed first: then its EOF or RST is on the way to us.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
            self._close_when_done()

    def _watch_writable(self, wanted: bool) -> None:
        if wanted and not self._writing:
            self._loop.add_writer(self._sock.fileno(), self._write)
        elif self._writing and not wanted:
            self._loop.remove_writer(self._sock.fileno())
        self._writing = wanted

    # ---- hold ---------------------------------------------------------------------------------

    def _arm_hold(self) -> None:
        due = None if self._hold is None else self._hold.next_timeout()
        if due is not None and self._hold_timer is None:
            self._hold_timer = self._loop.call_at(due, self._on_hold)

    def _on_hold(self) -> None:
        self._hold_timer = None
        if self._closed or self._hold is None:
            return
        heartbeat = self._hold.handle_timeout(self._loop.time())
        if heartbeat and not self._eof_to_device:
            self._to_device.append((heartbeat, False))
            if not self._writing:
                self._write()
        self._arm_hold()

    @property
    def held_heartbeats(self) -> int:
        return 0 if self._hold is None else self._hold.heartbeats

    # ---- the end ------------------------------------------------------------------------------

    def _close_when_done(self) -> None:
        if self._closed or not (self._eof_from_device and self._eof_to_device):
            return
        if self._shut_down:
            self.close("both ends closed")
        elif self._rest_timer is None:
            self._expect_rest_taken()

    def _bytes_taken(self) -> int:
        """As the device acknowledged: the kernel's buffer alone may take minutes on a slow LAN."""
        queued = fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, bytes(4))
        return self.bytes_to_device - int(struct.unpack("i", queued)[0])

    def _expect_rest_taken(self) -> None:
        self._rest_timer = self._loop.call_later(
            REST_TIMEOUT, self._on_rest_timeout, self._bytes_taken()
        )

    def _on_rest_timeout(self, taken: int) -> None:
        if self._bytes_taken() == taken:
            reason = f"the device took nothing of the rest for {REST_TIMEOUT:g} s"
            self.reset(Code.CONNECTION_LOST, reason)
        else:
            self._expect_rest_taken()

    def reset(self, code: Code, reason: str) -> None:
        self.session.mux.reset(self.channel, code, reason)
        self.session.flush_soon()
        self.close(reason)

    def close(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        self._pause_reading()
        self._watch_writable(False)
        if self._hold_timer is not None:
            self._hold_timer.cancel()
        if self._rest_timer is not None:
            self._rest_timer.cancel()
        self._sock.close()
        self._to_device.clear()
        self._on_closed(self, reason)
