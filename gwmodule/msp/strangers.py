"""Who stands at a port and has not proved yet who he is: bounded in all, and shared by networks.

Before a certificate, a token or a password was seen, the address is all that tells callers apart.
A fixed share of it would be wrong: behind a carrier's NAT one address is thousands of gateways.
So a network may take every place as long as nobody else wants one. When none is left, a newcomer
whose network holds fewer than another one takes the place of that one's oldest caller.
"""

from __future__ import annotations

import ipaddress
from typing import Generic, TypeVar

from gwmodule.flood import FloodLimit
from gwmodule.telemetry import EventLog

# An IPv6 customer has a whole /64 of addresses to call from.
IPV6_PREFIX = 64
# Lines in the log about one network, per second.
_LINES = 1 / 60

T = TypeVar("T")


class Strangers(Generic[T]):
    """`refused` and `displaced` count what the bound has cost."""

    def __init__(self, port: str, most: int) -> None:
        self.port = port
        self._most = most
        self._networks: dict[str, dict[T, None]] = {}
        self._network_of: dict[T, str] = {}
        self._lines = FloodLimit(_LINES, 1)
        self._log = EventLog("gwmodule.msp")
        self.refused = 0
        self.displaced = 0

    def __len__(self) -> int:
        return len(self._network_of)

    def __contains__(self, who: T) -> bool:
        return who in self._network_of

    def all(self) -> list[T]:
        return list(self._network_of)

    @property
    def full(self) -> bool:
        return len(self) >= self._most

    def enter(self, who: T, address: str, now: float) -> T | None:
        """Who has to go for it: nobody, one of the network that holds most, or `who` himself."""
        network = network_of(address)
        loser = None
        if self.full:
            largest = max(self._networks, key=lambda name: len(self._networks[name]))
            held = len(self._networks[largest])
            if self._lines.admits(largest.encode(), now):
                self._log.warning("strangers", port=self.port, network=largest, connections=held)
            # One more here and one less there must not turn the tables: they would swap for ever.
            if len(self._networks.get(network, ())) + 1 >= held:
                self.refused += 1
                return who
            self.displaced += 1
            loser = next(iter(self._networks[largest]))
            self.leave(loser)
        self._networks.setdefault(network, {})[who] = None
        self._network_of[who] = network
        return loser

    def leave(self, who: T) -> None:
        """He is known now, or gone."""
        network = self._network_of.pop(who, None)
        if network is not None:
            members = self._networks[network]
            del members[who]
            if not members:
                del self._networks[network]


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
