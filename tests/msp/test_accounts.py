import asyncio
import hashlib
import os
import re
import time
from typing import Any

import pytest

from gwmodule.msp.accounts import Accounts, Cost, Principal, Role, hashes_at_once
from gwmodule.msp.database import Database, RegistryError
from gwmodule.msp.enrolment_tokens import Enrolments
from gwmodule.msp.labels import Label, Labels
from gwmodule.msp.migrations import MIGRATIONS
from gwmodule.msp.registry import Observed, Registry, RegistryConflict
from gwmodule.msp.vault import Vault
from gwmodule.wire.notices import Hello, Lease, Source
from tests.msp.conftest import IP, MAC, PC

CHEAP = Cost(4, 8, 1)
PASSWORD = "correct horse"


@pytest.fixture
async def accounts(database: Database) -> Accounts:
    accounts = Accounts(database, Vault(database, bytes(32)), cost=CHEAP)
    await accounts.add_tenant("acme", 1.0, actor="root")
    await accounts.add_user("anna", "acme", Role.TECHNICIAN, PASSWORD, 2.0, actor="root")
    return accounts


def test_roles_are_ordered() -> None:
    covered = [[role.covers(other) for other in Role] for role in Role]
    assert covered == [[True, False, False], [True, True, False], [True, True, True]]


async def test_the_right_password_tells_who_it_is(accounts: Accounts) -> None:
    anna = await accounts.verify("anna", PASSWORD)
    assert anna is not None
    assert anna == Principal("anna", "acme", Role.TECHNICIAN, "password", epoch=anna.epoch)
    assert await accounts.principal("anna") == anna
    for name, password in (
        ("anna", "wrong horse"),
        ("nobody", PASSWORD),
        ("anna", ""),
        ("", ""),
        ("anna' OR '1'='1", PASSWORD),
        ("anna\0", PASSWORD),
        ("anna", PASSWORD + "\0"),
        ("anna", "x" * 10_000_000),
    ):
        assert await accounts.verify(name, password) is None


async def test_an_unknown_name_takes_as_long_as_a_wrong_password(database: Database) -> None:
    accounts = Accounts(database, Vault(database, bytes(32)), cost=Cost(13, 8, 1))
    await accounts.add_user("anna", "default", Role.ADMIN, PASSWORD, 2.0, actor="root")

    async def work(name: str) -> float:
        # Of all threads of this process: what else the machine does is not in it.
        before = time.process_time()
        await accounts.verify(name, "wrong horse")
        return time.process_time() - before

    known = sorted([await work("anna") for _ in range(9)])[4]
    unknown = sorted([await work("nobody") for _ in range(9)])[4]
    assert 0.5 < unknown / known < 2


async def test_each_change_of_a_user_voids_what_was_issued(accounts: Accounts) -> None:
    epochs = []
    for change in (
        {},
        {"role": Role.ADMIN},
        {"password": "another horse"},
        {"disabled": True},
        {"disabled": False},
    ):
        assert await accounts.set_user("anna", "acme", at=3.0, actor="root", **change)
        found = await accounts.principal("anna")
        if change == {"disabled": True}:
            assert found is None
            assert await accounts.verify("anna", "another horse") is None
            continue
        assert found is not None
        epochs.append(found.epoch)
    assert epochs == sorted(set(epochs))
    principal = await accounts.verify("anna", "another horse")
    assert principal is not None
    assert principal.role is Role.ADMIN
    assert await accounts.verify("anna", PASSWORD) is None


async def test_a_new_user_of_an_old_name_gets_nothing_of_the_old_one(accounts: Accounts) -> None:
    before = await accounts.principal("anna")
    assert await accounts.remove_user("anna", "acme", 3.0, actor="root")
    assert await accounts.principal("anna") is None
    await accounts.add_user("anna", "acme", Role.TECHNICIAN, PASSWORD, 4.0, actor="root")
    assert await accounts.principal("anna") != before


async def test_a_name_is_unique_over_all_tenants_and_belongs_to_one(accounts: Accounts) -> None:
    with pytest.raises(RegistryConflict, match="anna exists"):
        await accounts.add_user("anna", "default", Role.ADMIN, PASSWORD, 3.0, actor="root")
    with pytest.raises(RegistryConflict, match="no tenant"):
        await accounts.add_user("bob", "nowhere", Role.ADMIN, PASSWORD, 3.0, actor="root")
    assert not await accounts.set_user("anna", "default", role=Role.ADMIN, at=3.0, actor="root")
    assert not await accounts.remove_user("anna", "default", 3.0, actor="root")
    assert await accounts.users("default") == []
    (anna,) = await accounts.users("acme")
    assert (anna.name, anna.role, anna.disabled) == ("anna", Role.TECHNICIAN, False)


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 65, "a/b", "<b>", "a\0", "\u00e9"])
async def test_what_is_no_name_is_refused(accounts: Accounts, name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        await accounts.add_tenant(name, 1.0, actor="root")
    with pytest.raises(ValueError, match="is no name"):
        await accounts.add_user(name, "acme", Role.ADMIN, PASSWORD, 1.0, actor="root")
    with pytest.raises(ValueError, match="is no name"):
        await accounts.add_key(name, "acme", Role.ADMIN, 1.0, None, actor="root")


@pytest.mark.parametrize("password", ["", "short", "x" * 256])
async def test_a_password_has_a_length(accounts: Accounts, password: str) -> None:
    with pytest.raises(ValueError, match="8 to 255 bytes"):
        await accounts.add_user("bob", "acme", Role.VIEWER, password, 1.0, actor="root")
    with pytest.raises(ValueError, match="control"):
        await accounts.set_user("anna", "acme", password=PASSWORD + "\0", at=1.0, actor="root")


async def test_a_tenant_goes_only_when_it_is_empty(accounts: Accounts, database: Database) -> None:
    registry = Registry(database)
    with pytest.raises(RegistryConflict, match="acme exists"):
        await accounts.add_tenant("acme", 3.0, actor="root")
    with pytest.raises(RegistryConflict, match="still has users"):
        await accounts.remove_tenant("acme", 3.0, actor="root")
    await accounts.remove_user("anna", "acme", 3.0, actor="root")
    await registry.add_gateway("home1", "aa", 3.0, tenant="acme")
    with pytest.raises(RegistryConflict, match="still has gateways"):
        await accounts.remove_tenant("acme", 3.0, actor="root")
    await registry.revoke_gateway("home1", 3.0, actor="root", tenant="acme")
    key = await accounts.add_key("ci", "acme", Role.VIEWER, 3.0, None, actor="root")
    with pytest.raises(RegistryConflict, match="still has API keys"):
        await accounts.remove_tenant("acme", 3.0, actor="root")
    await accounts.revoke_key(key.split("_")[1], "acme", 3.0, actor="root")
    assert await accounts.remove_tenant("acme", 3.0, actor="root")
    assert not await accounts.remove_tenant("acme", 3.0, actor="root")
    assert [tenant.name for tenant in await accounts.tenants()] == ["default"]
    with pytest.raises(RegistryConflict, match="always there"):
        await accounts.remove_tenant("default", 3.0, actor="root")


async def test_a_tenant_takes_all_that_hangs_on_its_revoked_gateways_with_it(
    accounts: Accounts, database: Database
) -> None:
    registry = Registry(database)
    for gateway, tenant in (("home1", "acme"), ("home2", "default")):
        await registry.add_gateway(gateway, "aa", 3.0, tenant=tenant)
        await registry.record(
            [
                Observed(gateway, "198.51.100.9", 1, observation, 0.0, 3.0)
                for observation in (
                    Lease(MAC, IP, 60, "pc"),
                    Hello(PC, IP, MAC, 1, 0, Source.LISTENER, b"hello"),
                )
            ]
        )
        await Labels(database).put(tenant, PC, Label(("desk",), "reception"))
        await Vault(database, bytes(32)).store(tenant, PC, "admin", PASSWORD, 3.0, actor="anna")
        await Enrolments(database).invite(gateway, 4.0, actor="anna", tenant=tenant, replace=True)
    await registry.revoke_gateway("home1", 5.0, actor="root", tenant="acme")
    await accounts.remove_user("anna", "acme", 5.0, actor="root")
    assert await accounts.remove_tenant("acme", 6.0, actor="root")
    tables = [
        name
        for step in MIGRATIONS
        for name, columns in re.findall(r"CREATE TABLE (\w+) \((.*?)\n\s*\);", step.common, re.S)
        if re.search(r"\btenant TEXT", columns)
    ]
    assert {"devices", "credentials", "labels"} < set(tables)

    async def left(tenant: str) -> set[str]:
        found = {
            table: await database.fetch(f"SELECT 1 AS one FROM {table} WHERE tenant = $1", tenant)
            for table in tables
        }
        return {table for table, rows in found.items() if rows}

    assert await left("acme") == {"audit"}
    assert await left("default") == set(tables) - {"users", "api_keys"}
    assert [host["gateway"] for host in await database.fetch("SELECT * FROM hosts")] == ["home2"]
    (last, *_) = await registry.audit_entries(tenant="acme")
    assert (last.action, last.detail) == ("tenant.remove", {"gateways": 1, "devices": 1})
    # Its names are free again.
    await registry.add_gateway("home1", "bb", 7.0)


async def test_a_key_is_shown_once_and_ends_in_time_or_when_revoked(
    accounts: Accounts, database: Database
) -> None:
    text = await accounts.add_key("ci", "acme", Role.VIEWER, 10.0, 20.0, actor="anna")
    identifier = text.split("_")[1]
    ci = Principal("ci", "acme", Role.VIEWER, "key", key=identifier)
    assert await accounts.verify_key(text, 19.0) == ci
    assert await accounts.key_principal(identifier, 19.0) == ci
    assert await accounts.verify_key(text, 20.0) is None
    assert await accounts.key_principal(identifier, 20.0) is None
    for row in await database.fetch("SELECT * FROM api_keys"):
        assert text.encode() not in row["hash"]
    assert not await accounts.revoke_key(identifier, "default", 11.0, actor="anna")
    assert await accounts.revoke_key(identifier, "acme", 11.0, actor="anna")
    assert await accounts.verify_key(text, 12.0) is None
    assert await accounts.key_principal(identifier, 12.0) is None
    (key,) = await accounts.keys("acme")
    assert (key.id, key.name, key.revoked_at) == (identifier, "ci", 11.0)
    with pytest.raises(ValueError, match="expired"):
        await accounts.add_key("ci", "acme", Role.VIEWER, 10.0, 10.0, actor="anna")


async def test_what_is_no_key_is_refused(accounts: Accounts) -> None:
    text = await accounts.add_key("ci", "acme", Role.VIEWER, 10.0, None, actor="anna")
    other = await accounts.add_key("cd", "acme", Role.ADMIN, 10.0, None, actor="anna")
    mixed = "_".join([*text.split("_", 2)[:2], other.split("_", 2)[2]])
    wrong = (
        "",
        "gwm",
        "gwm_",
        "gwm_x_",
        text[:-1],
        text + "x",
        text.upper(),
        mixed,
        "gwm_\u00e9_x",
    )
    for candidate in (*wrong, "gwm_x_" + "y" * 10_000_000):
        assert await accounts.verify_key(candidate, 11.0) is None
    assert await accounts.verify_key(text, 11.0) is not None


async def test_no_password_and_no_key_is_in_the_audit(
    accounts: Accounts, database: Database
) -> None:
    text = await accounts.add_key("ci", "acme", Role.VIEWER, 10.0, None, actor="anna")
    await accounts.set_user("anna", "acme", password="another horse", at=3.0, actor="root")
    entries = await Registry(database).audit_entries(tenant="acme")
    assert [entry.action for entry in entries] == ["user.set", "key.add", "user.add", "tenant.add"]
    shown = repr(entries)
    assert "horse" not in shown
    assert text.split("_", 2)[2] not in shown


async def test_all_nodes_sign_with_one_key(accounts: Accounts, database: Database) -> None:
    other = Accounts(database, Vault(database, bytes(32)), cost=CHEAP)
    async with asyncio.TaskGroup() as group:
        one, two = (group.create_task(node.signing_key()) for node in (accounts, other))
    assert one.result() == two.result()


async def test_a_stored_password_keeps_its_cost(accounts: Accounts, database: Database) -> None:
    dearer = Accounts(database, Vault(database, bytes(32)), cost=Cost(5, 8, 2))
    assert await dearer.verify("anna", PASSWORD) is not None


def test_password_checks_leave_a_core_and_a_bounded_memory() -> None:
    assert [hashes_at_once(cores) for cores in (1, 2, 3, 8, 256)] == [1, 1, 2, 4, 4]


async def test_no_more_passwords_are_checked_at_once_than_that(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: set[object] = set()
    most = 0
    scrypt = hashlib.scrypt

    def counted(*given: Any, **more: Any) -> bytes:
        nonlocal most
        mark = object()
        running.add(mark)
        most = max(most, len(running))
        time.sleep(0.02)
        running.discard(mark)
        return scrypt(*given, **more)

    monkeypatch.setattr(hashlib, "scrypt", counted)
    await asyncio.gather(*(accounts.verify("anna", "wrong horse") for _ in range(10)))
    assert most == hashes_at_once(len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("name", ["gateway", "msp", "root"])
async def test_nobody_is_called_like_an_actor_of_the_service(accounts: Accounts, name: str) -> None:
    with pytest.raises(ValueError, match="taken for the service"):
        await accounts.add_user(name, "default", Role.VIEWER, PASSWORD, 2.0, actor="root")


async def key_of(accounts: Accounts, role: Role, name: str = "anna") -> str:
    maker = await accounts.principal(name)
    return await accounts.add_key("ci", "acme", role, 10.0, None, actor=name, maker=maker)


async def test_a_key_rests_while_its_owner_is_locked_out(accounts: Accounts) -> None:
    text = await key_of(accounts, Role.VIEWER)
    who = await accounts.verify_key(text, 11.0)
    assert who is not None
    await accounts.set_user("anna", "acme", at=11.0, actor="root", password="other horse")
    assert await accounts.verify_key(text, 11.0) == who
    await accounts.set_user("anna", "acme", at=11.0, actor="root", disabled=True)
    assert await accounts.verify_key(text, 11.0) is None
    assert await accounts.key_principal(who.key, 11.0) is None
    await accounts.set_user("anna", "acme", at=11.0, actor="root", disabled=False)
    assert await accounts.verify_key(text, 11.0) == who


async def test_a_key_may_never_do_more_than_its_owner(accounts: Accounts) -> None:
    text = await key_of(accounts, Role.TECHNICIAN)
    with pytest.raises(ValueError, match="admin"):
        await key_of(accounts, Role.ADMIN)
    await accounts.set_user("anna", "acme", at=11.0, actor="root", role=Role.VIEWER)
    who = await accounts.verify_key(text, 11.0)
    assert who is not None
    assert who.role is Role.VIEWER
    await accounts.set_user("anna", "acme", at=11.0, actor="root", role=Role.ADMIN)
    who = await accounts.verify_key(text, 11.0)
    assert who is not None
    assert who.role is Role.TECHNICIAN


async def test_a_removed_users_keys_do_not_wake_up_with_his_name(accounts: Accounts) -> None:
    text = await key_of(accounts, Role.VIEWER)
    tenants_own = await accounts.add_key("cd", "acme", Role.VIEWER, 10.0, None, actor="root")
    anna = await accounts.principal("anna")
    await accounts.remove_user("anna", "acme", 12.0, actor="root")
    assert await accounts.verify_key(text, 12.0) is None
    assert await accounts.verify_key(tenants_own, 12.0) is not None
    await accounts.add_user("anna", "acme", Role.ADMIN, PASSWORD, 13.0, actor="root")
    assert await accounts.verify_key(text, 13.0) is None
    revoked = {key.name: key.revoked_at for key in await accounts.keys("acme")}
    assert revoked == {"ci": 12.0, "cd": None}
    await accounts.remove_user("anna", "acme", 14.0, actor="root")
    with pytest.raises(RegistryConflict, match="no user any more"):
        await accounts.add_key("x", "acme", Role.VIEWER, 15.0, None, actor="anna", maker=anna)


async def test_a_key_that_a_key_made_has_the_same_owner(accounts: Accounts) -> None:
    for parent, owner in (
        (await key_of(accounts, Role.VIEWER), "anna"),
        (await accounts.add_key("own", "acme", Role.VIEWER, 10.0, None, actor="root"), ""),
    ):
        maker = await accounts.verify_key(parent, 11.0)
        await accounts.add_key(
            f"child{owner}", "acme", Role.VIEWER, 11.0, None, actor="key:x", maker=maker
        )
        child = {key.name: key for key in await accounts.keys("acme")}[f"child{owner}"]
        assert (child.maker, child.owner) == ("key:x", owner)


async def test_a_keys_last_use_is_known_to_the_hour(
    accounts: Accounts, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = await key_of(accounts, Role.VIEWER)
    used = []
    for at in (20.0, 21.0, 3619.0, 3620.0):
        assert await accounts.verify_key(text, at) is not None
        used.append((await accounts.keys("acme"))[0].last_used)
    assert used == [20.0, 20.0, 20.0, 3620.0]

    async def fail(*_: object) -> int:
        raise RegistryError("disk full")

    monkeypatch.setattr(database, "execute", fail)
    assert await accounts.verify_key(text, 9999.0) is not None


async def test_two_keys_that_are_good_never_have_one_name(accounts: Accounts) -> None:
    async def make(at: float, expires: float | None = None, tenant: str = "acme") -> None:
        await accounts.add_key("ci", tenant, Role.VIEWER, at, expires, actor="root")

    await make(10.0, 20.0)
    with pytest.raises(RegistryConflict, match="key ci exists"):
        await make(19.0)
    await make(19.0, tenant="default")
    await make(20.0)
    (*_, key) = await accounts.keys("acme")
    await accounts.revoke_key(key.id, "acme", 21.0, actor="root")
    await make(22.0)
