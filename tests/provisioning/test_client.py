"""What a hostile or broken MSP answers: an error in words, and nothing of it is used."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gwmodule.config import UplinkConfig
from gwmodule.msp.pki import Authority
from gwmodule.provisioning.client import (
    MAX_ANSWER,
    EnrolmentClient,
    Refused,
    TryLater,
    normal_fingerprint,
)
from gwmodule.provisioning.identity import ProvisioningError
from gwmodule.provisioning.provision import wall_clock


class Peer:
    """Verified by TLS, and then anything but an MSP."""

    def __init__(self, directory: Path) -> None:
        now = wall_clock().timestamp()
        self.authority = Authority.open(directory, now)
        self.authority.ensure_server_certificate([], now)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(
            self.authority.server_certificate_path, self.authority.server_key_path
        )
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.answer = b""
        self.received = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(sock, server_side=True) as tls:
                    self.received = b""
                    # All of it: what is left unread would reset the connection.
                    while not self.received.endswith(b"}") and (data := tls.recv(65536)):
                        self.received += data
                    tls.sendall(self.answer)
            except OSError:
                continue

    def client(self) -> EnrolmentClient:
        port = self._socket.getsockname()[1]
        return EnrolmentClient(
            f"127.0.0.1:{port}", UplinkConfig(), self.authority.ca, clock_trusted=True
        )

    def says(self, status: str, body: bytes) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.answer = head.encode() + body

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path)
    yield peer
    peer.close()


def good(peer: Peer) -> dict[str, Any]:
    return {
        "gateway": "home-1",
        "certificate": peer.authority.ca,
        "ca": peer.authority.ca,
        "addresses": ["msp.example:8883"],
        "serverName": "gwmodule-msp",
    }


def test_a_good_answer_is_taken(peer: Peer) -> None:
    peer.says("200 OK", json.dumps(good(peer)).encode())
    assert peer.client().enrol("CSR", "token", None).addresses == ("msp.example:8883",)
    assert b"Authorization: Bearer token\r\n" in peer.received


@pytest.mark.parametrize(
    "change",
    [
        {"gateway": ""},
        {"gateway": "a'b"},
        {"gateway": "$(reboot)"},
        {"gateway": "x" * 65},
        {"gateway": 1},
        {"certificate": "nothing"},
        {"certificate": None},
        {"certificate": "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----"},
        {"ca": "\u2028"},
        {"addresses": []},
        {"addresses": ["no port"]},
        {"addresses": [1]},
        {"addresses": ["a:1"] * 17},
        {"addresses": "msp.example:8883"},
        {"serverName": "a\nb"},
    ],
)
def test_an_answer_with_something_wrong_is_not(peer: Peer, change: dict[str, Any]) -> None:
    peer.says("200 OK", json.dumps(good(peer) | change).encode())
    with pytest.raises(ProvisioningError, match="the MSP's answer"):
        peer.client().enrol("CSR", "token", None)


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"{", b"[" * 60000, b"x" * (MAX_ANSWER + 1)])
def test_a_body_that_is_no_answer_is_an_error(peer: Peer, body: bytes) -> None:
    peer.says("200 OK", body)
    with pytest.raises(ProvisioningError, match="the MSP's answer"):
        peer.client().enrol("CSR", "token", None)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 100,
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"A" * 70000 + b"\r\n",
    ],
)
def test_what_is_no_http_may_be_better_later(peer: Peer, answer: bytes) -> None:
    peer.answer = answer
    with pytest.raises(TryLater):
        peer.client().enrol("CSR", "token", None)


def test_a_refusal_is_told_in_the_msps_printable_words(peer: Peer) -> None:
    said = {"error": "NO", "errorDescription": "because\x1b[31m" + "x" * 1000}
    peer.says("403 Forbidden", json.dumps(said).encode())
    with pytest.raises(Refused, match="because") as refused:
        peer.client().enrol("CSR", "token", None)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400
    for status in ("429 Too Many Requests", "503 Service Unavailable"):
        peer.says(status, b"<html>")
        with pytest.raises(TryLater):
            peer.client().enrol("CSR", "token", None)


def test_another_authority_gets_nothing(peer: Peer, tmp_path: Path) -> None:
    other = Authority.open(tmp_path / "other", wall_clock().timestamp())
    port = peer._socket.getsockname()[1]
    client = EnrolmentClient(f"127.0.0.1:{port}", UplinkConfig(), other.ca, clock_trusted=False)
    with pytest.raises(ProvisioningError, match="certificate of the MSP"):
        client.enrol("CSR", "secret-token", None)
    assert b"secret-token" not in peer.received


def test_the_uplinks_source_address_is_used(peer: Peer) -> None:
    port = peer._socket.getsockname()[1]
    uplink = UplinkConfig(source="192.0.2.200")
    client = EnrolmentClient(f"127.0.0.1:{port}", uplink, peer.authority.ca, clock_trusted=True)
    with pytest.raises(TryLater, match="assign requested address"):
        client.enrol("CSR", "token", None)


def test_a_fingerprint_may_have_colons_and_a_prefix() -> None:
    digits = "ab" * 32
    assert normal_fingerprint(digits.upper()) == digits
    assert normal_fingerprint("SHA256:" + ":".join(["AB"] * 32)) == digits
    for bad in ("", "ab" * 31, "zz" * 32, "ab" * 33):
        with pytest.raises(ValueError, match="no SHA-256"):
            normal_fingerprint(bad)
