"""One viewer's WebSocket <-> one viewer of a console, in the words of `console_protocol`.

    browser, sol  Attach, and once; then keys, Ack, Ping, TakeOver, HangUp
    service       Attached; then the log from its offset on, Marked, StatusTold, Pong, ReadOnly

An `ack` says what the terminal has shown, not what arrived: it is the credit, because a browser
takes from its socket without end. One whose socket takes nothing is cut off without a word, which
it would not take either. Close codes are those of a relayed stream (msp.subprotocol).
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from typing import assert_never

from aiohttp import WSMsgType, web

from gwmodule.errors import Code, GatewayError
from gwmodule.msp.console_protocol import (
    Ack,
    Attach,
    Attached,
    FromService,
    FromViewer,
    HangUp,
    Marked,
    NotOurs,
    Ping,
    Pong,
    ReadOnly,
    StatusTold,
    TakeOver,
    encode,
    from_viewer,
)
from gwmodule.msp.consoles import ConsoleEnded, ConsoleRefused, Place, Status, Viewer
from gwmodule.msp.sol_log import Mark
from gwmodule.msp.subprotocol import close_code, close_reason, first_leaf

# A paste; larger ones come in pieces.
MAX_BROWSER_MESSAGE = 64 * 1024
ATTACH_TIMEOUT = 10.0


class _Left(Exception):
    """The browser closed its WebSocket, or it broke."""


class ViewerSocket:
    """Serves one browser; `run` returns when it has left or was told to.

    `transport` is what carries the WebSocket; a browser that has not taken a message after `stall`
    seconds loses it.
    """

    def __init__(
        self,
        websocket: web.WebSocketResponse,
        transport: asyncio.Transport | None,
        stall: float,
    ) -> None:
        self._websocket = websocket
        self._transport = transport
        self._stall = stall

    async def run(self, attach: Callable[[Place], Awaitable[Viewer]]) -> None:
        """Never raises what the browser did."""
        viewer: Viewer | None = None
        code, reason = Code.OK, ""
        try:
            viewer = await attach(await self._place())
            await self._say(
                Attached(viewer.console, viewer.seat, viewer.offset, viewer.mark, viewer.lost)
            )
            async with asyncio.TaskGroup() as group:
                receive = group.create_task(self._receive(viewer), name="viewer receives")
                try:
                    await self._send(viewer)
                finally:
                    receive.cancel()
        except* _Left:
            pass
        except* (ConsoleEnded, ConsoleRefused) as group:
            end = first_leaf(group)
            code, reason = end.code, str(end)
        except* GatewayError as group:
            error = first_leaf(group)
            code, reason = getattr(error, "code", Code.INTERNAL), str(error)
        except* ConnectionError:
            pass
        finally:
            if viewer is not None:
                viewer.detach()
        # Not waiting for what comes before the close frame: a browser that takes nothing keeps its
        # connection as long as it might with a message, and nobody with it.
        self._abort_later()
        await self._websocket.close(
            code=close_code(code), message=close_reason(reason), drain=False
        )

    async def _place(self) -> Place:
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT):
                message = await self._message()
        except TimeoutError as exc:
            text = f"no attach within {ATTACH_TIMEOUT:.0f} s"
            raise ConsoleRefused(Code.TIMEOUT, text) from exc
        if not isinstance(message, Attach):
            raise ConsoleRefused(Code.PROTOCOL_ERROR, "the first message must be attach")
        return Place(
            message.console,
            message.seat,
            message.offset,
            message.mark,
            message.want,
            message.tail,
        )

    async def _send(self, viewer: Viewer) -> None:
        while True:
            match await viewer.next_item():
                case bytes() as data:
                    await self._give(data)
                case Mark() as mark:
                    await self._say(
                        Marked(mark.number, mark.offset, _time(mark.at), mark.text, mark.gap)
                    )
                case Status() as status:
                    await self._say(
                        StatusTold(
                            state=status.state,
                            reason=status.reason,
                            stream=status.stream,
                            writer=status.writer,
                            seat=viewer.seat,
                            holder=status.holder,
                            since=_time(status.since) if status.holder else None,
                            viewers=status.viewers,
                        )
                    )
                case other:
                    assert_never(other)

    async def _receive(self, viewer: Viewer) -> None:
        while True:
            match await self._message():
                case bytes() as keys:
                    if not await viewer.type(keys):
                        await self._say(ReadOnly())
                case Ack(offset):
                    viewer.acknowledge(offset)
                case Ping(number):
                    await self._say(Pong(number, *viewer.latency()))
                case TakeOver():
                    await viewer.take_over()
                case HangUp():
                    await viewer.hang_up()
                case Attach():
                    raise ConsoleRefused(Code.PROTOCOL_ERROR, "attached already")
                case other:
                    assert_never(other)

    async def _message(self) -> FromViewer | bytes:
        message = await self._websocket.receive()
        match message.type:
            case WSMsgType.BINARY:
                data: bytes = message.data
                return data
            case WSMsgType.TEXT:
                try:
                    return from_viewer(message.data)
                except NotOurs as exc:
                    raise ConsoleRefused(Code.PROTOCOL_ERROR, str(exc)) from exc
            case _:
                raise _Left

    async def _say(self, message: FromService) -> None:
        await self._give(encode(message))

    async def _give(self, message: bytes | str) -> None:
        if self._websocket.closed:
            raise _Left
        # Not asyncio.timeout: both directions may wait for the same drain, and aiohttp gives a
        # cancelled one to whoever waits next.
        abort = self._abort_later()
        try:
            if isinstance(message, str):
                await self._websocket.send_str(message)
            else:
                await self._websocket.send_bytes(message)
        finally:
            abort.cancel()

    def _abort_later(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._stall, self._abort)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _time(at: float) -> str:
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
