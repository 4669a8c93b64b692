from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.msp.strangers import Strangers, network_of


def test_one_network_has_every_place_while_nobody_else_wants_one() -> None:
    strangers = Strangers[int]("link", 4)
    assert [strangers.enter(n, "192.0.2.1", 0.0) for n in range(4)] == [None] * 4
    assert strangers.enter(4, "192.0.2.1", 0.0) == 4
    assert (len(strangers), strangers.refused, strangers.displaced) == (4, 1, 0)


def test_a_newcomer_takes_the_place_of_the_oldest_of_the_largest_network() -> None:
    strangers = Strangers[int]("link", 4)
    for n in range(4):
        strangers.enter(n, "192.0.2.1", 0.0)
    assert strangers.enter(10, "198.51.100.7", 0.0) == 0
    assert strangers.enter(11, "198.51.100.7", 0.0) == 1
    assert strangers.enter(12, "198.51.100.7", 0.0) == 12
    assert strangers.enter(4, "192.0.2.1", 0.0) == 4
    assert strangers.all() == [2, 3, 10, 11]
    assert (strangers.refused, strangers.displaced) == (2, 2)


def test_who_is_known_or_gone_makes_room() -> None:
    strangers = Strangers[int]("link", 1)
    strangers.enter(0, "192.0.2.1", 0.0)
    strangers.leave(0)
    strangers.leave(0)
    assert 0 not in strangers
    assert strangers.enter(1, "192.0.2.1", 0.0) is None


def test_the_addresses_of_one_ipv6_customer_are_one_network() -> None:
    strangers = Strangers[int]("link", 4)
    for n in range(4):
        strangers.enter(n, f"2001:db8::{n:x}", 0.0)
    assert strangers.enter(4, "2001:db8::ffff", 0.0) == 4
    assert strangers.enter(5, "2001:db8:0:1::1", 0.0) == 0


def test_a_flood_is_one_line_in_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    strangers = Strangers[int]("link", 2)
    with caplog.at_level(logging.WARNING):
        for n in range(1000):
            strangers.enter(n, "192.0.2.1", n * 0.05)
    assert [record.getMessage() for record in caplog.records] == [
        "event=strangers port=link network=192.0.2.1 connections=2"
    ]


Step = tuple[bool, int]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=200))
def test_it_is_bounded_and_a_full_port_is_shared(steps: list[Step]) -> None:
    strangers = Strangers[tuple[int, int]]("link", 6)
    inside: dict[tuple[int, int], None] = {}
    for number, (enters, network) in enumerate(steps):
        if not enters:
            for who in [who for who in inside if who[0] == network][:1]:
                strangers.leave(who)
                del inside[who]
            continue
        who = (network, number)
        inside[who] = None
        loser = strangers.enter(who, f"192.0.2.{network}", 0.0)
        if loser is not None:
            del inside[loser]
        held = [sum(each[0] == n for each in inside) for n in range(6)]
        # Whoever was turned away had his share already.
        assert loser != who or held[network] + 1 >= max(held)
        assert strangers.all() == list(inside)
        assert len(strangers) <= 6


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("unix", "unix"),
        ("x" * 1000, "x" * 64),
    ],
)
def test_addresses_of_one_customer_count_together(address: str, network: str) -> None:
    assert network_of(address) == network
