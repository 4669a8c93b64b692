"""The PyPI package `amt`, a client of WS-Man by others, judges power and boot."""

import asyncio
from types import ModuleType
from typing import Any

import pytest

from gwmodule.sim.boot import BootSource
from gwmodule.sim.device import SimulatedDevice
from gwmodule.sim.machine import PowerState
from gwmodule.sim.serial import Software
from tests.interop.simulated import PASSWORD, device, library


@pytest.fixture
def amt() -> ModuleType:
    return library("amt.client")


def client(amt: Any, pc: SimulatedDevice, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(amt.AMT_PROTOCOL_PORT_MAP, "http", pc.ports.wsman)
    return amt.Client("127.0.0.1", PASSWORD)


async def test_it_reads_and_changes_the_power_state(
    amt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device() as pc:
        tool = client(amt, pc, monkeypatch)
        assert await asyncio.to_thread(tool.power_status) == "2"
        assert await asyncio.to_thread(tool.power_off) == 0
        assert pc.machine.power is PowerState.OFF
        assert await asyncio.to_thread(tool.power_status) == "8"
        assert await asyncio.to_thread(tool.power_on) == 0
        assert pc.machine.power.name == "ON"
        assert pc.machine.boots == 1


async def test_it_cycles_the_power(amt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    async with device() as pc:
        tool = client(amt, pc, monkeypatch)
        assert await asyncio.to_thread(tool.power_cycle) == 0
        async with asyncio.timeout(5):
            while not pc.machine.boots:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("boot", "source", "software"),
    [
        ("pxe", BootSource.NETWORK, Software.NETWORK),
        ("cd", BootSource.DISC, Software.DISC),
        ("hd", BootSource.HARD_DRIVE, Software.SYSTEM),
    ],
)
async def test_it_sets_the_next_boot_which_holds_once(
    amt: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    boot: str,
    source: BootSource,
    software: Software,
) -> None:
    async with device() as pc:
        tool = client(amt, pc, monkeypatch)
        await asyncio.to_thread(tool.set_next_boot, boot)
        assert pc.machine.boot.source is source
        await asyncio.to_thread(tool.power_cycle)
        async with asyncio.timeout(5):
            while pc.machine.boots < 1 or pc.machine.serial.software is None:
                await asyncio.sleep(0.01)
        assert pc.machine.last_plan.source is source
        assert pc.machine.serial.software is software
        assert pc.machine.boot.source is None


async def test_it_enables_kvm(amt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    async with device() as pc:
        tool = client(amt, pc, monkeypatch)
        await asyncio.to_thread(tool.enable_vnc)
        assert pc.machine.remote.kvm
        assert "Is5900PortEnabled>true<" in await asyncio.to_thread(tool.vnc_status)
