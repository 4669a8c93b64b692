from __future__ import annotations

import contextlib
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.capture.hello import (
    HELLO_V3,
    MAX_FLOW_AGE,
    MAX_FLOWS,
    MAX_FLOWS_PER_SENDER,
    HelloError,
    HelloFault,
    HelloReader,
    ParsedHello,
    RootHash,
    TransitReassembler,
    parse_hello,
)
from gwmodule.capture.packet import FIN, RST, SYN, TcpSegment
from gwmodule.wire.notices import MAX_HELLO, Hello, Source
from tests.capture.frames import GATEWAY, HELLO_A, HELLO_B, HELLO_C, PC, PC_MAC, UUID_A, UUID_C

SHA1 = RootHash(1, bytes.fromhex("36676997f9ed1b59a51316cace5e04eb632c9db4"))
UNKNOWN_VERSION = HELLO_A[:2] + b"\x07\0" + HELLO_A[4:]


def hello_v3(entries: list[tuple[int, bytes]]) -> bytes:
    head = {"credentials_set": 1, "version": 3, "retry": 0, "uuid": UUID_A.bytes_le}
    hashes = [{"type": kind, "value": value} for kind, value in entries]
    return bytes(HELLO_V3.build({"head": head, "hashes": hashes}))


def test_a_version_3_message_with_two_hashes() -> None:
    hello = parse_hello(HELLO_A, at_end=False)
    assert hello is not None
    assert (hello.uuid, hello.version, hello.retry) == (UUID_A, 3, 0)
    assert hello.credentials_set
    assert hello.hashes[0] == SHA1
    assert (hello.hashes[1].type, len(hello.hashes[1].value)) == (2, 32)
    assert hello.raw == HELLO_A


def test_a_version_2_message_with_a_pid() -> None:
    assert parse_hello(HELLO_B, at_end=False) == ParsedHello(
        UUID_A, version=2, retry=3, credentials_set=False, raw=HELLO_B, pid=b"ABCD1234"
    )


def test_a_version_3_message_with_a_sha_384_hash() -> None:
    hello = parse_hello(HELLO_C, at_end=False)
    assert hello is not None
    assert (hello.uuid, hello.retry, hello.hashes[0].type) == (UUID_C, 14, 3)
    assert len(hello.hashes[0].value) == 48


def test_an_unknown_version_is_kept_as_uuid_and_bytes_when_it_ends() -> None:
    assert parse_hello(UNKNOWN_VERSION, at_end=False) is None
    assert parse_hello(UNKNOWN_VERSION, at_end=True) == ParsedHello(
        UUID_A, version=7, retry=0, credentials_set=True, raw=UNKNOWN_VERSION
    )


def test_an_unknown_hash_type_is_kept() -> None:
    hello = parse_hello(hello_v3([(9, bytes(64)), (1, SHA1.value)]), at_end=False)
    assert hello is not None
    assert hello.hashes == (RootHash(9, bytes(64)), SHA1)


def test_a_message_without_hashes_is_whole() -> None:
    hello = parse_hello(hello_v3([]), at_end=False)
    assert hello is not None
    assert hello.hashes == ()


def test_what_follows_the_message_is_not_part_of_it() -> None:
    hello = parse_hello(HELLO_A + b"more", at_end=True)
    assert hello is not None
    assert hello.raw == HELLO_A


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", HelloFault.GARBAGE),
        (b"\2\0" + HELLO_A[2:], HelloFault.GARBAGE),
        (HELLO_A[:8] + bytes(16) + HELLO_A[24:], HelloFault.GARBAGE),
        (HELLO_A[:8] + b"\xff" * 16 + HELLO_A[24:], HelloFault.GARBAGE),
        (hello_v3([(1, bytes(21))]), HelloFault.GARBAGE),
        (hello_v3([(3, b"")]), HelloFault.GARBAGE),
        (hello_v3([(7, bytes(255))] * 40), HelloFault.OVERSIZED),
        (UNKNOWN_VERSION.ljust(MAX_HELLO + 1, b"\0"), HelloFault.OVERSIZED),
    ],
    ids=["http", "flag 2", "uuid 0", "uuid f", "sha-1 of 21", "sha-384 of 0", "long", "endless"],
)
def test_what_cannot_become_a_hello_is_refused_at_once(data: bytes, fault: HelloFault) -> None:
    reader = HelloReader()
    with pytest.raises(HelloError) as refused:
        reader.receive_data(data)
    assert refused.value.fault is fault


@pytest.mark.parametrize("hello", [HELLO_A, HELLO_B, HELLO_C], ids="ABC")
def test_a_message_cut_anywhere_is_incomplete_and_at_the_end_truncated(hello: bytes) -> None:
    for cut in range(len(hello)):
        assert parse_hello(hello[:cut], at_end=False) is None
        with pytest.raises(HelloError) as refused:
            parse_hello(hello[:cut], at_end=True)
        assert refused.value.fault is HelloFault.TRUNCATED


def test_the_largest_message_that_is_accepted() -> None:
    entries = [(7, bytes(255))] * 31
    hello = hello_v3([*entries, (7, bytes(MAX_HELLO - 27 - 257 * 31))])
    assert len(hello) == MAX_HELLO
    assert parse_hello(hello, at_end=False) is not None


def test_a_message_over_the_limit_is_refused_even_if_it_is_whole() -> None:
    with pytest.raises(HelloError) as refused:
        parse_hello(hello_v3([(7, bytes(255))] * 40), at_end=True)
    assert refused.value.fault is HelloFault.OVERSIZED


def test_a_full_unknown_version_that_ends_is_accepted() -> None:
    reader = HelloReader()
    assert reader.receive_data(UNKNOWN_VERSION.ljust(MAX_HELLO - 1, b"\0")) is None
    assert len(reader.receive_eof().raw) == MAX_HELLO - 1


hellos = st.one_of(
    st.sampled_from([HELLO_A, HELLO_B, HELLO_C]),
    st.lists(
        st.one_of(
            st.tuples(st.just(1), st.binary(min_size=20, max_size=20)),
            st.tuples(st.just(2), st.binary(min_size=32, max_size=32)),
            st.tuples(st.integers(4, 255), st.binary(max_size=255)),
        ),
        max_size=20,
    ).map(hello_v3),
)


@given(hellos, st.lists(st.integers(0, 2000)), st.binary(max_size=20))
def test_any_segmentation_gives_the_same_hello(hello: bytes, cuts: list[int], rest: bytes) -> None:
    data = hello + rest
    reader = HelloReader()
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    got = None
    for start, end in pairwise(bounds):
        got = reader.receive_data(data[start:end])
        if got is not None:
            break
    assert got == parse_hello(hello, at_end=True)
    assert got is not None
    assert got.raw == hello


@given(st.lists(st.binary(max_size=100)))
def test_garbage_raises_only_hello_errors(pieces: list[bytes]) -> None:
    reader = HelloReader()
    with contextlib.suppress(HelloError):
        if not any(reader.receive_data(piece) for piece in pieces):
            reader.receive_eof()


@given(st.binary(max_size=400), st.booleans())
def test_garbage_behind_a_head_raises_only_hello_errors(body: bytes, at_end: bool) -> None:
    with contextlib.suppress(HelloError):
        parse_hello(HELLO_A[:24] + body, at_end)


# Transit


def segment(
    payload: bytes = b"",
    sequence: int = 1000,
    flags: int = 0x10,
    port: int = 40000,
    mac: bytes = PC_MAC,
) -> TcpSegment:
    return TcpSegment(mac, PC, port, GATEWAY, 9971, sequence, flags, payload)


SEEN = Hello(UUID_A, PC, PC_MAC, 3, 0, Source.TRANSIT, HELLO_A)


def receive(*segments: TcpSegment) -> list[Hello]:
    transit = TransitReassembler()
    return [s for s in (transit.receive_segment(s, now=0.0) for s in segments) if s is not None]


def test_a_hello_in_one_segment_is_seen_once() -> None:
    fin = segment(sequence=1000 + len(HELLO_A), flags=FIN)
    assert receive(segment(sequence=999, flags=SYN), segment(HELLO_A), fin) == [SEEN]


def test_data_in_the_syn_counts() -> None:
    assert receive(segment(HELLO_A, sequence=999, flags=SYN)) == [SEEN]


def test_a_hello_that_only_the_fin_ends() -> None:
    end = 1000 + len(UNKNOWN_VERSION)
    got = receive(
        segment(sequence=999, flags=SYN), segment(UNKNOWN_VERSION), segment(sequence=end, flags=FIN)
    )
    assert [hello.raw for hello in got] == [UNKNOWN_VERSION]


def test_a_fin_that_overtakes_its_data_waits_for_it() -> None:
    end = 1000 + len(UNKNOWN_VERSION)
    got = receive(
        segment(sequence=999, flags=SYN), segment(sequence=end, flags=FIN), segment(UNKNOWN_VERSION)
    )
    assert [hello.version for hello in got] == [7]


def test_sequence_numbers_wrap() -> None:
    syn = segment(sequence=0xFFFFFFF0, flags=SYN)
    first = segment(HELLO_A[:15], sequence=0xFFFFFFF1)
    second = segment(HELLO_A[15:], sequence=0)
    assert receive(syn, second, first) == [SEEN]


@given(
    st.lists(st.tuples(st.integers(0, len(HELLO_A)), st.integers(1, 60)), max_size=12),
    st.randoms(use_true_random=False),
)
def test_any_order_doubling_and_overlap_gives_the_same_hello(
    extra: list[tuple[int, int]], random: Random
) -> None:
    spans = [(at, at + 20) for at in range(0, len(HELLO_A), 20)]
    spans += [(at, min(at + size, len(HELLO_A))) for at, size in extra]
    random.shuffle(spans)
    pieces = [segment(HELLO_A[a:b], sequence=1000 + a) for a, b in spans]
    assert receive(segment(sequence=999, flags=SYN), *pieces) == [SEEN]


def test_a_longer_piece_replaces_a_shorter_one_at_the_same_place() -> None:
    syn, short = segment(sequence=999, flags=SYN), segment(HELLO_A[20:21], sequence=1020)
    rest, start = segment(HELLO_A[20:], sequence=1020), segment(HELLO_A[:20])
    assert receive(syn, short, rest, start) == [SEEN]


def test_segments_far_ahead_take_no_more_room_than_a_hello() -> None:
    syn, start = segment(sequence=999, flags=SYN), segment(HELLO_A)
    ahead = [segment(bytes(500 + 7 * n), sequence=1100 + 40 * n) for n in range(100)]
    beyond = segment(b"x", sequence=1001 + MAX_HELLO)
    assert receive(syn, *ahead, beyond, start) == [SEEN]


def test_a_flow_without_its_syn_is_not_guessed_at() -> None:
    assert receive(segment(HELLO_A)) == []


def test_a_repeated_syn_keeps_and_a_new_one_replaces_what_was_collected() -> None:
    syn = segment(sequence=999, flags=SYN)
    first, second = segment(HELLO_A[:40]), segment(HELLO_A[40:], sequence=1040)
    again = segment(sequence=4999, flags=SYN)
    assert receive(syn, first, syn, second) == [SEEN]
    assert receive(syn, first, again, second) == []
    assert receive(syn, first, again, segment(HELLO_A, sequence=5000)) == [SEEN]


def test_a_reset_ends_the_flow() -> None:
    syn, reset = segment(sequence=999, flags=SYN), segment(flags=RST)
    assert receive(syn, reset, segment(HELLO_A)) == []


def test_another_port_is_another_matter() -> None:
    other = TcpSegment(PC_MAC, PC, 1, GATEWAY, 80, 999, SYN, HELLO_A)
    assert receive(other) == []


def test_what_is_no_hello_is_counted_and_forgotten() -> None:
    transit = TransitReassembler()
    transit.receive_segment(segment(sequence=999, flags=SYN), now=0.0)
    assert transit.receive_segment(segment(b"GET / HTTP/1.1"), now=0.0) is None
    assert transit.faults[HelloFault.GARBAGE] == 1
    assert transit.receive_segment(segment(HELLO_A), now=0.0) is None


def test_a_flow_that_takes_too_long_is_forgotten() -> None:
    transit = TransitReassembler()
    transit.receive_segment(segment(sequence=999, flags=SYN), now=0.0)
    assert transit.receive_segment(segment(HELLO_A), now=MAX_FLOW_AGE) is None
    assert transit.evicted == 1


def test_one_sender_cannot_push_out_the_flows_of_others() -> None:
    transit = TransitReassembler()
    transit.receive_segment(segment(sequence=999, flags=SYN), now=0.0)
    noisy = bytes.fromhex("020000000666")
    for port in range(1000):
        transit.receive_segment(segment(flags=SYN, port=port, mac=noisy), now=0.0)
    assert transit.receive_segment(segment(HELLO_A), now=0.0) == SEEN
    assert transit.evicted == 1000 - MAX_FLOWS_PER_SENDER


def test_the_number_of_flows_is_bounded() -> None:
    transit = TransitReassembler()
    for number in range(MAX_FLOWS + 10):
        mac = b"\x02" + number.to_bytes(5, "big")
        transit.receive_segment(segment(flags=SYN, port=number, mac=mac), now=0.0)
    assert transit.evicted == 10


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 63), st.binary(max_size=50))))
def test_garbage_segments_never_raise(segments: list[tuple[int, int, bytes]]) -> None:
    receive(*(segment(data, sequence, flags) for sequence, flags, data in segments))


def test_the_mac_is_the_one_that_opened_the_flow() -> None:
    router = bytes.fromhex("020000000101")
    syn, data = segment(sequence=999, flags=SYN), segment(HELLO_A, mac=router)
    assert receive(syn, data) == [SEEN]
