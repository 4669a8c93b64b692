"""One interface to the two engines, SQLite and PostgreSQL; SQL is written once, with `$1` marks.

    Registry, Accounts, Vault --> Database.fetch, fetch_one, execute        one statement each
                              --> async with Database.transaction() as db   several, all or none
                                        |
                          SqliteDatabase: one file, a reader and a writer connection
                          PostgresDatabase (msp.postgresql): a pool

A transaction is alone with the database, on every node: what it reads is what it changes. So a rule
like "the newest observation decides" needs neither isolation levels nor repetition, and behaves the
same on both.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from gwmodule.errors import ConfigError, GatewayError

# A writer elsewhere (a shell, a backup) holds the loop, and every keystroke, for no longer.
BUSY_TIMEOUT = 0.1
# By `durable`: whether a commit waits until the disk has it, or the next checkpoint does.
_SYNCHRONOUS = {True: "PRAGMA synchronous = FULL", False: "PRAGMA synchronous = NORMAL"}


class RegistryError(GatewayError):
    """The database cannot be read or written now; nothing of the request has happened."""


class StatementError(GatewayError):
    """The database refuses this statement or its values, and would refuse them again."""


class Dialect(enum.Enum):
    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


class Row(Protocol):
    def __getitem__(self, key: str, /) -> Any: ...


class Connection(Protocol):
    """RegistryError and StatementError from every method."""

    async def fetch(self, sql: str, *values: object) -> list[Row]: ...

    async def fetch_one(self, sql: str, *values: object) -> Row | None: ...

    async def execute(self, sql: str, *values: object) -> int:
        """How many rows the statement has changed."""
        ...


class Transaction(Connection, Protocol):
    async def script(self, sql: str) -> None:
        """Several statements without values, for migrations: they take as long as they take."""
        ...


class Database(Connection, Protocol):
    @property
    def dialect(self) -> Dialect: ...

    def transaction(self, *, durable: bool = True) -> AbstractAsyncContextManager[Transaction]:
        """All or nothing, with no other writer in between. Whatever leaves the block undoes it;
        who is broken off within the commit does not know whether it came about.

        Without `durable` a power failure may take the last commits of an engine that is faster so:
        only for what somebody tells again. It never takes one and leaves a later one.
        """
        ...

    async def aclose(self) -> None: ...


async def open_database(url: str) -> Database:
    """Open and bring up to date: `sqlite:///path`, a plain path, or `postgresql://...`.

    ConfigError for any other URL, RegistryError when the database cannot be used.
    """
    # It imports this module; and asyncpg is needed only by those who use it.
    from gwmodule.msp.migrations import migrate

    scheme, separator, rest = url.partition("://")
    database: Database
    if not separator or scheme == "sqlite":
        if separator and not rest.startswith("/"):
            raise ConfigError("--database", "", "sqlite:///PATH has three slashes")
        database = SqliteDatabase(Path(rest[1:] if separator else url))
    elif scheme in ("postgresql", "postgres"):
        from gwmodule.msp.postgresql import PostgresDatabase

        database = await PostgresDatabase.connect(url)
    else:
        raise ConfigError("--database", "", f"{scheme[:20]!r} is neither sqlite nor postgresql")
    try:
        await migrate(database)
    except BaseException:
        await database.aclose()
        raise
    return database


def storable(value: object) -> object:
    """A value that both engines can store: no NUL, no half of a surrogate pair."""
    if not isinstance(value, str) or (value.isascii() and "\0" not in value):
        return value
    return value.replace("\0", "\ufffd").encode(errors="replace").decode()


class SqliteDatabase:
    """Statements run inline and take some ten microseconds. What may wait for the disk, a commit
    and the checkpoint that it may make, has a thread: meanwhile the loop carries keystrokes.
    """

    dialect = Dialect.SQLITE

    def __init__(self, path: Path) -> None:
        self._path = path
        # Held while the writer is the thread's, too.
        self._writing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "registry")
        try:
            # Who is where is nobody else's business; SQLite gives its side files the same mode.
            path.touch(mode=0o600)
        except OSError as exc:
            raise RegistryError(f"registry {path}: {exc.strerror}") from exc
        # Two connections, so that nobody reads what a transaction has not committed yet.
        self._writer = self._connect()
        try:
            self._writer.run("PRAGMA journal_mode = WAL")
            self._reader = self._connect()
        except BaseException:
            self._writer.close()
            raise

    async def aclose(self) -> None:
        async with self._writing:
            self._reader.close()
            self._writer.close()
            self._thread.shutdown()

    async def fetch(self, sql: str, *values: object) -> list[Row]:
        return await self._reader.fetch(sql, *values)

    async def fetch_one(self, sql: str, *values: object) -> Row | None:
        return await self._reader.fetch_one(sql, *values)

    async def execute(self, sql: str, *values: object) -> int:
        async with self._writing:
            self._writer.run(_SYNCHRONOUS[True])
            return await self._in_thread(sql, *values)

    @asynccontextmanager
    async def transaction(self, *, durable: bool = True) -> AsyncIterator[Transaction]:
        async with self._writing:
            self._writer.run(_SYNCHRONOUS[durable])
            self._writer.run("BEGIN IMMEDIATE")
            try:
                yield self._writer
                await self._in_thread("COMMIT")
            except BaseException:
                # SQLite has already rolled back after a full disk or an I/O error.
                if self._writer.in_transaction:
                    self._writer.run("ROLLBACK")
                raise

    async def _in_thread(self, sql: str, *values: object) -> int:
        """How many rows it has changed. Who breaks it off waits all the same for its end."""
        run = partial(self._writer.run, sql, *values)
        running = asyncio.get_running_loop().run_in_executor(self._thread, run)
        try:
            return (await asyncio.shield(running)).rowcount
        except asyncio.CancelledError:
            while not running.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            # Else asyncio complains that nobody has asked for it.
            running.exception()
            raise

    def _connect(self) -> _SqliteConnection:
        return _SqliteConnection(self._path)


class _SqliteConnection:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as exc:
            raise self._error(exc) from exc
        self._db.row_factory = sqlite3.Row

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def close(self) -> None:
        self._db.close()

    def run(self, sql: str, *values: object) -> sqlite3.Cursor:
        # To SQLite `$1` is the parameter named 1.
        named = {str(number): storable(value) for number, value in enumerate(values, 1)}
        try:
            return self._db.execute(sql, named)
        except OverflowError as exc:
            raise StatementError(f"registry {self._path}: {exc}") from exc
        except sqlite3.Error as exc:
            raise self._error(exc) from exc

    async def fetch(self, sql: str, *values: object) -> list[Row]:
        cursor = self.run(sql, *values)
        try:
            return cursor.fetchall()
        except sqlite3.Error as exc:
            raise self._error(exc) from exc

    async def fetch_one(self, sql: str, *values: object) -> Row | None:
        rows = await self.fetch(sql, *values)
        return rows[0] if rows else None

    async def execute(self, sql: str, *values: object) -> int:
        return self.run(sql, *values).rowcount

    async def script(self, sql: str) -> None:
        # Not executescript: that commits first, and the steps must stand or fall together.
        statement = ""
        for part in sql.split(";"):
            statement += f"{part};"
            if sqlite3.complete_statement(statement) and statement.strip() != ";":
                self.run(statement)
                statement = ""

    def _error(self, exc: sqlite3.Error) -> GatewayError:
        text = f"registry {self._path}: {exc}"
        if isinstance(exc, sqlite3.IntegrityError | sqlite3.InterfaceError | sqlite3.DataError):
            return StatementError(text)
        if isinstance(exc, sqlite3.ProgrammingError) and "closed" not in str(exc):
            return StatementError(text)
        return RegistryError(text)
