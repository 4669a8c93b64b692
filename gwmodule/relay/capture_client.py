"""The relay's end of the capture socket.

The relay is complete without the capture service: when it is away, the client tries again for
ever and nothing else notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
from collections.abc import AsyncGenerator, Callable
from typing import Any, assert_never

from gwmodule.capture import pcap
from gwmodule.capture.datagrams import (
    MAX_DATAGRAM,
    Counters,
    Recorded,
    Seen,
    build_record,
    parse_datagram,
)
from gwmodule.errors import CaptureError, FrameLayoutError
from gwmodule.telemetry import EventLog
from gwmodule.wire.notices import Observation

FIRST_RETRY = 0.5
MAX_RETRY = 5.0
# Datagrams handled before other tasks get their turn; a receive that need not wait does not yield.
BATCH = 16
# A recording waits on a router's /tmp, which is RAM.
MAX_RECORDING = 8 * 1024 * 1024
# Frames that wait for whoever reads a recording too slowly; more are dropped.
MAX_WAITING = 256

log = EventLog("gwmodule.relay")


class CaptureClient:
    """Calls `on_observation(observation, age)` and `on_counters(values)` for what the service
    sends.

    `age` is in seconds: 0 for what was just seen, more for what was seen before this connection,
    which a client that connects again may have been told already.
    """

    def __init__(
        self,
        path: str,
        on_observation: Callable[[Observation, float], None],
        on_counters: Callable[[dict[str, Any]], None],
    ) -> None:
        self._path = path
        self._on_observation = on_observation
        self._on_counters = on_counters
        self.connected = False
        self.connections = 0
        self.malformed = 0
        self._socket: socket.socket | None = None
        # Frames for the one recording; None is the end of the service.
        self._recording: asyncio.Queue[Recorded | None] | None = None

    async def run(self) -> None:
        """For ever: connect, read, and when the service dies, connect again. Ends by cancelling."""
        retry = FIRST_RETRY
        while True:
            try:
                await self._serve()
            except OSError as exc:
                log.debug("capture_absent", path=self._path, reason=exc.strerror)
            if self.connected:
                self.connected = False
                retry = FIRST_RETRY
                log.info("capture_gone")
            if self._recording is not None:
                self._keep(None)
            await asyncio.sleep(retry)
            retry = min(MAX_RETRY, retry * 2)

    async def _serve(self) -> None:
        """One connection, until the service ends it or an OSError does (dead, or not there)."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
            await loop.sock_connect(sock, self._path)
            self._socket = sock
            while True:
                for _ in range(BATCH):
                    data = await loop.sock_recv(sock, MAX_DATAGRAM + 1)
                    if not data:
                        return
                    self._receive(data)
                await asyncio.sleep(0)

    def _receive(self, data: bytes) -> None:
        # The kernel connects us before the service looks; it greets with its counters when it does.
        if not self.connected:
            self.connected = True
            self.connections += 1
            log.info("capture_connected")
        try:
            datagram = parse_datagram(data)
        except FrameLayoutError:
            self.malformed += 1
            return
        match datagram:
            case Seen(observation, age):
                self._on_observation(observation, age)
            case Counters(values):
                self._on_counters(values)
            case Recorded():
                self._keep(datagram)
            case _:
                assert_never(datagram)

    def _keep(self, recorded: Recorded | None) -> None:
        if self._recording is not None:
            with contextlib.suppress(asyncio.QueueFull):
                self._recording.put_nowait(recorded)

    def record(self, count: int, seconds: float) -> AsyncGenerator[bytes, None]:
        """A pcap file, piece by piece: the frames that the sniffer matches from now on, at most
        `count`, for `seconds`, and MAX_RECORDING bytes. Close it to end it early. CaptureError when
        there is no service, or somebody records already.
        """
        if not self.connected or self._socket is None:
            raise CaptureError("the capture service is not connected")
        if self._recording is not None:
            raise CaptureError("somebody records already")
        return self._record(count, seconds)

    async def _record(self, count: int, seconds: float) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        end, size = loop.time() + seconds, 0
        frames = self._recording = asyncio.Queue(MAX_WAITING)
        try:
            self._say(build_record(count, seconds))
            yield pcap.FILE_HEADER
            for _ in range(count):
                try:
                    async with asyncio.timeout_at(end):
                        recorded = await frames.get()
                except TimeoutError:
                    return
                if recorded is None:
                    return
                # The service's clock is monotonic, and the same as ours.
                wall = datetime.datetime.now(datetime.UTC).timestamp()
                at = wall - (loop.time() - recorded.at)
                piece = pcap.build_record(recorded.frame, recorded.length, at)
                size += len(piece)
                if size > MAX_RECORDING:
                    return
                yield piece
        finally:
            if self._recording is frames:
                self._recording = None
                self._say(build_record(0, 0))

    def _say(self, request: bytes) -> None:
        # A service that is gone records nothing any more; one that is stuck forgets by time.
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.send(request)
