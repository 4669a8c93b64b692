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
import ipaddress
import json
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.x509.oid import NameOID

from gwmodule.config import SERVICE_NAME, split_address
from gwmodule.errors import GatewayError
from gwmodule.msp.database import RegistryError
from gwmodule.msp.enrolment_tokens import EnrolmentRefused, Enrolments
from gwmodule.msp.pki import (
    GATEWAY_LIFETIME,
    Authority,
    BadRequest,
    Issued,
    fingerprint,
    key_hash,
    requested_key,
)
from gwmodule.telemetry import Counters, EventLog
from gwmodule.uplink.tls import forgive_dates

MAX_BODY = 20 * 1024
MAX_CONNECTIONS = 512
# A whole exchange, TLS included, takes a gateway on a bad line a few seconds.
CONNECTION_TIME = 30.0
HANDSHAKE_TIME = 10.0
# Failures of one address. A whole estate may stand behind one NAT, so success is not counted.
FAILURES, FAILURES_WINDOW = 20, 60.0
MAX_PEERS = 4096
# Signatures per second, all gateways together; thousands may come back after a power cut.
SIGNATURES_RATE, SIGNATURES_BURST = 100.0, 400.0

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


@dataclass(slots=True)
class Bucket:
    """Allows `rate` per second and `burst` at once."""

    rate: float
    burst: float
    level: float = field(default=0.0)
    at: float = field(default=0.0)

    def take(self, now: float) -> bool:
        self.level = max(0.0, self.level - (now - self.at) * self.rate)
        self.at = now
        if self.level + 1 > self.burst:
            return False
        self.level += 1
        return True


class Failures:
    """Refused attempts by address; a bounded number of addresses, the oldest forgotten first."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, Bucket] = OrderedDict()

    def blocked(self, peer: str, now: float) -> bool:
        bucket = self._peers.get(_network(peer))
        if bucket is None:
            return False
        return bucket.level - (now - bucket.at) * bucket.rate + 1 > bucket.burst

    def add(self, peer: str, now: float) -> None:
        bucket = self._peers.setdefault(
            _network(peer), Bucket(FAILURES / FAILURES_WINDOW, FAILURES, at=now)
        )
        bucket.take(now)
        self._peers.move_to_end(_network(peer))
        while len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)


class EnrolmentSite:
    def __init__(
        self,
        options: SiteOptions,
        enrolments: Enrolments,
        authority: Authority,
        clock: Callable[[], float],
        link_port: Callable[[], int],
        on_leave: Callable[[str], None] = lambda gateway: None,
    ) -> None:
        """`on_leave` ends the session of a gateway that has given its certificate back."""
        self._on_leave = on_leave
        self._options = options
        self._enrolments = enrolments
        self._authority = authority
        self._clock = clock
        self._link_port = link_port
        self._failures = Failures()
        self._signatures = Bucket(SIGNATURES_RATE, SIGNATURES_BURST)
        self._log = EventLog("gwmodule.msp")
        self._connections: dict[Any, float] = {}
        self._server: asyncio.Server | None = None
        self.counters = Counters()

    @property
    def host(self) -> str:
        return self._options.host

    @property
    def port(self) -> int:
        """The port in use, after `start`."""
        assert self._server is not None  # noqa: S101 - callers have started it
        return int(self._server.sockets[0].getsockname()[1])

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

    async def start(self) -> web.AppRunner:
        """Listen; whoever gets the runner cleans it up. ConfigError when the port is in use."""
        runner = web.AppRunner(
            self.application(),
            access_log=None,
            handle_signals=False,
            keepalive_timeout=5.0,
            shutdown_timeout=2.0,
            max_line_size=4096,
            max_field_size=4096,
        )
        await runner.setup()
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: self._protocol(runner),
                self._options.host,
                self._options.port,
                ssl=self._context(),
                ssl_handshake_timeout=HANDSHAKE_TIME,
                family=socket.AF_INET6 if ":" in self._options.host else socket.AF_INET,
            )
        except BaseException:
            await runner.cleanup()
            raise
        return runner

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

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

    def _protocol(self, runner: web.AppRunner) -> asyncio.Protocol:
        """One more connection, if there is room: the oldest are cut off once their time is over."""
        now = time.monotonic()
        if len(self._connections) >= MAX_CONNECTIONS:
            for handler, since in list(self._connections.items()):
                if now - since > CONNECTION_TIME and handler.transport is not None:
                    handler.transport.abort()
                if handler.transport is None and now - since > HANDSHAKE_TIME:
                    del self._connections[handler]
        if len(self._connections) >= MAX_CONNECTIONS:
            self.counters["too_many_connections"] += 1
            return _Refusal()
        assert runner.server is not None  # noqa: S101 - after setup
        handler = runner.server()
        self._connections[handler] = now
        return handler

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
        host = f"[{host}]" if ":" in host else host
        pin = fingerprint(self._authority.certificate)
        # Through a pipe of the shell: what is in an argument list, every local user can read.
        command = (
            f"echo {invited.token} | gwmodule provision --msp {host}:{self.port}"
            f" --ca-fingerprint {pin} --gateway-id {gateway} --token-file -"
        )
        return {
            "gateway": invited.gateway,
            "token": invited.token,
            "expires": _iso(invited.expires),
            "caFingerprint": pin,
            "enrolment": f"{host}:{self.port}",
            "command": command,
        }

    # ---- routes -------------------------------------------------------------------------------

    def _answer(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            peer = request.remote or ""
            now = time.monotonic()
            try:
                if self._failures.blocked(peer, now):
                    raise SiteError(429, "TOO_MANY", "too many failures; wait", later=60)
                body = await handler(request)
            except (SiteError, EnrolmentRefused, BadRequest, RegistryError) as exc:
                refusal = _refusal(exc)
                if refusal.status < 500 and refusal.status != 429:
                    self._failures.add(peer, now)
                self.counters[f"refused_{refusal.error.lower()}"] += 1
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
        self._require_capacity()
        gateway, certificate = await self._enrolments.redeem(
            token.strip(),
            key_hash(key),
            at,
            lambda name: self._issue(name, key, at),
            gateway=body.get("gateway"),
            peer=request.remote or "",
        )
        self._log.info("gateway_enrolled", gateway=gateway, address=request.remote)
        return self._enrolled(request, gateway, certificate)

    async def _renewal(self, request: web.Request) -> dict[str, Any]:
        at = self._clock()
        certificate, name = self._client(request, at)
        key = requested_key((await self._body(request, "request"))["request"])
        self._require_capacity()
        renewed = await self._enrolments.renew(
            name,
            fingerprint(certificate),
            at,
            lambda gateway: self._issue(gateway, key, at),
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
        self._on_leave(name)
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
            async with asyncio.timeout(CONNECTION_TIME):
                body = json.loads(await request.read())
        except web.HTTPRequestEntityTooLarge as exc:
            raise SiteError(413, "TOO_LARGE", f"at most {MAX_BODY} bytes") from exc
        except TimeoutError as exc:
            raise SiteError(408, "TIMEOUT", "the request did not come in time") from exc
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

    def _require_capacity(self) -> None:
        if not self._signatures.take(time.monotonic()):
            raise SiteError(503, "BUSY", "too many gateways at once; try again", later=10)

    def _issue(self, name: str, key: Any, at: float) -> Issued:
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


class _Refusal(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


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


def _network(peer: str) -> str:
    """What one subscriber has: an IPv4 address, or an IPv6 /64."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if address.version == 4:
        return peer
    return str(ipaddress.ip_network((int(address), 64), strict=False))
