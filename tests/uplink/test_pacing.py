from __future__ import annotations

import socket
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from gwmodule.uplink.pacing import LineSample, Pacer, parse_tcp_info

MBIT = 125_000.0  # bytes per second
STEP = 0.001


@dataclass
class Outcome:
    queue: list[float]  # seconds
    sent: list[float]  # bytes per second
    rates: list[float]


class Line:
    """A fluid model of one bottleneck with a tail-drop queue, fed by a paced sender.

    The sender sees what TCP_INFO would show: rtt smoothed over eight acknowledgements, and the rate
    at which the line delivered during the last round trip, both one round trip late.
    """

    def __init__(
        self,
        capacity: Callable[[float], float],
        rtt: float = 0.05,
        queue: float = 0.1,
        other: Callable[[float], float] = lambda now: 0.0,
        loss: float = 0.0,
        initial_queue: float = 0.1,
    ) -> None:
        self.capacity = capacity
        self.base = rtt
        self.limit = queue
        self.other = other
        self.loss = loss
        self.waiting = initial_queue * capacity(0.0)  # bytes in the queue
        self.srtt = rtt + initial_queue

    def run(self, seconds: float) -> Outcome:
        now = 0.0
        late: deque[tuple[float, float, float]] = deque()  # arrives at, rtt, delivered
        delivered: deque[float] = deque(maxlen=int(self.base / STEP))
        sample = LineSample(self.srtt, self.base, self.capacity(0.0), False)
        pacer = Pacer(sample, now)
        pace = pacer.pace
        update_at = now
        outcome = Outcome([], [], [])
        while now < seconds:
            capacity = self.capacity(now)
            foreign = self.other(now)
            arriving = (pace.rate + foreign) * STEP
            out = min(capacity * STEP, self.waiting + arriving)
            self.waiting = min(self.waiting + arriving - out, self.limit * capacity)
            share = pace.rate / (pace.rate + foreign)
            delivered.append(out * share / STEP * (1 - 8 * self.loss))
            rate = statistics.fmean(delivered)
            late.append((now + self.base, self.base + self.waiting / capacity, rate))
            while late and late[0][0] <= now:
                _, rtt, rate = late.popleft()
                # One acknowledgement per two packets of 1,448 bytes.
                weight = min(1.0, rate * STEP / 2896 / 8)
                self.srtt += (rtt - self.srtt) * weight
                sample = LineSample(self.srtt, self.base, rate, False)
            if now >= update_at:
                pace = pacer.update(sample, now)
                update_at = pacer.next_update(sample, now)
            outcome.queue.append(self.waiting / capacity)
            outcome.sent.append(out * share / STEP)
            outcome.rates.append(pace.rate)
            now += STEP
        return outcome


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def after(seconds: float, values: list[float]) -> list[float]:
    return values[int(seconds / STEP) :]


@pytest.mark.parametrize("mbit", [1, 2, 8, 50, 300])
@pytest.mark.parametrize("rtt", [0.01, 0.05, 0.2])
def test_a_steady_line_is_nearly_full_and_its_queue_nearly_empty(mbit: float, rtt: float) -> None:
    outcome = Line(lambda now: mbit * MBIT, rtt=rtt).run(30)
    # On a long line the look at the queue comes late, and so does the answer; on a slow one the
    # acknowledgement of a packet does.
    assert p99(after(3, outcome.queue)) < max(0.020, 0.15 * rtt, 2.5 * 1448 / (mbit * MBIT))
    # At 1 Mbit/s 43 acknowledgements a second are all there is to steer by.
    share = 0.8 if mbit > 1 else 0.7
    assert statistics.fmean(after(3, outcome.sent)) > share * mbit * MBIT


def test_a_full_queue_is_drained_within_a_second() -> None:
    outcome = Line(lambda now: 8 * MBIT, initial_queue=0.1).run(3)
    assert max(after(1.0, outcome.queue)) < 0.025


def test_a_line_that_gets_slower_is_followed_within_a_second() -> None:
    outcome = Line(lambda now: (8 if now < 10 else 3) * MBIT).run(20)
    assert p99(after(11.5, outcome.queue)) < 0.020
    assert statistics.fmean(after(11.5, outcome.sent)) > 0.75 * 3 * MBIT


def test_a_line_that_gets_faster_is_found() -> None:
    outcome = Line(lambda now: (3 if now < 10 else 8) * MBIT).run(25)
    assert statistics.fmean(after(15, outcome.sent)) > 0.8 * 8 * MBIT


def test_loss_without_a_queue_does_not_slow_it_down() -> None:
    outcome = Line(lambda now: 8 * MBIT, loss=0.01).run(20)
    assert statistics.fmean(after(3, outcome.sent)) > 0.7 * 8 * MBIT


def paced(pacer: Pacer, sample: LineSample, start: float, seconds: float) -> float:
    """The rate after so long with nothing else to see."""
    now, rate = start, pacer.pace.rate
    while now < start + seconds:
        rate = pacer.update(sample, now).rate
        now = pacer.next_update(sample, now)
    return rate


def test_one_round_trip_of_recovery_does_not_pull_it_down() -> None:
    pacer = Pacer(LineSample(0.05, 0.05, 8 * MBIT, False), 0.0)
    paced(pacer, LineSample(0.05, 0.05, 8 * MBIT, False), 0.0, 5.0)
    recovering = LineSample(0.060, 0.05, 2 * MBIT, False)
    assert paced(pacer, recovering, 5.0, 0.05) > 0.8 * 8 * MBIT


def test_an_acknowledgement_that_waits_for_the_next_packet_is_no_queue() -> None:
    rate = 0.5 * MBIT
    pacer = Pacer(LineSample(0.05, 0.05, rate, False), 0.0)
    # Of one packet in 23 ms each second one is acknowledged at once.
    assert paced(pacer, LineSample(0.05 + 0.012, 0.05, rate, False), 0.0, 20.0) > 0.65 * rate


def test_far_below_what_the_line_has_carried_it_grows_fast() -> None:
    pacer = Pacer(LineSample(0.05, 0.05, 8 * MBIT, False), 0.0)
    full = LineSample(0.1, 0.05, 1 * MBIT, False)
    low = paced(pacer, full, 0.0, 3.0)
    assert low < 1 * MBIT
    assert paced(pacer, LineSample(0.05, 0.05, 1 * MBIT, True), 3.0, 5.0) > 3 * MBIT


def test_beside_traffic_that_keeps_the_queue_full_bulk_goes_on() -> None:
    outcome = Line(lambda now: 8 * MBIT, other=lambda now: 8 * MBIT).run(20)
    assert statistics.fmean(after(5, outcome.sent)) > 0.05 * 8 * MBIT


def test_when_other_traffic_leaves_its_share_is_taken_back() -> None:
    outcome = Line(lambda now: 8 * MBIT, other=lambda now: 6 * MBIT if now < 10 else 0.0).run(40)
    assert statistics.fmean(after(30, outcome.sent)) > 0.8 * 8 * MBIT


def test_the_piece_between_a_keystroke_and_the_wire_is_two_milliseconds_of_line() -> None:
    def chunk(rate: float) -> int:
        return Pacer(LineSample(0.05, 0.05, rate / 0.7, False), 0.0).pace.chunk

    assert chunk(2_000_000) == 4000
    assert chunk(10_000) == 2048
    assert chunk(100_000_000) == 16384


def test_the_kernel_answers_with_the_fields_we_read() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        with peer:
            for _ in range(50):
                client.sendall(bytes(1000))
                assert peer.recv(1000)
                peer.sendall(b"x")
                client.recv(1)
        sample = parse_tcp_info(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256))
    assert sample is not None
    assert 0 < sample.min_rtt <= sample.rtt < 1
    assert sample.delivery_rate > 10_000


def test_an_old_kernel_gives_no_sample() -> None:
    assert parse_tcp_info(bytes(104)) is None
