"""Private network namespaces for tests, held by threads: nothing outside of them is touched, and
the kernel removes each with its thread and sockets.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
CLONE_NEWNET = 0x40000000

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root for a network namespace"
)

PC_MAC = "02:00:00:00:01:10"


def ip(arguments: str, batch: str | None = None) -> None:
    """iproute2, in the namespace of the calling thread."""
    subprocess.run(["ip", *arguments.split()], input=batch, text=True, check=True)


class Namespace:
    """Everything given to `run` happens inside, sockets included."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.run(_unshare)
        self.ip("link set lo up")

    def run(self, function: Callable[[], T]) -> T:
        return self._thread.submit(function).result()

    def run_async(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return self.run(lambda: asyncio.run(main()))

    def ip(self, arguments: str) -> None:
        self.run(lambda: ip(arguments))

    def tid(self) -> int:
        return self.run(threading.get_native_id)

    def close(self) -> None:
        self._thread.shutdown()


@dataclass
class Home:
    """isp 198.51.100.1 -- wan: gateway: br-lan -- 192.168.1.10 pc (also .11 and .12, silent)"""

    gateway: Namespace
    pc: Namespace
    isp: Namespace


@contextmanager
def home() -> Iterator[Home]:
    with ExitStack() as stack:
        gateway, pc, isp = (stack.enter_context(_namespace()) for _ in range(3))
        gateway.ip(f"link add br-lan type veth peer name eth0 netns {pc.tid()}")
        gateway.ip(f"link add wan type veth peer name eth0 netns {isp.tid()}")
        pc.ip(f"link set eth0 address {PC_MAC} up")
        pc.ip("address add 192.168.1.10/24 dev eth0")
        isp.ip("link set eth0 up")
        isp.ip("address add 198.51.100.1/24 dev eth0")
        gateway.ip("link set br-lan up")
        gateway.ip("link set wan up")
        gateway.ip("address add 192.168.1.1/24 dev br-lan")
        gateway.ip("address add 198.51.100.7/24 dev wan")
        gateway.ip("route add default via 198.51.100.1")
        yield Home(gateway, pc, isp)


@contextmanager
def _namespace() -> Iterator[Namespace]:
    namespace = Namespace()
    try:
        yield namespace
    finally:
        namespace.close()


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
