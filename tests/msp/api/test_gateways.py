from gwmodule.errors import Code, DeadlineExceeded, LinkLost
from gwmodule.msp.accounts import Role
from gwmodule.msp.registry import LinkDown, LinkUp
from gwmodule.wire.functions import STATUS
from gwmodule.wire.messages import Result
from tests.msp.api.conftest import Site
from tests.msp.conftest import NOW, answer

HOME1 = "/api/v1/gateways/home1"


async def test_a_revoked_gateway_is_sent_away_and_stays_away(site: Site) -> None:
    token = site.token()
    assert (await site.request("GET", HOME1, token=token))[1]["revoked"] is False
    assert (await site.request("DELETE", HOME1, token=site.token(Role.TECHNICIAN)))[0] == 403
    assert (await site.request("DELETE", HOME1, token=token))[0] == 204
    ended = site.service.session.ended_with
    assert ended is not None
    assert ended[0] is Code.IDENTITY
    assert not await site.service.registry.is_gateway_allowed("home1", "aa")
    _, gateway = await site.request("GET", HOME1, token=token)
    assert (gateway["revoked"], gateway["connectionStatus"]) == (True, False)


async def test_the_box_with_the_old_certificate_is_sent_away_too(site: Site) -> None:
    body = {"name": "home1", "replace": True}
    assert (await site.request("POST", "/api/v1/gateways", body, token=site.token()))[0] == 201
    ended = site.service.session.ended_with
    assert ended is not None
    assert ended[0] is Code.IDENTITY


async def test_a_name_of_another_tenant_is_taken_and_shows_nothing(site: Site) -> None:
    token = site.token(tenant="other")
    body = {"name": "home1", "replace": True}
    status, error = await site.request("POST", "/api/v1/gateways", body, token=token)
    assert (status, error["error"]) == (409, "CONFLICT")
    assert await site.service.registry.is_gateway_allowed("home1", "aa")
    status, bundle = await site.request("POST", "/api/v1/gateways", {"name": "o1"}, token=token)
    assert (status, bundle["name"]) == (201, "o1")
    _, gateways = await site.request("GET", "/api/v1/gateways", token=site.token())
    assert [each["name"] for each in gateways] == ["home1"]


async def test_without_an_enrolment_site_there_is_no_token(site: Site) -> None:
    status, error = await site.request(
        "POST", "/api/v1/gateways/new/enrolment", {}, token=site.token()
    )
    assert (status, error["error"]) == (409, "ENROLMENT_OFF")


async def test_a_link_is_an_event(site: Site) -> None:
    registry = site.service.registry
    with site.service.api.events.watch("default") as watcher:
        await registry.record([LinkUp("home1", "aa", "203.0.113.7", 4000, "1", NOW)])
        await registry.record([LinkDown("home1", NOW)])
        text = await watcher.next(1.0)
    assert text.count(b"event: gateway") == 2
    assert b'{"name":"home1","connectionStatus":false}' in text


async def test_a_gateway_says_how_it_is(site: Site) -> None:
    token = site.token(Role.VIEWER)
    said = {"lockdown": {"on": False}, "devices": {"devices": 3}}
    site.service.session.answer = answer(Code.OK, said)
    assert await site.request("GET", f"{HOME1}/health", token=token) == (200, said)
    assert site.service.session.calls == [{"function": STATUS}]


async def test_a_gateway_that_cannot_say_it_has_a_reason(site: Site) -> None:
    token = site.token(Role.VIEWER)
    session = site.service.session

    async def lost(_: object) -> Result:
        raise LinkLost("the session was lost")

    async def late(_: object) -> Result:
        raise DeadlineExceeded("no answer within 10 s")

    async def asked() -> tuple[int, str]:
        status, error = await site.request("GET", f"{HOME1}/health", token=token)
        return status, error["error"]

    session.answer = lost
    assert await asked() == (503, "GATEWAY_OFFLINE")
    session.answer = late
    assert await asked() == (504, "DEADLINE")
    # An older gateway.
    session.answer = answer(Code.UNKNOWN_FUNCTION, {"error": "gateway.status is not known"})
    assert (await asked())[1] == "UNKNOWN_FUNCTION"
    session.connected = False
    assert await asked() == (503, "GATEWAY_OFFLINE")
