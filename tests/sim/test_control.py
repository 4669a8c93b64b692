import asyncio
import base64
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from gwmodule.sim.control import ControlError, ControlServer, answer, claim, request


class Pc:
    def __init__(self) -> None:
        self.activated = False

    def state(self) -> dict[str, Any]:
        return {"provisioning": "managed" if self.activated else "setup"}

    def activate(self) -> bool:
        changed, self.activated = not self.activated, True
        return changed

    def spoken(self) -> bytes:
        return b"\x00login: "


def test_state_and_activate_are_answered() -> None:
    pc = Pc()
    assert answer(pc, b'{"command": "state"}') == {"ok": True, "provisioning": "setup"}
    activated = {"ok": True, "changed": True, "provisioning": "managed"}
    assert answer(pc, b'{"command": "activate"}') == activated
    assert answer(pc, b'{"command": "activate"}')["changed"] is False


def test_what_the_serial_line_said_is_answered_in_base64() -> None:
    answered = answer(Pc(), b'{"command": "serial"}')
    assert base64.b64decode(answered["serial"]) == b"\x00login: "


@pytest.mark.parametrize("line", [b"", b"x", b"[]", b'{"command": "explode"}', b"\xff", b"{}"])
def test_anything_else_is_an_error(line: bytes) -> None:
    answered = answer(Pc(), line)
    assert answered["ok"] is False
    assert answered["error"]


async def test_lines_are_answered_over_a_real_socket(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    loop = asyncio.get_running_loop()
    pc = Pc()
    server = await loop.create_unix_server(lambda: ControlServer(pc), path)
    async with server:
        answered = await asyncio.to_thread(request, path, "activate")
        assert answered["provisioning"] == "managed"
        with pytest.raises(ControlError, match="unknown command"):
            await asyncio.to_thread(request, path, "explode")
        with pytest.raises(ControlError, match="another simulator"):
            claim(path)


async def test_an_endless_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: ControlServer(Pc()), path)
    async with server:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"command": "state"}\n' + b"x" * 5000)
        assert json.loads(await reader.readline())["ok"]
        assert await reader.read() == b""
        writer.close()


def test_no_simulator_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no simulator answers"):
        request(tmp_path / "control.sock", "state")


def test_the_socket_of_a_dead_simulator_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    claim(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    claim(path)
    assert not path.exists()


def test_a_path_that_cannot_be_a_socket_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ControlError):
        claim(tmp_path / ("x" * 200))


@pytest.mark.parametrize("line", [b"not json\n", b"[]\n", b""])
async def test_an_answer_that_is_none_is_a_clear_error(tmp_path: Path, line: bytes) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line)
        writer.close()

    path = tmp_path / "control.sock"
    server = await asyncio.start_unix_server(reply, path)
    async with server:
        with pytest.raises(ControlError):
            await asyncio.to_thread(request, path, "state")
