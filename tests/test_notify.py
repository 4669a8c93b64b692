from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gwmodule.notify import MAX_STATUS, Notifier


class Manager:
    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(5)

    def heard(self) -> list[str]:
        return self.socket.recv(4096).decode().split("\n")

    def silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(4096)
        except BlockingIOError:
            return True
        return False


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    by_path = request.param == "path"
    made = Manager(str(tmp_path / "notify") if by_path else f"@gwmodule-test-{os.getpid()}")
    with made.socket:
        yield made


def test_the_manager_hears_of_every_step(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    notifier.ready("no link yet")
    assert manager.heard() == ["READY=1", "STATUS=no link yet"]
    notifier.status("link up")
    assert manager.heard() == ["STATUS=link up"]
    notifier.reloading()
    first, second = manager.heard()
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0
    notifier.stopping()
    assert manager.heard() == ["STOPPING=1"]
    notifier.close()
    notifier.ready("after the end")
    assert manager.silent()


def test_a_status_cannot_smuggle_in_another_line(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    notifier.status("bad\nMAINPID=1" + "x" * 1000)
    (line,) = manager.heard()
    assert line.startswith("STATUS=bad MAINPID=1")
    assert len(line) == len("STATUS=") + MAX_STATUS
    notifier.close()


async def test_the_watchdog_is_fed_by_the_loop_three_times_per_limit(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "300000"})
    loop = asyncio.get_running_loop()
    start = loop.time()
    notifier.feed_watchdog()
    manager.socket.setblocking(False)
    for _ in range(4):
        assert await loop.sock_recv(manager.socket, 100) == b"WATCHDOG=1"
    assert 0.29 <= loop.time() - start < 2
    notifier.close()
    await asyncio.sleep(0.15)
    assert manager.silent()


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "100", "WATCHDOG_PID": "1"},
    ],
)
async def test_a_watchdog_that_is_not_for_us_is_not_fed(
    manager: Manager, watchdog: dict[str, str]
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, **watchdog}, pid=4711)
    notifier.feed_watchdog()
    await asyncio.sleep(0.02)
    assert manager.silent()
    notifier.close()


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@nobody-listens-there"])
async def test_without_a_manager_nothing_happens(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
    notifier.ready("")
    notifier.feed_watchdog()
    notifier.close()


def test_a_manager_that_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    for _ in range(2000):
        notifier.status("again")
    assert manager.heard() == ["STATUS=again"]
    manager.socket.close()
    notifier.status("nobody there")
    notifier.close()


def test_sockets_are_inherited_by_the_process_they_are_meant_for() -> None:
    script = (
        "import os, socket; from gwmodule.notify import inherited_sockets;"
        "mine = {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'};"
        "assert inherited_sockets({}) == ();"
        "assert inherited_sockets({**mine, 'LISTEN_PID': '1'}) == ();"
        "assert inherited_sockets({**mine, 'LISTEN_FDS': 'x'}) == ();"
        "(found,) = inherited_sockets(mine);"
        "print(found.getsockname()[1], found.get_inheritable())"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = f'exec "$0" -c "$1" 3<&{server.fileno()}'
        done = subprocess.run(
            ["bash", "-c", command, sys.executable, script],
            pass_fds=[server.fileno()],
            capture_output=True,
            text=True,
        )
    assert done.stdout == f"{port} False\n", done.stderr
