import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from gwmodule.flood import FloodLimit
from gwmodule.msp.accounts import Accounts, Role
from gwmodule.msp.api.auth import Authenticator
from gwmodule.msp.api.limits import LoginLimits
from tests.msp.api.conftest import PASSWORD, Site
from tests.msp.conftest import NOW, PC

LOGIN = {"username": "technician@default", "password": PASSWORD}


async def test_a_password_is_exchanged_for_a_token(site: Site) -> None:
    status, body = await site.request("POST", "/api/v1/authorize", LOGIN)
    assert status == 200
    status, who = await site.request("GET", "/api/v1/whoami", token=body["token"])
    assert who == {
        "name": "technician@default", "tenantId": "default", "role": "technician",
        "via": "password",
    }  # fmt: skip
    entry = (await site.service.registry.audit_entries())[0]
    assert (entry.actor, entry.action, entry.detail) == (
        "technician@default", "login", {"from": "127.0.0.1"},
    )  # fmt: skip


async def test_a_wrong_password_and_an_unknown_user_look_the_same(site: Site) -> None:
    answers = [
        await site.request("POST", "/api/v1/authorize", LOGIN | change)
        for change in ({"password": "wrong"}, {"username": "nobody"})
    ]
    assert answers[0] == answers[1]
    assert answers[0][0] == 401


async def test_guessing_is_slowed_down_and_says_how_long(site: Site) -> None:
    statuses = Counter[int]()
    for n in range(15):
        body = {"username": f"user{n}", "password": "guess"}
        async with site.http.post(site.url + "/api/v1/authorize", json=body) as response:
            statuses[response.status] += 1
            if response.status == 429:
                assert 1 <= int(response.headers["Retry-After"]) <= 6
    assert statuses == {401: 10, 429: 5}


async def test_a_thousand_logins_a_second_do_not_stop_the_service(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With real hashes, and with no limit for the one address that all of them come from.
    accounts: Any = site.service.api.groups["accounts"]
    directory = Accounts(site.service.database, site.service.vault)
    monkeypatch.setattr(accounts, "_directory", directory)
    monkeypatch.setattr(
        accounts, "_limits", LoginLimits(FloodLimit(1, 10**6), FloodLimit(1, 10**6))
    )
    statuses = Counter[int]()
    slowest = 0.0

    async def log_in(n: int) -> None:
        body = {"username": f"user{n}", "password": "guess"}
        status, _ = await site.request("POST", "/api/v1/authorize", body)
        statuses[status] += 1

    async def look() -> None:
        nonlocal slowest
        for _ in range(10):
            started = time.monotonic()
            assert (await site.request("GET", "/api/v1/devices", token=site.token()))[0] == 200
            slowest = max(slowest, time.monotonic() - started)
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        for n in range(1000):
            group.create_task(log_in(n))
        group.create_task(look())
    assert set(statuses) == {401, 429}
    assert statuses[429] > 900
    assert statuses[401] >= 8
    # A thousand answers have to be written, and no password check stands before ours.
    assert slowest < 5.0


async def test_x_forwarded_for_is_believed_from_a_proxy_only(site: Site) -> None:
    for n in range(12):
        status, _ = await site.request(
            "POST", "/api/v1/authorize", {"username": f"u{n}", "password": "guess"},
            headers={"X-Forwarded-For": f"192.0.2.{n}"},
        )  # fmt: skip
    assert status == 429


async def test_a_line_that_the_caller_wrote_himself_is_not_the_proxys(site: Site) -> None:
    authenticator = Authenticator(
        site.service.accounts, site.service.api.tokens, lambda: NOW, proxies=["192.0.2.1"]
    )
    lines = CIMultiDict([("X-Forwarded-For", "203.0.113.1"), ("X-Forwarded-For", "198.51.100.7")])
    request = make_mocked_request("POST", "/", lines).clone(remote="192.0.2.1")
    assert authenticator.address_of(request) == "198.51.100.7"


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("203.0.113.1, 198.51.100.7", "198.51.100.7"),
        # With a port that changes each caller would be new each time.
        ("198.51.100.7:40001", "198.51.100.7"),
        ("[2001:db8::7]:40001", "2001:db8::7"),
        ("2001:db8::7", "2001:db8::7"),
        ("203.0.113.1, unknown", "192.0.2.1"),
        ("203.0.113.1, _hidden", "192.0.2.1"),
        ("203.0.113.1,", "192.0.2.1"),
        ("x" * 5000, "192.0.2.1"),
        ("203.0.113.1, 192.0.2.2", "203.0.113.1"),
    ],
)
async def test_what_a_proxy_writes_is_an_address_or_nothing(
    site: Site, line: str, address: str
) -> None:
    proxies = ["192.0.2.1", "192.0.2.2"]
    authenticator = Authenticator(
        site.service.accounts, site.service.api.tokens, lambda: NOW, proxies=proxies
    )
    lines = CIMultiDict([("X-Forwarded-For", line)])
    request = make_mocked_request("POST", "/", lines).clone(remote="192.0.2.1")
    assert authenticator.address_of(request) == address


@pytest.mark.parametrize(
    ("proxy", "remote", "hop"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1", "198.51.100.7"),
        ("::ffff:192.0.2.1", "192.0.2.1", "::ffff:198.51.100.7"),
        ("2001:DB8:0::1", "2001:db8::1", "198.51.100.7"),
    ],
)
async def test_a_proxy_is_known_by_its_address_however_it_is_written(
    site: Site, proxy: str, remote: str, hop: str
) -> None:
    authenticator = Authenticator(
        site.service.accounts, site.service.api.tokens, lambda: NOW, proxies=[proxy]
    )
    lines = CIMultiDict([("X-Forwarded-For", hop)])
    request = make_mocked_request("POST", "/", lines).clone(remote=remote)
    assert authenticator.address_of(request) == "198.51.100.7"


async def test_a_new_role_counts_at_once_and_ends_old_tokens(site: Site) -> None:
    token = site.token(Role.TECHNICIAN)
    path = "/api/v1/users/technician@default"
    status, user = await site.request("PATCH", path, {"role": "viewer"}, token=site.token())
    assert (status, user["role"]) == (200, "viewer")
    assert (await site.request("GET", "/api/v1/devices", token=token))[0] == 401


async def test_users_are_made_changed_and_removed_by_their_admin(site: Site) -> None:
    admin = site.token()
    new = {"name": "berta", "role": "viewer", "password": PASSWORD}
    status, user = await site.request("POST", "/api/v1/users", new, token=admin)
    assert (status, user["name"]) == (201, "berta")
    assert (await site.request("POST", "/api/v1/users", new, token=admin))[0] == 409
    other = site.token(tenant="other")
    for method, body in (("PATCH", {"disabled": True}), ("DELETE", None)):
        assert (await site.request(method, "/api/v1/users/berta", body, token=other))[0] == 404
    _, users = await site.request("GET", "/api/v1/users", token=admin)
    assert "berta" in {each["name"] for each in users}
    assert PASSWORD not in str(users)
    assert (await site.request("DELETE", "/api/v1/users/berta", token=admin))[0] == 200


@pytest.mark.parametrize(
    "change",
    [
        {"password": "short"},
        {"password": "x" * 300},
        {"name": "a b"},
        {"name": "<b>"},
        {"role": "root"},
    ],
)
async def test_a_user_that_cannot_be_is_refused(site: Site, change: dict[str, str]) -> None:
    new = {"name": "berta", "role": "viewer", "password": PASSWORD} | change
    assert (await site.request("POST", "/api/v1/users", new, token=site.token()))[0] == 400


async def test_a_key_works_until_it_is_revoked_and_is_no_person(site: Site) -> None:
    admin = site.token()
    body = {"name": "admin@default", "role": "technician"}
    status, made = await site.request("POST", "/api/v1/keys", body, token=admin)
    assert status == 201
    key = made["key"]
    _, who = await site.request("GET", "/api/v1/whoami", token=key)
    assert (who["via"], who["role"]) == ("key", "technician")
    tags = {"guid": str(PC), "tags": ["a"]}
    assert (await site.request("PATCH", "/api/v1/devices", tags, token=key))[0] == 200
    entries = await site.service.registry.audit_entries()
    assert entries[0].actor == "key:admin@default"
    _, keys = await site.request("GET", "/api/v1/keys", token=admin)
    assert key not in str(keys)
    path = f"/api/v1/keys/{keys[0]['id']}"
    assert (await site.request("DELETE", path, token=site.token(tenant="other")))[0] == 404
    assert (await site.request("DELETE", path, token=admin))[0] == 204
    assert (await site.request("GET", "/api/v1/whoami", token=key))[0] == 401


async def test_tenants_are_made_at_the_unix_socket(site: Site) -> None:
    client = site.service.client
    await client.request("POST", "/api/v1/tenants", {"name": "third"})
    names = [each["name"] for each in await client.request("GET", "/api/v1/tenants")]
    assert names == ["default", "other", "third"]
    users = await client.request("GET", "/api/v1/users", headers={"X-Tenant": "third"})
    assert users == []
    await client.request("DELETE", "/api/v1/tenants/third")
    status, _ = await site.request("GET", "/api/v1/tenants", token=site.token())
    assert status == 403


async def test_a_disabled_user_cannot_log_in(site: Site) -> None:
    await site.service.accounts.set_user(
        "technician@default", "default", disabled=True, at=NOW, actor="test"
    )
    assert (await site.request("POST", "/api/v1/authorize", LOGIN))[0] == 401


async def test_who_locks_or_removes_a_user_is_told_his_keys(site: Site) -> None:
    name = "chief"
    new = {"name": name, "role": "admin", "password": PASSWORD}
    await site.request("POST", "/api/v1/users", new, token=site.token())
    login = {"username": name, "password": PASSWORD}
    _, answer = await site.request("POST", "/api/v1/authorize", login)
    body = {"name": "backup", "role": "viewer"}
    _, made = await site.request("POST", "/api/v1/keys", body, token=answer["token"])
    assert (await site.request("GET", "/api/v1/whoami", token=made["key"]))[0] == 200
    _, (key,) = await site.request("GET", "/api/v1/keys", token=site.token())
    assert (key["maker"], key["owner"]) == (name, name)
    assert key["lastUsed"]
    told = [{"id": key["id"], "name": "backup"}]
    path = f"/api/v1/users/{name}"
    _, user = await site.request("PATCH", path, {"disabled": True}, token=site.token())
    assert user["keys"] == told
    assert (await site.request("GET", "/api/v1/whoami", token=made["key"]))[0] == 401
    _, users = await site.request("GET", "/api/v1/users", token=site.token())
    assert {each["name"]: each["keys"] for each in users}[name] == told
    _, user = await site.request("DELETE", path, token=site.token())
    assert user["keys"] == told
    _, (key,) = await site.request("GET", "/api/v1/keys", token=site.token())
    assert key["revoked"]
