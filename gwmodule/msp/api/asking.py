"""One request as the handlers see it: who asks, and query and body as typed values."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from aiohttp import web

from gwmodule.msp.accounts import Principal
from gwmodule.msp.api.answers import ApiError, bad_request, not_found
from gwmodule.msp.api.routes import Route
from gwmodule.msp.api.tokens import Claims
from gwmodule.msp.records import Device
from gwmodule.msp.registry import Registry

# The largest request is a call with its arguments.
MAX_BODY = 64 * 1024
# A body this size needs one packet to forty; who takes longer holds a connection for nothing.
BODY_TIMEOUT = 10.0

GUID = re.compile(r"[0-9A-Fa-f]{8}(?:-?[0-9A-Fa-f]{4}){3}-?[0-9A-Fa-f]{12}")
_T = TypeVar("_T")


@dataclass(slots=True)
class Asked:
    """`token` is the redirection token that the request came with, spent when it is used;
    `idempotency_key` is tenant, actor and the header, until the request begins to act.
    """

    http: web.Request
    route: Route
    principal: Principal
    query: Any = None
    body: Any = None
    token: Claims | None = None
    idempotency_key: tuple[str, str, str] | None = None

    @property
    def tenant(self) -> str:
        return self.principal.tenant

    @property
    def actor(self) -> str:
        return actor_of(self.principal)

    def path(self, name: str) -> str:
        return self.http.match_info[name]


def actor_of(principal: Principal) -> str:
    """The name in the audit: a key must not pass for a person of the same name."""
    return f"key:{principal.name}" if principal.via == "key" else principal.name


async def body_of(request: web.Request, kind: type[_T]) -> _T:
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            data = await request.read()
    except TimeoutError as exc:
        raise ApiError(
            408, "REQUEST_TIMEOUT", f"the body did not come within {BODY_TIMEOUT:.0f} s"
        ) from exc
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise bad_request(f"body: {str(exc)[:300]}") from exc


def query_of(request: web.Request, kind: Any) -> Any:
    """The query as `kind`, or None for a route without one; whatever is unknown is refused."""
    given = request.query
    if kind is None:
        if given:
            raise bad_request(f"unknown parameter {next(iter(given))[:40]!r}")
        return None
    values = dict(given)
    if len(values) != len(given):
        raise bad_request("a parameter was given twice")
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise bad_request(f"query: {str(exc)[:300]}") from exc


def guid_of(text: str) -> UUID:
    if not GUID.fullmatch(text):
        raise bad_request("a device is named by its UUID")
    return UUID(text)


async def device_of(registry: Registry, tenant: str, text: str) -> Device:
    """The tenant's device; another tenant's does not exist."""
    device = await registry.device(guid_of(text), tenant=tenant)
    if device is None:
        raise not_found(f"no device {text.lower()}")
    return device
