"""The gateway's end of enrolment: a few small HTTPS requests to the MSP (docs/protocol.md is the
link's; this is docs/provisioning.md, "Between gateway and MSP").

The MSP is verified before it is told anything worth having: by its authority, which a fingerprint
or a file pins, or else by the system's own list. Whatever it answers is checked before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gwmodule import __version__
from gwmodule.config import SERVICE_NAME, UplinkConfig, split_address
from gwmodule.provisioning.identity import ProvisioningError, fingerprint
from gwmodule.uplink.tls import forgive_dates

MAX_ANSWER = 64 * 1024
MAX_ADDRESSES = 16
_TIMEOUT = 20.0


class TryLater(ProvisioningError):
    """Nothing was refused: no network, no MSP, no clock yet. The same command may succeed later."""


class Refused(ProvisioningError):
    """The MSP understood and said no; asking again changes nothing."""

    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(f"the MSP refuses: {description or error} ({status} {error})")
        self.error = error


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What the MSP gives a gateway: PEM texts, and where the link goes."""

    gateway: str
    certificate: str
    ca: str
    addresses: tuple[str, ...]
    server_name: str


class EnrolmentClient:
    """`address` is the MSP's `HOST:PORT`; `ca` its authority (PEM), None: the system's list.

    With `clock_trusted` false, dates in certificates are not checked, which needs a pinned `ca`.
    """

    def __init__(
        self, address: str, uplink: UplinkConfig, ca: str | None, *, clock_trusted: bool
    ) -> None:
        self._host, self._port = split_address(address)
        self._uplink = uplink
        self._ca = ca
        self._clock_trusted = clock_trusted

    def fetch_ca(self, expected: str) -> str:
        """The MSP's authority, over a connection that proves nothing: its hash must do."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        answer = self._exchange(context, "GET", "/enrol/v1/ca", {}, None)
        ca = _pem(answer, "ca")
        try:
            found = fingerprint(ca)
        except ValueError as exc:
            raise ProvisioningError("the MSP's answer has no CA certificate") from exc
        if found != expected:
            raise ProvisioningError(
                f"the authority of the MSP at {self._host} port {self._port} has the fingerprint"
                f" {found}, not {expected}: another MSP, or somebody in between"
            )
        return ca

    def enrol(self, request: str, token: str, gateway: str | None) -> Enrolled:
        body = {"request": request, **({"gateway": gateway} if gateway else {})}
        headers = {"Authorization": f"Bearer {token}"}
        return _enrolled(
            self._exchange(self._context(), "POST", "/enrol/v1/certificate", headers, body)
        )

    def renew(self, request: str, certificate: Path, key: Path) -> Enrolled:
        context = self._context()
        context.load_cert_chain(certificate, key)
        return _enrolled(
            self._exchange(context, "POST", "/enrol/v1/renewal", {}, {"request": request})
        )

    def deprovision(self, certificate: Path, key: Path) -> None:
        context = self._context()
        context.load_cert_chain(certificate, key)
        self._exchange(context, "DELETE", "/enrol/v1/certificate", {}, None)

    def _context(self) -> ssl.SSLContext:
        if self._ca is None:
            if not self._clock_trusted:
                raise TryLater(
                    "the clock is not set, so the MSP's certificate cannot be checked: wait for"
                    " NTP, or pin the MSP with --ca-fingerprint"
                )
            return ssl.create_default_context()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=self._ca)
        if not self._clock_trusted:
            forgive_dates(context)
        return context

    def _exchange(
        self,
        context: ssl.SSLContext,
        method: str,
        path: str,
        headers: dict[str, str],
        body: dict[str, str] | None,
    ) -> dict[str, Any]:
        # An authority that was pinned signs this service's certificates and nobody else's.
        name = SERVICE_NAME if self._ca is not None else self._host
        host = f"[{self._host}]" if ":" in self._host else self._host
        headers = {
            "User-Agent": f"gwmodule/{__version__}",
            "Accept": "application/json",
            "Connection": "close",
            **headers,
        }
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            with self._connection(context, name) as sock:
                connection = http.client.HTTPConnection(host, self._port)
                connection.sock = sock
                connection.request(method, path, data, headers)
                with connection.getresponse() as response:
                    content = response.read(MAX_ANSWER + 1)
                    status = response.status
                    if response.length and len(content) <= MAX_ANSWER:
                        # A line that broke in the answer; with a limit, read() does not say so.
                        raise http.client.IncompleteRead(content, response.length)
        except ssl.SSLCertVerificationError as exc:
            raise ProvisioningError(self._not_verified(exc)) from exc
        except (OSError, http.client.HTTPException) as exc:
            reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise TryLater(f"{self._host} port {self._port}: {reason}") from exc
        return _answer(status, content)

    @contextlib.contextmanager
    def _connection(self, context: ssl.SSLContext, name: str) -> Iterator[ssl.SSLSocket]:
        failure: OSError = OSError("no address")
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            with contextlib.ExitStack() as stack:
                sock = stack.enter_context(socket.socket(family, kind, protocol))
                sock.settimeout(_TIMEOUT)
                try:
                    self._bind(sock)
                    sock.connect(address)
                except OSError as exc:
                    failure = exc
                    continue
                with context.wrap_socket(sock, server_hostname=name) as tls:
                    yield tls
                    return
        raise failure

    def _bind(self, sock: socket.socket) -> None:
        """The same WAN that the link will use."""
        uplink = self._uplink
        if uplink.interface:
            name = uplink.interface.encode() + b"\0"
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        if uplink.source and (":" in uplink.source) == (sock.family == socket.AF_INET6):
            sock.bind((uplink.source, 0))

    def _not_verified(self, exc: ssl.SSLCertVerificationError) -> str:
        where = f"{self._host} port {self._port}: certificate of the MSP: {exc.verify_message}"
        if self._ca is not None:
            return where
        return (
            f"{where}. No system authority vouches for it: give the fingerprint that"
            " `gwmodule-msp gateway add` shows with --ca-fingerprint"
        )


def _answer(status: int, content: bytes) -> dict[str, Any]:
    if len(content) > MAX_ANSWER:
        raise ProvisioningError(f"the MSP's answer has over {MAX_ANSWER} bytes")
    try:
        answer = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        answer = None
    if status in (408, 425, 429) or status >= 500:
        raise TryLater(f"the MSP cannot answer now: {_words(answer)} ({status})")
    if not 200 <= status < 300:
        error = answer.get("error") if isinstance(answer, dict) else None
        raise Refused(status, _printable(error or "REFUSED"), _words(answer))
    if not isinstance(answer, dict):
        raise ProvisioningError("the MSP's answer is no JSON object: is this its enrolment port?")
    return answer


def _words(answer: object) -> str:
    text = answer.get("errorDescription") if isinstance(answer, dict) else None
    return _printable(text) if isinstance(text, str) else ""


def _printable(text: object) -> str:
    return "".join(c for c in str(text)[:300] if c.isprintable())


def _enrolled(answer: dict[str, Any]) -> Enrolled:
    """Checked as what comes from outside: it becomes files and settings of the gateway."""
    addresses = answer.get("addresses")
    if not isinstance(addresses, list) or not 1 <= len(addresses) <= MAX_ADDRESSES:
        raise ProvisioningError(f"the MSP's answer has no 1 to {MAX_ADDRESSES} addresses")
    for address in addresses:
        try:
            split_address(address if isinstance(address, str) else "")
        except ValueError as exc:
            raise ProvisioningError(f"the MSP's answer has a bad address: {exc}") from exc
    return Enrolled(
        gateway=_text(answer, "gateway", 64),
        certificate=_pem(answer, "certificate"),
        ca=_pem(answer, "ca"),
        addresses=tuple(addresses),
        server_name=_text(answer, "serverName", 253),
    )


def _text(answer: dict[str, Any], key: str, limit: int) -> str:
    value = answer.get(key)
    # Quotes, spaces and the like have no business in a name; some end up in a shell's file.
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= limit
        or not (value.isascii() and value.isprintable())
        or set(value) & set(" '\"\\$`;")
    ):
        raise ProvisioningError(f"the MSP's answer has no usable {key}")
    return value


def _pem(answer: dict[str, Any], key: str) -> str:
    value = answer.get(key)
    if (
        not isinstance(value, str)
        or not value.startswith("-----BEGIN CERTIFICATE-----")
        or not value.isascii()
        or "PRIVATE" in value
    ):
        raise ProvisioningError(f"the MSP's answer has no {key} in PEM")
    return value


def normal_fingerprint(text: str) -> str:
    """64 hex digits, colons and the prefix `sha256:` allowed. ValueError."""
    digits = text.strip().lower().removeprefix("sha256:").replace(":", "")
    if len(digits) != 2 * hashlib.sha256().digest_size or not set(digits) <= set(
        "0123456789abcdef"
    ):
        raise ValueError(f"{text[:100]!r} is no SHA-256 fingerprint of 64 hex digits")
    return digits
