"""TLS between the technician's terminal and the device, end to end: no hop reads along.

Devices present self-signed certificates; what identifies one is the SHA-256 of its leaf, compared
with the registry's pin before the first byte is sent (reference/libraries.md section 7).
"""

from __future__ import annotations

import hashlib
import ssl
from typing import Protocol

from gwmodule.amt.connection import NO_PIN, HandshakeFailed
from gwmodule.errors import ChannelReset, Code, TlsPinMismatch

_READ = 16384


class ByteStream(Protocol):
    """Bytes both ways, whatever carries them; ChannelReset when it was cut."""

    async def read(self) -> bytes:
        """The next chunk; b"" at the end."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def close(self, code: Code = Code.OK, reason: str = "") -> None: ...


class TlsStream:
    """A stream inside TLS; `open` first."""

    def __init__(self, stream: ByteStream, context: ssl.SSLContext) -> None:
        self._stream = stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        # No SNI: firmware has one certificate, and old firmware does not know the extension.
        self._object = context.wrap_bio(self._incoming, self._outgoing)

    async def open(self, pin: bytes = NO_PIN) -> None:
        """HandshakeFailed, or TlsPinMismatch when the certificate is not the pinned one."""
        while True:
            try:
                self._object.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as exc:
                raise HandshakeFailed(f"TLS handshake: {exc.reason or exc}") from exc
            await self._flush()
            data = await self._stream.read()
            if not data:
                raise HandshakeFailed("TLS handshake: the device closed the connection")
            self._incoming.write(data)
        await self._flush()
        leaf = hashlib.sha256(self._object.getpeercert(binary_form=True) or b"").digest()
        if pin not in (NO_PIN, leaf):
            raise TlsPinMismatch(f"the device's certificate is {leaf.hex()}, pinned is {pin.hex()}")

    async def read(self) -> bytes:
        while True:
            try:
                return self._object.read(_READ)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as exc:
                raise ChannelReset(Code.CONNECTION_LOST, f"TLS: {exc.reason or exc}") from exc
            # A key update asks for an answer.
            await self._flush()
            data = await self._stream.read()
            if not data:
                return b""
            self._incoming.write(data)

    async def write(self, data: bytes) -> None:
        self._object.write(data)
        await self._flush()

    async def close(self, code: Code = Code.OK, reason: str = "") -> None:
        await self._stream.close(code, reason)

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._stream.write(data)
