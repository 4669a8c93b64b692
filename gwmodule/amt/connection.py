"""One HTTP/1.1 connection to a device, plain or TLS: bytes, sizes and certificates, no WS-Man.

    connect_plain(sock) --+
                          +--> HttpConnection.post(headers, body) -> HttpAnswer
    connect_tls(sock) ----+

Devices present self-signed certificates that nobody can verify; what identifies one is the SHA-256
of its leaf, compared with the pin before the first byte is sent (reference/libraries.md section 7).
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import socket
import ssl
from dataclasses import dataclass

import h11

from gwmodule.amt.wsman import MAX_ANSWER
from gwmodule.errors import DeviceAnswerError, DeviceUnreachable, TlsPinMismatch

WSMAN_PATH = "/wsman"
NO_PIN = bytes(32)

# Real answers have about 300 bytes of headers.
MAX_HEADERS = 16 * 1024
# A 100-continue is legal; an endless row of them is a device that never answers.
MAX_INFORMATIONAL = 4
# An ME of 2008 needs almost two seconds for its RSA operation.
HANDSHAKE_TIMEOUT = 10.0
_READ = 16 * 1024


class ConnectionLost(DeviceUnreachable):
    """The device closed or reset the connection before it answered a request."""


class HandshakeFailed(DeviceUnreachable):
    """TCP connected, TLS did not come about."""


@dataclass(slots=True)
class HttpAnswer:
    """`headers` with names in lower case, in order. The body is whole, at most MAX_ANSWER bytes."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        """The first value of a header, or empty."""
        return next(iter(self.all(name)), "")

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


@functools.cache
def modern_context() -> ssl.SSLContext:
    """TLS 1.2 and 1.3 with OpenSSL's own choice of ciphers: AMT 12 and later."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@functools.cache
def legacy_context() -> ssl.SSLContext:
    """TLS 1.0 to 1.3, short keys, SHA-1, RSA key exchange: what firmware before AMT 12 needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # Not TLSv1: naming it is a DeprecationWarning. SSL 3 stays off through OP_NO_SSLv3.
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    # OP_LEGACY_SERVER_CONNECT, which has a name in Python 3.12 only.
    context.options |= 0x4
    return context


async def connect_plain(sock: socket.socket) -> HttpConnection:
    """HTTP over a connected, non-blocking socket, which from now on belongs to the connection."""
    return await _connect(sock, None)


async def connect_tls(
    sock: socket.socket, context: ssl.SSLContext, pin: bytes = NO_PIN
) -> HttpConnection:
    """HTTPS over a connected, non-blocking socket, which from now on belongs to the connection.

    HandshakeFailed when TLS does not come about, TlsPinMismatch when the leaf's SHA-256 is not
    `pin`; NO_PIN takes any certificate.
    """
    try:
        connection = await _connect(sock, context)
    except ssl.SSLError as exc:
        raise HandshakeFailed(f"TLS handshake: {exc.reason or exc}") from exc
    except OSError as exc:
        # Firmware that does not like our hello closes or resets, and asyncio says nothing to that.
        reason = exc.strerror or str(exc) or "the device closed the connection"
        raise HandshakeFailed(f"TLS handshake: {reason}") from exc
    if pin not in (NO_PIN, connection.pin):
        connection.close()
        raise TlsPinMismatch(
            f"the device's certificate is {connection.pin.hex()}, pinned is {pin.hex()}"
        )
    return connection


async def _connect(sock: socket.socket, context: ssl.SSLContext | None) -> HttpConnection:
    try:
        reader, writer = await asyncio.open_connection(
            sock=sock,
            limit=_READ,
            ssl=context,
            # No SNI: firmware has one certificate, and old firmware does not know the extension.
            server_hostname="" if context else None,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT if context else None,
        )
    except BaseException:
        sock.close()
        raise
    return HttpConnection(reader, writer)


class HttpConnection:
    """POST, one request at a time, for as long as the device keeps it open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADERS)
        tls = writer.get_extra_info("ssl_object")
        leaf = tls.getpeercert(binary_form=True) if tls is not None else None
        # SHA-256 of the device's leaf certificate; NO_PIN without TLS.
        self.pin = hashlib.sha256(leaf).digest() if leaf else NO_PIN
        # As OpenSSL calls it, `TLSv1.2`; empty without TLS.
        self.tls_version: str = (tls.version() or "") if tls is not None else ""
        self.used = False

    @property
    def usable(self) -> bool:
        """False once the device closed it, so that nothing is sent into the void."""
        return (
            self._http.our_state is h11.IDLE
            and not self._reader.at_eof()
            and not self._writer.is_closing()
        )

    async def post(
        self, headers: list[tuple[str, str]], body: bytes, path: str = WSMAN_PATH
    ) -> HttpAnswer:
        """One request and its whole answer. After an error the connection is of no more use.

        ConnectionLost before the first byte of an answer, DeviceAnswerError after it: no HTTP, too
        large, cut short. Content-Length is added here; requests are never chunked, because
        firmware answers 411 to that.
        """
        self.used = True
        length = ("Content-Length", str(len(body)))
        request = h11.Request(method="POST", target=path, headers=[*headers, length])
        data = b"".join(
            self._http.send(event) or b""
            for event in (request, h11.Data(data=body), h11.EndOfMessage())
        )
        try:
            self._writer.write(data)
            await self._writer.drain()
            return await self._receive()
        except h11.RemoteProtocolError as exc:
            raise DeviceAnswerError(f"the device does not speak HTTP/1.1: {exc}") from exc
        except OSError as exc:
            raise ConnectionLost(f"connection lost: {exc.strerror or exc}") from exc

    async def _receive(self) -> HttpAnswer:
        response = await self._response()
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in response.headers]
        answer = HttpAnswer(response.status_code, headers, b"")
        announced = answer.header("content-length")
        if announced and int(announced) > MAX_ANSWER:
            raise DeviceAnswerError(f"answer of {announced} bytes announced, maximum {MAX_ANSWER}")
        body = bytearray()
        while not isinstance(event := await self._next_event(len(body)), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                body += event.data
            if len(body) > MAX_ANSWER:
                raise DeviceAnswerError(
                    f"answer of more than {len(body)} bytes, maximum {MAX_ANSWER}"
                )
        answer.body = bytes(body)
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        return answer

    async def _response(self) -> h11.Response:
        for _ in range(MAX_INFORMATIONAL + 1):
            event = await self._next_event(None)
            if isinstance(event, h11.Response):
                return event
        raise DeviceAnswerError(f"more than {MAX_INFORMATIONAL} interim answers")

    async def _next_event(self, received: int | None) -> h11.Event:
        """`received` are the body's bytes so far; None while the headers are awaited."""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as exc:
                if received is None:
                    raise
                raise DeviceAnswerError(f"answer cut after {received} bytes: {exc}") from exc
            except ValueError as exc:  # h11 before 0.16, as in Debian 12: a length of 4,300 digits
                raise DeviceAnswerError(f"the device does not speak HTTP/1.1: {exc}") from exc
            if event is h11.NEED_DATA:
                await self._read(received)
            elif isinstance(event, h11.Event):
                return event
            else:
                raise DeviceAnswerError("the device does not speak HTTP/1.1")

    async def _read(self, received: int | None) -> None:
        fresh = received is None and not self._http.trailing_data[0]
        try:
            data = await self._reader.read(_READ)
        except OSError as exc:
            if fresh:
                raise
            reason = exc.strerror or exc
            raise DeviceAnswerError(f"answer cut after {received or 0} bytes: {reason}") from exc
        if not data and fresh:
            raise ConnectionLost("the device closed the connection without an answer")
        self._http.receive_data(data)

    def close(self) -> None:
        # Nothing that matters is left to say, and a device that is gone would not let us say it.
        transport = self._writer.transport
        # A TLS transport that lost its connection cannot be aborted any more (CPython 3.11.2).
        if not transport.is_closing():
            transport.abort()
