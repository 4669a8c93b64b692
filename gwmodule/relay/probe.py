"""Runs the probes that `Devices` plans: managed devices send no Hello and are found this way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import TypeAlias

from gwmodule.config import ProbeConfig
from gwmodule.devices import Devices, Probe
from gwmodule.errors import GatewayError
from gwmodule.telemetry import EventLog
from gwmodule.wire.notices import Presence

# amt.presence with a dialer: None is no answer. It keeps its own time limit (config.timeout).
AskPresence: TypeAlias = Callable[[IPv4Address, bytes], Awaitable[Presence | None]]


class ProbeScheduler:
    """`run` is a long-lived child of the composition's TaskGroup.

    `on_result` is called after every probe, when there may be a new notice to send.
    """

    def __init__(
        self,
        config: ProbeConfig,
        devices: Devices,
        ask: AskPresence,
        on_result: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._devices = devices
        self._ask = ask
        self._on_result = on_result
        self._running = 0
        self._wake = asyncio.Event()
        # Probes that ended in a refusal of the policy or an unreachable device.
        self.counters = {"failed": 0}

    def wake(self) -> None:
        """To be called after `Devices.observe` and `Devices.neighbour`: there may be new work."""
        self._wake.set()

    async def run(self) -> None:
        """Probe whatever is due, at most `config.concurrency` at a time, until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                while self._running < self._config.concurrency:
                    probe = self._devices.next_probe(loop.time())
                    if probe is None:
                        break
                    self._running += 1
                    group.create_task(self._run_one(probe), name=f"probe {probe.address}")
                await self._wait()

    async def _wait(self) -> None:
        due = self._devices.next_probe_at() if self._running < self._config.concurrency else None
        try:
            async with asyncio.timeout_at(due):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _run_one(self, probe: Probe) -> None:
        presence: Presence | None = None
        try:
            presence = await self._ask(probe.address, probe.mac)
        except (GatewayError, OSError):
            self.counters["failed"] += 1
        except Exception:
            # Whatever a host of the LAN made a parser do costs one probe, not the relay.
            EventLog("gwmodule.probe").exception("probe_failed", address=probe.address)
            self.counters["failed"] += 1
        finally:
            self._running -= 1
            self._devices.probed(probe, presence, asyncio.get_running_loop().time())
            self._wake.set()
        self._on_result()
