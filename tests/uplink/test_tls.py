from __future__ import annotations

import dataclasses
import datetime
import ssl
from pathlib import Path

import pytest

from gwmodule import BUILD_DATE
from gwmodule.config import TlsConfig
from gwmodule.errors import ConfigError, LinkLost
from gwmodule.msp.pki import Authority
from gwmodule.uplink.tls import TlsEngine, client_context, clock_is_trusted, server_context
from tests.uplink.peers import NOW, Peers

YEAR = 365 * 86400


def pair(
    peers: Peers, config: TlsConfig, *, clock_trusted: bool = True
) -> tuple[TlsEngine, TlsEngine]:
    authority = peers.authority
    server = server_context(
        str(authority.ca_path),
        str(authority.server_certificate_path),
        str(authority.server_key_path),
    )
    client = client_context(config, clock_trusted)
    return TlsEngine(client, "msp.example"), TlsEngine(server, None)


def shake(client: TlsEngine, server: TlsEngine, step: int = 1 << 20) -> None:
    """Carry bytes both ways, at most `step` at a time, until both are ready."""
    client.handshake()
    for _ in range(20_000):
        for source, target in ((client, server), (server, client)):
            data = source.data_to_send()
            for offset in range(0, len(data), step):
                target.receive(data[offset : offset + step])
        if client.ready and server.ready:
            return
    raise AssertionError("no end of the handshake")


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_any_segmentation_makes_the_same_connection(tmp_path: Path, step: int) -> None:
    peers = Peers(tmp_path)
    client, server = pair(peers, peers.config().tls)
    shake(client, server, step)
    assert server.receive(client.encrypt(b"\r")) == b"\r"
    data = server.encrypt(bytes(50_000))
    received = b"".join(client.receive(data[i : i + 1000]) for i in range(0, len(data), 1000))
    assert received == bytes(50_000)


def test_each_side_knows_who_the_other_is(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    client, server = pair(peers, peers.config("gw-2").tls)
    shake(client, server)
    name, fingerprint = server.peer_identity()
    assert name == "gw-2"
    assert len(bytes.fromhex(fingerprint)) == 32


def test_a_client_without_a_certificate_is_refused(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    _, server = pair(peers, peers.config().tls)
    context = ssl.create_default_context(cafile=str(peers.authority.ca_path))
    context.set_alpn_protocols(["gwmodule/1"])
    with pytest.raises(LinkLost, match="DID_NOT_RETURN_A_CERTIFICATE"):
        shake(TlsEngine(context, "msp.example"), server)


def test_another_protocol_is_refused(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    tls = peers.config().tls
    _, server = pair(peers, tls)
    context = client_context(tls, clock_trusted=True)
    context.set_alpn_protocols(["h2"])
    with pytest.raises(LinkLost, match=r"does not speak gwmodule/1|ALPN"):
        shake(TlsEngine(context, "msp.example"), server)


def test_garbage_is_a_lost_link(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    _, server = pair(peers, peers.config().tls)
    with pytest.raises(LinkLost, match="TLS handshake"):
        server.receive(b"GET / HTTP/1.1\r\n\r\n")


def test_what_comes_with_a_broken_record_does_not_count(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    client, server = pair(peers, peers.config().tls)
    shake(client, server)
    with pytest.raises(LinkLost, match="TLS: "):
        server.receive(client.encrypt(b"greeting") + b"\x17\x03\x03\x00\x40" + bytes(64))
    with pytest.raises(LinkLost):
        server.encrypt(b"an answer")


def test_what_comes_with_the_peers_end_is_delivered(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    client, server = pair(peers, peers.config().tls)
    shake(client, server)
    data = client.encrypt(b"last words")
    client.close_notify()
    assert server.receive(data + client.data_to_send()) == b"last words"
    assert server.peer_identity().name == "gw-1"
    # TCP's own end follows, and that is what ends the link.
    assert server.receive(b"") == b""


def test_an_expired_certificate_counts_only_when_the_clock_does(tmp_path: Path) -> None:
    old = Authority.open(tmp_path / "ca", NOW - 15 * YEAR)
    old.ensure_server_certificate(["msp.example"], NOW - 15 * YEAR)
    bundle = old.gateway_bundle("gw-1", NOW)
    peers = Peers.__new__(Peers)
    peers.authority = old
    (tmp_path / "gw.key").write_text(bundle.key)
    (tmp_path / "gw.crt").write_text(bundle.certificate)
    tls = TlsConfig("mutual", str(tmp_path / "gw.crt"), str(tmp_path / "gw.key"), str(old.ca_path))
    with pytest.raises(LinkLost, match="certificate has expired"):
        shake(*pair(peers, tls))
    shake(*pair(peers, tls, clock_trusted=False))


def test_even_with_an_untrusted_clock_another_ca_is_refused(tmp_path: Path) -> None:
    peers, other = Peers(tmp_path / "a"), Peers(tmp_path / "b")
    ours = peers.config().tls
    foreign = dataclasses.replace(ours, cafile=str(other.authority.ca_path))
    with pytest.raises(LinkLost, match="certificate of the peer"):
        shake(*pair(peers, foreign, clock_trusted=False))


def test_the_clock_is_trusted_from_the_build_date_on() -> None:
    day = datetime.timedelta(days=1)
    built = datetime.datetime.combine(BUILD_DATE, datetime.time(), datetime.UTC)
    assert clock_is_trusted(built)
    assert not clock_is_trusted(built - day)
    assert not clock_is_trusted(datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC))


@pytest.mark.parametrize("name", ["cafile", "certificate", "key"])
def test_a_file_that_is_missing_or_no_pem_is_named(tmp_path: Path, name: str) -> None:
    tls = Peers(tmp_path).config().tls
    missing = dataclasses.replace(tls, **{name: str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"none: tls\.\w+: No such file"):
        client_context(missing, clock_trusted=True)
    (tmp_path / "garbage").write_text("garbage")
    garbage = dataclasses.replace(tls, **{name: str(tmp_path / "garbage")})
    with pytest.raises(ConfigError, match=r"tls\."):
        client_context(garbage, clock_trusted=True)
