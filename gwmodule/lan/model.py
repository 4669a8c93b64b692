"""Interfaces, addresses, routes and neighbours of this box, as the kernel tells them.

    netlink messages --> lan.netlink --> Change --> LanModel --> LanEvent --> relay
                                                       |
                             own_addresses, default_gateways, on_link, neighbour <-- relay.policy

The LAN is the interfaces that the configuration names and nothing else. Every table is bounded,
since routes and neighbours can be filled from outside.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import TypeAlias, assert_never

MAIN_TABLE = 254  # RT_TABLE_MAIN: the only table that this package's LAN sockets use.

# The kernel's own ceiling is gc_thresh3 (1,024 unless tuned), so a healthy box never gets here.
MAX_NEIGHBOURS = 8192

# Home gateways have tens of routes. A box with a full BGP table must not grow us by hundreds of
# megabytes: beyond this only default routes and routes of LAN interfaces are kept. A LAN socket is
# bound to its interface with SO_DONTROUTE (relay.dial), so the kernel has the last word anyway.
MAX_ROUTES = 4096

# Default routes come as 0.0.0.0/0 or, from VPN clients, as the halves 0.0.0.0/1 and 128.0.0.0/1.
DEFAULT_ROUTE_BITS = 1


class Nud(enum.IntFlag):
    """Neighbour states, linux/neighbour.h."""

    NONE = 0
    INCOMPLETE = 0x01
    REACHABLE = 0x02
    STALE = 0x04
    DELAY = 0x08
    PROBE = 0x10
    FAILED = 0x20
    NOARP = 0x40
    PERMANENT = 0x80


# The kernel sends to the stored lladdr in these states (NUD_VALID).
USABLE = Nud.REACHABLE | Nud.STALE | Nud.DELAY | Nud.PROBE | Nud.NOARP | Nud.PERMANENT


@dataclass(frozen=True, slots=True)
class Interface:
    """`running` is the carrier: a cable is in, a bridge has a live port."""

    ifindex: int
    ifname: str
    up: bool
    running: bool


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route. `gateway` is None where the destination is on the link itself."""

    destination: IPv4Network | IPv6Network
    gateway: IPv4Address | IPv6Address | None
    ifindex: int
    metric: int = 0
    table: int = MAIN_TABLE

    @property
    def is_default(self) -> bool:
        return self.destination.prefixlen <= DEFAULT_ROUTE_BITS


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An IPv4 neighbour; `lladdr` is None while or after ARP got no answer."""

    ifindex: int
    address: IPv4Address
    lladdr: bytes | None
    state: Nud

    @property
    def usable(self) -> bool:
        return self.lladdr is not None and bool(self.state & USABLE)


@dataclass(slots=True)
class InterfaceChange:
    interface: Interface
    present: bool = True


@dataclass(slots=True)
class AddressChange:
    ifindex: int
    address: IPv4Interface | IPv6Interface
    present: bool = True


@dataclass(slots=True)
class RouteChange:
    route: Route
    present: bool = True


@dataclass(slots=True)
class NeighbourChange:
    neighbour: Neighbour
    present: bool = True


Change: TypeAlias = InterfaceChange | AddressChange | RouteChange | NeighbourChange


@dataclass(slots=True)
class NeighbourChanged:
    """A LAN neighbour appeared or stopped answering; `mac` is the one it has or had."""

    address: IPv4Address
    mac: bytes
    reachable: bool
    ifname: str


@dataclass(slots=True)
class LanAddressesChanged:
    """Our own IPv4 addresses on the LAN interfaces, all of them, sorted."""

    addresses: tuple[IPv4Address, ...]


@dataclass(slots=True)
class WanChanged:
    """The way to the MSP may be another one now; `reason` is for the log."""

    reason: str


LanEvent: TypeAlias = NeighbourChanged | LanAddressesChanged | WanChanged


class LanModel:
    """Feed it with `apply` and `replace`, then pull `next_event` until None."""

    def __init__(self, lan: Iterable[str]) -> None:
        self._lan = frozenset(lan)
        self._interfaces: dict[int, Interface] = {}
        self._addresses: set[tuple[int, IPv4Interface | IPv6Interface]] = set()
        self._routes: set[Route] = set()
        self._neighbours: dict[tuple[int, IPv4Address], Neighbour] = {}
        self._events: deque[LanEvent] = deque()
        self._announced: tuple[IPv4Address, ...] = ()
        self.counters = {"neighbours_dropped": 0, "routes_dropped": 0}

    # -- changes ---------------------------------------------------------------------------------

    def apply(self, change: Change) -> None:
        """One message of the kernel."""
        match change:
            case InterfaceChange(interface, present):
                self._on_interface(interface, present)
            case AddressChange(ifindex, address, present):
                self._on_address(ifindex, address, present)
            case RouteChange(route, present):
                self._on_route(route, present)
            case NeighbourChange(neighbour, present):
                self._on_neighbour(neighbour, present)
            case _:
                assert_never(change)
        self._announce_addresses()

    def replace(self, kind: type[Change], changes: Iterable[Change]) -> None:
        """A whole dump of one kind: what it does not contain is gone."""
        fresh = list(changes)
        for stale in self._missing(kind, fresh):
            self.apply(stale)
        for change in fresh:
            self.apply(change)

    def next_event(self) -> LanEvent | None:
        return self._events.popleft() if self._events else None

    # -- questions -------------------------------------------------------------------------------

    def lan_interfaces(self) -> list[Interface]:
        """The interfaces of the configuration that exist now, by name."""
        found = (i for i in self._interfaces.values() if i.ifname in self._lan)
        return sorted(found, key=lambda interface: interface.ifname)

    def ifname(self, ifindex: int) -> str:
        """The name of an interface, or `#7` for one that is gone."""
        interface = self._interfaces.get(ifindex)
        return interface.ifname if interface else f"#{ifindex}"

    def is_lan(self, ifindex: int) -> bool:
        interface = self._interfaces.get(ifindex)
        return interface is not None and interface.ifname in self._lan

    def networks(self) -> Iterator[tuple[Interface, IPv4Interface]]:
        """Every own IPv4 address with its prefix and the interface it is on."""
        for ifindex, address in self._addresses:
            interface = self._interfaces.get(ifindex)
            if interface is not None and isinstance(address, IPv4Interface):
                yield interface, address

    def own_addresses(self) -> dict[IPv4Address, str]:
        """Our IPv4 addresses on any interface, with its name."""
        return {address.ip: interface.ifname for interface, address in self.networks()}

    def address_on(self, ifname: str) -> IPv4Address | None:
        """Our own address on that interface; the lowest where there are several."""
        own = (address.ip for interface, address in self.networks() if interface.ifname == ifname)
        return min(own, default=None)

    def listen_addresses(self) -> tuple[IPv4Address, ...]:
        """Our IPv4 addresses on LAN interfaces, sorted."""
        return tuple(sorted({a.ip for i, a in self.networks() if i.ifname in self._lan}))

    def default_gateways(self) -> dict[IPv4Address, str]:
        """The next hops of every default route in every table, with the interface they are on."""
        return {
            route.gateway: self.ifname(route.ifindex)
            for route in self._routes
            if route.is_default and isinstance(route.gateway, IPv4Address)
        }

    def on_link(self, address: IPv4Address) -> str | None:
        """The LAN interface whose wire `address` is on, by longest prefix; None where the way
        leads through a router, over another interface, or nowhere.
        """
        ways = [
            (route.destination.prefixlen, -route.metric, route.ifindex, route.gateway is None)
            for route in self._routes
            if route.table == MAIN_TABLE and address in route.destination
        ]
        ways += [
            (network.network.prefixlen, 0, interface.ifindex, True)
            for interface, network in self.networks()
            if address in network.network
        ]
        if not ways:
            return None
        _, _, ifindex, direct = max(ways)
        if not direct or not self.is_lan(ifindex) or not self._interfaces[ifindex].up:
            return None
        return self._interfaces[ifindex].ifname

    def neighbour(self, address: IPv4Address, ifname: str | None = None) -> Neighbour | None:
        """The entry for `address` on that LAN interface; without a name, on any of them."""
        for interface in self.lan_interfaces():
            entry = self._neighbours.get((interface.ifindex, address))
            if entry is not None and ifname in (None, interface.ifname):
                return entry
        return None

    def neighbours(self) -> list[Neighbour]:
        return list(self._neighbours.values())

    # -- private ---------------------------------------------------------------------------------

    def _missing(self, kind: type[Change], fresh: list[Change]) -> list[Change]:
        kept = {_identity(change) for change in fresh}
        have: list[Change]
        if kind is InterfaceChange:
            have = [InterfaceChange(i, present=False) for i in self._interfaces.values()]
        elif kind is AddressChange:
            have = [AddressChange(i, a, present=False) for i, a in self._addresses]
        elif kind is RouteChange:
            have = [RouteChange(r, present=False) for r in self._routes]
        else:
            have = [NeighbourChange(n, present=False) for n in self._neighbours.values()]
        return [change for change in have if _identity(change) not in kept]

    def _on_interface(self, interface: Interface, present: bool) -> None:
        known = self._interfaces.get(interface.ifindex)
        if not present:
            if known is not None:
                self._forget_interface(known)
            return
        if known == interface:
            return
        self._interfaces[interface.ifindex] = interface
        switched = known is None or (known.up, known.running) != (interface.up, interface.running)
        if switched and self._carries_wan(interface.ifindex):
            state = "up" if interface.up and interface.running else "down"
            self._wan_changed(f"{interface.ifname} is {state}")

    def _forget_interface(self, interface: Interface) -> None:
        if self._carries_wan(interface.ifindex):
            self._wan_changed(f"{interface.ifname} is gone")
        # Neighbours first: their events need the interface's name.
        for neighbour in [n for n in self._neighbours.values() if n.ifindex == interface.ifindex]:
            self._on_neighbour(neighbour, present=False)
        self._addresses = {pair for pair in self._addresses if pair[0] != interface.ifindex}
        self._routes = {route for route in self._routes if route.ifindex != interface.ifindex}
        del self._interfaces[interface.ifindex]

    def _carries_wan(self, ifindex: int) -> bool:
        """An interface that could carry the uplink: it has a default route (standalone: the LAN
        interface itself), or it is no LAN interface and has an address that others can reach.
        """
        if any(route.is_default and route.ifindex == ifindex for route in self._routes):
            return True
        if self.is_lan(ifindex):
            return False
        return any(
            index == ifindex and not address.is_loopback and not address.is_link_local
            for index, address in self._addresses
        )

    def _on_address(
        self, ifindex: int, address: IPv4Interface | IPv6Interface, present: bool
    ) -> None:
        pair = (ifindex, address)
        if (pair in self._addresses) == present:
            return
        carried = self._carries_wan(ifindex)
        if present:
            self._addresses.add(pair)
        else:
            self._addresses.discard(pair)
        if (carried or self._carries_wan(ifindex)) and not address.is_link_local:
            verb = "has" if present else "lost"
            self._wan_changed(f"{self.ifname(ifindex)} {verb} {address.ip}")

    def _on_route(self, route: Route, present: bool) -> None:
        if (route in self._routes) == present:
            return
        if not present:
            self._routes.discard(route)
        elif len(self._routes) < MAX_ROUTES or route.is_default or self.is_lan(route.ifindex):
            self._routes.add(route)
        else:
            self.counters["routes_dropped"] += 1
            return
        if route.is_default or not self.is_lan(route.ifindex):
            verb = "new" if present else "lost"
            self._wan_changed(f"{verb} route {route.destination} over {self.ifname(route.ifindex)}")

    def _on_neighbour(self, neighbour: Neighbour, present: bool) -> None:
        if not self.is_lan(neighbour.ifindex):
            return
        key = (neighbour.ifindex, neighbour.address)
        known = self._neighbours.pop(key, None)
        if present:
            if len(self._neighbours) >= MAX_NEIGHBOURS:
                self._drop_neighbour()
            self._neighbours[key] = neighbour
        before = known.lladdr if known is not None and known.usable else None
        after = neighbour.lladdr if present and neighbour.usable else None
        if before == after:
            return
        ifname = self.ifname(neighbour.ifindex)
        if before is not None:
            self._events.append(NeighbourChanged(neighbour.address, before, False, ifname))
        if after is not None:
            self._events.append(NeighbourChanged(neighbour.address, after, True, ifname))

    def _drop_neighbour(self) -> None:
        """The oldest without a lladdr, which a scan of unused addresses makes; else the oldest."""
        self.counters["neighbours_dropped"] += 1
        silent = (key for key, entry in self._neighbours.items() if not entry.usable)
        del self._neighbours[next(silent, next(iter(self._neighbours)))]

    def _announce_addresses(self) -> None:
        addresses = self.listen_addresses()
        if addresses != self._announced:
            self._announced = addresses
            self._events.append(LanAddressesChanged(addresses))

    def _wan_changed(self, reason: str) -> None:
        # One is enough: a DHCP renewal on the WAN makes half a dozen of these in a row.
        if not any(isinstance(event, WanChanged) for event in self._events):
            self._events.append(WanChanged(reason))


def _identity(change: Change) -> object:
    """What makes two changes speak of the same thing."""
    match change:
        case InterfaceChange(interface):
            return interface.ifindex
        case AddressChange(ifindex, address):
            return ifindex, address
        case RouteChange(route):
            return route
        case NeighbourChange(neighbour):
            return neighbour.ifindex, neighbour.address
        case _:
            assert_never(change)
