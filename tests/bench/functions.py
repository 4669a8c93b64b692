"""A function on the gateway against the same SOAP calls through a byte stream (part f).

    python -m tests.bench.functions device THINK COUNT
    python -m tests.bench.functions gateway MSP_HOST:PORT BUNDLE_DIRECTORY
    python -m tests.bench.functions msp HOST PORT STATE_DIRECTORY

Both ways cross the same session of the same link and run the same code: `call` on the gateway,
`tunnel` at the MSP, which keeps its connection to the device and its nonce. The MSP's process takes
one JSON line {"function", "way"} and answers with one. {"keys", "devices"} asks for the times of so
many keystrokes on a stream to another PC, while so many devices are asked for their inventory.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import json
import os
import random
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from uuid import UUID

import uvloop

from gwmodule.amt.client import WsmanClient
from gwmodule.amt.digest import ha1
from gwmodule.amt.functions import CATALOGUE, Context, validate
from gwmodule.config import Config
from gwmodule.errors import ChannelReset, Code
from gwmodule.msp.listener import GatewayListener, ListenerConfig
from gwmodule.msp.session import Session, Sessions
from gwmodule.relay.calls import Calls
from gwmodule.sim.device import Ports, SimulatedDevice
from gwmodule.sim.machine import Machine, Nic, Provisioning
from gwmodule.sim.profiles import PROFILES, Mischief
from gwmodule.telemetry import Counters, start_logging
from gwmodule.uplink.dialer import GatewaySession
from gwmodule.wire.events import (
    ChannelAccepted,
    ChannelEnded,
    ChannelWritable,
    Event,
    MessageReceived,
)
from gwmodule.wire.frames import CredentialMode, Priority, TlsMode
from gwmodule.wire.messages import Call, Credential, StreamTarget
from tests.bench import gateway_end
from tests.bench.msp_end import GATEWAY, OpenRegistry

UUID_OF_PC = UUID("4c4c4544-0042-3010-8052-b4c04f564231")
MAC = bytes.fromhex("020000000001")
LOOPBACK = IPv4Address("127.0.0.1")
USER, PASSWORD = "admin", "P@ssw0rd"
DEADLINE = 120.0
CALL, TUNNEL = "call", "tunnel"
ECHO_PORT = 16994  # of tests.bench.device
# Human typing is slower; this gives enough samples and still leaves every key alone on the line.
KEY_GAP = (0.020, 0.060)
_WARM_UP = 5


def pc(number: int) -> tuple[IPv4Address, bytes, UUID]:
    """Where the PC of this number is, and who it is; number 0 is the one that is called alone."""
    mac = (int.from_bytes(MAC, "big") + number).to_bytes(6, "big")
    return LOOPBACK + number, mac, UUID(int=UUID_OF_PC.int + number)


async def run_devices(think: float, count: int) -> None:
    """AMT on our loopback, with 390 events, that thinks before each answer (seconds)."""
    loop = asyncio.get_running_loop()
    profile = PROFILES["amt12"]
    if think:
        profile = dataclasses.replace(profile, mischief=Mischief(slow=1.0, delay=think))
    if count > 1:
        # Many PCs have processors of their own, and take none of the gateway's.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    async with contextlib.AsyncExitStack() as stack:
        for number in range(count):
            address, mac, uuid = pc(number)
            machine = Machine(
                uuid,
                PASSWORD,
                now=loop.time(),
                wall=datetime.datetime.now(datetime.UTC).timestamp(),
                provisioning=Provisioning.MANAGED,
                profile=profile,
                nic=Nic(mac, str(address)),
            )
            machine.events.fill(machine.seconds)
            device = SimulatedDevice(str(address), machine, ports=Ports(16992, 0, 0, 0, 0))
            await stack.enter_async_context(device)
        print("ready", flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


class Gateway(gateway_end.Gateway):
    """The bench's gateway, with calls."""

    def __init__(self, config: Config, tasks: asyncio.TaskGroup) -> None:
        super().__init__(config, tasks)
        self._calls = Calls(
            gateway_end.dial, lambda _a, _r: 0, lambda _s, _c, _a: False, tasks, Counters()
        )

    def in_use(self, session: GatewaySession) -> bool:
        return self._calls.uses(session)

    def session_event(self, session: GatewaySession, event: Event) -> None:
        match event:
            case MessageReceived(message) if isinstance(message, Call):
                self._calls.start(session, message)
            case ChannelWritable(channel) | ChannelAccepted(channel):
                self._calls.writable(session, channel)
                super().session_event(session, event)
            case ChannelEnded(channel):
                self._calls.ended(session, channel)
                super().session_event(session, event)
            case _:
                super().session_event(session, event)


async def run_gateway(config: Config) -> None:
    async with asyncio.TaskGroup() as tasks:
        gateway = Gateway(config, tasks)
        tasks.create_task(gateway.dialer.run(), name="dialer")


class Msp:
    def __init__(self, sessions: Sessions, tasks: asyncio.TaskGroup) -> None:
        self._sessions = sessions
        self._tasks = tasks
        self._realm = ""
        self._client: WsmanClient | None = None

    @property
    def _session(self) -> Session:
        session = self._sessions.locate(GATEWAY)
        assert session is not None
        return session

    async def connected(self) -> None:
        while not ((session := self._sessions.locate(GATEWAY)) and session.connected):
            await asyncio.sleep(0.02)

    async def ask(self, function: str, way: str) -> dict[str, Any]:
        # uvloop's own clock has steps of a millisecond.
        begun = time.monotonic()
        if way == CALL:
            result = await self._session.call(
                function=function,
                arguments=b"{}",
                address=LOOPBACK,
                mac=MAC,
                uuid=UUID_OF_PC,
                credential=self._credential(),
                tls=TlsMode.OFF,
                pin=bytes(32),
                deadline=DEADLINE,
            )
            body = json.loads(result.body)
            assert result.code is Code.OK, body
            self._realm = self._realm or body["_device"]["realm"]
            seconds = time.monotonic() - begun
            return _seen(seconds, result.exchanges, len(body), at_device=result.elapsed)
        client = self._client
        if client is None:
            client = self._client = WsmanClient(
                self._dial,
                self._credential(),
                tls=TlsMode.OFF,
                deadline=asyncio.get_running_loop().time() + 3600,
            )
            await client.__aenter__()
        before = client.facts.exchanges
        chosen = CATALOGUE[function]
        context = Context(sleep=asyncio.sleep, uuid=UUID_OF_PC)
        body = await chosen.run(client, validate(chosen, {}), context)
        return _seen(time.monotonic() - begun, client.facts.exchanges - before, len(body))

    # What a technician at another PC notices of it.

    async def type(self, keys: int, devices: int) -> dict[str, Any]:
        """A key every 40 ms or so to the echo, whether the last one is back or not."""
        target = StreamTarget(LOOPBACK, ECHO_PORT, MAC)
        stream = await self._session.open_stream(target, Priority.INTERACTIVE)
        sent = deque[float]()
        times: list[float] = []
        inventories = Counter[str]()

        async def hear() -> None:
            while len(times) < keys + _WARM_UP:
                echoes = await stream.read()
                now = time.monotonic()
                times.extend(now - sent.popleft() for _ in echoes)

        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(self._ask_all(devices, inventories), name="inventories")
            tasks.create_task(hear(), name="echo")
            for _ in range(keys + _WARM_UP):
                sent.append(time.monotonic())
                stream.write(b"k")
                await asyncio.sleep(random.uniform(*KEY_GAP))
            asking.cancel()
        stream.reset(Code.CANCELLED, "measured")
        return {"times": times[_WARM_UP:], "inventories": inventories}

    async def _ask_all(self, devices: int, inventories: Counter[str]) -> None:
        """All at once, and again when all have answered."""

        async def one(number: int) -> None:
            address, mac, uuid = pc(number)
            result = await self._session.call(
                function="inventory.get",
                arguments=b"{}",
                address=address,
                mac=mac,
                uuid=uuid,
                credential=Credential(CredentialMode.PASSWORD, USER, PASSWORD),
                tls=TlsMode.OFF,
                pin=bytes(32),
                deadline=DEADLINE,
            )
            inventories[result.code.name] += 1

        while devices:
            await asyncio.gather(*(one(number) for number in range(devices)))

    def _credential(self) -> Credential:
        if not self._realm:
            return Credential(CredentialMode.PASSWORD, USER, PASSWORD)
        secret = ha1(USER, self._realm, PASSWORD)
        return Credential(CredentialMode.HA1, USER, secret, self._realm)

    async def _dial(self, port: int) -> socket.socket:
        """A socket whose other end is a stream to the device."""
        target = StreamTarget(LOOPBACK, port, MAC, UUID_OF_PC)
        stream = await self._session.open_stream(target, Priority.BULK)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()

        async def to_device() -> None:
            with contextlib.suppress(ChannelReset, OSError):
                while data := await loop.sock_recv(theirs, 65536):
                    stream.write(data)
                    await stream.drain()

        async def from_device() -> None:
            with contextlib.suppress(ChannelReset, OSError):
                while data := await stream.read():
                    await loop.sock_sendall(theirs, data)

        self._tasks.create_task(to_device(), name="to device")
        self._tasks.create_task(from_device(), name="from device")
        return ours


def _seen(
    seconds: float, exchanges: int, members: int, at_device: float | None = None
) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "exchanges": exchanges,
        "members": members,
        "at_device": at_device,
    }


async def _lines() -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        yield line


async def run_msp(host: str, port: int, state: Path) -> None:
    sessions = Sessions()
    config = ListenerConfig(
        host, port, str(state / "server.crt"), str(state / "server.key"), str(state / "ca.crt")
    )
    listener = GatewayListener(config, OpenRegistry(), sessions)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listener.run(), name="listener")
        await listener.listening.wait()
        msp = Msp(sessions, tasks)
        print("ready", flush=True)
        async for line in _lines():
            await msp.connected()
            asked = json.loads(line)
            answer = await (msp.type(**asked) if "keys" in asked else msp.ask(**asked))
            print(json.dumps(answer), flush=True)
        raise SystemExit


if __name__ == "__main__":
    start_logging("error")
    match sys.argv[1:]:
        case ["device", think, count]:
            asyncio.run(run_devices(float(think), int(count)))
        case ["gateway", msp, bundle]:
            asyncio.run(run_gateway(gateway_end.configuration(msp, Path(bundle))))
        case ["msp", host, port, state]:
            uvloop.run(run_msp(host, int(port), Path(state)))
        case _:
            sys.exit(__doc__)
