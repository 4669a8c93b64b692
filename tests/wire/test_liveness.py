from __future__ import annotations

import random

import pytest

from gwmodule.config import LivenessConfig
from gwmodule.errors import RemoteProtocolError
from gwmodule.wire.liveness import MAX_PINGS, Liveness

CONFIG = LivenessConfig(interval=4.0, timeout=12.0)


def started(*, pings: bool = True) -> Liveness:
    liveness = Liveness(CONFIG, random.Random(1), pings=pings)
    liveness.start(100.0, 0.0)
    return liveness


def test_the_end_that_does_not_ping_wakes_up_for_the_deadline_only() -> None:
    liveness = started(pings=False)
    assert liveness.next_timeout() == 112.0
    assert liveness.next_ping(111.0) is None
    liveness.received(105.0)
    assert liveness.next_timeout() == 117.0


def test_the_first_ping_comes_within_an_interval_and_then_one_each() -> None:
    liveness = started()
    first = liveness.next_timeout()
    assert 100.0 <= first <= 104.0
    assert liveness.next_ping(first - 0.001) is None
    assert liveness.next_ping(first) == 1
    assert liveness.next_timeout() == first + 4.0
    assert liveness.next_ping(first) is None
    assert liveness.next_ping(first + 4.0) == 2


def test_silence_counts_from_the_last_frame() -> None:
    liveness = started()
    assert liveness.silence(111.9) is None
    assert liveness.silence(112.0) == 12.0
    liveness.received(112.0)
    assert liveness.silence(123.9) is None
    assert liveness.silence(125.0) == 13.0


def test_a_pong_measures_the_round_trip_and_answers_once() -> None:
    liveness = started()
    assert liveness.next_ping(104.0) == 1
    assert liveness.answered(1, 104.25) == 0.25
    assert liveness.rtt == 0.25
    with pytest.raises(RemoteProtocolError, match="PONG 1 answers no PING"):
        liveness.answered(1, 104.5)


def test_a_peer_that_answers_only_every_second_ping_goes_on_being_pinged() -> None:
    liveness = started()
    for turn in range(1, 10 * MAX_PINGS):
        cookie = liveness.next_ping(100.0 + 4.0 * turn)
        assert cookie == turn
        if turn % 2 == 0:
            liveness.answered(cookie, 100.0 + 4.0 * turn)


def test_a_peer_that_answers_nothing_is_pinged_no_more() -> None:
    liveness = started()
    cookies = [liveness.next_ping(100.0 + 4.0 * turn) for turn in range(1, 100)]
    assert [cookie for cookie in cookies if cookie] == list(range(1, MAX_PINGS + 1))


def test_a_link_begins_without_the_pings_of_the_one_before() -> None:
    liveness = started()
    liveness.received(101.0)
    assert liveness.next_ping(104.0) == 1
    liveness.stop()
    assert liveness.heard
    assert liveness.next_ping(108.0) is None
    liveness.start(200.0, 0.5)
    assert (liveness.heard, liveness.rtt) == (False, 0.5)
    assert liveness.next_timeout() <= 204.0
    with pytest.raises(RemoteProtocolError, match="PONG 1 answers no PING"):
        liveness.answered(1, 201.0)
