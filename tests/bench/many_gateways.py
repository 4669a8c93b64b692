"""Many gateways in one process, each with its own certificate, session and link.

    python -m tests.bench.many_gateways MSP_HOST:PORT STATE_DIRECTORY BUNDLES [AT_ONCE]

Each line on stdin is how many there shall be. The answer comes when all of them are connected: JSON
with how many seconds it took for the first half and for all. They shake hands AT_ONCE at a time (64
unless told): the service tolerates 512 strangers, and with more the gateways' back-off decides.
A bundle that is not in BUNDLES yet is made with the authority of STATE_DIRECTORY.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import random
import sys
import time
from pathlib import Path

import uvloop

from gwmodule.msp.pki import Authority, GatewayBundle
from gwmodule.telemetry import start_logging
from gwmodule.uplink.dialer import Dialer, GatewaySession
from gwmodule.wire.events import Event
from tests.bench.gateway_end import configuration

_AT_ONCE = 64


class IdleGateway:
    def __init__(self, dialer_slots: asyncio.Semaphore) -> None:
        self._slots = dialer_slots
        self.up = asyncio.Event()
        self.up_at = 0.0

    def session_up(self, session: GatewaySession, fresh: bool) -> None:
        if self.up.is_set():
            raise SystemExit("a session was lost")
        self.up.set()
        self.up_at = time.monotonic()
        self._slots.release()

    def in_use(self, session: GatewaySession) -> bool:
        return False

    def session_event(self, session: GatewaySession, event: Event) -> None:
        """Nobody asks these gateways for anything."""


def name_of(number: int) -> str:
    return f"gateway-{number}"


def write_bundle(bundle: GatewayBundle, directory: Path) -> Path:
    path = directory / bundle.name
    path.mkdir(parents=True)
    (path / "gateway.crt").write_text(bundle.certificate)
    (path / "gateway.key").write_text(bundle.key)
    (path / "ca.crt").write_text(bundle.ca)
    return path


async def run(msp: str, state: Path, directory: Path, at_once: int) -> None:
    at = datetime.datetime.now(datetime.UTC).timestamp()
    authority = Authority.open(state, at)
    loop = asyncio.get_running_loop()
    gateways: list[IdleGateway] = []
    slots = asyncio.Semaphore(at_once)
    async with asyncio.TaskGroup() as tasks:
        print("ready", flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            begun, before = time.monotonic(), len(gateways)
            while len(gateways) < int(line):
                await slots.acquire()
                name = name_of(len(gateways))
                bundle = directory / name
                if not bundle.exists():
                    write_bundle(authority.gateway_bundle(name, at), directory)
                gateway = IdleGateway(slots)
                gateways.append(gateway)
                dialer = Dialer(configuration(msp, bundle), gateway, tasks, random.Random())
                tasks.create_task(dialer.run(), name=f"dialer-{len(gateways)}")
            for gateway in gateways:
                await gateway.up.wait()
            seconds = sorted(gateway.up_at - begun for gateway in gateways[before:])
            answer = {"half": seconds[len(seconds) // 2], "all": seconds[-1]}
            print(json.dumps(answer), flush=True)
        raise SystemExit


if __name__ == "__main__":
    start_logging("error")
    at_once = int(sys.argv[4]) if len(sys.argv) > 4 else _AT_ONCE
    uvloop.run(run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), at_once))
