from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Interface

import pytest

from gwmodule.lan import facts as lan_facts
from tests.lan.netns import Home, home, needs_root

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture
def lan() -> Iterator[Home]:
    with home() as namespaces:
        namespaces.gateway.ip("address add 192.168.7.1/25 dev br-lan label br-lan:1")
        namespaces.gateway.ip("address add 10.8.0.1 peer 10.8.0.2/32 dev wan")
        yield namespaces


EXPECTED = {
    "br-lan": (IPv4Interface("192.168.1.1/24"), IPv4Interface("192.168.7.1/25")),
    "lo": (IPv4Interface("127.0.0.1/8"),),
    "wan": (IPv4Interface("10.8.0.1/32"), IPv4Interface("198.51.100.7/24")),
}


def test_netifaces_tells_interfaces_and_addresses(lan: Home) -> None:
    assert lan_facts.netifaces is not None
    assert lan.gateway.run(lan_facts.addresses) == EXPECTED


def test_without_netifaces_the_kernel_tells_the_same(
    lan: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lan_facts, "netifaces", None)
    assert lan.gateway.run(lan_facts.addresses) == EXPECTED
