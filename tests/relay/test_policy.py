from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.config import Config, parse
from gwmodule.errors import Code, PolicyRefused
from gwmodule.lan.model import (
    AddressChange,
    Interface,
    InterfaceChange,
    LanModel,
    Neighbour,
    NeighbourChange,
    Nud,
    Route,
    RouteChange,
)
from gwmodule.relay.policy import Lockdown, Policy, Rule

MAC = bytes.fromhex("020000000110")
OTHER_MAC = bytes.fromhex("020000000111")
PC = IPv4Address("192.168.1.10")
CONFIG = parse({"lan": {"interface": ["br-lan", "br-guest"]}})


def gateway(config: Config = CONFIG) -> LanModel:
    """br-lan 192.168.1.1/24 and 10.9.0.1/31, wan 198.51.100.7/24, default over wan, PC known."""
    model = LanModel(config.lan.interface)
    names = ("lo", "br-lan", "wan")
    for ifindex, name in enumerate(names, start=1):
        model.apply(InterfaceChange(Interface(ifindex, name, True, True)))
    for ifindex, text in (
        (1, "127.0.0.1/8"),
        (2, "192.168.1.1/24"),
        (2, "10.9.0.0/31"),
        (3, "198.51.100.7/24"),
    ):
        model.apply(AddressChange(ifindex, IPv4Interface(text)))
    for destination, router, ifindex in (
        ("0.0.0.0/0", "198.51.100.1", 3),
        ("192.168.2.0/24", "192.168.1.254", 2),
    ):
        model.apply(RouteChange(Route(ip_network(destination), IPv4Address(router), ifindex)))
    model.apply(NeighbourChange(Neighbour(2, PC, MAC, Nud.REACHABLE)))
    return model


@pytest.mark.parametrize("port", [16992, 16993, 16994, 16995])
def test_a_known_device_on_the_lan_is_allowed_on_amt_s_ports(port: int) -> None:
    policy = Policy(CONFIG)
    assert policy.check(gateway(), PC, port, MAC) == "br-lan"
    assert set(policy.counters.values()) == {0}


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("0.0.0.0", Rule.SPECIAL_ADDRESS),
        ("0.1.2.3", Rule.SPECIAL_ADDRESS),
        ("127.0.0.1", Rule.SPECIAL_ADDRESS),
        ("127.8.9.10", Rule.SPECIAL_ADDRESS),
        ("224.0.0.251", Rule.SPECIAL_ADDRESS),
        ("240.0.0.1", Rule.SPECIAL_ADDRESS),
        ("255.255.255.255", Rule.SPECIAL_ADDRESS),
        ("192.168.1.1", Rule.OWN_ADDRESS),
        ("198.51.100.7", Rule.OWN_ADDRESS),
        ("198.51.100.1", Rule.DEFAULT_GATEWAY),
        ("192.168.1.0", Rule.NETWORK_ADDRESS),
        ("192.168.1.255", Rule.NETWORK_ADDRESS),
        ("198.51.100.255", Rule.NETWORK_ADDRESS),
        ("198.51.100.9", Rule.WAN_ADDRESS),
        ("192.168.2.10", Rule.NOT_ON_LAN),
        ("8.8.8.8", Rule.NOT_ON_LAN),
        ("192.168.1.11", Rule.NO_NEIGHBOUR),
    ],
)
def test_other_targets_are_refused_by_rule_and_counted(target: str, rule: Rule) -> None:
    policy = Policy(CONFIG)
    with pytest.raises(PolicyRefused, match=target.replace(".", r"\.")) as refusal:
        policy.check(gateway(), IPv4Address(target), 16992, MAC)
    assert refusal.value.rule == rule
    assert refusal.value.code is Code.REFUSED_POLICY
    assert policy.counters == {name.value: int(name is rule) for name in Rule}


@pytest.mark.parametrize("port", [0, 22, 80, 623, 5900, 16991, 16996])
def test_other_ports_are_refused_with_the_ones_that_are_allowed(port: int) -> None:
    with pytest.raises(PolicyRefused, match=rf"port {port} of .* 16992, 16993, 16994, 16995"):
        Policy(CONFIG).check(gateway(), PC, port, MAC)


def test_more_ports_can_be_configured() -> None:
    config = parse({"lan": {"interface": "br-lan"}, "streams": {"extra_ports": ["5900"]}})
    assert Policy(config).check(gateway(), PC, 5900, MAC) == "br-lan"


def test_ipv6_is_refused_by_name() -> None:
    with pytest.raises(PolicyRefused, match="2001:db8::1 is an IPv6 address"):
        Policy(CONFIG).check(gateway(), IPv6Address("2001:db8::1"), 16992, MAC)


def test_an_ipv6_address_is_what_is_wrong_whatever_the_port() -> None:
    with pytest.raises(PolicyRefused) as refusal:
        Policy(CONFIG).check(gateway(), IPv6Address("2001:db8::1"), 22, MAC)
    assert refusal.value.rule == Rule.NOT_IPV4


def test_a_lan_that_is_down_is_not_called_a_wan() -> None:
    model = gateway()
    model.apply(InterfaceChange(Interface(2, "br-lan", up=False, running=False)))
    with pytest.raises(PolicyRefused) as refusal:
        Policy(CONFIG).check(model, PC, 16992, MAC)
    assert refusal.value.rule == Rule.NOT_ON_LAN


def test_another_mac_is_refused_with_both() -> None:
    with pytest.raises(
        PolicyRefused, match="is 02:00:00:00:01:10, not the expected 02:00:00:00:01:11"
    ):
        Policy(CONFIG).check(gateway(), PC, 16992, OTHER_MAC)


@pytest.mark.parametrize("mac", [bytes(6), b"", b"\xff" * 6, b"\x01\x00\x5e\x00\x00\x01"])
def test_a_mac_that_no_device_has_is_refused(mac: bytes) -> None:
    with pytest.raises(PolicyRefused) as refusal:
        Policy(CONFIG).check(gateway(), PC, 16992, mac)
    assert refusal.value.rule == Rule.UNKNOWN_MAC


def test_the_first_look_leaves_the_neighbour_out() -> None:
    assert Policy(CONFIG).check(gateway(), IPv4Address("192.168.1.11"), 16992, None) == "br-lan"


@pytest.mark.parametrize("state", [Nud.FAILED, Nud.INCOMPLETE, Nud.NONE])
def test_a_neighbour_that_does_not_answer_proves_nothing(state: Nud) -> None:
    model = gateway()
    model.apply(NeighbourChange(Neighbour(2, PC, MAC, state)))
    with pytest.raises(PolicyRefused) as refusal:
        Policy(CONFIG).check(model, PC, 16992, MAC)
    assert refusal.value.rule == Rule.NO_NEIGHBOUR


def test_point_to_point_networks_have_no_broadcast_address() -> None:
    assert Policy(CONFIG).check_address(gateway(), IPv4Address("10.9.0.1")) == "br-lan"


def test_standalone_refuses_the_router_beside_the_devices() -> None:
    model = gateway()
    router = IPv4Address("192.168.1.254")
    model.apply(RouteChange(Route(ip_network("0.0.0.0/0"), router, 2)))
    config = parse({"deployment": "standalone", "lan": {"interface": "br-lan"}})
    with pytest.raises(PolicyRefused, match="default router on br-lan") as refusal:
        Policy(config).check(model, router, 16992, MAC)
    assert refusal.value.rule == Rule.DEFAULT_GATEWAY


def test_without_a_lan_everything_is_refused() -> None:
    config = parse({})
    with pytest.raises(PolicyRefused, match="none configured"):
        Policy(config).check(gateway(config), PC, 16992, MAC)


@given(st.ip_addresses(v=4), st.integers(0, 65535), st.binary(min_size=6, max_size=6))
def test_only_the_one_right_target_gets_through(
    address: IPv4Address, port: int, mac: bytes
) -> None:
    model = gateway()
    right = address == PC and port in range(16992, 16996) and mac == MAC
    try:
        Policy(CONFIG).check(model, address, port, mac)
    except PolicyRefused:
        assert not right
    else:
        assert right


def test_a_lockdown_refuses_everything_until_it_is_over() -> None:
    policy = Policy(parse({}))
    policy.check_access(0.0)
    policy.lockdown.switch(True, 10.0, 5.0)
    assert policy.lockdown.as_json(12.0) == {"on": True, "seconds_left": 3.0}
    with pytest.raises(PolicyRefused, match=r"^locked down at the gateway$") as refused:
        policy.check_access(14.9)
    assert (refused.value.rule, policy.counters["locked-down"]) == ("locked-down", 1)
    policy.check_access(15.0)
    policy.lockdown.switch(True, 20.0)
    assert policy.lockdown.as_json(1e9) == {"on": True, "seconds_left": None}
    policy.lockdown.switch(False, 30.0)
    policy.check_access(30.0)


def test_only_a_timed_lockdown_that_is_on_has_an_end() -> None:
    lockdown = Lockdown(on=False)
    assert lockdown.ends_at(0.0) is None
    lockdown.switch(True, 10.0, 5.0)
    assert lockdown.ends_at(14.9) == 15.0
    assert lockdown.ends_at(15.0) is None
    assert lockdown.as_json(15.0) == {"on": False, "seconds_left": None}
    lockdown.switch(True, 20.0)
    assert lockdown.ends_at(20.0) is None


def test_the_configuration_decides_how_it_starts() -> None:
    with pytest.raises(PolicyRefused, match="locked down"):
        Policy(parse({"relay": {"lockdown": True}})).check_access(0.0)
