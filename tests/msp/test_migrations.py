import sqlite3
from pathlib import Path

import pytest

from gwmodule.msp.database import Database, Dialect, RegistryError, open_database
from gwmodule.msp.migrations import MIGRATIONS, migrate
from gwmodule.msp.tables import Tables


async def test_every_step_is_applied_once(database: Database) -> None:
    await migrate(database)
    row = await database.fetch_one("SELECT version FROM schema")
    assert row is not None
    assert row["version"] == len(MIGRATIONS)
    for table in ("gateways", "hosts", "devices", "hellos", "audit", "users"):
        assert await database.fetch(f"SELECT * FROM {table}") == []


async def test_a_newer_schema_is_refused(database: Database) -> None:
    await database.execute("UPDATE schema SET version = version + 1")
    with pytest.raises(RegistryError, match=f"newer than this program's {len(MIGRATIONS)}"):
        await migrate(database)
    await database.execute("UPDATE schema SET version = version - 1")


async def test_a_file_of_the_first_release_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    former = sqlite3.connect(path, isolation_level=None)
    former.executescript(f"{MIGRATIONS[0].sql(Dialect.SQLITE)}; PRAGMA user_version = 1;")
    former.execute("INSERT INTO gateways (name, fingerprint) VALUES ('home1', 'aa')")
    former.close()
    database = await open_database(str(path))
    (gateway,) = await database.fetch("SELECT * FROM gateways")
    assert gateway["fingerprint"] == "aa"
    row = await database.fetch_one("PRAGMA user_version")
    assert row is not None
    assert row["user_version"] == len(MIGRATIONS)
    await database.aclose()


def test_no_sqlite_type_is_left_for_postgresql() -> None:
    for step in MIGRATIONS:
        sql = step.sql(Dialect.POSTGRESQL)
        assert not {"INTEGER", "REAL", "BLOB", "AUTOINCREMENT"} & set(sql.split())


async def test_keys_of_before_belong_to_who_made_them_and_is_a_user_still(
    database: Database,
) -> None:
    for column in ("maker", "owner", "last_used"):
        await database.execute(f"ALTER TABLE api_keys DROP COLUMN {column}")
    for column in ("audit_full_at", "unaudited"):
        await database.execute(f"ALTER TABLE devices DROP COLUMN {column}")
    for table in ("used_keys", "audit_pruned"):
        await database.execute(f"DROP TABLE {table}")
    await database.execute("DROP INDEX audit_tenant")
    await database.execute("UPDATE schema SET version = 4")
    users = [("anna", 1.0), ("again", 20.0)]
    for name, created in users:
        await database.execute(
            "INSERT INTO users (name, tenant, role, password, epoch, created_at)"
            " VALUES ($1, 'default', 'admin', '', 1, $2)",
            name,
            created,
        )
    for number, actor in enumerate(["anna", "again", "gone", "root"]):
        identifier = f"{number:012x}"
        await database.execute(
            "INSERT INTO api_keys (id, name, tenant, role, hash, created_at)"
            " VALUES ($1, 'ci', 'default', 'viewer', $2, 10)",
            identifier,
            bytes(32),
        )
        await Tables(database).audit(
            "default", 10.0, actor, "key.add", detail={"key": identifier, "name": "ci"}
        )
    await migrate(database)
    rows = await database.fetch("SELECT maker, owner FROM api_keys ORDER BY id")
    assert [(row["maker"], row["owner"]) for row in rows] == [
        ("anna", "anna"),
        # Another one of that name: the key is older than he.
        ("again", None),
        ("gone", None),
        ("root", None),
    ]
