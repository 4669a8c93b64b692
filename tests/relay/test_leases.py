from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from gwmodule.lan.leases import MAX_FILE
from gwmodule.relay.leases import LeaseFollower
from gwmodule.wire.notices import Lease, LeaseEnd

MAC = bytes.fromhex("00005e005301")
ADDRESS = IPv4Address("192.168.77.101")
# Without an end, so that what is left of it does not depend on when the test runs.
LINE = b"0 00:00:5e:00:53:01 192.168.77.101 pc1 *\n"
LEASE = Lease(MAC, ADDRESS, 0xFFFFFFFF, "pc1")


@asynccontextmanager
async def following(path: Path) -> AsyncIterator[tuple[LeaseFollower, asyncio.Queue[object]]]:
    heard: asyncio.Queue[object] = asyncio.Queue()
    follower = LeaseFollower(str(path), heard.put_nowait, 0.01)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(follower.run())
        yield follower, heard
        task.cancel()


async def until_failed(follower: LeaseFollower, reason: str) -> None:
    async with asyncio.timeout(5):
        while follower.status()["failed"] != reason:
            await asyncio.sleep(0.01)


def write(path: Path, data: bytes, at: int) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(at, at))


async def test_the_file_is_told_and_then_what_changes_in_it(tmp_path: Path) -> None:
    path = tmp_path / "dhcp.leases"
    write(path, LINE, at=1)
    async with following(path) as (follower, heard), asyncio.timeout(5):
        assert await heard.get() == LEASE
        write(path, b"", at=2)
        assert await heard.get() == LeaseEnd(MAC, ADDRESS)
    assert heard.empty()
    assert follower.status() == {"failed": "", "malformed": 0, "oversized": 0}


async def test_a_file_of_the_same_time_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "dhcp.leases"
    write(path, LINE, at=1)
    async with following(path) as (_, heard), asyncio.timeout(5):
        assert await heard.get() == LEASE
        write(path, b"", at=1)
        await asyncio.sleep(0.05)
        assert heard.empty()


async def test_why_it_cannot_be_read_is_said_once_and_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "dhcp.leases"
    async with following(path) as (follower, heard), asyncio.timeout(5):
        await until_failed(follower, "No such file or directory")
        path.mkdir()
        await until_failed(follower, "Is a directory")
        await asyncio.sleep(0.05)
        path.rmdir()
        write(path, LINE, at=1)
        assert await heard.get() == LEASE
        await until_failed(follower, "")
    assert [line.split(" path=")[0] for line in caplog.messages] == 2 * ["event=lease_file_failed"]


async def test_a_file_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "dhcp.leases"
    write(path, LINE * (MAX_FILE // len(LINE) + 1), at=1)
    async with following(path) as (follower, heard), asyncio.timeout(5):
        while not follower.status()["oversized"]:
            await asyncio.sleep(0.01)
        assert heard.empty()
