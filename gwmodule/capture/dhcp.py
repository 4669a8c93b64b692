"""Leases out of the DHCP messages that pass by (RFC 2131, RFC 2132, RFC 4578, RFC 4702).

A message goes through two stages, because a dissection by scapy costs thirty times what a look at
the fixed fields does and anybody in the LAN may send as many messages as the wire carries:

    payload --> gate (struct) --> [flood limit] --> dissect (scapy) --> DhcpObserver --> Lease

Everything in a message is a claim of a stranger. A lease is taken only from a complete DHCPACK that
carries yiaddr, chaddr, lease time and server identifier; names are made harmless to print.
"""

from __future__ import annotations

import enum
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TypeAlias
from uuid import UUID

from gwmodule.wire.notices import MAX_HOSTNAME, Lease, LeaseEnd

MAGIC = b"\x63\x82\x53\x63"
BOOTREQUEST = 1
BOOTREPLY = 2
HTYPE_ETHERNET = 1

OPTION_PAD = 0
OPTION_HOSTNAME = 12
OPTION_REQUESTED_ADDRESS = 50
OPTION_LEASE_TIME = 51
OPTION_MESSAGE_TYPE = 53
OPTION_SERVER_ID = 54
OPTION_CLIENT_FQDN = 81
OPTION_MACHINE_ID = 97
OPTION_END = 255

# A client's name and UUID are in its DHCPDISCOVER and DHCPREQUEST only; they wait here for the
# DHCPACK. A server answers within seconds (RFC 2131 4.1 gives up after 64 s). 4096 clients are a
# whole building after a power cut, and 2 MiB at the very most.
MAX_WAITING = 4096
MAX_WAIT = 64.0

_FIXED = struct.Struct("!BBBxI20x16s192x4s")
_MACHINE_ID = struct.Struct("!B16s")
_UUID_TYPE = 0
_FQDN_HEAD = 3  # Flags and two obsolete result codes (RFC 4702 2).
_FQDN_WIRE_FORMAT = 0x04  # Flag E: the name is in DNS wire format, else plain ASCII.


class MessageType(enum.IntEnum):
    """Option 53 (RFC 2132 9.6)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


_WANTED = {
    (BOOTREQUEST, MessageType.DISCOVER),
    (BOOTREQUEST, MessageType.REQUEST),
    (BOOTREQUEST, MessageType.DECLINE),
    (BOOTREQUEST, MessageType.RELEASE),
    (BOOTREPLY, MessageType.ACK),
}


class Verdict(enum.Enum):
    """What the gate thinks of a payload that goes no further."""

    MALFORMED = "malformed"
    UNINTERESTING = "uninteresting"


@dataclass(slots=True)
class DhcpMessage:
    """What a dissector found: the fields of RFC 2131 and, where present, the options we use.

    `names` are the raw bytes of options 12 and 81 (`hostname`, `fqdn`).
    """

    op: int
    xid: int
    ciaddr: IPv4Address
    yiaddr: IPv4Address
    chaddr: bytes
    message_type: int
    lease_time: int | None = None
    server_id: IPv4Address | None = None
    requested_address: IPv4Address | None = None
    hostname: bytes = b""
    fqdn: bytes = b""
    machine_id: bytes = b""


# None: not a whole, consistent DHCP message.
Dissect: TypeAlias = Callable[[bytes], DhcpMessage | None]


def gate(payload: bytes) -> bytes | Verdict:
    """The client's MAC if a UDP payload deserves a dissection, else why not; never raises."""
    try:
        op, htype, hlen, _, chaddr, magic = _FIXED.unpack_from(payload)
    except struct.error:
        return Verdict.MALFORMED
    if op not in (BOOTREQUEST, BOOTREPLY) or magic != MAGIC:
        return Verdict.MALFORMED
    mac: bytes = chaddr[:6]
    if htype != HTYPE_ETHERNET or hlen != len(mac):
        return Verdict.UNINTERESTING
    if not any(mac) or mac[0] & 1:  # No station, or a group of stations.
        return Verdict.MALFORMED
    message_type = _message_type(payload)
    if message_type is None:
        return Verdict.MALFORMED
    return mac if (op, message_type) in _WANTED else Verdict.UNINTERESTING


def _message_type(payload: bytes) -> int | None:
    at = _FIXED.size
    end = len(payload)
    while at + 2 < end and payload[at] != OPTION_END:
        if payload[at] == OPTION_PAD:
            at += 1
        elif payload[at] == OPTION_MESSAGE_TYPE:
            return payload[at + 2] if payload[at + 1] == 1 else None
        else:
            at += 2 + payload[at + 1]
    return None


@dataclass(slots=True)
class _Client:
    seen: float
    hostname: str
    uuid: UUID | None


class DhcpObserver:
    """Turns DHCP messages into leases; holds at most MAX_WAITING clients for MAX_WAIT seconds."""

    def __init__(self, dissect: Dissect) -> None:
        self._dissect = dissect
        self._waiting: OrderedDict[tuple[int, bytes], _Client] = OrderedDict()
        self.malformed = 0

    def observe(self, payload: bytes, now: float) -> Lease | LeaseEnd | None:
        """What a UDP payload says about a lease once it has passed the gate; never raises.

        A renewal is a DHCPACK like any other. A payload that is no whole DHCP message, or claims
        something impossible, counts as malformed.
        """
        message = self._dissect(payload)
        if message is None:
            self.malformed += 1
            return None
        match message.message_type:
            case MessageType.DISCOVER | MessageType.REQUEST:
                self._remember(message, now)
                return None
            case MessageType.RELEASE:
                return self._lease_end(message.chaddr, message.ciaddr)
            case MessageType.DECLINE:
                return self._lease_end(message.chaddr, message.requested_address)
            case MessageType.ACK:
                return self._lease(message, now)
            case _:
                return None

    def _remember(self, message: DhcpMessage, now: float) -> None:
        key = (message.xid, message.chaddr)
        hostname, uuid = _name(message), _machine_uuid(message.machine_id)
        known = self._waiting.pop(key, None)
        if known is not None:  # A DHCPREQUEST may leave out what the DHCPDISCOVER said.
            hostname, uuid = hostname or known.hostname, uuid or known.uuid
        while self._waiting:
            oldest = next(iter(self._waiting))
            if len(self._waiting) < MAX_WAITING and now - self._waiting[oldest].seen < MAX_WAIT:
                break
            del self._waiting[oldest]
        if hostname or uuid:
            self._waiting[key] = _Client(now, hostname, uuid)

    def _lease(self, message: DhcpMessage, now: float) -> Lease | None:
        if message.yiaddr == IPv4Address(0) and message.lease_time is None:
            return None  # The answer to a DHCPINFORM: configuration, no lease (RFC 2131 4.3.5).
        if (
            not message.lease_time
            or message.server_id is None
            or not _is_host(message.server_id)
            or not _is_host(message.yiaddr)
        ):
            self.malformed += 1
            return None
        hostname, uuid = _name(message), _machine_uuid(message.machine_id)
        client = self._waiting.pop((message.xid, message.chaddr), None)
        if client is not None and now - client.seen < MAX_WAIT:
            hostname, uuid = client.hostname or hostname, client.uuid or uuid
        return Lease(message.chaddr, message.yiaddr, message.lease_time, hostname, uuid)

    def _lease_end(self, mac: bytes, address: IPv4Address | None) -> LeaseEnd | None:
        if address is None or not _is_host(address):
            self.malformed += 1
            return None
        return LeaseEnd(mac, address)


def _is_host(address: IPv4Address) -> bool:
    return not (
        address.is_unspecified or address.is_multicast or address.is_reserved or address.is_loopback
    )


def _name(message: DhcpMessage) -> str:
    """The client's name, fit to be printed: option 12, else the fully qualified one."""
    return printable(message.hostname) or printable(_fqdn(message.fqdn))


def _fqdn(option: bytes) -> bytes:
    if len(option) <= _FQDN_HEAD:
        return b""
    name = option[_FQDN_HEAD:]
    if not option[0] & _FQDN_WIRE_FORMAT:
        return name
    labels = []
    while name and 0 < name[0] < 64:  # More would be compression, which RFC 4702 2.3.1 forbids.
        labels.append(name[1 : 1 + name[0]])
        name = name[1 + name[0] :]
    return b".".join(labels)


def printable(name: bytes) -> str:
    """A stranger's text without anything that moves a cursor or hides: at most 255 bytes of UTF-8.

    Control and format characters, and bytes that are not UTF-8, become U+FFFD; padding is cut off.
    """
    text = name.strip(b"\0 \r\n\t").decode(errors="replace")
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text.encode()[:MAX_HOSTNAME].decode(errors="ignore")


def _machine_uuid(option: bytes) -> UUID | None:
    """Option 97: a type byte, then SMBIOS order as in a Hello (reference/amt-protocols.md 5)."""
    if len(option) != _MACHINE_ID.size:
        return None
    kind, raw = _MACHINE_ID.unpack(option)
    if kind != _UUID_TYPE or raw in (bytes(16), b"\xff" * 16):
        return None
    return UUID(bytes_le=raw)
