"""A TCP line between a gateway and its MSP that is cut after so many bytes, or now."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Literal

Direction = Literal["up", "down"]


class Line:
    """`port` leads to the MSP. A cut ends what is connected; the next connection is whole again."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0
        self.cuts = 0
        self._left: dict[Direction, int] = {}
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def carrying(self) -> AsyncIterator[Line]:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self._drop()

    def cut(self) -> None:
        self.cuts += 1
        self._left.clear()
        self._drop()

    def cut_after(self, direction: Direction, size: int) -> None:
        """Let `size` more bytes through, then cut."""
        self._left[direction] = size

    def _drop(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers |= {writer, far_writer}
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump("up", reader, far_writer))
                    both.create_task(self._pump("down", far_reader, writer))
            finally:
                self._writers -= {writer, far_writer}
                for each in (writer, far_writer):
                    each.close()

    async def _pump(
        self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                left = self._left.get(direction)
                if left is not None:
                    writer.write(data[:left])
                    self._left[direction] = left - len(data)
                    if left <= len(data):
                        self.cut()
                        break
                else:
                    writer.write(data)
                await writer.drain()
        writer.close()
