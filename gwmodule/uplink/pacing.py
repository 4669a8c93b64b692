"""How fast to send while bulk and an interactive stream share the line.

A sender at full speed fills the modem's queue, and a keystroke then waits behind it: 100 ms of
queue are 100 ms of echo, whatever the order inside our own buffers. So while both classes are open,
the sender stays a little below what the line delivers, and looks for more a little at a time:

    queue = rtt - min_rtt          what our bytes (or somebody's) wait for on the way

    queue below LOW      up to 3 % more each round trip    there may be room
    LOW to HIGH          hold
    above HIGH           0.85 of what was delivered        let it drain, then start again from there

Delivered is the best of the last round trips, as in BBR: after a lost packet TCP cuts its window,
and one round trip of that says nothing about the line. The acknowledgement of a packet may wait for
the next one, and so one packet's time at the present rate counts as no queue.

Pure: samples and time in, a pace out. The kernel does the pacing (SO_MAX_PACING_RATE).
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

# Seconds of queue. TCP's own rtt jitter on a quiet line is about a millisecond; 2 ms are not quite
# two packets at 8 Mbit/s.
LOW = 0.002
HIGH = 0.005
# Growth in the time that a look at the queue is late, and the queue (seconds) which that may cost:
# on a slow line the smoothed rtt is very late, and there each step must be smaller.
_GROWTH = 0.03
_OVERSHOOT = 0.003
# The kernel smooths rtt over eight acknowledgements, one for two packets.
_PACKET = 1448
_SMOOTHING = 8 * 2 * _PACKET
# A cut of 15 % is regained by 18 %; growing on without a queue means that the line got faster.
_REGAINED = 0.3
# So does being this many times below the best rate of the last minute: there was more.
_FAR_BELOW = 3
_MAX_BOOST = 8
_DRAIN = 0.85
# Round trips: TCP's recovery of a loss takes one or two, a line that got slower is believed then.
_DELIVERY_WINDOW = 4
# A first guess from a full-speed line sits in a full queue: well below, so that it empties soon.
_START = 0.7
# Never more than this above what was delivered: a line that got slower is found in one round trip.
_HEADROOM = 1.2
# When somebody else keeps the queue full, backing off further changes nothing: this much of the
# best rate seen is ours all the same. The best is forgotten by halves, after this many seconds.
_FLOOR = 0.1
_SLOWEST = 8 * 1024
_BEST_WINDOW = 60.0
# The largest piece, in seconds of line. One may lie unsent in the kernel while the next is being
# written, so a keystroke waits for two: with 4 ms each they were most of what bulk cost it.
_CHUNK_TIME = 0.002
_MIN_CHUNK = 2 * 1024
_MAX_CHUNK = 16 * 1024
_MIN_INTERVAL = 0.01

# struct tcp_info of linux/tcp.h: the flags byte, rtt, min_rtt, delivery_rate.
_FLAGS = 7
_RTT = struct.Struct("=I")
_RATE = struct.Struct("=Q")
_RTT_AT = 68
_MIN_RTT_AT = 148
_DELIVERY_RATE_AT = 160
TCP_INFO_SIZE = 168


@dataclass(slots=True)
class LineSample:
    """What the kernel knows of the line: seconds and bytes per second."""

    rtt: float
    min_rtt: float
    delivery_rate: float
    # The rate was measured while the sender had nothing to send: it says nothing about the line.
    app_limited: bool


@dataclass(slots=True)
class Pace:
    """Bytes per second, and the largest piece (bytes) to hand to the kernel at a time."""

    rate: float
    chunk: int


def parse_tcp_info(data: bytes) -> LineSample | None:
    """The sample in a TCP_INFO answer; None on kernels (before 4.9) whose answer is shorter."""
    if len(data) < TCP_INFO_SIZE:
        return None
    (rtt,) = _RTT.unpack_from(data, _RTT_AT)
    (min_rtt,) = _RTT.unpack_from(data, _MIN_RTT_AT)
    (rate,) = _RATE.unpack_from(data, _DELIVERY_RATE_AT)
    return LineSample(rtt / 1e6, min_rtt / 1e6, float(rate), bool(data[_FLAGS] & 1))


class Pacer:
    """One sharing of the line, from the moment both classes are open until one is gone."""

    def __init__(self, sample: LineSample, now: float) -> None:
        self._rate = max(sample.delivery_rate * _START, _SLOWEST)
        self._updated = now
        # After a cut the line needs a round trip to show the effect.
        self._hold_until = now + 2 * sample.rtt
        self._grown = 0.0
        self._best = sample.delivery_rate
        self._best_at = now
        self._deliveries: deque[tuple[float, float]] = deque()

    @property
    def pace(self) -> Pace:
        chunk = int(self._rate * _CHUNK_TIME)
        return Pace(self._rate, min(max(chunk, _MIN_CHUNK), _MAX_CHUNK))

    def update(self, sample: LineSample, now: float) -> Pace:
        elapsed, self._updated = now - self._updated, now
        self._remember(sample.delivery_rate, now)
        delivered = self._delivered(sample, now)
        queue = sample.rtt - sample.min_rtt - _PACKET / self._rate
        if queue > HIGH:
            self._grown = 0.0
            if now >= self._hold_until:
                self._rate = min(self._rate, delivered) * _DRAIN
                self._hold_until = now + 1.5 * self._late(sample)
        elif queue < LOW and now >= self._hold_until:
            self._grow(sample, elapsed, delivered)
        self._rate = max(self._rate, self._best * _FLOOR, _SLOWEST)
        return self.pace

    def _grow(self, sample: LineSample, elapsed: float, delivered: float) -> None:
        late = self._late(sample)
        known = self._best / self._rate / _FAR_BELOW
        boost = min(max(self._grown / _REGAINED, known, 1.0) ** 2, _MAX_BOOST)
        growth = min(_GROWTH, _OVERSHOOT / late) * boost * min(elapsed / late, 1.0)
        self._grown += growth
        # A sender without bulk to send measures itself; only a busy one measures the line.
        if sample.app_limited:
            delivered = max(delivered, self._best)
        grown = self._rate * (1 + growth)
        self._rate = max(self._rate, min(grown, delivered * _HEADROOM))

    def _delivered(self, sample: LineSample, now: float) -> float:
        """The best rate of the last round trips."""
        recent = self._deliveries
        while recent and recent[0][0] < now - _DELIVERY_WINDOW * sample.min_rtt:
            recent.popleft()
        while recent and recent[-1][1] <= sample.delivery_rate:
            recent.pop()
        recent.append((now, sample.delivery_rate))
        return recent[0][1]

    def _late(self, sample: LineSample) -> float:
        """Seconds until the smoothed rtt shows what the rate did to the queue."""
        return sample.rtt + _SMOOTHING / self._rate

    def _remember(self, rate: float, now: float) -> None:
        if rate >= self._best:
            self._best, self._best_at = rate, now
        elif now - self._best_at > _BEST_WINDOW:
            self._best, self._best_at = max(rate, self._best / 2), now

    def next_update(self, sample: LineSample, now: float) -> float:
        """When to look again: half a round trip, but the processor has other work too."""
        return now + max(sample.rtt / 2, _MIN_INTERVAL)
