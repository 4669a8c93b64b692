"""SQLite on a file system that fills up: nothing acknowledged is lost, and room is all it needs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from uuid import UUID

import pytest

from gwmodule.msp.database import RegistryError, open_database
from gwmodule.msp.journal import Journal
from gwmodule.msp.registry import Observed, Registry
from gwmodule.wire.notices import Hello, Source

pytestmark = pytest.mark.root

GATEWAYS = 50
TOTAL = 1000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(directory)]
    subprocess.run(mount, check=True, capture_output=True)
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def notice(number: int) -> Observed:
    mac = bytes([2, 0, 0, 0, number >> 8, number & 0xFF])
    hello = Hello(UUID(int=number + 1), IPv4Address(number), mac, 3, 0, Source.LISTENER, b"raw")
    return Observed(f"home{number % GATEWAYS}", "203.0.113.7", 1, hello, 0.0, 1.0)


def fill(path: Path) -> None:
    """All that is left."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


async def test_a_full_disk_loses_no_acknowledged_registration(small_disk: Path) -> None:
    acknowledged: set[UUID] = set()
    async with (
        contextlib.aclosing(await open_database(str(small_disk / "registry.db"))) as database,
        asyncio.TaskGroup() as group,
    ):
        registry = Registry(database)
        for number in range(GATEWAYS):
            await registry.add_gateway(f"home{number}", "aa", 0.0)
        journal = Journal(registry, lambda: None)
        writer = group.create_task(journal.run())
        for number in range(TOTAL):
            answer = partial(lambda number, _: acknowledged.add(UUID(int=number + 1)), number)
            journal.put(notice(number), answer)
        async with asyncio.timeout(15):
            while len(acknowledged) < 100:
                await asyncio.sleep(0)
            fill(small_disk / "filler")
            while journal.counters["commit_failed"] < 2:
                await asyncio.sleep(0.01)
            # Reading goes on, and what was acknowledged is there; writing says why it cannot.
            stored = {device.uuid for device in await registry.devices()}
            assert acknowledged == stored
            assert 100 <= len(acknowledged) < TOTAL
            with pytest.raises(RegistryError, match="full"):
                await registry.audit("anna", "call", 1.0, detail={"much": "x" * 100_000})
            os.unlink(small_disk / "filler")
            while len(acknowledged) < TOTAL:
                await asyncio.sleep(0.01)
        assert {device.uuid for device in await registry.devices()} == acknowledged
        writer.cancel()
