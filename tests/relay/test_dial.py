from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from gwmodule.config import parse
from gwmodule.errors import Code, DeviceUnreachable, GatewayError, PolicyRefused
from gwmodule.lan.netlink import LanWatcher, bind_to_interface
from gwmodule.relay.dial import LanDialer
from gwmodule.relay.policy import Policy, Rule
from tests.lan.netns import PC_MAC, Home, home, ip, needs_root

pytestmark = [pytest.mark.root, needs_root]

PC = IPv4Address("192.168.1.10")
MAC = bytes.fromhex(PC_MAC.replace(":", ""))
OTHER_MAC = bytes.fromhex("020000000111")
CONFIG = parse({"lan": {"interface": "br-lan"}, "streams": {"connect_timeout": 1.5}})


@dataclass
class Lan:
    home: Home
    listener: socket.socket
    udp: socket.socket


@pytest.fixture
def lan() -> Iterator[Lan]:
    with home() as namespaces:
        listener = namespaces.pc.run(lambda: socket.create_server(("0.0.0.0", 16992)))
        udp = namespaces.pc.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with listener, udp:
            udp.bind(("0.0.0.0", 623))
            listener.settimeout(5)
            udp.settimeout(5)
            yield Lan(namespaces, listener, udp)


@asynccontextmanager
async def dialer() -> AsyncIterator[LanDialer]:
    watcher = LanWatcher(CONFIG.lan)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(watcher.run())
        await watcher.ready.wait()
        yield LanDialer(CONFIG, watcher, Policy(CONFIG))
        task.cancel()


def dial(lan: Lan, target: str, port: int = 16992, mac: bytes = MAC) -> socket.socket:
    async def main() -> socket.socket:
        async with dialer() as lan_dialer:
            try:
                return await lan_dialer.dial(IPv4Address(target), port, mac)
            except GatewayError as exc:
                problem = exc
        # Outside of the TaskGroup, which would wrap it.
        raise problem

    return lan.home.gateway.run_async(main)


def test_the_right_device_is_reached_without_delay_and_over_the_lan_only(lan: Lan) -> None:
    with dial(lan, str(PC)) as sock:
        accepted, peer = lan.listener.accept()
        with accepted:
            sock.send(b"hello")
            assert accepted.recv(5) == b"hello"
        assert peer[0] == "192.168.1.1"
        assert sock.gettimeout() == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
        assert device.rstrip(b"\0") == b"br-lan"


@pytest.mark.parametrize(
    ("target", "port", "rule"),
    [
        ("127.0.0.1", 16992, Rule.SPECIAL_ADDRESS),
        ("192.168.1.1", 16992, Rule.OWN_ADDRESS),
        ("198.51.100.7", 16992, Rule.OWN_ADDRESS),
        ("198.51.100.1", 16992, Rule.DEFAULT_GATEWAY),
        ("198.51.100.9", 16992, Rule.WAN_ADDRESS),
        ("192.168.1.255", 16992, Rule.NETWORK_ADDRESS),
        ("203.0.113.5", 16992, Rule.NOT_ON_LAN),
        (str(PC), 22, Rule.PORT),
    ],
)
def test_what_the_policy_forbids_is_refused(lan: Lan, target: str, port: int, rule: Rule) -> None:
    with pytest.raises(PolicyRefused) as refusal:
        dial(lan, target, port)
    assert refusal.value.rule == rule


def test_a_device_with_another_mac_is_refused(lan: Lan) -> None:
    with pytest.raises(PolicyRefused, match=PC_MAC) as refusal:
        dial(lan, str(PC), mac=OTHER_MAC)
    assert refusal.value.rule == Rule.OTHER_MAC


def test_without_a_mac_nothing_is_asked_or_sent(lan: Lan) -> None:
    with pytest.raises(PolicyRefused) as refusal:
        dial(lan, str(PC), mac=bytes(6))
    assert refusal.value.rule == Rule.UNKNOWN_MAC
    command = ["ip", "neighbour", "show", str(PC)]
    assert lan.home.gateway.run(lambda: subprocess.check_output(command)) == b""


def test_a_closed_port_and_a_silent_host_are_told_apart(lan: Lan) -> None:
    with pytest.raises(DeviceUnreachable, match="16993: Connection refused") as closed:
        dial(lan, str(PC), 16993)
    assert closed.value.code is Code.CONNECTION_REFUSED
    with pytest.raises(
        DeviceUnreachable, match=r"did not answer ARP on br-lan within 1\.5 s"
    ) as silent:
        dial(lan, "192.168.1.77")
    assert silent.value.code is Code.UNREACHABLE


def test_an_interface_that_has_just_gone_makes_the_device_unreachable(lan: Lan) -> None:
    async def main() -> None:
        async with dialer() as lan_dialer:
            # No await in between: the model has not heard of it yet.
            ip("link delete br-lan")
            with pytest.raises(DeviceUnreachable, match="No such device"):
                await lan_dialer.dial(PC, 16992, MAC)
            with pytest.raises(DeviceUnreachable, match="No such device"):
                await lan_dialer.udp_socket(PC, 623, MAC)

    lan.home.gateway.run_async(main)


def test_a_device_that_turns_into_another_while_connecting_is_refused(lan: Lan) -> None:
    lan.home.pc.ip("address add 192.168.1.12/24 dev eth0")
    lan.home.pc.ip("route add blackhole 192.168.1.1/32")

    async def main() -> None:
        async with dialer() as lan_dialer, asyncio.TaskGroup() as group:

            async def dial_it() -> None:
                with pytest.raises(PolicyRefused, match="not the expected"):
                    await lan_dialer.dial(IPv4Address("192.168.1.12"), 16992, MAC, 5)

            group.create_task(dial_it())
            await asyncio.sleep(0.3)
            # The SYN waits; meanwhile the entry is overwritten, and then the SYN is answered.
            ip("neighbour replace 192.168.1.12 lladdr 02:00:00:00:09:99 nud permanent dev br-lan")
            await asyncio.to_thread(lan.home.pc.ip, "link set eth0 address 02:00:00:00:09:99")
            await asyncio.to_thread(lan.home.pc.ip, "route delete blackhole 192.168.1.1/32")

    lan.home.gateway.run_async(main)


def test_a_host_that_drops_the_syn_is_named_with_its_port(lan: Lan) -> None:
    # ARP answers for an address that nobody has behind it.
    lan.home.pc.ip("address add 192.168.1.12/24 dev eth0")
    lan.home.pc.ip("route add blackhole 192.168.1.1/32")
    with pytest.raises(DeviceUnreachable, match=r"accept the connection to port 16992 within 1\.5"):
        dial(lan, "192.168.1.12")


def test_a_stale_entry_of_another_pc_is_refused_and_asked_about(lan: Lan) -> None:
    lan.home.gateway.ip(f"neighbour add {PC} lladdr 02:00:00:00:09:99 nud stale dev br-lan")

    async def main() -> None:
        async with dialer() as lan_dialer:
            with pytest.raises(PolicyRefused, match="02:00:00:00:09:99"):
                await lan_dialer.dial(PC, 16992, MAC)
            # The kernel asks the old MAC in vain, then everybody.
            async with asyncio.timeout(15):
                while True:
                    try:
                        sock = await lan_dialer.dial(PC, 16992, MAC)
                    except PolicyRefused:
                        await asyncio.sleep(0.2)
                    else:
                        return sock.close()

    lan.home.gateway.run_async(main)


def test_a_more_specific_route_keeps_the_dialer_out(lan: Lan) -> None:
    lan.home.gateway.ip(f"route add {PC}/32 via 198.51.100.1")
    with pytest.raises(PolicyRefused) as refusal:
        dial(lan, str(PC))
    assert refusal.value.rule == Rule.NOT_ON_LAN


def test_the_kernel_itself_keeps_lan_sockets_away_from_routers(lan: Lan) -> None:
    lan.home.gateway.ip(f"neighbour add 192.168.1.254 lladdr {PC_MAC} dev br-lan")
    lan.home.gateway.ip("route add 203.0.113.0/24 via 192.168.1.254")

    def connect() -> None:
        with socket.socket() as sock:
            bind_to_interface(sock, "br-lan", None)
            sock.connect(("203.0.113.5", 16992))

    with pytest.raises(OSError, match="No route to host"):
        lan.home.gateway.run(connect)


def test_the_presence_ping_goes_to_the_right_device_only(lan: Lan) -> None:
    async def main() -> None:
        async with dialer() as lan_dialer:
            with await lan_dialer.udp_socket(PC, 623, MAC) as sock:
                sock.send(b"ping")
                data, peer = await asyncio.to_thread(lan.udp.recvfrom, 100)
                assert (data, peer[0]) == (b"ping", "192.168.1.1")
                lan.udp.sendto(b"pong", peer)
                async with asyncio.timeout(2):
                    assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"pong"
            with pytest.raises(PolicyRefused, match="not the expected"):
                await lan_dialer.udp_socket(PC, 623, OTHER_MAC)
            with pytest.raises(PolicyRefused, match="own address"):
                await lan_dialer.udp_socket(IPv4Address("192.168.1.1"), 623, MAC)
            with pytest.raises(DeviceUnreachable, match="ARP"):
                await lan_dialer.udp_socket(IPv4Address("192.168.1.77"), 623, MAC, 0.2)

    lan.home.gateway.run_async(main)


def test_a_presence_ping_that_cannot_be_sent_leaves_no_socket_behind(lan: Lan) -> None:
    def sockets() -> int:
        folder = Path("/proc/self/fd")
        names = [os.readlink(fd) for fd in folder.iterdir() if fd.is_symlink()]
        return sum(name.startswith("socket:") for name in names)

    async def main() -> None:
        async with dialer() as lan_dialer:
            (await lan_dialer.udp_socket(PC, 623, MAC)).close()
            # No await in between: the model has not heard of it yet.
            ip("link set br-lan down")
            before = sockets()
            # Kept, because an exception that is thrown away takes its frames and sockets along.
            with pytest.raises(DeviceUnreachable, match="Network is unreachable") as problem:
                await lan_dialer.udp_socket(PC, 623, MAC)
            assert sockets() == before, problem

    lan.home.gateway.run_async(main)


def test_an_unprivileged_process_dials_as_well(lan: Lan) -> None:
    program = (
        "import asyncio, os\n"
        "from gwmodule.lan.netlink import parsers\n"
        "from tests.relay.test_dial import MAC, PC, dialer\n"
        # Imports while it may: the interpreter may lie where nobody else can read.
        "parsers()\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "async def main():\n"
        "    async with dialer() as lan_dialer:\n"
        "        sock = await lan_dialer.dial(PC, 16992, MAC)\n"
        "        print(sock.getpeername()[0])\n"
        "        sock.close()\n"
        "asyncio.run(main())\n"
    )
    done = lan.home.gateway.run(
        lambda: subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    )
    assert (done.stdout, done.stderr) == (f"{PC}\n", "")
