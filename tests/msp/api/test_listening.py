import asyncio
import datetime
import socket
import ssl
from pathlib import Path

import pytest
from aiohttp import web

from gwmodule.errors import ConfigError
from gwmodule.msp.api import api_runner, application, listening, openapi, tcp_socket
from gwmodule.msp.api.listening import tcp_port, tls_context
from gwmodule.msp.client import ApiClient
from gwmodule.msp.pki import Authority
from tests.msp.api.conftest import Site
from tests.msp.conftest import Service, served
from tests.uplink.peers import until


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "localhost", "msp.example", ""])
def test_without_tls_only_a_loopback_address_will_do(host: str) -> None:
    with pytest.raises(ConfigError):
        tcp_socket(host, 0, tls=False)


def test_loopback_addresses_of_both_families_will_do() -> None:
    for host in ("127.0.0.1", "::1", "127.9.9.9"):
        tcp_socket(host, 0, tls=False).close()


def test_a_port_in_use_is_a_clear_error() -> None:
    first = tcp_socket("127.0.0.1", 0, tls=False)
    port = first.getsockname()[1]
    with pytest.raises(ConfigError, match="in use"):
        tcp_socket("127.0.0.1", port, tls=False)
    first.close()


def test_a_certificate_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        tls_context(tmp_path / "none", tmp_path / "none")
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(ConfigError, match="junk"):
        tls_context(tmp_path / "junk", tmp_path / "junk")


async def test_over_tls_the_client_checks_the_service(service: Service, tmp_path: Path) -> None:
    # The tests' clock is not the machine's, and the client checks dates by the machine's.
    authority = Authority.open(tmp_path / "pki", _today())
    authority.ensure_server_certificate(("127.0.0.1",), _today())
    sock = tcp_socket("127.0.0.1", 0, tls=True)
    context = tls_context(authority.server_certificate_path, authority.server_key_path)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    async with served(tcp_port(service.runner, sock, context, service.api.callers)) as port:
        url = f"https://127.0.0.1:{port}"
        async with ApiClient(url, cafile=str(authority.ca_path)) as client:
            assert await client.request("GET", "/healthz") == {"status": "ok"}
        async with ApiClient(url) as client:
            with pytest.raises(Exception, match="no gwmodule-msp service answers"):
                await client.request("GET", "/healthz")


def _today() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()


async def test_who_has_logged_in_is_no_stranger_any_more(site: Site) -> None:
    callers = site.service.api.callers
    strangers = callers.strangers
    assert (await site.request("GET", "/healthz"))[0] == 200
    assert (await site.request("GET", "/api/v1/whoami", token="wrong"))[0] == 401
    assert len(strangers) == 1
    assert (await site.request("GET", "/api/v1/whoami", token=site.token()))[0] == 200
    assert len(strangers) == 0
    assert callers.silent == set()
    assert [callers.known.group_of(who) for who in callers.known.all()] == ["default"]


async def test_who_comes_by_the_unix_socket_takes_no_place(service: Service) -> None:
    assert (await service.client.request("GET", "/api/v1/whoami"))["tenantId"] == "default"
    assert len(service.api.callers.known) == 0


async def test_a_connection_without_a_request_is_not_kept_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listening, "KEEPALIVE", 0.2)
    runner = api_runner(web.Application())
    await runner.setup()
    sock = tcp_socket("127.0.0.1", 0, tls=False)
    await web.SockSite(runner, sock).start()
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 404 " in await reader.readuntil(b"\r\n\r\n")
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()
    await runner.cleanup()


async def test_a_tenant_whose_connections_are_all_busy_is_told_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.service.api.callers.known, "_most", 1)
    headers = {"Authorization": f"Bearer {site.token()}"}
    async with site.http.get(f"{site.url}/api/v1/events", headers=headers) as events:
        await events.content.readuntil(b"\n\n")
        async with site.http.get(f"{site.url}/api/v1/whoami", headers=headers) as refused:
            assert (refused.status, refused.headers["Retry-After"]) == (429, "10")
            assert (await refused.json())["error"] == "TOO_MANY_REQUESTS"


async def test_a_body_that_never_comes_is_not_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gwmodule.msp.api.asking.BODY_TIMEOUT", 0.2)
    host, port = site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /api/v1/authorize HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    async with asyncio.timeout(5):
        answer = await reader.readuntil(b"}")
    assert b" 408 " in answer
    assert b"REQUEST_TIMEOUT" in answer
    writer.close()


async def test_an_answer_that_nobody_reads_is_not_kept(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "SEND_TIMEOUT", 0.3)
    host, port = site.url.removeprefix("http://").split(":")
    request = (
        "GET /api/v1/openapi.json HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {site.token()}\r\n\r\n"
    )
    with socket.socket() as reader:
        # Before it connects: the window is what it says then.
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(reader, (host, int(port)))
        await loop.sock_sendall(reader, request.encode() * 100)
        server = site.service.runner.server
        assert server is not None
        await until(lambda: server.connections)
        await until(lambda: not server.connections)


async def test_the_description_is_made_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/api/v1/openapi.json"
    first = await site.request("GET", path, token=site.token())
    assert first[0] == 200
    monkeypatch.setattr(openapi, "msgspec", None)
    assert await site.request("GET", path, token=site.token()) == first


async def test_what_is_no_http_is_no_error_of_ours(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = site.url.removeprefix("http://").split(":")
    for said in (b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nX y: z\r\n\r\n", bytes(100)):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(said)
        assert b" 400 " in await reader.read()
        writer.close()
    assert not caplog.records


@pytest.mark.parametrize("coding", [b"deflate", b"gzip"])
async def test_a_body_that_cannot_be_decoded_is_no_error_of_ours(
    site: Site, caplog: pytest.LogCaptureFixture, coding: bytes
) -> None:
    host, port = site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /api/v1/authorize HTTP/1.1\r\nHost: x\r\nContent-Encoding: %s\r\n"
        b"Content-Length: 10\r\n\r\nabcdefghij" % coding
    )
    async with asyncio.timeout(5):
        answer = await reader.read()
    assert b" 400 " in answer
    assert b"BAD_REQUEST" in answer
    writer.close()
    assert not caplog.records


@pytest.mark.parametrize(("path", "times"), [("/api/v1/events", 1), ("/api/v1/openapi.json", 60)])
async def test_who_leaves_in_the_middle_is_no_error_of_ours(
    site: Site, caplog: pytest.LogCaptureFixture, path: str, times: int
) -> None:
    host, port = site.url.removeprefix("http://").split(":")
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.token()}\r\n\r\n"
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request.encode() * times)
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    server = site.service.runner.server
    assert server is not None

    def gone() -> bool:
        site.service.api.events.publish("default", "device", {})
        return not server.connections

    await until(gone)
    assert not caplog.records
