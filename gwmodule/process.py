"""The relay as a process: privileges, signals, what the service manager is told, and the reload,
which puts another relay in place of the one that runs.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from typing import Any

from gwmodule.config import Config
from gwmodule.control import require_free
from gwmodule.errors import GatewayError
from gwmodule.gateway import Relay
from gwmodule.notify import Notifier, inherited_sockets
from gwmodule.privileges import drop_all_capabilities, forbid_core_dumps
from gwmodule.relay.policy import Lockdown
from gwmodule.telemetry import EventLog


def run_relay(config: Config, reload: Callable[[], Config]) -> int:
    """The relay's main: 0 after SIGTERM or SIGINT; SIGHUP goes on with what `reload` returns."""
    drop_all_capabilities()
    forbid_core_dumps()
    require_free(config.control.socket)
    return asyncio.run(_Process(config, reload).run())


class _Process:
    """Signals, and what the service manager is told."""

    def __init__(self, config: Config, reload: Callable[[], Config]) -> None:
        self._config = config
        self._reload = reload
        # Outlives a reload: what the owner switched stays, unless the file says otherwise now.
        self._lockdown = Lockdown(config.relay.lockdown)
        self._notifier = Notifier(os.environ)
        self._inherited = inherited_sockets(os.environ)
        self._log = EventLog("gwmodule.relay")
        self._stopping = False
        self._reloading = False
        self._relay: Relay

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine under asyncio.run has one
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: lambda: self._stop(task),
            signal.SIGINT: lambda: self._stop(task),
            signal.SIGHUP: lambda: self._begin_reload(task),
            signal.SIGUSR1: lambda: self._relay.reconnect("SIGUSR1"),
        }
        self._relay = Relay(self._config, random.Random(), self._lockdown, self._inherited)
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        self._notifier.feed_watchdog()
        try:
            while not self._stopping:
                await self._serve(task)
        finally:
            self._notifier.close()
        return 0

    async def _serve(self, task: asyncio.Task[Any]) -> None:
        """One relay, until a signal ends it."""
        try:
            await self._relay.run(lambda: self._ready("running"))
        except asyncio.CancelledError:
            if not (self._stopping or self._reloading):
                raise
            # Taken note of here, or the next await of this task would be cancelled too.
            while task.uncancel():
                pass
        if self._reloading:
            self._reloading = False
            self._relay = Relay(self._config, random.Random(), self._lockdown, self._inherited)

    def _ready(self, status: str) -> None:
        self._notifier.ready(f"{status}, MSP {', '.join(self._config.msp.address)}")

    def _stop(self, task: asyncio.Task[Any]) -> None:
        self._stopping = True
        self._notifier.stopping()
        task.cancel()

    def _begin_reload(self, task: asyncio.Task[Any]) -> None:
        """A configuration that cannot be used changes nothing; neither does the same again."""
        if self._stopping or self._reloading:
            return
        self._notifier.reloading()
        try:
            config = self._reload()
        except GatewayError as exc:
            self._log.error("reload_failed", reason=exc)
            self._ready(f"running with the old configuration ({exc})")
            return
        if config == self._config:
            self._log.info("reload_unchanged")
            self._relay.reconnect("SIGHUP")
            self._ready("running")
            return
        self._log.info("reload")
        if config.relay != self._config.relay:
            self._lockdown = Lockdown(config.relay.lockdown)
        self._config = config
        self._reloading = True
        task.cancel()
