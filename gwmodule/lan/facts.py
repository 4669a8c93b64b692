"""Interfaces and their addresses once, synchronously: for `check-config`, which has no event loop.

The only module that imports netifaces (the netifaces-plus wheel keeps that name). Where it is
missing, as in the OpenWrt feeds, the same answers come from rtnetlink.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Interface
from types import ModuleType
from typing import Any

from gwmodule.lan.model import AddressChange, InterfaceChange

netifaces: ModuleType | None
try:
    import netifaces
except ImportError:
    netifaces = None


def addresses() -> dict[str, tuple[IPv4Interface, ...]]:
    """Every interface's IPv4 addresses, sorted; also those without one. OSError if the kernel does
    not answer.
    """
    found = _from_netlink() if netifaces is None else _from_netifaces(netifaces)
    return {name: tuple(sorted(own)) for name, own in sorted(found.items())}


def _from_netifaces(library: Any) -> dict[str, set[IPv4Interface]]:
    found: dict[str, set[IPv4Interface]] = {}
    for name in library.interfaces():
        # getifaddrs lists an address with a label as an interface of its own, `eth0:1`.
        own = found.setdefault(name.partition(":")[0], set())
        for entry in library.ifaddresses(name).get(socket.AF_INET, ()):
            # Point-to-point interfaces have a peer instead of a netmask.
            own.add(IPv4Interface(f"{entry['addr']}/{entry.get('netmask', '255.255.255.255')}"))
    return found


def _from_netlink() -> dict[str, set[IPv4Interface]]:
    # pyroute2 takes 0.3 s to import; with netifaces nobody needs to wait for it.
    from gwmodule.lan.netlink import dump_now

    names: dict[int, str] = {}
    found: dict[str, set[IPv4Interface]] = {}
    for change in (*dump_now(InterfaceChange), *dump_now(AddressChange)):
        match change:
            case InterfaceChange(interface):
                names[interface.ifindex] = interface.ifname
                found[interface.ifname] = set()
            case AddressChange(ifindex, IPv4Interface() as address) if ifindex in names:
                found[names[ifindex]].add(address)
    return found
