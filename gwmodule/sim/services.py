"""What runs in the hosts of the lab: DHCP, the MSP, the gateway's service, the simulated PCs.

Every program is a process of its own, started by its command line as a user would start it; what
they are asked, they are asked through the command lines that users have.
"""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gwmodule.sim.hosts import DIRECTORY, Lab, LabError, Service, python, wait_until
from gwmodule.sim.topology import BOX_LAN, DOMAIN, LEASES, MACS, MSP, ROUTER_LAN

LAN_TIMEOUT = 15.0
START_TIMEOUT = 20.0

MSP_STATE = DIRECTORY / "msp"
PASSWORD_FILE = MSP_STATE / "password"
MSP_PORT = 8444
MSP_NAME = "msp.example"
ENROLMENT = DIRECTORY / "gateway"
CONFIG = ENROLMENT / "lab.toml"
GATEWAY = "home-1"

USER = "admin"
PASSWORD = "P@ssw0rd-Lab"
LOGIN = ("--user", USER, "--password-file", str(PASSWORD_FILE))
UUIDS = {
    "pc1": "8f1b2c3d-0a1b-4c2d-9e3f-00005e005301",
    "pc2": "8f1b2c3d-0a1b-4c2d-9e3f-00005e005302",
    "pc3": "8f1b2c3d-0a1b-4c2d-9e3f-00005e005303",
}

# The lab has no time for the patience that a real line needs.
HURRY: dict[str, dict[str, object]] = {
    "backoff": {"first": 0.1, "cap": 1.0},
    "liveness": {"interval": 0.5, "timeout": 2.0},
    "probe": {"timeout": 1.0, "interval": 2.0},
    "devices": {"repeat": 1.0},
}

# udhcpc(8) and sim.dhcp tell by environment what they were given.
LEASE_SCRIPT = """#!/bin/sh -e
case "$1" in
  deconfig) ip -4 address flush dev "$interface" ;;
  bound|renew)
    ip address replace "$ip/$mask" dev "$interface"
    ip route replace default via "${router%% *}" dev "$interface"
    { echo "search $domain"; for server in $dns; do echo "nameserver $server"; done; } \\
      >/etc/resolv.conf ;;
esac
"""


def missing_lan_programs() -> str:
    """What is missing for a LAN with the real DHCP programs; empty if nothing is."""
    return ", ".join(name for name in ("dnsmasq", "udhcpc") if shutil.which(name) is None)


def start_dhcp_server(lab: Lab, *, real: bool = True) -> Service:
    """DHCP and DNS on br-lan of the gateway; the box of `standalone` has a reserved address."""
    if not real:
        argv = python(
            "gwmodule.sim.dhcp", "server", "br-lan", ROUTER_LAN, *LEASES, DOMAIN, "provisionserver",
            f"{MACS['box']}={BOX_LAN}",
        )  # fmt: skip
        return lab.start("gateway", argv, log="dhcp-server")
    argv = [
        "dnsmasq",
        "--no-daemon",  # Also keeps it from changing users, which a user namespace forbids.
        "--conf-file=/dev/null",
        "--no-hosts",
        "--no-resolv",
        "--no-ping",
        "--interface=br-lan",
        "--bind-interfaces",
        "--dhcp-authoritative",
        "--dhcp-leasefile=/run/dnsmasq.leases",
        f"--dhcp-range={LEASES[0]},{LEASES[1]},10m",
        f"--dhcp-host={MACS['box']},{BOX_LAN}",
        f"--domain={DOMAIN}",
        f"--local=/{DOMAIN}/",
        f"--host-record=provisionserver.{DOMAIN},provisionserver,{ROUTER_LAN}",
    ]
    return lab.start("gateway", argv, log="dhcp-server")


def start_dhcp_client(lab: Lab, host: str, *, real: bool = True) -> Service:
    script = DIRECTORY / "lease.sh"
    if not script.exists():
        script.write_text(LEASE_SCRIPT)
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    argv = (
        ["udhcpc", "-f", "-i", "eth0", "-s", str(script), "-t", "20", "-T", "1", "-A", "1",
         "-x", f"hostname:{host}"]
        if real
        else python("gwmodule.sim.dhcp", "client", "eth0", host, str(script))
    )  # fmt: skip
    return lab.start(host, argv, log=f"dhcp-{host}")


def wait_for_lease(lab: Lab, host: str) -> str:
    return wait_until(f"a lease for {host}", lambda: lab.address(host) or None, LAN_TIMEOUT)


@dataclass(slots=True)
class System:
    """All programs of one lab."""

    lab: Lab
    real_dhcp: bool = True
    # What runs gwmodule, when something must look over its shoulder.
    gateway_wrapper: tuple[str, ...] = ()
    # Of `gwmodule-msp serve`, beyond what every lab has.
    msp_options: tuple[str, ...] = ()

    def start_lan(self) -> dict[str, str]:
        """DHCP for every client of the topology; the address of each."""
        start_dhcp_server(self.lab, real=self.real_dhcp)
        hosts = self.lab.topology.dhcp_clients
        for host in hosts:
            start_dhcp_client(self.lab, host, real=self.real_dhcp)
        return {host: wait_for_lease(self.lab, host) for host in hosts}

    # The MSP and its technician

    def start_msp(self) -> None:
        MSP_STATE.mkdir(exist_ok=True)
        PASSWORD_FILE.write_text(PASSWORD + "\n")
        argv = python(
            "gwmodule.msp.cli", "serve", "--state", str(MSP_STATE),
            "--listen", f"0.0.0.0:{MSP_PORT}", "--name", MSP_NAME, *self.msp_options,
        )  # fmt: skip
        self.lab.start("msp", argv, log="msp")
        wait_until("the MSP answers", self._msp_answers, START_TIMEOUT)

    def restart_msp(self) -> None:
        """What an init system does after it was killed."""
        self.lab.restart("msp")
        wait_until("the MSP answers", self._msp_answers, START_TIMEOUT)

    def _msp_answers(self) -> bool:
        service = self.lab.services["msp"]
        if not service.alive:
            raise LabError(f"the MSP ended:\n{service.tail()}")
        return self.technician("gateways").returncode == 0

    def technician(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A technician's command, whatever its exit status."""
        return self.lab.run("msp", self.technician_command(*arguments), timeout=90, check=False)

    def technician_command(self, *arguments: str) -> list[str]:
        # Not the login that whoever runs the lab has saved.
        home = f"XDG_CONFIG_HOME={DIRECTORY}"
        return ["env", home, *python("gwmodule.msp.cli", *arguments)]

    def ask_msp(self, *arguments: str) -> Any:
        """What a technician's command answered; LabError when it failed."""
        argv = self.technician_command(*arguments, "--json")
        return json.loads(self.lab.run("msp", argv, timeout=90).stdout)

    def device(self, uuid: str) -> dict[str, Any] | None:
        """The registry's record, if there is one."""
        devices: list[dict[str, Any]] = self.ask_msp("devices")
        return next((d for d in devices if d["guid"] == uuid), None)

    def wait_for_device(self, pc: str, timeout: float = 20.0) -> dict[str, Any]:
        what = f"{pc} ({UUIDS[pc]}) in the registry"
        return wait_until(what, lambda: self.device(UUIDS[pc]), timeout)

    def wait_for_candidate(self, pc: str, timeout: float = 30.0) -> dict[str, Any]:
        def candidate() -> dict[str, Any] | None:
            found: list[dict[str, Any]] = self.ask_msp("candidates")
            return next((c for c in found if c["mac"] == MACS[pc]), None)

        return wait_until(f"{pc} ({MACS[pc]}) among the candidates", candidate, timeout)

    def identify(self, pc: str) -> Any:
        """Give the MSP the login of the device at this PC's MAC; it learns the UUID by it."""

        def answered() -> subprocess.CompletedProcess[str] | None:
            done = self.technician("identify", GATEWAY, MACS[pc], *LOGIN, "--json")
            # Its Hello may be known before a probe of the gateway has placed it and read its realm.
            early = any(code in done.stderr for code in ("NOT_FOUND", "REALM_UNKNOWN"))
            return None if early else done

        done = wait_until(f"{pc} as a probe found it", answered, 30)
        if done.returncode:
            raise LabError(f"identify {pc}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def call(self, pc: str, function: str, *arguments: str) -> Any:
        return self.ask_msp("call", UUIDS[pc], function, *arguments, *LOGIN)

    # The gateway's service

    def enrol(self, settings: Mapping[str, object] | None = None) -> None:
        """`gateway add`, then its configuration with what this lab's topology adds."""
        address = f"{MSP}:{MSP_PORT}"
        where = str(ENROLMENT)
        self.ask_msp(
            "gateway", "add", GATEWAY, "--out", where, "--directory", where, "--msp", address
        )
        tree = tomllib.loads((ENROLMENT / "gwmodule.toml").read_text())
        for layer in (HURRY, self.lab.topology.settings, settings or {}):
            tree = merged(tree, layer)
        CONFIG.write_text(toml(tree))

    def start_gateway(self) -> None:
        # As the systemd unit and the procd instance do: nothing is written beside the log.
        argv = ["env", "PYTHONDONTWRITEBYTECODE=1", *self.gateway_wrapper]
        argv += python("gwmodule", "run", "--config", str(CONFIG))
        self.lab.start(self.lab.topology.relay, argv, log="gwmodule")
        self.wait_for_link()

        def captures() -> bool:
            capture = self.status()["capture"]
            return bool(capture["connected"] or not capture["enabled"])

        # A lease that is given before is not seen.
        wait_until("the capture service", captures, START_TIMEOUT)

    def wait_for_link(self, timeout: float = START_TIMEOUT) -> dict[str, Any]:
        """The status once the link to the MSP is up."""

        def linked() -> dict[str, Any] | None:
            service = self.lab.services["gwmodule"]
            if not service.alive:
                raise LabError(f"gwmodule ended:\n{service.tail()}")
            result = self.gateway_command("status", "--json")
            status = json.loads(result.stdout) if result.returncode == 0 else {}
            return status if status.get("link", {}).get("connected") else None

        return wait_until("the link to the MSP", linked, timeout)

    def status(self) -> dict[str, Any]:
        result = self.gateway_command("status", "--json")
        if result.returncode != 0:
            raise LabError(f"gwmodule status: {result.stderr.strip()}")
        status: dict[str, Any] = json.loads(result.stdout)
        return status

    def gateway_devices(self) -> list[dict[str, Any]]:
        result = self.gateway_command("devices", "--json")
        devices: list[dict[str, Any]] = json.loads(result.stdout) if result.stdout else []
        return devices

    def gateway_command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = python("gwmodule", *arguments, "--config", str(CONFIG))
        return self.lab.run(self.lab.topology.relay, argv, check=False)

    # The PCs

    def start_device(self, pc: str, *options: str) -> Service:
        """The AMT firmware of one PC, at the address its lease gave it."""
        argv = python(
            "gwmodule.sim.cli", "device", "--bind", self.lab.address(pc), "--uuid", UUIDS[pc],
            "--password", PASSWORD, "--mac", MACS[pc], "--hostname", pc,
            "--control", control_path(pc), *options,
        )  # fmt: skip
        return self.lab.start(pc, argv, log=f"device-{pc}")

    def activate(self, pc: str) -> None:
        """What somebody at the PC does to provision it."""
        self.lab.run(pc, python("gwmodule.sim.cli", "activate", "--control", control_path(pc)))


def control_path(pc: str) -> str:
    return str(DIRECTORY / f"{pc}.control")


def merged(tree: Mapping[str, object], layer: Mapping[str, object]) -> dict[str, object]:
    """`tree` with the tables of `layer` laid over it."""
    result = dict(tree)
    for key, value in layer.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = {**below, **value}
        result[key] = value
    return result


def toml(tree: Mapping[str, object]) -> str:
    """Scalars, lists of strings and one level of tables: all that our configuration has."""
    lines = [f"{k} = {json.dumps(v)}" for k, v in tree.items() if not isinstance(v, Mapping)]
    for name, table in tree.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"
