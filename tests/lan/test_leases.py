from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from gwmodule.lan.leases import MAX_FILE, LeaseFile
from gwmodule.wire.notices import Lease, LeaseEnd

NOW = 1_800_000_000.0
MAC = bytes.fromhex("00005e005301")
ADDRESS = IPv4Address("192.168.77.101")
LINE = b"1800003600 00:00:5e:00:53:01 192.168.77.101 pc1 01:00:00:5e:00:53:01\n"


def test_a_lease_is_told_once_with_what_is_left_of_it() -> None:
    file = LeaseFile()
    assert file.changes(LINE, NOW) == [Lease(MAC, ADDRESS, 3600, "pc1")]
    assert file.changes(LINE, NOW + 10) == []


def test_a_renewal_a_move_and_an_end_are_told() -> None:
    file = LeaseFile()
    file.changes(LINE, NOW)
    renewed = LINE.replace(b"1800003600", b"1800007200")
    assert file.changes(renewed, NOW) == [Lease(MAC, ADDRESS, 7200, "pc1")]
    moved = renewed.replace(b".101", b".102")
    other = IPv4Address("192.168.77.102")
    assert file.changes(moved, NOW) == [LeaseEnd(MAC, ADDRESS), Lease(MAC, other, 7200, "pc1")]
    assert file.changes(b"", NOW) == [LeaseEnd(MAC, other)]


def test_leases_without_name_or_end_and_expired_ones() -> None:
    text = b"0 00:00:5e:00:53:01 192.168.77.101 * *\n1 00:00:5e:00:53:02 192.168.77.102 b *\n"
    first, second = LeaseFile().changes(text, NOW)
    assert isinstance(first, Lease)
    assert isinstance(second, Lease)
    assert (first.seconds, first.hostname) == (0xFFFFFFFF, "")
    assert second.seconds == 0


def test_ipv6_leases_and_the_duid_are_passed_over() -> None:
    file = LeaseFile()
    text = b"duid 00:01:00:01:2b\n1800003600 1234 fd00::7 pc1 00:01\n" + LINE
    assert len(file.changes(text, NOW)) == 1
    assert file.counters["malformed"] == 0


def test_a_bad_line_is_counted_and_the_others_stay() -> None:
    file = LeaseFile()
    text = b"soon 00:00:5e:00:53:02 192.168.77.102 x *\n\xff\xfe 1 2 3\n" + LINE
    assert file.changes(text, NOW) == [Lease(MAC, ADDRESS, 3600, "pc1")]
    assert file.counters["malformed"] == 2


def test_an_endless_file_changes_nothing() -> None:
    file = LeaseFile()
    file.changes(LINE, NOW)
    assert file.changes(bytes(MAX_FILE + 1), NOW) == []
    assert file.counters["oversized"] == 1
    assert file.changes(LINE, NOW) == []


@given(st.binary(max_size=300))
def test_garbage_never_raises(data: bytes) -> None:
    LeaseFile().changes(data, NOW)
