"""The WS-Man client: one device, one exchange at a time, over HTTP digest, plain or TLS.

    get / put / invoke ...  -->  wsman (envelope)  -->  digest (login)  -->  connection (HTTP, TLS)

How it connects, by TlsMode and pin:

    pinned         16993 only; modern TLS, then legacy when the handshake fails (unless chosen)
    AUTO           16993 and 16992 side by side; TLS wins when it comes about
    MODERN LEGACY  16993 with that context         OFF  16992, refused when there is a pin

Nothing is repeated that the device may already have done: a request is sent again only after a 401,
or, if it merely reads, when the device had closed an idle connection under it.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Any, TypeAlias

from gwmodule.amt import wsman
from gwmodule.amt.connection import (
    NO_PIN,
    WSMAN_PATH,
    ConnectionLost,
    HandshakeFailed,
    HttpAnswer,
    HttpConnection,
    connect_plain,
    connect_tls,
    legacy_context,
    modern_context,
)
from gwmodule.amt.digest import Authenticator, Wanted
from gwmodule.amt.wsman import Answer, Instance, Value
from gwmodule.errors import (
    AmtError,
    AuthenticationFailed,
    Code,
    DeadlineExceeded,
    DeviceAnswerError,
    DeviceUnreachable,
    GatewayError,
    TlsPinMismatch,
)
from gwmodule.ports import WSMAN_HTTP, WSMAN_HTTPS
from gwmodule.wire.frames import TlsMode
from gwmodule.wire.messages import Credential

# Bytes of all pages together: parsed, they may take twenty times as much of the relay's memory.
MAX_ENUMERATION = 512 * 1024
# A page of an enumeration may be a single instance (AMT 6); 390 log records are the most there is.
MAX_PAGES = 512
# Seconds that a connected plain port waits for TLS to come about on the other one.
TLS_GRACE = 5.0
# Ours fires first, so that the error names the step and not just the call.
_DEADLINE_MARGIN = 0.02
_MAX_SERVER = 255
# Larger answers are parsed beside the loop: the worst one within all limits takes a tenth of a
# second, and a keystroke does not wait for it.
_PARSED_AT_ONCE = 64 * 1024
# HTTP/1.1 wants one; no firmware looks at it.
_HOST = ("Host", "amt")
_SOAP_HEADERS = [("Content-Type", "application/soap+xml;charset=UTF-8")]
_SOAP_TYPES = ("application/soap+xml", "text/xml", "application/xml")

Dial = Callable[[int], Awaitable[socket.socket]]
Ask = Callable[[Wanted], Awaitable[tuple[str, tuple[bytes, ...]]]]
Headers: TypeAlias = list[tuple[str, str]]
_Connected: TypeAlias = tuple[HttpConnection, TlsMode]


class WsmanAbsent(AmtError):
    """The device's web server has no /wsman: AMT 1 or 2, which speak EOI only."""

    code = Code.NOT_SUPPORTED


@dataclass(slots=True)
class Facts:
    """What talking to the device has shown. `exchanges` counts HTTP requests, 401s included."""

    port: int = 0
    tls: TlsMode = TlsMode.AUTO
    pin: bytes = NO_PIN
    realm: str = ""
    server: str = ""
    exchanges: int = 0
    # Whether anything was answered as WS-Man.
    understood: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "port": self.port,
            "tls": self.tls.name.lower(),
            "pin": "" if self.pin == NO_PIN else self.pin.hex(),
            "realm": self.realm,
            "server": self.server,
            "exchanges": self.exchanges,
        }


class WsmanClient:
    """An async context manager; closing it forgets the login.

    `dial(port)` returns a connected, non-blocking socket to the device. `pin` is the SHA-256 of the
    device's TLS leaf, zero when it is not known yet. `deadline` is loop time: every operation ends
    by then, with DeadlineExceeded.
    `parsing` is shared by clients of one loop: a storm of answers is parsed one in a turn of it.
    `ask` gets cnonce and responses for a credential of mode CHALLENGE.

    Operations raise DeviceUnreachable, AuthenticationFailed, TlsPinMismatch, DeviceAnswerError,
    WsmanFault, WsmanAbsent and DeadlineExceeded.
    """

    def __init__(
        self,
        dial: Dial,
        credential: Credential,
        *,
        tls: TlsMode = TlsMode.AUTO,
        pin: bytes = NO_PIN,
        deadline: float,
        ask: Ask | None = None,
        parsing: asyncio.Lock | None = None,
        cnonce: Callable[[], str] = partial(secrets.token_hex, 16),  # noqa: B008
    ) -> None:
        self.facts = Facts()
        self._dial = dial
        self._tls = tls
        self._pin = pin
        self._deadline = deadline
        self._ask = ask
        self._login = Authenticator(credential, cnonce)
        self._connection: HttpConnection | None = None
        self._parsing = asyncio.Lock() if parsing is None else parsing
        self._turn = asyncio.Lock()
        self._message_id = 0
        self._received = 0

    async def __aenter__(self) -> WsmanClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._drop()
        # The transport closes its socket in the loop's next turn.
        await asyncio.sleep(0)

    # ---- operations ---------------------------------------------------------------------------

    async def get(self, cls: str, selectors: Mapping[str, str] | None = None) -> Instance:
        request = wsman.get(cls, self._next_id(), selectors)
        answer = await self._exchange(f"Get {cls}", request, reads=True)
        return _expect(answer, cls, f"Get {cls}")

    async def put(
        self,
        cls: str,
        properties: Mapping[str, Value],
        selectors: Mapping[str, str] | None = None,
    ) -> Instance:
        """Returns the instance as the device now has it."""
        request = wsman.put(cls, self._next_id(), properties, selectors)
        return (await self._exchange(f"Put {cls}", request)).body

    async def delete(self, cls: str, selectors: Mapping[str, str]) -> None:
        request = wsman.delete(cls, self._next_id(), selectors)
        await self._exchange(f"Delete {cls}", request)

    async def enumerate(self, cls: str) -> list[Instance]:
        """Every instance, in the device's order, over any number of pages up to MAX_PAGES."""
        step = f"Enumerate {cls}"
        request = wsman.enumerate_(cls, self._next_id())
        context = (await self._exchange(step, request, reads=True)).context
        if not context:
            raise DeviceAnswerError(f"{step}: no enumeration context")
        instances: list[Instance] = []
        before = self._received
        for _ in range(MAX_PAGES):
            request = wsman.pull(cls, self._next_id(), context)
            page = await self._exchange(f"Pull {cls}", request)
            if self._received - before > MAX_ENUMERATION:
                raise DeviceAnswerError(f"{step}: more than {MAX_ENUMERATION} bytes of instances")
            instances += page.items
            context = page.context
            if not context:
                return instances
        raise DeviceAnswerError(f"{step}: no end after {MAX_PAGES} pages")

    async def invoke(
        self,
        cls: str,
        method: str,
        arguments: Mapping[str, Value] | None = None,
        selectors: Mapping[str, str] | None = None,
        *,
        reads: bool = False,
    ) -> Instance:
        """The method's output; judging its ReturnValue is the caller's (`wsman.check_return`).

        `reads` says that the method changes nothing, so that it may be sent again on a new
        connection.
        """
        step = f"{cls}.{method}"
        request = wsman.invoke(cls, method, self._next_id(), arguments or {}, selectors)
        answer = await self._exchange(step, request, reads=reads)
        return _expect(answer, f"{method}_OUTPUT", step)

    async def identify(self) -> Instance:
        answer = await self._exchange("Identify", wsman.identify(), reads=True)
        return _expect(answer, "IdentifyResponse", "Identify")

    async def post(self, path: str, headers: Headers, body: bytes, *, reads: bool) -> HttpAnswer:
        """One exchange of another service than WS-Man, with the same login and deadline."""
        return await self._within(f"POST {path}", path, headers, body, reads=reads)

    # ---- one exchange -------------------------------------------------------------------------

    def _next_id(self) -> str:
        self._message_id += 1
        return str(self._message_id)

    async def _exchange(self, step: str, envelope: bytes, *, reads: bool = False) -> Answer:
        answer = await self._within(step, WSMAN_PATH, _SOAP_HEADERS, envelope, reads=reads)
        with _naming(step):
            _check_type(answer)
            self.facts.understood = True
            self._received += len(answer.body)
            if len(answer.body) > _PARSED_AT_ONCE:
                return await asyncio.to_thread(wsman.parse_answer, answer.body)
            async with self._parsing:
                parsed = wsman.parse_answer(answer.body)
                # Held for the rest of this turn: what came for others meanwhile, a key, goes first.
                await asyncio.sleep(0)
            return parsed

    async def _within(
        self, step: str, path: str, headers: Headers, body: bytes, *, reads: bool
    ) -> HttpAnswer:
        """One exchange in its turn and within the deadline; errors name the step."""
        with _naming(step):
            try:
                async with asyncio.timeout_at(self._deadline - _DEADLINE_MARGIN), self._turn:
                    # A timeout that has passed fires at the first pause only: that is too late.
                    await asyncio.sleep(0)
                    return await self._log_in(path, headers, body, reads=reads)
            except TimeoutError as exc:
                raise DeadlineExceeded("the deadline passed before the answer") from exc

    async def _log_in(self, path: str, headers: Headers, body: bytes, *, reads: bool) -> HttpAnswer:
        """Send once, and once more when a 401 brings a challenge that may be answered."""
        answer = await self._send(path, headers, body, reads=reads)
        if answer.status == HTTPStatus.UNAUTHORIZED:
            try:
                self._login.challenged(answer.all("www-authenticate"))
            finally:
                self.facts.realm = self._login.realm
            answer = await self._send(path, headers, body, reads=reads)
        if answer.status == HTTPStatus.UNAUTHORIZED:
            raise AuthenticationFailed(
                f"the device refused the login in realm {self._login.realm!r}"
            )
        return answer

    async def _send(self, path: str, headers: Headers, body: bytes, *, reads: bool) -> HttpAnswer:
        wanted = self._login.wanted(path)
        if wanted is not None:
            await self._get_responses(wanted)
        connection = await self._connected()
        idle = connection.used
        try:
            return await self._post(connection, path, headers, body)
        except ConnectionLost:
            if not (reads and idle):
                raise
        return await self._post(await self._connected(), path, headers, body)

    async def _get_responses(self, wanted: Wanted) -> None:
        if self._ask is None:
            raise AuthenticationFailed("nobody answers the device's nonce")
        self._login.take(wanted, *await self._ask(wanted))

    async def _post(
        self, connection: HttpConnection, path: str, headers: Headers, body: bytes
    ) -> HttpAnswer:
        headers = [_HOST, *headers]
        authorization = self._login.authorize("POST", path, body)
        if authorization:
            headers.append(("Authorization", authorization))
        self.facts.exchanges += 1
        try:
            answer = await connection.post(headers, body, path)
        except BaseException:
            # Half an answer may still be on its way: this connection is of no more use.
            self._drop()
            raise
        self.facts.server = answer.header("server")[:_MAX_SERVER] or self.facts.server
        return answer

    # ---- connecting ---------------------------------------------------------------------------

    async def _connected(self) -> HttpConnection:
        if self._connection is not None and self._connection.usable:
            return self._connection
        self._drop()
        # What answered once is how this device is spoken to, also after it closed a connection.
        connection, tls = await self._connect(self.facts.tls if self.facts.port else self._tls)
        self._connection = connection
        self.facts.port = WSMAN_HTTP if tls is TlsMode.OFF else WSMAN_HTTPS
        self.facts.tls, self.facts.pin = tls, connection.pin
        self._pin = connection.pin
        return connection

    async def _connect(self, tls: TlsMode) -> _Connected:
        if tls is TlsMode.OFF:
            return await self._connect_plain()
        if tls is TlsMode.AUTO and self._pin == NO_PIN:
            return await self._connect_either()
        return await self._connect_tls(tls)

    async def _connect_plain(self) -> _Connected:
        if self._pin != NO_PIN:
            raise TlsPinMismatch(
                f"the device is pinned to certificate {self._pin.hex()} and not spoken to in plain"
            )
        return await connect_plain(await self._dial(WSMAN_HTTP)), TlsMode.OFF

    async def _connect_tls(self, tls: TlsMode) -> _Connected:
        if tls is not TlsMode.AUTO:
            return await self._handshake(tls)
        try:
            return await self._handshake(TlsMode.MODERN)
        except HandshakeFailed:
            return await self._handshake(TlsMode.LEGACY)

    async def _handshake(self, tls: TlsMode) -> _Connected:
        context = legacy_context() if tls is TlsMode.LEGACY else modern_context()
        return await connect_tls(await self._dial(WSMAN_HTTPS), context, self._pin), tls

    async def _connect_either(self) -> _Connected:
        """Both ports at once. TLS is waited for a while even when plain is there already."""
        connected: dict[int, _Connected] = {}
        errors: list[GatewayError] = []

        async def attempt(port: int, connecting: Awaitable[_Connected]) -> None:
            try:
                connected[port] = await connecting
            except GatewayError as exc:
                errors.append(exc)

        try:
            async with asyncio.TaskGroup() as group:
                tls = group.create_task(attempt(WSMAN_HTTPS, self._connect_tls(TlsMode.AUTO)))
                plain = group.create_task(attempt(WSMAN_HTTP, self._connect_plain()))
                await asyncio.wait([tls, plain], return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait([tls], timeout=TLS_GRACE if WSMAN_HTTP in connected else None)
                if WSMAN_HTTPS in connected:
                    plain.cancel()
                elif WSMAN_HTTP in connected:
                    tls.cancel()
            for port in (WSMAN_HTTPS, WSMAN_HTTP):
                if port in connected:
                    return connected.pop(port)
        finally:
            for left, _ in connected.values():
                left.close()
        raise _neither(errors)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def _naming(step: str) -> Iterator[None]:
    """An error of the device's tells in which step it happened."""
    try:
        yield
    except AmtError as exc:
        exc.args = (f"{step}: {exc}",)
        raise


def _neither(errors: list[GatewayError]) -> GatewayError:
    """Why no port answered; a refusal of ours says more than any network error."""
    ours = [error for error in errors if not isinstance(error, DeviceUnreachable)]
    if ours:
        return ours[0]
    both = DeviceUnreachable("; ".join(str(error) for error in errors))
    codes = {error.code for error in errors if isinstance(error, DeviceUnreachable)}
    both.code = codes.pop() if len(codes) == 1 else both.code
    return both


def _check_type(answer: HttpAnswer) -> None:
    """DeviceAnswerError unless it is an envelope; faults come with 400 and 500, and are some.

    WsmanAbsent when there is nothing to answer one.
    """
    kind = answer.header("content-type").partition(";")[0].strip().lower()
    if 300 <= answer.status < 400:
        target = answer.header("location")[:100]
        raise DeviceAnswerError(f"HTTP {answer.status} redirect to {target!r}, not followed")
    if answer.status == HTTPStatus.NOT_FOUND and kind not in _SOAP_TYPES:
        raise WsmanAbsent("HTTP 404: the device has no WS-Man, as AMT 1 and 2")
    if kind not in _SOAP_TYPES:
        raise DeviceAnswerError(
            f"HTTP {answer.status} with {len(answer.body)} bytes of {kind[:60]!r}, expected SOAP"
        )


def _expect(answer: Answer, name: str, step: str) -> Instance:
    if answer.name != name:
        raise DeviceAnswerError(f"{step}: the answer holds {answer.name[:80]!r}, expected {name!r}")
    return answer.body
