from __future__ import annotations

import functools
from ipaddress import IPv4Address
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.capture.dhcp import (
    MAX_WAIT,
    MAX_WAITING,
    DhcpObserver,
    Dissect,
    Verdict,
    gate,
    printable,
)
from gwmodule.capture.dissect import load_dissector
from gwmodule.capture.packet import UdpDatagram, parse_frame
from gwmodule.wire.notices import Lease, LeaseEnd
from tests.capture.frames import (
    DECLINE,
    DISCOVER,
    END,
    GATEWAY,
    INFORM,
    NAK,
    OFFER,
    PC,
    PC_MAC,
    RELEASE,
    REQUEST,
    UUID_A,
    ack,
    dhcp,
    option,
    recorded,
    request,
)

dissector = functools.cache(load_dissector)


class Gated(DhcpObserver):
    """The gate and what is behind it, as `capture.observer` puts them together."""

    def observation_from(self, payload: bytes, now: float) -> Lease | LeaseEnd | None:
        verdict = gate(payload)
        if isinstance(verdict, Verdict):
            self.malformed += verdict is Verdict.MALFORMED
            return None
        return self.observe(payload, now)


def observer() -> Gated:
    return Gated(dissector())


def test_a_recorded_pc_boots_renews_and_releases() -> None:
    dhcp = observer()
    seen = []
    for name, _, frame in recorded():
        packet = parse_frame(frame)
        assert isinstance(packet, UdpDatagram)
        seen.append((name, dhcp.observation_from(packet.payload, now=0.0)))
    lease = Lease(PC_MAC, PC, 3600, "front-desk", UUID_A)
    assert [(name, what) for name, what in seen if what is not None] == [
        ("DHCPACK", lease),
        ("DHCPACK", lease),
        ("DHCPRELEASE", LeaseEnd(PC_MAC, PC)),
    ]


def test_a_lease_without_a_request_seen_has_no_name() -> None:
    assert observer().observation_from(ack(), now=0.0) == Lease(PC_MAC, PC, 3600)


def test_name_and_uuid_of_an_ack_itself_are_the_second_choice() -> None:
    dhcp = observer()
    own = option(12, b"from-server") + option(97, b"\0" + bytes(range(16)))
    assert dhcp.observation_from(ack(own), now=0.0) == Lease(
        PC_MAC, PC, 3600, "from-server", UUID("03020100-0504-0706-0809-0a0b0c0d0e0f")
    )
    dhcp.observation_from(request(option(12, b"from-client")), now=1.0)
    lease = dhcp.observation_from(ack(own), now=1.0)
    assert isinstance(lease, Lease)
    assert lease.hostname == "from-client"


def test_a_request_keeps_what_only_the_discover_said() -> None:
    dhcp = observer()
    dhcp.observation_from(request(option(97, b"\0" + UUID_A.bytes_le), DISCOVER), now=0.0)
    dhcp.observation_from(request(option(12, b"pc")), now=0.1)
    assert dhcp.observation_from(ack(), now=0.2) == Lease(PC_MAC, PC, 3600, "pc", UUID_A)
    dhcp.observation_from(request(option(12, b"pc"), DISCOVER), now=1.0)
    dhcp.observation_from(request(option(97, b"\0" + UUID_A.bytes_le)), now=1.1)
    assert dhcp.observation_from(ack(), now=1.2) == Lease(PC_MAC, PC, 3600, "pc", UUID_A)


def test_what_a_request_says_itself_counts_more_than_the_discover() -> None:
    dhcp = observer()
    old = option(12, b"old") + option(97, b"\0" + UUID(int=7).bytes_le)
    new = option(12, b"new") + option(97, b"\0" + UUID_A.bytes_le)
    dhcp.observation_from(request(old, DISCOVER), now=0.0)
    dhcp.observation_from(request(new), now=0.1)
    assert dhcp.observation_from(ack(), now=0.2) == Lease(PC_MAC, PC, 3600, "new", UUID_A)


def test_a_request_of_another_client_or_long_ago_is_not_joined() -> None:
    dhcp = observer()
    dhcp.observation_from(request(option(12, b"pc")), now=1000.0)
    other = bytes.fromhex("020000000999")
    assert dhcp.observation_from(ack(mac=other), now=1000.1) == Lease(other, PC, 3600)
    assert dhcp.observation_from(ack(), now=1000.0 + MAX_WAIT) == Lease(PC_MAC, PC, 3600)
    dhcp.observation_from(request(option(12, b"pc")), now=2000.0)
    late = 1999.9 + MAX_WAIT
    assert dhcp.observation_from(ack(), now=late) == Lease(PC_MAC, PC, 3600, "pc")


def test_a_flood_of_requests_pushes_out_the_oldest() -> None:
    dhcp = observer()
    for number in range(MAX_WAITING + 1):
        mac = b"\x02" + number.to_bytes(5, "big")
        dhcp.observation_from(request(option(12, b"pc"), mac=mac), now=0.0)
    first, second = b"\x02" + bytes(5), b"\x02" + (1).to_bytes(5, "big")
    assert dhcp.observation_from(ack(mac=first), now=0.0) == Lease(first, PC, 3600)
    assert dhcp.observation_from(ack(mac=second), now=0.0) == Lease(second, PC, 3600, "pc")


def test_a_decline_ends_the_lease_of_the_requested_address() -> None:
    decline = request(option(50, PC.packed), DECLINE)
    assert observer().observation_from(decline, now=0.0) == LeaseEnd(PC_MAC, PC)


def test_a_release_ends_the_lease_of_ciaddr() -> None:
    release = dhcp(1, option(53, bytes((RELEASE,))) + END, ciaddr=PC)
    assert observer().observation_from(release, now=0.0) == LeaseEnd(PC_MAC, PC)


@pytest.mark.parametrize(
    "payload",
    [
        dhcp(2, option(53, bytes((OFFER,))) + END, yiaddr=PC),
        dhcp(2, option(53, bytes((NAK,))) + END),
        request(kind=INFORM),
        dhcp(2, option(53, b"\5") + option(54, GATEWAY.packed) + END, ciaddr=PC),
        dhcp(1, option(53, b"\5") + option(54, GATEWAY.packed) + END),
        ack()[:1] + b"\x06" + ack()[2:],
    ],
    ids=["offer", "nak", "inform", "ack to an inform", "ack from a client", "token ring"],
)
def test_what_is_no_lease_is_no_error(payload: bytes) -> None:
    dhcp = observer()
    assert dhcp.observation_from(payload, now=0.0) is None
    assert dhcp.malformed == 0


def _ack_of(options: bytes, yiaddr: IPv4Address = PC, mac: bytes = PC_MAC) -> bytes:
    return dhcp(2, option(53, b"\5") + options + END, yiaddr=yiaddr, mac=mac)


SERVER = option(54, GATEWAY.packed)
HOUR = option(51, (3600).to_bytes(4, "big"))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        ack()[:239],
        ack()[:240],
        ack()[:-1],
        dhcp(2, ack()[240:], yiaddr=PC, magic=b"\x63\x82\x53\x64"),
        b"\3" + ack()[1:],
        _ack_of(HOUR),
        _ack_of(SERVER),
        _ack_of(SERVER + option(51, bytes(4))),
        _ack_of(SERVER + option(51, bytes(3))),
        _ack_of(SERVER + HOUR + HOUR),
        _ack_of(SERVER + SERVER + HOUR),
        _ack_of(option(54, GATEWAY.packed * 2) + HOUR),
        _ack_of(SERVER + HOUR, yiaddr=IPv4Address(0)),
        _ack_of(SERVER + HOUR, yiaddr=IPv4Address("224.0.0.1")),
        _ack_of(SERVER + HOUR, yiaddr=IPv4Address("255.255.255.255")),
        _ack_of(SERVER + HOUR, yiaddr=IPv4Address("127.0.0.1")),
        _ack_of(option(54, bytes(4)) + HOUR),
        _ack_of(SERVER + HOUR, mac=bytes(6)),
        _ack_of(SERVER + HOUR, mac=b"\xff" * 6),
        _ack_of(SERVER + HOUR + b"\x0c\xc8short"),
        dhcp(1, option(53, bytes((RELEASE,))) + END),
        request(kind=DECLINE),
        dhcp(1, option(53, b"\3\3") + END),
        dhcp(1, END),
    ],
    ids=[
        *("empty", "no magic", "no options", "no end option", "wrong magic", "wrong op"),
        *("no server", "no lease time", "lease of no time", "short lease time"),
        *("two lease times", "two servers", "two addresses in one option"),
        *("no yiaddr", "multicast", "broadcast", "loopback", "server 0.0.0.0"),
        *("no mac", "broadcast mac", "option longer than the message"),
        *("release of nothing", "decline of nothing", "two message types", "no message type"),
    ],
)
def test_a_message_that_cannot_be_is_counted(payload: bytes) -> None:
    dhcp = observer()
    assert dhcp.observation_from(payload, now=0.0) is None
    assert dhcp.malformed == 1


def test_an_ack_cut_anywhere_gives_nothing_or_the_whole_lease() -> None:
    whole = ack(option(12, b"pc") + option(3, GATEWAY.packed)) + bytes(30)
    expected = Lease(PC_MAC, PC, 3600, "pc")
    got = [observer().observation_from(whole[:n], now=0.0) for n in range(len(whole) + 1)]
    end = whole.rindex(END) + 1
    assert got == [None] * end + [expected] * (len(whole) + 1 - end)


def test_another_protocol_is_not_dissected() -> None:
    payload = dhcp(2, ack()[240:], yiaddr=PC, magic=b"\x63\x82\x53\x64")
    assert gate(payload) is Verdict.MALFORMED


def test_clients_that_say_nothing_take_no_place_from_those_that_do() -> None:
    dhcp_ = observer()
    dhcp_.observation_from(request(option(12, b"pc")), now=0.0)
    for number in range(MAX_WAITING):
        mac = b"\x06" + number.to_bytes(5, "big")
        dhcp_.observation_from(request(mac=mac), now=0.0)
    assert dhcp_.observation_from(ack(), now=0.0) == Lease(PC_MAC, PC, 3600, "pc")


@given(st.binary(max_size=600))
def test_garbage_never_raises(payload: bytes) -> None:
    dhcp = observer()
    dhcp.observation_from(payload, now=0.0)
    dhcp.observe(payload, now=0.0)


@given(st.binary(max_size=300), st.sampled_from([DISCOVER, REQUEST, DECLINE, 5, RELEASE]))
def test_garbage_options_never_raise(options: bytes, kind: int) -> None:
    op = 2 if kind == 5 else 1
    dhcp_ = observer()
    dhcp_.observation_from(dhcp(op, option(53, bytes((kind,))) + options, yiaddr=PC), now=0.0)


@given(st.integers(0, len(ack()) - 1), st.integers(0, 255))
def test_one_wrong_byte_never_raises(at: int, value: int) -> None:
    payload = bytearray(ack(option(12, b"pc") + option(81, b"\4\0\0\2pc\0")))
    payload[at] = value
    observer().observation_from(bytes(payload), now=0.0)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"front-desk\0\0", "front-desk"),
        (b"\x1b[2J\x07evil\r\nname", "\ufffd[2J\ufffdevil\ufffd\ufffdname"),
        ("caf\u00e9".encode(), "caf\u00e9"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("a\u202eb\u200bc".encode(), "a\ufffdb\ufffdc"),
        (b"\x9b31m", "\ufffd31m"),
        ("\x9b31m".encode(), "\ufffd31m"),
        (b" \t\0", ""),
    ],
    ids=["padded", "escape", "utf-8", "no utf-8", "format", "raw csi", "c1 csi", "blank"],
)
def test_a_name_is_harmless_to_print(raw: bytes, name: str) -> None:
    lease = observer().observation_from(ack(option(12, raw)), now=0.0)
    assert lease == Lease(PC_MAC, PC, 3600, name)


@given(st.binary(max_size=2000))
def test_a_name_fits_and_has_nothing_unprintable(raw: bytes) -> None:
    name = printable(raw)
    assert len(name.encode()) <= 255
    assert name.isprintable() or "\ufffd" in name
    assert printable(name.encode()) == name.strip()


@pytest.mark.parametrize(
    ("fqdn", "name"),
    [
        (b"\0\0\0pc.example", "pc.example"),
        (b"\4\0\0\2pc\7example\0", "pc.example"),
        (b"\4\0\0\xc0\x0c", ""),
        (b"\4\0\0\x40" + b"x" * 64, ""),
        (b"\4\0\0\0\2pc", ""),
        (b"\0\0\0", ""),
        (b"\4\0\0\x3fshort", "short"),
        (b"\4", ""),
    ],
    ids=[
        *("ascii", "wire format", "compressed", "label of 64", "root", "empty"),
        *("label too long", "short"),
    ],
)
def test_a_fully_qualified_name_is_read_in_both_forms(fqdn: bytes, name: str) -> None:
    lease = observer().observation_from(ack(option(81, fqdn)), now=0.0)
    assert lease == Lease(PC_MAC, PC, 3600, name)


@pytest.mark.parametrize(
    "machine",
    [b"\0" + bytes(16), b"\0" + b"\xff" * 16, b"\1" + UUID_A.bytes_le, UUID_A.bytes_le, b""],
    ids=["zeros", "ones", "another type", "no type", "empty"],
)
def test_a_machine_id_that_names_no_machine_is_ignored(machine: bytes) -> None:
    lease = observer().observation_from(ack(option(97, machine)), now=0.0)
    assert lease == Lease(PC_MAC, PC, 3600)


def test_options_split_over_several_are_joined() -> None:
    lease = observer().observation_from(ack(option(12, b"long-") + option(12, b"name")), now=0.0)
    assert lease == Lease(PC_MAC, PC, 3600, "long-name")


def test_the_gate_names_the_client() -> None:
    assert gate(ack()) == PC_MAC
    assert gate(request()) == PC_MAC
    assert gate(b"\0" + ack()[1:]) is Verdict.MALFORMED
    assert gate(request(kind=INFORM)) is Verdict.UNINTERESTING


def test_padding_and_other_options_may_stand_before_the_message_type() -> None:
    options = b"\0\0" + option(55, b"\1\3") + b"\0" + ack()[240:]
    assert observer().observation_from(dhcp(2, options, yiaddr=PC), now=0.0) == Lease(
        PC_MAC, PC, 3600
    )


def test_a_message_of_another_type_says_nothing() -> None:
    offer = dissector()(dhcp(2, option(53, b"\2") + END, yiaddr=PC))
    assert offer is not None
    assert DhcpObserver(lambda payload: offer).observe(b"", now=0.0) is None


def test_clients_that_were_never_answered_are_forgotten() -> None:
    dhcp = observer()
    dhcp.observation_from(request(option(12, b"pc")), now=0.0)
    other = bytes.fromhex("020000000999")
    dhcp.observation_from(request(option(12, b"other"), mac=other), now=MAX_WAIT)
    # Even a clock that stands still finds no trace of the first.
    assert dhcp.observation_from(ack(), now=0.0) == Lease(PC_MAC, PC, 3600)


def test_a_dissector_that_says_no_is_counted() -> None:
    refuse: Dissect = lambda payload: None  # noqa: E731
    dhcp = Gated(refuse)
    assert dhcp.observation_from(ack(), now=0.0) is None
    assert dhcp.malformed == 1
