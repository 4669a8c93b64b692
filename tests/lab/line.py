"""A WAN line between two network namespaces, packet by packet: rate, delay, queue, loss.

    near namespace                  this process                       far namespace
    TCP -> TUN `line` -> [tail-drop queue -> rate -> delay -> loss] -> TUN `line` -> TCP
                         (one such chain in each direction)

The kernels that run the tests have no netem, and a proxy that ends TCP would measure its own
buffers. A TUN device without offload flags never sees a segment larger than the MTU, so what is
queued here are the packets that a modem would queue. A packet is charged to the line when it is
read from the device; nothing waits in front of the queue that the queue does not know of.

    with Namespaces() as (near, far), Line(near, far) as line:
        line.set(Profile(rate=8e6, delay=0.025, queue=0.1))
        print(validate(line))
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import random
import select
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

DEVICE = "line"
NEAR_ADDRESS, FAR_ADDRESS = "198.18.0.1", "198.18.0.2"  # RFC 2544: for measurements
MTU = 1500

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_PR_SET_TIMERSLACK = 29
# The device's own queue only has to survive the moments in which this process does not run.
_DEVICE_QUEUE = 20000
# Packets read from one device before the deliveries are looked at again.
_BATCH = 64
# Probes run at their time, too, or what they saw would be the load of the machine; but the line
# comes first.
_LINE_PRIORITY, _PROBE_PRIORITY = 20, 10
# IPv4 and UDP headers: the line counts whole packets.
_HEADERS = 28

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Profile:
    """Both directions alike: bit/s, one-way seconds, seconds of queue at that rate, 0..1."""

    rate: float
    delay: float
    queue: float
    loss: float = 0.0
    seed: int = 1


class Direction:
    """One direction as arithmetic: when each packet comes out, or that it never does."""

    def __init__(self, profile: Profile, seed: int) -> None:
        self.set(profile, seed)
        self._flying: deque[tuple[float, bytes]] = deque()
        self._free_at = 0.0
        self.packets = self.octets = self.dropped = self.lost = 0
        self.longest_queue = self.latest = 0.0

    def set(self, profile: Profile, seed: int) -> None:
        """Packets that are under way keep their times."""
        self._seconds_per_octet = 8 / profile.rate
        self._delay = profile.delay
        self._queue = profile.queue
        self._loss = profile.loss
        self._rng = random.Random(seed)

    def offer(self, packet: bytes, now: float) -> None:
        """A packet reaches the line at `now`."""
        start = self._free_at if self._free_at > now else now
        time_needed = len(packet) * self._seconds_per_octet
        # What waits, this packet included, must fit; the one being sent has left the queue.
        waits = start + time_needed - now
        if start > now and waits > self._queue:
            self.dropped += 1
            return
        if waits > self.longest_queue:
            self.longest_queue = waits
        self._free_at = start + time_needed
        self.packets += 1
        self.octets += len(packet)
        # Lost on the line, behind the queue: it has cost its time on the wire like any other.
        if self._loss and self._rng.random() < self._loss:
            self.lost += 1
            return
        self._flying.append((self._free_at + self._delay, packet))

    @property
    def next_due(self) -> float | None:
        return self._flying[0][0] if self._flying else None

    def take(self, now: float) -> bytes | None:
        """The next packet that has arrived by `now`."""
        if not self._flying or self._flying[0][0] > now:
            return None
        due, packet = self._flying.popleft()
        if now - due > self.latest:
            self.latest = now - due
        return packet

    def report(self) -> dict[str, float]:
        """What happened since the last report."""
        result = {
            "packets": self.packets,
            "octets": self.octets,
            "dropped": self.dropped,
            "lost": self.lost,
            "longest_queue": self.longest_queue,
            "latest": self.latest,
        }
        self.packets = self.octets = self.dropped = self.lost = 0
        self.longest_queue = self.latest = 0.0
        return result


# ---- the process --------------------------------------------------------------------------------


def _enter(namespace: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open() as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"setns: {os.strerror(error)}", str(namespace))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _open_tun(namespace: Path, address: str, peer: str, congestion: str) -> int:
    """A TUN device in `namespace`, up and addressed; leaves the process in that namespace."""
    _enter(namespace)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    # No TUNSETOFFLOAD: the kernel then segments, and fills in checksums, before we see a packet.
    request = struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(descriptor, _TUNSETIFF, request)
    _ip("link", "set", DEVICE, "mtu", str(MTU), "txqueuelen", str(_DEVICE_QUEUE))
    _ip("address", "add", f"{address}/32", "dev", DEVICE)
    _ip("link", "set", DEVICE, "up")
    # By route, because a namespace may not choose an algorithm that is not the machine's default.
    _ip("route", "add", peer, "dev", DEVICE, "src", address, "congctl", congestion)
    return descriptor


def _become_punctual(priority: int) -> bool:
    """Whether the scheduler will let this thread run at its deadlines, whoever else would."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _punctual() -> Iterator[None]:
    """This thread, and those that it starts, run at their deadlines if the scheduler lets them."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    _become_punctual(_PROBE_PRIORITY)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)
        # 0 is what the thread began with (prctl(2)).
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 0, 0, 0, 0)


class _Process:
    """Reads commands (a Profile, or null for a report) on stdin, answers each with one line."""

    def __init__(self, near: Path, far: Path, congestion: str) -> None:
        self._near = _open_tun(near, NEAR_ADDRESS, FAR_ADDRESS, congestion)
        self._far = _open_tun(far, FAR_ADDRESS, NEAR_ADDRESS, congestion)
        self._oversized = 0
        idle = Profile(rate=1e9, delay=0.0, queue=1.0)
        self._up, self._down = Direction(idle, 0), Direction(idle, 1)
        self._realtime = _become_punctual(_LINE_PRIORITY)
        self._cpu = time.process_time()
        self._since = time.monotonic()

    def run(self) -> None:
        clock = time.monotonic
        near, far, commands = self._near, self._far, sys.stdin.fileno()
        up, down = self._up, self._down
        print(json.dumps({"realtime": self._realtime}), flush=True)
        while True:
            self._deliver(up, far)
            self._deliver(down, near)
            due = [at for at in (up.next_due, down.next_due) if at is not None]
            timeout = max(min(due) - clock(), 0.0) if due else None
            readable = select.select((near, far, commands), (), (), timeout)[0]
            for descriptor in readable:
                if descriptor == commands:
                    if not self._command():
                        return
                else:
                    self._collect(descriptor, up if descriptor == near else down)

    def _deliver(self, direction: Direction, descriptor: int) -> None:
        while (packet := direction.take(time.monotonic())) is not None:
            # ENOBUFS and the like: the host could not take it, as any host may.
            with contextlib.suppress(OSError):
                os.write(descriptor, packet)

    def _collect(self, descriptor: int, direction: Direction) -> None:
        for _ in range(_BATCH):
            try:
                packet = os.read(descriptor, 65536)
            except BlockingIOError:
                return
            self._oversized += len(packet) > MTU
            # IPv4 only: neighbour discovery of the kernel's own is not the line's traffic.
            if packet[0] >> 4 == 4:
                direction.offer(packet, time.monotonic())

    def _command(self) -> bool:
        line = sys.stdin.readline()
        if not line:
            return False
        wanted = json.loads(line)
        if wanted is not None:
            profile = Profile(**wanted)
            self._up.set(profile, profile.seed)
            self._down.set(profile, profile.seed + 1)
        now, cpu = time.monotonic(), time.process_time()
        report = {
            "up": self._up.report(),
            "down": self._down.report(),
            "oversized": self._oversized,
            "realtime": self._realtime,
            "cpu": (cpu - self._cpu) / max(now - self._since, 1e-9),
        }
        self._since, self._cpu = now, cpu
        print(json.dumps(report), flush=True)
        return True


# ---- for tests and the bench --------------------------------------------------------------------


def socket_in(namespace: Path, make: Callable[[], T]) -> T:
    """Call `make` in a network namespace: sockets stay where they were made."""
    result: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            _enter(namespace)
            result.append(make())
        except BaseException as exc:
            failure.append(exc)

    # A network namespace belongs to a thread, and this one ends here.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


class Namespaces:
    """Two empty network namespaces, each with its loopback up."""

    def __init__(self, near: str = "near", far: str = "far") -> None:
        self._names = (near, far)

    def __enter__(self) -> tuple[Path, Path]:
        for name in self._names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        near, far = (Path("/run/netns", name) for name in self._names)
        for namespace in (near, far):
            socket_in(namespace, _forget_metrics)
        return near, far

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def _forget_metrics() -> None:
    """Each connection finds out about the line by itself, as after a reboot."""
    Path("/proc/sys/net/ipv4/tcp_no_metrics_save").write_text("1")


class Line:
    """The process, from `with` to the end of the block."""

    def __init__(
        self, near: Path, far: Path, cpu: int | None = None, congestion: str = "cubic"
    ) -> None:
        self.near, self.far = near, far
        # What Debian and OpenWrt ship; the machine's own default may be another.
        self.congestion = congestion
        self.profile: Profile | None = None
        self._cpu = cpu
        self._process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        argv = [sys.executable, "-m", "tests.lab.line", str(self.near), str(self.far)]
        argv.append(self.congestion)
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._cpu is not None:
            os.sched_setaffinity(self._process.pid, {self._cpu})
        self._answer()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def set(self, profile: Profile) -> None:
        self.profile = profile
        self._ask(asdict(profile))

    def report(self) -> dict[str, Any]:
        """Counters since the last report or `set`."""
        return self._ask(None)

    def _ask(self, command: dict[str, Any] | None) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the line ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


# ---- is the line what it says? ------------------------------------------------------------------


@dataclass(slots=True)
class Measured:
    """What UDP probes saw of one line; seconds, bit/s, shares."""

    # The median, the largest but a hundredth, and the smallest, to which only the line has added.
    rtt: float
    rtt_p99: float
    rtt_fastest: float
    rate: dict[str, float] = field(default_factory=dict)
    queue: dict[str, float] = field(default_factory=dict)
    loss: float = 0.0
    latest: float = 0.0
    cpu: float = 0.0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rates = "/".join(f"{self.rate[d] / 1e6:.2f}" for d in sorted(self.rate))
        queues = "/".join(f"{self.queue[d] * 1e3:.0f}" for d in sorted(self.queue))
        state = "ok" if not self.problems else "; ".join(self.problems)
        return (
            f"rtt {self.rtt * 1e3:.2f} ms (p99 {self.rtt_p99 * 1e3:.2f}), rate down/up {rates}"
            f" Mbit/s, queue down/up {queues} ms, loss {self.loss * 100:.2f} %,"
            f" late at most {self.latest * 1e3:.2f} ms, cpu {self.cpu * 100:.0f} %: {state}"
        )


def validate(line: Line, probes: int = 100) -> Measured:
    """Measure RTT, rate, queue and loss of the line as it is set, against its profile."""
    profile = line.profile
    assert profile is not None
    with contextlib.ExitStack() as stack:
        near = stack.enter_context(_udp(line.near, NEAR_ADDRESS))
        far = stack.enter_context(_udp(line.far, FAR_ADDRESS))
        stack.enter_context(_punctual())
        times = sorted(_round_trips(near, far, probes, profile))
        line.report()
        measured = Measured(statistics.median(times), times[int(len(times) * 0.99)], times[0])
        reports: list[dict[str, Any]] = []
        for name, source, sink in (("up", near, far), ("down", far, near)):
            measured.rate[name], measured.queue[name] = _overload(source, sink, profile)
            reports.append(line.report())
            flown = reports[-1][name]
            measured.loss += flown["lost"] / max(flown["packets"], 1) / 2
    measured.latest = max(max(r["up"]["latest"], r["down"]["latest"]) for r in reports)
    measured.cpu = max(r["cpu"] for r in reports)
    measured.problems = _problems(measured, profile, reports, line)
    return measured


def _udp(namespace: Path, address: str) -> socket.socket:
    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        sock.bind((address, 0))
        sock.settimeout(1.0)
        return sock

    return socket_in(namespace, make)


def _round_trips(
    near: socket.socket, far: socket.socket, probes: int, profile: Profile
) -> list[float]:
    """One probe at a time, so that none waits for another."""
    times: list[float] = []
    patience = 2 * profile.delay + 0.2
    near.settimeout(patience)
    far.settimeout(patience)
    for number in range(probes):
        sent = time.monotonic()
        near.sendto(struct.pack(">I", number), far.getsockname())
        try:
            probe, source = far.recvfrom(64)
            far.sendto(probe, source)
            near.recv(64)
        except TimeoutError:
            continue
        times.append(time.monotonic() - sent)
        if sum(times) > 6:
            break
    return times


def _overload(source: socket.socket, sink: socket.socket, profile: Profile) -> tuple[float, float]:
    """Send twice the rate until the queue has been full for a while: (rate, longest wait)."""
    payload = 1372
    packet_time = (payload + _HEADERS) * 8 / profile.rate
    target = sink.getsockname()
    duration = profile.queue * 1.5 + 0.6

    def send() -> None:
        start, sent = time.monotonic(), 0
        while (elapsed := time.monotonic() - start) < duration:
            while sent * packet_time / 2 < elapsed:
                stamp = struct.pack(">d", time.monotonic())
                source.sendto(stamp.ljust(payload, b"\0"), target)
                sent += 1
            time.sleep(0.001)

    thread = threading.Thread(target=send)
    arrivals: list[tuple[float, float]] = []
    sink.settimeout(2 * profile.delay + profile.queue + 0.3)
    thread.start()
    with contextlib.suppress(TimeoutError):
        while True:
            stamp = sink.recv(2048)
            arrivals.append((time.monotonic(), struct.unpack_from(">d", stamp)[0]))
    thread.join()
    waits = [at - sent for at, sent in arrivals]
    span = arrivals[-1][0] - arrivals[0][0]
    delivered = (len(arrivals) - 1) / (1 - profile.loss)
    # The first packet's own time on the wire is part of every wait; the queue is what comes on top.
    return delivered * (payload + _HEADERS) * 8 / span, max(waits) - min(waits)


def _problems(
    measured: Measured, profile: Profile, reports: list[dict[str, Any]], line: Line
) -> list[str]:
    problems: list[str] = []
    small = 2 * 32 * 8 / profile.rate
    expected = 2 * profile.delay + small
    # Scheduling costs some hundred microseconds on a machine that others use too.
    if not expected - 0.0005 <= measured.rtt_fastest <= expected * 1.02 + 0.002:
        problems.append(f"rtt {measured.rtt_fastest * 1e3:.2f} ms instead of {expected * 1e3:.2f}")
    packet = 1400 * 8 / profile.rate
    for name in ("up", "down"):
        if not 0.97 <= measured.rate[name] / profile.rate <= 1.03:
            problems.append(f"{name} {measured.rate[name] / 1e6:.2f} Mbit/s")
        if abs(measured.queue[name] - profile.queue) > 2 * packet + 0.004 + 0.1 * profile.queue:
            problems.append(f"{name} queue {measured.queue[name] * 1e3:.1f} ms")
    if abs(measured.loss - profile.loss) > max(profile.loss, 0.0002):
        problems.append(f"loss {measured.loss * 100:.2f} %")
    if any(report["oversized"] for report in reports):
        problems.append("packets larger than the MTU: offloading is on")
    refused = sum(device_drops(namespace) for namespace in (line.near, line.far))
    if refused:
        problems.append(f"{refused} packets dropped in front of the line")
    return problems


def device_drops(namespace: Path) -> int:
    """Packets that the TUN device refused because this process did not read in time."""
    listing = subprocess.run(
        ["ip", "-n", namespace.name, "-s", "-j", "link", "show", "dev", DEVICE],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return int(json.loads(listing)[0]["stats64"]["tx"]["dropped"])


@contextlib.contextmanager
def lined_up(profile: Profile, cpu: int | None = None) -> Iterator[Line]:
    """Two namespaces and a line between them."""
    with Namespaces() as (near, far), Line(near, far, cpu) as line:
        line.set(profile)
        yield line


if __name__ == "__main__":
    _Process(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]).run()
