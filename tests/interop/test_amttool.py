"""Debian's amttool (package amtterm) judges the simulator's EOI services."""

import pytest

from gwmodule.sim.device import SimulatedDevice
from gwmodule.sim.machine import PowerState
from gwmodule.sim.serial import Software
from tests.interop.simulated import PASSWORD, binary, device, missing, run


@pytest.fixture(autouse=True)
async def soap_lite() -> None:
    """Debian only recommends the Perl module that amttool cannot do without."""
    status, _ = await run(binary("perl"), "-MSOAP::Lite", "-e", "1")
    if status:
        missing("the Perl module SOAP::Lite is not installed")


async def amttool(
    pc: SimulatedDevice, *command: str, given: bytes = b"", password: str = PASSWORD
) -> str:
    argv = (binary("amttool"), f"127.0.0.1:{pc.ports.wsman}", *command)
    _, output = await run(*argv, given=given, AMT_PASSWORD=password)
    return output


async def test_amttool_shows_version_name_and_power_state() -> None:
    async with device("amt6") as pc:
        output = await amttool(pc, "info")
        assert "AMT version:  6.2.61" in output
        assert "Hostname:     pc.example.net" in output
        assert "Powerstate:   S0" in output
        assert "IanaOemNumber                   157" in output
        assert "IDER SOL BiosSetup BiosPause" in output
        assert "PXE-boot HD-boot diag-boot cd-boot" in output
        assert "powercycle powerdown powerup reset" in output


async def test_amttool_switches_the_pc_off_and_on() -> None:
    async with device("amt6") as pc:
        output = await amttool(pc, "powerdown", given=b"y\n")
        assert "execute: powerdown" in output
        assert "pt_status: success" in output
        assert pc.machine.power is PowerState.OFF
        assert "Powerstate:   S5 (soft-off)" in await amttool(pc, "info")
        assert "pt_status: success" in await amttool(pc, "powerup", given=b"y\n")
        assert pc.machine.power.name == "ON"


async def test_amttool_resets_into_a_network_boot() -> None:
    async with device("amt6") as pc:
        assert "pt_status: success" in await amttool(pc, "reset", "pxe", given=b"y\n")
        assert pc.machine.boots == 1
        while pc.machine.serial.software is None:
            assert "Powerstate:   S0" in await amttool(pc, "info")
        assert pc.machine.serial.software is Software.NETWORK


async def test_amttool_is_told_what_cannot_be_done() -> None:
    async with device("amt6") as pc:
        assert "pt_status: internal error" in await amttool(pc, "powerup", given=b"y\n")
        assert pc.machine.boots == 0


async def test_amttool_lists_the_network_port() -> None:
    async with device("amt6") as pc:
        output = await amttool(pc, "netinfo")
        assert "Network Interface 0:" in output
        assert "SHARED_MAC_ADDRESS" in output
        assert "255.255.255.0" in output


async def test_amttool_with_a_wrong_password_is_refused() -> None:
    async with device("amt6") as pc:
        # It says nothing of the refusal, and nothing of the PC either.
        assert "AMT version:  \n" in await amttool(pc, "info", password="wrong")
        assert pc.machine.failed_logins > 0


async def test_newer_firmware_has_no_eoi_for_amttool() -> None:
    async with device("amt9") as pc:
        assert "AMT version:  \n" in await amttool(pc, "info")
        assert pc.machine.failed_logins == 0
