"""Interfaces, addresses and default gateways once, synchronously: for `check-config` and `status`
before an event loop exists.

The only module that imports netifaces (the netifaces-plus wheel keeps that name). Where it is
missing, as in the OpenWrt feeds, the same answers come from rtnetlink.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from types import ModuleType
from typing import Any

from gwmodule.lan.model import AddressChange, InterfaceChange, RouteChange

netifaces: ModuleType | None
try:
    import netifaces
except ImportError:
    netifaces = None


@dataclass(frozen=True, slots=True)
class Facts:
    """IPv4 only. `addresses` has every interface, also those without an address."""

    addresses: dict[str, tuple[IPv4Interface, ...]]
    # (next hop, interface) of the default routes of all tables, sorted.
    default_gateways: tuple[tuple[IPv4Address, str], ...]


def facts() -> Facts:
    """What this box looks like now. OSError if the kernel does not answer."""
    return _from_netlink() if netifaces is None else _from_netifaces(netifaces)


def _from_netifaces(library: Any) -> Facts:
    addresses: dict[str, set[IPv4Interface]] = {}
    for name in library.interfaces():
        # getifaddrs lists an address with a label as an interface of its own, `eth0:1`.
        own = addresses.setdefault(name.partition(":")[0], set())
        for entry in library.ifaddresses(name).get(socket.AF_INET, ()):
            # Point-to-point interfaces have a peer instead of a netmask.
            own.add(IPv4Interface(f"{entry['addr']}/{entry.get('netmask', '255.255.255.255')}"))
    gateways = library.gateways().get(socket.AF_INET, ())
    return _sorted(addresses, {(IPv4Address(gateway[0]), gateway[1]) for gateway in gateways})


def _from_netlink() -> Facts:
    # pyroute2 takes 0.3 s to import; with netifaces nobody needs to wait for it.
    from gwmodule.lan.netlink import dump_now

    names: dict[int, str] = {}
    addresses: dict[str, set[IPv4Interface]] = {}
    gateways: set[tuple[IPv4Address, str]] = set()
    for change in (*dump_now(InterfaceChange), *dump_now(AddressChange), *dump_now(RouteChange)):
        match change:
            case InterfaceChange(interface):
                names[interface.ifindex] = interface.ifname
                addresses[interface.ifname] = set()
            case AddressChange(ifindex, IPv4Interface() as address) if ifindex in names:
                addresses[names[ifindex]].add(address)
            case RouteChange(route) if route.destination.prefixlen == 0 and isinstance(
                route.gateway, IPv4Address
            ):
                gateways.add((route.gateway, names.get(route.ifindex, f"#{route.ifindex}")))
    return _sorted(addresses, gateways)


def _sorted(
    addresses: dict[str, set[IPv4Interface]], gateways: set[tuple[IPv4Address, str]]
) -> Facts:
    return Facts(
        {name: tuple(sorted(own)) for name, own in sorted(addresses.items())},
        tuple(sorted(gateways)),
    )
