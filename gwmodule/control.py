"""The local control socket: one JSON request, one JSON answer, then the connection ends.

    {"verb": "status"}  -->  {"ok": true, "result": {...}}  or  {"ok": false, "error": "..."}

A verb that streams answers with the same line, and then bytes until it or the client ends.

The socket's mode (0600) is the whole access control: whoever may open it owns the gateway anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gwmodule.errors import GatewayError
from gwmodule.telemetry import EventLog

MAX_REQUEST = 4096
# A table of 1,024 devices is under 600 KiB.
MAX_ANSWER = 8 * 1024 * 1024
_TIMEOUT = 10.0

# JSON, or an async generator of bytes for a stream.
Verb = Callable[[dict[str, Any]], Awaitable[Any]]


class ControlError(GatewayError):
    """The service does not run, or it refused the request."""


class ControlServer:
    def __init__(self, path: str, verbs: Mapping[str, Verb]) -> None:
        self._path = Path(path)
        self._verbs = verbs
        self._log = EventLog("gwmodule.control")
        self.listening = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled. OSError when the socket cannot be made."""
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        # Made with the right mode, not changed to it afterwards.
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(
                self._serve, self._path, limit=MAX_REQUEST, backlog=16
            )
        finally:
            os.umask(before)
        self.listening.set()
        try:
            async with server:
                await server.serve_forever()
        finally:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            chunks: AsyncGenerator[bytes, None] | None = None
            async with asyncio.timeout(_TIMEOUT):
                answer = await self._answer(reader)
                if isinstance(answer.get("result"), AsyncGenerator):
                    chunks, answer["result"] = answer["result"], None
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
            if chunks is not None:
                await _stream(chunks, reader, writer)
        except (TimeoutError, OSError):
            # The client is slow or gone; it hears nothing either way.
            self._log.debug("control_client_gone")
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> dict[str, Any]:
        try:
            request = json.loads(await reader.readuntil(b"\n"))
        except (ValueError, RecursionError, asyncio.IncompleteReadError):
            return {"ok": False, "error": "the request is no JSON line"}
        except asyncio.LimitOverrunError:
            return {"ok": False, "error": f"request over {MAX_REQUEST} bytes"}
        verb = request.pop("verb", None) if isinstance(request, dict) else None
        if not isinstance(verb, str) or verb not in self._verbs:
            return {"ok": False, "error": f"unknown verb; known: {', '.join(sorted(self._verbs))}"}
        try:
            return {"ok": True, "result": await self._verbs[verb](request)}
        except GatewayError as exc:
            return {"ok": False, "error": str(exc)}
        except Exception:
            # A bug in a verb must not take the relay with it.
            self._log.exception("control_failed")
            return {"ok": False, "error": "internal error, see the log"}


async def _stream(
    chunks: AsyncGenerator[bytes, None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Until the chunks end, or the client hangs up or stops reading."""
    async with asyncio.TaskGroup() as tasks:
        copying = tasks.create_task(_copy(chunks, writer), name="control-stream")
        hung_up = tasks.create_task(_end_of(reader), name="control-end")
        await asyncio.wait((copying, hung_up), return_when=asyncio.FIRST_COMPLETED)
        copying.cancel()
        hung_up.cancel()


async def _copy(chunks: AsyncGenerator[bytes, None], writer: asyncio.StreamWriter) -> None:
    async with contextlib.aclosing(chunks):
        with contextlib.suppress(TimeoutError, OSError):
            async for chunk in chunks:
                writer.write(chunk)
                async with asyncio.timeout(_TIMEOUT):
                    await writer.drain()


async def _end_of(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        await reader.read(1)


def require_free(path: str) -> None:
    """ControlError when another relay answers there: two would take each other's socket away."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_TIMEOUT)
        try:
            probe.connect(path)
        except OSError:
            return
    raise ControlError(f"{path}: another relay is running here; stop it, or set control.socket")


def ask(path: str, verb: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Ask the running service; ControlError says why there is no answer."""
    answer = bytearray()
    for data in _exchange(path, verb, arguments, _TIMEOUT):
        answer += data
        if len(answer) > MAX_ANSWER:
            raise ControlError(f"{path}: an answer over {MAX_ANSWER} bytes")
    return _result(path, answer)


def record(path: str, verb: str, arguments: Mapping[str, Any], timeout: float) -> Iterator[bytes]:
    """What a streaming verb sends, piece by piece and at least one; ControlError when it refuses.

    `timeout` is how long one piece may take, in seconds.
    """
    pieces = _exchange(path, verb, arguments, timeout)
    head, some = bytearray(), False
    for data in pieces:
        head += data
        line, newline, rest = bytes(head).partition(b"\n")
        if newline:
            break
        if len(head) > MAX_REQUEST:
            raise ControlError(f"{path}: an answer over {MAX_REQUEST} bytes")
    else:
        line, rest = bytes(head), b""
    _result(path, line)
    for data in itertools.chain((rest,), pieces):
        if data:
            some = True
            yield data
    if not some:
        raise ControlError(f"{path}: the service ended the recording before it began")


def _exchange(
    path: str, verb: str, arguments: Mapping[str, Any] | None, timeout: float
) -> Iterator[bytes]:
    request = json.dumps({**(arguments or {}), "verb": verb}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(path)
            sock.sendall(request)
            while data := sock.recv(65536):
                yield data
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise ControlError(f"{path}: {reason}; is the service running?") from exc


def _result(path: str, answer: bytes | bytearray) -> Any:
    try:
        parsed = json.loads(answer)
    except (ValueError, RecursionError) as exc:
        raise ControlError(f"{path}: the answer is no JSON") from exc
    if not isinstance(parsed, dict):
        raise ControlError(f"{path}: the answer is no JSON object")
    if not parsed.get("ok"):
        raise ControlError(str(parsed.get("error")))
    return parsed.get("result")
