from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

from gwmodule.capture.dhcp import DhcpMessage
from gwmodule.capture.dissect import load_dissector
from tests.capture.frames import ACK, GATEWAY, PC, PC_MAC, UUID_A, XID, ack, option

_LOAD = """
import os, sys
before = dict(os.environ)
from gwmodule.capture.dissect import load_dissector
load_dissector()
assert dict(os.environ) == before
assert "scapy.all" not in sys.modules
assert "scapy.libs.manuf" not in sys.modules
assert not any(name.startswith("cryptography") for name in sys.modules)
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) for line in status if line.startswith("VmRSS")))
"""


def test_a_message_is_given_in_our_types() -> None:
    machine = b"\0" + UUID_A.bytes_le
    options = option(12, b"pc") + option(81, b"\0\0\0pc.example") + option(97, machine)
    assert load_dissector()(ack(options + option(50, PC.packed))) == DhcpMessage(
        op=2,
        xid=XID,
        ciaddr=IPv4Address(0),
        yiaddr=PC,
        chaddr=PC_MAC,
        message_type=ACK,
        lease_time=3600,
        server_id=GATEWAY,
        requested_address=PC,
        hostname=b"pc",
        fqdn=b"\0\0\0pc.example",
        machine_id=machine,
    )


def test_what_is_no_dhcp_message_is_none() -> None:
    dissect = load_dissector()
    assert dissect(b"") is None
    assert dissect(ack()[:200]) is None
    assert dissect(ack()[:236] + b"BOOT" + bytes(60)) is None


def test_options_behind_the_end_do_not_count() -> None:
    message = load_dissector()(ack() + option(12, b"hidden"))
    assert message is not None
    assert message.hostname == b""


def test_loading_writes_nothing_and_stays_small(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        environment.pop(name, None)
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LOAD],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(tmp_path.iterdir()) == []
    assert int(answer.stdout) < 44 * 1024
    assert answer.stderr == ""
