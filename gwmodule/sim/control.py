"""The simulator's control socket: one JSON object per line, one answer per line.

    {"command": "state"}                    what `Controlled.state` says
    {"command": "activate"}                 the person at the PC provisions it
    {"command": "serial"}                   what the serial line said to SOL sessions, in base64

An answer has `"ok": true`, or `"ok": false` and `error`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import tempfile
from pathlib import Path
from typing import Any, Protocol, cast

from gwmodule.errors import GatewayError

MAX_LINE = 4096
# Of `serial`, which is the longest.
MAX_ANSWER = 2 * 1024 * 1024
DEFAULT_PATH = Path(tempfile.gettempdir(), "gwmodule-sim.sock")


class ControlError(GatewayError):
    """The control socket cannot be used, or its answer was no."""


class Controlled(Protocol):
    def state(self) -> dict[str, Any]: ...

    def activate(self) -> bool: ...

    def spoken(self) -> bytes: ...


class ControlServer(asyncio.Protocol):
    """One connection to the control socket."""

    def __init__(self, device: Controlled) -> None:
        self._device = device
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._transport.write(json.dumps(answer(self._device, line)).encode() + b"\n")
        if len(self._buffer) > MAX_LINE:
            self._transport.close()


def answer(device: Controlled, line: bytes) -> dict[str, Any]:
    """The answer to one request line."""
    try:
        request = json.loads(line)
    except ValueError:
        return {"ok": False, "error": "the request is not JSON"}
    command = request.get("command") if isinstance(request, dict) else None
    match command:
        case "state":
            return {"ok": True, **device.state()}
        case "activate":
            return {"ok": True, "changed": device.activate(), **device.state()}
        case "serial":
            return {"ok": True, "serial": base64.b64encode(device.spoken()).decode()}
        case _:
            return {"ok": False, "error": f"unknown command {command!r:.40}"}


def request(path: Path, command: str, timeout: float = 5.0) -> dict[str, Any]:
    """Ask a running simulator; ControlError when it does not answer or says no. Blocks."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout)
            sock.connect(str(path))
            sock.sendall(json.dumps({"command": command}).encode() + b"\n")
            with sock.makefile("rb") as file:
                line = file.readline(MAX_ANSWER)
        answered = json.loads(line)
    except OSError as exc:
        raise ControlError(f"no simulator answers on {path}: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise ControlError(f"{path} answers no JSON") from exc
    if not isinstance(answered, dict):
        raise ControlError(f"{path} answers no JSON object")
    if not answered.get("ok"):
        raise ControlError(f"{path}: {answered.get('error')}")
    return answered


def claim(path: Path) -> None:
    """Make sure nobody listens on `path` and no dead simulator's socket is in the way."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1.0)
            sock.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError as exc:
        raise ControlError(f"{path}: {exc.strerror or exc}") from exc
    else:
        raise ControlError(f"another simulator listens on {path}; name another with --control")
