"""A whole street is asked for its inventory at once while somebody types at a console."""

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

import pytest

from gwmodule.amt import digest
from gwmodule.errors import Code
from gwmodule.msp.session import Session
from gwmodule.msp.stream import Stream
from gwmodule.relay.calls import Calls
from gwmodule.relay.streams import Streams
from gwmodule.sim.http import HttpServer
from gwmodule.sim.machine import Machine
from gwmodule.telemetry import Counters
from gwmodule.uplink.dialer import GatewaySession
from gwmodule.wire.events import (
    ChannelAccepted,
    ChannelEnded,
    ChannelOpened,
    ChannelWritable,
    DataReceived,
    Event,
    MessageReceived,
)
from gwmodule.wire.frames import CredentialMode, Priority, TlsMode
from gwmodule.wire.messages import Call, Credential, Responses, StreamTarget
from tests.uplink.peers import peers, until

PCS = 64
PASSWORD = "P@ssw0rd"
CONSOLE = IPv4Address("192.0.2.200")
# Seconds that a device thinks about each request.
THINKS = 0.01


@dataclass
class Pc:
    """A simulated PC on one loopback port; `most` is how many requests it ever had at a time."""

    number: int
    machine: Machine
    port: int = 0
    waiting: int = 0
    most: int = 0
    requests: int = 0
    nonces: int = 0

    @property
    def address(self) -> IPv4Address:
        return IPv4Address("192.0.2.1") + self.number

    @property
    def mac(self) -> bytes:
        return bytes([2, 0, 0, 0, 0, self.number])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = {
                    name.lower(): value
                    for name, _, value in (line.partition(": ") for line in head.split("\r\n"))
                }
                body = await reader.readexactly(int(fields["content-length"]))
                self.waiting += 1
                self.requests += 1
                self.most = max(self.most, self.waiting)
                await asyncio.sleep(THINKS)
                now = asyncio.get_running_loop().time()
                answer = self.http.respond(
                    "POST", "/wsman", fields.get("authorization", ""), body, now
                )
                self.waiting -= 1
                lines = [f"HTTP/1.1 {answer.status} Said"]
                lines += [
                    f"{name}: {value}"
                    for name, value in answer.headers
                    if name not in ("Transfer-Encoding", "Content-Length")
                ]
                lines.append(f"Content-Length: {len(answer.body)}")
                writer.write("\r\n".join([*lines, "", ""]).encode() + answer.body)
                await writer.drain()
                if answer.close:
                    break
        writer.close()

    def __post_init__(self) -> None:
        def nonce() -> str:
            self.nonces += 1
            return f"nonce{self.nonces}"

        self.http = HttpServer(self.machine, nonce)


@dataclass
class Street:
    """A gateway with calls and streams."""

    pcs: dict[IPv4Address, Pc]
    console: int
    calls: Calls = field(init=False)
    streams: Streams = field(init=False)
    up: int = 0

    async def dial(self, address: IPv4Address, port: int, mac: bytes) -> socket.socket:
        local = self.console if address == CONSOLE else self.pcs[address].port
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", local))
        return sock

    def session_up(self, session: GatewaySession, fresh: bool) -> None:
        self.up += 1

    def in_use(self, session: GatewaySession) -> bool:
        return self.calls.uses(session)

    def session_event(self, session: GatewaySession, event: Event) -> None:
        match event:
            case MessageReceived(Call() as call):
                self.calls.start(session, call)
            case MessageReceived(Responses() as responses):
                self.calls.responded(session, responses)
            case DataReceived(channel, data):
                self.streams.data_received(session, channel, data)
            case ChannelOpened(channel, _, StreamTarget() as target):
                self.streams.opened(session, channel, target)
            case ChannelAccepted(channel) | ChannelWritable(channel):
                self.streams.writable(session, channel)
                self.calls.writable(session, channel)
            case ChannelEnded(channel, _, reason):
                self.streams.ended(session, channel, reason)
                self.calls.ended(session, channel)
            case _:
                pass


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(100):
            writer.write(data)
    writer.close()


@contextlib.asynccontextmanager
async def street(directory: Path) -> AsyncIterator[tuple[Street, Session, Stream]]:
    now = asyncio.get_running_loop().time()
    async with contextlib.AsyncExitStack() as stack, peers(directory) as msp:

        async def listen(handler: Any) -> int:
            server = await asyncio.start_server(handler, "127.0.0.1", 0)
            stack.callback(server.close)
            return int(server.sockets[0].getsockname()[1])

        pcs = {}
        for number in range(PCS):
            machine = Machine(UUID(int=number + 1), PASSWORD, now=now, hostname=f"pc{number}")
            machine.activate()
            pc = Pc(number, machine)
            pc.port = await listen(pc.serve)
            pcs[pc.address] = pc
        made = Street(pcs, await listen(echo))
        counters = Counters()
        made.streams = Streams(made.dial, msp.group, 8, counters)
        made.calls = Calls(
            made.dial, lambda address, reason: 0, lambda *_: False, msp.group, counters
        )
        msp.start_dialer(msp.config(), made)
        await until(lambda: made.up)
        session = msp.sessions.locate("gw-1")
        assert session is not None
        target = StreamTarget(CONSOLE, 16994, b"\x02\0\0\0\1\0")
        stream = await session.open_stream(target, Priority.INTERACTIVE)
        yield made, session, stream
        stream.reset(Code.CANCELLED, "done")
        made.streams.close()


async def inventory(session: Session, pc: Pc, mode: CredentialMode) -> tuple[Code, str]:
    realm = pc.machine.realm
    result = await session.call(
        function="inventory.get",
        arguments=b"{}",
        address=pc.address,
        mac=pc.mac,
        uuid=pc.machine.uuid,
        credential=Credential(mode, "admin", digest.ha1("admin", realm, PASSWORD), realm),
        tls=TlsMode.OFF,
        deadline=30.0,
    )
    return result.code, json.loads(result.body).get("uuid", "")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mode", [CredentialMode.HA1, CredentialMode.CHALLENGE])
async def test_all_answer_none_is_asked_two_things_at_once_and_the_console_goes_on(
    mode: CredentialMode, tmp_path: Path
) -> None:
    async with street(tmp_path) as (made, session, stream):
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(inventory(session, pc, mode)) for pc in made.pcs.values()]
            echoes = 0
            while not all(task.done() for task in asked):
                stream.write(b"x")
                assert await stream.read() == b"x"
                echoes += not all(task.done() for task in asked)
        answers = [task.result() for task in asked]
        assert answers == [(Code.OK, str(pc.machine.uuid)) for pc in made.pcs.values()]
        assert {pc.most for pc in made.pcs.values()} == {1}
        assert min(pc.requests for pc in made.pcs.values()) > 10
        # Order-free: while inventories were outstanding, keystrokes came back, again and again.
        assert echoes >= 20
