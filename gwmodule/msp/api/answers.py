"""What every answer of the API looks like: JSON, and one shape for everything that went wrong.

    {"error": "GATEWAY_OFFLINE", "errorDescription": "gateway home1 is not connected"}

`error` is what scripts match on, `errorDescription` a sentence for people.
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from gwmodule.errors import Code
from gwmodule.wire.notices import NO_MAC, format_mac

# Which HTTP status the code of a call becomes; every other code is a bad gateway.
STATUS = {
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


class ApiError(Exception):
    """An answer that says no. `retry_after` in seconds goes into the header of that name."""

    def __init__(
        self, status: int, error: str, description: str, *, retry_after: int | None = None
    ) -> None:
        super().__init__(description)
        self.status = status
        self.error = error
        self.description = description
        self.retry_after = retry_after

    def response(self) -> web.Response:
        response = error_response(self.status, self.error, self.description)
        if self.status == HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"  # RFC 9110 section 11.6.1
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(self.retry_after)
        return response


def bad_request(description: str) -> ApiError:
    return ApiError(400, "BAD_REQUEST", description)


def not_found(description: str) -> ApiError:
    return ApiError(404, "NOT_FOUND", description)


@contextmanager
def said_by_records() -> Iterator[None]:
    """What the records call a ValueError is what the caller has given: a bad request."""
    try:
        yield
    except ValueError as exc:
        raise bad_request(str(exc)[:300]) from exc


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json"
    )


async def list_response(
    parts: AsyncIterator[Sequence[Any]], total: Callable[[], int] | None = None
) -> web.Response:
    """A list that is made while it is read: who does not read costs one part of it.

    With `total`, asked at the end, a page as Open AMT gives it. The first part is made at once, so
    that what goes wrong there still has an answer; later the connection breaks off.
    """
    first = await anext(parts, None) or ()

    async def text() -> AsyncIterator[bytes]:
        yield (b"[" if total is None else b'{"data":[') + _members(first)
        begun = bool(first)
        async for part in parts:
            if part:
                yield (b"," if begun else b"") + _members(part)
                begun = True
        yield b"]" if total is None else b'],"totalCount":%d}' % total()

    return web.Response(body=text(), content_type="application/json")


def _members(part: Sequence[Any]) -> bytes:
    return msgspec.json.encode(part)[1:-1]


def error_response(status: int, error: str, description: str) -> web.Response:
    return json_response({"error": error, "errorDescription": description}, status)


def from_aiohttp(exc: web.HTTPException) -> web.Response:
    """What the framework itself refuses, in our shape."""
    name = _RENAMED.get(exc.status) or HTTPStatus(exc.status).name
    response = error_response(exc.status, name, exc.reason)
    if isinstance(exc, web.HTTPMethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(exc.allowed_methods))
    return response


def copy_of(response: web.Response) -> web.Response:
    """A response object can be sent only once."""
    return web.Response(status=response.status, body=response.body, content_type="application/json")


def mac_text(mac: bytes | None) -> str | None:
    return None if mac is None or mac == NO_MAC else format_mac(mac)


def time_text(at: float | None) -> str | None:
    if at is None:
        return None
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
