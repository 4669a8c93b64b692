"""Keeps a `LanModel` in step with the kernel over rtnetlink; asks the kernel to resolve neighbours.

An own AF_NETLINK socket in the event loop, with pyroute2's tables to parse what arrives: pyroute2's
asynchronous sockets exist only in 0.9 (OpenWrt's feed has 0.7.9) and its synchronous ones cannot be
used inside a running loop. Nothing here needs a capability.

What rtnetlink does not tell, and why some events start another dump:
  - routes that go away with an interface or with their source address are dropped silently,
  - `ip route replace` announces the new route only,
  - a full receive buffer loses events (ENOBUFS).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import importlib.util
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_address, ip_network
from typing import Any, TypeAlias

from gwmodule.config import LanConfig
from gwmodule.lan.model import (
    AddressChange,
    Change,
    Interface,
    InterfaceChange,
    LanEvent,
    LanModel,
    Neighbour,
    NeighbourChange,
    Nud,
    Route,
    RouteChange,
)

# linux/netlink.h, linux/rtnetlink.h
NLM_F_REQUEST_DUMP = 0x301
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE = 0x100
NLMSG_ERROR = 2
NLMSG_DONE = 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTMGRP_LINK = 0x1
RTMGRP_NEIGH = 0x4
RTMGRP_IPV4_IFADDR = 0x10
RTMGRP_IPV4_ROUTE = 0x40
RTMGRP_IPV6_IFADDR = 0x100
RTMGRP_IPV6_ROUTE = 0x400
IFF_UP, IFF_RUNNING = 0x1, 0x40
RTN_UNICAST = 1
RTM_F_CLONED = 0x200  # Cached results of look-ups, not configuration.

_HEADER = struct.Struct("=IHHII")
_GROUPS = (
    RTMGRP_LINK
    | RTMGRP_NEIGH
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV6_ROUTE
)
# Families that each message type is read for. A bridge sends RTM_DELLINK of AF_BRIDGE when a port
# leaves it and RTM_NEWNEIGH of AF_BRIDGE for every forwarding entry: neither means what it says.
_FAMILIES = {
    RTM_NEWLINK: (socket.AF_UNSPEC,),
    RTM_DELLINK: (socket.AF_UNSPEC,),
    RTM_NEWADDR: (socket.AF_INET, socket.AF_INET6),
    RTM_DELADDR: (socket.AF_INET, socket.AF_INET6),
    RTM_NEWROUTE: (socket.AF_INET, socket.AF_INET6),
    RTM_DELROUTE: (socket.AF_INET, socket.AF_INET6),
    RTM_NEWNEIGH: (socket.AF_INET,),
    RTM_DELNEIGH: (socket.AF_INET,),
}
_PARSERS = {
    RTM_NEWLINK: "ifinfmsg",
    RTM_DELLINK: "ifinfmsg",
    RTM_NEWADDR: "ifaddrmsg",
    RTM_DELADDR: "ifaddrmsg",
    RTM_NEWROUTE: "rtmsg",
    RTM_DELROUTE: "rtmsg",
    RTM_NEWNEIGH: "ndmsg",
    RTM_DELNEIGH: "ndmsg",
}
Parsers: TypeAlias = dict[int, Callable[[bytes], Any]]
_ADDED = (RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWNEIGH)

# Request, address family and body length of one dump of each kind, in the order that lets
# addresses find their interface.
DUMPS: dict[type[Change], tuple[int, int, int]] = {
    InterfaceChange: (RTM_GETLINK, socket.AF_UNSPEC, 16),
    AddressChange: (RTM_GETADDR, socket.AF_UNSPEC, 8),
    RouteChange: (RTM_GETROUTE, socket.AF_UNSPEC, 12),
    NeighbourChange: (RTM_GETNEIGH, socket.AF_INET, 12),
}

# The kernel fills datagrams of up to 32 KiB (NLMSG_GOODSIZE grows with the reader's buffer).
DATAGRAM = 65536
# Room for a boot storm's neighbour events while the loop is busy; the kernel caps it at rmem_max.
RECEIVE_BUFFER = 1024 * 1024
# Datagrams per turn of the loop, about 3 ms of parsing: keystrokes wait behind this.
BATCH = 16
# Let a burst end before asking again: one `ifdown` is a dozen messages.
SETTLE = 0.05
# An ARP request goes out at once, then every second (retrans_time_ms), three in all: ask again
# at the same rhythm, because AMT in soft-off may need more than three.
RESOLVE_AGAIN = 1.0
# RFC 863. An empty datagram asks for nothing and is dropped or refused by every host.
DISCARD_PORT = 9


class LanWatcher:
    """`run` is a long-lived child of the composition's TaskGroup.

    `on_change` hears every `LanEvent`, also those of the first dump; `ready` is set after it.
    """

    def __init__(
        self, config: LanConfig, on_change: Callable[[LanEvent], None] = lambda event: None
    ) -> None:
        self.model = LanModel(config.interface)
        self.ready = asyncio.Event()
        self.counters = {"dumps": 0, "overruns": 0}
        self._on_change = on_change
        self._parsers = parsers()
        self._waiting: dict[tuple[str, IPv4Address], _Waiting] = {}
        self._outdated: set[type[Change]] = set()
        self._outdated_soon = asyncio.Event()

    async def run(self) -> None:
        """Follow the kernel until cancelled. OSError if it has no rtnetlink."""
        with _events_socket() as events:
            loop = asyncio.get_running_loop()
            self._mark_outdated(*DUMPS)
            while True:
                # Events wait in the socket during a dump and are applied after it. Older ones are
                # harmless as long as none is missing: the last one says what the dump says. Where
                # some are missing, the rest would lead back to an old state for good.
                if self._outdated.issuperset(DUMPS):
                    _discard(events)
                await self._dump()
                self.ready.set()
                loop.add_reader(events.fileno(), self._read, events)
                try:
                    await self._outdated_soon.wait()
                    await asyncio.sleep(SETTLE)
                finally:
                    loop.remove_reader(events.fileno())

    async def resolve(self, address: IPv4Address, ifname: str) -> bytes:
        """The lladdr of an on-link `address`; waits until ARP has one, so bound it with a timeout.

        Where the kernel has none, an empty UDP datagram to the discard port makes it ask; no
        capability is needed for that. A stale entry counts: the kernel confirms it when the
        connection starts, and the dialer looks again after connecting. OSError if nothing can be
        sent through `ifname`.
        """
        loop = asyncio.get_running_loop()
        while True:
            known = self.model.neighbour(address, ifname)
            if known is not None and known.lladdr is not None and known.usable:
                return known.lladdr
            answer: asyncio.Future[None] = loop.create_future()
            waiting = self._waiting.setdefault((ifname, address), _Waiting())
            waiting.answers.add(answer)
            try:
                # A probe knocks at five ports at once: one question serves them all.
                if loop.time() >= waiting.ask_at:
                    waiting.ask_at = loop.time() + RESOLVE_AGAIN
                    self.confirm(address, ifname)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RESOLVE_AGAIN):
                        await answer
            finally:
                waiting.answers.discard(answer)
                if not waiting.answers:
                    self._waiting.pop((ifname, address), None)

    def confirm(self, address: IPv4Address, ifname: str) -> None:
        """Make the kernel verify what it believes about a neighbour. OSError as `resolve`."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            bind_to_interface(sock, ifname, self.model.address_on(ifname))
            sock.setblocking(False)
            # A full send queue is as good as a lost ARP request: it is sent again.
            with contextlib.suppress(BlockingIOError):
                sock.sendto(b"", (str(address), DISCARD_PORT))

    # -- private ---------------------------------------------------------------------------------

    def _mark_outdated(self, *kinds: type[Change]) -> None:
        self._outdated.update(kinds)
        self._outdated_soon.set()

    async def _dump(self) -> None:
        self._outdated_soon.clear()
        outdated, self._outdated = self._outdated, set()
        loop = asyncio.get_running_loop()
        for kind in (kind for kind in DUMPS if kind in outdated):
            self.counters["dumps"] += 1
            with _dump_socket(kind) as replies:
                dump = Dump(self._parsers)
                while not dump.complete:
                    # One datagram a turn: parsing a large neighbour table takes a while.
                    dump.receive_data(await loop.sock_recv(replies, DATAGRAM))
            if dump.interrupted:
                self._mark_outdated(kind)
            self.model.replace(kind, dump.changes)
            self._deliver()

    def _read(self, events: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                data = events.recv(DATAGRAM)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: the kernel had events that found no room.
                self.counters["overruns"] += 1
                self._mark_outdated(*DUMPS)
                break
            for flags, change in parse(self._parsers, data):
                self.model.apply(change)
                if _drops_routes_silently(flags, change):
                    self._mark_outdated(RouteChange)
                if isinstance(change, NeighbourChange):
                    self._wake(change.neighbour)
        self._deliver()

    def _deliver(self) -> None:
        while (event := self.model.next_event()) is not None:
            self._on_change(event)

    def _wake(self, neighbour: Neighbour) -> None:
        if not neighbour.usable:
            return
        waiting = self._waiting.get((self.model.ifname(neighbour.ifindex), neighbour.address))
        for answer in waiting.answers if waiting is not None else ():
            if not answer.done():
                answer.set_result(None)


@dataclass(slots=True)
class _Waiting:
    """Who waits for a neighbour, and when the kernel may be asked about it again."""

    answers: set[asyncio.Future[None]] = field(default_factory=set)
    ask_at: float = 0.0


class Dump:
    """Collects the datagrams of one dump."""

    def __init__(self, parsers: Parsers) -> None:
        self._parsers = parsers
        self.changes: list[Change] = []
        self.complete = False
        # The table changed while the kernel walked it: entries may be missing.
        self.interrupted = False

    def receive_data(self, data: bytes) -> None:
        """OSError if the kernel refused the request."""
        for kind, flags, message in _messages(data):
            if kind == NLMSG_ERROR:
                number = -struct.unpack_from("=i", message, _HEADER.size)[0]
                raise OSError(number, f"rtnetlink dump: {errno.errorcode.get(number, number)}")
            if flags & NLM_F_DUMP_INTR:
                self.interrupted = True
            if kind == NLMSG_DONE:
                self.complete = True
            else:
                self.changes += _changes(self._parsers, kind, message)


def parsers() -> Parsers:
    """pyroute2's parsers, without the rest of pyroute2.

    Its __init__ imports all of it: 10 MiB and a quarter of a second for four classes. A package
    with the same folder and no content stands in for it while they are imported; whoever imports
    pyroute2 later gets the real one. Works with pyroute2 0.7.2 to 0.9.
    """
    name = "pyroute2"
    stand_in = None
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        stand_in = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        return {
            kind: getattr(importlib.import_module(f"{name}.netlink.rtnl.{parser}"), parser)
            for kind, parser in _PARSERS.items()
        }
    finally:
        if stand_in is not None:
            del sys.modules[name]


def dump_now(kind: type[Change]) -> list[Change]:
    """One dump without an event loop, at most a second."""
    dump = Dump(parsers())
    with _dump_socket(kind) as replies:
        replies.settimeout(1.0)
        while not dump.complete:
            dump.receive_data(replies.recv(DATAGRAM))
    return dump.changes


def parse(parsers: Parsers, data: bytes) -> Iterator[tuple[int, Change]]:
    """Header flags and changes of one datagram; what nobody asked for is skipped unparsed."""
    for kind, flags, message in _messages(data):
        for change in _changes(parsers, kind, message):
            yield flags, change


def bind_to_interface(sock: socket.socket, ifname: str, own: IPv4Address | None) -> None:
    """Let `sock` send through `ifname` only. OSError if that cannot be had.

    SO_BINDTODEVICE needs no privilege since Linux 5.7; before that it fails with EPERM, and binding
    to `own`, our address on that interface, is what is left: routing then picks the interface, and
    SO_DONTROUTE and the policy see to it that it is this one.
    """
    # Never through a router: a route that the model has not seen yet fails instead of leaking.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, ifname.encode() + b"\0")
    except PermissionError:
        if own is None:
            raise
        sock.bind((str(own), 0))


def _discard(events: socket.socket) -> None:
    while True:
        try:
            events.recv(DATAGRAM)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS again: more was lost, which the dump to come makes up as well.
            continue


def _events_socket() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.setblocking(False)
    sock.bind((0, _GROUPS))
    return sock


def _dump_socket(kind: type[Change]) -> socket.socket:
    request, family, length = DUMPS[kind]
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    sock.setblocking(False)
    sock.bind((0, 0))
    body = bytes([family]) + bytes(length - 1)
    sock.send(_HEADER.pack(_HEADER.size + length, request, NLM_F_REQUEST_DUMP, 1, 0) + body)
    return sock


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and bytes of each message of a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, data[offset : offset + length]
        offset += (length + 3) & ~3


def _changes(parsers: Parsers, kind: int, message: bytes) -> Iterator[Change]:
    families = _FAMILIES.get(kind)
    # Every rtnetlink body starts with its family. pyroute2 needs 40-280 us a message: look first.
    if families is None or message[_HEADER.size] not in families:
        return
    parsed = parsers[kind](message)
    parsed.decode()
    yield from _TRANSLATE[kind](parsed, kind in _ADDED)


def _interface(message: Any, present: bool) -> Iterator[Change]:
    ifname = message.get_attr("IFLA_IFNAME")
    if ifname:
        flags = message["flags"]
        interface = Interface(
            message["index"],
            ifname,
            up=bool(flags & IFF_UP),
            running=bool(flags & IFF_RUNNING),
        )
        yield InterfaceChange(interface, present)


def _address(message: Any, present: bool) -> Iterator[Change]:
    peer = message.get_attr("IFA_ADDRESS")
    # On a point-to-point interface IFA_ADDRESS is the other end; IPv6 has no IFA_LOCAL otherwise.
    local = message.get_attr("IFA_LOCAL") or peer
    if not local:
        return
    bits = message["prefixlen"] if local == peer else ip_address(local).max_prefixlen
    cls = IPv4Interface if message["family"] == socket.AF_INET else IPv6Interface
    yield AddressChange(message["index"], cls(f"{local}/{bits}"), present)


def _route(message: Any, present: bool) -> Iterator[Change]:
    if message["type"] != RTN_UNICAST or message["flags"] & RTM_F_CLONED:
        return
    inet = message["family"] == socket.AF_INET
    bits = message["dst_len"]
    # Of IPv6 only the default routes matter here: they may carry the uplink.
    if not inet and bits:
        return
    destination = message.get_attr("RTA_DST") or ("0.0.0.0" if inet else "::")  # noqa: S104 a route
    for hop in message.get_attr("RTA_MULTIPATH") or [message]:
        gateway = hop.get_attr("RTA_GATEWAY")
        via = hop.get_attr("RTA_VIA")
        if gateway is None and via is not None:
            gateway = via["addr"]  # RFC 5549: an IPv4 route over an IPv6 router.
        ifindex = hop.get_attr("RTA_OIF") if hop is message else hop["oif"]
        if ifindex is None:
            continue
        route = Route(
            ip_network(f"{destination}/{bits}"),
            ip_address(gateway) if gateway else None,
            ifindex,
            message.get_attr("RTA_PRIORITY") or 0,
            message.get_attr("RTA_TABLE") or message["table"],
        )
        yield RouteChange(route, present)


def _neighbour(message: Any, present: bool) -> Iterator[Change]:
    address = message.get_attr("NDA_DST")
    if not address:
        return
    lladdr = message.get_attr("NDA_LLADDR")
    mac = bytes.fromhex(lladdr.replace(":", "")) if lladdr else None
    neighbour = Neighbour(message["ifindex"], IPv4Address(address), mac, Nud(message["state"]))
    yield NeighbourChange(neighbour, present)


_TRANSLATE: dict[int, Callable[[Any, bool], Iterator[Change]]] = {
    RTM_NEWLINK: _interface,
    RTM_DELLINK: _interface,
    RTM_NEWADDR: _address,
    RTM_DELADDR: _address,
    RTM_NEWROUTE: _route,
    RTM_DELROUTE: _route,
    RTM_NEWNEIGH: _neighbour,
    RTM_DELNEIGH: _neighbour,
}


def _drops_routes_silently(flags: int, change: Change) -> bool:
    match change:
        case InterfaceChange(interface, present):
            return not present or not interface.up
        case AddressChange(present=present):
            return not present
        case RouteChange():
            return bool(flags & NLM_F_REPLACE)
        case _:
            return False
