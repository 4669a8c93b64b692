import base64
from collections.abc import Mapping
from typing import Any

import pytest

from gwmodule.amt.functions import Context
from gwmodule.amt.wsman import Instance, Value
from gwmodule.errors import DeviceAnswerError, DeviceRefused
from tests.amt.device import FakeDevice, no_sleep, run
from tests.amt.functions.test_records import audit, event

LOG = "AMT_MessageLog"


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def log_of(count: int, page: int = 390) -> FakeDevice:
    """A log of `count` events that gives `page` of them at a time."""
    events = [event(1_700_000_000 + n) for n in range(count)]

    def first(arguments: Mapping[str, Value]) -> Instance:
        return {"IterationIdentifier": "1", "ReturnValue": "0" if count else "2"}

    def records(arguments: Mapping[str, Value]) -> Instance:
        start = arguments["IterationIdentifier"] - 1
        end = min(start + min(page, arguments["MaxReadRecords"]), count)
        found: Any = [text(each) for each in events[start:end]]
        return {
            "IterationIdentifier": str(end + 1),
            "NoMoreRecords": "true" if end == count else "false",
            # One element is how an array of one member arrives.
            "RecordArray": found[0] if len(found) == 1 else found,
            "ReturnValue": "0",
        }

    properties = {"CurrentNumberOfRecords": str(count), "MaxNumberOfRecords": "390"}
    return FakeDevice(
        {LOG: [properties | {"IsFrozen": "false"}]},
        {f"{LOG}.PositionToFirstRecord": first, f"{LOG}.GetRecords": records},
    )


@pytest.mark.parametrize(("count", "page"), [(0, 390), (1, 1), (7, 1), (390, 390), (390, 10)])
async def test_the_whole_log_is_read_over_any_number_of_pages(count: int, page: int) -> None:
    seen: list[tuple[int, int]] = []
    context = Context(sleep=no_sleep, progress=lambda done, total, _: seen.append((done, total)))
    result = await run(log_of(count, page), "eventlog.get", context)
    assert [each["time"] for each in result["records"]] == [1_700_000_000 + n for n in range(count)]
    assert result["frozen"] is False
    assert seen[-1:] == ([(count, count)] if count else [])


async def test_a_limit_reads_no_more() -> None:
    device = log_of(390, page=10)
    result = await run(device, "eventlog.get", limit=25)
    assert len(result["records"]) == 25
    assert device.steps.count(f"{LOG}.GetRecords") == 3


async def test_a_log_that_never_ends_is_left_after_what_it_can_hold() -> None:
    device = log_of(1_000_000 // 1000, page=100)
    device.instances[LOG][0]["CurrentNumberOfRecords"] = "5"
    assert len((await run(device, "eventlog.get"))["records"]) == 390


async def test_a_page_without_records_is_the_end() -> None:
    device = log_of(3)
    device.methods[f"{LOG}.GetRecords"] = lambda arguments: {
        "IterationIdentifier": "1",
        "NoMoreRecords": "false",
        "ReturnValue": "0",
    }
    assert (await run(device, "eventlog.get"))["records"] == []


async def test_a_record_that_is_no_base64_is_a_bad_answer() -> None:
    device = log_of(1)
    device.methods[f"{LOG}.GetRecords"] = lambda arguments: {"RecordArray": "*"}
    with pytest.raises(DeviceAnswerError, match="RecordArray"):
        await run(device, "eventlog.get")


async def test_clearing_is_refused_with_the_logs_own_numbers() -> None:
    device = FakeDevice(methods={f"{LOG}.ClearLog": lambda arguments: {"ReturnValue": "1"}})
    with pytest.raises(DeviceRefused, match="not supported"):
        await run(device, "eventlog.clear")
    device.methods[f"{LOG}.ClearLog"] = lambda arguments: {"ReturnValue": "0"}
    assert await run(device, "eventlog.clear") == {}


async def test_the_audit_log_is_paged() -> None:
    records = [text(audit(17, n % 4, b"\x02")) for n in range(25)]

    def read(arguments: Mapping[str, Value]) -> Instance:
        start = arguments["StartIndex"] - 1
        found = records[start : start + 10]
        return {"TotalRecordCount": "25", "EventRecords": found, "ReturnValue": "0"}

    device = FakeDevice(methods={"AMT_AuditLog.ReadRecords": read})
    assert len((await run(device, "auditlog.get"))["records"]) == 25
    assert len((await run(device, "auditlog.get", start=21))["records"]) == 5
    assert len((await run(device, "auditlog.get", limit=12))["records"]) == 12
    assert (await run(device, "auditlog.get", start=99))["records"] == []


async def test_a_log_that_was_cleared_meanwhile_is_short() -> None:
    device = log_of(3)
    device.methods[f"{LOG}.GetRecords"] = lambda arguments: {"ReturnValue": "3"}
    assert (await run(device, "eventlog.get"))["records"] == []
