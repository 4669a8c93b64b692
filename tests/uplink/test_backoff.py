from __future__ import annotations

import random

from gwmodule.config import BackoffConfig
from gwmodule.uplink.backoff import Backoff

CONFIG = BackoffConfig(first=1.0, cap=60.0, healthy=30.0)


def delays(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next_delay() for _ in range(count)]


def test_delays_double_up_to_the_cap_and_never_end() -> None:
    found = delays(Backoff(CONFIG, random.Random(1)), 10_000)
    for number, delay in enumerate(found[:6]):
        assert 2**number / 2 <= delay <= 2**number
    assert all(30 <= delay <= 60 for delay in found[6:])


def test_gateways_that_lost_the_same_msp_spread_out() -> None:
    third = sorted(delays(Backoff(CONFIG, random.Random(seed)), 3)[2] for seed in range(1000))
    assert third[0] < 2.1
    assert third[-1] > 3.9
    assert 2.8 < third[500] < 3.2


def test_only_a_link_that_lived_starts_over() -> None:
    backoff = Backoff(CONFIG, random.Random(1))
    delays(backoff, 8)
    backoff.link_ended(29.9)
    assert backoff.next_delay() >= 30
    backoff.link_ended(30.0)
    assert backoff.next_delay() <= 1


def test_a_changed_wan_starts_over() -> None:
    backoff = Backoff(CONFIG, random.Random(1))
    delays(backoff, 8)
    backoff.reset()
    assert backoff.next_delay() <= 1


def test_a_pause_may_be_skipped_once_until_a_link_has_lived() -> None:
    backoff = Backoff(CONFIG, random.Random(1))
    assert [backoff.skip(), backoff.skip()] == [True, False]
    backoff.link_ended(29.9)
    assert not backoff.skip()
    backoff.link_ended(30.0)
    assert [backoff.skip(), backoff.skip()] == [True, False]
    backoff.reset()
    assert backoff.skip()
