"""The technician's API: HTTP and WebSocket on a unix socket, with Open AMT MPS's names.

Who may open the socket (mode 0600) may use it; the audit records the peer's user. Errors are
`{error, errorDescription}`: a short name and a sentence.

    GET    /healthz
    GET    /api/v1/gateways                 POST {name, replace?} -> certificate, key, ca
    POST   /api/v1/gateways/{name}/enrolment   {expiry?, replace?} -> token, expires, command
    GET    /api/v1/devices?$top&$skip&$count&guid&hostname&gateway&state&status
    GET    /api/v1/devices/stats
    GET    /api/v1/devices/{guid}           DELETE forgets it
    POST   /api/v1/devices/{guid}/call      {function, arguments?, credential?, deadline?, ...}
    POST   /api/v1/devices/{guid}/unpin     trust the next certificate afresh
    GET    /api/v1/candidates
    POST   /api/v1/candidates/{gateway}/{mac}/identify
    GET    /api/v1/audit?guid&limit
    GET    /api/v1/amt/power/state/{guid}   POST /api/v1/amt/power/action/{guid} {action}
    GET    /relay/webrelay.ashx?p=2&host={guid}&port=16994&tls=0&mode=sol   (WebSocket)

The device's login comes in the body, or for the two power routes in the header
`AMT-Authorization: Basic ...`. It becomes HA1 for the recorded realm at once; neither it nor HA1 is
stored or logged.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime
import errno
import hashlib
import hmac
import os
import pwd
import re
import secrets
import socket
import stat
import struct
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import UUID

import msgspec
from aiohttp import web

from gwmodule import __version__
from gwmodule.amt.digest import ha1
from gwmodule.errors import AmtError, Code, ConfigError, LinkLost
from gwmodule.msp.database import RegistryError
from gwmodule.msp.enrolment_site import EnrolmentSite
from gwmodule.msp.enrolment_tokens import DEFAULT_EXPIRY
from gwmodule.msp.pki import Authority
from gwmodule.msp.records import NO_PIN, Device, Gateway, Host, State
from gwmodule.msp.registry import Registry, RegistryConflict
from gwmodule.msp.seam import SessionSeam, SessionsSeam
from gwmodule.msp.subprotocol import CLOSE_BASE, MAX_MESSAGE, SUBPROTOCOL, close_reason
from gwmodule.msp.webrelay import Ending, WebRelay
from gwmodule.telemetry import EventLog
from gwmodule.wire.frames import CredentialMode, TlsMode
from gwmodule.wire.messages import Credential, Result, StreamTarget
from gwmodule.wire.notices import NO_MAC, NO_UUID, format_mac, parse_mac

# The largest request is a call with its arguments.
MAX_BODY = 64 * 1024
# A call is one frame of 16 KiB: what its head and two texts of 255 bytes leave.
MAX_ARGUMENTS = 15 * 1024
# A header's worth of requests whose answers are kept for a repetition.
MAX_ANSWERS = 256
# How long the service waits at its end for requests that are still running.
SHUTDOWN_TIMEOUT = 2.0

_T = TypeVar("_T")
_GUID = re.compile(r"[0-9A-Fa-f]{8}(?:-?[0-9A-Fa-f]{4}){3}-?[0-9A-Fa-f]{12}")
_GUID_PREFIX = re.compile(r"[0-9A-Fa-f-]{0,36}")
# What closes other technicians' streams tells them whose doing it is.
_SAYS_WHO = frozenset({"power.set"})
_STATUS = {
    Code.UNKNOWN_FUNCTION: HTTPStatus.NOT_FOUND,
    Code.BAD_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Code.DEADLINE: HTTPStatus.GATEWAY_TIMEOUT,
    Code.TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
    Code.UNREACHABLE: HTTPStatus.GATEWAY_TIMEOUT,
    # Not 401: that would say that the technician is not logged in here.
    Code.AUTHENTICATION: HTTPStatus.FORBIDDEN,
    Code.REFUSED_POLICY: HTTPStatus.FORBIDDEN,
    Code.IDENTITY_MISMATCH: HTTPStatus.CONFLICT,
    Code.NOT_PROVISIONED: HTTPStatus.CONFLICT,
    Code.DEVICE_REFUSED: HTTPStatus.CONFLICT,
    Code.TLS_PIN: HTTPStatus.CONFLICT,
    Code.POWER_ACTION: HTTPStatus.CONFLICT,
    Code.CANCELLED: HTTPStatus.CONFLICT,
    Code.LIMIT: HTTPStatus.TOO_MANY_REQUESTS,
    Code.NOT_SUPPORTED: HTTPStatus.NOT_IMPLEMENTED,
}
# Names that CPython 3.13 took from RFC 9110; what scripts match on must not follow the interpreter.
_RENAMED = {
    413: "REQUEST_ENTITY_TOO_LARGE",
    414: "REQUEST_URI_TOO_LONG",
    416: "REQUESTED_RANGE_NOT_SATISFIABLE",
    422: "UNPROCESSABLE_ENTITY",
}


class Login(msgspec.Struct, forbid_unknown_fields=True):
    """An AMT account; only ever in RAM, and for one call."""

    username: str
    password: str
    mode: Literal["ha1", "challenge"] = "ha1"

    def __post_init__(self) -> None:
        for text in (self.username, self.password):
            if len(text.encode(errors="replace")) > 255 or not text.isprintable() or not text:
                raise ValueError("user name and password are 1 to 255 printable bytes")
        if '"' in self.username or ":" in self.username:
            raise ValueError("a user name holds neither colon nor quote")

    def __repr__(self) -> str:
        return f"Login({self.username!r})"


class IdentifyRequest(msgspec.Struct, forbid_unknown_fields=True):
    credential: Login
    allow_password: bool = False
    tls: Literal["auto", "off", "modern", "legacy"] | None = None
    deadline: float = 30.0

    def __post_init__(self) -> None:
        if not 0.1 <= self.deadline <= 600:
            raise ValueError("deadline must be between 0.1 and 600 seconds")


class CallRequest(msgspec.Struct, forbid_unknown_fields=True):
    function: str
    arguments: dict[str, Any] = {}
    credential: Login | None = None
    allow_password: bool = False
    tls: Literal["auto", "off", "modern", "legacy"] | None = None
    deadline: float = 30.0

    def __post_init__(self) -> None:
        if not 0.1 <= self.deadline <= 600:
            raise ValueError("deadline must be between 0.1 and 600 seconds")
        if not re.fullmatch(r"[a-z0-9.]{1,64}", self.function):
            raise ValueError("function must be a name like power.get")


class ActionRequest(msgspec.Struct, forbid_unknown_fields=True):
    action: int


class EnrolmentRequest(msgspec.Struct, forbid_unknown_fields=True):
    expiry: float = DEFAULT_EXPIRY
    replace: bool = False


class GatewayRequest(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    replace: bool = False


class ApiError(Exception):
    """An answer that says no."""

    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(description)
        self.status = status
        self.error = error
        self.description = description


@dataclass(slots=True)
class _Place:
    """Where a call goes and what is known about the device there."""

    gateway: str
    mac: bytes | None
    device: Device | None
    host: Host | None

    @property
    def known(self) -> Device | Host:
        known = self.device or self.host
        assert known is not None  # noqa: S101 - every place is made from one of them
        return known


class Api:
    """The routes; `clock` gives unix seconds, `server_names` is what the listener is known by."""

    def __init__(
        self,
        registry: Registry,
        sessions: SessionsSeam,
        authority: Authority,
        server_names: Sequence[str],
        clock: Callable[[], float],
        enrolment: EnrolmentSite | None = None,
    ) -> None:
        self._enrolment = enrolment
        self._registry = registry
        self._sessions = sessions
        self._authority = authority
        self._server_names = list(server_names)
        self._clock = clock
        self._log = EventLog("gwmodule.msp.api")
        self._websockets: set[web.WebSocketResponse] = set()
        self._answers: OrderedDict[str, tuple[bytes, asyncio.Future[web.Response]]] = OrderedDict()
        # Request bodies hold passwords; what is kept to compare them with must not.
        self._salt = secrets.token_bytes(16)

    def application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_BODY, middlewares=[self._answer])
        application.router.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/api/v1/gateways", self._gateways),
                web.post("/api/v1/gateways", self._add_gateway),
                web.post("/api/v1/gateways/{name}/enrolment", self._invite),
                web.get("/api/v1/devices", self._devices),
                web.get("/api/v1/devices/stats", self._stats),
                web.get("/api/v1/devices/{guid}", self._device),
                web.delete("/api/v1/devices/{guid}", self._forget),
                web.post("/api/v1/devices/{guid}/call", self._call),
                web.post("/api/v1/devices/{guid}/unpin", self._unpin),
                web.get("/api/v1/candidates", self._candidates),
                web.post("/api/v1/candidates/{gateway}/{mac}/identify", self._identify),
                web.get("/api/v1/audit", self._audit),
                web.get("/api/v1/amt/power/state/{guid}", self._power_state),
                web.post("/api/v1/amt/power/action/{guid}", self._power_action),
                web.get("/relay/webrelay.ashx", self._webrelay),
            ]
        )
        application.on_shutdown.append(self._shutdown)
        return application

    async def _shutdown(self, _: web.Application) -> None:
        for websocket in list(self._websockets):
            await websocket.close(
                code=CLOSE_BASE + Code.SHUTDOWN, message=close_reason("the service stops")
            )

    @web.middleware
    async def _answer(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """The boundary: whatever goes wrong leaves here as one JSON error."""
        try:
            return await handler(request)
        except ApiError as exc:
            return _error(exc.status, exc.error, exc.description)
        except web.HTTPException as exc:
            name = _RENAMED.get(exc.status) or HTTPStatus(exc.status).name
            response = _error(exc.status, name, exc.reason)
            if isinstance(exc, web.HTTPMethodNotAllowed):
                response.headers["Allow"] = ", ".join(sorted(exc.allowed_methods))
            return response
        except RegistryConflict as exc:
            return _error(409, "CONFLICT", str(exc))
        except RegistryError as exc:
            self._log.error("registry_failed", path=request.path, reason=exc)
            return _error(503, "REGISTRY_UNAVAILABLE", str(exc))
        except ConnectionError:
            raise
        except Exception:
            self._log.exception("request_failed", path=request.path)
            return _error(500, "INTERNAL", "our own fault; the log says more")

    # Reading the registry.

    async def _healthz(self, _: web.Request) -> web.Response:
        await self._registry.gateway("")
        return _json({"status": "ok", "version": __version__})

    async def _gateways(self, _: web.Request) -> web.Response:
        return _json([self._gateway_json(gateway) for gateway in await self._registry.gateways()])

    async def _devices(self, request: web.Request) -> web.Response:
        query = _query(
            request, "$top", "$skip", "$count", "guid", "hostname", "gateway", "state", "status"
        )
        top = _number(query, "$top", 100000, 100000)
        skip = _number(query, "$skip", 0, 10**9)
        prefix = query.get("guid", "")
        if not _GUID_PREFIX.fullmatch(prefix):
            raise ApiError(400, "BAD_REQUEST", "guid must be the beginning of a UUID")
        wanted = prefix.replace("-", "").lower()
        found = [
            shown
            for device in await self._registry.devices()
            if device.uuid.hex.startswith(wanted)
            if device.hostname == query.get("hostname", device.hostname)
            if device.gateway == query.get("gateway", device.gateway)
            if device.state == query.get("state", device.state)
            if str(int((shown := self._device_json(device))["connectionStatus"]))
            == query.get("status", str(int(shown["connectionStatus"])))
        ]
        page = found[skip : skip + top]
        if query.get("$count") == "true":
            return _json({"data": page, "totalCount": len(found)})
        return _json(page)

    async def _stats(self, _: web.Request) -> web.Response:
        devices = [self._device_json(device) for device in await self._registry.devices()]
        connected = sum(device["connectionStatus"] for device in devices)
        return _json(
            {
                "totalCount": len(devices),
                "connectedCount": connected,
                "disconnectedCount": len(devices) - connected,
                "contestedCount": sum(device["contested"] for device in devices),
            }
        )

    async def _device(self, request: web.Request) -> web.Response:
        return _json(self._device_json(await self._find(request.match_info["guid"])))

    async def _candidates(self, _: web.Request) -> web.Response:
        return _json([self._host_json(host) for host in await self._registry.candidates()])

    async def _audit(self, request: web.Request) -> web.Response:
        query = _query(request, "guid", "limit")
        uuid = (await self._find(query["guid"])).uuid if "guid" in query else None
        limit = _number(query, "limit", 100, 10000)
        return _json(
            [
                {
                    "id": entry.id,
                    "at": _time(entry.at),
                    "actor": entry.actor,
                    "action": entry.action,
                    "gateway": entry.gateway,
                    "guid": None if entry.uuid is None else str(entry.uuid),
                    "detail": entry.detail,
                }
                for entry in await self._registry.audit_entries(uuid=uuid, limit=limit)
            ]
        )

    # Changing it.

    async def _add_gateway(self, request: web.Request) -> web.Response:
        body = await _decode(request, GatewayRequest)
        at = self._clock()
        try:
            bundle = self._authority.gateway_bundle(body.name, at)
        except ValueError as exc:
            raise ApiError(400, "BAD_REQUEST", str(exc)) from exc
        await self._registry.add_gateway(
            bundle.name, bundle.fingerprint, at, replace=body.replace, actor=_actor(request)
        )
        return _json(
            {
                "name": bundle.name,
                "certificate": bundle.certificate,
                "key": bundle.key,
                "ca": bundle.ca,
                "fingerprint": bundle.fingerprint,
                "serverNames": self._server_names,
            },
            status=201,
        )

    async def _invite(self, request: web.Request) -> web.Response:
        if self._enrolment is None:
            raise ApiError(409, "ENROLMENT_OFF", "the service was started without --enrol")
        body = await _decode(request, EnrolmentRequest)
        try:
            invitation = await self._enrolment.invitation(
                request.match_info["name"],
                actor=_actor(request),
                expiry=body.expiry,
                replace=body.replace,
                names=self._server_names,
            )
        except ValueError as exc:
            raise ApiError(400, "BAD_REQUEST", str(exc)) from exc
        return _json(invitation, status=201)

    async def _forget(self, request: web.Request) -> web.Response:
        device = await self._find(request.match_info["guid"])
        await self._registry.forget(device.uuid, self._clock(), actor=_actor(request))
        return web.Response(status=204)

    async def _unpin(self, request: web.Request) -> web.Response:
        device = await self._find(request.match_info["guid"])
        changed = await self._registry.unpin(device.uuid, self._clock(), actor=_actor(request))
        return _json(self._device_json(changed or device))

    # Calls.

    async def _call(self, request: web.Request) -> web.Response:
        device = await self._find(request.match_info["guid"])
        body = await _decode(request, CallRequest)
        return await self._once(request, lambda: self._call_response(device, body, _actor(request)))

    async def _call_response(self, device: Device, body: CallRequest, actor: str) -> web.Response:
        result = await self._run_on_device(device, body, actor)
        return _json(
            {
                "ok": True,
                "function": body.function,
                "result": _body(result),
                "elapsed": result.elapsed,
                "exchanges": result.exchanges,
            }
        )

    async def _power_state(self, request: web.Request) -> web.Response:
        device = await self._find(request.match_info["guid"])
        body = CallRequest("power.get", credential=_header_login(request))
        result = await self._run_on_device(device, body, _actor(request))
        return _json({"powerstate": _member(result, "power_state")})

    async def _power_action(self, request: web.Request) -> web.Response:
        device = await self._find(request.match_info["guid"])
        action = (await _decode(request, ActionRequest)).action
        body = CallRequest(
            "power.set", arguments={"state": action}, credential=_header_login(request)
        )

        async def act() -> web.Response:
            await self._run_on_device(device, body, _actor(request))
            return _json({"Body": {"ReturnValue": 0, "ReturnValueStr": "SUCCESS"}})

        return await self._once(request, act)

    async def _run_on_device(self, device: Device, body: CallRequest, actor: str) -> Result:
        place = _Place(device.gateway, device.mac, device, None)
        result = await self._run(place, body, actor)
        at = self._clock()
        proved = body.function == "identity.get" and _uuid_of(result) == device.uuid
        try:
            if proved and device.mac and await self._registry.host(device.gateway, device.mac):
                await self._registry.identified(
                    device.gateway,
                    device.mac,
                    device.uuid,
                    at,
                    actor=actor,
                    realm=_realm_of(result),
                )
            if body.credential is not None:
                tls = TlsMode[body.tls.upper()] if body.tls else None
                await self._registry.call_succeeded(device.uuid, at, tls=tls)
        except (RegistryError, RegistryConflict) as exc:
            # The call has been done, and that is what its caller must hear.
            self._log.error("registry_failed", device=device.uuid, reason=exc)
        return result

    async def _identify(self, request: web.Request) -> web.Response:
        gateway = request.match_info["gateway"]
        try:
            mac = parse_mac(request.match_info["mac"])
        except ValueError as exc:
            raise ApiError(400, "BAD_REQUEST", str(exc)) from exc
        host = await self._registry.host(gateway, mac)
        if host is None:
            raise ApiError(404, "NOT_FOUND", f"gateway {gateway} never reported {format_mac(mac)}")
        body = await _decode(request, IdentifyRequest)
        call = CallRequest(
            "identity.get",
            credential=body.credential,
            allow_password=body.allow_password,
            tls=body.tls,
            deadline=body.deadline,
        )
        actor = _actor(request)
        result = await self._run(_Place(gateway, mac, None, host), call, actor)
        uuid = _uuid_of(result)
        if uuid is None or uuid == NO_UUID:
            raise ApiError(502, "DEVICE_ANSWER", "the device did not tell its UUID")
        device = await self._registry.identified(
            gateway, mac, uuid, self._clock(), actor=actor, realm=_realm_of(result)
        )
        return _json(self._device_json(device), status=201)

    async def _run(self, place: _Place, body: CallRequest, actor: str) -> Result:
        """One call through the gateway's session; ApiError for everything but success."""
        known = place.known
        session = self._session(place.gateway)
        if place.mac is None:
            raise ApiError(
                409, "MAC_UNKNOWN", "the gateway has not told this device's MAC yet; wait for it"
            )
        if body.function in _SAYS_WHO:
            body.arguments.setdefault("by", actor[:64])
        arguments = msgspec.json.encode(body.arguments)
        if len(arguments) > MAX_ARGUMENTS:
            raise ApiError(
                413,
                "REQUEST_ENTITY_TOO_LARGE",
                f"arguments of {len(arguments)} bytes, maximum {MAX_ARGUMENTS}",
            )
        tls = TlsMode[body.tls.upper()] if body.tls else _tls_of(known)
        if known.pin != NO_PIN and tls is TlsMode.OFF:
            raise ApiError(
                409,
                "TLS_PIN",
                "this device was seen with TLS and is not spoken to in plain; unpin it first",
            )
        credential = _credential(known, body)
        uuid = place.device.uuid if place.device else NO_UUID
        outcome = "unknown"
        try:
            result = await session.call(
                function=body.function,
                arguments=arguments,
                address=known.address,
                mac=place.mac,
                uuid=uuid,
                credential=credential,
                tls=tls,
                pin=known.pin,
                deadline=body.deadline,
            )
            outcome = result.code.name.lower()
        except LinkLost as exc:
            raise ApiError(504, "OUTCOME_UNKNOWN", str(exc)) from exc
        except AmtError as exc:
            outcome = exc.code.name.lower()
            raise ApiError(_STATUS.get(exc.code, 502), exc.code.name, str(exc)) from exc
        finally:
            detail = {
                "function": body.function,
                "mac": format_mac(place.mac),
                "user": credential.username,
                "outcome": outcome,
            }
            await self._record(actor, "call", place.gateway, place.device, detail)
        if result.code is not Code.OK:
            raise ApiError(
                _STATUS.get(result.code, HTTPStatus.BAD_GATEWAY),
                result.code.name,
                _description(result),
            )
        return result

    async def _once(
        self, request: web.Request, act: Callable[[], Awaitable[web.Response]]
    ) -> web.Response:
        """With an Idempotency-Key a request acts once; its repetition gets the same answer."""
        key = request.headers.get("Idempotency-Key", "")
        if not key:
            return await act()
        if len(key) > 255:
            raise ApiError(400, "BAD_REQUEST", "Idempotency-Key of more than 255 characters")
        text = f"{request.method} {request.path}\n".encode() + await request.read()
        fingerprint = hmac.digest(self._salt, text, hashlib.sha256)
        if key in self._answers:
            known, answer = self._answers[key]
            if known != fingerprint:
                raise ApiError(422, "KEY_REUSED", "this Idempotency-Key was another request's")
            return _copy(await asyncio.shield(answer))
        answer = asyncio.get_running_loop().create_future()
        self._answers[key] = (fingerprint, answer)
        while len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)
        try:
            response = await act()
        except ApiError as exc:
            response = _error(exc.status, exc.error, exc.description)
        except BaseException:
            # Nobody knows what was done; a waiting repetition is told so.
            answer.set_result(_error(504, "OUTCOME_UNKNOWN", "the first request was broken off"))
            raise
        answer.set_result(response)
        return _copy(response)

    # Streams.

    async def _webrelay(self, request: web.Request) -> web.StreamResponse:
        query = _query(request, "p", "host", "port", "tls", "tls1only", "mode", "hold")
        if query.get("p", "2") != "2":
            raise ApiError(400, "BAD_REQUEST", "p must be 2 (redirection)")
        if query.get("tls", "0") != "0":
            raise ApiError(
                400, "BAD_REQUEST", "tls must be 0: TLS runs end to end between tool and device"
            )
        port = _number(query, "port", 16994, 65535)
        device = await self._find(query.get("host", ""))
        session = self._session(device.gateway)
        if device.mac is None:
            raise ApiError(409, "MAC_UNKNOWN", "the gateway has not told this device's MAC yet")
        target = StreamTarget(
            device.address, port, device.mac, device.uuid, hold=query.get("hold", "0") == "1"
        )
        websocket = web.WebSocketResponse(
            timeout=SHUTDOWN_TIMEOUT,
            protocols=(SUBPROTOCOL,),
            compress=False,
            max_msg_size=MAX_MESSAGE,
        )
        if not websocket.can_prepare(request):
            raise ApiError(426, "UPGRADE_REQUIRED", "this is a WebSocket")
        await websocket.prepare(request)
        actor = _actor(request)
        await self._record_stream(actor, "stream.open", device, target, None)
        self._websockets.add(websocket)
        ending = Ending(Code.CANCELLED, "broken off")
        try:
            ending = await WebRelay(websocket, query.get("mode", "")).run(session, target)
        finally:
            self._websockets.discard(websocket)
            await self._record_stream(actor, "stream.close", device, target, ending)
        return websocket

    async def _record_stream(
        self, actor: str, action: str, device: Device, target: StreamTarget, ending: Ending | None
    ) -> None:
        detail: dict[str, Any] = {"port": target.port}
        if ending is not None:
            detail |= {
                "code": ending.code.name.lower(),
                "reason": ending.reason,
                "toDevice": ending.to_device,
                "fromDevice": ending.from_device,
            }
        self._log.info(
            action.replace(".", "_"), device=device.uuid, gateway=device.gateway, **detail
        )
        await self._record(actor, action, device.gateway, device, detail)

    async def _record(
        self, actor: str, action: str, gateway: str, device: Device | None, detail: dict[str, Any]
    ) -> None:
        uuid = device.uuid if device else None
        try:
            await self._registry.audit(
                actor, action, self._clock(), gateway=gateway, uuid=uuid, detail=detail
            )
        except RegistryError as exc:
            # A full disk must not keep a technician from a dead PC: the log has the entry then.
            self._log.error("audit_failed", action=action, actor=actor, reason=exc, **detail)

    # What the routes share.

    async def _find(self, text: str) -> Device:
        if not _GUID.fullmatch(text):
            raise ApiError(400, "BAD_REQUEST", "a device is named by its UUID")
        device = await self._registry.device(UUID(text))
        if device is None:
            raise ApiError(404, "NOT_FOUND", f"no device {text.lower()}")
        return device

    def _session(self, gateway: str) -> SessionSeam:
        session = self._sessions.locate(gateway)
        if session is None or not session.connected:
            raise ApiError(503, "GATEWAY_OFFLINE", f"gateway {gateway} is not connected")
        return session

    def _is_connected(self, gateway: str) -> bool:
        session = self._sessions.locate(gateway)
        return session is not None and session.connected

    def _gateway_json(self, gateway: Gateway) -> dict[str, Any]:
        session = self._sessions.locate(gateway.name)
        return {
            "name": gateway.name,
            "tenantId": gateway.tenant,
            "connectionStatus": session is not None and session.connected,
            "address": gateway.address,
            "port": gateway.port,
            "software": gateway.software,
            "fingerprint": gateway.fingerprint,
            "rtt": session.rtt if session is not None else None,
            "firstLink": _time(gateway.first_link),
            "lastLink": _time(gateway.last_link),
            "lastDisconnected": _time(gateway.unlinked_at),
            "revoked": gateway.revoked_at is not None,
        }

    def _device_json(self, device: Device) -> dict[str, Any]:
        claim = {
            "reason": device.claim_reason,
            "gateway": device.claim_gateway,
            "mac": _mac(device.claim_mac),
            "address": device.claim_address,
            "at": _time(device.claim_at),
        }
        return {
            "guid": str(device.uuid),
            "tenantId": device.tenant,
            "hostname": device.hostname,
            "connectionStatus": self._is_connected(device.gateway) and device.gone_at is None,
            "state": device.state.value,
            "contested": device.contested,
            "claim": claim if device.contested else None,
            "address": str(device.address),
            "mac": _mac(device.mac),
            "gateway": device.gateway,
            "gatewayAddress": device.gateway_address,
            "gatewayPort": device.gateway_port,
            "source": device.source.value,
            "firstSeen": _time(device.first_seen),
            "lastSeen": _time(device.last_seen),
            "lastAnswer": _time(device.answered_at),
            "gone": _time(device.gone_at),
            "proved": _time(device.proved_at),
            "realm": device.realm,
            "server": device.server,
            "ports": list(device.ports),
            "tls": _tls_of(device).name.lower(),
            "pin": device.pin.hex() if device.pin != NO_PIN else None,
        }

    def _host_json(self, host: Host) -> dict[str, Any]:
        return {
            "gateway": host.gateway,
            "mac": format_mac(host.mac),
            "address": str(host.address),
            "hostname": host.hostname,
            "connectionStatus": self._is_connected(host.gateway) and host.gone_at is None,
            "provisioning": host.provisioning.name.lower(),
            "ports": list(host.ports),
            "realm": host.realm,
            "server": host.server,
            "pin": host.pin.hex() if host.pin != NO_PIN else None,
            "lastAnswer": _time(host.answered_at),
            "leaseUntil": _time(host.lease_until),
            "gone": _time(host.gone_at),
        }


def unix_socket(path: Path) -> socket.socket:
    """A listening unix socket of mode 0600; ConfigError when another service answers on it."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The mode must hold from the first moment, and only the umask can do that.
        mask = os.umask(0o177)
        try:
            sock.bind(str(path))
            sock.listen(128)
        except OSError:
            sock.close()
            raise
        finally:
            os.umask(mask)
    except OSError as exc:
        raise ConfigError(str(path), "api", exc.strerror or str(exc)) from exc
    sock.setblocking(False)
    return sock


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another service answers here")


async def _decode(request: web.Request, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise ApiError(400, "BAD_REQUEST", f"body: {str(exc)[:300]}") from exc


def _query(request: web.Request, *known: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known:
            raise ApiError(400, "BAD_REQUEST", f"unknown parameter {name[:40]!r}")
        query[name] = value
    return query


def _number(query: dict[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) > most:
        raise ApiError(400, "BAD_REQUEST", f"{name} must be a number up to {most}")
    return int(text)


def _header_login(request: web.Request) -> Login | None:
    header = request.headers.get("AMT-Authorization")
    if header is None:
        return None
    scheme, _, value = header.partition(" ")
    try:
        if scheme.lower() != "basic":
            raise ValueError("scheme is not Basic")
        username, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        return Login(username, password)
    except (ValueError, binascii.Error) as exc:
        raise ApiError(400, "BAD_REQUEST", "AMT-Authorization must be Basic user:password") from exc


def _credential(known: Device | Host, body: CallRequest) -> Credential:
    """HA1 for the recorded realm; the password itself only where allowed and needed."""
    login = body.credential
    if login is None:
        return Credential()
    if known.realm:
        secret = ha1(login.username, known.realm, login.password)
        # In mode challenge the session keeps the secret and answers the device's nonces itself.
        return Credential(CredentialMode[login.mode.upper()], login.username, secret, known.realm)
    if body.allow_password:
        return Credential(CredentialMode.PASSWORD, login.username, login.password)
    if isinstance(known, Device) and known.state is State.SETUP:
        raise ApiError(
            409, "NOT_PROVISIONED", "the device is in setup mode: not provisioned, no login yet"
        )
    raise ApiError(
        409,
        "REALM_UNKNOWN",
        "the device has not told its digest realm yet; allow_password sends the password itself",
    )


def _tls_of(known: Device | Host) -> TlsMode:
    return known.tls if isinstance(known, Device) else TlsMode.AUTO


def _body(result: Result) -> Any:
    try:
        return msgspec.json.decode(result.body)
    except (msgspec.MsgspecError, RecursionError):
        return {"error": result.body[:1000].decode(errors="replace")}


def _member(result: Result, name: str) -> Any:
    body = _body(result)
    return body.get(name) if isinstance(body, dict) else None


def _uuid_of(result: Result) -> UUID | None:
    text = _member(result, "uuid")
    return UUID(text) if isinstance(text, str) and _GUID.fullmatch(text) else None


def _realm_of(result: Result) -> str:
    realm = _member(result, "realm")
    return realm if isinstance(realm, str) else ""


def _description(result: Result) -> str:
    """What the gateway says about a call that failed: `{"error": ..., "detail": ...}`."""
    error, detail = _member(result, "error"), _member(result, "detail")
    texts = [str(text)[:1000] for text in (error, detail) if text]
    return ": ".join(texts) or result.code.name.lower().replace("_", " ")


def _actor(request: web.Request) -> str:
    """The user at the other end of the unix socket."""
    peer = request.get_extra_info("socket")
    if peer is None or peer.family != socket.AF_UNIX:
        return "unknown"
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json"
    )


def _error(status: int, error: str, description: str) -> web.Response:
    return _json({"error": error, "errorDescription": description}, status)


def _copy(response: web.Response) -> web.Response:
    """A response object can be sent only once."""
    return web.Response(status=response.status, body=response.body, content_type="application/json")


def _mac(mac: bytes | None) -> str | None:
    return None if mac is None or mac == NO_MAC else format_mac(mac)


def _time(at: float | None) -> str | None:
    if at is None:
        return None
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
