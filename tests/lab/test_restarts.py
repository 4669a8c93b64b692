from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator

import pytest

from gwmodule.sim.hosts import python, wait_until
from gwmodule.sim.services import LOGIN, PASSWORD, UUIDS, System, control_path
from gwmodule.sim.topology import PCS, ROUTER_LAN

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _nothing_is_missing(system: System) -> Iterator[None]:
    before = registered(system)
    yield
    assert registered(system) >= before
    assert before >= {UUIDS[pc] for pc in PCS}


def registered(system: System) -> set[str]:
    return {device["guid"] for device in system.ask_msp("devices")}


def send_hellos(system: System) -> str:
    """One more device, on other ports of pc2, that asks to be provisioned."""
    newcomer = str(uuid.uuid4())
    argv = python(
        "gwmodule.sim.cli", "device", "--bind", system.lab.address("pc2"), "--uuid", newcomer,
        "--password", PASSWORD, "--control", control_path("newcomer"), "--port-offset", "100",
        "--state", "setup", "--hello", ROUTER_LAN,
    )  # fmt: skip
    if "newcomer" in system.lab.services:
        system.lab.services["newcomer"].kill()
    system.lab.start("pc2", argv, log="newcomer")
    return newcomer


def wait_for_registration(system: System, newcomer: str) -> None:
    wait_until(f"{newcomer} in the registry", lambda: newcomer in registered(system) or None, 30)


def wait_for_calls(system: System) -> None:
    def works() -> bool:
        result = system.technician("call", UUIDS["pc1"], "power.get", *LOGIN, "--json")
        return result.returncode == 0

    wait_until("a call that works", works, 30)


def kill(system: System, service: str) -> None:
    """SIGKILL for one process of gwmodule, as an out-of-memory killer would."""
    host = system.lab.topology.relay
    found = [
        pid for pid, line in system.lab.processes(host).items() if f"gwmodule {service}" in line
    ]
    assert len(found) == 1, system.lab.processes(host)
    os.kill(found[0], signal.SIGKILL)


@pytest.mark.parametrize("service", ["capture", "relay"])
def test_gwmodule_recovers_by_itself_when_a_process_is_killed(system: System, service: str) -> None:
    kill(system, service)
    newcomer = send_hellos(system)
    wait_for_registration(system, newcomer)
    wait_for_calls(system)
    status = system.wait_for_link()
    wait_until("capture is back", lambda: system.status()["capture"]["connected"], 20)
    assert status["link"]["connected"]


def test_leases_are_seen_again_after_capture_was_killed(system: System) -> None:
    kill(system, "capture")
    wait_until("capture is gone", lambda: not system.status()["capture"]["connected"], 10)
    wait_until("capture is back", lambda: system.status()["capture"]["connected"], 20)
    before = system.status()["capture"]
    assert before["connections"] > 1
    os.kill(system.lab.services["dhcp-pc3"].process.pid, signal.SIGUSR1)

    def renewed() -> bool:
        return bool(system.status()["capture"]["leases"] > before["leases"])

    wait_until("the renewal is seen", renewed, 15)


def test_the_msp_serves_all_it_knew_after_it_was_killed(system: System) -> None:
    system.restart_msp()
    wait_for_calls(system)
    wait_for_registration(system, send_hellos(system))


def test_a_hello_that_comes_while_the_msp_is_down_is_registered_later(system: System) -> None:
    system.lab.services["msp"].kill()
    newcomer = send_hellos(system)
    wait_until(
        "the gateway has the Hello",
        lambda: any(d.get("uuid") == newcomer for d in system.gateway_devices()),
        15,
    )
    # The device gives up too: only the gateway still knows.
    system.lab.services["newcomer"].kill()
    system.restart_msp()
    wait_for_registration(system, newcomer)


def test_a_wan_cut_is_noticed_and_healed_without_help(system: System) -> None:
    with system.lab.wan_cut():
        wait_until("the cut is noticed", lambda: not system.status()["link"]["connected"], 15)
    wait_for_calls(system)
