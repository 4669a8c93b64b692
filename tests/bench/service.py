"""What asks the MSP service, and what it is compared with (part g).

    python -m tests.bench.service peer PORT UNIX_PATH FILE
    python -m tests.bench.service reader
    python -m tests.bench.service notifier MSP_HOST:PORT BUNDLES COUNT

`peer` is a bare aiohttp application on uvloop: FILE is JSON {path: [headers, body]}, and it gives
back those bytes. `reader` takes JSON lines of `Load`, and answers each with the times of its
requests. `notifier` is COUNT gateways; each line on stdin is how many PCs they tell of, together,
and the answer, when the last one is acknowledged, how many seconds it took.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import cast
from uuid import UUID

import msgspec
import uvloop
from aiohttp import web

from gwmodule.config import Config
from gwmodule.telemetry import start_logging
from gwmodule.uplink.dialer import Dialer, GatewaySession
from gwmodule.wire.events import Event, MessageReceived
from gwmodule.wire.messages import Notice, NoticeAck
from gwmodule.wire.notices import Lease, Presence, Provisioning
from tests.bench import gateway_end
from tests.bench.many_gateways import name_of

_PATIENCE = 30.0
Handler = Callable[[web.Request], Awaitable[web.Response]]


# ---- the peer -----------------------------------------------------------------------------------


async def run_peer(port: int, path: str, answers: dict[str, tuple[dict[str, str], str]]) -> None:
    application = web.Application()

    def answer_with(headers: dict[str, str], body: bytes) -> Handler:
        async def handle(_: web.Request) -> web.Response:
            return web.Response(body=body, headers=headers)

        return handle

    for target, (headers, body) in answers.items():
        application.router.add_get(target, answer_with(headers, body.encode()))
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await web.UnixSite(runner, path).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


# ---- who reads ----------------------------------------------------------------------------------


class Load(msgspec.Struct):
    """GET `path` for `seconds` over so many kept connections, each with one request at a time."""

    where: str  # HOST:PORT, or the path of a unix socket
    path: str
    connections: int
    seconds: float
    authorization: str = ""


class _Connection(asyncio.Protocol):
    """As little of an HTTP client as there can be, so that the service is what is measured."""

    def __init__(self, request: bytes, until: float) -> None:
        self._request = request
        self._until = until
        self._buffer = bytearray()
        self._asked = 0.0
        self.times: list[float] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        # uvloop's own clock has steps of a millisecond.
        self._asked = time.monotonic()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, _ = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        if not head.startswith(b"HTTP/1.1 200 "):
            self._fail(bytes(self._buffer[:300]))
            return
        if b"\r\ntransfer-encoding: chunked" in head.lower():
            # A list, written in parts.
            if not self._buffer.endswith(b"\r\n0\r\n\r\n"):
                return
        else:
            text = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
            if len(self._buffer) < len(head) + 4 + int(text):
                return
        self._buffer.clear()
        now = time.monotonic()
        self.times.append(now - self._asked)
        if now < self._until:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _fail(self, answer: bytes) -> None:
        self.ended.set_exception(ValueError(f"the answer is {answer!r}"))
        self._transport.close()


async def read(load: Load) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    begun = time.monotonic()
    authorization = f"Authorization: Bearer {load.authorization}\r\n" if load.authorization else ""
    request = f"GET {load.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}\r\n".encode()

    async def one() -> list[float]:
        def connection() -> _Connection:
            return _Connection(request, begun + load.seconds)

        if load.where.startswith("/"):
            _, protocol = await loop.create_unix_connection(connection, load.where)
        else:
            host, _, port = load.where.partition(":")
            _, protocol = await loop.create_connection(connection, host, int(port))
        async with asyncio.timeout(load.seconds + _PATIENCE):
            await protocol.ended
        return protocol.times

    times = await asyncio.gather(*(one() for _ in range(load.connections)))
    return {"seconds": time.monotonic() - begun, "times": [time for each in times for time in each]}


async def run_reader() -> None:
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        answer = await read(msgspec.json.decode(line, type=Load))
        print(json.dumps(answer), flush=True)


# ---- gateways that tell -------------------------------------------------------------------------


def registration(number: int) -> tuple[Lease, Presence]:
    """What a gateway tells of a PC that it sees for the first time."""
    mac = bytes([2, 1]) + number.to_bytes(4, "big")
    address = IPv4Address("10.0.0.0") + number
    uuid = UUID(int=0x4C4C4544_0042_3010_8052_000000000000 + number)
    return (
        Lease(mac, address, 86400, f"pc-{number}", uuid),
        Presence(mac, address, Provisioning.POST, (16992, 16994), f"Digest:{number:032X}", "AMT"),
    )


class Telling:
    """A gateway that has seen many PCs at once, as after a power cut."""

    def __init__(self, config: Config, tasks: asyncio.TaskGroup) -> None:
        self.up = asyncio.Event()
        self.told = asyncio.Event()
        self.dialer = Dialer(config, self, tasks, random.Random())
        self._session: GatewaySession
        self._sequence = 0
        self._waiting = deque[int]()

    def tell(self, numbers: range) -> None:
        self.told.clear()
        for number in numbers:
            for observation in registration(number):
                self._sequence += 1
                self._waiting.append(self._sequence)
                self._session.mux.send_message(Notice(self._sequence, 0.0, observation))
        self._session.flush_soon()

    def session_up(self, session: GatewaySession, fresh: bool) -> None:
        self._session = session
        self.up.set()

    def in_use(self, session: GatewaySession) -> bool:
        return False

    def session_event(self, session: GatewaySession, event: Event) -> None:
        match event:
            case MessageReceived(NoticeAck(sequence)):
                # In the order in which they were sent: a lost one would keep this from ending.
                assert self._waiting.popleft() == sequence
                if not self._waiting:
                    self.told.set()
            case _:
                pass


async def run_notifier(msp: str, bundles: Path, count: int) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        gateways = [
            Telling(gateway_end.configuration(msp, bundles / name_of(number)), tasks)
            for number in range(count)
        ]
        for gateway in gateways:
            tasks.create_task(gateway.dialer.run(), name="dialer")
        for gateway in gateways:
            await gateway.up.wait()
        print("ready", flush=True)
        # Beyond the PCs that the registry was filled with.
        first = 100_000
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            each = int(line) // count
            begun = time.monotonic()
            for gateway in gateways:
                gateway.tell(range(first, first + each))
                first += each
            for gateway in gateways:
                await gateway.told.wait()
            print(
                json.dumps({"seconds": time.monotonic() - begun, "told": each * count}), flush=True
            )
        raise SystemExit


if __name__ == "__main__":
    start_logging("error")
    match sys.argv[1:]:
        case ["peer", port, path, file]:
            uvloop.run(run_peer(int(port), path, json.loads(Path(file).read_text())))
        case ["reader"]:
            uvloop.run(run_reader())
        case ["notifier", msp, bundles, count]:
            uvloop.run(run_notifier(msp, Path(bundles), int(count)))
        case _:
            sys.exit(__doc__)
