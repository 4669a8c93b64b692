import json

import pytest

from gwmodule.msp.accounts import Role
from tests.msp.commands.conftest import Desk
from tests.msp.conftest import Service
from tests.msp.test_cli import run

NEW = b"another long password\n"


async def test_an_admin_adds_changes_and_removes_users(desk: Desk) -> None:
    await desk.login("ada")
    code, out, err = await desk.run(
        "user", "add", "nina", "--role", "viewer", "--password-file", "-", typed=NEW
    )
    assert (code, out, err) == (0, "", "")
    code, out, _ = await desk.run("user", "list")
    assert [line.split() for line in out.splitlines()][-2:] == [
        ["tom", "technician"],
        ["vera", "viewer"],
    ]
    code, out, _ = await desk.run("user", "set", "nina", "--role", "technician", "--disable")
    assert (code, out) == (0, "")
    code, out, _ = await desk.run("user", "list", "--json")
    nina = next(user for user in json.loads(out) if user["name"] == "nina")
    assert nina == {"name": "nina", "role": "technician", "disabled": True, "keys": []}
    code, out, _ = await desk.run("user", "set", "nina", "--enable", "--json")
    assert json.loads(out)["disabled"] is False
    code, _, _ = await desk.run("user", "set", "nina", "--password-file", "-", typed=b"x" * 12)
    assert await desk.service.accounts.verify("nina", "x" * 12)
    assert (await desk.run("user", "remove", "nina"))[0] == 0
    code, _, err = await desk.run("user", "remove", "nina")
    assert (code, err) == (1, "gwmodule-msp: no user 'nina'\n")


@pytest.mark.parametrize(
    ("arguments", "typed", "code", "text"),
    [
        (["user", "add", "nina", "--password-file", "-"], b"short\n", 1, ""),
        (["user", "add", "nina"], b"", 2, "no password: give --password-file FILE"),
        (["user", "add", "a b", "--password-file", "-"], NEW, 1, ""),
        (["user", "add", "tom", "--password-file", "-"], NEW, 1, "tom"),
        (["user", "add", "nina", "--role", "god"], b"", 2, "invalid choice"),
        (["user", "set", "tom"], b"", 2, "nothing to change"),
        (["user", "set", "../x", "--disable"], b"", 2, "is no name"),
        (["user", "set", "tom", "--disable", "--enable"], b"", 2, "not allowed with"),
        (["key", "add", "list", "--days", "0"], b"", 2, "between 1 and 3650"),
        (["key", "revoke", "nokey"], b"", 1, "no key"),
        (["tenant", "list"], b"", 1, "only at the service's unix socket"),
    ],
)
async def test_what_cannot_be_meant_is_refused(
    desk: Desk, arguments: list[str], typed: bytes, code: int, text: str
) -> None:
    await desk.login("ada")
    found, out, err = await desk.run(*arguments, typed=typed)
    assert (found, out) == (code, "")
    assert text in err


async def test_a_key_is_shown_once_works_and_is_revoked(desk: Desk) -> None:
    await desk.login("ada")
    code, out, err = await desk.run("key", "add", "backup", "--role", "viewer", "--days", "30")
    key = out.strip()
    assert (code, key[:4]) == (0, "gwm_")
    assert "not shown again" in err
    code, out, _ = await desk.run("whoami", "--json", GWMODULE_MSP_TOKEN=key)
    assert (json.loads(out)["role"], json.loads(out)["expires"]) == (Role.VIEWER, None)
    code, out, _ = await desk.run("key", "list", "--json")
    (listed,) = json.loads(out)
    assert key not in out
    assert (await desk.run("key", "revoke", listed["id"]))[0] == 0
    code, out, _ = await desk.run("key", "list")
    assert "backup" in out
    assert "revoked" in out
    assert (await desk.run("whoami", GWMODULE_MSP_TOKEN=key))[0] == 77


async def test_the_operator_has_tenants_at_the_socket(service: Service) -> None:
    assert (await run(service, "tenant", "add", "acme"))[0] == 0
    code, out, _ = await run(service, "tenant", "list", "--json")
    assert [tenant["name"] for tenant in json.loads(out)] == ["acme", "default", "other"]
    code, out, err = await run(service, "--tenant", "acme", "devices")
    assert (code, out, err) == (0, "", "none\n")
    code, _, err = await run(service, "--tenant", "nobody", "devices")
    assert (code, err) == (1, "gwmodule-msp: no tenant 'nobody'\n")
    assert (await run(service, "tenant", "remove", "acme"))[0] == 0


async def test_the_keys_that_stop_with_a_user_are_told(desk: Desk) -> None:
    accounts = desk.service.accounts
    tom = await accounts.principal("tom")
    await accounts.add_key(
        "backup", "default", Role.VIEWER, desk.service.clock(), None, actor="tom", maker=tom
    )
    (key,) = await accounts.keys("default")
    await desk.login("ada")
    _, out, _ = await desk.run("key", "list")
    assert out.splitlines()[1].split()[:5] == [key.id, "backup", "viewer", "tom", "tom"]
    code, out, err = await desk.run("user", "set", "tom", "--disable")
    told = f"backup ({key.id})\n"
    assert (code, out, err) == (0, "", f"API keys of tom rest until he is let in again: {told}")
    code, out, err = await desk.run("user", "remove", "tom")
    assert (code, out, err) == (0, "", f"API keys of tom are revoked: {told}")
