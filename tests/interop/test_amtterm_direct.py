"""Debian's amtterm and curl, which know nothing of this project, judge the simulator."""

import asyncio
import contextlib
import os
import pty
import shutil
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from gwmodule.sim.device import ANY_PORTS, SimulatedDevice
from gwmodule.sim.machine import Machine
from gwmodule.sim.redirection import Login
from tests.sim.test_wsman import get

PASSWORD = "P@ssw0rd"


def binary(name: str) -> str:
    """The path of `name`; without it, the test is skipped, but never in CI."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed and CI must have it")
        pytest.skip(f"{name} is not installed")
    return path


@contextlib.asynccontextmanager
async def simulated(os_alive: bool = True) -> AsyncIterator[SimulatedDevice]:
    machine = Machine(
        UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea"),
        PASSWORD,
        now=asyncio.get_running_loop().time(),
        os_alive=os_alive,
        serial_pace=0.05,
    )
    async with SimulatedDevice("127.0.0.1", machine, ports=ANY_PORTS, login=Login.BOTH) as device:
        yield device


class Terminal:
    """A program on a pseudo terminal."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self._master = master
        self._loop = asyncio.get_running_loop()
        self._more = asyncio.Event()
        self.process = process
        self.text = b""
        self._loop.add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 4096)
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._master)
        self.text += data
        self._more.set()

    async def read_until(self, text: bytes) -> bytes:
        """Everything up to `text`, which must come within ten seconds."""
        try:
            async with asyncio.timeout(10):
                while text not in self.text:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            pytest.fail(f"no {text!r} in {self.text!r}")
        seen, _, self.text = self.text.partition(text)
        return seen + text

    def type(self, data: bytes) -> None:
        os.write(self._master, data)


@contextlib.asynccontextmanager
async def amtterm(port: int, password: str = PASSWORD) -> AsyncIterator[Terminal]:
    path = binary("amtterm")
    master, slave = pty.openpty()
    environment = {**os.environ, "AMT_PASSWORD": password, "TERM": "vt100"}
    process = await asyncio.create_subprocess_exec(
        path, "127.0.0.1", str(port), stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    terminal = Terminal(master, process)
    try:
        yield terminal
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)


async def test_amtterm_shows_the_serial_line_and_the_echo_of_a_typed_line() -> None:
    async with simulated() as device, amtterm(device.ports.redirection) as terminal:
        await terminal.read_until(b"serial-over-lan redirection ok")
        await terminal.read_until(b"pc login: ")
        terminal.type(b"anna\n")
        assert b"anna" in await terminal.read_until(b"Hello, anna.")
        terminal.type(b"uuid\n")
        await terminal.read_until(str(device.machine.uuid).encode())
        terminal.type(b"\x1d")
        await terminal.read_until(b"connection closed")
        async with asyncio.timeout(5):
            assert await terminal.process.wait() == 0
    assert device.machine.sessions == frozenset()


async def test_amtterm_shows_the_machine_booting_into_the_recovery_console() -> None:
    async with (
        simulated(os_alive=False) as device,
        amtterm(device.ports.redirection) as terminal,
    ):
        await terminal.read_until(b"recovery> ")
        device.machine.request_power(10, asyncio.get_running_loop().time())
        device.changed()
        assert b"8192 MB OK" in await terminal.read_until(b"No bootable device")
        await terminal.read_until(b"recovery> ")
        terminal.type(b"help\n")
        await terminal.read_until(b"help  uuid  reset  exit")


async def test_amtterm_with_a_wrong_password_is_refused() -> None:
    async with simulated() as device, amtterm(device.ports.redirection, "wrong") as terminal:
        await terminal.read_until(b"session authentication failed")
        assert device.machine.sessions == frozenset()


async def test_a_second_amtterm_finds_the_line_busy() -> None:
    async with simulated() as device, amtterm(device.ports.redirection) as first:
        await first.read_until(b"pc login: ")
        async with amtterm(device.ports.redirection) as second:
            await second.read_until(b"redirection session start failed")


async def curl(*arguments: str) -> tuple[int, bytes]:
    process = await asyncio.create_subprocess_exec(
        binary("curl"),
        *("--silent", "--show-error", "--insecure", "--max-time", "10", "--include"),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_curl_gets_an_answer_with_its_own_digest(scheme: str) -> None:
    async with simulated() as device:
        port = device.ports.wsman if scheme == "http" else device.ports.wsman_tls
        url = f"{scheme}://127.0.0.1:{port}/wsman"
        body = get("CIM_AssociatedPowerManagementService").decode()
        login = ("--digest", "--user", f"admin:{PASSWORD}")
        content = ("--header", "Content-Type: application/soap+xml;charset=UTF-8")
        status, output = await curl(*login, *content, "--data", body, url)
        assert status == 0, output
        assert b"HTTP/1.1 401 Unauthorized" in output
        assert b"HTTP/1.1 200 OK" in output
        assert b"<g:PowerState>2</g:PowerState>" in output


async def test_curl_with_a_wrong_password_is_refused() -> None:
    async with simulated() as device:
        url = f"http://127.0.0.1:{device.ports.wsman}/wsman"
        _, output = await curl("--digest", "--user", "admin:wrong", "--data", "x", url)
        assert output.count(b"HTTP/1.1 401 Unauthorized") == 2
        assert b"HTTP/1.1 200" not in output
