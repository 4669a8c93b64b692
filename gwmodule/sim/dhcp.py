"""A DHCP server and client, and a DNS server, for a demo without dnsmasq and udhcpc.

    python -m gwmodule.sim.dhcp server INTERFACE ADDRESS FIRST LAST DOMAIN NAME [MAC=ADDRESS ...]
    python -m gwmodule.sim.dhcp client INTERFACE HOSTNAME SCRIPT

Just enough of RFC 2131 for the lab: one address per MAC, one answer per question, a client that
asks again until it is answered and then renews at half time. It calls SCRIPT as udhcpc does.
The tests never use this; they need the real programs.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSRR

SERVER_PORT, CLIENT_PORT, DNS_PORT = 67, 68, 53
LEASE_SECONDS = 600
SIOCGIFHWADDR = 0x8927
BROADCAST = "255.255.255.255"
ANSWER_TO = {"discover": "offer", "request": "ack"}
MESSAGE_TYPES = {1: "discover", 2: "offer", 3: "request", 5: "ack", 6: "nak", 7: "release"}


@dataclass(slots=True)
class Server:
    """Answers for one LAN: the addresses it hands out and the one name it knows."""

    address: str
    first: IPv4Address
    last: IPv4Address
    domain: str
    name: str
    leases: dict[bytes, IPv4Address]

    def answer_dhcp(self, datagram: bytes) -> bytes | None:
        """The reply to a client's message, None where none is due or no address is left."""
        request = BOOTP(datagram)
        kind = message_type(request)
        if request.op != 1 or kind not in ANSWER_TO:
            return None
        chaddr = bytes(request.chaddr)
        address = self._address_for(chaddr[:6])
        if address is None:
            return None
        reply = BOOTP(
            op=2,
            xid=request.xid,
            flags=request.flags,
            yiaddr=str(address),
            siaddr=self.address,
            chaddr=chaddr,
        ) / DHCP(
            options=[
                ("message-type", ANSWER_TO[kind]),
                ("server_id", self.address),
                ("lease_time", LEASE_SECONDS),
                ("subnet_mask", "255.255.255.0"),
                ("router", self.address),
                ("name_server", self.address),
                ("domain", self.domain.encode()),
                "end",
            ]
        )
        return bytes(reply)

    def answer_dns(self, datagram: bytes) -> bytes | None:
        """An address record for our one name; NXDOMAIN for everything else, None for no query."""
        query = DNS(datagram)
        if query.qr or not query.qd:
            return None
        # A list since scapy 2.6.
        question = query.qd[0] if isinstance(query.qd, list) else query.qd
        asked = question.qname.rstrip(b".").decode(errors="replace").lower()
        known = asked in (self.name, f"{self.name}.{self.domain}")
        reply = DNS(id=query.id, qr=1, aa=1, rd=query.rd, rcode=0 if known else 3, qd=question)
        if known and question.qtype == 1:
            reply.an = DNSRR(rrname=question.qname, type="A", ttl=60, rdata=self.address)
        return bytes(reply)

    def _address_for(self, mac: bytes) -> IPv4Address | None:
        if mac not in self.leases:
            taken = set(self.leases.values())
            pool = (IPv4Address(n) for n in range(int(self.first), int(self.last) + 1))
            free = next((address for address in pool if address not in taken), None)
            if free is None:
                return None
            self.leases[mac] = free
        return self.leases[mac]


def message_type(packet: Any) -> str:
    """`discover`, `offer`, ...; empty for what is no DHCP message."""
    for option in packet[DHCP].options if DHCP in packet else ():
        if isinstance(option, tuple) and option[0] == "message-type":
            return MESSAGE_TYPES.get(option[1], "")
    return ""


def option(packet: Any, name: str) -> str:
    for entry in packet[DHCP].options if DHCP in packet else ():
        if isinstance(entry, tuple) and entry[0] == name:
            value = entry[1]
            return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return ""


def serve(interface: str, server: Server) -> None:
    dns = _socket(interface, DNS_PORT)
    threading.Thread(target=_serve_dns, args=(dns, server), daemon=True).start()
    dhcp = _socket(interface, SERVER_PORT)
    while True:
        datagram, _ = dhcp.recvfrom(2048)
        reply = server.answer_dhcp(datagram)
        if reply is not None:
            # Always by broadcast: the client has no address yet, and a renewing one hears it too.
            dhcp.sendto(reply, (BROADCAST, CLIENT_PORT))


def _serve_dns(dns: socket.socket, server: Server) -> None:
    while True:
        datagram, client = dns.recvfrom(2048)
        reply = server.answer_dns(datagram)
        if reply is not None:
            dns.sendto(reply, client)


def be_client(interface: str, hostname: str, script: str) -> None:
    dhcp = _socket(interface, CLIENT_PORT)
    mac = _mac(dhcp, interface)
    while True:
        xid = random.getrandbits(32)
        offer = _ask(dhcp, mac, xid, hostname, [("message-type", "discover")])
        wanted = [
            ("message-type", "request"),
            ("requested_addr", offer.yiaddr),
            ("server_id", option(offer, "server_id")),
        ]
        ack = _ask(dhcp, mac, xid, hostname, wanted)
        environment = {
            "interface": interface,
            "ip": ack.yiaddr,
            "mask": "24",
            "router": option(ack, "router"),
            "dns": option(ack, "name_server"),
            "domain": option(ack, "domain"),
        }
        subprocess.run([script, "bound"], env={**os.environ, **environment}, check=True)
        print(f"lease of {ack.yiaddr} obtained", flush=True)
        threading.Event().wait(LEASE_SECONDS / 2)


def _ask(dhcp: socket.socket, mac: bytes, xid: int, hostname: str, options: list[Any]) -> Any:
    """Broadcast once a second until the server answers."""
    request = BOOTP(op=1, xid=xid, flags=0x8000, chaddr=mac) / DHCP(
        options=[*options, ("hostname", hostname.encode()), "end"]
    )
    dhcp.settimeout(1.0)
    while True:
        dhcp.sendto(bytes(request), (BROADCAST, SERVER_PORT))
        try:
            reply = BOOTP(dhcp.recv(2048))
        except TimeoutError:
            continue
        if reply.xid == xid and message_type(reply) in ("offer", "ack"):
            return reply


def _mac(udp: socket.socket, interface: str) -> bytes:
    """Asked of the kernel: /sys shows the interfaces of the namespace that mounted it."""
    request = struct.pack("256s", interface.encode())
    answer = fcntl.ioctl(udp.fileno(), SIOCGIFHWADDR, request)
    return answer[18:24]


def _socket(interface: str, port: int) -> socket.socket:
    """Bound to the interface by name, so that it works before there is an address."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    udp.bind(("", port))
    return udp


def main(arguments: list[str]) -> int:
    match arguments:
        case ["server", interface, address, first, last, domain, name, *reservations]:
            leases = {}
            for reservation in reservations:
                mac, _, reserved = reservation.partition("=")
                leases[bytes.fromhex(mac.replace(":", ""))] = IPv4Address(reserved)
            pool = IPv4Address(first), IPv4Address(last)
            serve(interface, Server(address, *pool, domain, name, leases))
        case ["client", interface, hostname, script]:
            be_client(interface, hostname, script)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
