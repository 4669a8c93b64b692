from __future__ import annotations

import sys

import pytest

from gwmodule.sim.demo import CONNECT
from gwmodule.sim.hosts import Lab
from gwmodule.sim.services import LOGIN, UUIDS, System
from gwmodule.sim.topology import (
    BOX_LAN,
    MACS,
    NAT_WAN,
    PCS,
    ROUTER_LAN,
    STANDALONE,
    WALLED_GARDEN_WAN,
    WEB,
)
from tests.lab.conftest import bring_up, registry_says

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


def sol_answers(system: System, pc: str, prompt: str) -> bool:
    result = system.technician("sol", UUIDS[pc], *LOGIN, "--expect", prompt, "--timeout", "15")
    return result.returncode == 0 and prompt in result.stdout


def test_one_wan_whose_portal_lets_only_the_msp_through() -> None:
    with Lab(WALLED_GARDEN_WAN) as lab:
        system = System(lab)
        bring_up(system)
        for pc in PCS:
            record = system.wait_for_device(pc)
            assert (record["gatewayAddress"], record["state"]) == (NAT_WAN, "managed")
        assert system.call("pc3", "power.get")
        assert sol_answers(system, "pc1", "recovery>")
        before = lab.portal_packets("refused")
        out = lab.run("pc1", [sys.executable, "-c", CONNECT, WEB, "80"], check=False)
        assert "timed out" in out.stderr
        assert lab.portal_packets("refused") > before


def test_standalone_box_beside_the_pcs() -> None:
    with Lab(STANDALONE) as lab:
        system = System(lab)
        # The box sees no lease of others, so a PC without a Hello is not waited for; and no new
        # probe may correct the registry while it is falsified below.
        bring_up(system, ("pc1",), probe={"interval": 600.0})
        assert lab.address("box") == BOX_LAN
        assert system.status()["deployment"] == "standalone"
        record = system.wait_for_device("pc1")
        assert record["address"] == lab.address("pc1")
        assert record["mac"] == MACS["pc1"]
        assert record["gatewayAddress"] == NAT_WAN
        assert system.call("pc1", "power.get")
        assert sol_answers(system, "pc1", "recovery>")
        before = system.status()["policy_refusals"]["default-gateway"]
        with registry_says("pc1", ROUTER_LAN, MACS["pc1"]):
            refused = system.technician("call", UUIDS["pc1"], "power.get", *LOGIN)
        assert refused.returncode != 0
        assert ROUTER_LAN in refused.stderr
        assert system.status()["policy_refusals"]["default-gateway"] > before
