"""A LAN with real DHCP: dnsmasq on the gateway's bridge and udhcpc on a PC, each in a namespace."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.lan.netns import Namespace

PC_MAC = bytes.fromhex("020000000110")
PC_NAME = "front-desk"
# As SMBIOS has it: 55e3ae13-bfd2-61bb-17a0-88aedd7037ea.
MACHINE_ID = "13aee355d2bfbb6117a088aedd7037ea"
GATEWAY = "192.168.1.1"
LEASE = 3600

_UDHCPC_SCRIPT = """#!/bin/sh
case "$1" in
bound|renew) ip address replace "$ip/${mask:-24}" dev "$interface" ;;
deconfig) ip address flush dev "$interface" ;;
esac
"""


@dataclass
class DhcpHome:
    """gateway: br-lan (dnsmasq) -- eth0: pc"""

    gateway: Namespace
    pc: Namespace
    directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, namespace: Namespace, *command: str) -> subprocess.Popen[bytes]:
        process = namespace.run(lambda: subprocess.Popen(command))
        self.processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
        self.processes.remove(process)
        process.send_signal(number)
        return process.wait(10)

    def boot_pc(self) -> subprocess.Popen[bytes]:
        """SIGUSR1 makes it renew, SIGUSR2 release."""
        script = self.directory / "udhcpc.sh"
        script.write_text(_UDHCPC_SCRIPT)
        script.chmod(0o755)
        options = ("-x", f"hostname:{PC_NAME}", "-x", f"0x61:00{MACHINE_ID}")
        return self.start(
            self.pc,
            "udhcpc",
            "-f",
            "-i",
            "eth0",
            "-s",
            str(script),
            "-t",
            "20",
            "-T",
            "1",
            *options,
        )


@contextmanager
def dhcp_home(directory: Path) -> Iterator[DhcpHome]:
    with ExitStack() as stack:
        home = DhcpHome(Namespace(), Namespace(), directory)
        stack.callback(home.gateway.close)
        stack.callback(home.pc.close)
        stack.callback(lambda: [home.stop(p, signal.SIGKILL) for p in tuple(home.processes)])
        home.gateway.ip("link add br-lan type bridge")
        home.gateway.ip(f"link add lan1 type veth peer name eth0 netns {home.pc.tid()}")
        home.gateway.ip("link set lan1 master br-lan up")
        home.gateway.ip(f"address add {GATEWAY}/24 dev br-lan")
        home.gateway.ip("link set br-lan up")
        home.pc.ip(f"link set eth0 address {PC_MAC.hex(':')} up")
        home.start(
            home.gateway,
            *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--no-ping"),
            *("--user=root", f"--dhcp-leasefile={directory / 'leases'}", "--pid-file"),
            *("--interface=br-lan", f"--dhcp-range=192.168.1.100,192.168.1.150,{LEASE}"),
        )
        yield home


def have_dhcp_programs() -> bool:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    folders = [Path(folder) for folder in path.split(":")]
    return all(any((f / name).exists() for f in folders) for name in ("dnsmasq", "udhcpc"))
