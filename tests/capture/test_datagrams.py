from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.capture.datagrams import (
    MAX_DATAGRAM,
    Counters,
    Seen,
    build_counters,
    build_seen,
    parse_datagram,
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
