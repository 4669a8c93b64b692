import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, test_utils, web

from gwmodule.errors import Code
from gwmodule.msp import viewers
from gwmodule.msp.console_protocol import CONSOLE_SUBPROTOCOL
from gwmodule.msp.consoles import ConsoleSettings, Place
from gwmodule.msp.subprotocol import CLOSE_BASE, CLOSE_NORMAL
from gwmodule.msp.viewers import MAX_BROWSER_MESSAGE, ViewerSocket
from tests.msp.conftest import PC
from tests.msp.test_consoles import Browser, Desk, _hurry, desk, desk_with  # noqa: F401 - fixtures

Socket = aiohttp.ClientWebSocketResponse


@pytest.fixture
async def client(desk: Desk) -> AsyncIterator[test_utils.TestClient[Any, Any]]:  # noqa: F811
    async with serving(desk) as client:
        yield client


@asynccontextmanager
async def serving(desk: Desk) -> AsyncIterator[test_utils.TestClient[Any, Any]]:  # noqa: F811
    async def serve(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse(
            protocols=(CONSOLE_SUBPROTOCOL,), max_msg_size=MAX_BROWSER_MESSAGE
        )
        await websocket.prepare(request)
        assert request.transport is not None
        sock = request.transport.get_extra_info("socket")
        # Else the kernel takes a megabyte for a browser that takes nothing.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        async def attach(place: Place) -> Any:
            browser = await desk.attach("ann", place)
            # The socket is the one who reads.
            return browser.viewer

        stall = desk.consoles.settings.stall
        await ViewerSocket(websocket, request.transport, stall).run(attach)
        return websocket

    application = web.Application()
    application.router.add_get("/", serve)
    async with test_utils.TestClient(test_utils.TestServer(application)) as client:
        yield client


@pytest.fixture(autouse=True)
def _only_the_socket_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(self: Browser) -> None:
        """The socket under test reads this viewer."""

    monkeypatch.setattr(Browser, "run", run)


class Page:
    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.data = b""
        self.said: list[dict[str, Any]] = []

    async def say(self, **message: Any) -> None:
        await self.socket.send_str(json.dumps(message))

    async def next(self) -> None:
        async with asyncio.timeout(5):
            message = await self.socket.receive()
        assert message.type in (WSMsgType.BINARY, WSMsgType.TEXT), message
        if message.type is WSMsgType.BINARY:
            self.data += message.data
            await self.say(type="ack", offset=len(self.data))
        else:
            self.said.append(json.loads(message.data))

    async def see(self, text: bytes) -> None:
        while text not in self.data:
            await self.next()

    async def hear(self, kind: str) -> dict[str, Any]:
        while True:
            for message in self.said:
                if message["type"] == kind:
                    self.said.remove(message)
                    return message
            await self.next()


async def open_page(client: test_utils.TestClient[Any, Any], **place: Any) -> Page:
    page = Page(await client.ws_connect("/", protocols=(CONSOLE_SUBPROTOCOL,)))
    await page.say(type="attach", **place)
    return page


async def closed(socket: Socket) -> tuple[int, str]:
    async with asyncio.timeout(5):
        while (message := await socket.receive()).type not in (WSMsgType.CLOSE, WSMsgType.CLOSED):
            pass
    return message.data, message.extra or ""


async def test_a_browser_attaches_types_and_goes_on_later(
    client: test_utils.TestClient[Any, Any],
) -> None:
    page = await open_page(client)
    attached = await page.hear("attached")
    await page.see(b"login: ")
    await page.socket.send_bytes(b"root\r")
    await page.see(b"Hello, root.\r\npc:~$ ")
    await page.socket.close()
    again = await open_page(
        client, console=attached["console"], seat=attached["seat"], offset=len(page.data), mark=1
    )
    assert (await again.hear("attached"))["lost"] == 0
    again.data = page.data
    await again.socket.send_bytes(b"uuid\r")
    await again.see(str(PC).encode())
    status = await again.hear("status")
    assert (status["state"], status["writer"], status["holder"]) == ("open", True, "ann")


async def test_a_ping_brings_the_latencies(client: test_utils.TestClient[Any, Any]) -> None:
    page = await open_page(client)
    await page.see(b"login: ")
    await page.say(type="ping", id=7)
    pong = await page.hear("pong")
    assert (pong["id"], pong["gateway"]) == (7, 0.021)


async def test_a_second_browser_of_the_same_user_reads_and_takes_over(
    client: test_utils.TestClient[Any, Any],
) -> None:
    first, second = await open_page(client), await open_page(client)
    await second.see(b"login: ")
    await second.socket.send_bytes(b"x")
    await second.hear("readonly")
    await second.say(type="takeover")
    while (status := await second.hear("status")) and not status["writer"]:
        pass
    assert status["seat"]
    await second.say(type="hangup")
    code, reason = await closed(first.socket)
    assert (code, reason) == (CLOSE_NORMAL, "closed by ann")


GARBAGE = [
    "",
    "{",
    "[]",
    "[" * 50_000,
    '{"type":"attach","offset":-1}',
    '{"type":"attach","offset":1e300}',
    '{"type":"attach","seat":"\\u00e9"}',
    '{"type":"attach","seat":"a b"}',
    '{"type":"attach","surprise":1}',
    '{"type":"attach","want":"everything"}',
    '{"type":"attach","tail":-1}',
    '{"type":"nothing"}',
    '{"type":"ping","id":1}',
]


@pytest.mark.parametrize("text", GARBAGE)
async def test_garbage_instead_of_attach_closes_with_a_reason(
    client: test_utils.TestClient[Any, Any],
    desk: Desk,  # noqa: F811
    text: str,
) -> None:
    socket = await client.ws_connect("/")
    await socket.send_str(text)
    code, reason = await closed(socket)
    assert code == CLOSE_BASE + Code.PROTOCOL_ERROR
    assert reason
    assert len(desk.consoles) == 0


@pytest.mark.parametrize(
    "text", ['{"type":"attach"}', '{"type":"ack","offset":99999999}', '{"type":"ack","offset":"1"}']
)
async def test_nonsense_later_closes_too(
    client: test_utils.TestClient[Any, Any], text: str
) -> None:
    page = await open_page(client)
    await page.see(b"login: ")
    await page.socket.send_str(text)
    code, _ = await closed(page.socket)
    assert code == CLOSE_BASE + Code.PROTOCOL_ERROR


async def test_a_message_that_is_too_large_closes(
    client: test_utils.TestClient[Any, Any],
) -> None:
    page = await open_page(client)
    await page.see(b"login: ")
    await page.socket.send_bytes(bytes(MAX_BROWSER_MESSAGE + 1))
    code, _ = await closed(page.socket)
    assert code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG


async def test_a_browser_that_says_nothing_is_not_waited_for(
    client: test_utils.TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewers, "ATTACH_TIMEOUT", 0.1)
    socket = await client.ws_connect("/")
    code, reason = await closed(socket)
    assert (code, reason) == (CLOSE_BASE + Code.TIMEOUT, "no attach within 0 s")


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: msp\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ATTACH = b'{"type":"attach"}'


# What is sent without an acknowledgement ends before somebody waits for the drain, or does not.
@pytest.mark.parametrize("window", [80 * 1024, 1024 * 1024])
async def test_a_browser_whose_tcp_takes_nothing_is_cut_off(window: int) -> None:
    loop = asyncio.get_running_loop()
    settings = ConsoleSettings(window=window, stall=0.3, detached=0.5)
    async with desk_with(settings) as slow, serving(slow) as client:
        assert isinstance(client.server, test_utils.TestServer)
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(sock, ("127.0.0.1", client.server.port))
            await loop.sock_sendall(sock, HANDSHAKE)
            await loop.sock_sendall(sock, bytes((0x81, 0x80 | len(ATTACH))) + bytes(4) + ATTACH)
            async with asyncio.timeout(5):
                while not len(slow.consoles):
                    await asyncio.sleep(0.01)
            next(iter(slow.consoles._open.values())).sol_data(bytes(512 * 1024))
            async with asyncio.timeout(5):
                while client.server.handler.connections:
                    await asyncio.sleep(0.01)
