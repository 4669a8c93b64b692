import asyncio
import datetime
import ssl
from pathlib import Path

import pytest

from gwmodule.errors import ConfigError
from gwmodule.msp.api import listening, tcp_socket
from gwmodule.msp.api.listening import start_tcp, tls_context
from gwmodule.msp.client import ApiClient
from gwmodule.msp.pki import Authority
from tests.msp.api.conftest import Site
from tests.msp.conftest import Service


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
    port = sock.getsockname()[1]
    context = tls_context(authority.server_certificate_path, authority.server_key_path)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    server = await start_tcp(service.runner, sock, context, service.api.silent)
    url = f"https://127.0.0.1:{port}"
    async with ApiClient(url, cafile=str(authority.ca_path)) as client:
        assert await client.request("GET", "/healthz") == {"status": "ok"}
    async with ApiClient(url) as client:
        with pytest.raises(Exception, match="no gwmodule-msp service answers"):
            await client.request("GET", "/healthz")
    server.close()


def _today() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_who_sends_no_whole_request_is_sent_away(
    site: Site, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "FIRST_REQUEST", 0.2)
    host, port = site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(said)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    assert site.service.api.silent == set()
    assert (await site.request("GET", "/healthz"))[0] == 200


async def test_one_client_cannot_take_every_place(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "MAX_CONNECTIONS", 5)
    host, port = site.url.removeprefix("http://").split(":")
    opened = [await asyncio.open_connection(host, int(port)) for _ in range(10)]
    async with asyncio.timeout(5):
        assert await opened[-1][0].read() == b""
    for _, writer in opened:
        writer.close()


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
