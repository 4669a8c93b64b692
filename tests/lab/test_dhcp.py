from __future__ import annotations

import sys
from ipaddress import IPv4Address

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR

from gwmodule.sim.dhcp import Server, message_type, option
from gwmodule.sim.hosts import Lab
from gwmodule.sim.services import System
from gwmodule.sim.topology import BOX_LAN, PCS, ROUTER_LAN, STANDALONE

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


@pytest.fixture
def server() -> Server:
    pool = IPv4Address("192.168.77.100"), IPv4Address("192.168.77.101")
    return Server(ROUTER_LAN, *pool, "lan.example", "provisionserver", {})


def question(kind: str, last_octet: int) -> bytes:
    mac = bytes.fromhex("00005e0053") + bytes([last_octet])
    return bytes(BOOTP(op=1, xid=7, chaddr=mac) / DHCP(options=[("message-type", kind), "end"]))


def test_the_whole_lan_works_without_dnsmasq_and_udhcpc() -> None:
    with Lab(STANDALONE) as lab:
        addresses = System(lab, real_dhcp=False).start_lan()
        assert addresses["box"] == BOX_LAN
        assert len(set(addresses.values())) == len(PCS) + 1
        find = "import socket; print(socket.gethostbyname('provisionserver'))"
        assert lab.run("pc2", [sys.executable, "-c", find]).stdout.strip() == ROUTER_LAN
        assert "via 192.168.77.1" in lab.run("pc2", ["ip", "route", "show", "default"]).stdout


def test_a_client_keeps_its_address_and_the_pool_ends(server: Server) -> None:
    offer = BOOTP(server.answer_dhcp(question("discover", 1)))
    ack = BOOTP(server.answer_dhcp(question("request", 1)))
    assert (message_type(offer), message_type(ack)) == ("offer", "ack")
    assert offer.yiaddr == ack.yiaddr == "192.168.77.100"
    assert option(ack, "domain") == "lan.example"
    assert server.answer_dhcp(question("discover", 2)) is not None
    assert server.answer_dhcp(question("discover", 3)) is None


def test_what_is_no_question_gets_no_answer(server: Server) -> None:
    assert server.answer_dhcp(b"") is None
    assert server.answer_dhcp(question("release", 1)) is None
    assert server.answer_dns(bytes(DNS(qr=1))) is None


def test_only_the_one_name_is_known(server: Server) -> None:
    known = DNS(server.answer_dns(bytes(DNS(qd=DNSQR(qname="provisionserver.lan.example")))))
    unknown = DNS(server.answer_dns(bytes(DNS(qd=DNSQR(qname="www.example")))))
    assert (known.rcode, known.ancount) == (0, 1)
    assert (unknown.rcode, unknown.ancount) == (3, 0)
