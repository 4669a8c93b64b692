from __future__ import annotations

import logging

import pytest

from gwmodule.msp.strangers import Strangers, network_of


def test_the_addresses_of_one_ipv6_customer_are_one_network() -> None:
    strangers = Strangers[int]("link", 4)
    for n in range(4):
        strangers.enter(n, f"2001:db8::{n:x}", 0.0)
    assert strangers.enter(4, "2001:db8::ffff", 0.0) == 4
    assert strangers.enter(5, "2001:db8:0:1::1", 0.0) == 0
    assert 5 in strangers


def test_a_flood_is_one_line_in_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    strangers = Strangers[int]("link", 2)
    with caplog.at_level(logging.WARNING):
        for n in range(1000):
            strangers.enter(n, "192.0.2.1", n * 0.05)
    assert [record.getMessage() for record in caplog.records] == [
        "event=strangers port=link network=192.0.2.1 connections=2"
    ]


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
