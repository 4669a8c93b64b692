"""What must not grow: with reconnects on one side, with gateways on the other."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from gwmodule.config import LivenessConfig
from gwmodule.telemetry import memory
from gwmodule.uplink.dialer import Dialer, GatewaySession
from gwmodule.wire.events import Event
from tests.uplink.peers import Peers, peers, until

pytestmark = pytest.mark.slow


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def settled() -> tuple[int, int]:
    """Descriptors and tasks once no lingering socket is left, nor one that is being closed."""
    seen, before = (0, 0), None
    while seen != before:
        before = seen
        await asyncio.sleep(1.2)
        gc.collect()
        seen = descriptors(), len(asyncio.all_tasks())
    return seen


async def reconnect(dialer: Dialer, ups: list[bool], times: int) -> None:
    for _ in range(times):
        seen = len(ups)
        dialer.reconnect("endurance")
        while len(ups) == seen:
            await asyncio.sleep(0)


@pytest.mark.timeout(180)
async def test_two_thousand_reconnects_leave_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # pytest keeps every line, and that would grow.
    caplog.set_level(logging.CRITICAL, "gwmodule")
    async with peers(tmp_path) as msp:
        dialer, recorder, _ = msp.start_gateway(msp.config())
        await until(lambda: recorder.ups)
        await reconnect(dialer, recorder.ups, 300)
        before, resident = await settled(), memory()["rss_kib"]
        recorder.ups.clear()
        await reconnect(dialer, recorder.ups, 2000)
        assert recorder.ups == [False] * 2000
        assert await settled() == before
        # Noise of the allocator; a leaked Link each would be 30 MiB.
        assert memory()["rss_kib"] - resident < 1500


class Quiet:
    """A gateway that only counts its links."""

    links = 0

    def session_up(self, session: GatewaySession, fresh: bool) -> None:
        Quiet.links += 1

    def in_use(self, session: GatewaySession) -> bool:
        return False

    def session_event(self, session: GatewaySession, event: Event) -> None:
        """Nobody asks an idle gateway for anything."""


async def _many_gateways(directory: str, port: str, count: str) -> None:
    """In a process of its own: `count` gateways with one certificate each, dialled and held."""
    names = [f"idle-{number}" for number in range(int(count))]
    made = Peers(Path(directory))
    made.port = int(port)
    async with asyncio.TaskGroup() as tasks:
        for number, name in enumerate(names):
            # The product's own timers: two thousand gateways that ping five times a second are no
            # idle gateways.
            config = dataclasses.replace(made.config(name), liveness=LivenessConfig())
            dialer = Dialer(config, Quiet(), tasks, random.Random(number))
            tasks.create_task(dialer.run())
            # A listener lets 512 strangers shake hands at a time; stay well below.
            while Quiet.links < number - 100:
                await asyncio.sleep(0.01)
        while Quiet.links < len(names):
            await asyncio.sleep(0.05)
        print("all up", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        os._exit(0)


@pytest.mark.timeout(240)
async def test_two_thousand_idle_gateways_fit_into_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 2000
    async with peers(tmp_path) as msp:
        msp.registry.allowed = {f"idle-{number}" for number in range(count)}
        gc.collect()
        before = memory()["rss_kib"]
        code = (
            "import asyncio, sys; from tests.faults.test_endurance import _many_gateways;"
            "asyncio.run(_many_gateways(*sys.argv[1:]))"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, str(tmp_path), str(msp.port), str(count),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"all up\n"
            async with asyncio.timeout(60):
                while len(msp.registry.connected) < count:
                    await asyncio.sleep(0.1)
            gc.collect()
            each = (memory()["rss_kib"] - before) / count
            with capsys.disabled():
                print(f"\n{count} idle gateways: {each:.1f} KiB each in the MSP process")
            assert each <= 48  # design.md 9
            # They stay: nobody is dropped while all of them ping.
            await asyncio.sleep(3)
            assert len(msp.registry.connected) == count
        finally:
            process.kill()
            await process.wait()
