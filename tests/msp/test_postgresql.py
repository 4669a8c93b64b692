"""What only a server can do: stop, come back, and serve two nodes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from gwmodule.errors import ConfigError
from gwmodule.msp import migrations, postgresql
from gwmodule.msp.database import Database, RegistryError, open_database
from gwmodule.msp.journal import Journal
from gwmodule.msp.registry import Observed, Registry
from tests.msp.conftest import empty
from tests.msp.postgres import Server, required
from tests.msp.test_registry import NAT, PC, hello

ADD = "INSERT INTO gateways (name) VALUES ($1)"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One of our own, because these tests stop it."""
    server = Server(required())
    yield server
    server.remove()


@pytest.fixture
async def database(server: Server) -> AsyncIterator[Database]:
    await asyncio.to_thread(server.start)
    await empty(server.url())
    try:
        async with contextlib.aclosing(await open_database(server.url())) as database:
            yield database
    finally:
        with contextlib.suppress(AssertionError):
            await asyncio.to_thread(server.stop)


def notice(number: int) -> Observed:
    mac = bytes([2, 1, 0, 0, number >> 8, number & 0xFF])
    return Observed("home1", *NAT, hello(mac, uuid=UUID(int=number + 1)), 0.0, 1.0)


@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_a_restart_in_the_middle_loses_no_acknowledged_registration(
    database: Database, server: Server, how: str
) -> None:
    registry = Registry(database)
    await registry.add_gateway("home1", "aa", 0.0)
    acknowledged: set[UUID] = set()
    journal = Journal(registry, lambda: None)
    total = 1500

    async def gateway() -> None:
        for number in range(total):
            uuid = UUID(int=number + 1)
            journal.put(notice(number), partial(lambda uuid, _: acknowledged.add(uuid), uuid))
            await asyncio.sleep(0.001)

    async def administrator() -> None:
        while len(acknowledged) < 200:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(getattr(server, how))
        while not journal.counters["commit_failed"]:
            await asyncio.sleep(0.01)
        with pytest.raises(RegistryError):
            await registry.devices()
        before = set(acknowledged)
        await asyncio.to_thread(server.start)
        stored = {device.uuid for device in await registry.devices()}
        assert before <= stored
        assert len(before) < total

    async with asyncio.TaskGroup() as group:
        writer = group.create_task(journal.run())
        feeding = group.create_task(gateway())
        await administrator()
        await feeding
        while len(acknowledged) < total:
            await asyncio.sleep(0.01)
        writer.cancel()
    assert {device.uuid for device in await registry.devices()} == acknowledged


async def test_a_transaction_that_loses_its_server_is_undone(
    database: Database, server: Server
) -> None:
    async def half() -> None:
        async with database.transaction() as db:
            await db.execute(ADD, "a")
            await asyncio.to_thread(server.crash)
            await db.execute(ADD, "b")

    with pytest.raises(RegistryError):
        await half()
    await asyncio.to_thread(server.start)
    assert await database.fetch("SELECT * FROM gateways") == []
    async with database.transaction() as db:
        await db.execute(ADD, "a")
    assert len(await database.fetch("SELECT * FROM gateways")) == 1


async def test_two_nodes_write_one_after_the_other(database: Database, server: Server) -> None:
    order: list[str] = []
    async with contextlib.aclosing(await open_database(server.url())) as other:

        async def write(node: Database, name: str, hold: asyncio.Event) -> None:
            async with node.transaction() as db:
                order.append(f"{name} in")
                await db.execute(ADD, name)
                await hold.wait()
                order.append(f"{name} out")

        hold, free = asyncio.Event(), asyncio.Event()
        free.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(write(database, "one", hold))
            while order != ["one in"]:
                await asyncio.sleep(0.005)
            group.create_task(write(other, "two", free))
            await asyncio.sleep(0.1)
            assert order == ["one in"]
            hold.set()
    assert order == ["one in", "one out", "two in", "two out"]


async def test_a_broken_off_transaction_frees_its_connection_and_its_lock(
    database: Database,
) -> None:
    async def dawdle() -> None:
        async with asyncio.timeout(0.02), database.transaction() as db:
            await db.execute(ADD, "a")
            await db.fetch("SELECT pg_sleep(5)")

    for _ in range(20):
        with pytest.raises(TimeoutError):
            await dawdle()
    await database.execute(ADD, "b")
    assert [row["name"] for row in await database.fetch("SELECT name FROM gateways")] == ["b"]


async def test_an_update_of_the_schema_takes_as_long_as_it_takes(
    database: Database, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgresql._SETTINGS, "statement_timeout", "100")
    monkeypatch.setattr(postgresql, "COMMAND_TIMEOUT", 0.2)
    slow = migrations.Step("SELECT pg_sleep(0.5);")
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, slow))
    async with contextlib.aclosing(await open_database(server.url())) as updated:
        row = await updated.fetch_one("SELECT version FROM schema")
        assert row is not None
        assert row["version"] == len(migrations.MIGRATIONS)
        # And nothing else does, on the same connection.
        with pytest.raises(RegistryError, match="statement timeout"):
            await updated.fetch("SELECT pg_sleep(0.5)")


async def test_many_readers_share_a_few_connections(database: Database) -> None:
    registry = Registry(database)
    await registry.add_gateway("home1", "aa", 0.0)
    await registry.record([Observed("home1", *NAT, hello(), 0.0, 1.0)])
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(registry.device(PC)) for _ in range(500)]
    assert all(task.result() is not None for task in tasks)


async def test_a_server_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    url = f"postgresql://anna:secret@/db?host={tmp_path}"
    with pytest.raises(RegistryError) as caught:
        await open_database(url)
    assert "localhost/db" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["postgresql://h:port/db", "postgresql://h/db?sslmode=maybe", "postgresql://[::1/db"]
)
async def test_what_is_no_url_is_a_clear_error(url: str) -> None:
    with pytest.raises(ConfigError, match="--database"):
        await open_database(url)
