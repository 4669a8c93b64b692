from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import Any

import pytest

from gwmodule.config import LanConfig
from gwmodule.lan.model import LanAddressesChanged, LanEvent, NeighbourChanged, Nud, WanChanged
from gwmodule.lan.netlink import LanWatcher, bind_to_interface
from tests.lan.netns import PC_MAC, Home, home, ip, needs_root

pytestmark = [pytest.mark.root, needs_root]

PC = IPv4Address("192.168.1.10")
ISP = IPv4Address("198.51.100.1")
MAC = bytes.fromhex(PC_MAC.replace(":", ""))


@pytest.fixture
def lan() -> Iterator[Home]:
    with home() as namespaces:
        yield namespaces


@asynccontextmanager
async def watching(events: list[LanEvent]) -> AsyncIterator[LanWatcher]:
    watcher = LanWatcher(LanConfig(interface=("br-lan",)), events.append)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(watcher.run())
        await watcher.ready.wait()
        yield watcher
        task.cancel()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(12):
        while not condition():
            await asyncio.sleep(0.01)


def test_the_first_dump_shows_interfaces_addresses_routes_and_neighbours(lan: Home) -> None:
    lan.gateway.ip(f"neighbour add {PC} lladdr {PC_MAC} dev br-lan")
    events: list[LanEvent] = []

    async def main() -> None:
        async with watching(events) as watcher:
            model = watcher.model
            assert [i.ifname for i in model.lan_interfaces()] == ["br-lan"]
            assert model.listen_addresses() == (IPv4Address("192.168.1.1"),)
            assert model.own_addresses()[IPv4Address("198.51.100.7")] == "wan"
            assert model.default_gateways() == {ISP: "wan"}
            assert model.on_link(PC) == "br-lan"
            neighbour = model.neighbour(PC)
            assert neighbour is not None
            assert (neighbour.lladdr, neighbour.state) == (MAC, Nud.PERMANENT)

    lan.gateway.run_async(main)
    assert NeighbourChanged(PC, MAC, True, "br-lan") in events
    assert LanAddressesChanged((IPv4Address("192.168.1.1"),)) in events


def test_a_neighbour_is_resolved_without_any_capability_of_ours(lan: Home) -> None:
    async def main() -> None:
        async with watching([]) as watcher, asyncio.timeout(2):
            assert await watcher.resolve(PC, "br-lan") == MAC
            assert await watcher.resolve(PC, "br-lan") == MAC

    lan.gateway.run_async(main)


def test_a_host_that_is_not_there_times_out_and_is_found_when_it_comes(lan: Home) -> None:
    late = IPv4Address("192.168.1.77")

    async def main() -> None:
        async with watching([]) as watcher:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):
                    await watcher.resolve(late, "br-lan")
            lan.pc.ip(f"address add {late}/24 dev eth0")
            async with asyncio.timeout(5):
                assert await watcher.resolve(late, "br-lan") == MAC

    lan.gateway.run_async(main)


def test_two_callers_may_wait_for_the_same_neighbour(lan: Home) -> None:
    async def main() -> None:
        async with watching([]) as watcher, asyncio.timeout(2):
            both = await asyncio.gather(*(watcher.resolve(PC, "br-lan") for _ in range(2)))
            assert both == [MAC, MAC]

    lan.gateway.run_async(main)


def test_address_and_route_changes_reach_the_model_and_the_listener(lan: Home) -> None:
    events: list[LanEvent] = []

    async def main() -> None:
        async with watching(events) as watcher:
            events.clear()
            ip("address add 192.168.7.1/24 dev br-lan")
            await eventually(lambda: len(watcher.model.listen_addresses()) == 2)
            assert not [event for event in events if isinstance(event, WanChanged)]
            ip("route replace default via 198.51.100.99")
            gateway = IPv4Address("198.51.100.99")
            await eventually(lambda: watcher.model.default_gateways() == {gateway: "wan"})
            assert [event for event in events if isinstance(event, WanChanged)]

    lan.gateway.run_async(main)
    assert LanAddressesChanged((IPv4Address("192.168.1.1"), IPv4Address("192.168.7.1"))) in events


def test_routes_that_vanish_silently_with_their_interface_are_noticed(lan: Home) -> None:
    async def main() -> None:
        async with watching([]) as watcher:
            ip("link set wan down")
            await eventually(lambda: watcher.model.default_gateways() == {})
            ip("link delete br-lan")
            await eventually(lambda: watcher.model.lan_interfaces() == [])
            assert watcher.model.on_link(PC) is None
            assert watcher.model.listen_addresses() == ()

    lan.gateway.run_async(main)


def test_a_multipath_default_route_names_every_router(lan: Home) -> None:
    lan.gateway.ip(
        "route replace default nexthop via 198.51.100.1 dev wan"
        " nexthop via 192.168.1.254 dev br-lan"
    )

    async def main() -> None:
        async with watching([]) as watcher:
            assert watcher.model.default_gateways() == {
                ISP: "wan",
                IPv4Address("192.168.1.254"): "br-lan",
            }

    lan.gateway.run_async(main)


def test_a_silent_neighbour_is_reported_with_the_mac_it_had(lan: Home) -> None:
    events: list[LanEvent] = []

    async def main() -> None:
        async with watching(events) as watcher:
            async with asyncio.timeout(2):
                await watcher.resolve(PC, "br-lan")
            ip(f"neighbour delete {PC} dev br-lan")
            await eventually(lambda: NeighbourChanged(PC, MAC, False, "br-lan") in events)

    lan.gateway.run_async(main)
    assert NeighbourChanged(PC, MAC, True, "br-lan") in events


def test_lost_events_are_made_up_by_another_dump(lan: Home) -> None:
    batch = "\n".join(
        f"neighbour replace 192.168.1.{host} lladdr 02:00:00:00:{lladdr:02x}:{host:02x} dev br-lan"
        for lladdr in range(60)
        for host in range(20, 220)
    )

    async def main() -> None:
        async with watching([]) as watcher:
            # 12,000 events while the loop cannot read: more than any receive buffer allowed here.
            ip("-batch -", batch)
            await eventually(lambda: watcher.counters["overruns"] > 0)
            last = IPv4Address("192.168.1.219")
            wanted = bytes.fromhex("020000003bdb")

            def caught_up() -> bool:
                entry = watcher.model.neighbour(last)
                return entry is not None and entry.lladdr == wanted

            await eventually(caught_up)
            assert len(watcher.model.neighbours()) == 200

    lan.gateway.run_async(main)


def test_bridge_forwarding_entries_are_no_neighbours(lan: Home) -> None:
    lan.gateway.ip("link add br0 type bridge")
    lan.gateway.ip("link set br0 up")

    async def main() -> None:
        async with watching([]) as watcher:
            before = [i.ifname for i in watcher.model.lan_interfaces()]
            ip("link set br-lan master br0")
            ip("link set br-lan nomaster")
            await asyncio.sleep(0.3)
            # The bridge announced RTM_DELLINK (AF_BRIDGE) for br-lan, which still exists.
            assert [i.ifname for i in watcher.model.lan_interfaces()] == before

    lan.gateway.run_async(main)


def test_following_a_quiet_network_costs_no_wakeups(lan: Home) -> None:
    async def main() -> None:
        async with watching([]) as watcher:
            await asyncio.sleep(0.5)
            dumps, started = watcher.counters["dumps"], time.process_time()
            await asyncio.sleep(0.5)
            assert watcher.counters["dumps"] == dumps
            assert time.process_time() - started < 0.05

    lan.gateway.run_async(main)


def test_states_are_the_kernel_s() -> None:
    assert (Nud.REACHABLE, Nud.STALE, Nud.FAILED, Nud.PERMANENT) == (0x02, 0x04, 0x20, 0x80)


def test_an_ipv4_route_over_an_ipv6_router_has_no_ipv4_gateway(lan: Home) -> None:
    lan.gateway.ip("-4 route replace default via inet6 fe80::1 dev wan")

    async def main() -> None:
        async with watching([]) as watcher:
            assert watcher.model.default_gateways() == {}
            assert watcher.model.on_link(IPv4Address("203.0.113.5")) is None

    lan.gateway.run_async(main)


class OldKernelSocket(socket.socket):
    """Linux before 5.7: SO_BINDTODEVICE needs CAP_NET_RAW."""

    def setsockopt(self, level: int, option: int, value: Any, *rest: Any) -> None:
        if option == socket.SO_BINDTODEVICE:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        super().setsockopt(level, option, value, *rest)


def test_where_binding_to_a_device_is_forbidden_our_address_does_it(lan: Home) -> None:
    def bind() -> None:
        with OldKernelSocket() as sock:
            bind_to_interface(sock, "br-lan", IPv4Address("192.168.1.1"))
            assert sock.getsockname()[0] == "192.168.1.1"
        with OldKernelSocket() as sock, pytest.raises(PermissionError):
            bind_to_interface(sock, "br-lan", None)

    lan.gateway.run(bind)


def test_only_four_parsers_of_pyroute2_are_loaded_and_the_whole_may_follow() -> None:
    script = (
        "import sys; from gwmodule.lan.netlink import parsers; parsers();"
        "loaded = [m for m in sys.modules if m.startswith('pyroute2.')];"
        "assert len(loaded) < 40, loaded;"
        "import pyroute2; pyroute2.IPRoute"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_a_missing_pyroute2_is_named() -> None:
    script = (
        "import importlib.util; importlib.util.find_spec = lambda name: None;"
        "from gwmodule.lan.netlink import parsers; parsers()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "ModuleNotFoundError: No module named 'pyroute2'" in done.stderr
