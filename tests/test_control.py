from __future__ import annotations

import asyncio
import json
import socket
import stat
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from gwmodule.control import MAX_REQUEST, ControlError, ControlServer, ask, record, require_free
from gwmodule.errors import CaptureError


async def _echo(arguments: dict[str, Any]) -> Any:
    return {"heard": arguments}


async def _refuse(_: dict[str, Any]) -> Any:
    raise CaptureError("no such interface")


async def _stream(arguments: dict[str, Any]) -> Any:
    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            for number in range(arguments["count"]):
                yield b"%d\n" % number
            if arguments.get("wait"):
                await asyncio.sleep(60)
        finally:
            CLOSED.append(arguments["count"])

    return chunks()


CLOSED: list[int] = []


async def _bug(_: dict[str, Any]) -> Any:
    raise RuntimeError("a bug")


class Served:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._server = ControlServer(
            str(path), {"echo": _echo, "refuse": _refuse, "bug": _bug, "stream": _stream}
        )

    async def __aenter__(self) -> Served:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._task = self._group.create_task(self._server.run())
        while not self.path.exists():
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await self._group.__aexit__(None, None, None)

    async def ask(self, verb: str, arguments: dict[str, Any] | None = None) -> Any:
        return await asyncio.to_thread(ask, str(self.path), verb, arguments)

    async def raw(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        writer.write(data)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


async def test_a_verb_gets_its_arguments_and_its_answer_comes_back(tmp_path: Path) -> None:
    async with Served(tmp_path / "run" / "control.sock") as served:
        assert await served.ask("echo", {"a": 1}) == {"heard": {"a": 1}}


async def test_only_the_owner_may_open_the_socket(tmp_path: Path) -> None:
    async with Served(tmp_path / "control.sock") as served:
        assert stat.S_IMODE(served.path.stat().st_mode) == 0o600


async def test_a_socket_of_a_killed_service_is_replaced_and_ours_removed(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(ControlError, match="is the service running"):
        ask(str(path), "echo")
    async with asyncio.timeout(5), Served(path) as served:
        while True:
            try:
                assert await served.ask("echo") == {"heard": {}}
                break
            except ControlError:
                await asyncio.sleep(0.01)
    assert not path.exists()


async def test_errors_are_answers_and_never_tracebacks(tmp_path: Path) -> None:
    async with Served(tmp_path / "control.sock") as served:
        with pytest.raises(ControlError, match="no such interface"):
            await served.ask("refuse")
        with pytest.raises(ControlError, match="internal error, see the log"):
            await served.ask("bug")
        with pytest.raises(ControlError, match="unknown verb; known: bug, echo, refuse, stream"):
            await served.ask("reboot")
        assert await served.ask("echo") == {"heard": {}}


@pytest.mark.parametrize(
    ("garbage", "error"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe\n", "no JSON"),
        (b"[]\n", "unknown verb"),
        (b'{"verb": ["echo"]}\n', "unknown verb"),
        (b"[" * 4000 + b"\n", "no JSON"),
        (b"x" * (MAX_REQUEST * 3) + b"\n", "over 4096 bytes"),
    ],
)
async def test_garbage_is_answered_with_what_is_wrong(
    tmp_path: Path, garbage: bytes, error: str
) -> None:
    async with Served(tmp_path / "control.sock") as served:
        answer = json.loads(await served.raw(garbage))
        assert answer["ok"] is False
        assert error in answer["error"]


def test_without_a_service_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="No such file or directory; is the service running"):
        ask(str(tmp_path / "none.sock"), "status")


@pytest.mark.parametrize("garbage", [b"", b"\xff\n", b"[]\n", b"1\n", b"[" * 5000 + b"\n"])
def test_what_is_no_answer_of_the_service_is_said(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(5)
        server.bind(str(path))
        server.listen()

        def answer() -> None:
            with server.accept()[0] as sock:
                sock.sendall(garbage)
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1000)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ControlError, match="the answer is no JSON"):
            ask(str(path), "status")
        thread.join()


def drain(path: Path, verb: str, arguments: dict[str, Any]) -> bytes:
    return b"".join(record(str(path), verb, arguments, 5.0))


async def test_a_stream_comes_whole_and_ends(tmp_path: Path) -> None:
    async with Served(tmp_path / "control.sock") as served:
        data = await asyncio.to_thread(drain, served.path, "stream", {"count": 1000})
    assert data == b"".join(b"%d\n" % number for number in range(1000))
    assert CLOSED.pop() == 1000


async def test_a_client_that_hangs_up_ends_its_stream(tmp_path: Path) -> None:
    async with Served(tmp_path / "control.sock") as served, asyncio.timeout(5):
        reader, writer = await asyncio.open_unix_connection(str(served.path))
        writer.write(b'{"verb": "stream", "count": 3, "wait": true}\n')
        assert await reader.readuntil(b"2\n") == b'{"ok": true, "result": null}\n0\n1\n2\n'
        writer.close()
        while not CLOSED:
            await asyncio.sleep(0.01)
        assert CLOSED.pop() == 3


async def test_a_stream_that_is_refused_or_empty_is_an_error(tmp_path: Path) -> None:
    async with Served(tmp_path / "control.sock") as served:
        with pytest.raises(ControlError, match="no such interface"):
            await asyncio.to_thread(drain, served.path, "refuse", {})
        with pytest.raises(ControlError, match="before it began"):
            await asyncio.to_thread(drain, served.path, "stream", {"count": 0})
    CLOSED.clear()


async def test_a_socket_that_somebody_serves_is_not_free(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    require_free(str(path))
    async with Served(path):
        with pytest.raises(ControlError, match="another relay is running here"):
            await asyncio.to_thread(require_free, str(path))
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    require_free(str(path))
