from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from gwmodule.sim.hosts import Lab, LabError, Service, wait_until
from gwmodule.sim.services import start_dhcp_client, start_dhcp_server, wait_for_lease
from gwmodule.sim.topology import (
    MANAGEMENT,
    MSP,
    NAT_WAN,
    PCS,
    ROUTER_LAN,
    SUBSCRIBER,
    TWO_WANS,
    WEB,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

LISTEN = """
import socket
server = socket.create_server(("", {port}))
while True:
    connection, peer = server.accept()
    print(*peer, flush=True)
"""
CONNECT = """
import socket
s = socket.socket()
s.settimeout(1.5)
if {interface!r}:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, {interface!r}.encode())
s.connect(({address!r}, {port}))
print(s.getsockname()[0])
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(TWO_WANS) as lab:
        start_dhcp_server(lab)
        for pc in PCS:
            start_dhcp_client(lab, pc)
        for pc in PCS:
            wait_for_lease(lab, pc)
        yield lab


def listen(lab: Lab, host: str, port: int) -> Service:
    service = lab.start(host, [sys.executable, "-c", LISTEN.format(port=port)], f"{host}-{port}")
    wait_until(f"{host} listens", lambda: str(port) in listening(lab, host), 20)
    return service


def listening(lab: Lab, host: str) -> str:
    return lab.run(host, ["ss", "-ltnH"]).stdout


def connect(lab: Lab, host: str, address: str, port: int, interface: str = "") -> str:
    """The source address of a connection, or the name of the error that stopped it."""
    script = CONNECT.format(address=address, port=port, interface=interface)
    result = lab.run(host, [sys.executable, "-c", script], check=False)
    return result.stdout.strip() or result.stderr.splitlines()[-1].split(":")[0]


def test_every_pc_gets_a_lease_and_finds_provisionserver(lab: Lab) -> None:
    find = "import socket; print(socket.gethostbyname('provisionserver'))"
    for pc in PCS:
        assert lab.address(pc).startswith("192.168.77.1")
        assert lab.run(pc, [sys.executable, "-c", find]).stdout.strip() == ROUTER_LAN


def test_the_portal_drops_and_counts_the_pcs_until_somebody_logs_in(lab: Lab) -> None:
    listen(lab, "web", 80)
    dropped = lab.portal_packets("refused")
    assert connect(lab, "pc1", WEB, 80) == "TimeoutError"
    assert lab.portal_packets("refused") > dropped
    lab.portal_login(SUBSCRIBER)
    assert connect(lab, "pc1", WEB, 80) == lab.address("pc1")
    assert lab.portal_packets("passed") > 0


def test_a_socket_bound_to_mgmt_leaves_by_it_and_is_translated(lab: Lab) -> None:
    service = listen(lab, "msp", 8444)
    assert connect(lab, "gateway", MSP, 8444, "mgmt") == MANAGEMENT
    wait_until("the connection", lambda: service.log.read_text(), 20)
    assert service.log.read_text().split()[0] == NAT_WAN


def test_the_msp_reaches_neither_a_pc_nor_the_gateway(lab: Lab) -> None:
    listen(lab, "pc1", 16992)
    assert connect(lab, "gateway", lab.address("pc1"), 16992) == ROUTER_LAN
    assert connect(lab, "msp", lab.address("pc1"), 16992) in ("OSError", "TimeoutError")
    assert connect(lab, "msp", NAT_WAN, 16992) in ("ConnectionRefusedError", "TimeoutError")


def test_a_cut_wan_swallows_packets_and_heals(lab: Lab) -> None:
    listen(lab, "msp", 8445)
    with lab.wan_cut():
        assert connect(lab, "gateway", MSP, 8445, "mgmt") == "TimeoutError"
    assert connect(lab, "gateway", MSP, 8445, "mgmt") == MANAGEMENT


def test_a_failing_command_says_where_and_why(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"pc2: ip nonsense: exit 1: .*nonsense"):
        lab.run("pc2", ["ip", "nonsense"])


def test_a_killed_service_starts_again_with_its_log(lab: Lab) -> None:
    service = lab.start("pc3", ["sh", "-c", "echo started; exec sleep 60"], log="sleeper")
    again = lab.restart("sleeper")
    wait_until("the second start", lambda: again.log.read_text().count("started") >= 1, 20)
    assert not service.alive
    assert again.alive
    assert "sleep 60" in lab.processes("pc3")[again.process.pid]
