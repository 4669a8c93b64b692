import os
from pathlib import Path
from uuid import UUID

import pytest

from gwmodule.errors import ConfigError
from gwmodule.msp.database import Database, RegistryError
from gwmodule.msp.registry import Observed, Registry
from gwmodule.msp.vault import StoredLogin, Vault, vault_key
from tests.msp.test_registry import NAT, OTHER, PC, hello

KEY = bytes(range(32))
PASSWORD = "P@ssw0rd-of-this-PC"


@pytest.fixture
async def vault(database: Database) -> Vault:
    vault = Vault(database, KEY)
    await vault.check()
    return vault


async def keep(vault: Vault, uuid: UUID | None = PC, password: str = PASSWORD) -> None:
    await vault.store("default", uuid, "admin", password, 5.0, actor="anna")


async def test_a_login_comes_back_whole(vault: Vault) -> None:
    await vault.store("default", PC, "\u00e9lan", PASSWORD, 5.0, actor="anna", mode="challenge")
    assert await vault.load("default", PC) == StoredLogin("\u00e9lan", PASSWORD, "challenge")
    info = await vault.describe("default", PC)
    assert info is not None
    assert (info.username, info.mode, info.changed_at) == ("\u00e9lan", "challenge", 5.0)


async def test_a_device_without_a_login_of_its_own_has_the_tenants(vault: Vault) -> None:
    assert await vault.load("default", PC) is None
    await keep(vault, None, "default password")
    await keep(vault, OTHER)
    for uuid, password in ((PC, "default password"), (OTHER, PASSWORD)):
        login = await vault.load("default", uuid)
        assert login is not None
        assert login.password == password
    assert await vault.describe("default", PC) is None
    assert await vault.load("other", PC) is None


async def test_the_password_is_nowhere_in_the_database_and_in_no_repr(
    vault: Vault, database: Database
) -> None:
    await keep(vault)
    rows = [
        *await database.fetch("SELECT * FROM credentials"),
        *await database.fetch("SELECT * FROM audit"),
        *await database.fetch("SELECT * FROM secrets"),
    ]
    stored = repr([dict(row) for row in rows]) + repr(await vault.load("default", PC))  # type: ignore[call-overload]
    assert "admin" in stored
    assert PASSWORD not in stored


async def test_the_same_password_never_looks_the_same_twice(
    vault: Vault, database: Database
) -> None:
    await keep(vault)
    await keep(vault, OTHER)
    one, two = await database.fetch("SELECT sealed FROM credentials")
    assert one["sealed"] != two["sealed"]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE credentials SET username = 'other'",
        "UPDATE credentials SET mode = 'challenge'",
        "UPDATE credentials SET tenant = 'evil'",
        "UPDATE credentials SET sealed = substr(sealed, 1, 20)",
        "UPDATE credentials SET sealed = substr(sealed, 1, 5)",
    ],
)
async def test_a_row_that_was_changed_does_not_open(
    vault: Vault, database: Database, change: str
) -> None:
    await keep(vault)
    await database.execute(change)
    tenant = "evil" if "evil" in change else "default"
    with pytest.raises(RegistryError, match="was changed"):
        await vault.load(tenant, PC)


async def test_a_login_cannot_be_moved_to_another_device(vault: Vault, database: Database) -> None:
    await keep(vault)
    await database.execute("UPDATE credentials SET uuid = $1", OTHER.bytes)
    with pytest.raises(RegistryError, match="was changed"):
        await vault.load("default", OTHER)


async def test_another_key_is_found_at_the_start(vault: Vault, database: Database) -> None:
    with pytest.raises(ConfigError, match="not the key of this database"):
        await Vault(database, bytes(32)).check()
    await Vault(database, KEY).check()


async def test_a_secret_is_made_once_for_all_nodes(vault: Vault, database: Database) -> None:
    made = await vault.secret("jwt")
    assert len(made) == 32
    assert await Vault(database, KEY).secret("jwt") == made
    assert await vault.secret("other") != made


async def test_a_removed_login_is_gone_and_so_is_a_forgotten_devices(
    vault: Vault, database: Database
) -> None:
    registry = Registry(database)
    await registry.add_gateway("home1", "aa", 0.0)
    await keep(vault)
    assert await vault.remove("default", PC, 6.0, actor="anna")
    assert not await vault.remove("default", PC, 7.0, actor="anna")
    assert await vault.load("default", PC) is None
    await registry.record([Observed("home1", *NAT, hello(), 0.0, 1.0)])
    await keep(vault)
    await registry.forget(PC, 8.0, actor="anna")
    assert await vault.load("default", PC) is None
    actions = [entry.action for entry in await registry.audit_entries()]
    assert actions.count("credential.set") == 2
    assert actions.count("credential.remove") == 1


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("", "x"),
        ("a:b", "x"),
        ('a"b', "x"),
        ("a", ""),
        ("a", "x" * 256),
        ("a", "x\ny"),
        ("\0", "x"),
    ],
)
async def test_what_amt_cannot_take_is_refused(vault: Vault, username: str, password: str) -> None:
    with pytest.raises(ValueError, match="user name"):
        await vault.store("default", PC, username, password, 1.0, actor="anna")
    with pytest.raises(ValueError, match="neither ha1"):
        await vault.store("default", PC, "a", "x", 1.0, actor="anna", mode="plain")  # type: ignore[arg-type]


def test_a_key_is_made_once_and_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is sealed with a key whose name a power failure takes, nobody opens again.
    synced: list[tuple[Path, bool]] = []

    def sync(directory: Path) -> None:
        synced.append((directory, (directory / "registry.key").exists()))

    monkeypatch.setattr("gwmodule.files.sync_directory", sync)
    key = vault_key(tmp_path, None, {})
    assert synced == [(tmp_path, True)]
    assert len(key) == 32
    assert vault_key(tmp_path, None, {}) == key
    assert (tmp_path / "registry.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["registry.key"]


def test_a_given_key_comes_before_systemds_and_that_before_our_own(tmp_path: Path) -> None:
    for name, data in (("given", KEY), ("registry-key", KEY[::-1].hex().encode() + b"\n")):
        (tmp_path / name).write_bytes(data)
        os.chmod(tmp_path / name, 0o400)
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert vault_key(tmp_path, tmp_path / "given", environment) == KEY
    assert vault_key(tmp_path, None, environment) == KEY[::-1]
    assert vault_key(tmp_path, None, {"CREDENTIALS_DIRECTORY": "/nowhere"}) not in (KEY, KEY[::-1])


@pytest.mark.parametrize(
    ("data", "mode", "problem"),
    [
        (b"short", 0o600, "holds 5 bytes"),
        (b"x" * 64, 0o600, "holds 64 bytes"),
        (b"x" * 100_000, 0o600, "holds 257 bytes"),
        (b"\xff" * 31, 0o600, "holds 31 bytes"),
        (KEY, 0o644, "open to others"),
        (None, 0o600, "No such file"),
    ],
)
def test_a_key_file_that_cannot_be_one_is_a_clear_error(
    tmp_path: Path, data: bytes | None, mode: int, problem: str
) -> None:
    path = tmp_path / "key"
    if data is not None:
        path.write_bytes(data)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=problem):
        vault_key(tmp_path, path, {})
