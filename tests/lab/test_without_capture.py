"""A gateway with little flash: no capture service, dnsmasq's own lease file instead."""

from __future__ import annotations

import pytest

from gwmodule.sim.hosts import Lab, wait_until
from gwmodule.sim.lab import DEVICES
from gwmodule.sim.services import GATEWAY, LOGIN, System
from gwmodule.sim.topology import MACS, ROUTER_LAN, TWO_WANS
from tests.lab.conftest import bring_up

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


def test_leases_registrations_and_calls_work_without_capture() -> None:
    with Lab(TWO_WANS) as lab:
        system = System(lab)
        bring_up(
            system,
            (),
            capture={"enabled": False},
            lan={"lease_file": "/run/dnsmasq.leases"},
        )

        def named() -> bool:
            rows = {row["mac"]: row for row in system.gateway_devices()}
            return rows.get(MACS["pc3"], {}).get("hostname") == "pc3"

        wait_until("pc3's lease", named, 20)
        system.start_device("pc1", *DEVICES["pc1"], "--hello", ROUTER_LAN)
        system.wait_for_device("pc1")
        system.activate("pc1")

        def identified() -> bool:
            login = system.technician("identify", GATEWAY, MACS["pc1"], *LOGIN)
            return login.returncode == 0

        wait_until("pc1's presence", identified, 20)
        assert system.call("pc1", "power.get")["result"]["power_state"] == 2
        status = system.status()
        assert not status["capture"]["enabled"]
        assert status["memory"]["capture"] == {}
        lines = lab.processes("gateway").values()
        assert any("gwmodule relay" in line for line in lines)
        assert not any("gwmodule capture" in line for line in lines)
