"""Who stands at a port and has not proved yet who he is: bounded in all, and shared by networks.

Before a certificate, a token or a password was seen, the address is all that tells callers apart.
Behind a carrier's NAT one address is thousands of gateways, which may have every place (msp.places)
while nobody else wants one.
"""

from __future__ import annotations

import ipaddress
from typing import TypeVar

from gwmodule.msp.places import Places

# An IPv6 customer has a whole /64 of addresses to call from.
IPV6_PREFIX = 64

T = TypeVar("T")


class Strangers(Places[T]):
    """They leave when they are known, or gone."""

    def __init__(self, port: str, most: int) -> None:
        super().__init__("strangers", "network", port, most)

    def enter(self, who: T, address: str, now: float) -> T | None:
        return super().enter(who, network_of(address), now)


def network_of(address: str) -> str:
    """What one customer has: an IPv4 address, or an IPv6 /64."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
    return str(parsed)
