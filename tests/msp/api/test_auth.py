"""Who was let in once and would not be any more: his open streams end, and nobody else's."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from gwmodule.errors import Code
from gwmodule.msp.accounts import Role
from gwmodule.msp.api import auth
from gwmodule.msp.api.tokens import REDIRECTION_LIFETIME
from gwmodule.msp.database import RegistryError
from gwmodule.msp.subprotocol import CLOSE_BASE, SUBPROTOCOL
from tests.msp.api.conftest import Site
from tests.msp.conftest import NOW, PC, RECHECK, FakeStream

RELAY = f"/relay/webrelay.ashx?p=2&host={PC}&port=16994&tls=0&mode=sol"
REDIRECTION_TOKEN = f"/api/v1/authorize/redirection/{PC}"
TECHNICIAN = "technician@default"
START = b"\x10\x00\x00\x00SOL "

Change = Callable[[Site], Awaitable[object]]


async def disable(site: Site) -> object:
    return await site.service.accounts.set_user(
        TECHNICIAN, "default", disabled=True, at=NOW, actor="test"
    )


async def demote(site: Site) -> object:
    return await site.service.accounts.set_user(
        TECHNICIAN, "default", role=Role.VIEWER, at=NOW, actor="test"
    )


async def remove(site: Site) -> object:
    return await site.service.accounts.remove_user(TECHNICIAN, "default", NOW, actor="test")


async def make_key(site: Site, name: str = "ci") -> str:
    return await site.service.accounts.add_key(
        name, "default", Role.TECHNICIAN, NOW, NOW + 1000.0, actor="test"
    )


async def revoke(site: Site, key: str) -> None:
    assert await site.service.accounts.revoke_key(key.split("_")[1], "default", NOW, actor="test")


async def redirection_token(site: Site, token: str) -> str:
    status, body = await site.request("GET", REDIRECTION_TOKEN, token=token)
    assert status == 200
    return str(body["token"])


@asynccontextmanager
async def offered(site: Site, token: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with site.http.ws_connect(site.url + RELAY, protocols=(token,)) as websocket:
        yield websocket


@asynccontextmanager
async def with_bearer(site: Site, token: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    headers = {"Authorization": f"Bearer {token}"}
    async with site.http.ws_connect(
        site.url + RELAY, headers=headers, protocols=(SUBPROTOCOL,)
    ) as websocket:
        assert websocket.protocol == SUBPROTOCOL
        yield websocket


async def open_stream(
    site: Site, websocket: aiohttp.ClientWebSocketResponse, start: bytes = START
) -> FakeStream:
    await websocket.send_bytes(start)
    async with asyncio.timeout(5):
        stream = await site.service.session.streams.get()
        if websocket.protocol == SUBPROTOCOL:
            assert "stream" in await websocket.receive_json()
        return stream


async def still_open(websocket: aiohttp.ClientWebSocketResponse, stream: FakeStream) -> None:
    """After several times the interval."""
    await asyncio.sleep(6 * RECHECK)
    await websocket.send_bytes(b"still here")
    await stream.wait_for(lambda: stream.written[-1] == b"still here")


async def ended(websocket: aiohttp.ClientWebSocketResponse, reason: str) -> None:
    async with asyncio.timeout(5):
        message = await websocket.receive()
    assert message.data == CLOSE_BASE + Code.CANCELLED
    assert re.search(reason, str(message.extra))


@pytest.mark.parametrize("change", [disable, demote, remove])
async def test_who_loses_his_right_types_no_more(site: Site, change: Change) -> None:
    token = await redirection_token(site, site.token(Role.TECHNICIAN))
    async with offered(site, token) as websocket:
        stream = await open_stream(site, websocket)
        await still_open(websocket, stream)
        await change(site)
        await ended(websocket, "this account has changed")
        await stream.wait_for(lambda: stream.reset_with is not None)
    entry = await site.audited(TECHNICIAN, "stream.close")
    assert entry.detail["reason"] == "this account has changed; log in again"


async def test_a_revoked_key_ends_the_streams_that_it_opened_itself(site: Site) -> None:
    key = await make_key(site)
    async with with_bearer(site, key) as websocket:
        stream = await open_stream(site, websocket)
        await still_open(websocket, stream)
        await revoke(site, key)
        await ended(websocket, "API key is unknown, expired or revoked")


async def test_a_revoked_key_ends_what_its_redirection_token_opened(site: Site) -> None:
    key, other = await make_key(site), await make_key(site, "cd")
    opened, unused = [await redirection_token(site, key) for _ in range(2)]
    async with (
        offered(site, opened) as websocket,
        offered(site, await redirection_token(site, other)) as neighbour,
    ):
        # The serial line has room for one of them.
        streams = [
            await open_stream(site, websocket),
            await open_stream(site, neighbour, b"\x10\x00\x00\x00IDER"),
        ]
        await still_open(websocket, streams[0])
        await revoke(site, key)
        await ended(websocket, "API key is unknown, expired or revoked")
        await still_open(neighbour, streams[1])
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with offered(site, unused):
            pass
    assert caught.value.status == 401


@pytest.mark.parametrize("with_key", [False, True])
async def test_a_stream_outlives_the_token_that_opened_it(site: Site, with_key: bool) -> None:
    token = await make_key(site) if with_key else site.token(Role.TECHNICIAN)
    async with offered(site, await redirection_token(site, token)) as websocket:
        stream = await open_stream(site, websocket)
        site.service.clock.now += REDIRECTION_LIFETIME + 1
        await still_open(websocket, stream)


async def test_a_stream_does_not_outlive_the_key_that_opened_it(site: Site) -> None:
    async with with_bearer(site, await make_key(site)) as websocket:
        await open_stream(site, websocket)
        site.service.clock.now += 1000.0
        await ended(websocket, "expired")


async def test_the_unix_sockets_user_is_not_asked_for_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = site.service.client
    body = await client.request("GET", REDIRECTION_TOKEN)

    async def nobody(*_: object) -> None:
        return None

    monkeypatch.setattr(site.service.accounts, "principal", nobody)
    monkeypatch.setattr(site.service.accounts, "key_principal", nobody)
    async with offered(site, body["token"]) as websocket:
        await still_open(websocket, await open_stream(site, websocket))


async def test_a_registry_that_fails_ends_no_stream(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def fail(_: str) -> None:
        asked.set()
        raise RegistryError("disk full")

    async with with_bearer(site, site.token(Role.TECHNICIAN)) as websocket:
        stream = await open_stream(site, websocket)
        with monkeypatch.context() as broken:
            broken.setattr(site.service.accounts, "principal", fail)
            async with asyncio.timeout(5):
                await asked.wait()
            await still_open(websocket, stream)
        await disable(site)
        await ended(websocket, "this account has changed")


async def test_who_takes_nothing_does_not_stay_for_that(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CLOSE_TIMEOUT", 0.3)
    host, port = site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(
        f"GET {RELAY} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Authorization: Bearer {site.token(Role.TECHNICIAN)}\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    async with asyncio.timeout(10):
        stream = await site.service.session.streams.get()
        for _ in range(200):
            stream.incoming.put_nowait(bytes(64 * 1024))
        # The service is stuck once it has taken no more from the queue for a while.
        left = -1
        while left != stream.incoming.qsize():
            left = stream.incoming.qsize()
            await asyncio.sleep(0.2)
        assert left > 0
        await disable(site)
        while len(site.service.api.streams):
            await asyncio.sleep(0.01)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_locked_owner_ends_the_streams_of_his_keys(site: Site) -> None:
    accounts = site.service.accounts
    owner = await accounts.principal(TECHNICIAN)
    key = await accounts.add_key(
        "ci", "default", Role.TECHNICIAN, NOW, None, actor=TECHNICIAN, maker=owner
    )
    async with with_bearer(site, key) as websocket:
        stream = await open_stream(site, websocket)
        await still_open(websocket, stream)
        await accounts.set_user(TECHNICIAN, "default", at=NOW, actor="test", disabled=True)
        await ended(websocket, "API key is unknown, expired or revoked")


async def test_a_stream_ends_in_order_although_the_audit_cannot_be_written(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RegistryError("disk full")

    async with with_bearer(site, await make_key(site)) as websocket:
        await open_stream(site, websocket)
        monkeypatch.setattr(site.service.registry, "audit", fail)
    async with asyncio.timeout(5):
        while "audit_failed action=stream.close" not in caplog.text:
            await asyncio.sleep(0.01)
    assert "disk full" in caplog.text
    assert "request_failed" not in caplog.text
