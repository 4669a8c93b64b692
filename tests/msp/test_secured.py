import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from gwmodule.amt.redirection import MessageType
from gwmodule.errors import Code, TlsPinMismatch
from gwmodule.msp.secured import open_secured
from gwmodule.msp.subprotocol import close_code
from gwmodule.sim.device import ANY_PORTS, SimulatedDevice
from gwmodule.sim.machine import Machine
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import StreamTarget
from tests.amt.transcript import ACCEPTED, METHODS, QUERY, START, START_SOL, login_of
from tests.msp.conftest import IP, MAC, NOW, PC, FakeSession, Service, TcpStream, presence
from tests.msp.test_webrelay import tool

PASSWORD = "P@ssw0rd"
TARGET = StreamTarget(IP, 16994, MAC, PC)


class Home:
    """A PC, and a gateway that connects to its real ports."""

    def __init__(self, device: SimulatedDevice) -> None:
        assert device.machine.certificate is not None
        self.device = device
        self.pin = hashlib.sha256(device.machine.certificate.der).digest()
        self.asked: list[StreamTarget] = []
        self.streams: list[TcpStream] = []

    async def open(self, target: StreamTarget, priority: Priority) -> TcpStream:
        self.asked.append(target)
        ports = self.device.ports
        port = {16994: ports.redirection, 16995: ports.redirection_tls}[target.port]
        stream = TcpStream(*await asyncio.open_connection("127.0.0.1", port), priority)
        self.streams.append(stream)
        return stream


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    now = asyncio.get_running_loop().time()
    machine = Machine(PC, PASSWORD, now=now, serial_pace=0.01)
    async with SimulatedDevice("127.0.0.1", machine, ports=ANY_PORTS) as device:
        home = Home(device)
        yield home
        for stream in home.streams:
            stream.reset(Code.OK, "")


async def test_plain_bytes_pass_inside_tls(home: Home) -> None:
    stream = await open_secured(FakeSession(open=home.open), TARGET, Priority.BULK, home.pin)
    assert [target.port for target in home.asked] == [16995]
    stream.write(START)
    stream.write(QUERY)
    await stream.drain()
    said = b""
    while METHODS not in said:
        said += await stream.read()
    assert said[0] == MessageType.START_REDIRECTION_SESSION_REPLY


async def test_another_certificate_gets_not_a_byte(home: Home) -> None:
    with pytest.raises(TlsPinMismatch):
        await open_secured(FakeSession(open=home.open), TARGET, Priority.BULK, b"\1" * 32)


async def test_a_tool_without_login_and_tls_reaches_a_pinned_device(
    home: Home, service: Service
) -> None:
    service.session.open = home.open
    await service.vault.store("default", PC, "admin", PASSWORD, NOW, actor="test")
    await service.tell(presence(pin=home.pin, realm=home.device.machine.realm), NOW + 1)
    async with tool(service) as websocket:
        for message in (START, QUERY, login_of(""), login_of("", b"1", b"ffff")):
            await websocket.send_bytes(message)
            said = await websocket.receive_bytes()
        assert said == ACCEPTED
        await websocket.send_bytes(START_SOL)
        assert (await websocket.receive_bytes())[0] == MessageType.START_SOL_REDIRECTION_REPLY
    assert [target.port for target in home.asked] == [16995]


async def test_a_pinned_device_with_another_certificate_ends_the_stream(
    home: Home, service: Service
) -> None:
    service.session.open = home.open
    await service.vault.store("default", PC, "admin", PASSWORD, NOW, actor="test")
    await service.tell(presence(pin=b"\1" * 32), NOW + 1)
    async with tool(service) as websocket:
        await websocket.send_bytes(START)
        assert (await websocket.receive()).data == close_code(Code.TLS_PIN)
