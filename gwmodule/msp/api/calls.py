"""Calls: one function on one device through its gateway's session, audited, at most once.

The login comes with the request, in its body or (Open AMT's paths have no room there) in the
header `AMT-Authorization: Basic ...`; else the stored one is used. It becomes HA1 for the recorded
realm at once; neither it nor HA1 is logged.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from uuid import UUID

import msgspec
from aiohttp import web

from gwmodule.amt.digest import ha1
from gwmodule.amt.functions import CATALOGUE
from gwmodule.amt.functions.power import ENDS_SESSIONS
from gwmodule.errors import AmtError, BadArgument, Code, LinkLost
from gwmodule.msp.accounts import Principal, Role
from gwmodule.msp.api.answers import (
    STATUS,
    ApiError,
    bad_request,
    copy_of,
    error_response,
    time_text,
)
from gwmodule.msp.api.asking import GUID, Asked, actor_of
from gwmodule.msp.api.events import Events
from gwmodule.msp.api.once import Answers, UsedKeys
from gwmodule.msp.api.payloads import CallRequest, Login
from gwmodule.msp.database import RegistryError
from gwmodule.msp.records import NO_PIN, Device, Host, State
from gwmodule.msp.registry import Registry, RegistryConflict
from gwmodule.msp.seam import SessionSeam, SessionsSeam
from gwmodule.msp.vault import Vault
from gwmodule.telemetry import EventLog
from gwmodule.wire.frames import CredentialMode, TlsMode
from gwmodule.wire.messages import Credential, Progress, Result
from gwmodule.wire.notices import NO_UUID, format_mac

# A call is one frame of 16 KiB: what its head and two texts of 255 bytes leave.
MAX_ARGUMENTS = 15 * 1024
# What closes other technicians' streams tells them whose doing it is.
_SAYS_WHO = frozenset({"power.set"})
# Arguments that are never in the audit: who is its actor; the others may hold a secret.
_UNTOLD = frozenset({"by", "code", "data", "url"})
MAX_TOLD = 64
# These can change the device's own accounts, and so outlive every right that we could take away.
_RAW_WRITES = frozenset({"wsman.put", "wsman.invoke"})
_POWER_STATE = next(a for a in CATALOGUE["power.set"].arguments if a.name == "state")
_CALL_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Held:
    """A stream to a device that somebody has open; `since` in unix seconds."""

    holder: str
    since: float


@dataclass(slots=True)
class Place:
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


@dataclass(slots=True)
class _Running:
    actor: str
    scope: asyncio.Timeout
    cancelled_by: str = ""


class Calls:
    def __init__(
        self,
        registry: Registry,
        sessions: SessionsSeam,
        vault: Vault,
        events: Events,
        used_keys: UsedKeys,
        clock: Callable[[], float],
        observe: Callable[[str, str, float], None] = lambda function, result, seconds: None,
        held: Callable[[str, UUID], Sequence[Held]] = lambda tenant, device: (),
    ) -> None:
        self._registry = registry
        self._sessions = sessions
        self._vault = vault
        self._events = events
        self._used_keys = used_keys
        self._clock = clock
        self._observe = observe
        self._held = held
        self._log = EventLog("gwmodule.msp.api")
        self._running: dict[tuple[str, str], _Running] = {}
        self._answers = Answers()
        # Request bodies hold passwords; what is kept to compare them with must not.
        self._salt = secrets.token_bytes(16)

    # Running.

    async def on_device(self, asked: Asked, device: Device, body: CallRequest) -> Result:
        """The result of a call that succeeded, and what the registry learns from it."""
        place = Place(device.gateway, device.mac, device, None)
        result = await self.run(asked, place, body)
        at = self._clock()
        proved = body.function == "identity.get" and uuid_of(result) == device.uuid
        try:
            if proved and device.mac and await self._registry.host(device.gateway, device.mac):
                await self._registry.identified(
                    device.gateway,
                    device.mac,
                    device.uuid,
                    at,
                    actor=asked.actor,
                    realm=realm_of(result),
                )
            if body.credential is not None:
                tls = TlsMode[body.tls.upper()] if body.tls else None
                await self._registry.call_succeeded(device.uuid, at, tls=tls, tenant=device.tenant)
        except (RegistryError, RegistryConflict) as exc:
            # The call has been done, and that is what its caller must hear.
            self._log.error("registry_failed", device=device.uuid, reason=exc)
        return result

    async def run(self, asked: Asked, place: Place, body: CallRequest) -> Result:
        """One call through the gateway's session; ApiError for everything but success."""
        self.check_role(asked, body.function)
        if place.device is not None:
            self._check_free(asked, place.device, body)
        known = place.known
        session = session_of(self._sessions, place.gateway)
        if place.mac is None:
            raise ApiError(
                409, "MAC_UNKNOWN", "the gateway has not told this device's MAC yet; wait for it"
            )
        arguments = _arguments(body, asked.actor)
        tls = TlsMode[body.tls.upper()] if body.tls else tls_of(known)
        if known.pin != NO_PIN and tls is TlsMode.OFF:
            raise ApiError(
                409,
                "TLS_PIN",
                "this device was seen with TLS and is not spoken to in plain; unpin it first",
            )
        if body.credential is None:
            body.credential = _header_login(asked.http) or await self._stored(asked, place)
        credential = _credential(known, body)
        uuid = place.device.uuid if place.device else NO_UUID
        outcome = "unknown"
        with self._announced(asked, place, body.function) as (running, on_progress):
            await self._begin(asked)
            started = asyncio.get_running_loop().time()
            try:
                async with running.scope:
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
                        on_progress=on_progress,
                    )
                outcome = result.code.name.lower()
            except TimeoutError as exc:
                raise ApiError(
                    409, "CANCELLED", f"cancelled by {running.cancelled_by}; what was sent is done"
                ) from exc
            except LinkLost as exc:
                raise ApiError(504, "OUTCOME_UNKNOWN", str(exc)) from exc
            except AmtError as exc:
                outcome = exc.code.name.lower()
                raise ApiError(STATUS.get(exc.code, 502), exc.code.name, str(exc)) from exc
            finally:
                self._observe(
                    body.function if body.function in CATALOGUE else "other",
                    outcome,
                    asyncio.get_running_loop().time() - started,
                )
                detail = {
                    "function": body.function,
                    "mac": format_mac(place.mac),
                    "user": credential.username,
                    "outcome": outcome,
                }
                if told := _told(body):
                    detail["arguments"] = told
                await self.record(asked.principal, "call", place.gateway, place.device, detail)
        if result.code is not Code.OK:
            raise ApiError(
                STATUS.get(result.code, HTTPStatus.BAD_GATEWAY),
                result.code.name,
                description_of(result),
            )
        return result

    def check_role(self, asked: Asked, function: str) -> None:
        if function in _RAW_WRITES and not asked.principal.role.covers(Role.ADMIN):
            raise ApiError(403, "FORBIDDEN", f"{function} needs role {Role.ADMIN}")

    def _check_free(self, asked: Asked, device: Device, body: CallRequest) -> None:
        """The gateway closes what is in the way of a power action, whosever it is."""
        if not _ends_streams(body) or body.arguments.get("force") is True:
            return
        for stream in self._held(device.tenant, device.uuid):
            if stream.holder != asked.actor:
                since = time_text(stream.since)
                raise ApiError(
                    409, "BUSY", f"held by {stream.holder} since {since}; force closes it"
                )

    async def _stored(self, asked: Asked, place: Place) -> Login | None:
        uuid = place.device.uuid if place.device else None
        stored = await self._vault.load(asked.tenant, uuid)
        return None if stored is None else Login(stored.username, stored.password, stored.mode)

    # Watching and cancelling.

    @contextmanager
    def _announced(
        self, asked: Asked, place: Place, function: str
    ) -> Iterator[tuple[_Running, Callable[[Progress], None]]]:
        name = asked.http.headers.get("Call-Id", "") or secrets.token_hex(8)
        if not _CALL_ID.fullmatch(name):
            raise bad_request("Call-Id must be 1 to 64 letters, digits, dots, dashes")
        key = (asked.tenant, name)
        if key in self._running:
            raise ApiError(409, "CONFLICT", f"a call {name} is running")
        guid = str(place.device.uuid) if place.device else None

        def tell(state: str, **more: object) -> None:
            known = {"callId": name, "guid": guid, "function": function, "actor": asked.actor}
            self._events.publish(asked.tenant, "call", known | {"state": state, **more})

        def on_progress(progress: Progress) -> None:
            tell("progress", done=progress.done, total=progress.total, step=progress.step[:200])

        running = self._running[key] = _Running(asked.actor, asyncio.timeout(None))
        tell("started")
        try:
            yield running, on_progress
        finally:
            del self._running[key]
            tell("ended")

    def cancel(self, principal: Principal, name: str) -> bool:
        """False when the tenant has no such call; his own, or with role admin anybody's."""
        running = self._running.get((principal.tenant, name))
        if running is None:
            return False
        if running.actor != actor_of(principal) and not principal.role.covers(Role.ADMIN):
            raise ApiError(403, "FORBIDDEN", f"this call is {running.actor}'s")
        running.cancelled_by = actor_of(principal)
        running.scope.reschedule(asyncio.get_running_loop().time())
        return True

    # At most once.

    async def once(self, asked: Asked, act: Callable[[], Awaitable[web.Response]]) -> web.Response:
        """With an Idempotency-Key a request acts once; its repetition gets the same answer."""
        text = asked.http.headers.get("Idempotency-Key", "")
        if not text:
            return await act()
        if len(text) > 255:
            raise bad_request("Idempotency-Key of more than 255 characters")
        key = (asked.tenant, asked.actor, text)
        request = f"{asked.http.method} {asked.http.path}\n".encode() + await asked.http.read()
        fingerprint = hmac.digest(self._salt, request, hashlib.sha256)
        known = self._answers.find(*key)
        if known is not None:
            if known.fingerprint != fingerprint:
                raise ApiError(422, "KEY_REUSED", "this Idempotency-Key was another request's")
            return copy_of(await asyncio.shield(known.response))
        asked.idempotency_key = key
        answer = self._answers.begin(*key, fingerprint)
        # For a repetition that waits, should this request be broken off.
        response = error_response(504, "OUTCOME_UNKNOWN", "the first request was broken off")
        try:
            response = await act()
        except ApiError as exc:
            response = exc.response()
        finally:
            self._answers.end(asked.tenant, answer, response)
            if asked.idempotency_key is not None:
                # Nothing was sent, and the key is good for another attempt.
                self._answers.forget(*key)
        return copy_of(response)

    async def _begin(self, asked: Asked) -> None:
        """From here on something is sent: the first time is the only one for this key."""
        key, asked.idempotency_key = asked.idempotency_key, None
        if key is None:
            return
        try:
            is_first = await self._used_keys.use(*key, self._clock())
        except RegistryError as exc:
            # As with the audit: a full disk must not keep a technician from a dead PC. This
            # process knows the key, and only its successor would not.
            self._log.error("idempotency_key_failed", reason=exc)
            is_first = True
        if not is_first:
            raise ApiError(
                504,
                "OUTCOME_UNKNOWN",
                "this Idempotency-Key was used before, and its answer is not here any more:"
                " read the state before you repeat with a new key",
            )

    async def record(
        self,
        principal: Principal,
        action: str,
        gateway: str,
        device: Device | None,
        detail: dict[str, Any],
    ) -> None:
        uuid = device.uuid if device else None
        try:
            await self._registry.audit(
                actor_of(principal),
                action,
                self._clock(),
                gateway=gateway,
                uuid=uuid,
                detail=detail,
                tenant=principal.tenant,
            )
        except RegistryError as exc:
            # A full disk must not keep a technician from a dead PC: the log has the entry then.
            # As one field: a detail has names of its own, `reason` among them.
            self._log.error(
                "audit_failed",
                action=action,
                actor=actor_of(principal),
                reason=exc,
                gateway=gateway,
                device=uuid,
                detail=json.dumps(detail, default=str),
            )


def session_of(sessions: SessionsSeam, gateway: str) -> SessionSeam:
    session = sessions.locate(gateway)
    if session is None or not session.connected:
        raise ApiError(503, "GATEWAY_OFFLINE", f"gateway {gateway} is not connected")
    return session


def is_connected(sessions: SessionsSeam, gateway: str) -> bool:
    session = sessions.locate(gateway)
    return session is not None and session.connected


def tls_of(known: Device | Host) -> TlsMode:
    return known.tls if isinstance(known, Device) else TlsMode.AUTO


def body_of(result: Result) -> Any:
    try:
        return msgspec.json.decode(result.body)
    except (msgspec.MsgspecError, RecursionError):
        return {"error": result.body[:1000].decode(errors="replace")}


def member_of(result: Result, name: str) -> Any:
    body = body_of(result)
    return body.get(name) if isinstance(body, dict) else None


def uuid_of(result: Result) -> UUID | None:
    text = member_of(result, "uuid")
    return UUID(text) if isinstance(text, str) and GUID.fullmatch(text) else None


def realm_of(result: Result) -> str:
    realm = member_of(result, "realm")
    return realm if isinstance(realm, str) else ""


def description_of(result: Result) -> str:
    """What the gateway says about a call that failed: `{"error": ..., "detail": ...}`."""
    error, detail = member_of(result, "error"), member_of(result, "detail")
    texts = [str(text)[:1000] for text in (error, detail) if text]
    return ": ".join(texts) or result.code.name.lower().replace("_", " ")


def _ends_streams(body: CallRequest) -> bool:
    if body.function != "power.set":
        return False
    try:
        return _POWER_STATE.parse(body.arguments.get("state")) in ENDS_SESSIONS
    except BadArgument:
        # The gateway says so, in its own words.
        return False


def _arguments(body: CallRequest, actor: str) -> bytes:
    if body.function in _SAYS_WHO:
        body.arguments["by"] = actor[:64]
    try:
        arguments = msgspec.json.encode(body.arguments)
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        raise bad_request(f"arguments: {str(exc)[:300]}") from exc
    if len(arguments) > MAX_ARGUMENTS:
        raise ApiError(
            413,
            "REQUEST_ENTITY_TOO_LARGE",
            f"arguments of {len(arguments)} bytes, maximum {MAX_ARGUMENTS}",
        )
    return arguments


def _told(body: CallRequest) -> str:
    """The arguments of a call that changes something, for the audit."""
    function = CATALOGUE.get(body.function)
    if function is None or not function.changes_state:
        return ""
    given = {a.name: body.arguments.get(a.name) for a in function.arguments}
    return " ".join(
        f"{name}={str(value)[:MAX_TOLD]}"
        for name, value in given.items()
        if name not in _UNTOLD and isinstance(value, str | int)
    )


def _header_login(request: web.Request) -> Login | None:
    header = request.headers.get("AMT-Authorization")
    if header is None:
        return None
    scheme, _, value = header.partition(" ")
    try:
        if scheme.lower() != "basic":
            raise ValueError("scheme is not Basic")
        username, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        return msgspec.convert({"username": username, "password": password}, Login)
    except (ValueError, binascii.Error) as exc:
        raise bad_request("AMT-Authorization must be Basic user:password") from exc


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
