from __future__ import annotations

import random
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.openwrt.box import Box

pytestmark = pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox")

DHCP = """
config dnsmasq
	option domain 'lan'

config dhcp 'lan'
	option interface 'lan'

config dhcp 'guest'
	list dhcp_option '3,192.168.2.1'
	list dhcp_option 'tag:amt,15,guest.example'
"""
SCRIPT = "usr/libexec/gwmodule-provisionserver"


def add(box: Box, address: str = "192.168.1.1", upstream: str = "") -> None:
    box.write("tmp/resolv.conf.d/resolv.conf.auto", "# wan\nnameserver 198.51.100.1\n")
    box.run(SCRIPT, "add", "lan", ADDRESS=address, UPSTREAM_NAMES=upstream)


def record(box: Box) -> tuple[str, str] | None:
    """Names and address of our section in /etc/config/dhcp."""
    text = (box.root / "etc/config/dhcp").read_text()
    if "gwmodule_provisionserver" not in text:
        return None
    section = text.split("config hostrecord 'gwmodule_provisionserver'")[1].split("config")[0]
    words = [line.split() for line in section.strip().splitlines()]
    names = ",".join(value.strip("'") for _, key, value in words if key == "name")
    return names, next(value.strip("'") for _, key, value in words if key == "ip")


def test_bare_name_and_every_domain_that_leases_name(box: Box) -> None:
    box.write("etc/config/dhcp", DHCP)
    add(box)
    names = "provisionserver,provisionserver.guest.example,provisionserver.lan"
    assert record(box) == (names, "192.168.1.1")
    assert "dnsmasq reload" in box.log()


def test_a_second_run_writes_nothing_and_leaves_dnsmasq_alone(box: Box) -> None:
    box.write("etc/config/dhcp", DHCP)
    add(box)
    box.log()
    commits = (box.root / "etc/config/commits").read_text()
    add(box)
    assert (box.root / "etc/config/commits").read_text() == commits
    assert box.log() == []


def test_a_new_address_replaces_the_old_one(box: Box) -> None:
    box.write("etc/config/dhcp", DHCP)
    add(box)
    add(box, address="10.0.0.1")
    found = record(box)
    assert found is not None
    assert found[1] == "10.0.0.1"


def test_without_an_address_nothing_changes_yet(box: Box) -> None:
    box.write("etc/config/dhcp", DHCP)
    add(box, address="")
    assert record(box) is None
    assert "has no IPv4 address yet" in box.log()[0]


def test_a_name_that_upstream_answers_is_left_to_it(box: Box) -> None:
    box.write("etc/config/dhcp", DHCP)
    add(box, upstream="provisionserver.guest.example")
    assert record(box) == ("provisionserver,provisionserver.lan", "192.168.1.1")
    said = "provisionserver.guest.example is answered by name server 198.51.100.1, not by us"
    assert any(said in line for line in box.log())


def test_upstream_takes_over_what_was_ours(box: Box) -> None:
    box.write("etc/config/dhcp", DHCP)
    add(box)
    everything = " ".join(f"provisionserver{domain}" for domain in ("", ".lan", ".guest.example"))
    add(box, upstream=everything)
    assert record(box) is None


@pytest.mark.parametrize(
    ("section", "owner"),
    [
        ("config domain\n\toption name 'provisionserver'\n\toption ip '10.0.0.9'", "cfg03"),
        ("config hostrecord 'mine'\n\tlist name 'provisionserver'\n\toption ip '10.0.0.9'", "mine"),
        ("config host 'setup'\n\toption name 'provisionserver'", "setup"),
        ("config cname 'alias'\n\toption cname 'provisionserver'", "alias"),
    ],
)
def test_what_the_user_has_entered_wins(box: Box, section: str, owner: str) -> None:
    box.write("etc/config/dhcp", f"{DHCP}\n{section}\n")
    add(box)
    assert record(box) is None
    said = f"provisionserver is answered by section {owner} of /etc/config/dhcp, not by us"
    assert any(said in line for line in box.log())


def test_so_do_an_address_entry_and_the_hosts_file(box: Box) -> None:
    taken = DHCP.replace(
        "option domain 'lan'",
        "option domain 'lan'\n\tlist address '/provisionserver.lan/10.0.0.9'",
    )
    box.write("etc/config/dhcp", taken)
    add(box)
    assert record(box) == ("provisionserver,provisionserver.guest.example", "192.168.1.1")
    box.write("etc/hosts", "10.0.0.9 provisionserver\n")
    add(box)
    assert record(box) is None


def test_a_comment_in_the_hosts_file_is_none(box: Box) -> None:
    box.write("etc/config/dhcp", DHCP)
    box.write("etc/hosts", "# 10.0.0.9 provisionserver\n")
    add(box)
    assert record(box) is not None


def test_removal_is_complete_and_can_be_repeated(box: Box) -> None:
    box.write("etc/config/dhcp", DHCP)
    add(box)
    box.run(SCRIPT, "remove")
    assert record(box) is None
    box.log()
    box.run(SCRIPT, "remove")
    assert box.log() == []


def test_wrong_usage_is_told(box: Box) -> None:
    assert box.run(SCRIPT, check=False).returncode == 2


# ---- what dnsmasq makes of it


def query(port: int, name: str, kind: int) -> tuple[int, list[bytes]]:
    """One DNS question (RFC 1035): the response code and the data of the answers."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = labels + struct.pack(">BHH", 0, kind, 1)
    packet = struct.pack(">HHHHHH", random.randrange(65536), 0x0100, 1, 0, 0, 0) + question
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", port))
        sock.send(packet)
        answer = sock.recv(512)
    _, flags, _, count, _, _ = struct.unpack(">HHHHHH", answer[:12])
    data, position = [], 12 + len(question)
    for _ in range(count):
        length = struct.unpack(">H", answer[position + 10 : position + 12])[0]
        data.append(answer[position + 12 : position + 12 + length])
        position += 12 + length
    return flags & 15, data


def free_port() -> int:
    """One that UDP and TCP may have, below those that the kernel gives to connections."""
    while True:
        port = random.randrange(20000, 30000)
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                with socket.socket(socket.AF_INET, kind) as sock:
                    sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port


@pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="needs dnsmasq")
def test_dnsmasq_answers_in_the_domain_it_hands_out(box: Box, tmp_path: Path) -> None:
    box.write("etc/config/dhcp", DHCP)
    add(box)
    found = record(box)
    assert found is not None
    port = free_port()
    # As OpenWrt's dnsmasq.init writes a hostrecord section, `domain` and `local`.
    config = tmp_path / "dnsmasq.conf"
    config.write_text(
        f"port={port}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\n"
        f"domain=lan\nlocal=/lan/\nexpand-hosts\nhost-record={found[0]},{found[1]}\n"
        f"user={Path(tmp_path).owner()}\npid-file={tmp_path}/pid\n"
    )
    server = subprocess.Popen(["dnsmasq", "--keep-in-foreground", f"--conf-file={config}"])
    try:
        deadline = time.monotonic() + 5
        while True:
            try:
                bare = query(port, "provisionserver", 1)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        address = [socket.inet_aton("192.168.1.1")]
        assert bare == (0, address)
        assert query(port, "provisionserver.lan", 1) == (0, address)
        assert query(port, "provisionserver.guest.example", 1) == (0, address)
        assert query(port, "provisionserver.lan", 28) == (0, [])
        assert query(port, "other.lan", 1) == (3, [])
    finally:
        server.terminate()
        server.wait()
