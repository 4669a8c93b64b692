"""The database interface over PostgreSQL: a pool of connections, one writer at a time.

SQLite has one writer; the same is asked of PostgreSQL by an advisory lock in every transaction.
Then the rules over read and changed rows mean the same on both, for any number of nodes, and no
transaction has to be repeated. Single statements and reads do not take it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from gwmodule.errors import ConfigError, GatewayError
from gwmodule.msp.database import Dialect, RegistryError, Row, StatementError, Transaction, storable

MAX_CONNECTIONS = 8
# Seconds until a connection stands, or one of the pool is free.
CONNECT_TIMEOUT = 5.0
# Seconds for one statement; the server's own limit comes first and leaves the connection usable.
COMMAND_TIMEOUT = 12.0
# Seconds for an update of the schema, which may walk over years of audit: longer, and it hangs.
SCRIPT_TIMEOUT = 86400.0
_SETTINGS = {
    "application_name": "gwmodule-msp",
    "statement_timeout": "10000",
    # A node that died with the lock must not keep the others from writing.
    "lock_timeout": "5000",
    "idle_in_transaction_session_timeout": "10000",
    # Planning by LLVM costs more than any of our statements.
    "jit": "off",
}
_WRITER = 0x67776D6F64756C65  # "gwmodule"
# SQLSTATE classes that speak of the server and not of the statement: connection, rollback by
# conflict, resources (disk full), object state (lock timeout), operator (shutdown, cancelled), I/O.
_UNAVAILABLE = ("08", "25", "28", "3D", "40", "53", "55", "57", "58", "XX")


class PostgresDatabase:
    dialect = Dialect.POSTGRESQL

    def __init__(self, pool: asyncpg.Pool, name: str) -> None:
        self._pool = pool
        self._name = name
        # Those of this node wait here and not on a connection each.
        self._writing = asyncio.Lock()

    @classmethod
    async def connect(cls, url: str) -> PostgresDatabase:
        """ConfigError for what is no URL, RegistryError when the server does not answer."""
        name = _name(url)
        with _translated(name):
            try:
                pool = await asyncpg.create_pool(
                    url,
                    min_size=1,
                    max_size=MAX_CONNECTIONS,
                    timeout=CONNECT_TIMEOUT,
                    command_timeout=COMMAND_TIMEOUT,
                    server_settings=_SETTINGS,
                    reset=_leave_nothing_behind,
                )
            except (asyncpg.exceptions.ClientConfigurationError, ValueError) as exc:
                raise ConfigError("--database", "", f"{name}: {exc}") from exc
        return cls(pool, name)

    async def aclose(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._pool.close()
        except (TimeoutError, OSError, asyncpg.InterfaceError):
            self._pool.terminate()

    async def fetch(self, sql: str, *values: object) -> list[Row]:
        async with self._connection() as connection:
            return await connection.fetch(sql, *values)

    async def fetch_one(self, sql: str, *values: object) -> Row | None:
        async with self._connection() as connection:
            return await connection.fetch_one(sql, *values)

    async def execute(self, sql: str, *values: object) -> int:
        async with self._connection() as connection:
            return await connection.execute(sql, *values)

    @asynccontextmanager
    async def transaction(self, *, durable: bool = True) -> AsyncIterator[Transaction]:
        """If the server is lost in the COMMIT, RegistryError cannot say whether it came about.

        Always as durable as the server makes it.
        """
        async with self._writing, self._connection() as connection:
            await connection.execute("BEGIN")
            try:
                await connection.fetch("SELECT pg_advisory_xact_lock($1)", _WRITER)
                yield connection
            except BaseException:
                # A connection that is lost has rolled back by itself.
                with contextlib.suppress(RegistryError):
                    await connection.execute("ROLLBACK")
                raise
            await connection.execute("COMMIT")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[_PostgresConnection]:
        with _translated(self._name):
            connection = await self._pool.acquire(timeout=CONNECT_TIMEOUT)
        try:
            yield _PostgresConnection(connection, self._name)
        finally:
            with _translated(self._name):
                await self._pool.release(connection)


class _PostgresConnection:
    def __init__(self, connection: Any, name: str) -> None:
        self._connection = connection
        self._name = name

    async def fetch(self, sql: str, *values: object) -> list[Row]:
        with _translated(self._name):
            rows: list[Row] = await self._connection.fetch(sql, *map(storable, values))
        return rows

    async def fetch_one(self, sql: str, *values: object) -> Row | None:
        rows = await self.fetch(sql, *values)
        return rows[0] if rows else None

    async def execute(self, sql: str, *values: object) -> int:
        with _translated(self._name):
            status = await self._connection.execute(sql, *map(storable, values))
        # "UPDATE 3", "INSERT 0 1"; a definition ends without a number.
        count = str(status).rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def script(self, sql: str) -> None:
        with _translated(self._name):
            await self._connection.execute("SET LOCAL statement_timeout = 0")
            await self._connection.execute(sql, timeout=SCRIPT_TIMEOUT)


async def _leave_nothing_behind(_: Any) -> None:
    """In place of a question to the server after each statement.

    asyncpg rolls back by itself what a broken transaction left open, and nothing of ours outlives a
    transaction: no cursor, no setting, no lock, nobody who listens.
    """


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as exc:
        raise _error(name, exc) from exc
    except asyncpg.exceptions.InternalClientError as exc:
        raise RegistryError(f"database {name}: {exc}") from exc


def _error(name: str, exc: Exception) -> GatewayError:
    text = f"database {name}: {str(exc) or type(exc).__name__}"
    if isinstance(exc, asyncpg.PostgresError):
        state = str(getattr(exc, "sqlstate", None) or "")
        return (RegistryError if state[:2] in _UNAVAILABLE else StatementError)(text)
    if isinstance(exc, ValueError):
        # A value that its column cannot take, found before it was sent.
        return StatementError(text)
    return RegistryError(text)


def _name(url: str) -> str:
    """The URL for messages: without user, password and options."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or "localhost"
        return f"{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError as exc:
        raise ConfigError("--database", "", f"is no URL: {exc}") from exc
