"""Ethernet, IPv4, UDP and TCP headers, as far as the capture needs them.

Checksums are not looked at: a frame that leaves the gateway, or that a virtual interface passed on,
carries a partial one that the network card would have filled in.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TypeAlias

from gwmodule.capture.bpf import (
    ETH_P_8021AD,
    ETH_P_8021Q,
    ETH_P_IP,
    ETHERNET_HEADER,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPV4_FRAGMENT,
    VLAN_TAG,
)

FIN = 0x01
SYN = 0x02
RST = 0x04

_ETHERNET = struct.Struct("!6s6sH")
_ETHERTYPE = struct.Struct("!H")
_IPV4 = struct.Struct("!BxHxxHxBxx4s4s")
_UDP = struct.Struct("!HHHxx")
_TCP = struct.Struct("!HHIxxxxBB")
_TCP_HEADER = 20


@dataclass(slots=True)
class UdpDatagram:
    """`mac` is the sender's on this segment of the LAN."""

    mac: bytes
    source_port: int
    destination_port: int
    payload: bytes


@dataclass(slots=True)
class TcpSegment:
    """`flags` are the low byte of the header's flags: FIN, SYN, RST and so on."""

    mac: bytes
    source: IPv4Address
    source_port: int
    destination: IPv4Address
    destination_port: int
    sequence: int
    flags: int
    payload: bytes


Packet: TypeAlias = UdpDatagram | TcpSegment


def parse_frame(frame: bytes) -> Packet | None:
    """The UDP datagram or TCP segment in an Ethernet frame; None for anything else or cut short."""
    try:
        _, mac, ethertype = _ETHERNET.unpack_from(frame)
        start = ETHERNET_HEADER
        if ethertype in (ETH_P_8021Q, ETH_P_8021AD):
            (ethertype,) = _ETHERTYPE.unpack_from(frame, start + 2)
            start += VLAN_TAG
        if ethertype != ETH_P_IP:
            return None
        return _parse_ipv4(frame, start, mac)
    except struct.error:
        return None


def _parse_ipv4(frame: bytes, start: int, mac: bytes) -> Packet | None:
    version, total, fragment, protocol, source, destination = _IPV4.unpack_from(frame, start)
    header = (version & 0x0F) * 4
    end = start + total  # What follows is the padding of a short frame.
    if version >> 4 != 4 or header < _IPV4.size or end > len(frame) or fragment & IPV4_FRAGMENT:
        return None
    body = frame[start + header : end]
    if protocol == IPPROTO_UDP:
        source_port, destination_port, length = _UDP.unpack_from(body)
        if not _UDP.size <= length <= len(body):
            return None
        return UdpDatagram(mac, source_port, destination_port, body[_UDP.size : length])
    if protocol == IPPROTO_TCP:
        source_port, destination_port, sequence, offset, flags = _TCP.unpack_from(body)
        offset = (offset >> 4) * 4
        if not _TCP_HEADER <= offset <= len(body):
            return None
        return TcpSegment(
            mac,
            IPv4Address(source),
            source_port,
            IPv4Address(destination),
            destination_port,
            sequence,
            flags,
            body[offset:],
        )
    return None
