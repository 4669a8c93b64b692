"""The capture process: sniff, parse, hand observations to the relay.

    sniffers --> Observer.admit --> backlog --> Observer.observe --> History
                                                                        |  one datagram each
    relay <== SOCK_SEQPACKET (0600, peer's uid checked) <== Outbox <----+

Start: open the unix socket and one packet socket per LAN interface, drop every capability, load the
dissector, then bind. An interface may be missing at the start, vanish and return; the kernel's link
messages (rtnetlink) say when to look again.

What leaves: every observation as one datagram, as it is made, and the counters on connect and
then every COUNTERS_INTERVAL seconds if they changed (capture.datagrams). A relay may ask for a copy
of the frames themselves, so many and for so long, for somebody who looks for a fault. A relay that
does not read costs its own datagrams and nobody else's time: sends never block, and beyond
MAX_OUTBOX bytes they are dropped and counted.

While no relay is there, or a new one has started, nothing is lost that is still worth knowing:
the last MAX_KEPT observations, none older than MAX_KEPT_AGE, are kept in RAM. Whoever connects
gets all of them, with their age. A relay that has reloaded knows nothing and is the same process as
before; to one that does know them the repetition says nothing new.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import errno
import gc
import os
import signal
import socket
import stat
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gwmodule.capture.datagrams import (
    MAX_REQUEST,
    build_counters,
    build_frame,
    build_seen,
    parse_record,
)
from gwmodule.capture.dissect import load_dissector
from gwmodule.capture.observer import Observer
from gwmodule.capture.packet import Packet
from gwmodule.capture.pcap import with_vlan
from gwmodule.capture.sniffer import Frame, Sniffer
from gwmodule.config import MAX_RECORD_COUNT, MAX_RECORD_SECONDS, Config
from gwmodule.errors import CaptureError, ConfigError
from gwmodule.notify import Notifier
from gwmodule.privileges import drop_all_capabilities
from gwmodule.telemetry import EventLog, memory
from gwmodule.wire.notices import Observation

MAX_KEPT = 256
MAX_KEPT_AGE = 600.0

COUNTERS_INTERVAL = 5.0
# A storm of 5,000 leases is 500 KiB; a relay that is further behind than this has stopped.
MAX_OUTBOX = 1024 * 1024
# Copies of frames never take the room that observations need.
MAX_OUTBOX_FRAMES = MAX_OUTBOX // 2
# The relay, a restarted one while the old is still dying, and somebody who debugs.
MAX_RELAYS = 4

# Frames read per wake-up of one socket, and packets parsed before the sockets get their turn
# again. A parse takes as long as ten reads: while a socket has more than one turn's worth,
# reading goes first and the parser gets just enough turns not to stand still.
READ_BATCH = 256
PARSE_BATCH = 16
# Admitted packets that wait for a parse: 5,000 PCs that boot within a second send 15,000 of up to
# 548 bytes. The bytes have a bound of their own, as receive offload makes 16 KiB out of many
# segments; a packet takes up to 500 more, so that it is 16 MiB at the very most.
MAX_BACKLOG = 16384
MAX_BACKLOG_BYTES = 8 * 1024 * 1024
# Without a link message for this long, look all the same: the kernel may have dropped one.
RECHECK_INTERVAL = 60.0

# sysexits.h: EX_NOPERM, EX_CONFIG.
EXIT_NO_PERMISSION = 77
EXIT_CONFIG = 78

_RTMGRP_LINK = 1
_PEER_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid.

log = EventLog("gwmodule.capture")


class History:
    """The last observations, for a relay that was not there to hear them."""

    def __init__(self) -> None:
        self._kept: deque[tuple[Observation, float]] = deque(maxlen=MAX_KEPT)

    def add(self, observation: Observation, now: float) -> None:
        self._kept.append((observation, now))

    def kept(self, now: float) -> Iterator[tuple[Observation, float]]:
        """What is not too old, oldest first, each with its age (seconds)."""
        for observation, at in self._kept:
            if now - at <= MAX_KEPT_AGE:
                yield observation, now - at


@dataclass(slots=True)
class ServiceCounters:
    """What went wrong on the way to the relay."""

    backlog_dropped: int = 0
    outbox_dropped: int = 0
    relays_refused: int = 0
    frames_dropped: int = 0


class Outbox:
    """One connected relay: datagrams that wait until its socket takes them."""

    def __init__(
        self,
        sock: socket.socket,
        pid: int,
        loop: asyncio.AbstractEventLoop,
        counters: ServiceCounters,
    ) -> None:
        self.socket = sock
        self.pid = pid
        self.reported: dict[str, Any] = {}
        # Copies of frames that it still wants, and until when.
        self.frames = 0
        self.frames_until = 0.0
        self._loop = loop
        self._counters = counters
        self._waiting: deque[bytes] = deque()
        self._size = 0

    def send(self, datagram: bytes) -> None:
        """Send, or keep, or drop and count; never blocks. OSError: the relay is gone."""
        if not self._waiting and self._sent(datagram):
            return
        if self._size + len(datagram) > MAX_OUTBOX:
            self._counters.outbox_dropped += 1
            return
        if not self._waiting:
            self._loop.add_writer(self.socket, self._flush)
        self._waiting.append(datagram)
        self._size += len(datagram)

    def send_frame(self, datagram: bytes) -> None:
        """As `send`, but with room to spare for observations."""
        if self._size + len(datagram) > MAX_OUTBOX_FRAMES:
            self._counters.frames_dropped += 1
            return
        self.send(datagram)

    def close(self) -> None:
        self._loop.remove_reader(self.socket)
        self._loop.remove_writer(self.socket)
        self.socket.close()

    def _flush(self) -> None:
        # An error also makes the socket readable; the reader ends the connection, not this.
        with contextlib.suppress(OSError):
            while self._waiting:
                if not self._sent(self._waiting[0]):
                    return
                self._size -= len(self._waiting.popleft())
        self._waiting.clear()
        self._size = 0
        self._loop.remove_writer(self.socket)

    def _sent(self, datagram: bytes) -> bool:
        try:
            self.socket.send(datagram)
        except BlockingIOError:
            return False
        return True


class CaptureService:
    """The running service, between `start` and `stop`; it does not own sniffers and listener."""

    def __init__(
        self,
        sniffers: Iterable[Sniffer],
        observer: Observer,
        listener: socket.socket,
        allowed_uids: frozenset[int],
    ) -> None:
        self._sniffers = tuple(sniffers)
        self._observer = observer
        self._listener = listener
        self._allowed_uids = allowed_uids
        self._loop = asyncio.get_running_loop()
        self._history = History()
        self._counters = ServiceCounters()
        self._relays: list[Outbox] = []
        self._backlog: deque[tuple[Packet, float]] = deque()
        self._backlog_bytes = 0
        self._links = _open_link_messages()
        self._recheck_timer: asyncio.TimerHandle | None = None
        self._report_timer: asyncio.TimerHandle | None = None
        self._states: dict[str, str] = {}
        self._busy = False  # A socket had more to read than it could in its turn.
        self._tagged = 0
        self._recording = False  # A relay has asked for copies of frames.
        self._started = self._loop.time()

    def start(self) -> None:
        self._loop.add_reader(self._listener, self._accept)
        self._loop.add_reader(self._links, self._links_changed)
        for sniffer in self._sniffers:
            self._loop.add_reader(sniffer, self._read, sniffer)
        self._recheck()

    def stop(self) -> None:
        for timer in (self._recheck_timer, self._report_timer):
            if timer is not None:
                timer.cancel()
        for relay in self._relays:
            relay.close()
        self._relays.clear()
        for source in (self._listener, self._links):
            self._loop.remove_reader(source)
        for sniffer in self._sniffers:
            self._loop.remove_reader(sniffer)
        self._links.close()

    # LAN side

    def _read(self, sniffer: Sniffer) -> None:
        now = self._loop.time()
        try:
            for _ in range(READ_BATCH):
                frame = sniffer.receive()
                if frame is None:
                    return
                self._tagged += frame.vlan is not None
                if self._recording:
                    self._copy(frame, now)
                packet = self._observer.admit(frame.data, frame.outgoing, now)
                if packet is not None:
                    self._enqueue(packet, now)
            self._busy = True
        except CaptureError:
            pass  # The link message that comes with it makes us look again.

    def _copy(self, frame: Frame, now: float) -> None:
        datagram = build_frame(with_vlan(frame.data, frame.vlan), now)
        for relay in tuple(self._relays):
            if relay.frames and now > relay.frames_until:
                relay.frames = 0
            if relay.frames:
                relay.frames -= 1
                with contextlib.suppress(OSError):  # Its reader finds that it is gone.
                    relay.send_frame(datagram)
        self._recording = any(relay.frames for relay in self._relays)

    def _enqueue(self, packet: Packet, now: float) -> None:
        size = self._backlog_bytes + len(packet.payload)
        if len(self._backlog) >= MAX_BACKLOG or size > MAX_BACKLOG_BYTES:
            self._counters.backlog_dropped += 1
            return
        if not self._backlog:
            self._loop.call_soon(self._parse)
        self._backlog.append((packet, now))
        self._backlog_bytes = size

    def _parse(self) -> None:
        batch = 1 if self._busy else PARSE_BATCH
        self._busy = False
        for _ in range(min(batch, len(self._backlog))):
            packet, read_at = self._backlog.popleft()
            self._backlog_bytes -= len(packet.payload)
            observation = self._observer.observe(packet, read_at)
            if observation is not None:
                self._publish(observation)
        if self._backlog:
            self._loop.call_soon(self._parse)

    def _links_changed(self) -> None:
        # ENOBUFS: messages were lost; as we look at everything anyway, that tells us no less.
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    self._links.recv(65536)
                except OSError as exc:
                    if exc.errno != errno.ENOBUFS:
                        raise
        self._follow()

    def _recheck(self) -> None:
        self._recheck_timer = self._loop.call_later(RECHECK_INTERVAL, self._recheck)
        self._follow()

    def _follow(self) -> None:
        for sniffer in self._sniffers:
            try:
                sniffer.follow()
            except CaptureError as exc:
                log.warning("sniffer_failed", interface=sniffer.ifname, reason=exc)
            state = sniffer.state
            if self._states.get(sniffer.ifname) != state:
                self._states[sniffer.ifname] = state
                log.info("sniffing", interface=sniffer.ifname, state=state)

    # Relay side

    def _publish(self, observation: Observation) -> None:
        self._history.add(observation, self._loop.time())
        datagram = build_seen(observation)
        for relay in tuple(self._relays):
            self._send(relay, datagram)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # The relay hung up again.
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        pid, uid, _ = _PEER_CREDENTIALS.unpack(credentials)
        problem = ""
        if uid not in self._allowed_uids:
            problem = "its user may not (--allow-user)"
        elif len(self._relays) >= MAX_RELAYS:
            problem = f"{MAX_RELAYS} are connected"
        if problem:
            self._counters.relays_refused += 1
            log.warning("capture_refused", pid=pid, uid=uid, reason=problem)
            sock.close()
            return
        sock.setblocking(False)
        relay = Outbox(sock, pid, self._loop, self._counters)
        self._relays.append(relay)
        self._loop.add_reader(sock, self._hear, relay)
        log.info("relay_connected", pid=pid)
        self._report()
        for observation, age in self._history.kept(self._loop.time()):
            self._send(relay, build_seen(observation, max(age, 0.001)))

    def _hear(self, relay: Outbox) -> None:
        """A request for frames, or its end. Other talk is thrown away."""
        try:
            data = relay.socket.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._gone(relay)
        elif (request := parse_record(data)) is not None:
            count, seconds = request
            # A request that is larger or longer gets this much.
            relay.frames = min(count, MAX_RECORD_COUNT)
            relay.frames_until = self._loop.time() + min(seconds, MAX_RECORD_SECONDS)
            self._recording = any(other.frames for other in self._relays)

    def _send(self, relay: Outbox, datagram: bytes) -> None:
        try:
            relay.send(datagram)
        except OSError:
            self._gone(relay)

    def _gone(self, relay: Outbox) -> None:
        if relay not in self._relays:
            return
        self._relays.remove(relay)
        relay.close()
        log.info("relay_gone", pid=relay.pid)

    def _report(self) -> None:
        if self._report_timer is not None:
            self._report_timer.cancel()
            self._report_timer = None
        if not self._relays:
            return
        self._report_timer = self._loop.call_later(COUNTERS_INTERVAL, self._report)
        values = self._values()
        datagram = None
        for relay in tuple(self._relays):
            if relay.reported == values:
                continue
            if datagram is None:
                uptime = round(self._loop.time() - self._started, 1)
                datagram = build_counters({**values, **memory(), "uptime": uptime})
            relay.reported = values
            self._send(relay, datagram)

    def _values(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            **dataclasses.asdict(self._observer.counters),
            **dataclasses.asdict(self._counters),
            "tagged": self._tagged,
            "interfaces": {
                sniffer.ifname: {"state": sniffer.state, "kernel_drops": sniffer.update_drops()}
                for sniffer in self._sniffers
            },
        }


async def run(config: Config, allowed_users: frozenset[int] = frozenset()) -> None:
    """Serve until cancelled or until SIGTERM or SIGINT.

    `allowed_users` are uids that may connect besides our own and root; with any, the socket's mode
    is 0660 instead of 0600. ConfigError without a LAN interface; CaptureError when a packet socket
    or the unix socket cannot be opened.
    """
    if not config.lan.interface:
        raise ConfigError("config", "lan.interface", "names no interface to capture on")
    path = Path(config.capture.socket)
    listener = listen(path, 0o660 if allowed_users else 0o600)
    sniffers: list[Sniffer] = []
    try:
        for ifname in dict.fromkeys(config.lan.interface):
            sniffers.append(Sniffer(ifname))  # noqa: PERF401 - those opened so far are closed below.
        drop_all_capabilities()
        observer = Observer(load_dissector())
        _trim_memory()
        service = CaptureService(sniffers, observer, listener, allowed_users | {0, os.geteuid()})
        await _serve(service)
    finally:
        listener.close()
        for sniffer in sniffers:
            sniffer.close()
        _unlink(path)


async def _serve(service: CaptureService) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    service.start()
    notifier = Notifier(os.environ)
    notifier.feed_watchdog()
    notifier.ready("capturing")
    try:
        await stopped.wait()
        notifier.stopping()
    finally:
        service.stop()
        notifier.close()


def main(config: Config, allowed_users: frozenset[int] = frozenset()) -> int:
    """Run the capture process (see `run`); its exit status.

    0 after a signal, EXIT_CONFIG or EXIT_NO_PERMISSION with the reason in the log.
    """
    try:
        asyncio.run(run(config, allowed_users))
    except ConfigError as exc:
        log.error("capture_ended", reason=exc)
        return EXIT_CONFIG
    except CaptureError as exc:
        log.error("capture_ended", reason=exc)
        return EXIT_NO_PERMISSION
    return 0


def listen(path: Path, mode: int) -> socket.socket:
    """The unix socket the relay connects to; a stale one of a dead process is replaced.

    CaptureError when somebody serves it already, or the path cannot be used.
    """
    listener = socket.socket(
        socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        # The mode has to hold from the first moment on, not from a later chmod.
        mask = os.umask(0o777 & ~mode)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(MAX_RELAYS)
    except OSError as exc:
        listener.close()
        raise CaptureError(f"{path}: {exc.strerror or exc}") from exc
    return listener


def _unlink(path: Path) -> None:
    # Without capabilities that may be forbidden; the next start removes a stale socket.
    with contextlib.suppress(OSError):
        path.unlink()


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise OSError(
        errno.EADDRINUSE,
        "another capture service is running; to record what it sees: gwmodule capture -w FILE",
    )


def _open_link_messages() -> socket.socket:
    sock = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        socket.NETLINK_ROUTE,
    )
    sock.bind((0, _RTMGRP_LINK))
    return sock


def _trim_memory() -> None:
    """Give back what the imports left behind: 6 MiB with glibc."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError):  # musl gives back by itself.
        ctypes.CDLL(None).malloc_trim(0)
