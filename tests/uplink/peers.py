"""A gateway's dialer and an MSP listener on loopback, with real certificates."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gwmodule.config import BackoffConfig, Config, LivenessConfig, MspPeerConfig, TlsConfig
from gwmodule.msp import registry as msp_registry
from gwmodule.msp.listener import GatewayListener, ListenerConfig
from gwmodule.msp.pki import Authority
from gwmodule.msp.session import Sessions
from gwmodule.uplink.dialer import Dialer, GatewaySession, SessionHandler
from gwmodule.wire.events import Event
from gwmodule.wire.notices import Observation

NOW = datetime.datetime.now(datetime.UTC).timestamp()


@dataclass
class MemoryRegistry:
    """The listener's view of a registry, with everything it was told."""

    allowed: set[str] = field(default_factory=lambda: {"gw-1", "gw-2"})
    observed: list[Observation] = field(default_factory=list)
    committed: int = 0
    connected: list[str] = field(default_factory=list)

    async def is_gateway_allowed(self, gateway: str, fingerprint: str) -> bool:
        return gateway in self.allowed

    async def record(self, events: Sequence[msp_registry.Event]) -> list[bool]:
        wanted: list[bool] = []
        for event in events:
            match event:
                case msp_registry.Observed():
                    self.observed.append(event.observation)
                case msp_registry.LinkUp():
                    self.connected.append(event.gateway)
                case msp_registry.LinkDown():
                    self.connected = [name for name in self.connected if name != event.gateway]
            wanted.append(False)
        self.committed = len(self.observed)
        return wanted


class Recorder:
    """A SessionHandler that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ups: list[bool] = []
        self.used: set[GatewaySession] = set()

    def session_up(self, session: GatewaySession, fresh: bool) -> None:
        self.ups.append(fresh)

    def in_use(self, session: GatewaySession) -> bool:
        return session in self.used

    def session_event(self, session: GatewaySession, event: Event) -> None:
        self.events.append(event)


class Peers:
    """One MSP and any number of gateways, started and stopped by hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.open(directory / "ca", NOW)
        self.authority.ensure_server_certificate(["msp.example", "127.0.0.1"], NOW)
        self.registry = MemoryRegistry()
        self.sessions = Sessions()
        self.port = 0
        self.group: asyncio.TaskGroup
        self.running: list[asyncio.Task[None]] = []
        self._msp: asyncio.Task[None] | None = None
        self.listener: GatewayListener

    async def start_msp(self, *, wait: float = 5.0, host: str = "127.0.0.1") -> None:
        self.sessions = Sessions()
        self.listener = GatewayListener(
            ListenerConfig(
                host,
                self.port,
                str(self.authority.server_certificate_path),
                str(self.authority.server_key_path),
                str(self.authority.ca_path),
                wait=wait,
            ),
            self.registry,
            self.sessions,
        )
        self._msp = self.group.create_task(self.listener.run())
        self.running.append(self._msp)
        await self.listener.listening.wait()
        self.port = self.listener.port

    async def stop_msp(self) -> None:
        assert self._msp is not None
        self._msp.cancel()
        await asyncio.wait([self._msp])

    def config(self, name: str = "gw-1", certified_as: str | None = None) -> Config:
        bundle = self.authority.gateway_bundle(certified_as or name, NOW)
        home = self.directory / name
        home.mkdir(exist_ok=True)
        (home / "gateway.key").write_text(bundle.key)
        (home / "gateway.crt").write_text(bundle.certificate)
        return Config(
            msp=MspPeerConfig((f"127.0.0.1:{self.port}",), "msp.example", 5.0),
            tls=TlsConfig(
                "mutual",
                str(home / "gateway.crt"),
                str(home / "gateway.key"),
                str(self.authority.ca_path),
            ),
            backoff=BackoffConfig(first=0.02, cap=0.1, healthy=10.0),
            liveness=LivenessConfig(interval=0.2, timeout=1.0),
        )

    def start_gateway(self, config: Config) -> tuple[Dialer, Recorder, asyncio.Task[None]]:
        recorder = Recorder()
        dialer, task = self.start_dialer(config, recorder)
        return dialer, recorder, task

    def start_dialer(
        self, config: Config, handler: SessionHandler
    ) -> tuple[Dialer, asyncio.Task[None]]:
        dialer = Dialer(config, handler, self.group, random.Random(7))
        task = self.group.create_task(dialer.run())
        self.running.append(task)
        return dialer, task


@contextlib.asynccontextmanager
async def peers(directory: Path) -> AsyncIterator[Peers]:
    made = Peers(directory)
    async with asyncio.TaskGroup() as tasks:
        made.group = tasks
        await made.start_msp()
        try:
            yield made
        finally:
            for task in made.running:
                task.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that the loop will make true; TimeoutError says it never did."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)
