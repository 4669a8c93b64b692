from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.capture.packet import TcpSegment, UdpDatagram, parse_frame
from tests.capture.frames import GATEWAY, PC, PC_MAC, ethernet, ipv4, tagged, tcp, udp


@pytest.mark.parametrize("wrap", [bytes, tagged], ids=["untagged", "tagged"])
def test_a_datagram_is_found_behind_at_most_one_tag(wrap: type[bytes]) -> None:
    frame = wrap(ethernet(ipv4(17, udp(b"payload", 68, 67))))
    assert parse_frame(frame) == UdpDatagram(PC_MAC, 68, 67, b"payload")


def test_a_segment_is_found_behind_ip_options() -> None:
    frame = ethernet(ipv4(6, tcp(b"hello", sequence=7, flags=0x18), options=bytes(4)))
    assert parse_frame(frame) == TcpSegment(PC_MAC, PC, 40000, GATEWAY, 9971, 7, 0x18, b"hello")


def test_the_padding_of_a_short_frame_is_not_payload() -> None:
    packet = parse_frame(ethernet(ipv4(17, udp(b"x"))) + bytes(20))
    assert packet == UdpDatagram(PC_MAC, 67, 68, b"x")


def test_a_wrong_checksum_is_not_looked_at() -> None:
    frame = bytearray(ethernet(ipv4(17, udp(b"x"))))
    frame[24:26] = b"\xde\xad"
    frame[40:42] = b"\xbe\xef"
    assert parse_frame(bytes(frame)) is not None


@pytest.mark.parametrize(
    "frame",
    [
        ethernet(bytes(40), ethertype=0x86DD),
        tagged(tagged(ethernet(ipv4(17, udp(b"x"))))),
        ethernet(ipv4(1, bytes(8))),
        ethernet(ipv4(17, udp(b"x"), fragment=0x2000)),
        ethernet(b"\x65" + ipv4(17, udp(b"x"))[1:]),
        ethernet(b"\x44" + ipv4(17, udp(b"x"))[1:]),
        ethernet(ipv4(17, udp(b"x")[:4] + b"\x00\x07" + udp(b"x")[6:])),
        ethernet(ipv4(17, udp(b"x")[:4] + b"\x00\xff" + udp(b"x")[6:])),
        ethernet(ipv4(6, tcp()[:12] + b"\x40" + tcp()[13:])),
        ethernet(ipv4(6, tcp()[:12] + b"\xf0" + tcp()[13:])),
    ],
    ids=[
        *("ipv6", "two tags", "icmp", "fragment", "version 6", "short ip header"),
        *("udp length under 8", "udp length over the packet"),
        *("tcp header under 20", "tcp header over the packet"),
    ],
)
def test_a_header_that_lies_gives_nothing(frame: bytes) -> None:
    assert parse_frame(frame) is None


@given(st.binary(max_size=100))
def test_garbage_never_raises(frame: bytes) -> None:
    parse_frame(frame)
    parse_frame(ethernet(frame))


@given(st.integers(min_value=0), st.booleans())
def test_a_cut_frame_gives_nothing(cut: int, is_tcp: bool) -> None:
    whole = ethernet(ipv4(6, tcp(b"data")) if is_tcp else ipv4(17, udp(b"data")))
    assert parse_frame(whole[: cut % len(whole)]) is None


def test_addresses_are_the_packet_s() -> None:
    source = IPv4Address("10.0.0.9")
    packet = parse_frame(ethernet(ipv4(6, tcp(), source=source)))
    assert isinstance(packet, TcpSegment)
    assert packet.source == source
