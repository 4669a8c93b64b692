"""The relay's end of the capture socket.

The relay is complete without the capture service: when it is away, the client tries again for
ever and nothing else notices.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, assert_never

from gwmodule.capture.datagrams import MAX_DATAGRAM, Counters, Seen, parse_datagram
from gwmodule.errors import FrameLayoutError
from gwmodule.wire.notices import Observation

FIRST_RETRY = 0.5
MAX_RETRY = 5.0
# Datagrams handled before other tasks get their turn; a receive that need not wait does not yield.
BATCH = 16

log = logging.getLogger(__name__)


class CaptureClient:
    """Calls `on_observation(observation, age)` and `on_counters(values)` for what the service
    sends.

    `age` is in seconds: 0 for what was just seen, more for what was seen while this relay was not
    there.
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

    async def run(self) -> None:
        """For ever: connect, read, and when the service dies, connect again. Ends by cancelling."""
        retry = FIRST_RETRY
        while True:
            try:
                await self._serve()
            except OSError as exc:
                log.debug("%s: %s", self._path, exc.strerror)
            if self.connected:
                self.connected = False
                retry = FIRST_RETRY
                log.info("capture service gone")
            await asyncio.sleep(retry)
            retry = min(MAX_RETRY, retry * 2)

    async def _serve(self) -> None:
        """One connection, until the service ends it or an OSError does (dead, or not there)."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
            await loop.sock_connect(sock, self._path)
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
            log.info("capture service connected")
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
            case _:
                assert_never(datagram)
