"""How often a login may be tried, and how many are checked at once. Pure: time is an argument.

A password check costs some fifty milliseconds of one core on purpose. So attempts are charged
before they are checked, to the address they come from and to the account they are for, and what was
a success is given back.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from dataclasses import dataclass

# Accounts and addresses that are remembered; those charged longest ago are forgotten first.
MAX_KEYS = 8192
# An IPv6 customer has a whole /64 of addresses to try from.
IPV6_PREFIX = 64


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` attempts at once, and then one in `period` seconds."""

    burst: int
    period: float


class Attempts:
    """A bucket for each key (GCRA: each holds only the time at which it is full again)."""

    def __init__(self, rate: Rate, most: int = MAX_KEYS) -> None:
        self._rate = rate
        self._most = most
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def charge(self, key: str, now: float) -> float:
        """Take one attempt; 0, or the seconds to wait when there is none, and none is taken."""
        rate = self._rate
        full_at = max(self._full_at.get(key, now), now)
        wait = full_at - now - (rate.burst - 1) * rate.period
        if wait > 0:
            return wait
        self._full_at[key] = full_at + rate.period
        self._full_at.move_to_end(key)
        while len(self._full_at) > self._most:
            self._full_at.popitem(last=False)
        return 0.0

    def refund(self, key: str) -> None:
        if key in self._full_at:
            self._full_at[key] -= self._rate.period

    def __len__(self) -> int:
        return len(self._full_at)


class LoginLimits:
    """Both buckets. The account's is the wider one: a stranger must not lock its owner out soon."""

    def __init__(self, address: Rate = Rate(10, 6.0), account: Rate = Rate(30, 20.0)) -> None:
        self._addresses = Attempts(address)
        self._accounts = Attempts(account)

    def charge(self, address: str, account: str, now: float) -> int:
        """0 when the attempt may be made, else whole seconds to wait."""
        key = network_of(address)
        wait = self._addresses.charge(key, now)
        if not wait:
            wait = self._accounts.charge(account, now)
            if wait:
                self._addresses.refund(key)
        return math.ceil(wait)

    def succeeded(self, address: str, account: str) -> None:
        self._addresses.refund(network_of(address))
        self._accounts.refund(account)


def network_of(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
    return str(parsed)
