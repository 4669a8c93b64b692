import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest

from gwmodule.errors import ConfigError, GatewayError
from gwmodule.msp.database import (
    Database,
    Dialect,
    RegistryError,
    StatementError,
    Transaction,
    open_database,
)
from gwmodule.msp.registry import Observed, Registry
from tests.msp.test_registry import NAT, OTHER, PC, hello

COUNT = "SELECT count(*) AS n FROM gateways"
# SQLite's numbers: a commit without and with an fsync.
NORMAL, FULL = 1, 2
ADD = "INSERT INTO gateways (name) VALUES ($1)"


async def count(database: Database) -> int:
    row = await database.fetch_one(COUNT)
    assert row is not None
    return int(row["n"])


async def test_execute_tells_how_many_rows_it_changed(database: Database) -> None:
    assert await database.execute(ADD, "a") == 1
    assert await database.execute("UPDATE gateways SET port = 7") == 1
    assert await database.execute("DELETE FROM gateways WHERE name = $1", "nobody") == 0


async def test_a_transaction_is_seen_whole_or_not_at_all(database: Database) -> None:
    async with database.transaction() as db:
        await db.execute(ADD, "a")
        assert await count(database) == 0
    assert await count(database) == 1
    with pytest.raises(ZeroDivisionError):
        await break_off(database)
    assert await count(database) == 1


async def break_off(database: Database) -> None:
    async with database.transaction() as db:
        await db.execute(ADD, "b")
        raise ZeroDivisionError


async def test_a_refused_statement_is_told_from_a_database_that_is_away(
    database: Database,
) -> None:
    await database.execute(ADD, "a")
    for sql, value in ((ADD, "a"), ("UPDATE gateways SET port = $1", 1 << 70)):
        with pytest.raises(StatementError):
            await database.execute(sql, value)
    assert await database.execute(ADD, "b") == 1


async def test_text_that_no_engine_stores_is_made_storable(database: Database) -> None:
    await database.execute(ADD, "x\0y\ud800\u00e9'; DROP TABLE gateways; --")
    (row,) = await database.fetch("SELECT name FROM gateways")
    assert row["name"] == "x\ufffdy?\u00e9'; DROP TABLE gateways; --"


@pytest.mark.parametrize(
    ("url", "problem"),
    [("mysql://x", "'mysql' is neither"), ("sqlite://x/y", "three slashes"), ("://", "neither")],
)
async def test_another_url_is_a_clear_error(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        await open_database(url)


async def test_a_path_and_a_url_name_the_same_file(tmp_path: Path) -> None:
    for url in (str(tmp_path / "db"), f"sqlite:///{tmp_path / 'db'}"):
        database = await open_database(url)
        assert database.dialect is Dialect.SQLITE
        await database.execute(ADD, url)
        await database.aclose()
    database = await open_database(str(tmp_path / "db"))
    assert await count(database) == 2
    await database.aclose()


async def test_only_what_gateways_observe_is_committed_without_waiting_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await open_database(str(tmp_path / "registry.db"))
    registry = Registry(database)
    settings: list[int] = []
    begun = database.transaction

    @asynccontextmanager
    async def watched(*, durable: bool = True) -> AsyncIterator[Transaction]:
        async with begun(durable=durable) as db:
            row = await db.fetch_one("PRAGMA synchronous")
            assert row is not None
            settings.append(row["synchronous"])
            yield db

    monkeypatch.setattr(database, "transaction", watched)
    await registry.record([Observed("home1", *NAT, hello(), 0.0, 1.0)])
    await registry.add_gateway("home2", "aa", 1.0)
    await registry.call_succeeded(PC, 1.0)
    await registry.revoke_gateway("home2", 1.0, actor="anna")
    assert settings == [NORMAL, FULL, NORMAL, FULL]
    # A single statement after a transaction that does not wait.
    await registry.record([Observed("home1", *NAT, hello(), 0.0, 2.0)])
    await database.execute(
        "INSERT INTO gateways (name, port) SELECT 'c', synchronous FROM pragma_synchronous"
    )
    assert await database.fetch("SELECT 1 FROM gateways WHERE port = $1", FULL)
    await database.aclose()


async def test_the_loop_goes_on_while_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    database = await open_database(str(tmp_path / "registry.db"))
    turns = 0

    async def keystrokes() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        typing = group.create_task(keystrokes())
        async with database.transaction() as db:
            await db.execute(ADD, "a")
            before = turns
        after = turns
        await database.execute(ADD, "b")
        assert before < after < turns
        typing.cancel()
    await database.aclose()


async def test_a_commit_that_is_broken_off_is_whole_and_the_next_one_works(tmp_path: Path) -> None:
    database = await open_database(str(tmp_path / "registry.db"))

    async def write(number: int) -> None:
        async with database.transaction() as db:
            await db.execute(ADD, f"{number}")
            await db.execute(ADD, f"{number} too")

    for number in range(200):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(write(number))
            await asyncio.sleep(number * 0.000005)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
    rows = await database.fetch("SELECT name FROM gateways")
    names = {row["name"] for row in rows}
    assert all((f"{n}" in names) == (f"{n} too" in names) for n in range(200))
    await write(200)
    assert await count(database) == len(names) + 2
    await database.aclose()


async def test_a_committed_hello_survives_the_death_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    script = (
        "import asyncio, os, signal\n"
        "from tests.msp.test_database import *\n"
        "async def main():\n"
        f"    database = await open_database({str(path)!r})\n"
        "    registry = Registry(database)\n"
        "    await registry.add_gateway('home1', 'aa', 0.0)\n"
        "    await registry.record([Observed('home1', *NAT, hello(), 0.0, 1.0)])\n"
        "    async with database.transaction() as db:\n"
        "        await db.execute(ADD, 'half')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], check=False, cwd=os.getcwd()
    )
    assert done.returncode == -signal.SIGKILL
    database = await open_database(str(path))
    assert [device.uuid for device in await Registry(database).devices()] == [PC]
    assert await count(database) == 1
    await database.aclose()


async def test_a_locked_file_is_one_clear_error_and_passes(tmp_path: Path) -> None:
    database = await open_database(str(tmp_path / "registry.db"))
    registry = Registry(database)
    await registry.add_gateway("home1", "aa", 0.0)
    locker = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    with pytest.raises(RegistryError, match="locked"):
        await registry.record([Observed("home1", *NAT, hello(), 0.0, 1.0)])
    with pytest.raises(RegistryError, match="locked"):
        await registry.audit("anna", "call", 100.0)
    assert await registry.devices() == []
    locker.execute("ROLLBACK")
    locker.close()
    await registry.record([Observed("home1", *NAT, hello(), 0.0, 1.0)])
    assert [device.uuid for device in await registry.devices()] == [PC]
    await database.aclose()


async def test_a_full_disk_is_one_clear_error_and_passes(tmp_path: Path) -> None:
    database = await open_database(str(tmp_path / "registry.db"))
    registry = Registry(database)
    await registry.add_gateway("home1", "aa", 0.0)
    row = await database.fetch_one("PRAGMA page_count")
    assert row is not None
    # The same answer from SQLite as a full disk gives: SQLITE_FULL in the middle of a transaction.
    await database.execute(f"PRAGMA max_page_count = {row['page_count']}")
    events = [
        Observed("home1", *NAT, hello(bytes([2, 1, 0, 0, 0, n]), uuid=UUID(int=n + 1)), 0.0, 100.0)
        for n in range(200)
    ]
    with pytest.raises(RegistryError, match="full"):
        await registry.record(events)
    assert await registry.devices() == []
    await database.execute("PRAGMA max_page_count = 1000000")
    await registry.record(events)
    assert len(await registry.devices()) == 200
    await database.aclose()


async def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(GatewayError, match="not a database"):
        await open_database(str(path))
    with pytest.raises(RegistryError, match="No such file"):
        await open_database(str(tmp_path / "missing" / "registry.db"))


async def test_the_file_is_not_for_others(tmp_path: Path) -> None:
    database = await open_database(str(tmp_path / "registry.db"))
    await database.execute(ADD, str(OTHER))
    modes = {os.stat(tmp_path / name).st_mode & 0o077 for name in os.listdir(tmp_path)}
    assert modes == {0}
    await database.aclose()
