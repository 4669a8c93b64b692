import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID

import pytest

from gwmodule.amt import digest
from gwmodule.amt.redirection import (
    CLEAR_TEXT_LOGIN,
    LoginMethod,
    MessageType,
    build_authenticate,
    build_sol_plain,
)
from gwmodule.amt.sol import SolClient, SolClosed, SolData, SolEvent, SolOpened, SolRefused
from gwmodule.sim import device as device_module
from gwmodule.sim.connections import RedirectionConnection
from gwmodule.sim.control import ControlError, request
from gwmodule.sim.device import ANY_PORTS, CannotListen, Ports, SimulatedDevice
from gwmodule.sim.hello import HelloTarget
from gwmodule.sim.machine import Machine, PowerRequest, Provisioning, ReturnValue
from gwmodule.sim.redirection import Login
from tests.amt.transcript import START, START_SOL
from tests.sim.test_rmcp import PING
from tests.sim.test_wsman import get, invoke

PC = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
LOOPBACK = "127.0.0.1"


def machine(provisioning: Provisioning = Provisioning.MANAGED) -> Machine:
    now = asyncio.get_running_loop().time()
    return Machine(PC, "P@ssw0rd", now=now, provisioning=provisioning, serial_pace=0.05)


def simulated(pc: Machine | None = None, **changes: object) -> SimulatedDevice:
    arguments: dict[str, object] = {"ports": ANY_PORTS, "login": Login.BOTH}
    return SimulatedDevice(LOOPBACK, pc or machine(), **(arguments | changes))  # type: ignore[arg-type]


def careless() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.asynccontextmanager
async def connected(
    port: int, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class Console:
    """A SolClient on a real connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self.sol = SolClient("admin", password="P@ssw0rd", now=self._loop.time())

    async def next_event(self) -> SolEvent:
        async with asyncio.timeout(10):
            while True:
                self._writer.write(self.sol.data_to_send(1 << 20))
                if event := self.sol.next_event():
                    return event
                self.sol.receive_data(await self._reader.read(4096), self._loop.time())

    async def read_until(self, text: bytes) -> bytes:
        seen = b""
        while text not in seen:
            event = await self.next_event()
            assert not isinstance(event, SolClosed | SolRefused)
            if isinstance(event, SolData):
                seen += event.data
        return seen


def post(body: bytes, authorization: str = "") -> bytes:
    head = f"POST /wsman HTTP/1.1\r\nHost: pc\r\nContent-Length: {len(body)}\r\n"
    if authorization:
        head += f"Authorization: {authorization}\r\n"
    return head.encode() + b"\r\n" + body


async def read_response(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    if b"chunked" not in head:
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return head, await reader.readexactly(length)
    body = b""
    while size := (await reader.readline()).strip():
        if size == b"0":
            await reader.readline()
            break
        assert len(size) == 4, "firmware writes chunk sizes with four digits"
        body += (await reader.readexactly(int(size, 16) + 2))[:-2]
    return head, body


async def authorization(port: int, context: ssl.SSLContext | None = None) -> str:
    async with connected(port, context) as (reader, writer):
        writer.write(post(b""))
        head, _ = await read_response(reader)
        assert head.startswith(b"HTTP/1.1 401 ")
        assert await reader.read() == b"", "the first answer ends the connection"
    value = head.split(b"WWW-Authenticate: ")[1].split(b"\r\n")[0].decode()
    given = digest.parse_challenge(value)
    secret = digest.ha1("admin", given.realm, "P@ssw0rd")
    return digest.authorization(
        given, "admin", secret, method="POST", uri="/wsman", nonce_count=1, cnonce="c"
    )


@pytest.mark.parametrize("tls", [False, True])
async def test_wsman_answers_over_http_and_https(tls: bool) -> None:
    async with simulated() as device:
        port = device.ports.wsman_tls if tls else device.ports.wsman
        context = careless() if tls else None
        value = await authorization(port, context)
        async with connected(port, context) as (reader, writer):
            writer.write(post(get("AMT_GeneralSettings"), value))
            head, body = await read_response(reader)
            assert head.startswith(b"HTTP/1.1 200 ")
            assert device.machine.realm.encode() in body
            # The connection lives on, and a nonce is used once per count.
            writer.write(post(get("AMT_GeneralSettings"), value))
            head, _ = await read_response(reader)
            assert b'stale="true"' in head


@pytest.mark.parametrize("tls", [False, True])
async def test_the_serial_line_answers_over_both_ports(tls: bool) -> None:
    async with simulated() as device:
        port = device.ports.redirection_tls if tls else device.ports.redirection
        async with connected(port, careless() if tls else None) as streams:
            console = Console(*streams)
            assert isinstance(await console.next_event(), SolOpened)
            await console.read_until(b"pc login: ")
            console.sol.send(b"anna\r")
            assert b"anna\r\nHello, anna." in await console.read_until(b":~$ ")
            console.sol.close()
            assert await console.next_event() == SolClosed("closed by us")
        await until(lambda: not device.machine.sessions)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_reset_over_wsman_shows_post_on_the_serial_line() -> None:
    async with simulated() as device:
        value = await authorization(device.ports.wsman)
        async with connected(device.ports.redirection) as streams:
            console = Console(*streams)
            await console.read_until(b"login: ")
            async with connected(device.ports.wsman) as (reader, writer):
                reset = invoke(
                    "CIM_PowerManagementService",
                    "RequestPowerStateChange",
                    "<h:PowerState>10</h:PowerState>",
                )
                writer.write(post(reset, value))
                assert b"<g:ReturnValue>0<" in (await read_response(reader))[1]
            text = await console.read_until(b"login: ")
            assert b"BIOS" in text
            assert b"8192 MB OK" in text
            refused = device.machine.request_power(PowerRequest.OFF, 0.0)
            assert refused is ReturnValue.INVALID_TRANSITION


async def test_a_second_console_is_told_that_the_line_is_busy() -> None:
    async with simulated() as device, connected(device.ports.redirection) as first:
        assert isinstance(await Console(*first).next_event(), SolOpened)
        async with connected(device.ports.redirection) as second:
            refused = await Console(*second).next_event()
            assert isinstance(refused, SolRefused)
            assert refused.status == 2


async def test_a_console_that_vanishes_frees_the_line() -> None:
    async with simulated() as device:
        async with connected(device.ports.redirection) as (reader, writer):
            assert isinstance(await Console(reader, writer).next_event(), SolOpened)
            writer.transport.abort()
        await until(lambda: not device.machine.sessions)


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


async def test_a_console_that_asks_and_does_not_read_is_not_read_either() -> None:
    connection = RedirectionConnection(simulated(), Login.PLAIN, lambda: "nonce")
    transport = FakeTransport()
    connection.connection_made(transport)
    login = CLEAR_TEXT_LOGIN.build({"username": b"admin", "password": b"P@ssw0rd"})
    connection.data_received(START + build_authenticate(LoginMethod.CLEAR_TEXT, login) + START_SOL)
    connection.pause_writing()
    connection.data_received(build_sol_plain(MessageType.SOL_KEEP_ALIVE_PING, 7) * 4096)
    assert not transport.reading
    connection.resume_writing()
    await until(lambda: transport.reading)
    assert transport.written.count(build_sol_plain(MessageType.SOL_KEEP_ALIVE_PONG, 7)) == 4096
    connection.connection_lost(None)


async def test_a_stopping_device_closes_what_is_open() -> None:
    async with simulated() as device:
        streams = await asyncio.open_connection(LOOPBACK, device.ports.redirection)
        assert isinstance(await Console(*streams).next_event(), SolOpened)
    with contextlib.suppress(ConnectionError):
        while await streams[0].read(4096):
            pass
    streams[1].close()


async def test_garbage_on_every_port_ends_that_connection_only() -> None:
    async with simulated() as device:
        ports = device.ports
        for port in (ports.wsman, ports.wsman_tls, ports.redirection, ports.redirection_tls):
            async with connected(port) as (reader, writer):
                writer.write(b"\x00garbage\r\n\r\n" * 10)
                async with asyncio.timeout(5):
                    with contextlib.suppress(ConnectionError):
                        while await reader.read(4096):
                            pass
        assert await authorization(ports.wsman)


async def test_requests_beyond_the_limits_are_refused() -> None:
    async with simulated() as device:
        async with connected(device.ports.wsman) as (reader, writer):
            writer.write(post(b"x" * 70_000))
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        async with connected(device.ports.wsman) as (reader, writer):
            writer.write(b"POST /wsman HTTP/1.1\r\nX: " + b"x" * 20_000)
            assert (await reader.readline()).startswith(b"HTTP/1.1 431 ")


async def test_a_client_may_ask_before_it_sends_the_body() -> None:
    async with simulated() as device, connected(device.ports.wsman) as (reader, writer):
        writer.write(b"POST /wsman HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n")
        writer.write(b"Expect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"x")
        assert (await read_response(reader))[0].startswith(b"HTTP/1.1 401 ")


async def test_connections_beyond_what_it_has_sockets_for_are_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_module, "MAX_CONNECTIONS", 1)
    async with (
        simulated() as device,
        connected(device.ports.wsman),
        connected(device.ports.redirection) as (reader, _),
    ):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def test_a_presence_ping_is_answered() -> None:
    loop = asyncio.get_running_loop()
    async with simulated() as device:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            await loop.sock_sendto(sock, b"garbage", (LOOPBACK, device.ports.rmcp))
            await loop.sock_sendto(sock, PING, (LOOPBACK, device.ports.rmcp))
            async with asyncio.timeout(5):
                answer = await loop.sock_recv(sock, 100)
        assert int.from_bytes(answer[16:18], "big") == device.ports.wsman


@contextlib.asynccontextmanager
async def hello_server() -> AsyncIterator[tuple[HelloTarget, "asyncio.Queue[bytes]"]]:
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.put_nowait(await reader.read())
        writer.close()

    server = await asyncio.start_server(take, LOOPBACK, 0)
    async with server:
        yield HelloTarget("localhost", server.sockets[0].getsockname()[1]), received


async def test_hellos_count_up_until_somebody_activates_the_pc(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with hello_server() as (target, received):
        pc = machine(Provisioning.SETUP)
        async with simulated(pc, hello=target, hello_interval=0.02, control=path) as device:
            async with asyncio.timeout(5):
                hellos = [await received.get() for _ in range(3)]
            assert [hello[4] for hello in hellos] == [0, 1, 2]
            assert all(hello[8:24] == PC.bytes_le for hello in hellos)
            state = await asyncio.to_thread(request, path, "activate")
            assert state["provisioning"] == "managed"
            await asyncio.sleep(0.1)
            while not received.empty():
                received.get_nowait()
            await asyncio.sleep(0.1)
            assert received.empty()
            assert device.state()["hellos_sent"] >= 3
        assert not path.exists()


async def test_a_managed_device_says_no_hello() -> None:
    async with hello_server() as (target, received):
        async with simulated(hello=target, hello_interval=0.01):
            await asyncio.sleep(0.1)
        assert received.empty()


async def test_nobody_there_to_hear_it_is_no_reason_to_stop() -> None:
    with socket.socket() as unused:
        unused.bind((LOOPBACK, 0))
        target = HelloTarget(LOOPBACK, unused.getsockname()[1])
        pc = machine(Provisioning.SETUP)
        async with simulated(pc, hello=target, hello_interval=0.01) as device:
            await until(lambda: device.hello_attempts > 2)
            assert device.hellos_sent == 0


async def test_a_port_that_is_taken_is_a_clear_error() -> None:
    async with simulated() as first:
        ports = Ports(0, 0, first.ports.redirection, 0, 0)
        with pytest.raises(CannotListen, match=f"port {first.ports.redirection}"):
            async with simulated(ports=ports):
                pass
        ports = Ports(0, 0, 0, 0, first.ports.rmcp)
        with pytest.raises(CannotListen, match="UDP port"):
            async with simulated(ports=ports):
                pass


async def test_two_simulators_do_not_share_a_control_socket(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with simulated(control=path):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(ControlError, match="another simulator"):
            async with simulated(control=path):
                pass
    with pytest.raises(CannotListen):
        async with simulated(control=tmp_path / "missing" / "control.sock"):
            pass


def test_the_offset_moves_every_port() -> None:
    assert Ports.with_offset(100) == Ports(17092, 17093, 17094, 17095, 723)


async def test_the_state_is_plain_json() -> None:
    async with simulated() as device:
        state = json.loads(json.dumps(device.state()))
    assert state["power"] == "on"
    assert state["uuid"] == str(PC)
