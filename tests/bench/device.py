"""The far end of every path: echoes, swallows and pours bytes on three ports.

    python -m tests.bench.device ECHO_PORT SINK_PORT SOURCE_PORT STATS_SOCKET

The stats socket (unix, so that it is reachable from any network namespace) answers every
connection with the number of bytes swallowed so far. Blocking threads: the shortest way there is.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable

_CHUNK = 64 * 1024


class Device:
    def __init__(self) -> None:
        self.swallowed = 0

    def echo(self, sock: socket.socket) -> None:
        while data := sock.recv(_CHUNK):
            sock.sendall(data)

    def swallow(self, sock: socket.socket) -> None:
        buffer = bytearray(_CHUNK)
        while size := sock.recv_into(buffer):
            # One sink connection at a time is measured; a lost update would need two.
            self.swallowed += size

    def pour(self, sock: socket.socket) -> None:
        data = bytes(_CHUNK)
        while True:
            sock.sendall(data)

    def tell(self, sock: socket.socket) -> None:
        sock.sendall(str(self.swallowed).encode())


def serve(listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    def one(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            handle(sock)

    while True:
        sock, _ = listener.accept()
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=one, args=(sock,), daemon=True).start()


def main() -> None:
    device = Device()
    threads: list[threading.Thread] = []
    for port, handle in zip(sys.argv[1:4], (device.echo, device.swallow, device.pour), strict=True):
        listener = socket.create_server(("127.0.0.1", int(port)))
        threads.append(threading.Thread(target=serve, args=(listener, handle)))
    stats = socket.socket(socket.AF_UNIX)
    stats.bind(sys.argv[4])
    stats.listen()
    threads.append(threading.Thread(target=serve, args=(stats, device.tell)))
    for thread in threads:
        thread.start()
    print("ready", flush=True)


if __name__ == "__main__":
    main()
