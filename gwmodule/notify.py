"""What systemd is told of a service (sd_notify(3)), and the sockets it hands over; where nobody
asked, nothing is sent.

The watchdog is fed by a timer of the event loop and by nothing else: a loop that hangs is exactly
what it is there to find.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Mapping

# sd_watchdog_enabled(3) advises half of the limit; a third lets one be late on a busy router.
_FEEDINGS = 3
# sd-daemon.h: SD_LISTEN_FDS_START; our socket unit has one.
_FIRST_FD = 3
_MAX_FDS = 8
# A status is one line of `systemctl status`.
MAX_STATUS = 300


class Notifier:
    """Talks to the service manager that the environment names, if it does."""

    def __init__(self, environment: Mapping[str, str], pid: int | None = None) -> None:
        own_pid = str(os.getpid() if pid is None else pid)
        self._socket = _connect(environment.get("NOTIFY_SOCKET", ""))
        self._interval = 0.0
        limit = environment.get("WATCHDOG_USEC", "")
        # The variables are inherited by children, which the limit is not meant for.
        if environment.get("WATCHDOG_PID", own_pid) == own_pid and limit.isdecimal():
            self._interval = int(limit) / 1e6 / _FEEDINGS
        self._timer: asyncio.TimerHandle | None = None

    def ready(self, status: str) -> None:
        """The service does its work from now on; also the end of `reloading`."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        self._send(_status(status))

    def reloading(self) -> None:
        # Newer managers compare the time with that of their request (Type=notify-reload).
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def feed_watchdog(self) -> None:
        """Now, and from the running loop again and again until `close`."""
        if self._socket is None or not self._interval:
            return
        self._send("WATCHDOG=1")
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval, self.feed_watchdog)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        # A manager that restarts, or is too busy to read, is no reason to stop or to wait.
        with contextlib.suppress(OSError):
            self._socket.send("\n".join(lines).encode(), socket.MSG_DONTWAIT)


def inherited_sockets(
    environment: Mapping[str, str], pid: int | None = None
) -> tuple[socket.socket, ...]:
    """Listening sockets that the service manager opened for us (sd_listen_fds(3))."""
    count = environment.get("LISTEN_FDS", "")
    own_pid = str(os.getpid() if pid is None else pid)
    if environment.get("LISTEN_PID") != own_pid or not count.isdecimal():
        return ()
    sockets = [socket.socket(fileno=_FIRST_FD + i) for i in range(min(int(count), _MAX_FDS))]
    for sock in sockets:
        sock.setblocking(False)
        os.set_inheritable(sock.fileno(), False)
    return tuple(sockets)


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())[:MAX_STATUS]


def _connect(address: str) -> socket.socket | None:
    if not address:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    # An @ stands for the zero byte of an abstract name.
    try:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        sock.close()
        return None
    return sock
