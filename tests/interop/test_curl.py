"""curl, with a digest login of its own, speaks every WS-Man operation to the simulator."""

import re

import pytest

from gwmodule.sim.device import SimulatedDevice
from gwmodule.sim.machine import PowerState
from tests.interop.simulated import PASSWORD, binary, device, run
from tests.sim.test_wsman import ENUMERATION, TRANSFER, envelope, get, invoke

POWER = "CIM_PowerManagementService"


async def curl(pc: SimulatedDevice, body: bytes, *options: str, password: str = PASSWORD) -> str:
    tls = not pc.ports.wsman
    url = f"https://127.0.0.1:{pc.ports.wsman_tls}" if tls else f"http://127.0.0.1:{pc.ports.wsman}"
    status, output = await run(
        binary("curl"),
        *("--silent", "--show-error", "--insecure", "--include", "--max-time", "10"),
        *("--digest", "--user", f"admin:{password}", *options),
        *("--header", "Content-Type: application/soap+xml;charset=UTF-8"),
        *("--data", body.decode(), f"{url}/wsman"),
    )
    assert status == 0, output
    return output


@pytest.mark.parametrize("profile", ["amt6", "amt9", "amt11", "amt12", "amt15", "amt16", "ccm"])
async def test_every_generation_says_its_power_state(profile: str) -> None:
    async with device(profile) as pc:
        output = await curl(pc, get("CIM_AssociatedPowerManagementService"))
        assert "HTTP/1.1 401 Unauthorized" in output
        assert "HTTP/1.1 200 OK" in output
        assert "<g:PowerState>2</g:PowerState>" in output


async def test_a_method_is_invoked() -> None:
    async with device() as pc:
        body = invoke(POWER, "RequestPowerStateChange", "<h:PowerState>8</h:PowerState>")
        output = await curl(pc, body)
        assert "<g:ReturnValue>0</g:ReturnValue>" in output
        assert pc.machine.power is PowerState.OFF


async def test_an_enumeration_is_pulled_in_pages() -> None:
    async with device() as pc:
        name = "CIM_PhysicalMemory"
        output = await curl(pc, envelope(name, f"{ENUMERATION}/Enumerate", "<Enumerate/>"))
        banks = []
        while found := re.search(r"<g:EnumerationContext>([^<]+)<", output):
            pull = (
                f'<n:Pull xmlns:n="{ENUMERATION}">'
                f"<n:EnumerationContext>{found[1]}</n:EnumerationContext>"
                "<n:MaxElements>1</n:MaxElements></n:Pull>"
            )
            output = await curl(pc, envelope(name, f"{ENUMERATION}/Pull", pull))
            banks += re.findall(r"<h:BankLabel>([^<]+)<", output)
        assert "<g:EndOfSequence></g:EndOfSequence>" in output
        assert banks == ["BANK 0", "BANK 2"]


async def test_settings_are_put() -> None:
    async with device() as pc:
        name = "AMT_GeneralSettings"
        uri = "http://intel.com/wbem/wscim/1/amt-schema/1/AMT_GeneralSettings"
        body = f'<p:{name} xmlns:p="{uri}"><p:DomainName>lan</p:DomainName></p:{name}>'
        output = await curl(pc, envelope(name, f"{TRANSFER}/Put", body))
        assert "<g:DomainName>lan</g:DomainName>" in output
        assert "<g:DomainName>lan</g:DomainName>" in await curl(pc, get(name))


async def test_a_fault_is_an_envelope_too() -> None:
    async with device("amt12") as pc:
        output = await curl(pc, get("AMT_ThirdPartyDataStorageService"))
        assert "HTTP/1.1 400 " in output
        assert "b:DestinationUnreachable" in output


async def test_a_wrong_password_is_refused_and_noted() -> None:
    async with device() as pc:
        output = await curl(pc, get("CIM_Chassis"), password="wrong")
        assert output.count("HTTP/1.1 401 Unauthorized") == 2
        assert "HTTP/1.1 200" not in output
        assert len(pc.machine.events) == 1
