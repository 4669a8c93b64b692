"""Where gateways get and renew their certificates: a small HTTPS site of its own.

    GET    /enrol/v1/ca             {ca}                                          anybody
    POST   /enrol/v1/certificate    {request, gateway?} -> certificate            Bearer token
    POST   /enrol/v1/renewal        {request} -> certificate                      client certificate
    DELETE /enrol/v1/certificate                                                  client certificate

Apart from the link's port, because here strangers are welcome: a caller without any certificate,
and one whose certificate ended a while ago. Authority and signature of a client certificate are
TLS's business, its dates are checked here, so that there can be a grace period. Errors are
`{error, errorDescription}`, as everywhere in the API.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import math
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.x509.oid import NameOID

from gwmodule.config import SERVICE_NAME, join_address, split_address
from gwmodule.errors import ConfigError, GatewayError
from gwmodule.flood import FloodLimit
from gwmodule.msp.acceptor import listening_socket
from gwmodule.msp.database import RegistryError, StatementError
from gwmodule.msp.enrolment_tokens import EnrolmentRefused, Enrolments
from gwmodule.msp.http_port import Callers, HttpPort
from gwmodule.msp.pki import (
    GATEWAY_LIFETIME,
    Authority,
    BadRequest,
    Issued,
    fingerprint,
    key_hash,
    requested_key,
)
from gwmodule.msp.strangers import network_of
from gwmodule.telemetry import Counters, EventLog
from gwmodule.uplink.tls import forgive_dates

MAX_BODY = 20 * 1024
MAX_CONNECTIONS = 512
# A whole exchange, TLS included, takes a gateway on a bad line a few seconds.
CONNECTION_TIME = 30.0
BODY_TIME = 10.0
# Failures of one address. A whole estate may stand behind one NAT, so success is not counted.
FAILURES, FAILURES_PERIOD = 20, 3.0
# Signatures per second, all gateways together; thousands may come back after a power cut.
SIGNATURES_RATE, SIGNATURES_BURST = 100.0, 400.0
# Of them, renewals of one gateway: each is an entry in the audit, and one is due in months.
RENEWALS, RENEWALS_PERIOD = 10, 600.0

_STATUS = {"OTHER_GATEWAY": 409, "TOKEN_USED": 409}
Handler = Callable[[web.Request], Awaitable[dict[str, Any] | None]]


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """`addresses` are the link's `HOST:PORT`; empty: the host that was asked, at `link_port`."""

    host: str
    port: int
    addresses: tuple[str, ...] = ()
    lifetime: datetime.timedelta = GATEWAY_LIFETIME
    grace: datetime.timedelta = datetime.timedelta(days=30)


class SiteError(GatewayError):
    def __init__(self, status: int, error: str, description: str, *, later: int = 0) -> None:
        super().__init__(description)
        self.status = status
        self.error = error
        self.later = later


class EnrolmentSite:
    def __init__(
        self,
        options: SiteOptions,
        enrolments: Enrolments,
        authority: Authority,
        clock: Callable[[], float],
        link_port: Callable[[], int],
        end_session: Callable[[str, str], None] = lambda gateway, reason: None,
    ) -> None:
        """`end_session` is told whose certificate is over, and why."""
        self._end_session = end_session
        self._options = options
        self._enrolments = enrolments
        self._authority = authority
        self._clock = clock
        self._link_port = link_port
        self._failures = FloodLimit(1 / FAILURES_PERIOD, FAILURES)
        self._signatures = FloodLimit(SIGNATURES_RATE, SIGNATURES_BURST)
        self._renewals = FloodLimit(1 / RENEWALS_PERIOD, RENEWALS)
        self._log = EventLog("gwmodule.msp")
        # None of them is ever known: an exchange is over before it would matter.
        self.callers = Callers("enrolment", MAX_CONNECTIONS)
        self._socket: socket.socket | None = None
        self.counters = Counters()

    @property
    def host(self) -> str:
        return self._options.host

    @property
    def port(self) -> int:
        """The port in use, after `listen`."""
        assert self._socket is not None  # noqa: S101 - callers have started it
        return int(self._socket.getsockname()[1])

    def application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_BODY)
        application.add_routes(
            [
                web.get("/enrol/v1/ca", self._answer(self._ca)),
                web.post("/enrol/v1/certificate", self._answer(self._certificate)),
                web.delete("/enrol/v1/certificate", self._answer(self._give_back)),
                web.post("/enrol/v1/renewal", self._answer(self._renewal)),
            ]
        )
        return application

    def listen(self) -> None:
        """ConfigError when the port is in use."""
        host, port = self._options.host, self._options.port
        try:
            self._socket = listening_socket(host, port)
        except OSError as exc:
            raise ConfigError(join_address(host, port), "enrol", exc.strerror or str(exc)) from exc

    async def run(self) -> None:
        """After `listen`, until cancelled."""
        assert self._socket is not None  # noqa: S101 - see above
        runner = web.AppRunner(
            self.application(),
            access_log=None,
            handle_signals=False,
            keepalive_timeout=5.0,
            shutdown_timeout=2.0,
            # No gateway packs its request, and what a stranger's unpacks to is his choice.
            auto_decompress=False,
            max_line_size=4096,
            max_field_size=4096,
        )
        await runner.setup()
        port = HttpPort(
            runner,
            self._socket,
            self._context(),
            self.callers,
            patience=CONNECTION_TIME,
        )
        try:
            await port.run()
        finally:
            await runner.cleanup()

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(
            self._authority.server_certificate_path, self._authority.server_key_path
        )
        context.load_verify_locations(self._authority.ca_path)
        context.verify_mode = ssl.CERT_OPTIONAL
        forgive_dates(context)
        context.num_tickets = 0
        return context

    async def invitation(
        self,
        gateway: str,
        *,
        tenant: str,
        actor: str,
        expiry: float,
        replace: bool,
        names: Sequence[str],
    ) -> dict[str, Any]:
        """A token and the command line for the gateway. ValueError, RegistryConflict."""
        invited = await self._enrolments.invite(
            gateway,
            self._clock(),
            tenant=tenant,
            actor=actor,
            expiry=expiry,
            replace=replace,
        )
        host = next((name for name in names if name != SERVICE_NAME), self._options.host)
        site = join_address(host, self.port)
        pin = fingerprint(self._authority.certificate)
        # Through a pipe of the shell: what is in an argument list, every local user can read.
        command = (
            f"echo {invited.token} | gwmodule provision --msp {site}"
            f" --ca-fingerprint {pin} --gateway-id {gateway} --token-file -"
        )
        return {
            "gateway": invited.gateway,
            "token": invited.token,
            "expires": _iso(invited.expires),
            "caFingerprint": pin,
            "enrolment": site,
            "command": command,
        }

    # ---- routes -------------------------------------------------------------------------------

    def _answer(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            peer = request.remote or ""
            network = network_of(peer).encode()
            now = time.monotonic()
            try:
                if wait := math.ceil(self._failures.wait(network, now)):
                    raise SiteError(429, "TOO_MANY", "too many failures; wait", later=wait)
                body = await handler(request)
            except (SiteError, EnrolmentRefused, BadRequest, RegistryError, StatementError) as exc:
                refusal = _refusal(exc)
                if refusal.status < 500 and refusal.status != 429:
                    self._failures.admits(network, now)
                self.counters[f"refused_{refusal.error.lower()}"] += 1
                if refusal.status != 429:
                    self._log.warning(
                        "enrolment_refused", peer=peer, path=request.path, reason=str(exc)
                    )
                headers = {"Retry-After": str(refusal.later)} if refusal.later else {}
                content = {"error": refusal.error, "errorDescription": str(exc)}
                return web.json_response(content, status=refusal.status, headers=headers)
            if body is None:
                return web.Response(status=204)
            return web.json_response(body)

        return answer

    async def _ca(self, request: web.Request) -> dict[str, Any]:
        return {"ca": self._authority.ca}

    async def _certificate(self, request: web.Request) -> dict[str, Any]:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise SiteError(401, "TOKEN_MISSING", "the header Authorization has no Bearer token")
        body = await self._body(request, "request", "gateway")
        key = requested_key(body["request"])
        at = self._clock()
        redeemed = await self._enrolments.redeem(
            token.strip(),
            key_hash(key),
            at,
            lambda name: self._issue(name, key, at),
            gateway=body.get("gateway"),
            peer=request.remote or "",
        )
        if redeemed.first:
            self._end_session(redeemed.gateway, "this gateway has another certificate now")
        self._log.info("gateway_enrolled", gateway=redeemed.gateway, address=request.remote)
        return self._enrolled(request, redeemed.gateway, redeemed.certificate)

    async def _renewal(self, request: web.Request) -> dict[str, Any]:
        at = self._clock()
        certificate, name = self._client(request, at)
        key = requested_key((await self._body(request, "request"))["request"])
        renewed = await self._enrolments.renew(
            name,
            fingerprint(certificate),
            at,
            lambda gateway: self._renew(gateway, key, at),
            peer=request.remote or "",
        )
        self._log.info("gateway_renewed", gateway=name, address=request.remote)
        return self._enrolled(request, name, renewed)

    async def _give_back(self, request: web.Request) -> None:
        at = self._clock()
        certificate, name = self._client(request, at)
        await self._enrolments.give_back(
            name, fingerprint(certificate), at, peer=request.remote or ""
        )
        self._end_session(name, "the gateway was deprovisioned")
        self._log.info("gateway_deprovisioned", gateway=name, address=request.remote)

    # ---- parts --------------------------------------------------------------------------------

    def _client(self, request: web.Request, at: float) -> tuple[x509.Certificate, str]:
        """The certificate that TLS has verified, and whose it is."""
        transport = request.transport
        end = transport.get_extra_info("ssl_object") if transport is not None else None
        der = end.getpeercert(binary_form=True) if end is not None else None
        if der is None:
            raise SiteError(401, "CERTIFICATE_MISSING", "this needs the gateway's certificate")
        certificate = x509.load_der_x509_certificate(der)
        ended = at - certificate.not_valid_after_utc.timestamp()
        if ended > self._options.grace.total_seconds():
            raise SiteError(
                403,
                "CERTIFICATE_EXPIRED",
                f"the certificate ended {ended / 86400:.0f} days ago, more than the"
                f" {self._options.grace.days} days of grace: enrol with a new token",
            )
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return certificate, str(names[0].value) if names else ""

    async def _body(self, request: web.Request, *keys: str) -> dict[str, str]:
        try:
            async with asyncio.timeout(BODY_TIME):
                body = json.loads(await request.read())
        except web.HTTPRequestEntityTooLarge as exc:
            raise SiteError(413, "TOO_LARGE", f"at most {MAX_BODY} bytes") from exc
        except TimeoutError as exc:
            raise SiteError(408, "TIMEOUT", "the request did not come in time") from exc
        except (ConnectionError, web.RequestPayloadError) as exc:
            raise SiteError(400, "BAD_REQUEST", "the body did not come whole") from exc
        except (ValueError, RecursionError) as exc:
            raise SiteError(400, "BAD_REQUEST", "the body is no JSON") from exc
        if (
            not isinstance(body, dict)
            or "request" not in body
            or not set(body) <= set(keys)
            or not all(isinstance(value, str) for value in body.values())
        ):
            raise SiteError(400, "BAD_REQUEST", f"the body must be strings named {', '.join(keys)}")
        return body

    def _renew(self, name: str, key: Any, at: float) -> Issued:
        if wait := math.ceil(self._renewals.charge(name.encode(), time.monotonic())):
            most = f"{RENEWALS} times, then once in {RENEWALS_PERIOD:g} s"
            text = f"this gateway renews too often: {most}"
            raise SiteError(429, "TOO_MANY", text, later=wait)
        return self._issue(name, key, at)

    def _issue(self, name: str, key: Any, at: float) -> Issued:
        if not self._signatures.admits(b"", time.monotonic()):
            raise SiteError(503, "BUSY", "too many gateways at once; try again", later=10)
        return self._authority.gateway_certificate(name, key, at, self._options.lifetime)

    def _enrolled(self, request: web.Request, gateway: str, certificate: str) -> dict[str, Any]:
        return {
            "gateway": gateway,
            "certificate": certificate,
            "ca": self._authority.ca,
            "addresses": list(self._options.addresses or self._asked(request)),
            "serverName": SERVICE_NAME,
        }

    def _asked(self, request: web.Request) -> Sequence[str]:
        """The host by which this gateway has found us, with the link's port."""
        host = request.host.rpartition(":")[0] if request.host[-1:] != "]" else request.host
        address = f"{host or request.host}:{self._link_port()}"
        try:
            split_address(address)
        except ValueError as exc:
            raise SiteError(400, "BAD_REQUEST", f"the header Host: {exc}") from exc
        return (address,)


def _refusal(exc: GatewayError) -> SiteError:
    match exc:
        case SiteError():
            return exc
        case EnrolmentRefused(error=error):
            return SiteError(_STATUS.get(error, 403), error, str(exc))
        case BadRequest():
            return SiteError(400, "BAD_REQUEST", str(exc))
        case _:
            text = "the registry cannot be used now; the log says why"
            return SiteError(503, "DATABASE", text, later=30)


def _iso(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds")
