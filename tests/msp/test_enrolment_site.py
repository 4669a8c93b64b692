"""Strangers at the enrolment site: bounded, told in JSON, and audited where it matters."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import logging
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from gwmodule.errors import ConfigError
from gwmodule.msp import enrolment_site
from gwmodule.msp.enrolment_site import FAILURES, RENEWALS
from gwmodule.msp.registry import RegistryConflict
from tests.provisioning.conftest import Msp

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


@pytest.fixture
def msp(tmp_path: Path) -> Iterator[Msp]:
    msp = Msp(tmp_path, addresses=("link.example:8883",), lifetime=datetime.timedelta(days=30))
    try:
        yield msp
        msp.stop()
    finally:
        msp.end()


def request(key: Key, name: str = "evil") -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)
    return made.public_bytes(serialization.Encoding.PEM).decode()


def trusting(msp: Msp) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=msp.authority.ca)
    context.check_hostname = False
    return context


@dataclass
class Identity:
    """A gateway's key and certificate, or a thief's copy of them."""

    certificate: Path
    key: Path

    @classmethod
    def store(cls, directory: Path, name: str, key: Key, certificate: str) -> Identity:
        identity = cls(directory / f"{name}.crt", directory / f"{name}.key")
        identity.certificate.write_text(certificate)
        identity.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return identity


def ask(
    msp: Msp,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    token: str = "",
    identity: Identity | None = None,
) -> tuple[int, dict[str, Any]]:
    context = trusting(msp)
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    connection = http.client.HTTPSConnection("127.0.0.1", msp.port, context=context, timeout=10)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        return response.status, json.loads(content) if content[:1] == b"{" else {}
    finally:
        connection.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def enrol(msp: Msp, key: Key, token: str) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"request": request(key)}).encode()
    return ask(msp, "POST", "/enrol/v1/certificate", body, token=token)


@pytest.mark.parametrize("kind", ["p256", "ed25519", "rsa2048"])
def test_the_token_names_the_gateway_whatever_the_request_says(msp: Msp, kind: str) -> None:
    key: Key = ec.generate_private_key(ec.SECP256R1())
    if kind == "ed25519":
        key = ed25519.Ed25519PrivateKey.generate()
    elif kind == "rsa2048":
        key = rsa.generate_private_key(65537, 2048)
    status, answer = enrol(msp, key, msp.token())
    assert status == 200
    assert answer["gateway"] == "home-1"
    assert answer["addresses"] == ["link.example:8883"]
    certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "home-1"
    assert certificate.not_valid_after_utc.timestamp() == int(msp.now) + 30 * 86400
    assert certificate.public_key() == key.public_key()


def test_weak_and_strange_keys_are_refused_and_the_token_is_kept(msp: Msp) -> None:
    token = msp.token()
    for key in (
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
    ):
        status, answer = enrol(msp, key, token)
        assert (status, answer["error"]) == (400, "BAD_REQUEST")
    assert enrol(msp, ec.generate_private_key(ec.SECP256R1()), token)[0] == 200


def test_a_request_that_another_key_signed_is_refused(msp: Msp) -> None:
    good = request(ec.generate_private_key(ec.SECP256R1()))
    der = bytearray(x509.load_pem_x509_csr(good.encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()
    body = json.dumps({"request": forged}).encode()
    status, answer = ask(msp, "POST", "/enrol/v1/certificate", body, token=msp.token())
    assert (status, answer["error"]) == (400, "BAD_REQUEST")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"request": 1}', 400),
        (b'{"request": "x", "more": "y"}', 400),
        (b'{"request": "x"}', 400),
        (b'{"request": "\\ud800"}', 400),
        (b"[" * 20000, 400),
        (b"x" * 30000, 413),
    ],
)
def test_garbage_is_answered_in_json(msp: Msp, body: bytes, status: int) -> None:
    found, answer = ask(msp, "POST", "/enrol/v1/certificate", body, token="gwe_x")
    assert found == status
    assert answer["error"]
    assert answer["errorDescription"]


def test_who_shows_nothing_gets_only_the_authority(msp: Msp) -> None:
    assert ask(msp, "GET", "/enrol/v1/ca") == (200, {"ca": msp.authority.ca})
    for method, path in (
        ("POST", "/enrol/v1/certificate"),
        ("POST", "/enrol/v1/renewal"),
        ("DELETE", "/enrol/v1/certificate"),
    ):
        status, answer = ask(msp, method, path, b"{}")
        assert status == 401
        assert answer["error"] in ("TOKEN_MISSING", "CERTIFICATE_MISSING")


def test_guessing_is_slowed_down_and_does_not_fill_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # None of them is forgiven while the test runs, however long it takes.
    monkeypatch.setattr(enrolment_site, "FAILURES_PERIOD", 3600.0)
    msp = Msp(tmp_path)
    try:
        for _ in range(FAILURES):
            assert ask(msp, "POST", "/enrol/v1/renewal", b"{}")[0] == 401
        for _ in range(5):
            status, answer = ask(msp, "POST", "/enrol/v1/renewal", b"{}")
            assert (status, answer["error"]) == (429, "TOO_MANY")
        msp.stop()
    finally:
        msp.end()
    assert sum("enrolment_refused" in record.message for record in caplog.records) == FAILURES


NOT_ASCII = b"Authorization: Bearer gwe_\xff\r\nContent-Length: %d\r\n\r\n%s"


def spoil(msp: Msp, kind: str, source: str = "127.0.0.1") -> bytes:
    """A request that cannot be one; the first line of its answer."""
    body = json.dumps({"request": request(ec.generate_private_key(ec.SECP256R1()))}).encode()
    authorization = b"Authorization: Bearer gwe_x\r\n"
    rest = {
        "token": NOT_ASCII % (len(body), body),
        "unknown": authorization + b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
        "deflate": authorization
        + b"Content-Encoding: deflate\r\nContent-Length: 10\r\n\r\nabcdefghij",
        "chunk": authorization + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc",
        "short": authorization + b"Content-Length: 100\r\n\r\nabc",
    }[kind]
    plain = socket.create_connection(("127.0.0.1", msp.port), 5, source_address=(source, 0))
    with trusting(msp).wrap_socket(plain) as sock:
        sock.sendall(b"POST /enrol/v1/certificate HTTP/1.1\r\nHost: x\r\n" + rest)
        if kind in ("chunk", "short"):
            # And hangs up, while the site waits for the rest.
            return b""
        return sock.recv(65536).partition(b"\r\n")[0]


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("token", b"403"),
        ("unknown", b"403"),
        ("deflate", b"400"),
        ("chunk", b""),
        ("short", b""),
    ],
)
def test_a_failure_of_any_kind_is_counted_and_costs_nobody_else_anything(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    answer: bytes,
) -> None:
    monkeypatch.setattr(enrolment_site, "FAILURES_PERIOD", 3600.0)
    # One signature for all: whoever has nothing to be signed must not take it.
    monkeypatch.setattr(enrolment_site, "SIGNATURES_BURST", 1.0)
    monkeypatch.setattr(enrolment_site, "SIGNATURES_RATE", 1 / 3600)
    msp = Msp(tmp_path)

    def were_refused(number: int) -> bool:
        return sum(msp.site.counters.values()) == number

    try:
        for number in range(FAILURES):
            assert answer in spoil(msp, kind, "127.0.0.2")
            wait_for(partial(were_refused, number + 1))
        assert b" 429 " in spoil(msp, "unknown", "127.0.0.2")
        assert enrol(msp, ec.generate_private_key(ec.SECP256R1()), msp.token())[0] == 200
        msp.stop()
    finally:
        msp.end()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_body_that_unpacks_to_much_is_not_unpacked(msp: Msp) -> None:
    bomb = zlib.compress(bytes(10_000_000), 9)
    with trusting(msp).wrap_socket(socket.create_connection(("127.0.0.1", msp.port), 5)) as sock:
        sock.sendall(
            b"POST /enrol/v1/certificate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer gwe_x\r\n"
            b"Content-Encoding: deflate\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb
        )
        assert sock.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_when_there_is_too_much_to_sign_a_token_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment_site, "SIGNATURES_BURST", 1.0)
    monkeypatch.setattr(enrolment_site, "SIGNATURES_RATE", 1 / 3600)
    msp = Msp(tmp_path)
    try:
        assert enrol(msp, ec.generate_private_key(ec.SECP256R1()), msp.token())[0] == 200
        key, token = ec.generate_private_key(ec.SECP256R1()), msp.token("home-2")
        status, answer = enrol(msp, key, token)
        assert (status, answer["error"]) == (503, "BUSY")
        msp.site._signatures.refund(b"")
        assert enrol(msp, key, token)[0] == 200
        msp.stop()
    finally:
        msp.end()


def test_a_stolen_certificate_is_worth_nothing_once_its_gateway_was_revoked(
    msp: Msp, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    stolen = Identity.store(tmp_path, "stolen", key, enrol(msp, key, msp.token())[1]["certificate"])
    renewal = json.dumps({"request": request(key)}).encode()

    def refusals() -> list[tuple[int, str]]:
        assert not msp.allowed("home-1", stolen.certificate)
        return [
            (status, answer["error"])
            for status, answer in (
                ask(msp, "POST", "/enrol/v1/renewal", renewal, identity=stolen),
                ask(msp, "DELETE", "/enrol/v1/certificate", identity=stolen),
            )
        ]

    msp.run(msp.registry.revoke_gateway("home-1", msp.now + 1, actor="test"))
    assert refusals() == [(403, "REVOKED")] * 2
    msp.now += 2
    token = msp.token(replace=True)
    assert refusals() == [(403, "REVOKED")] * 2
    new = ec.generate_private_key(ec.SECP256R1())
    owners = Identity.store(tmp_path, "owners", new, enrol(msp, new, token)[1]["certificate"])
    assert refusals() == [(403, "REPLACED")] * 2
    assert msp.allowed("home-1", owners.certificate)
    assert ask(msp, "POST", "/enrol/v1/renewal", renewal, identity=owners)[0] == 200


def test_one_gateway_cannot_renew_without_end(msp: Msp, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    mine = Identity.store(tmp_path, "mine", key, enrol(msp, key, msp.token())[1]["certificate"])
    renewal = json.dumps({"request": request(key)}).encode()
    for _ in range(RENEWALS):
        assert ask(msp, "POST", "/enrol/v1/renewal", renewal, identity=mine)[0] == 200
    status, answer = ask(msp, "POST", "/enrol/v1/renewal", renewal, identity=mine)
    assert (status, answer["error"]) == (429, "TOO_MANY")
    assert "renews too often" in answer["errorDescription"]
    # It is that gateway's matter, not its address's.
    other = ec.generate_private_key(ec.SECP256R1())
    assert enrol(msp, other, msp.token("home-2"))[0] == 200


def test_a_certificate_that_is_replaced_takes_no_token_with_it(msp: Msp, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    stolen = Identity.store(tmp_path, "stolen", key, enrol(msp, key, msp.token())[1]["certificate"])
    token = msp.token(replace=True)
    assert ask(msp, "DELETE", "/enrol/v1/certificate", identity=stolen)[0] == 204
    assert enrol(msp, ec.generate_private_key(ec.SECP256R1()), token)[0] == 200


def test_a_new_certificate_ends_the_session_of_the_old_one_and_a_repeated_answer_does_not(
    msp: Msp, tmp_path: Path
) -> None:
    key, token = ec.generate_private_key(ec.SECP256R1()), msp.token()
    for _ in range(2):
        _, answer = enrol(msp, key, token)
        assert msp.ended == [("home-1", "this gateway has another certificate now")]
    identity = Identity.store(tmp_path, "gateway", key, answer["certificate"])
    assert ask(msp, "DELETE", "/enrol/v1/certificate", identity=identity)[0] == 204
    assert msp.ended[1:] == [("home-1", "the gateway was deprovisioned")]


def test_one_host_cannot_keep_gateways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment_site, "MAX_CONNECTIONS", 4)
    msp = Msp(tmp_path)
    address = ("127.0.0.1", msp.port)
    held = [socket.create_connection(address, source_address=("127.0.0.2", 0)) for _ in range(10)]
    try:
        assert ask(msp, "GET", "/enrol/v1/ca")[0] == 200
        msp.stop()
    finally:
        for sock in held:
            sock.close()
        msp.end()


def test_who_does_not_finish_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment_site, "CONNECTION_TIME", 0.3)
    msp = Msp(tmp_path)
    context = trusting(msp)
    try:
        plain = socket.create_connection(("127.0.0.1", msp.port), timeout=5)
        with context.wrap_socket(plain) as sock:
            # A whole request and half of the next one.
            sock.sendall(b"GET /enrol/v1/ca HTTP/1.1\r\nHost: x\r\n\r\nGET /enrol/v1/ca HT")
            answer = b""
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while data := sock.recv(65536):
                    answer += data
        assert answer.startswith(b"HTTP/1.1 200 ")
        msp.stop()
    finally:
        msp.end()


def test_a_port_in_use_is_a_clear_error(msp: Msp) -> None:
    options = enrolment_site.SiteOptions("127.0.0.1", msp.port)
    other = enrolment_site.EnrolmentSite(
        options, msp.enrolments, msp.authority, lambda: msp.now, lambda: 1
    )
    with pytest.raises(ConfigError, match="in use"):
        other.listen()


def test_a_new_token_voids_the_one_before_and_a_bad_name_gets_none(msp: Msp) -> None:
    first, second = msp.token(), msp.token()
    key = ec.generate_private_key(ec.SECP256R1())
    assert enrol(msp, key, first)[1]["error"] == "TOKEN_UNKNOWN"
    assert enrol(msp, key, second)[0] == 200
    with pytest.raises(RegistryConflict, match="exists"):
        msp.token()
    with pytest.raises(ValueError, match="no gateway name"):
        msp.token("../etc")


def test_a_database_that_is_away_is_a_reason_to_try_again(msp: Msp) -> None:
    token = msp.token()
    key = ec.generate_private_key(ec.SECP256R1())
    msp.run(msp.database.aclose())
    status, answer = enrol(msp, key, token)
    assert (status, answer["error"]) == (503, "DATABASE")
