"""Accepting connections by hand: at the cost of an accept each, before TLS has cost anything.

asyncio's own servers show a connection only when its TLS handshake is over, which is too late to
count the handshakes, or to ask who has too many.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from gwmodule.telemetry import EventLog

# Seconds without accepting when the process has no descriptor left.
PAUSE = 0.5
_ACCEPTS_PER_TURN = 32


class Acceptor:
    """Calls `accepted` with each connection and its address; `sock` listens already."""

    def __init__(
        self, sock: socket.socket, accepted: Callable[[socket.socket, str], object]
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._accepted = accepted
        self._log = EventLog("gwmodule.msp")
        # While no descriptor is left.
        self._again: asyncio.TimerHandle | None = None
        self.failed = 0

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    def start(self) -> None:
        self._again = None
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        if self._again is not None:
            self._again.cancel()
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                # Out of descriptors: the backlog keeps the caller. The socket stays readable, so
                # the loop must not look at it again at once.
                self.failed += 1
                self._log.warning("accept_failed", reason=exc.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._sock.fileno())
                self._again = loop.call_later(PAUSE, self.start)
                return
            self._accepted(sock, str(address[0]))


def listening_socket(host: str, port: int, backlog: int = 1024) -> socket.socket:
    """On one address of either family; `::` takes IPv4 too. OSError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind((host, port))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock
