import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.amt.functions.records import EVENT, decode_audit, decode_event
from gwmodule.errors import DeviceAnswerError


def event(seconds: int, sensor: int = 37, data: bytes = bytes(8), offset: int = 0) -> bytes:
    head = struct.pack("<I9B", seconds, 255, sensor, 0x6F, offset, 0x68, 2, 255, 34, 0)
    return head + data


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


@given(st.binary(min_size=21, max_size=21))
def test_the_fast_form_of_an_event_is_its_layout(data: bytes) -> None:
    event = EVENT.parse(data)
    decoded = decode_event(data)
    if event.time in (0, 0xFFFFFFFF):
        assert decoded is None
        return
    assert decoded is not None
    numbers = {name: event[name] for name in event if name not in ("_io", "data")}
    assert {name: decoded[name] for name in numbers} == numbers
    assert decoded["data"] == event.data.hex()
