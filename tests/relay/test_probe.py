from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import pytest

from gwmodule.config import DevicesConfig, ProbeConfig
from gwmodule.devices import Devices
from gwmodule.errors import DeviceUnreachable, PolicyRefused
from gwmodule.relay.probe import ProbeScheduler
from gwmodule.wire.notices import Lease, Presence, Provisioning

CONFIG = ProbeConfig(concurrency=2, interval=0.2)


@dataclass
class Lan:
    """Answers when told to; remembers who was asked."""

    asked: list[IPv4Address] = field(default_factory=list)
    running: int = 0
    most: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    problem: Exception | None = None

    async def ask(self, address: IPv4Address, mac: bytes) -> Presence | None:
        self.asked.append(address)
        self.running += 1
        self.most = max(self.most, self.running)
        await self.open.wait()
        self.running -= 1
        if self.problem is not None:
            raise self.problem
        return Presence(mac, address, Provisioning.POST)


def leases(devices: Devices, count: int, now: float) -> None:
    for number in range(count):
        mac = b"\x06\0\0\0\0" + bytes([number])
        devices.observe(Lease(mac, IPv4Address(0xC0A8010A + number), 60), now)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_due_probes_run_a_few_at_a_time_and_all_get_their_turn() -> None:
    devices, lan = Devices(DevicesConfig(), CONFIG), Lan()
    leases(devices, 5, asyncio.get_running_loop().time())
    scheduler = ProbeScheduler(CONFIG, devices, lan.ask)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(scheduler.run())
        await settle()
        assert (len(lan.asked), lan.running) == (2, 2)
        lan.open.set()
        await settle()
        assert (len(lan.asked), lan.most) == (5, 2)
        task.cancel()
    assert [row["state"] for row in devices.listing(0.0)] == ["managed"] * 5


async def test_new_work_wakes_it_and_results_are_announced() -> None:
    devices, lan, results = Devices(DevicesConfig(), CONFIG), Lan(), asyncio.Event()
    lan.open.set()
    scheduler = ProbeScheduler(CONFIG, devices, lan.ask, results.set)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(scheduler.run())
        await settle()
        assert lan.asked == []
        leases(devices, 1, asyncio.get_running_loop().time())
        scheduler.wake()
        await results.wait()
        assert len(lan.asked) == 1
        task.cancel()


async def test_it_sleeps_until_the_next_one_is_due() -> None:
    devices, lan = Devices(DevicesConfig(), CONFIG), Lan()
    lan.open.set()
    loop = asyncio.get_running_loop()
    leases(devices, 1, loop.time())
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ProbeScheduler(CONFIG, devices, lan.ask).run())
        started = loop.time()
        async with asyncio.timeout(5):
            while len(lan.asked) < 3:
                await asyncio.sleep(0.01)
        assert loop.time() - started >= 0.4
        task.cancel()


@pytest.mark.parametrize(
    "problem",
    [PolicyRefused("other-mac", "no"), DeviceUnreachable("silent"), OSError(105, "no buffers")],
)
async def test_a_refused_or_broken_probe_is_a_miss(problem: Exception) -> None:
    devices, lan = Devices(DevicesConfig(), CONFIG), Lan(problem=problem)
    lan.open.set()
    leases(devices, 1, asyncio.get_running_loop().time())
    scheduler = ProbeScheduler(CONFIG, devices, lan.ask)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(scheduler.run())
        await settle()
        task.cancel()
    assert scheduler.counters["failed"] == 1
    assert devices.listing(0.0)[0]["state"] == "host"
