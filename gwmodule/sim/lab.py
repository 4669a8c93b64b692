"""`gwmodule-sim lab` and `gwmodule-sim enter`: the whole system, left running to be tried out.

The first process writes its id into the user's runtime directory and becomes `unshare`; so that id
is a handle on the lab's namespaces until the lab ends. `enter` joins those first and then, with the
process ids that only mean something in there, one host's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gwmodule.sim import isolate
from gwmodule.sim.hosts import Lab, LabError, enter_command, python
from gwmodule.sim.services import CONFIG, GATEWAY, LOGIN, UUIDS, System, missing_lan_programs
from gwmodule.sim.topology import MACS, PCS, SUBSCRIBER, TOPOLOGIES, TWO_WANS

# What each PC of the lab is; pc3 was provisioned long ago.
DEVICES = {
    "pc1": ("--state", "setup", "--os", "dead", "--login", "both"),
    "pc2": ("--state", "setup", "--login", "both"),
    "pc3": ("--state", "managed", "--login", "both"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topology",
        choices=sorted(TOPOLOGIES),
        default=TWO_WANS.name,
        help=f"default: {TWO_WANS.name}",
    )


def main(args: argparse.Namespace) -> int:
    if not isolate.isolated():
        execute(["lab", "--topology", args.topology])
    stop_on_signals()
    with Lab(TOPOLOGIES[args.topology]) as lab:
        system = System(lab, real_dhcp=real_dhcp())
        system.start_msp()
        system.enrol()
        if lab.topology.relay == "gateway":
            system.start_gateway()
        addresses = system.start_lan()
        if lab.topology.relay != "gateway":
            system.start_gateway()
        for pc in PCS:
            hello = hello_target(pc, lab.topology.relay_address)
            system.start_device(pc, *DEVICES[pc], *(("--hello", hello) if hello else ()))
        print(guide(lab, addresses), flush=True)
        wait_for_ctrl_c()
    return 0


def hello_target(pc: str, relay_address: str) -> str:
    """pc1 was told the gateway's address, pc2 looks for it by name, pc3 sends no Hello."""
    return {"pc1": relay_address, "pc2": "provisionserver"}.get(pc, "")


def guide(lab: Lab, addresses: dict[str, str]) -> str:
    uuid, login = UUIDS["pc1"], " ".join(LOGIN)
    pcs = "\n".join(f"    {pc}  {addresses[pc]:<16} {UUIDS[pc]}" for pc in PCS)
    return f"""
The lab {lab.topology.name} runs until Ctrl-C. Its hosts: {", ".join(lab.topology.hosts)}.
{pcs}

In another terminal:
    gwmodule-sim enter {lab.topology.relay}                     a shell there
    gwmodule-sim enter {lab.topology.relay} gwmodule status --config {CONFIG}
    gwmodule-sim enter msp gwmodule-msp devices
    gwmodule-sim enter msp gwmodule-msp candidates
    gwmodule-sim enter pc1 gwmodule-sim activate --control /run/lab/pc1.control
    gwmodule-sim enter msp gwmodule-msp identify {GATEWAY} {MACS["pc1"]} {login}
    gwmodule-sim enter msp gwmodule-msp call {uuid} power.get {login}
    gwmodule-sim enter msp gwmodule-msp sol {uuid} {login}
    gwmodule-sim enter isp nft add element ip portal admitted "{{ {SUBSCRIBER} }}"
Logs are in /run/lab/logs of every host."""


def enter(host: str, command: Sequence[str]) -> int:
    """Run a command, or a shell, in one host of the running lab; replaces this process."""
    argv = list(command[1:] if command[:1] == ["--"] else command)
    if not isolate.isolated():
        return _join_lab(["enter", host, *argv])
    if not argv:
        argv = ["bash", "--norc"] if shutil.which("bash") else ["sh"]
        os.environ["PS1"] = f"{host}# "
    # Our own commands first, as the guide of the lab writes them.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    _exec(enter_command(host, argv))


def execute(arguments: list[str]) -> NoReturn:
    """Start this command again in namespaces of its own, and let `enter` find them."""
    path = state_file()
    try:
        path.unlink(missing_ok=True)
        # Exclusively: in a shared directory somebody else's file or link must not be written to.
        with path.open("x") as file:
            file.write(str(os.getpid()))
    except OSError as exc:
        raise LabError(f"{path}: {exc.strerror}") from exc
    isolate.execute(python("gwmodule.sim.cli", *arguments))


def state_file() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    directory = Path(runtime if runtime and Path(runtime).is_dir() else tempfile.gettempdir())
    return directory / f"gwmodule-lab-{os.getuid()}.pid"


def real_dhcp() -> bool:
    """Whether dnsmasq and udhcpc are installed; says so where they are not."""
    missing = missing_lan_programs()
    if missing:
        print(f"not installed: {missing}; DHCP and DNS are gwmodule.sim.dhcp's", flush=True)
    return not missing


def stop_on_signals() -> None:
    """SIGINT and SIGTERM raise KeyboardInterrupt.

    Both have to be asked for: the first process of a PID namespace ignores SIGTERM, and what a
    shell without job control starts with `&`, as scripts and CI do, begins with SIGINT ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def wait_for_ctrl_c() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("stopping", flush=True)


def _join_lab(arguments: list[str]) -> NoReturn:
    path = state_file()
    try:
        if path.stat().st_uid != os.getuid():
            raise LabError(f"{path} is somebody else's")
        pid = int(path.read_text())
        inside = os.readlink(f"/proc/{pid}/ns/pid_for_children")
    except (OSError, ValueError) as exc:
        raise LabError("no lab is running; start one with: make lab") from exc
    if inside == os.readlink("/proc/self/ns/pid_for_children"):
        raise LabError("no lab is running; start one with: make lab")
    namespaces = ["--mount", "--net", f"--pid=/proc/{pid}/ns/pid_for_children"]
    if os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user"):
        namespaces += ["--user", "--preserve-credentials"]
    os.environ[isolate.MARK] = "1"
    os.environ["PATH"] = isolate.search_path()
    _exec(
        ["nsenter", f"--target={pid}", *namespaces, "--", *python("gwmodule.sim.cli", *arguments)]
    )


def _exec(argv: list[str]) -> NoReturn:
    sys.stdout.flush()
    os.execvp(argv[0], argv)  # noqa: S606
