from __future__ import annotations

import contextlib
from ipaddress import IPv4Address
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.errors import FrameLayoutError
from gwmodule.wire.frames import MAX_PAYLOAD
from gwmodule.wire.notices import (
    MAX_HELLO,
    MAX_OBSERVATION,
    NO_UUID,
    Digest,
    Gone,
    Hello,
    Lease,
    LeaseEnd,
    Observation,
    Presence,
    Provisioning,
    Source,
    build_observation,
    format_mac,
    parse_mac,
    parse_observation,
)

MAC, ADDRESS = bytes.fromhex("02000000000a"), IPv4Address("192.168.1.10")
UUID_ = UUID("4c4c4544-0034-5210-8056-b5c04f4a4e31")
EXAMPLES: list[Observation] = [
    Lease(MAC, ADDRESS, 3600, "pc-1", UUID_),
    LeaseEnd(MAC, ADDRESS),
    Hello(UUID_, ADDRESS, MAC, 3, 7, Source.LISTENER, b"\x03\x00raw"),
    Presence(
        MAC, ADDRESS, Provisioning.POST, (16992, 16995), "Digest:A1", "AMT 16", b"p" * 32, UUID_
    ),
    Gone(MAC, ADDRESS),
    Digest(3, b"d" * 32),
]

MACS = st.binary(min_size=6, max_size=6)
ADDRESSES = st.integers(0, 2**32 - 1).map(IPv4Address)
UUIDS = st.none() | st.uuids().filter(lambda uuid: uuid != NO_UUID)
TEXTS = st.text(max_size=60)
PORTS = st.sets(st.integers(16992, 16999)).map(lambda ports: tuple(sorted(ports)))
OBSERVATIONS: st.SearchStrategy[Observation] = st.one_of(
    st.builds(Lease, MACS, ADDRESSES, st.integers(0, 2**32 - 1), TEXTS, UUIDS),
    st.builds(LeaseEnd, MACS, ADDRESSES),
    st.builds(
        Hello,
        st.uuids(),
        ADDRESSES,
        MACS,
        st.integers(0, 2**16 - 1),
        st.integers(0, 2**32 - 1),
        st.sampled_from(Source),
        st.binary(max_size=300),
    ),
    st.builds(
        Presence,
        MACS,
        ADDRESSES,
        st.sampled_from(Provisioning),
        PORTS,
        TEXTS,
        TEXTS,
        st.binary(min_size=32, max_size=32),
        UUIDS,
    ),
    st.builds(Gone, MACS, ADDRESSES),
    st.builds(Digest, st.integers(0, 2**32 - 1), st.binary(min_size=32, max_size=32)),
)


@given(observation=OBSERVATIONS)
def test_an_observation_comes_back_as_it_was(observation: Observation) -> None:
    assert parse_observation(build_observation(observation)) == observation


@pytest.mark.parametrize("observation", EXAMPLES, ids=lambda example: type(example).__name__)
def test_an_observation_cut_or_lengthened_anywhere_is_an_error(observation: Observation) -> None:
    data = build_observation(observation)
    assert parse_observation(data) == observation
    for wrong in (*(data[:size] for size in range(len(data))), data + b"\0"):
        with pytest.raises(FrameLayoutError, match=f"observation of {len(wrong)} bytes"):
            parse_observation(wrong)


@given(head=st.binary(max_size=2), body=st.binary(max_size=120))
def test_garbage_is_a_layout_error_and_nothing_else(head: bytes, body: bytes) -> None:
    for data in (head + body, b"\x01" + head + body):
        with contextlib.suppress(FrameLayoutError):
            parse_observation(data)


@pytest.mark.parametrize("wrong", [b"\x02\x05" + bytes(10), b"\x01\x00", b"\x01\x07" + bytes(10)])
def test_unknown_versions_and_kinds_are_errors(wrong: bytes) -> None:
    with pytest.raises(FrameLayoutError, match="observation of"):
        parse_observation(wrong)


def test_unknown_enumeration_numbers_are_errors() -> None:
    hello = build_observation(EXAMPLES[2])
    wrong_source = hello[:34] + b"\x09" + hello[35:]
    presence = build_observation(EXAMPLES[3])
    wrong_state = presence[:12] + b"\x09" + presence[13:]
    for wrong in (wrong_source, wrong_state):
        with pytest.raises(FrameLayoutError, match="9 is not a valid"):
            parse_observation(wrong)


def test_the_largest_hello_passes_and_a_larger_one_does_not() -> None:
    hello = Hello(UUID_, ADDRESS, MAC, 2, 0, Source.TRANSIT, bytes(MAX_HELLO))
    data = build_observation(hello)
    assert len(data) <= MAX_OBSERVATION < MAX_PAYLOAD
    assert parse_observation(data) == hello
    hello.raw += b"\0"
    with pytest.raises(FrameLayoutError, match="Hello of 8193 bytes, maximum 8192"):
        parse_observation(build_observation(hello))
    with pytest.raises(FrameLayoutError, match="observation of 8705 bytes, maximum 8704"):
        parse_observation(bytes(MAX_OBSERVATION + 1))


def test_a_zero_uuid_is_unknown_in_a_lease_and_kept_in_a_hello() -> None:
    lease = Lease(MAC, ADDRESS, 1, uuid=NO_UUID)
    assert parse_observation(build_observation(lease)) == Lease(MAC, ADDRESS, 1)
    hello = Hello(NO_UUID, ADDRESS, MAC, 2, 0, Source.LISTENER, b"")
    assert parse_observation(build_observation(hello)) == hello


def test_a_hostname_is_cut_at_255_bytes_and_odd_characters_are_replaced() -> None:
    long = parse_observation(build_observation(Lease(MAC, ADDRESS, 1, "h" * 300)))
    assert long == Lease(MAC, ADDRESS, 1, "h" * 255)
    odd = parse_observation(build_observation(Lease(MAC, ADDRESS, 1, "\udc80pc")))
    assert odd == Lease(MAC, ADDRESS, 1, "?pc")


def test_mac_addresses_are_read_in_both_spellings() -> None:
    assert format_mac(MAC) == "02:00:00:00:00:0a"
    assert parse_mac("02:00:00:00:00:0a") == parse_mac("02-00-00-00-00-0A") == MAC
    for wrong in ("02:00:00:00:00", "02:00:00:00:00:0g", ""):
        with pytest.raises(ValueError, match=r"MAC|hexadecimal"):
            parse_mac(wrong)
