import asyncio
from collections.abc import AsyncIterator

import pytest

from gwmodule.errors import Code
from gwmodule.msp.sol import REOPEN_LIMIT, Retries, SolFailed, SolLogin, SolLost, SolSession
from gwmodule.sim.device import ANY_PORTS, SimulatedDevice
from gwmodule.sim.machine import Machine
from tests.msp.conftest import PC

PASSWORD = "P@ssw0rd"


class Wire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        return await self._reader.read(4096)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self, code: Code = Code.OK, reason: str = "") -> None:
        self._writer.close()


class Owner:
    def __init__(self) -> None:
        self.data = b""
        self.said: list[str] = []
        self.opened = asyncio.Event()
        self.more = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()

    def sol_opened(self) -> None:
        self.opened.set()

    def sol_data(self, data: bytes) -> None:
        self.data += data
        self.more.set()

    async def sol_room(self) -> None:
        await self.room.wait()

    def sol_said(self, text: str, *, gap: bool = False) -> None:
        self.said.append(text)

    async def see(self, text: bytes) -> None:
        async with asyncio.timeout(5):
            while text not in self.data:
                self.more.clear()
                await self.more.wait()


@pytest.fixture
async def device() -> AsyncIterator[SimulatedDevice]:
    machine = Machine(
        PC, PASSWORD, now=asyncio.get_running_loop().time(), hostname="pc", serial_pace=0.01
    )
    async with SimulatedDevice("127.0.0.1", machine, ports=ANY_PORTS) as simulated:
        yield simulated


async def run(device: SimulatedDevice, session: SolSession, *, again: bool = False) -> None:
    async def open_port(_: int) -> Wire:
        return Wire(*await asyncio.open_connection("127.0.0.1", device.ports.redirection))

    await session.run(open_port, again=again)


async def test_it_types_sees_and_ends_in_order(device: SimulatedDevice) -> None:
    owner = Owner()
    session = SolSession(SolLogin("admin", PASSWORD), owner)
    async with asyncio.TaskGroup() as group:
        group.create_task(run(device, session))
        await owner.opened.wait()
        await session.type(b"hello\r")
        await owner.see(b"Hello, hello.")
        session.close()


async def test_a_ping_measures_the_way_to_the_device(device: SimulatedDevice) -> None:
    owner = Owner()
    session = SolSession(SolLogin("admin", PASSWORD), owner)
    async with asyncio.TaskGroup() as group:
        group.create_task(run(device, session))
        await owner.opened.wait()
        assert session.round_trip is None
        session.ping()
        async with asyncio.timeout(5):
            while session.round_trip is None:
                await asyncio.sleep(0.01)
        assert 0 <= session.round_trip < 5
        session.close()


async def test_with_a_realm_nothing_is_proved_to_another_device(device: SimulatedDevice) -> None:
    session = SolSession(SolLogin("admin", PASSWORD, realm="Digest:0000"), Owner())
    with pytest.raises(SolFailed, match="realm"):
        await run(device, session)


async def test_a_busy_device_is_worth_another_attempt_only_after_a_session(
    device: SimulatedDevice,
) -> None:
    owner = Owner()
    first = SolSession(SolLogin("admin", PASSWORD), owner)
    async with asyncio.TaskGroup() as group:
        group.create_task(run(device, first))
        await owner.opened.wait()
        with pytest.raises(SolFailed, match="busy"):
            await run(device, SolSession(SolLogin("admin", PASSWORD), Owner()))
        with pytest.raises(SolLost, match="busy"):
            await run(device, SolSession(SolLogin("admin", PASSWORD), Owner()), again=True)
        first.close()


async def test_an_owner_without_room_holds_the_device_back(device: SimulatedDevice) -> None:
    owner = Owner()
    session = SolSession(SolLogin("admin", PASSWORD), owner)
    async with asyncio.TaskGroup() as group:
        group.create_task(run(device, session))
        await owner.see(b"login: ")
        owner.room.clear()
        await session.type(b"a")
        await asyncio.sleep(0.2)
        held = owner.data
        await session.type(b"bc")
        await asyncio.sleep(0.2)
        assert owner.data == held
        owner.room.set()
        await owner.see(b"abc")
        session.close()


def test_a_line_that_was_open_is_tried_again_for_a_while() -> None:
    retries = Retries()
    with pytest.raises(SolFailed, match="the gateway is away"):
        retries.failed(SolLost("the gateway is away"), 0.0)
    for start in (1000.0, 2000.0):
        retries.succeeded()
        assert retries.failed(SolLost("lost"), start)
        assert not retries.failed(SolLost("away"), start + REOPEN_LIMIT)
        with pytest.raises(SolFailed, match="away; gave up after 300 s"):
            retries.failed(SolLost("away"), start + REOPEN_LIMIT + 1)


async def test_the_next_attempt_does_not_keep_who_leaves_waiting() -> None:
    stop = asyncio.Event()
    stop.set()
    async with asyncio.timeout(0.4):
        await Retries().wait(stop)
