"""The OpenAPI 3.1 document and docs/api.md, made from the table of routes and its types."""

from __future__ import annotations

from typing import Any, get_args, get_origin

import msgspec

from gwmodule import __version__
from gwmodule.msp.api import payloads as p
from gwmodule.msp.api.routes import NONE, ROUTES, Route, Scope

# What is longer goes below the table.
MAX_MEMBERS = 6
_TEMPLATE = "#/components/schemas/{name}"
_PATH_SCHEMAS: dict[str, Any] = {
    "guid": p.Guid,
    "mac": p.Mac,
    "name": p.Name,
    "gateway": p.Name,
    "tenant": p.Name,
    "user": p.UserName,
}
_HEADERS = {
    "Idempotency-Key": "repeat the request with the same key within a day and it acts once",
    "Call-Id": "a name for the call, to watch it by /api/v1/events and to cancel it",
    "AMT-Authorization": "Basic: the device's login, where none is stored",
}
_TAGS = (
    ("/api/v1/amt/", "AMT"),
    ("/api/v1/authorize", "Auth"),
    ("/api/v1/devices", "Devices"),
    ("/api/v1/candidates", "Devices"),
    ("/api/v1/gateways", "Gateways"),
    ("/relay/", "Streams"),
)


def document() -> dict[str, Any]:
    """The whole document; it needs no running service."""
    types = sorted(_types(), key=repr)
    schemas, components = msgspec.json.schema_components(types, ref_template=_TEMPLATE)
    by_type = dict(zip(map(_key, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(
            route, by_type, components
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gwmodule-msp",
            "version": __version__,
            "description": "Remote repair of PCs through Intel AMT. Paths below /api/v1/amt and"
            " most of /api/v1/devices are Open AMT MPS's.",
            "license": {"name": "GPL-2.0-or-later", "identifier": "GPL-2.0-or-later"},
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A JWT from /api/v1/authorize, or an API key (gwm_...)",
                },
            },
        },
    }


def _types() -> list[Any]:
    found: dict[str, Any] = {_key(p.Error): p.Error}
    for route in ROUTES:
        for kind in (route.query, route.body, route.answer):
            if kind not in (None, NONE):
                found[_key(kind)] = kind
    for name in {name for route in ROUTES for name in route.parameters}:
        kind = _PATH_SCHEMAS.get(name, str)
        found[_key(kind)] = kind
    return list(found.values())


def _key(kind: Any) -> str:
    return repr(kind)


def _operation(route: Route, by_type: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    needs = "everybody" if route.role is None else f"role {route.role}"
    operation: dict[str, Any] = {
        "operationId": route.handler,
        "summary": route.summary,
        "description": f"For {needs}. About {route.scope.value}.",
        "tags": [next((tag for path, tag in _TAGS if route.path.startswith(path)), "Service")],
        "parameters": [*_path_parameters(route, by_type), *_query_parameters(route, components)],
        "responses": _responses(route, by_type),
    }
    if route.acts:
        operation["parameters"] += [
            {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
            for name, text in _HEADERS.items()
        ]
    if route.role is None:
        operation["security"] = []
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": by_type[_key(route.body)]}},
        }
    return operation


def _path_parameters(route: Route, by_type: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": by_type[_key(_PATH_SCHEMAS.get(name, str))],
        }
        for name in route.parameters
    ]


def _query_parameters(route: Route, components: dict[str, Any]) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    schema = components[route.query.__name__]
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": member}
        for name, member in schema["properties"].items()
    ]


def _responses(route: Route, by_type: dict[str, Any]) -> dict[str, Any]:
    good: dict[str, Any] = {"description": route.summary}
    if route.answer is not NONE:
        good["content"] = {route.media: {"schema": by_type[_key(route.answer)]}}
    error = {"application/json": {"schema": by_type[_key(p.Error)]}}
    return {
        str(route.status): good,
        "default": {"description": "Refused or failed: error and sentence", "content": error},
    }


# docs/api.md.

_HEAD = """\
# HTTP API

Made from the table of routes (`gwmodule/msp/api/routes.py`); a test compares it. The
machine-readable form is OpenAPI 3.1: `gwmodule-msp openapi`, or `GET /api/v1/openapi.json` of a
running service.

- **Who asks**: on the unix socket the local user (admin; the tenant in `X-Tenant`, default
  `default`); over TCP `Authorization: Bearer TOKEN`, a JWT from `POST /api/v1/authorize` or an API
  key `gwm_...`. A WebSocket may instead offer a redirection token as its subprotocol. No token is
  ever part of a URL.
- **Roles**: viewer, technician, admin; each may do what the one before it may. What belongs to
  another tenant does not exist (404).
- **Errors**: always `{"error": "NAME", "errorDescription": "a sentence"}`. `error` is for programs.
- **At most once**: routes marked *acts* take `Idempotency-Key`; for a day a repetition does not act
  again, on whatever node and after a restart. It gets the first answer while the process that gave
  it has it (the last 256 of a tenant, 8 MiB), else 504 `OUTCOME_UNKNOWN`: read the state before
  you repeat with a new key. What failed before anything was sent uses no key up. If the gateway's
  session is lost before the result, the answer is the same 504, and nothing repeats the call by
  itself.
- **Calls** take a `Call-Id` of the caller's choice; progress comes as event `call` of
  `/api/v1/events`, and `DELETE /api/v1/calls/{id}` cancels. The device's login is the body's
  `credential`, or `AMT-Authorization: Basic`, or the stored one.
- **Bodies** are JSON of at most 64 KiB; unknown fields and parameters are refused.

| route | for | body or query | answer | what |
|---|---|---|---|---|
"""


def markdown() -> str:
    rows = "".join(_row(route) for route in ROUTES)
    large: dict[str, Any] = {}
    for route in ROUTES:
        for kind in (route.answer, *get_args(route.answer)):
            if _is_large(kind):
                large[kind.__name__] = kind
    types = "".join(f"| `{name}` | {_fields(kind)} |\n" for name, kind in large.items())
    return f"{_HEAD}{rows}\n## Types\n\n| type | members |\n|---|---|\n{types}"


def _row(route: Route) -> str:
    who = "everybody" if route.role is None else str(route.role)
    if route.scope is Scope.OPERATOR:
        who = "unix socket"
    elif route.scope is Scope.SERVICE:
        who = f"{who} of tenant default"
    given = route.body or route.query
    summary = f"{route.summary} *(acts)*" if route.acts else route.summary
    cells = (
        f"`{route.method} {route.path}`",
        who,
        _members(given),
        f"{route.status} {_members(route.answer)}".strip(),
        summary,
    )
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def _members(kind: Any) -> str:
    """The members of a type as a reader wants them: optional ones with a question mark."""
    if kind in (None, NONE):
        return ""
    if kind is str:
        return "text"
    if _is_large(kind):
        return f"`{kind.__name__}`"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _fields(kind)
    arguments = get_args(kind)
    if get_origin(kind) is list:
        inner = _members(arguments[0])
        return f"list of {inner}"
    if get_origin(kind) is dict:
        return "object"
    return " or ".join(_members(part) for part in arguments)


def _fields(kind: Any) -> str:
    fields = msgspec.structs.fields(kind)
    names = (field.encode_name + ("" if field.required else "?") for field in fields)
    return f"`{{{', '.join(names)}}}`"


def _is_large(kind: Any) -> bool:
    """Too many members for a cell of a table; a query's are not worth a name of their own."""
    if not isinstance(kind, type) or not issubclass(kind, p.Answer):
        return False
    return len(msgspec.structs.fields(kind)) > MAX_MEMBERS
