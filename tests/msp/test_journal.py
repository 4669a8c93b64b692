import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Address

import pytest

from gwmodule.msp import journal as journal_module
from gwmodule.msp.database import RegistryError, StatementError
from gwmodule.msp.journal import MAX_BATCH, Journal
from gwmodule.msp.registry import Event, LinkDown, LinkUp, Observed
from gwmodule.wire.notices import Gone


class Disk:
    """A registry that writes down what it is given, when it can."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.events: list[Event] = []
        self.broken: Callable[[Sequence[str]], Exception | None] = lambda names: None
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    async def record(self, events: Sequence[Event]) -> list[bool]:
        names = [event.gateway for event in events]
        await self.may_finish.wait()
        if (error := self.broken(names)) is not None:
            raise error
        self.batches.append(names)
        self.events += events
        return [False] * len(names)

    @property
    def written(self) -> list[str]:
        return [name for batch in self.batches for name in batch]


def notice(name: str) -> Observed:
    gone = Gone(b"\2\0\0\0\0\1", IPv4Address("192.168.1.10"))
    return Observed(name, "203.0.113.7", 1, gone, 0.0, 1.0)


@asynccontextmanager
async def running(disk: Disk) -> AsyncIterator[tuple[Journal, list[str]]]:
    """A journal at work, and whose notices it has acknowledged."""
    acknowledged: list[str] = []
    journal = Journal(disk, lambda: None)
    async with asyncio.TaskGroup() as group:
        writer = group.create_task(journal.run())
        yield journal, acknowledged
        writer.cancel()


def put(journal: Journal, acknowledged: list[str], *names: str) -> None:
    for name in names:
        journal.put(notice(name), partial(lambda name, _: acknowledged.append(name), name))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_notice_is_acknowledged_only_after_its_commit() -> None:
    disk = Disk()
    disk.may_finish.clear()
    async with running(disk) as (journal, acknowledged):
        put(journal, acknowledged, "a")
        await asyncio.sleep(0.02)
        assert acknowledged == []
        disk.may_finish.set()
        await until(lambda: acknowledged == ["a"])


async def test_what_waits_is_written_in_order_and_in_batches() -> None:
    disk = Disk()
    names = [str(number) for number in range(3 * MAX_BATCH)]
    async with running(disk) as (journal, acknowledged):
        put(journal, acknowledged, *names)
        await until(lambda: len(acknowledged) == len(names))
    assert acknowledged == disk.written == names
    assert [len(batch) for batch in disk.batches] == [MAX_BATCH] * 3


async def test_a_database_that_is_away_keeps_the_queue_and_is_tried_again() -> None:
    disk = Disk()
    disk.broken = lambda names: RegistryError("away")
    async with running(disk) as (journal, acknowledged):
        put(journal, acknowledged, "a", "b")
        await until(lambda: journal.counters["commit_failed"] == 2)
        assert acknowledged == []
        put(journal, acknowledged, "c")
        disk.broken = lambda names: None
        await until(lambda: acknowledged == ["a", "b", "c"])
    assert disk.written == ["a", "b", "c"]


@pytest.mark.parametrize("error", [StatementError("no"), ValueError("a bug of ours")])
async def test_one_that_cannot_be_recorded_costs_nobody_elses(error: Exception) -> None:
    disk = Disk()
    disk.broken = lambda names: error if "bad" in names else None
    async with running(disk) as (journal, acknowledged):
        put(journal, acknowledged, "a", "bad", "b")
        await until(lambda: acknowledged == ["a", "b"])
        assert journal.counters["unrecordable"] == 1
        put(journal, acknowledged, "c")
        await until(lambda: acknowledged == ["a", "b", "c"])


async def test_when_the_database_goes_away_among_single_tries_nothing_is_lost() -> None:
    disk = Disk()
    failures = [StatementError("no"), None, RegistryError("away")]
    disk.broken = lambda names: failures.pop(0) if failures else None
    async with running(disk) as (journal, acknowledged):
        put(journal, acknowledged, "a", "b")
        await until(lambda: acknowledged[-1:] == ["b"])
    assert set(disk.written) == {"a", "b"}


async def test_what_waits_is_bounded_and_a_lost_link_always_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "MAX_WAITING", 2)
    disk = Disk()
    journal, acknowledged = Journal(disk, lambda: None), list[str]()
    put(journal, acknowledged, "a", "b", "c")
    journal.put(LinkDown("d", 1.0))
    assert journal.counters["journal_full"] == 1
    await journal.finish()
    assert disk.written == ["a", "b", "d"]


def up(name: str, at: float) -> LinkUp:
    return LinkUp(name, "aa", "203.0.113.7", 1, "gwmodule", at)


async def test_a_link_that_flaps_while_nothing_can_be_written_leaves_its_newest_two_events() -> (
    None
):
    disk = Disk()
    disk.broken = lambda names: RegistryError("full")
    async with running(disk) as (journal, acknowledged):
        for at in range(1000):
            journal.put(up("a", at))
            journal.put(LinkDown("a", at + 0.5))
            await asyncio.sleep(0)
        put(journal, acknowledged, "b")
        journal.put(up("a", 1000.0))
        await until(lambda: journal.counters["commit_failed"])
        disk.broken = lambda names: None
        await until(lambda: acknowledged == ["b"])
        await until(lambda: up("a", 1000.0) in disk.events)
    assert disk.events == [LinkDown("a", 999.5), notice("b"), up("a", 1000.0)]


async def test_a_link_event_that_comes_while_its_elder_is_written_is_written_too() -> None:
    disk = Disk()
    disk.may_finish.clear()
    async with running(disk) as (journal, acknowledged):
        journal.put(up("a", 1.0))
        put(journal, acknowledged, "b")
        await asyncio.sleep(0.01)
        journal.put(up("a", 2.0))
        disk.may_finish.set()
        await until(lambda: up("a", 2.0) in disk.events)
    assert disk.events == [up("a", 1.0), notice("b"), up("a", 2.0)]
    assert acknowledged == ["b"]


async def test_a_flood_of_one_gateway_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "MAX_OF_ONE", 2)
    disk = Disk()
    journal, acknowledged = Journal(disk, lambda: None), list[str]()
    put(journal, acknowledged, "a", "a", "a", "b")
    await journal.finish()
    assert acknowledged == ["a", "a", "b"]
    put(journal, acknowledged, "a")
    await journal.finish()
    assert acknowledged[-1] == "a"


async def test_the_end_of_the_service_writes_what_waits_and_does_not_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "LAST_WORDS", 0.05)
    disk = Disk()
    journal = Journal(disk, lambda: None)
    journal.put(LinkDown("a", 1.0))
    disk.may_finish.clear()
    await journal.finish()
    assert disk.written == []
    disk.may_finish.set()
    await journal.finish()
    assert disk.written == ["a"]
