"""`gwmodule-sim demo`: the main job, told step by step, with times and proofs.

Every step asks a real program, by its command line, and fails when the answer is not the one that a
working system gives. The last line is JSON for scripts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gwmodule.errors import GatewayError
from gwmodule.sim import isolate
from gwmodule.sim.hosts import Lab, LabError, wait_until
from gwmodule.sim.lab import (
    DEVICES,
    execute,
    guide,
    hello_target,
    real_dhcp,
    stop_on_signals,
    wait_for_ctrl_c,
)
from gwmodule.sim.services import GATEWAY, LOGIN, UUIDS, System
from gwmodule.sim.topology import MACS, MANAGEMENT, NAT_WAN, PCS, TWO_WANS, WEB

# A step that takes longer than this has failed, whatever it waits for.
PATIENCE = 20.0
# What the simulated PC with a dead OS says on its serial line (sim.machine), in about 5 s.
PROMPT = "recovery>"
BOOT_TEXTS = ("BIOS", "Memory test: 8192 MB OK", "Booting from SATA port 0 ... failed")
LAST_BOOT_TEXT = "No bootable device"

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 1.5)
except OSError as exc:
    sys.exit(str(exc))
"""


@dataclass(slots=True)
class Demo:
    """The story; `report` collects what each step said and how long it took."""

    system: System
    addresses: dict[str, str] = field(default_factory=dict)

    def steps(self) -> tuple[tuple[str, str, Callable[[], str]], ...]:
        return (
            ("msp", "The MSP starts and enrols a gateway", self.msp),
            ("link", "The gateway dials the MSP by its management WAN", self.link),
            ("leases", "Three PCs ask for an address; the gateway sees it", self.leases),
            ("portal", "Nobody has logged in: the PCs do not reach the internet", self.portal),
            ("nat", "The MSP does not reach a PC directly", self.nat),
            ("hello_typed", "PC 1 calls the address typed into it", self.hello_typed),
            ("hello_dns", "PC 2 finds `provisionserver` by DNS", self.hello_dns),
            ("probe", "PC 3, provisioned long ago, is found by lease and probe", self.probe),
            ("activate", "Somebody provisions PC 1 and PC 2", self.activate),
            ("power_get", "PC 1 has a dead OS; the technician asks for its power", self.power_get),
            ("reset_sol", "Reset, and its serial line over SOL", self.reset_sol),
        )

    def msp(self) -> str:
        self.system.start_msp()
        self.system.enrol()
        return f"gateway {GATEWAY} has a key and a certificate"

    def link(self) -> str:
        self.system.start_gateway()
        gateway = self.gateway()
        check(gateway["connectionStatus"], "the MSP does not see the gateway")
        check(gateway["address"] == NAT_WAN, f"the MSP sees {gateway['address']}, not the NAT")
        return f"{MANAGEMENT} after two routers and a NAT: {NAT_WAN}:{gateway['port']}"

    def leases(self) -> str:
        self.addresses = self.system.start_lan()
        for pc in PCS:
            wait_until(f"the lease of {pc} in `gwmodule devices`", self._lease_seen(pc), PATIENCE)
        return ", ".join(f"{pc} {self.addresses[pc]}" for pc in PCS)

    def portal(self) -> str:
        before = self.system.lab.portal_packets()
        check(self.connect("pc1", WEB, 80) != "", "PC 1 reached the internet")
        dropped = self.system.lab.portal_packets() - before
        check(dropped > 0, "the portal dropped nothing")
        return f"the portal dropped {dropped} packets to {WEB}"

    def nat(self) -> str:
        address = self.addresses["pc1"]
        problem = self.connect("msp", address, 16992)
        check(problem != "", f"the MSP reached {address} directly")
        return f"{address}: {problem}; {NAT_WAN}: {self.connect('msp', NAT_WAN, 16992)}"

    def hello_typed(self) -> str:
        return self.register("pc1")

    def hello_dns(self) -> str:
        return self.register("pc2")

    def probe(self) -> str:
        self.start_device("pc3")
        self.system.wait_for_candidate("pc3", PATIENCE)
        device = self.system.identify("pc3")
        check(device["guid"] == UUIDS["pc3"], f"identified as {device['guid']}")
        return f"{MACS['pc3']} answers as AMT and says it is {device['guid']}"

    def activate(self) -> str:
        for pc in ("pc1", "pc2"):
            self.system.activate(pc)
            self.system.identify(pc)
            record = self.system.wait_for_device(pc)
            check(record["state"] == "managed", f"{pc} is {record['state']}")
        return "their logins work"

    def power_get(self) -> str:
        answer = self.system.call("pc1", "power.get")
        state = answer["result"]["power_state_name"]
        check(state == "on", f"the power state is {state}")
        return f"{state}, after {answer['exchanges']} exchanges on the LAN and one over the WAN"

    def reset_sol(self) -> str:
        lab, uuid = self.system.lab, UUIDS["pc1"]
        script = ["--expect", PROMPT, "--expect", LAST_BOOT_TEXT, "--expect", PROMPT]
        script += ["--send", "uuid", "--expect", uuid, "--timeout", f"{PATIENCE:g}"]
        sol = self.system.technician_command("sol", uuid, *LOGIN, *script)
        session = lab.start("msp", sol, log="sol")
        wait_until("the prompt over SOL", lambda: PROMPT in session.log.read_text(), PATIENCE)
        self.system.call("pc1", "power.set", "state=reset")
        wait_until("the end of the SOL script", lambda: not session.alive, PATIENCE)
        check(session.process.returncode == 0, f"sol: {session.tail(4)}")
        text = session.log.read_text()
        for line in BOOT_TEXTS:
            check(line in text, f"{line!r} is missing in what SOL showed")
        return printable(text)

    def register(self, pc: str) -> str:
        """Start a PC that sends Hellos, and look its registration up at the MSP."""
        self.start_device(pc)
        record = self.system.wait_for_device(pc, PATIENCE)
        gateway = self.gateway()
        expected = {
            "state": "setup",
            "address": self.addresses[pc],
            "mac": MACS[pc],
            "gateway": GATEWAY,
            "gatewayAddress": NAT_WAN,
            "gatewayPort": gateway["port"],
        }
        for key, value in expected.items():
            check(record[key] == value, f"{pc}: {key} is {record[key]}, not {value}")
        place = f"{record['address']} behind {NAT_WAN}:{gateway['port']}"
        return f"registered {record['guid']} at {place}, state setup"

    def start_device(self, pc: str) -> None:
        hello = hello_target(pc, self.system.lab.topology.relay_address)
        self.system.start_device(pc, *DEVICES[pc], *(("--hello", hello) if hello else ()))

    def gateway(self) -> dict[str, Any]:
        gateways: list[dict[str, Any]] = self.system.ask_msp("gateways")
        return next(g for g in gateways if g["name"] == GATEWAY)

    def connect(self, host: str, address: str, port: int) -> str:
        """Empty when a TCP connection works, else the reason."""
        argv = [sys.executable, "-c", CONNECT, address, str(port)]
        return self.system.lab.run(host, argv, check=False).stderr.strip()

    def _lease_seen(self, pc: str) -> Callable[[], bool]:
        def seen() -> bool:
            return any(
                d["mac"] == MACS[pc] and d.get("address") == self.addresses[pc]
                for d in self.system.gateway_devices()
            )

        return seen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep", action="store_true", help="leave the lab running afterwards, until Ctrl-C"
    )


def main(args: argparse.Namespace) -> int:
    if not isolate.isolated():
        execute(["demo", *(["--keep"] if args.keep else [])])
    stop_on_signals()
    started = time.monotonic()
    real = real_dhcp()
    results: dict[str, dict[str, Any]] = {}
    print("The lab: PCs, a home gateway, an ISP with a portal, a second NAT, an MSP", flush=True)
    try:
        with Lab(TWO_WANS) as lab:
            demo = Demo(System(lab, real_dhcp=real))
            problem = tell(demo.steps(), results)
            if problem:
                print_logs(lab)
            if args.keep:
                print(guide(lab, demo.addresses), flush=True)
                wait_for_ctrl_c()
    except GatewayError as exc:
        problem = f"the lab itself: {exc}"
    answer: dict[str, Any] = {
        "ok": not problem,
        "seconds": round(time.monotonic() - started, 1),
        "dhcp": "dnsmasq, udhcpc" if real else "gwmodule.sim.dhcp",
        "steps": results,
    }
    if problem:
        print(f"\nFAILED: {problem}")
        answer["problem"] = problem
    print(json.dumps(answer))
    return 1 if problem else 0


def print_logs(lab: Lab) -> None:
    for name, service in lab.services.items():
        print(f"\n{name} ({service.host}), last lines:\n{service.tail()}", flush=True)


def tell(
    steps: tuple[tuple[str, str, Callable[[], str]], ...], results: dict[str, dict[str, Any]]
) -> str:
    """Run the steps up to the first that fails; what went wrong, or nothing."""
    began = time.monotonic()
    for name, text, step in steps:
        start = time.monotonic()
        print(f"[{start - began:5.1f} s] {text}", flush=True)
        try:
            proof, problem = step(), ""
        except (LookupError, ValueError) as exc:
            # What a program answered is not what this story was written for.
            proof, problem = "", f"{name}: unexpected answer: {exc!r}"
        except GatewayError as exc:
            proof, problem = "", f"{name}: {exc}"
        results[name] = {"ok": not problem, "ms": round((time.monotonic() - start) * 1000)}
        if problem:
            return problem
        for line in proof.splitlines():
            print(f"          {line}", flush=True)
    return ""


def check(holds: bool, problem: str) -> None:
    if not holds:
        raise LabError(problem)


def printable(text: str) -> str:
    """Serial text without terminal control, a line each."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    return "\n".join(line for line in plain.replace("\r", "\n").split("\n") if line.strip())
