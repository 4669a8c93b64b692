"""The API from the technician's side, over the service's unix socket or HTTPS.

A token goes into a header, never into a URL, and never over a connection that others can read.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any

import aiohttp
import msgspec
from aiohttp import WSMsgType
from yarl import URL

from gwmodule.errors import ChannelReset, Code, ConfigError, GatewayError
from gwmodule.msp.console_protocol import (
    CONSOLE_SUBPROTOCOL,
    FromService,
    FromViewer,
    NotOurs,
    encode,
    from_service,
)
from gwmodule.msp.subprotocol import MAX_MESSAGE, SUBPROTOCOL, close_code, close_reason, code_of

DEFAULT_API = "/run/gwmodule-msp/api.sock"
# What a request may take on top of the deadline that its call has at the gateway.
GRACE = 15.0
# The service says something every 15 s.
EVENTS_SILENCE = 60.0
# A serial line is silent for hours. Without an answer for half of it the connection is dead.
HEARTBEAT = 10.0
# The host part of the URL is not looked at; the path of the socket is the address.
_BASE = "http://gwmodule-msp"
_JSON = {"Content-Type": "application/json"}


class ApiUnavailable(GatewayError):
    """No service answers on the socket."""


class ApiRefused(GatewayError):
    """The service said no: HTTP status, short name, sentence."""

    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(description or error)
        self.status = status
        self.error = error


class ClientStream:
    """A stream to a port of a device. Chunks come as the device sent them.

    `id` is what `boot.once` knows it by; 0 until the first chunk.
    """

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self._websocket = websocket
        self.id = 0

    async def read(self) -> bytes:
        """The next chunk; b"" at the device's end. ChannelReset when the stream was cut."""
        message = await self._websocket.receive()
        while message.type is WSMsgType.TEXT:
            self._introduced(message.data)
            message = await self._websocket.receive()
        match message.type:
            case WSMsgType.BINARY:
                data: bytes = message.data
                return data
            case WSMsgType.CLOSE:
                code, reason = code_of(message.data), str(message.extra or "")
                if code is Code.OK:
                    return b""
                raise ChannelReset(code, reason or code.name.lower().replace("_", " "))
            case _:
                raise _gone(self._websocket)

    def _introduced(self, text: str) -> None:
        try:
            self.id = msgspec.json.decode(text, type=dict[str, int]).get("stream", 0)
        except msgspec.MsgspecError as exc:
            raise ChannelReset(Code.PROTOCOL_ERROR, "the service speaks something else") from exc

    async def write(self, data: bytes) -> None:
        """Send a chunk and wait while the way to the device is full; ChannelReset when cut."""
        try:
            await self._websocket.send_bytes(data)
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise _gone(self._websocket) from exc

    async def write_eof(self) -> None:
        await self.write(b"")

    async def close(self, code: Code = Code.OK, reason: str = "") -> None:
        await self._websocket.close(code=close_code(code), message=close_reason(reason))


class ClientConsole:
    """A serial line that the service holds: `console_protocol`, from the viewer's end."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self._websocket = websocket

    async def read(self) -> bytes | FromService:
        """ChannelReset at the end, with its reason, and code OK where it was meant."""
        message = await self._websocket.receive()
        match message.type:
            case WSMsgType.BINARY:
                data: bytes = message.data
                return data
            case WSMsgType.TEXT:
                try:
                    return from_service(message.data)
                except NotOurs as exc:
                    text = "the service speaks something else"
                    raise ChannelReset(Code.PROTOCOL_ERROR, text) from exc
            case WSMsgType.CLOSE:
                raise ChannelReset(code_of(message.data), str(message.extra or ""))
            case _:
                raise _gone(self._websocket)

    async def say(self, message: FromViewer) -> None:
        await self._send(encode(message))

    async def type(self, data: bytes) -> None:
        await self._send(data)

    async def _send(self, message: str | bytes) -> None:
        try:
            if isinstance(message, str):
                await self._websocket.send_str(message)
            else:
                await self._websocket.send_bytes(message)
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise _gone(self._websocket) from exc

    async def close(self) -> None:
        await self._websocket.close()


def _gone(websocket: aiohttp.ClientWebSocketResponse) -> ChannelReset:
    code = code_of(websocket.close_code)
    return ChannelReset(code or Code.CONNECTION_LOST, "the service went away")


class ApiClient:
    """`async with ApiClient(address) as client`; every failure is a GatewayError with a sentence.

    `address` is the path of the unix socket, or a URL: https://HOST[:PORT], or http:// for a
    loopback host. `token` is a JWT or an API key, `cafile` (a path) or `cadata` (PEM) what the
    service's certificate is checked with in place of the system's list, `tenant` whom a unix
    socket's user works for.
    """

    def __init__(
        self,
        address: str = DEFAULT_API,
        *,
        token: str = "",
        cafile: str | None = None,
        cadata: str = "",
        tenant: str = "",
    ) -> None:
        self._address = address
        self._base = _BASE
        self._tls: ssl.SSLContext | None = None
        self._headers: dict[str, str] = {}
        if "://" in address:
            self._base, self._tls = _over_tcp(address, cafile, cadata)
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        if tenant:
            self._headers["X-Tenant"] = tenant

    async def __aenter__(self) -> ApiClient:
        connector: aiohttp.BaseConnector
        if self._base == _BASE:
            connector = aiohttp.UnixConnector(self._address, limit=0)
        else:
            connector = aiohttp.TCPConnector(limit=0, ssl=self._tls or True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )
        return self

    @property
    def address(self) -> str:
        return self._address

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = GRACE,  # noqa: ASYNC109 - it becomes aiohttp's own
    ) -> Any:
        """The decoded answer; ApiRefused with the service's own sentence when it says no."""
        try:
            async with self._session.request(
                method,
                self._base + path,
                params=query,
                data=None if body is None else msgspec.json.encode(body),
                headers=_JSON | (headers or {}) if body is not None else headers,
                # A token must not follow to wherever somebody sends us.
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                data = await response.read()
        except TimeoutError as exc:
            raise ApiUnavailable(f"no answer on {self._address} within {timeout:.0f} s") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise self._unavailable(exc) from exc
        if response.status >= 400:
            raise _refused(response.status, data)
        if not data:
            return None
        try:
            return msgspec.json.decode(data)
        except msgspec.MsgspecError as exc:
            raise ApiUnavailable(f"{self._address} is not this program's service: {exc}") from exc

    async def events(self) -> AsyncGenerator[tuple[str, Any], None]:
        """What happens at the service from now on, as kind and data; until it ends the stream."""
        kind = ""
        try:
            async with self._session.get(
                f"{self._base}/api/v1/events",
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_read=EVENTS_SILENCE),
            ) as response:
                if response.status >= 400:
                    raise _refused(response.status, await response.read())
                async for line in response.content:
                    name, _, value = line.rstrip(b"\r\n").partition(b": ")
                    if name == b"event":
                        kind = value.decode(errors="replace")
                    elif name == b"data":
                        yield kind, msgspec.json.decode(value)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            # ValueError: a line without end, or no JSON.
            raise self._unavailable(exc) from exc

    async def open_stream(
        self,
        guid: str,
        port: int,
        *,
        hold: bool = False,
        mode: str = "",
        takeover: bool = False,
        tool: str = "",
    ) -> ClientStream:
        """A stream with half-close to `port` of a device; ApiRefused when there is none.

        With mode `sol`, `takeover` ends the stream or console that has the serial line, and `tool`
        (whatever only this caller says) the stream that it had before it lost its connection.
        """
        query = {"p": "2", "host": guid, "port": str(port), "tls": "0", "hold": str(int(hold))}
        if mode:
            query["mode"] = mode
        if takeover:
            query["takeover"] = "1"
        if tool:
            query["tool"] = tool
        heartbeat = HEARTBEAT if mode == "sol" else None
        return ClientStream(
            await self._websocket("/relay/webrelay.ashx", query, SUBPROTOCOL, heartbeat)
        )

    async def open_console(self, guid: str) -> ClientConsole:
        """The device's serial line as the service holds it; ApiRefused as above."""
        path = f"/api/v1/amt/sol/{guid}"
        return ClientConsole(await self._websocket(path, {}, CONSOLE_SUBPROTOCOL, HEARTBEAT))

    async def _websocket(
        self, path: str, query: dict[str, str], protocol: str, heartbeat: float | None
    ) -> aiohttp.ClientWebSocketResponse:
        try:
            return await self._session.ws_connect(
                self._base + path,
                params=query,
                protocols=(protocol,),
                max_msg_size=MAX_MESSAGE,
                heartbeat=heartbeat,
                compress=0,
            )
        except aiohttp.WSServerHandshakeError as exc:
            # The handshake's error has no body; the same request without an upgrade does.
            await self.request("GET", path, query=query)
            raise ApiUnavailable(f"{self._address} refused the stream: {exc.message}") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise self._unavailable(exc) from exc

    def _unavailable(self, exc: Exception) -> ApiUnavailable:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        return ApiUnavailable(f"no gwmodule-msp service answers on {self._address}: {reason}")


def _refused(status: int, data: bytes) -> ApiRefused:
    try:
        body = msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError:
        body = {}
    return ApiRefused(status, str(body.get("error", "")), str(body.get("errorDescription", "")))


def _over_tcp(address: str, cafile: str | None, cadata: str) -> tuple[str, ssl.SSLContext | None]:
    """The base of every URL, and how to check the service; ConfigError for what is not safe."""
    try:
        url = URL(address)
    except ValueError as exc:
        raise ConfigError("--api", "", f"{address[:80]!r} is no URL") from exc
    if url.scheme not in ("http", "https") or not url.host or url.path != "/":
        raise ConfigError("--api", "", f"{address[:80]!r} is not https://HOST[:PORT]")
    if url.user or url.password or url.query_string or url.fragment:
        raise ConfigError("--api", "", "no login and no token belongs into a URL")
    if url.scheme == "http":
        if not _is_loopback(url.host):
            raise ConfigError(
                "--api", "", f"{url.host} over http would show the token to others; use https"
            )
        return str(url.origin()), None
    try:
        return str(url.origin()), ssl.create_default_context(cafile=cafile, cadata=cadata or None)
    except (OSError, ssl.SSLError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise ConfigError(str(cafile), "", reason) from exc


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
