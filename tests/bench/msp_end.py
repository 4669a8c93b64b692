"""The MSP's process as far as a stream is concerned: the product's listener and sessions.

    python -m tests.bench.msp_end HOST PORT STATE_DIRECTORY [LOCAL_PORT:DEVICE_PORT:CLASS ...]

Each local port is what `gwmodule-msp forward` gives a technician's tool, without the hop through
the service's HTTP interface. Like the product's service it runs on uvloop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import cast

import uvloop

from gwmodule.errors import ChannelReset, Code
from gwmodule.msp.listener import GatewayListener, ListenerConfig
from gwmodule.msp.registry import Event
from gwmodule.msp.session import Sessions
from gwmodule.msp.stream import Stream
from gwmodule.telemetry import start_logging
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import StreamTarget
from gwmodule.wire.notices import NO_MAC

GATEWAY = "bench-gateway"
_DEVICE = IPv4Address("127.0.0.1")
# Bytes a tool may send between two looks at the send queue, so that a keystroke costs none.
_DRAIN = 16 * 1024


class OpenRegistry:
    """Knows every gateway whose certificate the listener has verified, and keeps nothing."""

    async def is_gateway_allowed(self, gateway: str, fingerprint: str) -> bool:
        return True

    async def record(self, events: Sequence[Event]) -> list[bool]:
        return [False] * len(events)


@dataclass(frozen=True, slots=True)
class Forward:
    local_port: int
    device_port: int
    priority: Priority

    @classmethod
    def parse(cls, text: str) -> Forward:
        local, device, priority = text.split(":")
        return cls(int(local), int(device), Priority[priority])


class Tool(asyncio.Protocol):
    """A technician's connection, spliced to a stream."""

    def __init__(self, forward: Forward, sessions: Sessions, tasks: asyncio.TaskGroup) -> None:
        self._forward = forward
        self._sessions = sessions
        self._tasks = tasks
        self._stream: Stream | None = None
        self._transport: asyncio.Transport
        self._early: list[bytes] = []
        self._undrained = 0
        self._room = asyncio.Event()
        self._room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._tasks.create_task(self._run(), name="tool")

    def data_received(self, data: bytes) -> None:
        if self._stream is None:
            # uvloop does not pause a transport that is being made.
            self._early.append(data)
            self._transport.pause_reading()
            return
        with contextlib.suppress(ChannelReset):
            self._stream.write(data)
        self._undrained += len(data)
        if self._undrained >= _DRAIN:
            self._undrained = 0
            self._transport.pause_reading()
            self._tasks.create_task(self._resume(self._stream), name="drain")

    def eof_received(self) -> bool:
        if self._stream is not None:
            self._stream.write_eof()
        return True

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._room.set()
        if self._stream is not None:
            self._stream.reset(Code.CANCELLED, "the tool went away")

    async def _resume(self, stream: Stream) -> None:
        with contextlib.suppress(ChannelReset):
            await stream.drain()
            self._transport.resume_reading()

    async def _run(self) -> None:
        session = self._sessions.locate(GATEWAY)
        target = StreamTarget(_DEVICE, self._forward.device_port, NO_MAC)
        try:
            if session is None:
                return
            self._stream = await session.open_stream(target, self._forward.priority)
            for data in self._early:
                self._stream.write(data)
            self._transport.resume_reading()
            while data := await self._stream.read():
                self._transport.write(data)
                if not self._room.is_set():
                    await self._room.wait()
            self._transport.write_eof()
        except ChannelReset:
            self._transport.abort()
        finally:
            self._transport.close()


async def run(host: str, port: int, state: Path, forwards: list[Forward]) -> None:
    loop = asyncio.get_running_loop()
    sessions = Sessions()
    config = ListenerConfig(
        host, port, str(state / "server.crt"), str(state / "server.key"), str(state / "ca.crt")
    )
    listener = GatewayListener(config, OpenRegistry(), sessions)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listener.run(), name="listener")
        await listener.listening.wait()
        for forward in forwards:
            server = await loop.create_server(
                partial(Tool, forward, sessions, tasks), "127.0.0.1", forward.local_port
            )
            for sock in server.sockets:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print(json.dumps({"port": listener.port}), flush=True)
        while True:
            # One line on stdin asks how many gateways are connected.
            line = await loop.run_in_executor(None, sys.stdin.readline)
            if not line:
                raise SystemExit
            print(json.dumps({"sessions": len(sessions.all())}), flush=True)


if __name__ == "__main__":
    start_logging("error")
    uvloop.run(
        run(
            sys.argv[1],
            int(sys.argv[2]),
            Path(sys.argv[3]),
            [Forward.parse(text) for text in sys.argv[4:]],
        )
    )
