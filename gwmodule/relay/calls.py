"""Calls: the MSP names a function, the gateway runs it against the device, once.

    CALL --> validate --> policy and dial --> function (many SOAP exchanges) --> RESULT
                                                                             \\-> bulk channel,
                                                                                 when it is large
One call at a time per device, devices in parallel. A call is never started past its deadline and
never repeated; when its session is lost, its result is dropped and the MSP says "unknown".
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from gwmodule.amt.client import WsmanAbsent, WsmanClient
from gwmodule.amt.digest import Wanted
from gwmodule.amt.eoi import EoiClient, EoiDevice
from gwmodule.amt.functions import Arguments, Context, Function, find, validate
from gwmodule.errors import (
    AuthenticationFailed,
    BadArgument,
    ChannelStateError,
    Code,
    GatewayError,
    PolicyRefused,
    WsmanFault,
)
from gwmodule.relay.streams import DialDevice, Session
from gwmodule.telemetry import Counters, EventLog
from gwmodule.wire.bodies import MAX_BODY, deflate
from gwmodule.wire.frames import MAX_PAYLOAD, Priority
from gwmodule.wire.messages import Call, Challenge, Progress, Responses, Result, ResultTarget
from gwmodule.wire.notices import NO_UUID, format_mac

MAX_CALLS = 64
# Seconds that AMT wants between two power requests (SDK, "Change System Power State").
POWER_DISTANCE = 10.0
# What a RESULT's own fields take of a frame.
_INLINE = MAX_PAYLOAD - 64
_CHUNK = 16384


OwnFunction = Callable[[Call], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[None]
    # Why it is not wanted any more; empty while it is.
    cancelled: str = ""
    # In mode CHALLENGE, while the MSP is asked.
    asked: asyncio.Future[Responses] | None = None


class Calls:
    def __init__(
        self,
        dial: DialDevice,
        release_device: Callable[[IPv4Address, str], int],
        stream_open: Callable[[Session, int, IPv4Address], bool],
        tasks: asyncio.TaskGroup,
        counters: Counters,
        own: Mapping[str, OwnFunction] | None = None,
    ) -> None:
        self._dial = dial
        self._release_device = release_device
        self._stream_open = stream_open
        self._tasks = tasks
        self._counters = counters
        # Functions of the gateway itself (wire.functions); no device's, so not in its turn.
        self._own = {} if own is None else own
        self._log = EventLog("gwmodule.calls")
        self._running: dict[tuple[Session, int], _Running] = {}
        self._parsing = asyncio.Lock()
        self._devices: dict[bytes, _Turn] = {}
        # When each device got its last power request.
        self._power: dict[bytes, float] = {}
        self._bodies: dict[tuple[Session, int], deque[bytes]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, session: Session, call: Call) -> None:
        if (session, call.call) in self._running:
            # An answer would be taken for that of the call which runs under this number.
            self._counters["calls_doubled"] += 1
            return
        if len(self._running) >= MAX_CALLS:
            self._answer(
                session, call, Code.LIMIT, {"error": f"{MAX_CALLS} calls are running"}, 0.0, 0
            )
            return
        task = self._tasks.create_task(self._run(session, call), name=f"call-{call.call}")
        self._running[session, call.call] = _Running(task)

    def cancel(self, session: Session, number: int) -> None:
        running = self._running.get((session, number))
        if running is not None:
            running.cancelled = "cancelled by the MSP"
            # Behind the task's first step: one that is cancelled before it never answers.
            asyncio.get_running_loop().call_soon(running.task.cancel)

    def responded(self, session: Session, responses: Responses) -> None:
        """The MSP answers a CHALLENGE; one that nobody waits for is ignored."""
        running = self._running.get((session, responses.call))
        if running is not None and running.asked is not None and not running.asked.done():
            running.asked.set_result(responses)

    def session_over(self, session: Session) -> None:
        """Whoever waits for an answer of the MSP waits in vain. What runs goes on to its end."""
        for (owner, number), running in self._running.items():
            if owner is session and running.asked is not None and not running.asked.done():
                running.asked.set_result(Responses(number, reason="the session is over"))

    def end_all(self, reason: str) -> int:
        """End every call that runs or waits, each with this reason. Returns how many there were."""
        for running in self._running.values():
            running.cancelled = reason
            asyncio.get_running_loop().call_soon(running.task.cancel)
        return len(self._running)

    def uses(self, session: Session) -> bool:
        """Whether a call of this session runs, or waits for its turn."""
        return any(owner is session for owner, _ in self._running)

    def on_device(self, mac: bytes) -> int:
        """How many calls run on a device, or wait for their turn there."""
        turn = self._devices.get(mac)
        return 0 if turn is None else turn.users

    # ---- one call -----------------------------------------------------------------------------

    async def _run(self, session: Session, call: Call) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        client: WsmanClient | None = None
        try:
            if call.function in self._own:
                async with asyncio.timeout_at(started + call.deadline):
                    body = await self._own[call.function](call)
            else:
                function = find(call.function)
                arguments = validate(function, _arguments(call))
                async with asyncio.timeout_at(started + call.deadline), self._turn(call.mac):
                    client = self._client(session, call, started + call.deadline)
                    async with client:
                        context = self._context(session, call)
                        body = await _execute(function, client, arguments, context)
            code = Code.OK
        except TimeoutError:
            code = Code.DEADLINE
            body = {"error": f"no result within {call.deadline:g} s"}
        except asyncio.CancelledError:
            reason = self._running[session, call.call].cancelled
            if not reason:
                raise
            code, body = Code.CANCELLED, {"error": reason}
        except GatewayError as exc:
            code, body = getattr(exc, "code", Code.INTERNAL), describe(exc)
        except Exception:
            # A bug in one function must not end the relay: the MSP learns that it is one.
            self._log.exception("call_failed", function=call.function)
            code, body = Code.INTERNAL, {"error": "internal error of the gateway, see its log"}
        finally:
            self._running.pop((session, call.call), None)
        exchanges = 0 if client is None else client.facts.exchanges
        if client is not None:
            body.setdefault("_device", client.facts.as_json())
        self._answer(session, call, code, body, loop.time() - started, exchanges)

    def _client(self, session: Session, call: Call, deadline: float) -> WsmanClient:
        async def dial(port: int) -> socket.socket:
            return await self._dial(call.address, port, call.mac)

        async def ask(wanted: Wanted) -> tuple[str, tuple[bytes, ...]]:
            responses = await self._ask(session, Challenge(call.call, *wanted))
            if responses.reason:
                raise AuthenticationFailed(f"the MSP did not answer: {responses.reason}")
            return responses.cnonce, responses.responses

        return WsmanClient(
            dial,
            call.credential,
            tls=call.tls,
            pin=call.pin,
            deadline=deadline,
            ask=ask,
            parsing=self._parsing,
        )

    async def _ask(self, session: Session, challenge: Challenge) -> Responses:
        if session.mux.ended:
            raise AuthenticationFailed("the session is over, nobody answers the device's nonce")
        running = self._running[session, challenge.call]
        running.asked = asyncio.get_running_loop().create_future()
        session.mux.send_message(challenge)
        session.flush_soon()
        return await running.asked

    def _context(self, session: Session, call: Call) -> Context:
        def progress(done: int, total: int, step: str) -> None:
            session.mux.send_message(Progress(call.call, done, total, step))
            session.flush_soon()

        return Context(
            uuid=None if call.uuid == NO_UUID else call.uuid,
            progress=progress,
            sleep=asyncio.sleep,
            release_redirection=lambda reason: self._release_device(call.address, reason),
            power_turn=lambda: self._power_turn(call.mac),
            stream_open=lambda channel: self._stream_open(session, channel, call.address),
            wall_clock=lambda: datetime.datetime.now(datetime.UTC).timestamp(),
        )

    async def _power_turn(self, mac: bytes) -> None:
        """Called with the device's turn, so there are never two that wait for the same device."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._power = {m: at for m, at in self._power.items() if now - at < POWER_DISTANCE}
        if mac in self._power:
            await asyncio.sleep(self._power[mac] + POWER_DISTANCE - now)
        # Not when it was to be: a loop that is busy lets the request out later than that.
        self._power[mac] = loop.time()

    def _turn(self, mac: bytes) -> _Turn:
        turn = self._devices.get(mac)
        if turn is None:
            turn = self._devices[mac] = _Turn(lambda: self._devices.pop(mac, None))
        return turn

    # ---- results ------------------------------------------------------------------------------

    def _answer(
        self, session: Session, call: Call, code: Code, body: Any, elapsed: float, exchanges: int
    ) -> None:
        self._counters[f"calls_{code.name.lower()}"] += 1
        self._log.info(
            "call",
            function=call.function,
            address=call.address,
            mac=format_mac(call.mac),
            code=code.name.lower(),
            ms=round(elapsed * 1000),
            exchanges=exchanges,
        )
        if session.mux.ended:
            self._counters["results_dropped"] += 1
            return
        data = json.dumps(body, separators=(",", ":")).encode()
        if len(data) > MAX_BODY:
            error = {"error": f"a result of {len(data)} bytes, maximum {MAX_BODY}"}
            self._answer(session, call, Code.LIMIT, error, elapsed, exchanges)
            return
        deflated = len(data) > _INLINE
        if deflated:
            data = deflate(data)
        detached = len(data) > _INLINE
        if detached:
            try:
                channel = session.mux.open(ResultTarget(call.call), Priority.BULK)
            except ChannelStateError as exc:
                error = {"error": f"no room for a result of {len(data)} bytes: {exc}"}
                self._answer(session, call, Code.LIMIT, error, elapsed, exchanges)
                return
            chunks = (data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK))
            self._bodies[session, channel] = deque(chunks)
        inline = b"" if detached else data
        result = Result(call.call, code, elapsed, exchanges, inline, detached, deflated)
        session.mux.send_message(result)
        session.flush_soon()

    def writable(self, session: Session, channel: int) -> None:
        """The MSP accepted a body's channel, or there is room again: send what fits."""
        chunks = self._bodies.get((session, channel))
        if chunks is None:
            return
        mux, now = session.mux, asyncio.get_running_loop().time()
        while chunks and mux.room(channel) > 0:
            mux.send(channel, chunks.popleft(), now)
        if not chunks:
            mux.send_eof(channel)
            del self._bodies[session, channel]
        session.flush_soon()

    def ended(self, session: Session, channel: int) -> None:
        self._bodies.pop((session, channel), None)


class _Turn:
    """A lock of one device that disappears with its last user."""

    def __init__(self, forget: Callable[[], object]) -> None:
        self._lock = asyncio.Lock()
        self.users = 0
        self._forget = forget

    async def __aenter__(self) -> None:
        self.users += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
        self._leave()

    def _leave(self) -> None:
        self.users -= 1
        if not self.users:
            self._forget()


async def _execute(
    function: Function, client: WsmanClient, arguments: Arguments, context: Context
) -> dict[str, Any]:
    """Run it, over EOI where the device's first answer is that it has no WS-Man.

    Firmware as old as that tells no UUID: it is known by its MAC and its realm only.
    """
    try:
        return await function.run(client, arguments, context)
    except WsmanAbsent:
        # What was understood once may have been done, and is not done again in another way.
        if not function.without_wsman or client.facts.understood:
            raise
    return await function.run(
        EoiDevice(EoiClient(client.post)), arguments, dataclasses.replace(context, uuid=None)
    )


def _arguments(call: Call) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError) as exc:
        raise BadArgument("the arguments are no JSON") from exc
    if not isinstance(arguments, dict):
        raise BadArgument("the arguments are no JSON object")
    return arguments


def describe(exc: GatewayError) -> dict[str, Any]:
    """An error as the body of a result: what happened, and what a program may look at."""
    body: dict[str, Any] = {"error": str(exc), "kind": type(exc).__name__}
    if isinstance(exc, WsmanFault):
        body |= {"fault": exc.fault_code, "subcode": exc.subcode}
    if isinstance(exc, PolicyRefused):
        body["rule"] = exc.rule
    return body
