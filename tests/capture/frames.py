"""Frames and messages for the capture tests, made by hand so that they can be wrong on purpose."""

from __future__ import annotations

import json
import struct
from ipaddress import IPv4Address
from pathlib import Path
from uuid import UUID

from gwmodule.capture.packet import SYN

PC_MAC = bytes.fromhex("020000000110")
GATEWAY_MAC = bytes.fromhex("020000000101")
PC = IPv4Address("192.168.1.122")
NOWHERE = IPv4Address(0)
GATEWAY = IPv4Address("192.168.1.1")
XID = 0x3903F326

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
END = b"\xff"

# reference/amt-protocols.md 1: A is version 3 with two hashes, B version 2, C version 3, SHA-384.
HELLO_A = bytes.fromhex(
    "0100 0300 00000000 13aee355d2bfbb6117a088aedd7037ea 02"
    "0114 36676997f9ed1b59a51316cace5e04eb632c9db4"
    "0220 28d6a9e11f72bbad34cfc0944109991fd0ca620b4df82f4576b54f23c3901415"
)
HELLO_B = bytes.fromhex("0000 0200 03000000 13aee355d2bfbb6117a088aedd7037ea 4142434431323334")
HELLO_C = bytes.fromhex(
    "0000 0300 0e000000 33221100554477668899aabbccddeeff 01 0330"
    "d6ee66cdd5d65f8049afd434f6c43feba993e3c6f03b0c3bbcc952d691365047"
    "ce4a90d1acd39557e89908a7457228a4"
)
UUID_A = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
UUID_C = UUID("00112233-4455-6677-8899-aabbccddeeff")


def recorded() -> list[tuple[str, bool, bytes]]:
    """A real exchange: message name, outgoing, frame (origin: see the file)."""
    path = Path(__file__).parent.parent / "data" / "dhcp-udhcpc-dnsmasq.json"
    frames = json.loads(path.read_text())["frames"]
    return [(f["message"], f["outgoing"], bytes.fromhex(f["frame"])) for f in frames]


def option(number: int, value: bytes) -> bytes:
    return bytes((number, len(value))) + value


def dhcp(
    op: int,
    options: bytes,
    *,
    mac: bytes = PC_MAC,
    xid: int = XID,
    yiaddr: IPv4Address = NOWHERE,
    ciaddr: IPv4Address = NOWHERE,
    magic: bytes = b"\x63\x82\x53\x63",
) -> bytes:
    head = struct.pack("!BBBBIHH", op, 1, 6, 0, xid, 0, 0)
    addresses = ciaddr.packed + yiaddr.packed + bytes(8)
    return head + addresses + mac.ljust(16, b"\0") + bytes(192) + magic + options


def request(options: bytes = b"", kind: int = REQUEST, mac: bytes = PC_MAC) -> bytes:
    return dhcp(1, option(53, bytes((kind,))) + options + END, mac=mac)


def ack(options: bytes = b"", mac: bytes = PC_MAC, address: IPv4Address = PC) -> bytes:
    fixed = option(53, bytes((ACK,))) + option(54, GATEWAY.packed)
    fixed += option(51, (3600).to_bytes(4, "big"))
    return dhcp(2, fixed + options + END, mac=mac, yiaddr=address)


def ethernet(packet: bytes, mac: bytes = PC_MAC, ethertype: int = 0x0800) -> bytes:
    return GATEWAY_MAC + mac + ethertype.to_bytes(2, "big") + packet


def tagged(frame: bytes, vlan: int = 5, tpid: int = 0x8100) -> bytes:
    return frame[:12] + struct.pack("!HH", tpid, vlan) + frame[12:]


def ipv4(
    protocol: int,
    body: bytes,
    source: IPv4Address = PC,
    destination: IPv4Address = GATEWAY,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(
        "!BBHHHBBH", 0x40 | words, 0, 4 * words + len(body), 1, fragment, 64, protocol, 0
    )
    return head + source.packed + destination.packed + options + body


def udp(payload: bytes, source_port: int = 67, destination_port: int = 68) -> bytes:
    return struct.pack("!HHHH", source_port, destination_port, 8 + len(payload), 0) + payload


def tcp(
    payload: bytes = b"",
    sequence: int = 1000,
    flags: int = 0x10,
    source_port: int = 40000,
    destination_port: int = 9971,
) -> bytes:
    head = struct.pack(
        "!HHIIBBHHH", source_port, destination_port, sequence, 0, 0x50, flags, 1024, 0, 0
    )
    return head + payload


def dhcp_frame(payload: bytes, mac: bytes = PC_MAC) -> bytes:
    return ethernet(ipv4(17, udp(payload)), mac)


def hello_frames(hello: bytes, mac: bytes = PC_MAC) -> list[bytes]:
    """SYN, the message in one segment, FIN."""
    segments = [
        tcp(sequence=999, flags=SYN),
        tcp(hello, sequence=1000),
        tcp(sequence=1000 + len(hello), flags=0x11),
    ]
    return [ethernet(ipv4(6, segment), mac) for segment in segments]
