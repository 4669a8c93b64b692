"""A gateway's stream to a device with the device's TLS taken off here, for what speaks plain."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from gwmodule.amt.connection import HandshakeFailed
from gwmodule.errors import ChannelReset, Code
from gwmodule.msp.seam import SessionSeam, StreamSeam
from gwmodule.msp.sol import SolFailed, open_tls
from gwmodule.msp.tls import TlsStream
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import StreamTarget

# How long a device that was told the end may still say something.
LINGER = 2.0


class SecuredStream:
    """What is written and read is plain, what the gateway and the LAN see is not."""

    def __init__(self, stream: StreamSeam, tls: TlsStream) -> None:
        self.priority = stream.priority
        self._stream = stream
        self._tls = tls
        self._pending = bytearray()

    @property
    def channel(self) -> int:
        return self._stream.channel

    async def read(self) -> bytes:
        return await self._tls.read()

    def write(self, data: bytes) -> None:
        self._pending += data

    async def drain(self) -> None:
        data = bytes(self._pending)
        self._pending.clear()
        if data:
            await self._tls.write(data)

    def write_eof(self) -> None:
        self._stream.write_eof()

    def reset(self, code: Code, reason: str) -> None:
        self._stream.reset(code, reason)


async def open_secured(
    session: SessionSeam, target: StreamTarget, priority: Priority, pin: bytes
) -> SecuredStream:
    """HandshakeFailed, TlsPinMismatch; ChannelReset as `SessionSeam.open_stream`."""
    opened: list[StreamSeam] = []

    async def open_port(port: int) -> SeamStream:
        # Nothing of TLS can be held (amt.hold).
        stream = await session.open_stream(replace(target, port=port, hold=False), priority)
        opened.append(stream)
        return SeamStream(stream)

    try:
        tls = await open_tls(open_port, pin)
    except SolFailed as exc:
        raise HandshakeFailed(str(exc)) from exc
    return SecuredStream(opened[-1], tls)


class SeamStream:
    """A gateway's stream as a ByteStream."""

    def __init__(self, stream: StreamSeam) -> None:
        self._stream = stream

    async def read(self) -> bytes:
        return await self._stream.read()

    async def write(self, data: bytes) -> None:
        self._stream.write(data)
        await self._stream.drain()

    async def close(self, code: Code = Code.OK, reason: str = "") -> None:
        if code is Code.OK:
            self._stream.write_eof()
            # A reset would overtake the last words.
            with contextlib.suppress(TimeoutError, ChannelReset):
                async with asyncio.timeout(LINGER):
                    while await self._stream.read():
                        pass
        self._stream.reset(code or Code.CANCELLED, reason or "closed")
