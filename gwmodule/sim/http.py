"""The device's HTTP server without I/O: digest authentication and the one path that matters.

Every first request is answered with 401 and `Connection: close`, as by real firmware
(reference/amt-protocols.md 3.1). A device that is not provisioned answers nothing else.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass

from gwmodule.amt import digest
from gwmodule.sim.classes import identify, resources
from gwmodule.sim.machine import USERNAME, Machine, Provisioning
from gwmodule.sim.wsman import WsmanServer

WSMAN_PATH = "/wsman"
MAX_BODY = 64 * 1024
MAX_AUTHORIZATION = 2048
# Seconds a nonce is good for, and how many are remembered; older ones are answered with stale.
NONCE_LIFETIME = 300.0
MAX_NONCES = 64
# Clients differ in what they quote (reference/amt-protocols.md 3.1).
_PARAMETER = re.compile(r'([A-Za-z]+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))\s*(?:,|$)')
_UNAUTHORIZED = (
    b"<!DOCTYPE html>\n<html><head><title>Unauthorized</title></head>\n"
    b"<body><h1>401 Unauthorized</h1><p>Log on to this device.</p></body></html>\n"
)


@dataclass(slots=True)
class Response:
    """`chunked`: in two chunks with zero-padded sizes; `close`: the connection ends with it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    chunked: bool = False
    close: bool = False


@dataclass(slots=True)
class _Nonce:
    expires: float
    count: int = 0


class DigestGate:
    """Decides who is the administrator (RFC 2617 with qop auth)."""

    def __init__(self, machine: Machine, make_nonce: Callable[[], str]) -> None:
        self._machine = machine
        self._make_nonce = make_nonce
        self._nonces: dict[str, _Nonce] = {}
        self.failures = 0

    def challenge(self, now: float, *, stale: bool = False) -> str:
        """A WWW-Authenticate value with a nonce of its own."""
        while len(self._nonces) >= MAX_NONCES:
            del self._nonces[next(iter(self._nonces))]
        nonce = self._make_nonce()
        self._nonces[nonce] = _Nonce(now + NONCE_LIFETIME)
        text = "true" if stale else "false"
        return f'Digest realm="{self._machine.realm}", nonce="{nonce}",stale="{text}",qop="auth"'

    def check(self, method: str, target: str, authorization: str, now: float) -> str:
        """Empty when `authorization` proves the administrator, else the challenge to send."""
        fields = _parse_authorization(authorization)
        if not self._proves(method, target, fields):
            self.failures += bool(fields)
            return self.challenge(now)
        nonce = self._nonces.get(fields["nonce"])
        count = int(fields["nc"], 16)
        if nonce is None or now >= nonce.expires or count <= nonce.count:
            return self.challenge(now, stale=True)
        nonce.count = count
        return ""

    def _proves(self, method: str, target: str, fields: dict[str, str]) -> bool:
        machine = self._machine
        if machine.provisioning is not Provisioning.MANAGED:
            return False
        given = {"username": USERNAME, "realm": machine.realm, "uri": target, "qop": "auth"}
        if any(fields.get(name) != value for name, value in given.items()):
            return False
        if not re.fullmatch(r"[0-9a-fA-F]{8}", fields.get("nc", "")) or not fields.get("cnonce"):
            return False
        expected = digest.response(
            digest.ha1(USERNAME, machine.realm, machine.password),
            fields.get("nonce", ""),
            digest.ha2(method, target),
            nc=fields["nc"],
            cnonce=fields["cnonce"],
            qop="auth",
        )
        # The whole digest is compared: firmware that compared as many digits as came let the
        # empty response in (CVE-2017-5689).
        return hmac.compare_digest(fields.get("response", "").lower().encode(), expected.encode())


class HttpServer:
    """What the device answers on 16992 and 16993, for all its connections together."""

    def __init__(self, machine: Machine, make_nonce: Callable[[], str]) -> None:
        self._machine = machine
        self._gate = DigestGate(machine, make_nonce)
        self._wsman = WsmanServer(resources(machine), identify(machine))

    def respond(
        self, method: str, target: str, authorization: str, body: bytes, now: float
    ) -> Response:
        """One answer. `authorization` is the header's value, or empty; `now` is seconds."""
        challenge = self._gate.check(method, target, authorization, now)
        if challenge:
            headers = [("WWW-Authenticate", challenge), ("Content-Type", "text/html")]
            return self._response(401, headers, _UNAUTHORIZED, close=True)
        if target != WSMAN_PATH:
            return self._response(404, [("Content-Type", "text/html")], b"<html></html>\n")
        if method != "POST":
            return self._response(405, [("Allow", "POST")], b"")
        status, envelope = self._wsman.respond(body, now)
        headers = [
            ("X-Frame-Options", "DENY"),
            ("Content-Type", "application/soap+xml; charset=UTF-8"),
        ]
        return self._response(status, headers, envelope, chunked=True)

    def refuse(self, status: int) -> Response:
        """For what is no request: too large (413) or not HTTP (400)."""
        return self._response(
            status, [("Content-Type", "text/html")], b"<html></html>\n", close=True
        )

    def _response(
        self,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
        *,
        chunked: bool = False,
        close: bool = False,
    ) -> Response:
        length = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))
        every = [("Server", self._machine.server_header), *headers, length]
        if close:
            every.append(("Connection", "close"))
        return Response(status, every, body, chunked, close)


def _parse_authorization(value: str) -> dict[str, str]:
    """The fields of an Authorization value; empty when it is no digest."""
    scheme, _, rest = value.strip().partition(" ")
    if len(value) > MAX_AUTHORIZATION or scheme.lower() != "digest":
        return {}
    return {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(rest)}
