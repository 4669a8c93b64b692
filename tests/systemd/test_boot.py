"""The Debian packages on a real systemd, which is the gateway of the laboratory's home.

systemd-nspawn boots the tree that `make systemd-root` made, in the network of the lab's gateway:
DHCP, PCs and MSP around it are the lab's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gwmodule.sim.hosts import Lab, wait_until
from gwmodule.sim.isolate import isolated
from gwmodule.sim.services import CONFIG, ENROLMENT, System
from gwmodule.sim.topology import ROUTER_LAN, TWO_WANS

TREE = Path(__file__).parents[2]
ROOT = TREE / "build" / "systemd-root"
TOOL = Path(os.environ.get("SYSTEMD_LAB", TREE.parent / "shared" / "tools" / "systemd-lab.sh"))
KEYS = ("gateway.key", "gateway.crt", "ca.crt")
SERVICES = ("gwmodule-relay", "gwmodule-capture")
MAX_EXPOSURE = {"gwmodule-relay": 1.3, "gwmodule-capture": 1.8}
# WatchdogSec= of the units, for a test that does not want to wait for half a minute.
# The machine that runs it may be busy: a feeding every second and a half.
WATCHDOG = 5
INSTALL = "dpkg --install /var/tmp/gwmodule*.deb"

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not isolated(), reason="make test-systemd runs these"),
    # What CI lacks is a failure there, and a reason to skip elsewhere.
    pytest.mark.skipif(
        not (TOOL.exists() and ROOT.exists()) and "CI" not in os.environ,
        reason=f"needs {TOOL} (or SYSTEMD_LAB) and {ROOT} (make systemd-root)",
    ),
]


class Machine:
    """The container, driven through the lab's script."""

    def __init__(self, root: Path, network: int, folder: Path) -> None:
        self.root = root
        self._environment = {
            **os.environ,
            "ROOTFS": str(root),
            "NAME": "gwmodule-test",
            "NETARGS": f"--network-namespace-path=/proc/{network}/ns/net",
            "XDG_RUNTIME_DIR": str(folder),
        }

    def tool(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(TOOL), *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.tool("run", *arguments)

    def run(self, *arguments: str) -> str:
        done = self.ask(*arguments)
        if done.returncode:
            log = self.ask("journalctl", "--no-pager", "--lines=40").stdout
            raise AssertionError(f"{arguments}: {done.stdout}{done.stderr}\n{log}")
        return done.stdout

    def show(self, service: str, name: str) -> str:
        return self.run("systemctl", "show", "--value", f"--property={name}", service).strip()

    def status(self) -> dict[str, Any]:
        done = self.ask("gwmodule", "status", "--json")
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    def journal(self, service: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={service}")

    def linked(self) -> bool:
        status = self.status()
        return bool(status and status["link"]["connected"] and status["capture"]["connected"])


def writable(folder: Path) -> Path:
    """The tree, with what this run changes in memory; the mounts go with the test's namespace."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
    for name in ("upper", "work", "root"):
        (folder / name).mkdir()
    options = f"lowerdir={ROOT},upperdir={folder}/upper,workdir={folder}/work"
    command = ["mount", "-t", "overlay", "-o", options, "overlay", str(folder / "root")]
    subprocess.run(command, check=True)
    return folder / "root"


@pytest.fixture(scope="module")
def home() -> Iterator[tuple[System, Machine]]:
    with Lab(TWO_WANS) as lab, tempfile.TemporaryDirectory(prefix="gwmodule-systemd-") as name:
        root = writable(Path(name))
        holder = lab._holders["gateway"].pid
        machine = Machine(root, holder, Path(name))
        up = machine.tool("up")
        try:
            assert "state=running" in up.stdout, up.stdout + up.stderr
            system = System(lab)
            system.start_msp()
            system.enrol()
            yield system, machine
        finally:
            # The lab ends whatever runs in its gateway's network, the container's first process
            # too; `down` would wait for a process that nobody in this namespace reaps.
            for mount in (root, root.parent):
                subprocess.run(["umount", "--lazy", str(mount)], check=True)


@pytest.fixture
def machine(home: tuple[System, Machine]) -> Machine:
    return home[1]


# The tests below are one story, in this order.


def test_the_packages_install_and_start_nothing_before_there_is_a_configuration(
    machine: Machine,
) -> None:
    for package in sorted((TREE / "dist" / "deb").glob("*.deb")):
        shutil.copy(package, machine.root / "var/tmp")
    machine.run("sh", "-c", INSTALL)
    assert machine.run("gwmodule", "--version").startswith("gwmodule ")
    for service in SERVICES:
        assert machine.show(service, "ActiveState") == "inactive"
        assert machine.show(service, "UnitFileState") == "enabled"
    assert machine.run("systemctl", "is-system-running").strip() == "running"
    # Compiled at installation: at run time nothing is written.
    assert list(machine.root.glob("usr/lib/gwmodule/gwmodule/__pycache__/cli.*.pyc"))


def test_both_services_say_that_they_are_ready(home: tuple[System, Machine]) -> None:
    system, machine = home
    etc = machine.root / "etc" / "gwmodule"
    for name in KEYS:
        shutil.copy(ENROLMENT / name, etc)
    text = CONFIG.read_text().replace(f"{ENROLMENT}/", "/etc/gwmodule/")
    (etc / "gwmodule.toml").write_text(text)
    for service in SERVICES:
        folder = machine.root / "etc/systemd/system" / f"{service}.service.d"
        folder.mkdir(parents=True)
        (folder / "test.conf").write_text(f"[Service]\nWatchdogSec={WATCHDOG}\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemd-tmpfiles", "--create", "gwmodule.conf")
    machine.run("systemctl", "start", "gwmodule.target", *SERVICES)
    # `start` waits for READY=1, and STATUS= came with it.
    for service, status in zip(SERVICES, ("running", "capturing"), strict=True):
        assert machine.show(service, "ActiveState") == "active"
        assert machine.show(service, "StatusText").startswith(status)
    wait_until("link and capture", machine.linked, 30)
    assert system.technician("gateways").stdout.count(" up ") == 1


def test_the_key_is_roots_and_the_processes_have_no_capability(machine: Machine) -> None:
    owners = machine.run("stat", "-c", "%U %a", "/etc/gwmodule/gateway.key")
    assert owners == "root 600\n"
    users = {"gwmodule-relay": "gwmodule", "gwmodule-capture": "gwmodule-capture"}
    for service, user in users.items():
        pid = machine.show(service, "MainPID")
        assert machine.run("ps", "-o", "user:32=", "-p", pid).strip() == user
        status = machine.run("cat", f"/proc/{pid}/status")
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        assert machine.run("cat", f"/proc/{pid}/oom_score_adj") == "500\n"
    refused = machine.ask(
        "setpriv", "--reuid=gwmodule-capture", "--regid=gwmodule", "--clear-groups",
        "cat", "/etc/gwmodule/gateway.key",
    )  # fmt: skip
    assert refused.returncode != 0


@pytest.mark.parametrize("service", SERVICES)
def test_the_running_exposure_is_low(machine: Machine, service: str) -> None:
    text = machine.ask("systemd-analyze", "security", "--no-pager", service).stdout
    found = re.search(r"exposure level for \S+: ([0-9.]+)", text)
    assert found, text
    print(f"{service}: exposure {found[1]}")
    assert float(found[1]) <= MAX_EXPOSURE[service]


def test_a_lease_a_hello_and_a_call_go_all_the_way(home: tuple[System, Machine]) -> None:
    system, machine = home
    addresses = system.start_lan()

    def leases() -> bool:
        seen = machine.status()["capture"]
        return bool(seen["leases"] >= len(addresses))

    # Seen by a packet socket under the unit's hardening.
    wait_until("the leases", leases, 15)
    assert machine.status()["capture"]["interfaces"]["br-lan"]["state"] == "up"
    system.start_device("pc1", "--state", "setup", "--hello", ROUTER_LAN)
    record = system.wait_for_device("pc1")
    assert record["address"] == addresses["pc1"]
    system.activate("pc1")
    # Its realm comes with the next probe.
    system.identify("pc1")
    assert system.call("pc1", "power.get")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_hangs_is_started_again(machine: Machine, service: str) -> None:
    before = machine.show(service, "MainPID")
    machine.run("kill", "-STOP", before)
    _restarted(machine, service, before, WATCHDOG + 15)
    assert "Watchdog timeout" in machine.journal(service)


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_service_is_started_again(machine: Machine, service: str) -> None:
    before = machine.show(service, "MainPID")
    machine.run("kill", "-KILL", before)
    _restarted(machine, service, before, 15)
    wait_until("link and capture", machine.linked, 30)


def _restarted(machine: Machine, service: str, before: str, timeout: float) -> None:
    def again() -> bool:
        states = machine.show(service, "ActiveState"), machine.show(service, "MainPID")
        return states[0] == "active" and states[1] not in ("0", before)

    wait_until(f"another {service}", again, timeout)


def test_a_reload_takes_a_good_configuration_and_refuses_a_bad_one(machine: Machine) -> None:
    pid = machine.show("gwmodule-relay", "MainPID")
    config = machine.root / "etc/gwmodule/gwmodule.toml"
    good = config.read_text()
    config.write_text(good.replace("[lan]", "[lan]\nhello_prot = 1"))
    assert machine.ask("systemctl", "reload", "gwmodule-relay").returncode != 0
    assert "lan.hello_prot" in machine.journal("gwmodule-relay")
    config.write_text(good)
    assert machine.linked()
    config.write_text(good.replace("[lan]", "[lan]\nhello_port = 9972"))
    machine.run("systemctl", "reload", "gwmodule-relay")

    def moved() -> bool:
        listening = machine.status().get("listener", {}).get("addresses", [])
        return f"{ROUTER_LAN}:9972" in listening

    wait_until("the other port", moved, 15)
    wait_until("link and capture", machine.linked, 30)
    assert machine.show("gwmodule-relay", "MainPID") == pid, machine.journal("gwmodule-relay")


def test_the_certificate_is_read_anew_for_every_link_by_the_same_process(machine: Machine) -> None:
    pid = machine.show("gwmodule-relay", "MainPID")
    certificate = machine.root / "etc/gwmodule/gateway.crt"
    good = certificate.read_bytes()
    certificate.write_bytes(b"no certificate")
    machine.run("gwmodule", "reconnect")
    wait_until("no link", lambda: not machine.status()["link"]["connected"], 15)
    certificate.write_bytes(good)
    wait_until("link and capture", machine.linked, 30)
    assert machine.show("gwmodule-relay", "MainPID") == pid


def test_a_hello_waits_in_the_socket_unit_while_the_relay_is_away(machine: Machine) -> None:
    config = machine.root / "etc/gwmodule/gwmodule.toml"
    config.write_text(config.read_text().replace("hello_port = 9972\n", ""))
    machine.run("systemctl", "stop", "gwmodule-relay")
    machine.run("systemctl", "start", "gwmodule.socket")
    # The first caller starts the relay, and is served by it.
    script = (
        "import socket; s = socket.create_connection(('127.0.0.1', 9971), 20);"
        "s.sendall(b'x' * 40); s.shutdown(1); s.recv(1)"
    )
    machine.ask("python3", "-c", script)
    wait_until("link and capture", machine.linked, 30)
    listener = machine.status()["listener"]
    assert listener["addresses"] == [f"{ROUTER_LAN}:9971"]
    assert listener["counters"]["not_lan"] == 1
    machine.run("systemctl", "stop", "gwmodule.socket")


def test_an_upgrade_restarts_and_a_purge_leaves_only_what_is_not_ours(machine: Machine) -> None:
    before = machine.show("gwmodule-relay", "MainPID")
    machine.run("sh", "-c", INSTALL)
    _restarted(machine, "gwmodule-relay", before, 15)
    stamps = machine.root / "var/lib/systemd/timers"
    assert list(stamps.glob("*gwmodule*"))
    machine.run("dpkg", "--purge", "gwmodule-capture", "gwmodule")
    assert not list(stamps.glob("*gwmodule*"))
    assert machine.ask("systemctl", "is-active", *SERVICES).stdout.split() == ["inactive"] * 2
    left = [str(p.relative_to(machine.root)) for p in machine.root.glob("usr/lib/gwmodule*")]
    assert left == []
    assert sorted(p.name for p in (machine.root / "etc/gwmodule").iterdir()) == sorted(
        [*KEYS, "gwmodule.toml"]
    )
