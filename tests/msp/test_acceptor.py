from __future__ import annotations

import asyncio
import os
import resource
import socket

from gwmodule.msp import acceptor
from gwmodule.msp.acceptor import Acceptor, listening_socket
from tests.uplink.peers import until


class Door(Acceptor):
    """Notes who came, and hangs up."""

    def __init__(self, host: str) -> None:
        super().__init__(listening_socket(host, 0), self._hang_up)
        self.calls: list[str] = []

    def _hang_up(self, sock: socket.socket, address: str) -> None:
        self.calls.append(address)
        sock.close()


async def test_each_connection_comes_with_its_address() -> None:
    door = Door("::")
    door.start()
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, door.port)).close()
    await until(lambda: len(door.calls) == 2)
    door.close()
    assert door.calls == ["::ffff:127.0.0.1", "::1"]


async def test_without_descriptors_it_waits_instead_of_spinning() -> None:
    door = Door("127.0.0.1")
    door.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as caller:
        caller.setblocking(False)
        # The number of the next descriptor is the first that is not allowed.
        free = os.dup(caller.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            await asyncio.get_running_loop().sock_connect(caller, ("127.0.0.1", door.port))
            await until(lambda: door.failed)
            for _ in range(100):
                await asyncio.sleep(0)
            assert door.failed == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        # Accepted after all.
        await until(lambda: door.calls)
    door.close()


async def test_it_can_be_closed_while_it_waits_for_descriptors() -> None:
    door = Door("127.0.0.1")
    door.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as caller:
        caller.setblocking(False)
        free = os.dup(caller.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            await asyncio.get_running_loop().sock_connect(caller, ("127.0.0.1", door.port))
            await until(lambda: door.failed)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        door.close()
        await asyncio.sleep(acceptor.PAUSE * 1.2)
    assert door.failed == 1
