"""Where the gateway connects to in its LAN, whoever asks (design: "Streams", policy).

The MSP may be wrong, stolen or lied to; this list is what a subscriber's home relies on. Rules are
checked in the order of `Rule`, cheapest first, and every refusal names its numbers.
"""

from __future__ import annotations

import enum
import math
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NoReturn

from gwmodule.config import Config
from gwmodule.errors import PolicyRefused
from gwmodule.lan.model import LanModel
from gwmodule.ports import AMT_PORTS
from gwmodule.wire.notices import NO_MAC, format_mac

# What the MSP and its technician are told, word for word.
LOCKED_DOWN = "locked down at the gateway"


class Rule(enum.StrEnum):
    """Names of the rules: `PolicyRefused.rule` and the keys of `Policy.counters`."""

    LOCKED_DOWN = "locked-down"
    NOT_IPV4 = "not-ipv4"
    PORT = "port"
    SPECIAL_ADDRESS = "special-address"
    OWN_ADDRESS = "own-address"
    DEFAULT_GATEWAY = "default-gateway"
    NETWORK_ADDRESS = "network-address"
    WAN_ADDRESS = "wan-address"
    NOT_ON_LAN = "not-on-lan"
    UNKNOWN_MAC = "unknown-mac"
    NO_NEIGHBOUR = "no-neighbour"
    OTHER_MAC = "other-mac"


class Lockdown:
    """The owner's switch: while it is on, the MSP reaches nothing in the LAN. Kept in RAM only."""

    def __init__(self, on: bool) -> None:
        self._until = math.inf if on else -math.inf

    def switch(self, on: bool, now: float, seconds: float | None = None) -> None:
        """`seconds` is after how long `on` ends by itself; None is never."""
        self._until = -math.inf if not on else math.inf if seconds is None else now + seconds

    def active(self, now: float) -> bool:
        return now < self._until

    def ends_at(self, now: float) -> float | None:
        """When it ends by itself, if it is on and will."""
        return self._until if self.active(now) and self._until != math.inf else None

    def as_json(self, now: float) -> dict[str, Any]:
        ends_at = self.ends_at(now)
        left = None if ends_at is None else round(ends_at - now, 1)
        return {"on": self.active(now), "seconds_left": left}


class Policy:
    """Pure: the answers depend on the configuration and the model that is handed in."""

    def __init__(self, config: Config, lockdown: Lockdown | None = None) -> None:
        self._lan = config.lan.interface
        self._ports = frozenset(AMT_PORTS) | {int(port) for port in config.streams.extra_ports}
        # Refusals by rule since the start.
        self.counters = {rule.value: 0 for rule in Rule}
        self.lockdown = lockdown or Lockdown(config.relay.lockdown)

    def check_access(self, now: float) -> None:
        """For what the MSP asks, before everything else; our own probes go on. PolicyRefused."""
        if self.lockdown.active(now):
            self._refuse(Rule.LOCKED_DOWN, LOCKED_DOWN)

    def check(
        self,
        model: LanModel,
        address: IPv4Address | IPv6Address,
        port: int,
        mac: bytes | None,
    ) -> str:
        """The LAN interface to connect through; PolicyRefused says which rule forbids it.

        `mac` is whom the caller expects at `address`. None leaves the neighbour rules out: only for
        the dialer's first look, before it makes the kernel resolve the address.
        """
        if port not in self._ports and isinstance(address, IPv4Address):
            self._refuse(
                Rule.PORT, f"port {port} of {address} is not one of {_listed(self._ports)}"
            )
        ifname = self.check_address(model, address)
        if mac is not None:
            self.check_neighbour(model, IPv4Address(address), ifname, mac)
        return ifname

    def check_address(self, model: LanModel, address: IPv4Address | IPv6Address) -> str:
        """The rules that hold for every port; also for the presence ping. Answers as `check`."""
        if not isinstance(address, IPv4Address):
            self._refuse(
                Rule.NOT_IPV4, f"{address} is an IPv6 address: only IPv4 targets are connected to"
            )
        kind = _special(address)
        if kind:
            self._refuse(Rule.SPECIAL_ADDRESS, f"{address} is {kind}")
        own = model.own_addresses()
        if address in own:
            self._refuse(
                Rule.OWN_ADDRESS, f"{address} is the gateway's own address on {own[address]}"
            )
        routers = model.default_gateways()
        if address in routers:
            self._refuse(
                Rule.DEFAULT_GATEWAY,
                f"{address} is the gateway's default router on {routers[address]}",
            )
        for interface, network in model.networks():
            # A /31 or /32 has neither (RFC 3021).
            if network.network.prefixlen < 31 and address in (
                network.network.network_address,
                network.network.broadcast_address,
            ):
                self._refuse(
                    Rule.NETWORK_ADDRESS,
                    f"{address} is the network or broadcast address of {network.network}"
                    f" on {interface.ifname}",
                )
        ifname = model.on_link(address)
        if ifname is not None:
            return ifname
        for interface, network in model.networks():
            if address in network.network and not model.is_lan(interface.ifindex):
                self._refuse(
                    Rule.WAN_ADDRESS,
                    f"{address} is in {network.network} on {interface.ifname},"
                    f" which is not a LAN interface ({_listed(self._lan)})",
                )
        self._refuse(
            Rule.NOT_ON_LAN,
            f"{address} is not on-link through a LAN interface ({_listed(self._lan)})",
        )

    def check_neighbour(
        self, model: LanModel, address: IPv4Address, ifname: str, mac: bytes
    ) -> None:
        """Whether the kernel's neighbour at `address` is `mac`. PolicyRefused as `check`."""
        self.check_mac(address, mac)
        neighbour = model.neighbour(address, ifname)
        if neighbour is None or neighbour.lladdr is None or not neighbour.usable:
            self._refuse(Rule.NO_NEIGHBOUR, f"{address} has no neighbour entry on {ifname}")
        if neighbour.lladdr != mac:
            self._refuse(
                Rule.OTHER_MAC,
                f"{address} on {ifname} is {format_mac(neighbour.lladdr)},"
                f" not the expected {format_mac(mac)}",
            )

    def check_mac(self, address: IPv4Address, mac: bytes) -> None:
        """Whether a device is named at all: nobody asks who is at an address. PolicyRefused."""
        # The lowest bit of the first octet marks a group (IEEE 802): no device has such an address.
        if len(mac) != 6 or mac == NO_MAC or mac[0] & 1:
            self._refuse(
                Rule.UNKNOWN_MAC,
                f"{mac.hex(':') or 'nothing'} is not a device's MAC: {address} cannot be verified",
            )

    def _refuse(self, rule: Rule, message: str) -> NoReturn:
        self.counters[rule.value] += 1
        raise PolicyRefused(rule.value, message)


def _special(address: IPv4Address) -> str:
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_loopback:
        return "a loopback address"
    if address.is_multicast:
        return "a multicast address"
    if address == IPv4Address("255.255.255.255"):
        return "the broadcast address"
    # 0.0.0.0/8 is "this network" (RFC 1122 3.2.1.3), 240.0.0.0/4 is reserved.
    if address.packed[0] == 0 or address.is_reserved:
        return "a reserved address"
    return ""


def _listed(values: frozenset[int] | tuple[str, ...]) -> str:
    return ", ".join(map(str, sorted(values, key=str))) or "none configured"
