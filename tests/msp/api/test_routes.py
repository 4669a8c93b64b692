"""Every route x everybody who must not use it, from the table of routes."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import jwt
import pytest

from gwmodule.msp.accounts import Role
from gwmodule.msp.api import payloads as p
from gwmodule.msp.api.routes import ROUTES, Route, Scope
from gwmodule.msp.api.tokens import Tokens
from tests.msp.api.conftest import PASSWORD, Site, principal
from tests.msp.api.test_tokens import forged
from tests.msp.conftest import NOW, PC

LOGIN = {"username": "admin", "password": "P@ssw0rd"}
OTHER_PC = UUID("00112233-4455-6677-8899-aabbccddeeff")
SAMPLES: dict[Any, dict[str, Any]] = {
    p.LoginRequest: {"username": "nobody", "password": "x"},
    p.DeviceChange: {"guid": str(PC), "tags": ["kitchen"]},
    p.Login: LOGIN,
    p.CallRequest: {"function": "power.get", "credential": LOGIN},
    p.IdentifyRequest: {"credential": LOGIN},
    p.GatewayRequest: {"name": "home9"},
    p.EnrolmentRequest: {},
    p.UserRequest: {"name": "new", "role": "viewer", "password": PASSWORD},
    p.UserChange: {"role": "viewer"},
    p.KeyRequest: {"name": "backup", "role": "viewer"},
    p.TenantRequest: {"name": "third"},
    p.ActionRequest: {"action": 10},
    p.BootRequest: {"action": 400},
    p.FeaturesRequest: {"enableSOL": True},
    p.ConsentRequest: {"consentCode": 123456},
    p.AlarmRequest: {"ElementName": "a", "StartTime": {"Datetime": "2027-01-01T00:00:00Z"}},
    p.AlarmName: {"Name": "a"},
}
PLACES = {
    "guid": str(PC), "gateway": "home1", "mac": "02-00-00-00-00-01", "name": "home1",
    "user": "viewer@default", "key": "none", "tenant": "other", "id": "none",
}  # fmt: skip
REFUSING = [route for route in ROUTES if route.role is not None]
by_name = pytest.mark.parametrize("route", REFUSING, ids=lambda r: f"{r.method} {r.path}")


async def ask(site: Site, route: Route, token: str = "", **more: Any) -> tuple[int, Any]:
    path = route.path
    for name in route.parameters:
        path = path.replace(f"{{{name}}}", PLACES[name])
    if route.websocket and not route.parameters:
        path += f"?host={PC}"
    if route.query is p.NvmQuery:
        path += "?enterprise=x"
    if route.query is p.PruneQuery:
        path += "?before=2000-01-01T00:00:00Z"
    return await site.request(route.method, path, SAMPLES.get(route.body), token=token, **more)


def is_refusal(answer: tuple[int, Any], status: int) -> bool:
    return answer[0] == status and set(answer[1]) == {"error", "errorDescription"}


def test_every_body_has_its_sample() -> None:
    assert {route.body for route in ROUTES if route.body} == set(SAMPLES)


def test_a_path_and_method_has_one_row() -> None:
    keys = [(route.method, route.path) for route in ROUTES]
    assert len(keys) == len(set(keys))
    assert {route.path for route in ROUTES if route.role is None} == {
        "/healthz",
        "/readyz",
        "/api/v1/authorize",
    }


@by_name
async def test_nobody_we_do_not_know(site: Site, route: Route) -> None:
    assert is_refusal(await ask(site, route), 401)
    for header in ("Bearer", "Bearer x", "Basic YTpi", "Bearer gwm_x_y", "bearer a.b.c"):
        answer = await ask(site, route, headers={"Authorization": header})
        assert is_refusal(answer, 401), header
    # Who holds a token for one purpose may not use it for another.
    claims = jwt.decode(site.token(), options={"verify_signature": False})
    for text in forged(claims).values():
        assert is_refusal(await ask(site, route, text), 401)
    assert site.service.session.calls == []


@by_name
async def test_no_expired_token(site: Site, route: Route) -> None:
    tokens = Tokens(await site.service.accounts.signing_key(), lambda: NOW - 3600, lifetime=3600)
    known = await site.service.accounts.principal("admin@default")
    assert known is not None
    assert is_refusal(await ask(site, route, tokens.for_api(known)), 401)


@by_name
async def test_no_token_for_another_audience(site: Site, route: Route) -> None:
    # Of somebody who may do everything: nothing but its purpose is wrong with it.
    known = await site.service.accounts.principal("admin@default")
    assert known is not None
    text = site.service.api.tokens.for_redirection(known, PC)
    assert is_refusal(await ask(site, route, text), 401)
    if not route.websocket:
        offer = {"Sec-WebSocket-Protocol": text}
        assert is_refusal(await ask(site, route, headers=offer), 401)
    assert site.service.session.calls == []


@by_name
async def test_no_role_below(site: Site, route: Route) -> None:
    assert route.role is not None
    for role in Role:
        if not role.covers(route.role):
            assert is_refusal(await ask(site, route, site.token(role)), 403)
    assert site.service.session.calls == []


@by_name
async def test_no_other_tenant(site: Site, route: Route) -> None:
    token = site.token(tenant="other")
    if route.path == "/api/v1/events":
        # Of an endless answer the test of events shows that it holds no other tenant's things.
        return
    status, body = await ask(site, route, token)
    if route.scope in (Scope.SERVICE, Scope.OPERATOR):
        assert is_refusal((status, body), 403)
    elif route.scope in (Scope.DEVICE, Scope.GATEWAY) or (route.parameters and status >= 400):
        assert is_refusal((status, body), 404)
    else:
        assert "home1" not in str(body)
        assert str(PC) not in str(body)
        assert "@default" not in str(body)
    assert site.service.session.calls == []
    assert await site.service.registry.device(PC) is not None


@by_name
async def test_no_token_of_a_user_who_has_changed(site: Site, route: Route) -> None:
    accounts = site.service.accounts
    changes: list[Callable[[], Any]] = [
        lambda: accounts.set_user("admin@default", "default", disabled=True, at=NOW, actor="t"),
        lambda: accounts.set_user("admin@default", "default", disabled=False, at=NOW, actor="t"),
    ]
    for change in changes:
        await change()
        assert is_refusal(await ask(site, route, site.token()), 401)


@pytest.mark.parametrize(
    "route", [r for r in ROUTES if r.websocket], ids=lambda r: f"{r.method} {r.path}"
)
async def test_no_redirection_token_of_another_device(site: Site, route: Route) -> None:
    text = site.service.api.tokens.for_redirection(principal(), OTHER_PC)
    answer = await ask(site, route, headers={"Sec-WebSocket-Protocol": text})
    assert is_refusal(answer, 403)


@by_name
async def test_the_right_token_is_not_refused(site: Site, route: Route) -> None:
    """So that the tests above cannot pass on a service that refuses everybody."""
    if route.path == "/api/v1/events":
        headers = {"Authorization": f"Bearer {site.token()}"}
        async with site.http.get(site.url + route.path, headers=headers) as response:
            assert response.status == 200
        return
    status, _ = await ask(site, route, site.token())
    if route.scope is Scope.OPERATOR:
        assert status == 403
    else:
        assert status not in (401, 403)


async def test_what_has_no_row_is_not_there(site: Site) -> None:
    for path in ("/x", "/api", "/api/v1", "/api/v2/devices", "/api/v1/devices/", "/metrics/", "//"):
        status, body = await site.request("GET", path, token=site.token())
        assert (status, body["error"]) == (404, "NOT_FOUND")


async def test_another_site_is_refused_whatever_token_it_has(site: Site) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://[", ""):
        headers = {"Origin": origin}
        status, body = await site.request(
            "GET", "/api/v1/devices", token=site.token(), headers=headers
        )
        assert (status, body["error"]) == (403, "CROSS_SITE"), origin
    status, _ = await site.request(
        "GET", "/api/v1/devices", token=site.token(), headers={"Origin": site.url}
    )
    assert status == 200
