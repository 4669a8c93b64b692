"""A fake gateway session behind the real API on a real unix socket."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from aiohttp import web

from gwmodule.errors import ChannelReset, Code
from gwmodule.msp.accounts import Accounts, Cost
from gwmodule.msp.api import Api, ApiOptions, Parts, unix_socket
from gwmodule.msp.client import ApiClient
from gwmodule.msp.database import Database, open_database
from gwmodule.msp.http_port import HttpPort
from gwmodule.msp.pki import Authority
from gwmodule.msp.registry import Observed, Registry
from gwmodule.msp.traffic import Traffic
from gwmodule.msp.vault import Vault
from gwmodule.wire.frames import Priority
from gwmodule.wire.functions import STATUS
from gwmodule.wire.messages import Credential, Result, StreamTarget
from gwmodule.wire.notices import Observation, Presence, Provisioning
from tests.msp.postgres import Server, required

PC = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
MAC = bytes.fromhex("020000000001")
IP = IPv4Address("192.168.1.10")
REALM = "Digest:34BF4B5A0561F95248F58509A406E046"
NOW = 1_800_000_000.0
# Seconds after which an open stream's right is asked again.
RECHECK = 0.05


class FakeStream:
    """The device's end: the test feeds `incoming` and looks at `written`."""

    def __init__(self, target: StreamTarget, priority: Priority) -> None:
        self.target = target
        self.priority = priority
        self.channel = 2
        self.incoming: asyncio.Queue[bytes | ChannelReset] = asyncio.Queue()
        self.written: list[bytes] = []
        self.eof = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()
        self.changed = asyncio.Event()
        self.reset_with: tuple[Code, str] | None = None

    async def read(self) -> bytes:
        item = await self.incoming.get()
        if isinstance(item, ChannelReset):
            raise item
        return item

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.changed.set()

    async def drain(self) -> None:
        await self.room.wait()

    def write_eof(self) -> None:
        self.eof.set()

    def reset(self, code: Code, reason: str) -> None:
        self.reset_with = (code, reason)
        self.changed.set()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@dataclass
class FakeSession:
    gateway: str = "home1"
    observed_address: str = "203.0.113.7"
    observed_port: int = 40000
    software: str = "0.1.0"
    boot_id: bytes = bytes(8)
    connected: bool = True
    rtt: float | None = 0.021
    buffered: int = 0
    calls: list[dict[str, Any]] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], Awaitable[Result]] | None = None
    streams: asyncio.Queue[FakeStream] = field(default_factory=asyncio.Queue)
    checklist: dict[str, Any] = field(default_factory=lambda: {"steps": []})
    ended_with: tuple[Code, str] | None = None
    open: Callable[[StreamTarget, Priority], Awaitable[Any]] | None = None

    async def call(self, **arguments: Any) -> Result:
        self.calls.append(arguments)
        if self.answer is not None:
            return await self.answer(arguments)
        return result({"power_state": 2})

    async def explain(self, **arguments: Any) -> Result:
        return result(self.checklist)

    async def status(self, deadline: float = 10.0) -> Result:
        return await self.call(function=STATUS)

    def end(self, code: Code, reason: str) -> None:
        self.connected = False
        self.ended_with = (code, reason)

    async def open_stream(self, target: StreamTarget, priority: Priority) -> Any:
        if self.open is not None:
            return await self.open(target, priority)
        stream = FakeStream(target, priority)
        self.streams.put_nowait(stream)
        return stream

    @property
    def credential(self) -> Credential:
        credential = self.calls[-1]["credential"]
        assert isinstance(credential, Credential)
        return credential


class FakeSessions:
    def __init__(self, *sessions: FakeSession) -> None:
        self.by_gateway = {session.gateway: session for session in sessions}
        self.traffic = Traffic()

    def locate(self, gateway: str) -> FakeSession | None:
        return self.by_gateway.get(gateway)

    def all(self) -> list[FakeSession]:
        return list(self.by_gateway.values())


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@dataclass
class Service:
    database: Database
    registry: Registry
    session: FakeSession
    sessions: FakeSessions
    path: Path
    client: ApiClient
    runner: web.AppRunner
    api: Api
    accounts: Accounts
    vault: Vault
    clock: Clock

    async def tell(self, observation: Observation, at: float = NOW, gateway: str = "home1") -> None:
        await self.registry.record([Observed(gateway, "203.0.113.7", 40000, observation, 0.0, at)])


def result(body: object, code: Code = Code.OK) -> Result:
    return Result(1, code, 0.5, 4, json.dumps(body).encode())


def answer(code: Code, body: object) -> Callable[[dict[str, Any]], Awaitable[Result]]:
    async def give(_: dict[str, Any]) -> Result:
        return result(body, code)

    return give


def presence(**changes: Any) -> Presence:
    arguments: dict[str, Any] = {
        "mac": MAC,
        "address": IP,
        "provisioning": Provisioning.POST,
        "ports": (16992, 16994),
        "realm": REALM,
        "server": "Intel(R) Active Management Technology 15.0.23.1706",
        "uuid": PC,
    }
    return Presence(**(arguments | changes))


@contextlib.asynccontextmanager
async def served(port: HttpPort) -> AsyncIterator[int]:
    """The number of a port that accepts meanwhile."""
    task = asyncio.get_running_loop().create_task(port.run())
    try:
        yield port.port
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A running PostgreSQL server."""
    server = Server(required())
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """An empty database of each engine."""
    url = str(tmp_path / "registry.db")
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").url()
        await empty(url)
    async with contextlib.aclosing(await open_database(url)) as database:
        yield database


async def empty(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """One gateway, `home1`, with one managed device, `PC`."""
    authority = Authority.open(tmp_path, NOW)
    database = await open_database(str(tmp_path / "registry.db"))
    registry = Registry(database)
    await registry.add_gateway("home1", "aa", NOW)
    session = FakeSession()
    sessions = FakeSessions(session)
    vault = Vault(database, bytes(32))
    # Cheap hashes: what a real one costs is measured elsewhere.
    accounts = Accounts(database, vault, cost=Cost(log2_n=4))
    await accounts.add_tenant("other", NOW, actor="test")
    clock = Clock()
    parts = Parts(
        database=database,
        registry=registry,
        accounts=accounts,
        vault=vault,
        sessions=sessions,
        authority=authority,
        signing_key=await accounts.signing_key(),
        clock=clock,
        monotonic=asyncio.get_running_loop().time,
    )
    api = Api(parts, ApiOptions(names=["gwmodule-msp", "msp.example"], recheck=RECHECK))
    runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    path = tmp_path / "s"
    await web.SockSite(runner, unix_socket(path)).start()
    async with ApiClient(str(path)) as client:
        service = Service(
            database,
            registry,
            session,
            sessions,
            path,
            client,
            runner,
            api,
            accounts,
            vault,
            clock,
        )
        await service.tell(presence())
        yield service
    await runner.cleanup()
    await database.aclose()


class TcpStream:
    """A stream to a real socket, as the gateway would have it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, priority: Priority
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.priority = priority
        self.channel = 2

    async def read(self) -> bytes:
        try:
            return await self._reader.read(4096)
        except ConnectionError as exc:
            raise ChannelReset(Code.CONNECTION_LOST, "the device reset it") from exc

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    def write_eof(self) -> None:
        self._writer.write_eof()

    def reset(self, code: Code, reason: str) -> None:
        self._writer.transport.abort()

    def end(self) -> None:
        """What happens when the device closes."""
        self._reader.feed_eof()

    def cut(self, code: Code, reason: str) -> None:
        """What happens when the gateway's session is lost."""
        self._reader.set_exception(ChannelReset(code, reason))
        self._writer.transport.abort()
