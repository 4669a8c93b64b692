from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.capture.datagrams import (
    MAX_DATAGRAM,
    MAX_FRAME,
    Counters,
    Recorded,
    Seen,
    build_counters,
    build_frame,
    build_record,
    build_seen,
    parse_datagram,
    parse_record,
)
from gwmodule.errors import FrameLayoutError
from gwmodule.wire.notices import MAX_HELLO, Hello, Lease, LeaseEnd, Source, build_observation
from tests.capture.frames import PC, PC_MAC, UUID_A

LEASE = Lease(PC_MAC, PC, 3600, "pc", UUID_A)
HELLO = Hello(UUID_A, PC, PC_MAC, 9, 0, Source.TRANSIT, bytes(MAX_HELLO))


def test_a_new_observation_travels_as_it_is() -> None:
    assert build_seen(LEASE) == build_observation(LEASE)
    assert parse_datagram(build_seen(LEASE)) == Seen(LEASE, 0.0)


def test_a_kept_observation_says_how_old_it_is() -> None:
    assert parse_datagram(build_seen(HELLO, 12.5)) == Seen(HELLO, 12.5)
    assert len(build_seen(HELLO, 12.5)) <= MAX_DATAGRAM


def test_a_kept_lease_has_what_is_left_of_it() -> None:
    kept = parse_datagram(build_seen(LEASE, 600.0))
    assert kept == Seen(Lease(PC_MAC, PC, 3000, "pc", UUID_A), 600.0)
    over = parse_datagram(build_seen(LEASE, 4000.0))
    assert over == Seen(Lease(PC_MAC, PC, 0, "pc", UUID_A), 4000.0)


def test_counters_travel_as_an_object() -> None:
    values = {"frames": 3, "interfaces": {"br-lan": {"state": "up"}}}
    assert parse_datagram(build_counters(values)) == Counters(values)


def test_counters_that_do_not_fit_are_our_own_fault() -> None:
    with pytest.raises(ValueError, match="maximum"):
        build_counters({"x": "y" * MAX_DATAGRAM})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x04",
        b"\x02",
        b"\x02[]",
        b"\x02\xff",
        b"\x02" + b"[" * 8000,
        b"\x03\0\0",
        b"\x03\0\0\0\0",
        build_seen(LEASE)[:-1],
        build_seen(LEASE, 1.0)[:-1],
        build_seen(LEASE) + b"x",
        build_seen(LeaseEnd(PC_MAC, PC))[:2],
    ],
)
def test_anything_else_is_a_layout_error(data: bytes) -> None:
    with pytest.raises(FrameLayoutError):
        parse_datagram(data)


@given(st.binary(max_size=200))
def test_garbage_raises_only_layout_errors(data: bytes) -> None:
    with contextlib.suppress(FrameLayoutError):
        parse_datagram(data)


def test_a_request_for_frames_comes_back_and_nothing_else_is_one() -> None:
    assert parse_record(build_record(100, 60.0)) == (100, 60.0)
    for garbage in (b"", b"\x04", build_record(1, 1.0)[:-1], build_record(1, 1.0) + b"x", b"hello"):
        assert parse_record(garbage) is None


@given(st.binary(min_size=1, max_size=MAX_FRAME + 100), st.floats(0, 1e9))
def test_a_frame_comes_back_whole_or_cut_with_its_length(frame: bytes, at: float) -> None:
    datagram = build_frame(frame, at)
    assert len(datagram) <= MAX_DATAGRAM
    assert parse_datagram(datagram) == Recorded(frame[:MAX_FRAME], len(frame), at)


@pytest.mark.parametrize("size", [1, 12, MAX_DATAGRAM + 1])
def test_a_recorded_frame_of_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(FrameLayoutError, match="recorded frame of"):
        parse_datagram(b"\x05" + bytes(size - 1))
