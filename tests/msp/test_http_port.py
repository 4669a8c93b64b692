from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop
from aiohttp import web

from gwmodule.msp.acceptor import listening_socket
from gwmodule.msp.http_port import Callers, HttpPort
from gwmodule.msp.pki import Authority
from tests.msp.conftest import served
from tests.uplink.peers import until

REQUEST = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Shop:
    callers: Callers
    port: int
    client: ssl.SSLContext
    released: asyncio.Event
    visitors: list[Visitor] = field(default_factory=list)
    waiting: int = 0

    @property
    def gone(self) -> int:
        return sum(handler.transport is None for handler in self.callers.known.all())

    async def connect(
        self, host: str = "127.0.0.1", context: ssl.SSLContext | None = None
    ) -> Visitor:
        sock = socket.create_connection(("127.0.0.1", self.port), source_address=(host, 0))
        name = None if context is None else "127.0.0.1"
        async with asyncio.timeout(5):
            ends = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=name)
        self.visitors.append(Visitor(*ends))
        return self.visitors[-1]


@dataclass
class Visitor:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, path: bytes = b"/") -> bytes:
        self.writer.write(REQUEST % path)
        return await self.answered()

    async def answered(self) -> bytes:
        async with asyncio.timeout(5):
            return (await self.reader.readuntil(b"\r\n\r\n")).split(b" ")[1]

    async def ended(self) -> bool:
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read() == b""
        return True


@contextlib.asynccontextmanager
async def shop(
    directory: Path, *, places: int = 4, patience: float = 60.0, most: int = 100, tls: bool = False
) -> AsyncIterator[Shop]:
    """`/` is for everybody; who asks for `/known/TENANT` is known from then on, and his answer to
    `/known/TENANT/late` comes when he is `released`.
    """
    now = datetime.datetime.now(datetime.UTC).timestamp()
    authority = Authority.open(directory, now)
    authority.ensure_server_certificate(["127.0.0.1"], now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server_certificate_path, authority.server_key_path)
    callers = Callers("test", places, most)

    async def answer(request: web.Request) -> web.Response:
        with callers.asking(request.protocol):
            _, known, tenant, late = f"{request.path}//".split("/")[:4]
            if known and not callers.is_known(request.protocol, tenant):
                return web.Response(status=429)
            if late:
                made.waiting += 1
                await made.released.wait()
            return web.Response()

    application = web.Application()
    application.router.add_get("/{name:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    sock = listening_socket("127.0.0.1", 0)
    port = HttpPort(runner, sock, context if tls else None, callers, patience=patience)
    async with served(port) as number:
        trust = ssl.create_default_context(cafile=str(authority.ca_path))
        made = Shop(callers, number, trust, asyncio.Event())
        yield made
        for visitor in made.visitors:
            visitor.writer.close()
            with contextlib.suppress(ConnectionError):
                await visitor.writer.wait_closed()
    await runner.cleanup()


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_who_sends_no_whole_request_is_sent_away(tmp_path: Path, said: bytes) -> None:
    async with shop(tmp_path, patience=0.2) as place:
        visitor = await place.connect()
        visitor.writer.write(said)
        assert await visitor.ended()
        await until(lambda: not place.callers.silent and not len(place.callers.strangers))


async def test_who_has_asked_and_who_is_known_may_stay(tmp_path: Path) -> None:
    async with shop(tmp_path, patience=0.05) as place:
        visitors = [await place.connect() for _ in range(2)]
        assert [await visitors[0].ask(), await visitors[1].ask(b"/known/a")] == [b"200", b"200"]
        await asyncio.sleep(0.3)
        assert [await visitor.ask() for visitor in visitors] == [b"200", b"200"]
        assert len(place.callers.strangers) == 1


@pytest.mark.parametrize("tls", [False, True])
async def test_one_host_cannot_take_every_place(tmp_path: Path, tls: bool) -> None:
    async with shop(tmp_path, tls=tls) as place:
        held = [await place.connect("127.0.0.2") for _ in range(10)]
        await until(lambda: place.callers.strangers.refused == 6)
        context = place.client if tls else None
        guest = await place.connect(context=context)
        assert await guest.ask() == b"200"
        assert await held[0].ended()
        assert place.callers.strangers.displaced == 1


@pytest.mark.parametrize("tls", [False, True])
async def test_nor_can_one_that_has_got_so_far_as_to_ask(tmp_path: Path, tls: bool) -> None:
    async with shop(tmp_path, tls=tls, most=4) as place:
        context = place.client if tls else None
        held = [await place.connect("127.0.0.2", context) for _ in range(4)]
        assert [await visitor.ask() for visitor in held] == [b"200"] * 4
        guest = await place.connect(context=context)
        assert await guest.ask() == b"200"
        assert await held[0].ended()


async def test_a_handshake_that_breaks_off_makes_room(tmp_path: Path) -> None:
    async with shop(tmp_path, tls=True) as place:
        for _ in range(10):
            visitor = await place.connect()
            visitor.writer.write(b"\x16\x03\x01\xff\xff" + bytes(200))
            assert await visitor.ended()
        await until(lambda: not len(place.callers.strangers))


async def test_a_handshake_has_to_end_in_time(tmp_path: Path) -> None:
    async with shop(tmp_path, tls=True, patience=0.2) as place:
        visitor = await place.connect()
        assert await visitor.ended()
        await until(lambda: not len(place.callers.strangers))


async def test_those_that_have_gone_hold_no_place(tmp_path: Path) -> None:
    async with shop(tmp_path) as place:
        for _ in range(20):
            visitor = await place.connect()
            assert await visitor.ask() == b"200"
            visitor.writer.close()
            await visitor.writer.wait_closed()
        await until(lambda: not place.callers.strangers.refused)


async def known(place: Shop, number: int, tenant: str = "a") -> list[Visitor]:
    visitors = [await place.connect() for _ in range(number)]
    for visitor in visitors:
        assert await visitor.ask(f"/known/{tenant}".encode()) == b"200"
    return visitors


async def wait_for_answer(place: Shop, *visitors: Visitor) -> None:
    """Each is in the middle of a request from then on."""
    before = place.waiting
    for visitor in visitors:
        visitor.writer.write(REQUEST % b"/known/a/late")
    await until(lambda: place.waiting == before + len(visitors))


async def test_those_that_are_known_have_a_bound_too(tmp_path: Path) -> None:
    async with shop(tmp_path, most=2) as place:
        first, second = await known(place, 2)
        (guest,) = await known(place, 1)
        # Which waited for nothing; its client makes another one.
        assert await first.ended()
        assert [await each.ask(b"/known/a") for each in (second, guest)] == [b"200"] * 2
        assert len(place.callers.known) == 2


@pytest.mark.parametrize("tls", [False, True])
async def test_one_tenant_cannot_take_every_place(tmp_path: Path, tls: bool) -> None:
    async with shop(tmp_path, most=3, tls=tls) as place:
        context = place.client if tls else None
        held = [await place.connect(context=context) for _ in range(3)]
        assert [await visitor.ask(b"/known/a") for visitor in held] == [b"200"] * 3
        guest = await place.connect(context=context)
        assert await guest.ask(b"/known/b") == b"200"
        assert await held[0].ended()
        assert [await visitor.ask(b"/known/a") for visitor in held[1:]] == [b"200"] * 2


async def test_who_waits_for_his_answer_stays_as_long_as_another_one_is_idle(
    tmp_path: Path,
) -> None:
    async with shop(tmp_path, most=3) as place:
        held = await known(place, 3)
        await wait_for_answer(place, held[0])
        await known(place, 1, "b")
        assert await held[1].ended()
        place.released.set()
        assert await held[0].answered() == b"200"


async def test_a_tenant_that_waits_everywhere_gets_no_more_but_makes_room_for_others(
    tmp_path: Path,
) -> None:
    async with shop(tmp_path, most=3) as place:
        held = await known(place, 3)
        await wait_for_answer(place, *held)
        guest = await place.connect()
        assert await guest.ask(b"/known/a") == b"429"
        assert (len(place.callers.known), len(place.callers.strangers)) == (3, 1)
        assert await guest.ask(b"/known/b") == b"200"
        assert await held[0].ended()
        place.released.set()
        assert [await visitor.answered() for visitor in held[1:]] == [b"200"] * 2


async def test_known_ones_that_have_gone_hold_no_place(tmp_path: Path) -> None:
    async with shop(tmp_path, most=2) as place:
        (stays,) = await known(place, 1)
        for _ in range(5):
            (visitor,) = await known(place, 1)
            visitor.writer.close()
            await visitor.writer.wait_closed()
            await until(lambda: place.gone == 1)
        assert await stays.ask(b"/known/a") == b"200"
        assert place.callers.known.displaced == 0


async def test_a_connection_of_a_proxy_is_whose_request_came_last(tmp_path: Path) -> None:
    async with shop(tmp_path) as place:
        (visitor,) = await known(place, 1)
        assert await visitor.ask(b"/known/b") == b"200"
        (handler,) = place.callers.known.all()
        assert place.callers.known.group_of(handler) == "b"


def test_it_does_the_same_on_the_loop_that_the_service_runs_on(tmp_path: Path) -> None:
    scenarios = [
        test_who_sends_no_whole_request_is_sent_away(tmp_path, b""),
        test_who_has_asked_and_who_is_known_may_stay(tmp_path),
        test_one_host_cannot_take_every_place(tmp_path, tls=False),
        test_one_host_cannot_take_every_place(tmp_path, tls=True),
        test_a_handshake_that_breaks_off_makes_room(tmp_path),
        test_a_handshake_has_to_end_in_time(tmp_path),
        test_those_that_have_gone_hold_no_place(tmp_path),
        test_one_tenant_cannot_take_every_place(tmp_path, tls=False),
        test_one_tenant_cannot_take_every_place(tmp_path, tls=True),
        test_known_ones_that_have_gone_hold_no_place(tmp_path),
    ]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for scenario in scenarios:
            runner.run(scenario)


async def test_who_comes_while_it_stops_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    sock = listening_socket("127.0.0.1", 0)
    runner = web.AppRunner(web.Application())
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    callers = Callers("test", 4)
    port = HttpPort(runner, sock, context, callers, patience=60.0)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(port.run())
        await asyncio.sleep(0)
        with socket.create_connection(("127.0.0.1", port.port)):
            await until(lambda: len(callers.strangers))
            task.cancel()
            with socket.create_connection(("127.0.0.1", port.port)):
                await asyncio.wait([task])
    await runner.cleanup()
    assert not caplog.records
    assert len(callers.strangers) == 0
