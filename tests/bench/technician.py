"""The near end of every path: types and moves bulk, and says what it saw as one JSON line.

python -m tests.bench.technician type PORT COUNT LOW HIGH
    COUNT bytes, LOW to HIGH seconds apart whether or not the echo is back (people do not
    wait, and neither may the measurement); with HIGH 0 each waits for the one before it
python -m tests.bench.technician up|down PORT WARM_UP STATS_SOCKET
    saturate until stdin closes; bytes are counted at the receiver, after WARM_UP seconds
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import socket
import sys
import threading
import time

_CHUNK = 64 * 1024
# After the last byte was typed: longer than any queue of the bench.
_PATIENCE = 10.0
_PROBE_PATIENCE = 2.0
WARM_UP_IDLE, WARM_UP_LOADED = 200, 5


def _connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def ping_pong(sock: socket.socket, count: int) -> list[float]:
    clock = time.perf_counter
    times: list[float] = []
    for _ in range(count):
        start = clock()
        sock.send(b"k")
        if not sock.recv(1):
            break
        times.append(clock() - start)
    return times


def type_on(sock: socket.socket, count: int, low: float, high: float) -> list[float]:
    """Bytes come back in order, so the n-th echo belongs to the n-th keystroke."""
    rng = random.Random(count)
    clock = time.perf_counter
    sent: list[float] = []
    times: list[float] = []
    next_at = clock() + low
    sock.setblocking(False)
    while len(times) < count:
        now = clock()
        if len(sent) < count and now >= next_at:
            sent.append(now)
            sock.send(b"k")
            next_at += rng.uniform(low, high)
        wait = max(next_at - clock(), 0.0) if len(sent) < count else _PATIENCE
        if select.select((sock,), (), (), wait)[0]:
            data = sock.recv(4096)
            now = clock()
            if not data:
                break
            times += [now - at for at in sent[len(times) : len(times) + len(data)]]
        elif len(sent) == count:
            break
    return times


def type_keys(port: int, count: int, low: float, high: float) -> None:
    with _connect(port) as sock:
        warm_up = ping_pong(sock, WARM_UP_LOADED if high else WARM_UP_IDLE)
        times = type_on(sock, count, low, high) if high else ping_pong(sock, count)
        result = {"times": times, "missing": count - len(times), "first": warm_up[:1]}
        print(json.dumps(result), flush=True)
        # While the connection stands, the bench reads what its processes have used.
        sys.stdin.read()


class Bulk:
    """One saturated connection; `counted` is what has reached its receiver."""

    def __init__(self, direction: str, port: int, stats: str) -> None:
        self._sock = _connect(port)
        self._stats = stats
        self._received = 0
        self._work = self._receive if direction == "up" else self._send
        self._upward = direction == "up"

    def start(self) -> None:
        threading.Thread(target=self._work, daemon=True).start()

    def counted(self) -> int:
        if self._upward:
            return self._received
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self._stats)
            return int(sock.recv(64))

    def _receive(self) -> None:
        buffer = bytearray(_CHUNK)
        with contextlib.suppress(OSError):
            while size := self._sock.recv_into(buffer):
                self._received += size

    def _send(self) -> None:
        data = bytes(_CHUNK)
        with contextlib.suppress(OSError):
            while True:
                self._sock.sendall(data)


def saturate(direction: str, port: int, warm_up: float, stats: str) -> dict[str, object]:
    bulk = Bulk(direction, port, stats)
    at_start, started = bulk.counted(), time.monotonic()
    bulk.start()
    time.sleep(warm_up)
    warm, warm_at = bulk.counted(), time.monotonic()
    print("warm", flush=True)
    sys.stdin.read()
    end, now = bulk.counted(), time.monotonic()
    return {
        "rate": (end - warm) * 8 / (now - warm_at),
        "rate_from_start": (end - at_start) * 8 / (now - started),
    }


def main() -> int:
    mode, port = sys.argv[1], int(sys.argv[2])
    if mode == "type":
        count, low, high = int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
        type_keys(port, count, low, high)
    elif mode == "probe":
        with _connect(port) as sock:
            sock.settimeout(_PROBE_PATIENCE)
            return 0 if ping_pong(sock, 1) else 1
    else:
        print(json.dumps(saturate(mode, port, float(sys.argv[3]), sys.argv[4])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
