"""What the gateway's owner and support do there, while technicians work; and what the logs say."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dhcp import DHCP
from scapy.utils import rdpcap

from gwmodule.amt.digest import ha1
from gwmodule.sim.hosts import python, wait_until
from gwmodule.sim.services import CONFIG, LOGIN, PASSWORD, USER, UUIDS, System
from gwmodule.sim.topology import MACS

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

LINE = re.compile(r'[A-Z]+ gwmodule[a-z_.]* event=[a-z_]+( [A-Za-z_]+=("([^"\\]|\\.)*"|[^" ]+))*')

# Holds a stream open and prints what becomes of it.
HOLD = """
import socket
s = socket.create_connection(("127.0.0.1", 16994), 10)
s.sendall(bytes([0x10, 0, 0, 0]) + b"SOL ")
assert s.recv(64)[0] == 0x11
print("open", flush=True)
s.settimeout(60)
try:
    print("end" if not s.recv(64) else "data")
except ConnectionError:
    print("reset")
"""


def explain(system: System, device: str) -> tuple[int, dict[str, Any]]:
    done = system.gateway_command("explain", device, "--json")
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, answer


def results(answer: dict[str, Any]) -> dict[str, str]:
    return {step["step"]: step["result"] for step in answer["steps"]}


@pytest.mark.parametrize("by", ["uuid", "mac", "address"])
def test_a_device_that_works_passes_the_checklist(system: System, by: str) -> None:
    # pc1 sent a Hello, so its UUID is known here without a login.
    names = {"uuid": UUIDS["pc1"], "mac": MACS["pc1"], "address": system.lab.address("pc1")}
    code, answer = explain(system, names[by])
    assert (code, answer["ok"]) == (0, True), answer
    assert set(results(answer).values()) == {"ok"}, answer
    assert answer["device"]["mac"] == MACS["pc1"]


def test_a_pc_that_is_off_the_network_fails_at_its_neighbour(system: System) -> None:
    nobody = system.lab.address("pc1").rpartition(".")[0] + ".249"
    code, answer = explain(system, nobody)
    assert (code, answer["failed"]) == (1, "neighbour"), answer
    assert answer["seconds"] < 10
    assert "cable" in answer["advice"]


def test_what_is_no_pc_is_refused_by_policy(system: System) -> None:
    code, answer = explain(system, "127.0.0.1")
    assert (code, answer["failed"]) == (1, "policy"), answer


def test_a_lockdown_ends_and_refuses_everything_and_keeps_the_link(system: System) -> None:
    argv = system.technician_command("forward", UUIDS["pc1"], "16994")
    forward = system.lab.start("msp", argv, log="forward-hold")
    listening = ["ss", "-ltnH"]
    wait_until("the port", lambda: ":16994" in system.lab.run("msp", listening).stdout, 15)
    holder = system.lab.start("msp", [sys.executable, "-c", HOLD], log="hold")
    wait_until("the stream", lambda: "open" in holder.log.read_text(), 15)
    wait_until("the stream at the gateway", lambda: system.status()["streams"] == 1, 20)
    sessions = system.status()["link"]["counters"]
    switched = json.loads(system.gateway_command("lockdown", "on", "--json").stdout)
    assert switched == {"on": True, "seconds_left": None, "ended": {"streams": 1, "calls": 0}}
    wait_until("its end", lambda: not holder.alive, 10)
    assert re.search("reset|end", holder.log.read_text())
    forward.stop()
    try:
        refused = system.technician("call", UUIDS["pc1"], "power.get", *LOGIN)
        assert refused.returncode != 0
        assert "locked down at the gateway" in refused.stderr
        status = system.status()
        assert status["lockdown"]["on"]
        assert status["policy_refusals"]["locked-down"] >= 1
        assert status["link"]["counters"] == sessions
        code, answer = explain(system, MACS["pc1"])
        assert (code, answer["failed"]) == (1, "access")
        # A new link and session do not end it.
        system.gateway_command("reconnect")
        system.wait_for_link()
        again = system.technician("call", UUIDS["pc1"], "power.get", *LOGIN)
        assert "locked down at the gateway" in again.stderr
    finally:
        assert system.gateway_command("lockdown", "off").stdout == "off\n"
    assert system.call("pc1", "power.get")


def test_a_lockdown_with_a_time_ends_by_itself(system: System) -> None:
    assert system.gateway_command("lockdown", "on", "--for", "600").stdout == "on, 600 s left\n"
    assert system.technician("call", UUIDS["pc2"], "power.get", *LOGIN).returncode != 0
    # The last word counts; two seconds from the first would be over before the call is there.
    assert system.gateway_command("lockdown", "on", "--for", "2").stdout == "on, 2 s left\n"
    wait_until("its end", lambda: not system.status()["lockdown"]["on"], 10)
    assert system.call("pc2", "power.get")


def renew(system: System, pc: str) -> None:
    """udhcpc asks for its lease again."""
    process = system.lab.services[f"dhcp-{pc}"].process
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (str(process.pid), *children):
        if "udhcpc" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]:
            subprocess.run(["kill", f"-{signal.SIGUSR1.value}", pid], check=True)


def test_a_recording_is_a_pcap_of_the_messages_of_the_lan(system: System, tmp_path: Path) -> None:
    target = tmp_path / "lan.pcap"
    argv = python("gwmodule", "capture", "-w", str(target), "--seconds", "30", "--count", "2")
    recording = system.lab.start(
        system.lab.topology.relay, [*argv, "--config", str(CONFIG)], log="recording"
    )
    wait_until("the recording", lambda: target.exists() and target.stat().st_size >= 24, 10)
    renew(system, "pc1")
    wait_until("two frames", lambda: not recording.alive, 25)
    assert recording.process.returncode == 0, recording.tail()
    packets = rdpcap(str(target))
    assert len(packets) == 2
    assert all(packet.haslayer(DHCP) for packet in packets)
    assert abs(float(packets[0].time) - target.stat().st_mtime) < 30
    # Nothing goes on behind it, and the next one may begin.
    done = system.gateway_command("capture", "-w", str(tmp_path / "next"), "--seconds", "1")
    assert done.returncode == 0, done.stderr


def test_every_line_of_the_logs_is_one_event_without_secrets(system: System) -> None:
    wrong = system.lab.run(
        "msp",
        [
            "env",
            "AMT_PASSWORD=wrong",
            *system.technician_command("call", UUIDS["pc1"], "power.get"),
        ],
        check=False,
    )
    assert wrong.returncode != 0
    system.restart_msp()
    system.wait_for_link()
    assert system.call("pc1", "power.get")
    realm = (system.device(UUIDS["pc1"]) or {})["realm"]
    secrets = (PASSWORD, "wrong\n", ha1(USER, realm, PASSWORD))
    seen = set()
    for name in ("gwmodule", "msp"):
        text = system.lab.services[name].log.read_text()
        assert not [secret for secret in secrets if secret in text]
        lines = text.splitlines()
        assert [line for line in lines if not LINE.fullmatch(line)] == []
        seen |= {found[1] for line in lines if (found := re.search(r"event=(\S+)", line))}
    assert {"link_up", "call", "stream_opened", "lockdown", "recording", "sniffing"} <= seen
