"""One WebSocket <-> one stream to a device: `/relay/webrelay.ashx`, as Open AMT MPS serves it.

Binary messages are the bytes of the stream, passed on as they come and never merged. Back-pressure
is the transport's: a side that does not read stops the other one through drain and credit. Only the
login of a tool that has none is made on the way (amt.interceptor).

The first end closes the connection, which is what browsers' tools expect, unless the tool asks for
half-close (msp.subprotocol).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import WSMsgType, web

from gwmodule.amt.interceptor import LoginInterceptor
from gwmodule.amt.redirection import SessionKind, session_kind
from gwmodule.errors import AmtError, ChannelReset, Code
from gwmodule.msp.records import NO_PIN
from gwmodule.msp.seam import SessionSeam, StreamSeam
from gwmodule.msp.secured import open_secured
from gwmodule.msp.subprotocol import SUBPROTOCOL, close_code, close_reason, code_of, first_leaf
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import StreamTarget

# StartRedirectionSession tells what the stream will carry. No tool waits before it sends it.
FIRST_BYTES = 8
FIRST_WAIT = 0.25
TLS_HANDSHAKE = b"\x16"  # RFC 8446 section 5.1
# How long a device may go on sending after its tool has left in order.
LINGER = 2.0
# A tool that does not even take its end in that time loses its connection.
CLOSE_TIMEOUT = 2.0


@dataclass(slots=True)
class Ending:
    """How a relayed stream ended, and how much it carried."""

    code: Code = Code.OK
    reason: str = ""
    to_device: int = 0
    from_device: int = 0


class _ToolLeft(Exception):
    """The tool closed its WebSocket: in order, or with a code, or by dying."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class WebRelay:
    """Relays one stream; `run` returns when it is over and never raises what the peers did."""

    def __init__(
        self,
        websocket: web.WebSocketResponse,
        transport: asyncio.Transport | None,
        mode: str = "",
    ) -> None:
        self._websocket = websocket
        self._transport = transport
        self._mode = mode
        self._half_close = websocket.ws_protocol == SUBPROTOCOL
        self._tool_ended = asyncio.Event()
        self._closed: tuple[Code, str] | None = None
        self._ending = Ending()
        self._login: LoginInterceptor | None = None

    async def run(
        self,
        session: SessionSeam,
        target: StreamTarget,
        claim: Callable[[SessionKind], Awaitable[None]],
        login: LoginInterceptor | None = None,
        pin: bytes = NO_PIN,
    ) -> Ending:
        """`claim` is told what the tool is about to open, and raises ChannelReset if it may not.

        With a `pin` the device is spoken to in TLS, and the tool, as it expects, in plain.
        """
        self._login = login
        ending = self._ending
        stream: StreamSeam | None = None
        try:
            first = await self._first_chunks()
            await claim(session_kind(b"".join(first)[:FIRST_BYTES]))
            priority = _priority(first, self._mode)
            stream = (
                await session.open_stream(target, priority)
                if pin == NO_PIN
                else await open_secured(session, target, priority, pin)
            )
            await self._introduce(stream)
            await self._splice(stream, first)
            # Both directions have ended, and a reset would overtake the last bytes.
            stream = None
        except* _ToolLeft as group:
            left = first_leaf(group)
            ending.code, ending.reason = self._closed or (left.code, left.reason)
        except* ChannelReset as group:
            reset = first_leaf(group)
            ending.code, ending.reason = reset.code, reset.reason
        except* AmtError as group:
            # Of TLS or the login: the device has not let anybody in.
            failed = first_leaf(group)
            ending.code, ending.reason = failed.code, str(failed)
        finally:
            if stream is not None:
                reason = ending.reason or "the technician's tool went away"
                stream.reset(ending.code or Code.CANCELLED, reason)
        await self._close(ending.code, ending.reason)
        return ending

    async def close(self, code: Code, reason: str) -> None:
        """End it from our side; who asks afterwards is told this reason, not what followed."""
        self._closed = code, reason
        await self._close(code, reason)

    async def _close(self, code: Code, reason: str) -> None:
        # Not asyncio.timeout: both directions may wait for the same drain, and aiohttp gives a
        # cancelled one to whoever waits next.
        abort = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self._abort)
        try:
            await self._websocket.close(code=close_code(code), message=close_reason(reason))
        finally:
            abort.cancel()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _first_chunks(self) -> list[bytes]:
        """What the tool says within FIRST_WAIT, at most until the session's kind is known."""
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(FIRST_WAIT):
                while sum(map(len, chunks)) < FIRST_BYTES:
                    chunks.append(await self._receive())
                    if not chunks[-1]:
                        break
        except TimeoutError:
            pass
        return chunks

    async def _introduce(self, stream: StreamSeam) -> None:
        if not self._half_close:
            return
        try:
            await self._websocket.send_json({"stream": stream.channel})
        except ConnectionError as exc:
            raise _ToolLeft(Code.CANCELLED, "the technician's tool went away") from exc

    async def _splice(self, stream: StreamSeam, first: list[bytes]) -> None:
        async with asyncio.TaskGroup() as group:
            to_device = group.create_task(self._to_device(stream, first), name="to device")
            await self._from_device(stream)
            if self._half_close:
                await self._tool_ended.wait()
            else:
                stream.write_eof()
            to_device.cancel()

    async def _to_device(self, stream: StreamSeam, first: list[bytes]) -> None:
        """Until cancelled: also after its end the tool is watched, because it may still die."""
        try:
            for chunk in first:
                await self._pass_on(stream, chunk)
            while True:
                await self._pass_on(stream, await self._receive())
        except _ToolLeft as left:
            if left.code is Code.OK:
                await self._pass_on(stream, b"")
                # The device may be busy with the last bytes; it is given time to end by itself.
                await asyncio.sleep(LINGER)
            raise

    async def _pass_on(self, stream: StreamSeam, chunk: bytes) -> None:
        if not chunk:
            if not self._tool_ended.is_set():
                stream.write_eof()
                self._tool_ended.set()
            return
        if self._tool_ended.is_set():
            raise _ToolLeft(Code.PROTOCOL_ERROR, "data after the end of the stream")
        if self._login is not None:
            chunk = self._login.to_device(chunk)
            if not chunk:
                return
        self._ending.to_device += len(chunk)
        stream.write(chunk)
        await stream.drain()

    async def _from_device(self, stream: StreamSeam) -> None:
        while chunk := await stream.read():
            self._ending.from_device += len(chunk)
            if self._login is not None:
                self._login.from_device(chunk)
            await self._send(chunk)
        if self._half_close:
            await self._send(b"")

    async def _send(self, chunk: bytes) -> None:
        if self._websocket.closed:
            # The tool has left in order; what the device still says goes nowhere.
            return
        try:
            await self._websocket.send_bytes(chunk)
        except ConnectionError as exc:
            raise _ToolLeft(Code.CANCELLED, "the technician's tool went away") from exc

    async def _receive(self) -> bytes:
        """One binary message, b"" at the end of this direction; _ToolLeft when it closed."""
        while True:
            message = await self._websocket.receive()
            match message.type:
                case WSMsgType.BINARY:
                    data: bytes = message.data
                    if data or self._half_close:
                        return data
                case WSMsgType.TEXT:
                    raise _ToolLeft(Code.PROTOCOL_ERROR, "a stream carries binary messages")
                case WSMsgType.CLOSE:
                    raise _ToolLeft(code_of(message.data), str(message.extra or ""))
                case _:
                    raise _ToolLeft(Code.CANCELLED, "the technician's tool went away")


def _priority(first: list[bytes], mode: str) -> Priority:
    """Only a console is typed on; media, screens and WS-Man are bulk.

    Inside TLS the first bytes say nothing, and the tool is believed: a stream that carries more
    than a serial line does takes its turns with bulk anyway.
    """
    start = b"".join(first)[:FIRST_BYTES]
    kind = session_kind(start)
    in_tls = start[:1] == TLS_HANDSHAKE and mode == "sol"
    return Priority.INTERACTIVE if kind is SessionKind.SOL or in_tls else Priority.BULK
