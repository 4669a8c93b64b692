import base64
import struct
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.amt.functions import Context
from gwmodule.amt.functions.records import decode_audit, decode_event
from gwmodule.amt.wsman import Instance, Value
from gwmodule.errors import DeviceAnswerError, DeviceRefused
from tests.amt.device import FakeDevice, no_sleep, run

LOG = "AMT_MessageLog"


def event(seconds: int, sensor: int = 37, data: bytes = bytes(8), offset: int = 0) -> bytes:
    head = struct.pack("<I9B", seconds, 255, sensor, 0x6F, offset, 0x68, 2, 255, 34, 0)
    return head + data


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


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (event(9, 6, b"\xaa\x0a\x01\0\0\0\0\0"), "authentication failed 266 times"),
        (event(9, 15, b"\x40\x01\0\0\0\0\0\0"), "firmware error: no system memory is installed"),
        (event(9, 15, b"\x40\x13\0\0\0\0\0\0", offset=2), "starting the operating system's boot"),
        (event(9, 15, b"\x40\xfe\0\0\0\0\0\0"), "firmware error: number 254"),
        (event(9, 35, b"\x40\0\0\0\0\0\0\0"), "power-on self-test did not end"),
        (event(9, 35), "boot failure"),
        (event(9, 192, b"\xaa\x30\0\0\0\0\0\0"), "Serial-over-LAN session opened"),
        (event(9, 192, b"\xaa\x30\x09\0\0\0\0\0"), "security policy"),
        (event(9, 5), "case intrusion"),
        (event(9, 200), "sensor type 200"),
    ],
)
def test_events_have_a_text(record: bytes, expected: str) -> None:
    decoded = decode_event(record)
    assert decoded is not None
    assert expected in decoded["text"]


@pytest.mark.parametrize("seconds", [0, 0xFFFFFFFF])
def test_an_empty_slot_is_no_event(seconds: int) -> None:
    assert decode_event(event(seconds)) is None


@given(st.binary(max_size=40))
def test_any_event_is_decoded_or_a_bad_answer(data: bytes) -> None:
    if len(data) == 21:
        decode_event(data)
    else:
        with pytest.raises(DeviceAnswerError, match=f"{len(data)} bytes"):
            decode_event(data)


def audit(application: int, number: int, initiator: bytes, extended: bytes = b"") -> bytes:
    head = struct.pack(">HH", application, number)
    tail = struct.pack(">IB", 1_700_000_000, 0) + b"\x0b192.168.0.9"
    return head + initiator + tail + bytes([len(extended)]) + extended


@pytest.mark.parametrize(
    ("initiator", "name", "kind"),
    [
        (b"\x00\x05admin", "admin", "digest user"),
        (b"\x01\x00\x00\x02\x00\x02\xab\xcd", "abcd-512", "Kerberos user"),
        (b"\x02", "", "local"),
        (b"\x03", "", "KVM default port"),
    ],
)
def test_every_kind_of_initiator_is_read(initiator: bytes, name: str, kind: str) -> None:
    decoded = decode_audit(audit(17, 3, initiator))
    assert (decoded["initiator"], decoded["initiator_type_name"]) == (name, kind)
    assert (decoded["text"], decoded["address"]) == ("reset", "192.168.0.9")


def test_an_audit_event_without_a_text_has_its_numbers() -> None:
    assert decode_audit(audit(99, 7, b"\x02"))["text"] == "application 99: event 7"


@given(st.data())
def test_a_cut_audit_record_is_a_bad_answer(data: st.DataObject) -> None:
    whole = audit(16, 1, b"\x00\x05admin", b"extended")
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DeviceAnswerError):
        decode_audit(whole[:cut])


@given(st.binary(max_size=80))
def test_any_audit_record_is_decoded_or_a_bad_answer(data: bytes) -> None:
    try:
        decode_audit(data)
    except DeviceAnswerError:
        return


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
