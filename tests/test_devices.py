from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from ipaddress import IPv4Address
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gwmodule.config import DevicesConfig, ProbeConfig
from gwmodule.devices import FIRST_RETRY, Devices, Probe
from gwmodule.wire.messages import Notice
from gwmodule.wire.notices import (
    MAX_HELLO,
    NO_MAC,
    Digest,
    Gone,
    Hello,
    Lease,
    LeaseEnd,
    Observation,
    Presence,
    Provisioning,
    Source,
)
from tests.capture.frames import HELLO_B

MAC = bytes.fromhex("020000000110")
OTHER_MAC = bytes.fromhex("020000000111")
ADDRESS = IPv4Address("192.168.1.10")
OTHER_ADDRESS = IPv4Address("192.168.1.11")
PC_UUID = UUID("4c4c4544-0043-4a10-8036-b8c04f4d3332")
CONFIG = DevicesConfig(max_devices=16, repeat=30.0)
PROBE = ProbeConfig(interval=300.0)
LEASE = Lease(MAC, ADDRESS, 3600, "pc")
HELLO = Hello(PC_UUID, ADDRESS, MAC, 2, 0, Source.LISTENER, b"hello")
PONG = Presence(MAC, ADDRESS, Provisioning.POST, (16992, 16994), "Digest:A1")


@pytest.fixture
def devices() -> Devices:
    return Devices(CONFIG, PROBE)


def notices(devices: Devices, now: float) -> list[Notice]:
    return list(iter(lambda: devices.next_notice(now), None))


def acknowledge_all(devices: Devices, now: float) -> None:
    for notice in notices(devices, now):
        devices.acknowledge(notice.sequence)


def observations(devices: Devices, now: float) -> list[Observation]:
    return [notice.observation for notice in notices(devices, now)]


def answer(devices: Devices, now: float, presence: Presence | None = PONG) -> Probe:
    probe = devices.next_probe(now)
    assert probe is not None
    devices.probed(probe, presence, now)
    return probe


def state(devices: Devices) -> str:
    (row,) = devices.listing(0.0)
    assert isinstance(row["state"], str)
    return row["state"]


def numbered(number: int) -> tuple[bytes, IPv4Address]:
    return b"\x06" + number.to_bytes(5, "big"), IPv4Address(0x0A000001 + number)


# -- notices -------------------------------------------------------------------------------------


def test_a_lease_becomes_a_notice_with_its_age(devices: Devices) -> None:
    devices.observe(LEASE, 10.0)
    assert notices(devices, 12.5) == [Notice(1, 2.5, LEASE)]


def test_a_flapping_pc_costs_one_notice_of_each_kind(devices: Devices) -> None:
    for second in range(100):
        devices.observe(replace(LEASE, seconds=second), second)
        devices.observe(LeaseEnd(MAC, ADDRESS), second)
    assert observations(devices, 100.0) == [replace(LEASE, seconds=99), LeaseEnd(MAC, ADDRESS)]


def test_an_unacknowledged_notice_is_sent_again_with_its_number(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    assert notices(devices, 0.0) == [Notice(1, 0.0, LEASE)]
    assert notices(devices, 29.9) == []
    assert devices.next_notice_at() == 30.0
    assert notices(devices, 30.0) == [Notice(1, 30.0, LEASE)]
    devices.acknowledge(1)
    assert notices(devices, 1000.0) == []
    assert devices.next_notice_at() is None


def test_an_acknowledgement_of_the_old_lease_does_not_cover_the_new_one(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    assert [n.sequence for n in notices(devices, 0.0)] == [1]
    moved = replace(LEASE, address=OTHER_ADDRESS)
    devices.observe(moved, 1.0)
    devices.acknowledge(1)
    assert notices(devices, 1.0) == [Notice(2, 0.0, moved)]


def test_a_fresh_session_starts_with_a_digest_and_repeats_the_rest_in_order(
    devices: Devices,
) -> None:
    devices.observe(LEASE, 0.0)
    devices.observe(HELLO, 1.0)
    assert len(notices(devices, 1.0)) == 2
    devices.session_started(5.0)
    again = notices(devices, 5.0)
    assert [n.sequence for n in again] == [3, 4, 5]
    assert [n.observation for n in again] == [devices.digest(), LEASE, HELLO]
    for notice in again:
        devices.acknowledge(notice.sequence)
    assert notices(devices, 1000.0) == []


def test_an_acknowledgement_covers_no_notice_before_it(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    devices.observe(HELLO, 1.0)
    first, second = notices(devices, 1.0)
    devices.acknowledge(second.sequence)
    assert notices(devices, 31.0) == [replace(first, age=31.0)]


def test_an_acknowledged_digest_alone_drops_nothing_else(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    devices.next_notice(0.0)
    devices.session_started(1.0)
    digest = devices.next_notice(1.0)
    assert digest is not None
    devices.acknowledge(digest.sequence)
    assert observations(devices, 1.0) == [LEASE]


def test_an_acknowledgement_of_the_old_session_that_comes_late_means_nothing(
    devices: Devices,
) -> None:
    devices.observe(LEASE, 0.0)
    (old,) = notices(devices, 0.0)
    devices.session_started(1.0)
    devices.acknowledge(old.sequence)
    assert observations(devices, 1.0) == [devices.digest(), LEASE]


def test_a_digest_that_was_never_acknowledged_is_not_sent_again_in_place_of_the_new_one(
    devices: Devices,
) -> None:
    devices.session_started(0.0)
    old = devices.digest()
    devices.observe(LEASE, 1.0)
    devices.session_started(2.0)
    told = observations(devices, 2.0)
    assert (told[0], old in told) == (devices.digest(), False)


def test_a_snapshot_repeats_the_table_with_true_ages(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    devices.observe(HELLO, 10.0)
    answer(devices, 20.0)
    acknowledge_all(devices, 20.0)
    devices.snapshot_wanted(100.0)
    told = [(type(n.observation), n.age) for n in notices(devices, 100.0)]
    assert told == [(Lease, 100.0), (Hello, 90.0), (Presence, 80.0)]


def test_a_snapshot_does_not_repeat_what_is_no_longer_true(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    devices.observe(LeaseEnd(MAC, ADDRESS), 5.0)
    acknowledge_all(devices, 5.0)
    devices.snapshot_wanted(6.0)
    assert observations(devices, 6.0) == [LeaseEnd(MAC, ADDRESS)]


def test_a_digest_that_was_never_acknowledged_is_followed_by_a_snapshot(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    acknowledge_all(devices, 0.0)
    devices.session_started(1.0)
    assert [type(o) for o in observations(devices, 1.0)] == [Digest]
    devices.session_started(2.0)
    assert [type(o) for o in observations(devices, 2.0)] == [Digest, Lease]


def test_the_digest_knows_no_order_and_no_times(devices: Devices) -> None:
    other = Devices(CONFIG, PROBE)
    second = Lease(OTHER_MAC, OTHER_ADDRESS, 60)
    for lease in (LEASE, second):
        devices.observe(lease, 0.0)
    for lease in (second, replace(LEASE, seconds=5)):
        other.observe(lease, 77.0)
    assert devices.digest() == other.digest()
    assert devices.digest().devices == 2
    other.observe(replace(LEASE, address=IPv4Address("192.168.1.99")), 78.0)
    assert devices.digest() != other.digest()


def test_the_digest_covers_every_kind_and_what_a_hello_says(devices: Devices) -> None:
    digests = [devices.digest().sha256]
    for observation in (HELLO, replace(HELLO, raw=b"Hello"), LEASE, LeaseEnd(MAC, ADDRESS)):
        devices.observe(observation, 0.0)
        digests.append(devices.digest().sha256)
    answer(devices, 0.0)
    digests.append(devices.digest().sha256)
    assert len(set(digests)) == len(digests)


def test_a_hello_that_is_repeated_does_not_change_the_digest(devices: Devices) -> None:
    digests = set()
    for retry in range(3):
        raw = HELLO_B[:4] + retry.to_bytes(4, "little") + HELLO_B[8:]
        devices.observe(replace(HELLO, retry=retry, raw=raw), 60.0 * retry)
        digests.add(devices.digest().sha256)
    assert len(digests) == 1


def test_the_digest_of_a_full_table_of_the_largest_hellos_takes_little_memory() -> None:
    devices = Devices(DevicesConfig(max_devices=1024), PROBE)
    # What a repr shows as four characters each.
    raw = b"\xff" * MAX_HELLO
    for number in range(1024):
        mac, address = numbered(number)
        uuid = UUID(int=number + 1)
        devices.observe(replace(HELLO, uuid=uuid, mac=mac, address=address, raw=raw), 0.0)
    tracemalloc.start()
    try:
        assert devices.digest().devices == 1024
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 512 * 1024


def test_capture_cannot_forge_answers(devices: Devices) -> None:
    for forged in (PONG, Gone(MAC, ADDRESS), Digest(0, bytes(32))):
        devices.observe(forged, 0.0)
    assert (len(devices), devices.counters["ignored"]) == (0, 3)


def test_a_hello_from_a_group_address_is_ignored(devices: Devices) -> None:
    devices.observe(replace(HELLO, mac=b"\xff" * 6), 0.0)
    assert (len(devices), devices.counters["ignored"]) == (0, 1)


@pytest.mark.parametrize("mac", [NO_MAC, b"\xff" * 6, b"\x01\x00\x5e\x00\x00\x01", b"\x02"])
def test_a_lease_for_an_impossible_mac_is_ignored(devices: Devices, mac: bytes) -> None:
    devices.observe(replace(LEASE, mac=mac), 0.0)
    devices.neighbour(mac, ADDRESS, True, 0.0)
    assert (len(devices), devices.counters["ignored"]) == (0, 2)


# -- what the capture kept ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (LEASE, replace(LEASE, address=OTHER_ADDRESS)),
        (LEASE, LeaseEnd(MAC, ADDRESS)),
        (LeaseEnd(MAC, ADDRESS), LEASE),
        (HELLO, replace(HELLO, address=OTHER_ADDRESS)),
    ],
)
def test_what_is_told_late_does_not_undo_what_was_seen_since(
    devices: Devices, older: Lease | LeaseEnd | Hello, newer: Lease | LeaseEnd | Hello
) -> None:
    devices.observe(newer, 100.0)
    devices.observe(older, 40.0)
    assert observations(devices, 100.0) == [newer]
    (row,) = devices.listing(100.0)
    assert (row["address"], row["seen_ago"]) == (str(newer.address), 0.0)


def test_a_repetition_of_all_that_was_seen_leaves_the_table_as_it_is(devices: Devices) -> None:
    moved = replace(LEASE, address=OTHER_ADDRESS)
    seen: list[Observation] = [LEASE, HELLO, LeaseEnd(MAC, ADDRESS), moved]
    tables = []
    for _ in range(2):
        for at, observation in enumerate(seen):
            devices.observe(observation, float(at))
        acknowledge_all(devices, 60.0)
        tables.append((devices.digest(), devices.listing(60.0)))
    assert tables[0] == tables[1]


# -- Hello without a MAC -------------------------------------------------------------------------


def test_a_hello_of_unknown_mac_is_kept_and_merged_when_the_neighbour_appears(
    devices: Devices,
) -> None:
    devices.observe(replace(HELLO, mac=NO_MAC), 0.0)
    assert observations(devices, 0.0) == [replace(HELLO, mac=NO_MAC)]
    assert devices.next_probe(0.0) is None
    devices.neighbour(MAC, ADDRESS, True, 1.0)
    assert notices(devices, 1.0) == [Notice(2, 1.0, HELLO)]
    assert devices.next_probe(1.0) == Probe(MAC, ADDRESS)
    (row,) = devices.listing(1.0)
    assert (row["uuid"], row["state"]) == (str(PC_UUID), "setup")


def test_a_hello_finds_the_neighbour_that_is_already_known(devices: Devices) -> None:
    devices.neighbour(MAC, ADDRESS, True, 0.0)
    devices.observe(replace(HELLO, mac=NO_MAC), 1.0)
    assert observations(devices, 1.0) == [HELLO]


def test_a_hello_is_nobody_s_whom_arp_does_not_see_at_its_address(devices: Devices) -> None:
    devices.neighbour(OTHER_MAC, OTHER_ADDRESS, True, 0.0)
    devices.observe(LEASE, 0.0)
    devices.observe(replace(HELLO, mac=NO_MAC), 1.0)
    assert observations(devices, 1.0) == [LEASE, replace(HELLO, mac=NO_MAC)]


def test_a_hello_with_mac_takes_the_place_of_the_one_without(devices: Devices) -> None:
    devices.observe(replace(HELLO, mac=NO_MAC), 0.0)
    devices.observe(HELLO, 1.0)
    assert observations(devices, 1.0) == [HELLO]
    assert len(devices) == 1


def test_a_hello_of_unknown_mac_is_merged_into_the_lease_that_comes_after_it(
    devices: Devices,
) -> None:
    devices.observe(replace(HELLO, mac=NO_MAC), 0.0)
    devices.observe(LEASE, 1.0)
    assert observations(devices, 1.0) == [HELLO, LEASE]
    assert (len(devices), devices.counters["merged"]) == (1, 1)


def test_a_merged_hello_says_where_the_device_is_and_has_it_probed(devices: Devices) -> None:
    devices.observe(replace(LEASE, address=OTHER_ADDRESS), 0.0)
    answer(devices, 0.0, None)
    devices.observe(replace(HELLO, mac=NO_MAC), 15.0)
    devices.neighbour(MAC, ADDRESS, True, 16.0)
    assert devices.listing(16.0)[0]["address"] == str(ADDRESS)
    assert devices.next_probe(16.0) == Probe(MAC, ADDRESS)


def test_a_hello_that_was_pushed_out_is_not_merged_any_more(devices: Devices) -> None:
    devices.observe(replace(HELLO, mac=NO_MAC), 0.0)
    acknowledge_all(devices, 0.0)
    for number in range(16):
        devices.observe(Lease(*numbered(number), 60), 1.0)
    devices.neighbour(MAC, ADDRESS, True, 2.0)
    assert devices.counters["merged"] == 0


def test_a_forged_hello_from_elsewhere_does_not_remove_the_one_without_mac(
    devices: Devices,
) -> None:
    genuine = replace(HELLO, mac=NO_MAC)
    devices.observe(genuine, 0.0)
    devices.observe(replace(HELLO, mac=OTHER_MAC, address=OTHER_ADDRESS), 1.0)
    assert genuine in observations(devices, 1.0)


# -- probes --------------------------------------------------------------------------------------


def test_a_new_lease_is_probed_at_once_and_once(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    assert devices.next_probe(0.0) == Probe(MAC, ADDRESS)
    assert devices.next_probe(0.0) is None


def test_a_new_neighbour_is_probed_but_not_noticed(devices: Devices) -> None:
    devices.neighbour(MAC, ADDRESS, True, 0.0)
    assert notices(devices, 0.0) == []
    assert devices.next_probe(0.0) == Probe(MAC, ADDRESS)


def test_probing_can_be_switched_off() -> None:
    devices = Devices(CONFIG, ProbeConfig(enabled=False))
    devices.observe(LEASE, 0.0)
    assert devices.next_probe(1000.0) is None


def test_an_answer_is_noticed_with_the_uuid_that_the_lease_told(devices: Devices) -> None:
    devices.observe(replace(LEASE, uuid=PC_UUID), 0.0)
    answer(devices, 1.0)
    assert observations(devices, 1.0)[-1] == replace(PONG, uuid=PC_UUID)
    assert state(devices) == "managed"


def test_what_the_device_says_of_itself_counts_more_than_its_lease(devices: Devices) -> None:
    other = UUID(int=7)
    devices.observe(replace(LEASE, uuid=PC_UUID), 0.0)
    answer(devices, 1.0, replace(PONG, uuid=other))
    assert observations(devices, 1.0)[-1] == replace(PONG, uuid=other)


def test_a_renewal_without_name_and_uuid_takes_neither_away(devices: Devices) -> None:
    devices.observe(replace(LEASE, uuid=PC_UUID), 0.0)
    devices.observe(replace(LEASE, hostname=""), 1.0)
    (row,) = devices.listing(1.0)
    assert (row["hostname"], row["uuid"]) == ("pc", str(PC_UUID))


def test_a_device_before_provisioning_is_in_setup(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    answer(devices, 1.0, replace(PONG, provisioning=Provisioning.PRE))
    assert state(devices) == "setup"


def test_an_answered_device_is_asked_again_every_interval_and_told_each_time(
    devices: Devices,
) -> None:
    devices.observe(LEASE, 0.0)
    answer(devices, 0.0)
    acknowledge_all(devices, 0.0)
    assert devices.next_probe_at() == 300.0
    answer(devices, 300.0)
    assert observations(devices, 300.0) == [PONG]


def test_the_same_answer_between_intervals_is_not_told_again(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    answer(devices, 0.0)
    acknowledge_all(devices, 0.0)
    devices.observe(LEASE, 50.0)
    answer(devices, 50.0)
    assert observations(devices, 50.0) == [LEASE]
    # A snapshot knows of it all the same.
    devices.snapshot_wanted(60.0)
    assert notices(devices, 60.0)[-1].age == 10.0


def test_another_answer_is_told_at_once(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    answer(devices, 0.0)
    acknowledge_all(devices, 0.0)
    devices.observe(HELLO, 50.0)
    answer(devices, 50.0)
    assert replace(PONG, uuid=PC_UUID) in observations(devices, 50.0)


def test_a_host_without_amt_is_asked_less_and_less(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    now, gaps = 0.0, []
    for _ in range(8):
        answer(devices, now, None)
        due = devices.next_probe_at()
        assert due is not None
        gaps.append(due - now)
        now = due
    assert gaps == [10, 20, 40, 80, 160, 300, 300, 300]
    assert observations(devices, now) == [LEASE]


def test_three_misses_of_a_device_that_answered_make_it_gone(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    answer(devices, 0.0)
    states = []
    for now in (300.0, 310.0, 330.0):
        answer(devices, now, None)
        states.append(state(devices))
    assert states == ["silent", "silent", "gone"]
    told = notices(devices, 330.0)
    assert told[-1].observation == Gone(MAC, ADDRESS)
    for notice in told:
        devices.acknowledge(notice.sequence)
    answer(devices, 370.0)
    assert observations(devices, 370.0) == [PONG]


def test_one_answer_forgives_earlier_misses(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    answer(devices, 0.0)
    for now, presence in ((300.0, None), (310.0, None), (330.0, PONG), (630.0, None)):
        answer(devices, now, presence)
    assert state(devices) == "silent"


def test_leases_and_arp_cannot_make_us_probe_faster_than_the_first_retry(
    devices: Devices,
) -> None:
    devices.observe(LEASE, 0.0)
    answer(devices, 0.0, None)
    for second in range(9):
        devices.observe(LEASE, second)
        devices.neighbour(MAC, ADDRESS, bool(second % 2), second)
        assert devices.next_probe(second) is None
    assert devices.next_probe(FIRST_RETRY) is not None


def test_a_device_that_leaves_the_neighbour_table_is_asked_soon(devices: Devices) -> None:
    devices.neighbour(MAC, ADDRESS, True, 0.0)
    answer(devices, 0.0)
    devices.neighbour(MAC, ADDRESS, False, 100.0)
    assert devices.next_probe(100.0) == Probe(MAC, ADDRESS)


def test_a_forged_lease_cannot_make_a_device_gone(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    answer(devices, 0.0)
    devices.observe(replace(LEASE, address=OTHER_ADDRESS), 100.0)
    assert answer(devices, 100.0, None) == Probe(MAC, OTHER_ADDRESS)
    assert answer(devices, 110.0, None) == Probe(MAC, ADDRESS)
    assert devices.next_probe(130.0) == Probe(MAC, OTHER_ADDRESS)


def test_a_device_that_answers_where_it_did_is_told_to_be_there_still(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    answer(devices, 0.0)
    devices.observe(replace(LEASE, address=OTHER_ADDRESS), 100.0)
    answer(devices, 100.0, None)
    acknowledge_all(devices, 100.0)
    assert answer(devices, 110.0) == Probe(MAC, ADDRESS)
    assert observations(devices, 110.0) == [PONG]
    assert devices.listing(110.0)[0]["address"] == str(ADDRESS)


def test_an_answer_for_a_device_that_was_pushed_out_is_dropped(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    probe = devices.next_probe(0.0)
    assert probe is not None
    for number in range(16):
        devices.observe(Lease(*numbered(number), 60), 1.0)
    devices.probed(probe, PONG, 2.0)
    assert devices.counters["answers"] == 0
    assert devices.next_probe_at() == 1.0


def test_a_late_answer_for_an_old_address_says_nothing(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    probe = devices.next_probe(0.0)
    assert probe is not None
    devices.observe(replace(LEASE, address=OTHER_ADDRESS), 1.0)
    devices.probed(probe, PONG, 2.0)
    assert state(devices) == "host"
    assert devices.next_probe(2.0) == Probe(MAC, OTHER_ADDRESS)


def test_a_router_that_answers_arp_for_others_keeps_its_address(devices: Devices) -> None:
    devices.neighbour(MAC, ADDRESS, True, 0.0)
    devices.neighbour(MAC, OTHER_ADDRESS, True, 1.0)
    assert devices.listing(1.0)[0]["address"] == str(ADDRESS)


def test_a_device_without_a_lease_is_where_the_kernel_found_it_last(devices: Devices) -> None:
    devices.neighbour(MAC, ADDRESS, True, 0.0)
    devices.neighbour(MAC, ADDRESS, False, 1.0)
    devices.neighbour(MAC, OTHER_ADDRESS, True, 2.0)
    (row,) = devices.listing(2.0)
    assert (row["address"], row["reachable"]) == (str(OTHER_ADDRESS), True)
    devices.neighbour(MAC, ADDRESS, False, 3.0)
    (row,) = devices.listing(3.0)
    assert (row["address"], row["reachable"]) == (str(OTHER_ADDRESS), True)


def test_a_loss_elsewhere_does_not_move_a_device_there(devices: Devices) -> None:
    devices.observe(HELLO, 0.0)
    devices.neighbour(MAC, OTHER_ADDRESS, False, 1.0)
    assert devices.listing(1.0)[0]["address"] == str(ADDRESS)


def test_a_lease_holds_a_device_at_its_address_until_it_ends(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    devices.neighbour(MAC, OTHER_ADDRESS, True, LEASE.seconds - 1.0)
    (row,) = devices.listing(0.0)
    assert (row["address"], row["reachable"]) == (str(ADDRESS), False)
    devices.neighbour(MAC, OTHER_ADDRESS, True, float(LEASE.seconds))
    (row,) = devices.listing(0.0)
    assert (row["address"], row["reachable"]) == (str(OTHER_ADDRESS), True)


def test_a_hello_tells_where_its_device_is(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    devices.observe(replace(HELLO, address=OTHER_ADDRESS), 1.0)
    assert devices.listing(1.0)[0]["address"] == str(OTHER_ADDRESS)


def test_what_the_kernel_repeats_costs_no_probe(devices: Devices) -> None:
    devices.neighbour(MAC, ADDRESS, True, 0.0)
    answer(devices, 0.0)
    devices.neighbour(MAC, ADDRESS, True, 100.0)
    assert devices.next_probe_at() == 300.0


def test_a_host_that_never_answered_is_not_asked_because_it_leaves(devices: Devices) -> None:
    devices.neighbour(MAC, ADDRESS, True, 0.0)
    for now in (0.0, 10.0, 30.0):
        answer(devices, now, None)
    assert devices.next_probe_at() == 70.0
    devices.neighbour(MAC, ADDRESS, False, 50.0)
    assert devices.next_probe_at() == 70.0


def test_a_device_is_left_alone_while_its_probe_runs(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    probe = devices.next_probe(0.0)
    assert probe is not None
    devices.observe(LEASE, 20.0)
    assert devices.next_probe(20.0) is None
    devices.probed(probe, PONG, 21.0)
    assert devices.next_probe_at() == 321.0
    # Nobody waits for it any more.
    devices.probed(probe, None, 22.0)
    assert state(devices) == "managed"
    assert devices.next_probe_at() == 321.0


# -- bounds --------------------------------------------------------------------------------------


def test_a_flood_of_macs_never_pushes_out_a_device_that_answered(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    answer(devices, 0.0)
    for number in range(10_000):
        mac, address = numbered(number)
        devices.observe(Lease(mac, address, 60), 1.0)
        devices.neighbour(mac, address, True, 1.0)
    assert len(devices) == 16
    assert PONG in observations(devices, 1.0)
    assert devices.counters["evicted"] == 10_000 - 15


def test_a_flood_never_pushes_out_a_hello_that_the_msp_has_not_got(devices: Devices) -> None:
    devices.observe(HELLO, 0.0)
    for number in range(100):
        mac, address = numbered(number)
        devices.observe(replace(HELLO, mac=mac, address=address, uuid=UUID(int=number + 1)), 1.0)
    told = notices(devices, 1.0)
    assert HELLO in [notice.observation for notice in told]
    assert (len(devices), devices.counters["refused_full"]) == (16, 85)
    for notice in told:
        devices.acknowledge(notice.sequence)
    devices.observe(Lease(*numbered(5000), 60), 2.0)
    assert devices.counters["evicted"] == 1


def test_a_full_table_of_devices_that_answered_takes_nobody_else(devices: Devices) -> None:
    for number in range(16):
        mac, address = numbered(number)
        devices.observe(Lease(mac, address, 60), 0.0)
        answer(devices, 0.0, Presence(mac, address, Provisioning.POST))
    devices.observe(LEASE, 1.0)
    devices.observe(HELLO, 1.0)
    devices.neighbour(MAC, ADDRESS, True, 1.0)
    assert (len(devices), devices.counters["refused_full"]) == (16, 3)


def test_who_was_seen_again_stays_longer_than_who_was_not(devices: Devices) -> None:
    for number in range(16):
        devices.observe(Lease(*numbered(number), 60), float(number))
    first, second = numbered(0), numbered(1)
    devices.observe(Lease(*first, 60), 20.0)
    devices.observe(LEASE, 21.0)
    rows = devices.listing(21.0)
    assert str(second[1]) not in [row["address"] for row in rows]
    assert [(row["address"], row["seen_ago"]) for row in rows[-2:]] == [
        (str(first[1]), 1.0),
        (str(ADDRESS), 0.0),
    ]


def test_a_device_that_is_gone_gives_up_its_place(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    for now, presence in ((0.0, PONG), (300.0, None), (310.0, None), (330.0, None)):
        answer(devices, now, presence)
    for number in range(16):
        devices.observe(Lease(*numbered(number), 60), 400.0)
    assert str(ADDRESS) not in [row["address"] for row in devices.listing(400.0)]


# -- listing -------------------------------------------------------------------------------------


def test_the_listing_is_json_and_shows_strangers_names_escaped(devices: Devices) -> None:
    devices.observe(replace(LEASE, hostname="pc\x1b[2J\u202e é"), 0.0)
    answer(devices, 5.0, replace(PONG, realm="Digest:\n"))
    (row,) = json.loads(json.dumps(devices.listing(10.0)))
    assert row == {
        "mac": "02:00:00:00:01:10",
        "address": "192.168.1.10",
        "hostname": "pc\\x1b[2J\\u202e é",
        "uuid": None,
        "state": "managed",
        "reachable": False,
        "seen_ago": 5.0,
        "answered_ago": 5.0,
        "lease_left": 3590.0,
        "provisioning": "post",
        "ports": [16992, 16994],
        "realm": "Digest:\\n",
        "unacknowledged": ["Lease", "Presence"],
    }
    assert devices.status()["unacknowledged"] == 2


def test_a_row_without_mac_says_so(devices: Devices) -> None:
    devices.observe(replace(HELLO, mac=NO_MAC), 0.0)
    (row,) = devices.listing(0.0)
    assert (row["mac"], row["lease_left"]) == (None, None)


def test_the_status_counts_what_was_seen_asked_and_told(devices: Devices) -> None:
    devices.observe(LEASE, 0.0)
    devices.observe(LEASE, 0.0)
    answer(devices, 0.0)
    notices(devices, 0.0)
    notices(devices, 30.0)
    devices.acknowledge(1)
    devices.acknowledge(1)
    assert devices.status() == {
        "devices": 1,
        "unacknowledged": 1,
        "observed": 2,
        "ignored": 0,
        "evicted": 0,
        "refused_full": 0,
        "merged": 0,
        "probes": 1,
        "answers": 1,
        "notices": 2,
        "repeated": 2,
        "coalesced": 1,
        "acknowledged": 1,
    }


# -- any order of anything -----------------------------------------------------------------------

HOSTS = st.integers(0, 24)


class DevicesMachine(RuleBasedStateMachine):
    """Up to 25 hosts in a table of 16, an MSP that comes, goes and acknowledges what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.devices = Devices(CONFIG, PROBE)
        self.now = 0.0
        self.sequence = 0
        self.sent: dict[int, Observation] = {}
        self.running: list[Probe] = []

    @rule(host=HOSTS, kind=st.sampled_from([Lease, LeaseEnd, Hello]), unplaced=st.booleans())
    def seen(self, host: int, kind: type[Observation], unplaced: bool) -> None:
        mac, address = numbered(host)
        observation: Observation
        if kind is Lease:
            observation = Lease(mac, address, 60)
        elif kind is LeaseEnd:
            observation = LeaseEnd(mac, address)
        else:
            known = NO_MAC if unplaced else mac
            observation = replace(HELLO, uuid=UUID(int=host + 1), address=address, mac=known)
        self.devices.observe(observation, self.now)

    @rule(host=HOSTS, at=HOSTS, reachable=st.booleans())
    def arp(self, host: int, at: int, reachable: bool) -> None:
        self.devices.neighbour(numbered(host)[0], numbered(at)[1], reachable, self.now)

    @rule()
    def start_probe(self) -> None:
        probe = self.devices.next_probe(self.now)
        if probe is not None:
            self.running.append(probe)

    @precondition(lambda self: self.running)
    @rule(answers=st.booleans(), ports=st.sampled_from([(), (16992,)]))
    def end_probe(self, answers: bool, ports: tuple[int, ...]) -> None:
        probe = self.running.pop()
        presence = Presence(probe.mac, probe.address, Provisioning.POST, ports)
        self.devices.probed(probe, presence if answers else None, self.now)

    @rule()
    def send(self) -> None:
        notice = self.devices.next_notice(self.now)
        if notice is None:
            return
        if notice.sequence in self.sent:
            assert self.sent[notice.sequence] == notice.observation
        else:
            assert notice.sequence == self.sequence + 1
            self.sequence = notice.sequence
        assert notice.age >= 0
        self.sent[notice.sequence] = notice.observation

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        self.devices.acknowledge(data.draw(st.sampled_from(sorted(self.sent))))

    @rule()
    def new_session(self) -> None:
        self.devices.session_started(self.now)
        first = self.devices.next_notice(self.now)
        assert first is not None
        assert isinstance(first.observation, Digest)
        self.sequence = first.sequence
        self.sent = {first.sequence: first.observation}

    @rule()
    def snapshot(self) -> None:
        self.devices.snapshot_wanted(self.now)

    @rule(seconds=st.sampled_from([1.0, 15.0, 100.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def bounded(self) -> None:
        assert len(self.devices) <= CONFIG.max_devices
        # Five kinds of each device and the digest.
        assert self.devices.status()["unacknowledged"] <= 5 * CONFIG.max_devices + 1

    def teardown(self) -> None:
        # Whatever happened: an MSP that acknowledges gets everything, once.
        self.devices.session_started(self.now)
        rest = notices(self.devices, self.now)
        slots = [
            (
                getattr(n.observation, "mac", None),
                getattr(n.observation, "uuid", None),
                type(n.observation),
            )
            for n in rest
        ]
        assert len(slots) == len(set(slots))
        for notice in rest:
            self.devices.acknowledge(notice.sequence)
        assert self.devices.status()["unacknowledged"] == 0
        assert notices(self.devices, self.now + 10_000) == []
        self.devices.listing(self.now)


TestDevicesMachine = DevicesMachine.TestCase
TestDevicesMachine.settings = settings(max_examples=60, stateful_step_count=40)
