from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gwmodule.capture.dissect import load_dissector
from gwmodule.capture.observer import DHCP_BURST, Observer
from gwmodule.wire.notices import Hello, Lease, LeaseEnd, Observation, Source
from tests.capture.frames import (
    GATEWAY_MAC,
    HELLO_A,
    INFORM,
    PC,
    PC_MAC,
    UUID_A,
    ack,
    dhcp_frame,
    ethernet,
    hello_frames,
    ipv4,
    recorded,
    request,
    tagged,
    tcp,
)


def feed(observer: Observer, *frames: bytes, outgoing: bool = False) -> list[Observation]:
    seen: list[Observation | None] = []
    for frame in frames:
        packet = observer.admit(frame, outgoing, now=0.0)
        if packet is not None:
            seen.append(observer.observe(packet, now=0.0))
    return [observation for observation in seen if observation is not None]


def test_a_recorded_exchange_gives_two_leases_and_an_end() -> None:
    observer = Observer(load_dissector())
    lease = Lease(PC_MAC, PC, 3600, "front-desk", UUID_A)
    assert feed(observer, *(frame for _, _, frame in recorded())) == [
        lease,
        lease,
        LeaseEnd(PC_MAC, PC),
    ]
    counters = observer.counters
    assert (counters.frames, counters.leases, counters.lease_ends) == (7, 2, 1)
    assert (counters.uninteresting, counters.malformed) == (1, 0)


def test_a_hello_in_transit_is_seen_with_the_device_s_mac() -> None:
    observer = Observer(load_dissector())
    hello = Hello(UUID_A, PC, PC_MAC, 3, 0, Source.TRANSIT, HELLO_A)
    assert feed(observer, *hello_frames(HELLO_A)) == [hello]
    assert observer.counters.hellos == 1


def test_a_tagged_frame_counts_as_much() -> None:
    observer = Observer(load_dissector())
    assert feed(observer, tagged(dhcp_frame(ack()))) == [Lease(PC_MAC, PC, 3600)]
    assert len(feed(observer, *map(tagged, hello_frames(HELLO_A)))) == 1


def test_our_own_outgoing_hello_is_not_a_device_s() -> None:
    observer = Observer(load_dissector())
    assert feed(observer, *hello_frames(HELLO_A), outgoing=True) == []
    assert feed(observer, dhcp_frame(ack()), outgoing=True) == [Lease(PC_MAC, PC, 3600)]


def test_a_flood_is_limited_and_other_pcs_do_not_notice() -> None:
    observer = Observer(load_dissector())
    assert len(feed(observer, *[dhcp_frame(ack())] * 500)) == DHCP_BURST
    assert observer.counters.limited == 500 - DHCP_BURST
    other = bytes.fromhex("020000000777")
    assert feed(observer, dhcp_frame(ack(mac=other))) == [Lease(other, PC, 3600)]


def test_a_host_that_forges_a_victim_s_messages_does_not_use_up_its_allowance() -> None:
    observer = Observer(load_dissector())
    feed(observer, *[dhcp_frame(ack(), mac=bytes.fromhex("020000000666"))] * 500)
    assert feed(observer, dhcp_frame(ack(), mac=GATEWAY_MAC)) == [Lease(PC_MAC, PC, 3600)]


def test_what_is_malformed_is_counted_once() -> None:
    observer = Observer(load_dissector())
    cut = ack()[:-1]
    assert feed(observer, dhcp_frame(b"garbage"), dhcp_frame(cut), b"short") == []
    assert observer.counters.malformed == 3
    feed(observer, dhcp_frame(request(kind=INFORM)))
    assert (observer.counters.malformed, observer.counters.uninteresting) == (3, 1)


def test_what_is_no_hello_is_counted_by_its_fault() -> None:
    observer = Observer(load_dissector())
    assert feed(observer, *hello_frames(b"GET / HTTP/1.1\r\n"), *hello_frames(HELLO_A[:30])) == []
    assert observer.counters.hello_garbage == 1
    assert observer.counters.hello_truncated == 1


@given(st.lists(st.one_of(st.binary(max_size=400), st.binary(max_size=60).map(dhcp_frame))))
def test_garbage_never_raises(frames: list[bytes]) -> None:
    feed(Observer(lambda payload: None), *frames)


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60))))
def test_garbage_segments_never_raise(segments: list[tuple[int, bytes]]) -> None:
    observer = Observer(lambda payload: None)
    feed(observer, *(ethernet(ipv4(6, tcp(data, flags=flags))) for flags, data in segments))
