"""One TCP connection with TLS, driving a sans-I/O machine: feed, deliver, write, re-arm.

The socket is watched directly rather than through an asyncio transport, because a transport sends
until the kernel's buffer is full, and what lies there cannot be overtaken. Here nothing is pulled
out of the machine while more than `notsent_lowat` bytes wait in the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterable
from typing import Protocol

from gwmodule.errors import GatewayError, LinkLost, RemoteProtocolError
from gwmodule.uplink.pacing import TCP_INFO_SIZE, LineSample, Pace, Pacer, parse_tcp_info
from gwmodule.uplink.tls import PeerIdentity, TlsEngine
from gwmodule.wire.codec import build_goaway
from gwmodule.wire.frames import MAX_PAYLOAD
from gwmodule.wire.messages import GoAway

_READ = 65536
_SIOCOUTQNSD = 0x894B  # linux/sockios.h: bytes in the send queue that were never sent
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h; socket.TCP_NOTSENT_LOWAT is missing before 3.12
_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; bytes per second, all ones: unlimited
_UNLIMITED = 0xFFFFFFFF
# With bulk alone on the line this keeps a fast path busy between two wake-ups.
NOTSENT_LOWAT = 128 * 1024
# Some kernels forgot to wake a writer at a low mark (fixed in Linux 4.6): look again by ourselves.
_STALL_CHECK = 0.2
# At most this is taken out of the machine at once, so that a keystroke never waits for more.
_BUDGET = 64 * 1024
# Seconds that a closed socket waits for the peer to read our last words.
_LINGER = 1.0


class Machine(Protocol):
    # The largest piece of bulk; the link lowers it while a keystroke may have to wait for it.
    bulk_chunk: int

    def shares_the_line(self, now: float) -> bool:
        """Bulk and an interactive stream are both open."""

    def receive_data(self, data: bytes, now: float) -> None: ...
    def data_to_send(self, budget: int) -> bytes: ...

    def next_timeout(self) -> float | None:
        """What is received and sent may move it later, never earlier: only `handle_timeout` may."""

    def handle_timeout(self, now: float) -> None: ...


class Owner(Protocol):
    def link_ready(self, link: Link) -> None:
        """TLS is up; `link.identity` is who the peer is."""

    def link_progress(self, link: Link) -> None:
        """The machine may have events."""

    def link_lost(self, link: Link, reason: GatewayError) -> None:
        """Called once, when the socket is closed already."""


class Link:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        tls: TlsEngine | None,
        owner: Owner,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._tls = tls
        self.owner = owner
        self.machine: Machine | None = None
        self.bytes_sent = 0
        self.bytes_received = 0
        self._pending = b""
        self._writer_armed = False
        self._flush_scheduled = False
        self._closed = False
        # Not an Event, which holds half a KiB: there are thousands of links.
        self._gone: asyncio.Future[None] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._timed: Machine | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._notsent_lowat = NOTSENT_LOWAT
        # What may go to the kernel before it has to be asked how much lies there unsent.
        self._room = 0
        self._progressing = False
        self._budget = _BUDGET
        self._pacer: Pacer | None = None
        self._pacing: asyncio.Handle | None = None

    # ---- life ---------------------------------------------------------------------------------

    def start(self, user_timeout: float) -> None:
        """Begin; `user_timeout` seconds without an acknowledged byte end the connection."""
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout * 1000))
        self._set_lowat(NOTSENT_LOWAT)
        self._loop.add_reader(self._fd, self._on_readable)
        if self._tls is None:
            self._loop.call_soon(self._ready)
        else:
            try:
                self._advance_handshake()
            except (GatewayError, OSError) as exc:
                self._fail(exc)
        # A peer that never says a word must meet the machine's deadline too.
        self._arm_timer()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def identity(self) -> PeerIdentity:
        """Who the peer is; without TLS nobody in particular."""
        return PeerIdentity("", "") if self._tls is None else self._tls.peer_identity()

    @property
    def peer(self) -> tuple[str, int]:
        """Address and port of the peer; ("", 0) when the socket is gone."""
        try:
            host, port = self._sock.getpeername()[:2]
        except OSError:
            return "", 0
        return str(host).removeprefix("::ffff:"), int(port)

    def close(self, goaway: GoAway | None = None, reason: GatewayError | None = None) -> None:
        """Send what is pulled already, a last GOAWAY and the TLS close; then the socket ends."""
        if self._closed:
            return
        with contextlib.suppress(GatewayError, OSError):
            if goaway is not None:
                # Whatever becomes of it, `reason` is what the owner hears.
                self._pending += self._encrypted(build_goaway(goaway))
                self._drain()
            if self._tls is not None and self._tls.ready:
                self._tls.close_notify()
                self._pending += self._tls.data_to_send()
            self._send_pending()
            self._sock.shutdown(socket.SHUT_WR)
        self._lose(reason or LinkLost("closed by us"), linger=True)

    async def wait_closed(self) -> None:
        """After `close`: until the peer has read our last words, or for a second."""
        await asyncio.wait([self._gone])

    def abort(self, reason: GatewayError) -> None:
        self._lose(reason)

    def pause_reading(self) -> None:
        """The peer waits, held by TCP, while somebody decides what becomes of it."""
        if not self._closed:
            self._loop.remove_reader(self._fd)

    def resume_reading(self, data: bytes = b"") -> None:
        """Go on; `data` was read before the pause, and the machine of now has not seen it."""
        if self._closed:
            return
        self._loop.add_reader(self._fd, self._on_readable)
        try:
            if data and self.machine is not None:
                self.machine.receive_data(data, self._loop.time())
            self._progress()
        except (GatewayError, OSError) as exc:
            self._fail(exc)

    @property
    def rtt(self) -> float:
        """The kernel's estimate in seconds, from the handshake on; 0 when there is none."""
        sample = self._sample()
        return 0.0 if sample is None else sample.rtt

    @property
    def local_address(self) -> str:
        """The address the link was made from; "" when the socket is gone."""
        try:
            return str(self._sock.getsockname()[0])
        except OSError:
            return ""

    # ---- output -------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Bytes that come before anything the machine has to say (first frames, GOAWAY)."""
        try:
            self._pending += self._encrypted(data)
            self._drain()
        except (GatewayError, OSError) as exc:
            self._fail(exc)

    def flush(self) -> None:
        """Write what the machine has, as far as the kernel should hold it; re-arm the timer."""
        self._flush_scheduled = False
        if self._closed:
            return
        try:
            self._drain()
        except (GatewayError, OSError) as exc:
            self._fail(exc)
        if self._timer is None or self._timed is not self.machine:
            self._arm_timer()

    def flush_soon(self) -> None:
        """Flush once at the end of this loop turn: one write, one TLS record."""
        if self._progressing:
            # What the link's own events bring about is flushed when they are delivered.
            return
        if not self._flush_scheduled and not self._closed:
            self._flush_scheduled = True
            self._loop.call_soon(self.flush)

    def _set_lowat(self, size: int) -> None:
        self._notsent_lowat = size
        self._room = 0
        self._sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, size)

    def _drain(self) -> None:
        while not self._closed:
            if self._pending and not self._send_pending():
                self._arm_writer()
                return
            if self._tls is not None and not self._tls.ready:
                break
            if self._room <= 0 and not self._look_for_room():
                self._arm_writer()
                return
            data = b"" if self.machine is None else self.machine.data_to_send(self._budget)
            if data:
                self._pending += self._encrypted(data)
            if len(data) < self._budget and (not self._pending or self._send_pending()):
                # All that the machine has is on its way.
                break
        if self._writer_armed:
            self._disarm_writer()

    def _encrypted(self, data: bytes) -> bytes:
        return data if self._tls is None else self._tls.encrypt(data)

    def _send_pending(self) -> bool:
        """Hand bytes to the kernel; True when all are gone."""
        try:
            sent = self._sock.send(self._pending)
        except (BlockingIOError, InterruptedError):
            return False
        self.bytes_sent += sent
        self._room -= sent
        self._pending = self._pending[sent:]
        return not self._pending

    def _look_for_room(self) -> bool:
        """Ask the kernel, but only after as much was sent as could lie there: a keystroke then
        costs no call of its own.
        """
        (unsent,) = struct.unpack("i", fcntl.ioctl(self._fd, _SIOCOUTQNSD, b"\0\0\0\0"))
        self._room = self._notsent_lowat - int(unsent)
        return self._room > 0

    def _arm_writer(self) -> None:
        if not self._writer_armed:
            self._writer_armed = True
            self._loop.add_writer(self._fd, self._on_writable)
            self._stall = self._loop.call_later(_STALL_CHECK, self._on_stall)

    def _disarm_writer(self) -> None:
        self._writer_armed = False
        self._loop.remove_writer(self._fd)
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _on_writable(self) -> None:
        try:
            self._drain()
            # Queues have fallen: their sources may go on.
            self._progress()
        except (GatewayError, OSError) as exc:
            self._fail(exc)

    def _on_stall(self) -> None:
        self._stall = self._loop.call_later(_STALL_CHECK, self._on_stall)
        self._on_writable()

    # ---- pacing -------------------------------------------------------------------------------

    def _check_pacing(self) -> None:
        """Start pacing when bulk and an interactive stream came together, stop when one left."""
        shared = self.machine is not None and self.machine.shares_the_line(self._loop.time())
        if shared and self._pacing is None:
            self._pacing = self._loop.call_soon(self._on_pacing)
        elif not shared and self._pacing is not None:
            self._pacing.cancel()
            self._pacing = self._pacer = None
            self._set_pace(None)

    def _on_pacing(self) -> None:
        # A stream stops flooding by silence, and no event tells of that.
        self._check_pacing()
        now = self._loop.time()
        sample = self._sample()
        if sample is None or self._closed or self._pacing is None:
            return
        if self._pacer is None:
            self._pacer = Pacer(sample, now)
            self._set_pace(self._pacer.pace)
        else:
            self._set_pace(self._pacer.update(sample, now))
        self._pacing = self._loop.call_at(self._pacer.next_update(sample, now), self._on_pacing)

    def _sample(self) -> LineSample | None:
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
        except OSError:
            return None
        return parse_tcp_info(info)

    def _set_pace(self, pace: Pace | None) -> None:
        rate = _UNLIMITED if pace is None else min(int(pace.rate), _UNLIMITED - 1)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("=I", rate))
        self._budget = _BUDGET if pace is None else pace.chunk
        self._set_lowat(NOTSENT_LOWAT if pace is None else pace.chunk)
        if self.machine is not None:
            self.machine.bulk_chunk = MAX_PAYLOAD if pace is None else pace.chunk

    # ---- input --------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            self._read()
        except (GatewayError, OSError) as exc:
            self._fail(exc)

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        if not data:
            raise LinkLost("closed by the peer")
        self.bytes_received += len(data)
        if self._tls is not None:
            was_ready = self._tls.ready
            data = self._tls.receive(data)
            self._pending += self._tls.data_to_send()
            if self._tls.ready and not was_ready:
                self._ready()
        if data and self.machine is not None and not self._closed:
            self.machine.receive_data(data, self._loop.time())
        self._progress()

    def _advance_handshake(self) -> None:
        assert self._tls is not None  # noqa: S101 - only called with TLS
        self._tls.handshake()
        self._pending += self._tls.data_to_send()
        self._drain()

    def _ready(self) -> None:
        if not self._closed:
            self.owner.link_ready(self)
            self.flush()

    def _progress(self) -> None:
        if not self._closed:
            self._progressing = True
            try:
                self.owner.link_progress(self)
            finally:
                self._progressing = False
            # The owner may have closed it over what it heard.
            if not self._closed:
                self._check_pacing()
                self.flush()

    # ---- time and end -------------------------------------------------------------------------

    def _arm_timer(self) -> None:
        """For a new machine, and again when it fired: a deadline that was moved later meanwhile
        makes it fire early, which is cheaper than a new timer for each frame.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timed = self.machine
        when = None if self.machine is None else self.machine.next_timeout()
        if when is not None and not self._closed:
            self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self.machine is not None and not self._closed:
            self.machine.handle_timeout(self._loop.time())
            self._progress()

    def _fail(self, exc: GatewayError | OSError) -> None:
        """Whatever ends the connection is translated here and nowhere else."""
        match exc:
            case RemoteProtocolError():
                self.close(GoAway(exc.code, str(exc)[:200]), exc)
            case LinkLost():
                self._lose(exc)
            case OSError():
                self._lose(LinkLost(exc.strerror or str(exc)))
            case _:
                raise exc

    def _lose(self, reason: GatewayError, *, linger: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        if self._writer_armed:
            self._disarm_writer()
        self._loop.remove_reader(self._fd)
        if self._timer is not None:
            self._timer.cancel()
        if self._pacing is not None:
            self._pacing.cancel()
        self._pending = b""
        if linger:
            # Closing over unread input sends a RST, which may destroy the GOAWAY on its way.
            self._timer = self._loop.call_later(_LINGER, self._end_linger)
            self._loop.add_reader(self._fd, self._discard)
        else:
            self._sock.close()
            self._gone.set_result(None)
        self.owner.link_lost(self, reason)

    def _discard(self) -> None:
        try:
            if self._sock.recv(_READ):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self._end_linger()

    def _end_linger(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._fd)
        self._sock.close()
        self._gone.set_result(None)


async def close_all(links: Iterable[Link], goaway: GoAway) -> None:
    """The last thing before the loop ends: a process that is gone while input is still unread sends
    a RST, which may destroy the GOAWAYs on their way.
    """
    closing = list(links)
    for link in closing:
        link.close(goaway)
    await asyncio.gather(*(link.wait_closed() for link in closing))
