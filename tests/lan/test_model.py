from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_network

import pytest

from gwmodule.lan import model as lan_model
from gwmodule.lan.model import (
    AddressChange,
    Change,
    Interface,
    InterfaceChange,
    LanAddressesChanged,
    LanEvent,
    LanModel,
    Neighbour,
    NeighbourChange,
    NeighbourChanged,
    Nud,
    Route,
    RouteChange,
    WanChanged,
)

MAC = bytes.fromhex("020000000110")
OTHER_MAC = bytes.fromhex("020000000111")
PC = IPv4Address("192.168.1.10")
LO, LAN, WAN = 1, 2, 3


def interface(ifindex: int, up: bool = True, running: bool = True) -> InterfaceChange:
    names = {LO: "lo", LAN: "br-lan", WAN: "wan"}
    return InterfaceChange(Interface(ifindex, names[ifindex], up, running))


def address(ifindex: int, text: str, present: bool = True) -> AddressChange:
    cls = IPv6Interface if ":" in text else IPv4Interface
    return AddressChange(ifindex, cls(text), present)


def route(
    destination: str, ifindex: int, gateway: str = "", metric: int = 0, table: int = 254
) -> Route:
    hop = (IPv6Address if ":" in gateway else IPv4Address)(gateway) if gateway else None
    return Route(ip_network(destination), hop, ifindex, metric, table)


def neighbour(state: Nud, mac: bytes | None = MAC, ifindex: int = LAN) -> Neighbour:
    return Neighbour(ifindex, PC, mac, state)


DEFAULT = route("0.0.0.0/0", WAN, "198.51.100.1")
GATEWAY: list[Change] = [
    interface(LO),
    interface(LAN),
    interface(WAN),
    address(LO, "127.0.0.1/8"),
    address(LAN, "192.168.1.1/24"),
    address(LAN, "fe80::1/64"),
    address(WAN, "198.51.100.7/24"),
    RouteChange(DEFAULT),
]


def events(model: LanModel) -> list[LanEvent]:
    return list(iter(model.next_event, None))


@pytest.fixture
def model() -> LanModel:
    model = LanModel(["br-lan"])
    for change in GATEWAY:
        model.apply(change)
    events(model)
    return model


def test_the_lan_is_what_is_named(model: LanModel) -> None:
    assert [i.ifname for i in model.lan_interfaces()] == ["br-lan"]
    assert model.listen_addresses() == (IPv4Address("192.168.1.1"),)
    assert LanModel([]).lan_interfaces() == []


def test_own_addresses_are_those_of_every_interface(model: LanModel) -> None:
    assert model.own_addresses() == {
        IPv4Address("127.0.0.1"): "lo",
        IPv4Address("192.168.1.1"): "br-lan",
        IPv4Address("198.51.100.7"): "wan",
    }


def test_default_gateways_of_every_table_and_of_vpn_halves_count(model: LanModel) -> None:
    model.apply(RouteChange(route("0.0.0.0/0", WAN, "198.51.100.2", table=100)))
    model.apply(RouteChange(route("128.0.0.0/1", WAN, "198.51.100.3")))
    model.apply(RouteChange(route("::/0", WAN, "fe80::1")))
    model.apply(RouteChange(route("10.0.0.0/8", WAN, "198.51.100.4")))
    assert [str(a) for a in sorted(model.default_gateways())] == [
        "198.51.100.1",
        "198.51.100.2",
        "198.51.100.3",
    ]


@pytest.mark.parametrize(
    ("target", "ifname"),
    [("192.168.1.10", "br-lan"), ("198.51.100.9", None), ("192.168.2.10", None), ("8.8.8.8", None)],
)
def test_on_link_means_through_a_lan_interface(
    model: LanModel, target: str, ifname: str | None
) -> None:
    assert model.on_link(IPv4Address(target)) == ifname


def test_a_longer_route_to_elsewhere_takes_an_address_off_the_lan(model: LanModel) -> None:
    model.apply(RouteChange(route("192.168.1.10/32", WAN)))
    assert model.on_link(PC) is None
    model.apply(RouteChange(route("192.168.1.10/32", WAN), present=False))
    model.apply(RouteChange(route("192.168.1.0/28", LAN, "192.168.1.254")))
    assert model.on_link(PC) is None
    assert model.on_link(IPv4Address("192.168.1.77")) == "br-lan"


def test_routes_of_other_tables_do_not_decide(model: LanModel) -> None:
    model.apply(RouteChange(route("192.168.1.10/32", WAN, table=100)))
    assert model.on_link(PC) == "br-lan"


def test_a_wan_that_contains_the_lan_does_not_hide_it(model: LanModel) -> None:
    model.apply(address(WAN, "192.168.9.9/16"))
    assert model.on_link(PC) == "br-lan"
    assert model.on_link(IPv4Address("192.168.2.10")) is None


def test_nothing_is_on_link_of_an_interface_that_is_down(model: LanModel) -> None:
    model.apply(interface(LAN, up=False))
    assert model.on_link(PC) is None


def test_a_neighbour_is_announced_once_while_its_state_wanders(model: LanModel) -> None:
    for state in (Nud.INCOMPLETE, Nud.REACHABLE, Nud.STALE, Nud.DELAY, Nud.PROBE, Nud.REACHABLE):
        mac = None if state is Nud.INCOMPLETE else MAC
        model.apply(NeighbourChange(neighbour(state, mac)))
    assert events(model) == [NeighbourChanged(PC, MAC, True, "br-lan")]
    model.apply(NeighbourChange(neighbour(Nud.FAILED, None)))
    assert events(model) == [NeighbourChanged(PC, MAC, False, "br-lan")]
    assert model.neighbour(PC) == neighbour(Nud.FAILED, None)


def test_a_mac_that_changes_is_an_end_and_a_beginning(model: LanModel) -> None:
    model.apply(NeighbourChange(neighbour(Nud.REACHABLE)))
    events(model)
    model.apply(NeighbourChange(neighbour(Nud.STALE, OTHER_MAC)))
    assert events(model) == [
        NeighbourChanged(PC, MAC, False, "br-lan"),
        NeighbourChanged(PC, OTHER_MAC, True, "br-lan"),
    ]


def test_a_failed_entry_with_a_lladdr_is_not_usable() -> None:
    assert not neighbour(Nud.FAILED).usable
    assert neighbour(Nud.STALE).usable
    assert neighbour(Nud.PERMANENT).usable


def test_neighbours_of_the_wan_are_none_of_our_business(model: LanModel) -> None:
    model.apply(NeighbourChange(neighbour(Nud.REACHABLE, ifindex=WAN)))
    assert (model.neighbours(), events(model)) == ([], [])


def test_a_neighbour_is_looked_up_on_its_own_interface(model: LanModel) -> None:
    model.apply(NeighbourChange(neighbour(Nud.REACHABLE)))
    assert model.neighbour(PC, "br-lan") is not None
    assert model.neighbour(PC, "br-guest") is None


def test_the_neighbour_table_is_bounded_and_drops_silent_entries_first(
    model: LanModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lan_model, "MAX_NEIGHBOURS", 8)
    model.apply(NeighbourChange(neighbour(Nud.REACHABLE)))
    for host in range(100):
        silent = Neighbour(LAN, IPv4Address(f"192.168.1.{100 + host}"), None, Nud.FAILED)
        model.apply(NeighbourChange(silent))
    assert len(model.neighbours()) == 8
    assert model.neighbour(PC) is not None
    assert model.counters["neighbours_dropped"] == 93


def test_a_full_routing_table_keeps_what_the_policy_needs(
    model: LanModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lan_model, "MAX_ROUTES", 3)
    for net in range(10):
        model.apply(RouteChange(route(f"10.{net}.0.0/16", WAN, "198.51.100.1")))
    model.apply(RouteChange(route("0.0.0.0/0", WAN, "198.51.100.2", metric=5)))
    model.apply(RouteChange(route("192.168.1.128/25", LAN, "192.168.1.254")))
    assert IPv4Address("198.51.100.2") in model.default_gateways()
    assert model.on_link(IPv4Address("192.168.1.200")) is None
    assert model.counters["routes_dropped"] == 8


def test_a_new_lan_address_is_for_the_listener_only(model: LanModel) -> None:
    model.apply(address(LAN, "192.168.7.1/24"))
    assert events(model) == [
        LanAddressesChanged((IPv4Address("192.168.1.1"), IPv4Address("192.168.7.1")))
    ]


def test_a_lan_interface_that_goes_takes_addresses_and_neighbours_with_it(
    model: LanModel,
) -> None:
    model.apply(NeighbourChange(neighbour(Nud.REACHABLE)))
    events(model)
    gone = InterfaceChange(interface(LAN).interface, present=False)
    model.apply(gone)
    assert events(model) == [
        NeighbourChanged(PC, MAC, False, "br-lan"),
        LanAddressesChanged(()),
    ]
    model.apply(gone)
    assert events(model) == []


@pytest.mark.parametrize(
    "change",
    [
        address(WAN, "198.51.100.8/24"),
        address(WAN, "198.51.100.7/24", present=False),
        address(WAN, "2001:db8::7/64"),
        RouteChange(DEFAULT, present=False),
        RouteChange(route("203.0.113.0/24", WAN, "198.51.100.1")),
        RouteChange(route("::/0", WAN, "fe80::1")),
        interface(WAN, running=False),
        InterfaceChange(interface(WAN).interface, present=False),
    ],
)
def test_whatever_may_move_the_uplink_is_told(model: LanModel, change: Change) -> None:
    model.apply(change)
    (event,) = events(model)
    assert isinstance(event, WanChanged)
    assert event.reason


@pytest.mark.parametrize(
    "change",
    [
        *GATEWAY,
        address(WAN, "fe80::7/64"),
        address(LAN, "2001:db8::1/64"),
        RouteChange(route("192.168.1.0/24", LAN)),
        interface(LAN, running=False),
        InterfaceChange(Interface(9, "wlan0", up=True, running=True)),
    ],
)
def test_what_cannot_move_the_uplink_is_not_told(model: LanModel, change: Change) -> None:
    model.apply(change)
    assert events(model) == []


def test_a_burst_of_wan_changes_is_told_once(model: LanModel) -> None:
    model.apply(address(WAN, "198.51.100.8/24"))
    model.apply(RouteChange(DEFAULT, present=False))
    assert len(events(model)) == 1


def test_standalone_the_lan_interface_is_the_uplink(model: LanModel) -> None:
    model.apply(RouteChange(DEFAULT, present=False))
    model.apply(RouteChange(route("0.0.0.0/0", LAN, "192.168.1.254")))
    events(model)
    model.apply(address(LAN, "192.168.1.2/24"))
    kinds = [type(event) for event in events(model)]
    assert kinds == [WanChanged, LanAddressesChanged]


def test_a_dump_removes_what_it_does_not_contain(model: LanModel) -> None:
    model.apply(NeighbourChange(neighbour(Nud.REACHABLE)))
    events(model)
    model.replace(NeighbourChange, [])
    assert events(model) == [NeighbourChanged(PC, MAC, False, "br-lan")]
    model.replace(RouteChange, [RouteChange(route("0.0.0.0/0", WAN, "198.51.100.9"))])
    assert list(model.default_gateways()) == [IPv4Address("198.51.100.9")]
    model.replace(AddressChange, [address(LAN, "192.168.1.1/24")])
    assert list(model.own_addresses()) == [IPv4Address("192.168.1.1")]
    model.replace(InterfaceChange, [interface(LAN)])
    assert model.ifname(WAN) == "#3"


def test_the_same_dump_again_tells_nothing(model: LanModel) -> None:
    for kind in (InterfaceChange, AddressChange, RouteChange):
        model.replace(kind, [change for change in GATEWAY if isinstance(change, kind)])
    assert events(model) == []
