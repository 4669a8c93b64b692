from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from gwmodule.sim.hosts import Lab, wait_until
from gwmodule.sim.services import LOGIN, UUIDS, System
from gwmodule.sim.topology import (
    MACS,
    MANAGEMENT,
    MSP,
    ROUTER_LAN,
    SUBSCRIBER,
    SUBSCRIBER_ROUTER,
    TWO_WANS,
)
from tests.lab.conftest import bring_up, registry_says

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

# Opens the forwarded port and waits for what becomes of the connection.
KNOCK = """
import socket
s = socket.create_connection(("127.0.0.1", 2222), 10)
try:
    print(s.recv(64))
except ConnectionError as exc:
    print(type(exc).__name__)
"""


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with Lab(TWO_WANS) as lab:
        system = System(lab)
        # No new probe may correct the registry while a test has falsified it.
        bring_up(system, probe={"interval": 600.0})
        yield system


def refusals(system: System, rule: str) -> int:
    count: int = system.status()["policy_refusals"][rule]
    return count


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        pytest.param("127.0.0.1", "special-address", id="loopback"),
        pytest.param(ROUTER_LAN, "own-address", id="own LAN address"),
        pytest.param(MANAGEMENT, "own-address", id="own management address"),
        pytest.param(SUBSCRIBER, "own-address", id="own WAN address"),
        pytest.param(SUBSCRIBER_ROUTER, "default-gateway", id="default gateway"),
        pytest.param("100.64.0.77", "wan-address", id="WAN neighbour"),
        pytest.param(MSP, "not-on-lan", id="MSP"),
    ],
)
def test_an_address_that_is_no_pc_is_refused(system: System, address: str, rule: str) -> None:
    before = refusals(system, rule)
    with registry_says("pc1", address, MACS["pc1"]):
        result = system.technician("call", UUIDS["pc1"], "power.get", *LOGIN)
    assert result.returncode != 0
    assert address in result.stderr
    assert refusals(system, rule) > before


def test_a_lan_address_whose_neighbour_has_another_mac_is_refused(system: System) -> None:
    before = refusals(system, "other-mac")
    with registry_says("pc1", system.lab.address("pc2"), MACS["pc1"]):
        result = system.technician("call", UUIDS["pc1"], "power.get", *LOGIN)
    assert result.returncode != 0
    assert MACS["pc2"] in result.stderr
    assert refusals(system, "other-mac") > before


def test_a_port_outside_amt_is_refused(system: System) -> None:
    before = refusals(system, "port")
    argv = system.technician_command("forward", UUIDS["pc1"], "22", "--listen", "127.0.0.1:2222")
    system.lab.start("msp", argv, log="forward-22")
    listening = ["ss", "-ltnH"]
    wait_until("the port", lambda: ":2222" in system.lab.run("msp", listening).stdout, 15)
    knock = system.lab.run("msp", [sys.executable, "-c", KNOCK]).stdout.strip()
    assert knock in ("ConnectionResetError", "b''")
    assert refusals(system, "port") > before
    system.lab.services["forward-22"].kill()


def test_the_true_record_still_works_afterwards(system: System) -> None:
    assert system.call("pc1", "power.get")
