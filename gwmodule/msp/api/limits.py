"""How often a login may be tried. Pure: time is an argument.

A password check costs some fifty milliseconds of one core on purpose. So attempts are charged
before they are checked, to the address they come from and to the account they are for, and what was
a success is given back.
"""

from __future__ import annotations

import math

from gwmodule.flood import FloodLimit
from gwmodule.msp.strangers import network_of

# Accounts and addresses that are remembered.
MAX_KEYS = 8192


class LoginLimits:
    """Both buckets. The account's is the wider one: a stranger must not lock its owner out soon."""

    def __init__(
        self, addresses: FloodLimit | None = None, accounts: FloodLimit | None = None
    ) -> None:
        self._addresses = FloodLimit(1 / 6, 10, MAX_KEYS) if addresses is None else addresses
        self._accounts = FloodLimit(1 / 20, 30, MAX_KEYS) if accounts is None else accounts

    def charge(self, address: str, account: str, now: float) -> int:
        """0 when the attempt may be made, else whole seconds to wait."""
        network = network_of(address).encode()
        wait = self._addresses.charge(network, now)
        if not wait:
            wait = self._accounts.charge(account.encode(), now)
            if wait:
                self._addresses.refund(network)
        return math.ceil(wait)

    def succeeded(self, address: str, account: str) -> None:
        self._addresses.refund(network_of(address).encode())
        self._accounts.refund(account.encode())
