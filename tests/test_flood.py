from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gwmodule.flood import MAX_BUCKETS, FloodLimit

PC = b"pc"


def test_a_burst_passes_and_what_exceeds_it_does_not() -> None:
    limit = FloodLimit(rate=2, burst=3)
    assert [limit.admits(PC, now=0.0) for _ in range(5)] == [True, True, True, False, False]


def test_the_bucket_fills_again_at_its_rate() -> None:
    limit = FloodLimit(rate=2, burst=3)
    for _ in range(3):
        limit.admits(PC, now=0.0)
    assert not limit.admits(PC, now=0.4)
    assert limit.admits(PC, now=0.5)
    assert [limit.admits(PC, now=100.0) for _ in range(4)] == [True, True, True, False]


def test_each_sender_has_its_own_bucket() -> None:
    limit = FloodLimit(rate=1, burst=1)
    assert limit.admits(b"a", now=0.0)
    assert limit.admits(b"b", now=0.0)
    assert not limit.admits(b"a", now=0.0)


def test_a_flood_of_forged_senders_forgets_the_longest_silent() -> None:
    limit = FloodLimit(rate=0.001, burst=1)
    limit.admits(b"silent", now=0.0)
    limit.admits(PC, now=0.0)
    for number in range(MAX_BUCKETS - 1):
        limit.admits(number.to_bytes(6, "big"), now=0.0)
        assert not limit.admits(PC, now=0.0)
    assert limit.admits(b"silent", now=0.0)


@given(st.lists(st.floats(0, 0.5)))
def test_never_more_than_burst_and_rate_allow(gaps: list[float]) -> None:
    limit = FloodLimit(rate=5, burst=4)
    now = 0.0
    admitted = 0
    for gap in gaps:
        now += gap
        admitted += limit.admits(PC, now)
    assert admitted <= 4 + 5 * now + 1e-6


def test_who_is_refused_is_told_how_long_and_pays_nothing() -> None:
    limit = FloodLimit(rate=0.1, burst=3)
    assert [limit.charge(PC, 100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert [limit.charge(PC, 100.0) for _ in range(1000)] == [10.0] * 1000
    assert limit.wait(PC, 104.0) == 6.0
    assert limit.charge(PC, 110.0) == 0.0
    assert limit.charge(PC, 110.0) == 10.0


def test_asking_how_long_takes_nothing() -> None:
    limit = FloodLimit(rate=1, burst=1)
    assert [limit.wait(PC, 0.0) for _ in range(5)] == [0.0] * 5
    assert len(limit) == 0


def test_a_token_can_be_given_back() -> None:
    limit = FloodLimit(rate=1, burst=1)
    limit.refund(PC)
    assert limit.admits(PC, 0.0)
    limit.refund(PC)
    assert limit.admits(PC, 0.0)
    assert not limit.admits(PC, 0.0)
    assert limit.admits(b"other", 0.0)


def test_what_is_remembered_is_bounded_and_the_busy_one_is_kept() -> None:
    limit = FloodLimit(rate=0.001, burst=1, most=100)
    limit.admits(PC, 0.0)
    for number in range(10_000):
        limit.admits(number.to_bytes(6, "big"), 0.0)
        assert not limit.admits(PC, 0.0)
    assert len(limit) == 100
