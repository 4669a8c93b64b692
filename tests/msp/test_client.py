import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from gwmodule.errors import ChannelReset, Code, ConfigError
from gwmodule.msp.api import unix_socket
from gwmodule.msp.client import ApiClient, ApiRefused, ApiUnavailable
from gwmodule.msp.subprotocol import SUBPROTOCOL
from tests.msp.conftest import PC, Service


async def test_a_missing_service_is_one_sentence(tmp_path: Path) -> None:
    async with ApiClient(str(tmp_path / "none")) as client:
        with pytest.raises(ApiUnavailable, match=r"no gwmodule-msp service answers on .*none"):
            await client.request("GET", "/healthz")
        with pytest.raises(ApiUnavailable, match="no gwmodule-msp service"):
            await client.open_stream(str(PC), 16994)


async def test_a_service_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    sock = unix_socket(tmp_path / "s")
    async with ApiClient(str(tmp_path / "s")) as client:
        with pytest.raises(ApiUnavailable, match="within 0 s"):
            await client.request("GET", "/healthz", timeout=0.1)
    sock.close()


async def test_another_service_on_the_socket_is_recognised(tmp_path: Path) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>")

    application = web.Application()
    application.router.add_get("/healthz", page)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.SockSite(runner, unix_socket(tmp_path / "s")).start()
    async with ApiClient(str(tmp_path / "s")) as client:
        with pytest.raises(ApiUnavailable, match="not this program's service"):
            await client.request("GET", "/healthz")
        with pytest.raises(ApiRefused) as caught:
            await client.request("GET", "/other")
        assert caught.value.status == 404
    await runner.cleanup()


async def test_a_refused_stream_has_the_services_own_sentence(service: Service) -> None:
    service.session.connected = False
    with pytest.raises(ApiRefused, match="home1 is not connected") as caught:
        await service.client.open_stream(str(PC), 16994)
    assert (caught.value.status, caught.value.error) == (503, "GATEWAY_OFFLINE")


async def test_a_stream_knows_its_id_before_its_first_chunk(service: Service) -> None:
    stream = await service.client.open_stream(str(PC), 16994)
    await stream.write(b"12345678")
    device = await service.session.streams.get()
    device.incoming.put_nowait(b"hello")
    assert (await stream.read(), stream.id) == (b"hello", device.channel)
    await stream.close()


@pytest.mark.parametrize(
    "text",
    ["hello", "[]", '{"stream": "six"}', "{" * 100_000],
    ids=["text", "list", "name", "deep"],
)
async def test_a_service_that_speaks_something_else_is_left(tmp_path: Path, text: str) -> None:
    async def speak(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse(protocols=(SUBPROTOCOL,))
        await websocket.prepare(request)
        await websocket.send_str(text)
        await websocket.receive()
        return websocket

    application = web.Application()
    application.router.add_get("/relay/webrelay.ashx", speak)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, unix_socket(tmp_path / "s")).start()
    async with ApiClient(str(tmp_path / "s")) as client:
        stream = await client.open_stream(str(PC), 16994)
        with pytest.raises(ChannelReset, match="speaks something else"):
            await stream.read()
        await stream.close()
    await runner.cleanup()


async def test_a_service_that_stops_is_a_reset_with_the_reason(service: Service) -> None:
    stream = await service.client.open_stream(str(PC), 16994)
    await stream.write(b"12345678")
    await service.session.streams.get()
    async with asyncio.TaskGroup() as group:
        group.create_task(service.runner.cleanup())
        with pytest.raises(ChannelReset, match="the service stops") as caught:
            await stream.read()
    assert caught.value.code is Code.SHUTDOWN
    with pytest.raises(ChannelReset):
        await stream.write(b"x")
    await stream.close()


@pytest.mark.parametrize(
    "address",
    [
        "http://msp.example",
        "http://192.0.2.1:8080",
        "https://",
        "ftp://msp.example",
        "https://anna:secret@msp.example",
        "https://msp.example?token=secret",
        "https://msp.example/path",
        "https://[",
    ],
)
def test_an_address_over_which_a_token_would_leak_is_refused(address: str) -> None:
    with pytest.raises(ConfigError):
        ApiClient(address, token="t")


async def test_a_token_goes_in_the_header_and_follows_no_redirect(tmp_path: Path) -> None:
    seen: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        raise web.HTTPFound("/healthz")

    application = web.Application()
    application.router.add_get("/healthz", elsewhere)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    (port,) = {address[1] for address in runner.addresses}
    async with ApiClient(f"http://127.0.0.1:{port}", token="t") as client:
        with pytest.raises(ApiUnavailable, match="not this program's service"):
            await client.request("GET", "/healthz")
    assert seen == ["Bearer t"]
    await runner.cleanup()


async def test_over_the_socket_a_tenant_can_be_chosen(service: Service) -> None:
    async with ApiClient(str(service.path), tenant="other") as client:
        assert await client.request("GET", "/api/v1/devices") == []
    async with ApiClient(str(service.path), tenant="none") as client:
        with pytest.raises(ApiRefused, match="no tenant"):
            await client.request("GET", "/api/v1/devices")
