"""What stands at both ends of a stream while the line between them is mistreated.

    python -m tests.lab.far_ends source ADDRESS PORT SEED SIZE RATE   a device that sends bulk
    python -m tests.lab.far_ends sink PORT SIZE                       a tool that receives it
    python -m tests.lab.far_ends console PORT PASSWORD RX_MS          a technician at a console

Run in hosts of the lab, as processes of their own. `sink` and `console` end with one JSON line;
the technician types until SIGTERM.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import socket
import sys
import threading
import time

from gwmodule.amt.redirection import SolSettings
from gwmodule.amt.sol import SolClient, SolClosed, SolControls, SolData, SolOpened, SolRefused

_CHUNK = 8192


_PERIOD = 20 * 1024 * 1024


def content(seed: int, size: int) -> bytes:
    """What a source sends; beyond 20 MiB it repeats itself."""
    return random.Random(seed).randbytes(min(size, _PERIOD))


def source(address: str, port: int, seed: int, size: int, rate: int) -> None:
    data = content(seed, size)
    with socket.create_server((address, port)) as server:
        print("listening", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                started = time.monotonic()
                for offset in range(0, size, _CHUNK):
                    start = offset % len(data)
                    connection.sendall(data[start : start + _CHUNK])
                    ahead = (offset + _CHUNK) / rate - (time.monotonic() - started)
                    if ahead > 0:
                        time.sleep(ahead)
                connection.shutdown(socket.SHUT_WR)
                # Until the tool has everything and closes.
                while connection.recv(_CHUNK):
                    pass


def sink(port: int, size: int) -> None:
    digest, received = hashlib.sha256(), 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while data := connection.recv(65536):
            digest.update(data)
            received += len(data)
    print(json.dumps({"received": received, "sha256": digest.hexdigest(), "expected": size}))


def console(port: int, password: str, rx_ms: int) -> None:
    """Type numbered lines at the recovery prompt, twenty a second; print what the screen showed.

    After SIGTERM it still waits for the answer to the last line.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    settings = SolSettings(host_session_rx_timeout_ms=rx_ms)
    screen, ended = bytearray(), ""
    typed, next_line_at = 0, 0.0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(0.02)
        client = SolClient(
            "admin", now=time.monotonic(), password=password, settings=settings,
            allow_clear_text=True, silence_timeout=0,
        )  # fmt: skip
        ready = False
        while not ended:
            now = time.monotonic()
            if out := client.data_to_send(65536):
                connection.sendall(out)
            try:
                data = connection.recv(65536)
                client.receive_data(data, time.monotonic())
            except TimeoutError:
                pass
            client.handle_timeout(time.monotonic())
            while (event := client.next_event()) is not None:
                match event:
                    case SolOpened():
                        ready, next_line_at = True, now + 1.0
                    case SolData(data):
                        screen += data
                    case SolClosed(reason):
                        ended = reason
                    case SolRefused(status, reason):
                        ended = f"refused: {status} {reason}"
                    case SolControls():
                        pass
            if ready and now >= next_line_at and not stop.is_set():
                typed += 1
                next_line_at = now + 0.05
                client.send(b"line-%d\r" % typed)
            if stop.is_set() and screen.endswith(b"line-%d: not found\r\nrecovery> " % typed):
                break
    print(json.dumps({"typed": typed, "screen": screen.decode(errors="replace"), "ended": ended}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["source", address, port, seed, size, rate]:
            source(address, int(port), int(seed), int(size), int(rate))
        case ["sink", port, size]:
            sink(int(port), int(size))
        case ["console", port, password, rx_ms]:
            console(int(port), password, int(rx_ms))
        case _:
            sys.exit(__doc__)
