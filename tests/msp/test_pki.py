import contextlib
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gwmodule.errors import ConfigError
from gwmodule.msp.enrolment import SERVICE_NAME
from gwmodule.msp.pki import (
    BACKDATE,
    LIFETIME,
    RENEW_BEFORE,
    Authority,
    fingerprint,
)

NOW = 1_800_000_000.0


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """Run both ends in memory; the server's end, with the client's certificate verified."""
    a, b, c, d = (ssl.MemoryBIO() for _ in range(4))
    server_end = server.wrap_bio(a, b, server_side=True)
    client_end = client.wrap_bio(c, d, server_hostname=name)
    for _ in range(6):
        for end in (client_end, server_end):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
            a.write(d.read())
            c.write(b.read())
    client_end.do_handshake()
    server_end.do_handshake()
    return server_end


def contexts(authority: Authority, tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext, str]:
    bundle = authority.gateway_bundle("home1", NOW)
    for name, text in (("gw.crt", bundle.certificate), ("gw.key", bundle.key)):
        (tmp_path / name).write_text(text)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authority.server_certificate_path, authority.server_key_path)
    server.load_verify_locations(authority.ca_path)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=bundle.ca)
    client.load_cert_chain(tmp_path / "gw.crt", tmp_path / "gw.key")
    for context in (server, client):
        # The test's clock is not the machine's.
        context.verify_flags = ssl.VerifyFlags(context.verify_flags | 0x200000)
    return server, client, bundle.fingerprint


@pytest.mark.parametrize("name", [SERVICE_NAME, "msp.example", "192.0.2.7"])
def test_gateway_and_service_verify_each_other_by_every_name(tmp_path: Path, name: str) -> None:
    authority = Authority.open(tmp_path / "state", NOW)
    authority.ensure_server_certificate(["msp.example", "192.0.2.7"], NOW)
    server, client, expected = contexts(authority, tmp_path)
    end = handshake(server, client, name)
    der = end.getpeercert(binary_form=True)
    assert der is not None
    certificate = x509.load_der_x509_certificate(der)
    (common_name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert common_name.value == "home1"
    assert fingerprint(certificate) == expected


def test_another_name_or_another_ca_is_refused(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "state", NOW)
    authority.ensure_server_certificate(["msp.example"], NOW)
    server, client, _ = contexts(authority, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client, "evil.example")
    other = Authority.open(tmp_path / "other", NOW)
    other.ensure_server_certificate(["msp.example"], NOW)
    stranger, _, _ = contexts(other, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(stranger, client, "msp.example")


def test_a_gateways_certificate_is_for_clients_only(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, NOW)
    certificate = x509.load_pem_x509_certificate(
        authority.gateway_bundle("home1", NOW).certificate.encode()
    )
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_state_directory_keeps_its_ca_and_its_secrets(tmp_path: Path) -> None:
    state = tmp_path / "a" / "state"
    first = Authority.open(state, NOW)
    first.ensure_server_certificate([], NOW)
    assert Authority.open(state, NOW).certificate == first.certificate
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600
    assert {file.name for file in state.iterdir()} == {
        "ca.crt",
        "ca.key",
        "server.crt",
        "server.key",
    }


def test_the_server_certificate_is_renewed_when_names_change_or_it_ends(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, NOW)
    path = authority.server_certificate_path
    names = authority.ensure_server_certificate(["a.example"], NOW)
    assert names == [SERVICE_NAME, "a.example"]
    first = path.read_bytes()
    authority.ensure_server_certificate(["a.example"], NOW)
    assert path.read_bytes() == first
    authority.ensure_server_certificate(["b.example"], NOW)
    second = path.read_bytes()
    assert second != first
    late = NOW + (LIFETIME - RENEW_BEFORE).total_seconds() + 1
    authority.ensure_server_certificate(["b.example"], late)
    assert path.read_bytes() != second


def test_a_lost_ca_certificate_is_made_again_from_its_key(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, NOW)
    authority.ca_path.unlink()
    again = Authority.open(tmp_path, NOW)
    assert again.certificate.subject == authority.certificate.subject
    assert again.certificate.public_key() == authority.certificate.public_key()


def test_a_slow_clock_still_finds_a_valid_certificate(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, NOW)
    before = authority.certificate.not_valid_before_utc.timestamp()
    assert before == NOW - BACKDATE.total_seconds()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("ca.crt", b"nonsense", "no PEM certificate"),
        ("ca.key", b"nonsense", "no PEM private key"),
        ("ca.key", None, "No such file"),
    ],
)
def test_bad_files_are_named(
    tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    Authority.open(tmp_path, NOW)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name}: .*{problem}"):
        Authority.open(tmp_path, NOW)


def test_a_key_of_another_ca_is_refused(tmp_path: Path) -> None:
    Authority.open(tmp_path / "a", NOW)
    Authority.open(tmp_path / "b", NOW)
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="not the key"):
        Authority.open(tmp_path / "a", NOW)


def test_a_name_that_no_certificate_can_hold_is_refused(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, NOW)
    with pytest.raises(ConfigError, match="neither name nor address"):
        authority.ensure_server_certificate(["bücher.example"], NOW)
