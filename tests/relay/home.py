"""A gateway that has nothing but calls, one simulated PC behind it, and the MSP's session."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from uuid import UUID

from gwmodule.amt import digest
from gwmodule.config import Config
from gwmodule.errors import Code, DeviceUnreachable, PolicyRefused
from gwmodule.msp.session import Session
from gwmodule.relay.calls import Calls, OwnFunction
from gwmodule.sim.device import ANY_PORTS, SimulatedDevice
from gwmodule.sim.machine import Machine
from gwmodule.sim.profiles import PROFILES
from gwmodule.telemetry import Counters
from gwmodule.uplink.dialer import GatewaySession
from gwmodule.wire.events import (
    ChannelAccepted,
    ChannelEnded,
    ChannelWritable,
    Event,
    MessageReceived,
    SessionReset,
)
from gwmodule.wire.frames import CredentialMode, TlsMode
from gwmodule.wire.messages import Call, Cancel, Credential, Responses, Result
from tests.uplink.peers import Peers, peers, until

ADDRESS = IPv4Address("192.0.2.7")
MAC = b"\x02\0\0\0\0\x07"
UUID_1 = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
PASSWORD = "P@ssw0rd"


@dataclass
class Home:
    """A gateway that has nothing but calls, and one simulated PC behind it."""

    device: SimulatedDevice
    calls: Calls = field(init=False)
    counters: Counters = field(default_factory=Counters)
    # The gateway's own functions, by name.
    own: dict[str, OwnFunction] = field(default_factory=dict)
    # For each link that came up, whether its session was fresh.
    ups: list[bool] = field(default_factory=list)
    forbidden: bool = False
    dialled: int = 0

    async def dial(self, address: IPv4Address, port: int, mac: bytes) -> socket.socket:
        self.dialled += 1
        if self.forbidden:
            raise PolicyRefused("other-mac", f"{address} has another MAC")
        ports = {16992: self.device.ports.wsman, 16993: self.device.ports.wsman_tls}
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", ports[port]))
        except OSError as exc:
            sock.close()
            raise DeviceUnreachable(f"port {port}: {exc.strerror or exc}") from exc
        return sock

    def session_up(self, session: GatewaySession, fresh: bool) -> None:
        self.ups.append(fresh)

    def in_use(self, session: GatewaySession) -> bool:
        return self.calls.uses(session)

    def session_event(self, session: GatewaySession, event: Event) -> None:
        match event:
            case MessageReceived(Call() as call):
                self.calls.start(session, call)
            case MessageReceived(Responses() as responses):
                self.calls.responded(session, responses)
            case SessionReset():
                self.calls.session_over(session)
            case MessageReceived(Cancel(number)):
                self.calls.cancel(session, number)
            case ChannelAccepted(channel) | ChannelWritable(channel):
                self.calls.writable(session, channel)
            case ChannelEnded(channel):
                self.calls.ended(session, channel)
            case _:
                pass


@contextlib.asynccontextmanager
async def home(directory: Path, profile: str = "amt12") -> AsyncIterator[tuple[Home, Session]]:
    async with peers(directory) as msp, home_of(msp, msp.config(), profile) as made:
        session = msp.sessions.locate("gw-1")
        assert session is not None
        yield made, session


@contextlib.asynccontextmanager
async def home_of(msp: Peers, config: Config, profile: str = "amt12") -> AsyncIterator[Home]:
    """The same behind an MSP, and a way to it, of the test's own."""
    now = asyncio.get_running_loop().time()
    machine = Machine(UUID_1, PASSWORD, now=now, profile=PROFILES[profile])
    machine.activate()
    async with SimulatedDevice("127.0.0.1", machine, ports=ANY_PORTS) as device:
        made = Home(device)
        made.calls = Calls(
            made.dial,
            lambda address, reason: 0,
            lambda *_: False,
            msp.group,
            made.counters,
            made.own,
        )
        msp.start_dialer(config, made)
        await until(lambda: made.ups)
        yield made


async def ask(
    session: Session,
    device: SimulatedDevice,
    function: str,
    *,
    password: str = PASSWORD,
    uuid: UUID = UUID_1,
    deadline: float = 10.0,
    arguments: Any = None,
    on_progress: Any = None,
    mode: CredentialMode = CredentialMode.HA1,
    realm: str = "",
) -> tuple[Code, Any, Result]:
    realm = realm or device.machine.realm
    result = await session.call(
        function=function,
        arguments=json.dumps(arguments or {}).encode(),
        address=ADDRESS,
        mac=MAC,
        uuid=uuid,
        credential=Credential(mode, "admin", digest.ha1("admin", realm, password), realm),
        tls=TlsMode.OFF,
        deadline=deadline,
        on_progress=on_progress,
    )
    return result.code, json.loads(result.body), result
