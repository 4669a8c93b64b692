"""The device's HTTP server without I/O: digest authentication, and what answers at which path.

    /wsman                      WS-Management, from AMT 3
    /RemoteControlService ...   SOAP 1.1 (EOI), up to AMT 8

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
from gwmodule.sim.eoi import EoiServer
from gwmodule.sim.flaky import Mood, Temper
from gwmodule.sim.machine import USERNAME, Machine, Provisioning
from gwmodule.sim.profiles import Feature
from gwmodule.sim.wsman import Fault, WsmanServer

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
    """`chunked`: in two chunks with zero-padded sizes; `close`: the connection ends with it.

    `delay` is seconds before the first byte; `drop`: the connection is reset instead.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    chunked: bool = False
    close: bool = False
    delay: float = 0.0
    drop: bool = False


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
            # A first request proves nothing and fails nothing; nor does one before activation.
            if fields and self._machine.provisioning is Provisioning.MANAGED:
                self.failures += 1
                self._machine.login_judged(proved=False)
            return self.challenge(now)
        nonce = self._nonces.get(fields["nonce"])
        count = int(fields["nc"], 16)
        if nonce is None or now >= nonce.expires or count <= nonce.count:
            return self.challenge(now, stale=True)
        nonce.count = count
        if self._machine.profile.mischief.single_use:
            del self._nonces[fields["nonce"]]
        self._machine.login_judged(proved=True)
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
        mischief = machine.profile.mischief
        self._temper = Temper(mischief, machine.rng)
        self._wsman = WsmanServer(resources(machine), identify(machine), page=mischief.page)
        self._eoi = EoiServer(machine)

    def respond(
        self, method: str, target: str, authorization: str, body: bytes, now: float
    ) -> Response:
        """One answer. `authorization` is the header's value, or empty; `now` is seconds."""
        self._machine.handle_timeout(now)
        challenge = self._gate.check(method, target, authorization, now)
        if challenge:
            headers = [("WWW-Authenticate", challenge), ("Content-Type", "text/html")]
            return self._response(401, headers, _UNAUTHORIZED, close=True)
        turn = self._temper.next_turn()
        match turn.mood:
            case Mood.DROP_BEFORE:
                response = self._response(500, [], b"")
            case Mood.FAULT:
                envelope = self._wsman.fault(Fault("c:InternalError", "A bad mood.", "Receiver"))
                response = self._soap(500, envelope)
            case _:
                response = self._answer(method, target, body, now)
        response.delay = turn.delay
        response.drop = turn.mood in (Mood.DROP_BEFORE, Mood.DROP_AFTER)
        return response

    def _answer(self, method: str, target: str, body: bytes, now: float) -> Response:
        profile = self._machine.profile
        wsman = target == WSMAN_PATH and profile.has(Feature.WSMAN)
        allowed = not self._machine.general("WsmanOnlyMode", False)
        eoi = allowed and profile.has(Feature.EOI) and self._eoi.serves(target)
        if not wsman and not eoi:
            return self._response(404, [("Content-Type", "text/html")], b"<html></html>\n")
        if method != "POST":
            return self._response(405, [("Allow", "POST")], b"")
        if wsman:
            return self._soap(*self._wsman.respond(body, now))
        status, envelope = self._eoi.respond(target, body, now)
        headers = [("Content-Type", "text/xml; charset=utf-8")]
        return self._response(status, headers, envelope)

    def _soap(self, status: int, envelope: bytes) -> Response:
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
