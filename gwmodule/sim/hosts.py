"""Every host of a topology as a network namespace, driven with `ip` and `nft`.

Each host is held by one sleeping process with a network and a mount namespace of its own; commands
are started in it with `nsenter`. In a host, `/run` is private, `/run/lab` is common to all (logs,
generated files) and `/etc/resolv.conf` is private, for the lease script to write.

Building one needs the surroundings that `sim.isolate` makes; with them the kernel removes all of
it when the first process ends, so `close` only has to serve labs that are built one after another.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from gwmodule.errors import GatewayError
from gwmodule.sim import isolate
from gwmodule.sim.topology import MACS, Host, Topology

DIRECTORY = Path("/run/lab")
HOSTS_FILE = DIRECTORY / "hosts.json"

NEEDED = ("ip", "nft", "nsenter", "unshare")

# `$1` is the directory that becomes the host's /run. Where /etc/resolv.conf points into /run it
# becomes private with it; else a private file is laid over it.
HOLD = """
mkdir -p "$1/lab" && mount --bind /run/lab "$1/lab" && mount --rbind "$1" /run || exit
resolv=$(readlink -m /etc/resolv.conf)
case "$resolv" in
  /run/*) mkdir -p "${resolv%/*}" && : >"$resolv" ;;
  *) : >/run/resolv.conf && mount --bind /run/resolv.conf "$resolv" ;;
esac || exit
echo held
exec sleep infinity
"""

# Forwarding replies may leave by another interface than the main table says (policy routing).
SYSCTLS = {"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0"}

CUT_NFT = """
table ip cut {
  chain forward { type filter hook forward priority -300; policy drop; }
}
"""

T = TypeVar("T")


class LabError(GatewayError):
    """A part of the lab did not do what it must; the message says which and shows its output."""


@dataclass(slots=True)
class Service:
    """A process in a host, started again with the same command line and log."""

    host: str
    argv: list[str]
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = 5.0) -> int:
        """SIGTERM, then SIGKILL for one that does not end in time; return its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def tail(self, lines: int = 15) -> str:
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in text[-lines:])


class Lab:
    """The hosts of one topology, from `with` to the end of the block."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.services: dict[str, Service] = {}
        self._holders: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        missing = [name for name in NEEDED if shutil.which(name) is None]
        if missing:
            raise LabError(f"not installed: {', '.join(missing)} (iproute2, nftables, util-linux)")
        if not isolate.isolated():
            raise LabError("a lab is only built inside: python -m gwmodule.sim.isolate -- COMMAND")
        if DIRECTORY.exists():
            raise LabError(f"another lab is up: {DIRECTORY} exists")
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all that runs in the hosts; their namespaces go with the last process."""
        for host in self._holders:
            for pid in self.processes(host):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for holder in self._holders.values():
            holder.kill()
            holder.communicate()
        for service in self.services.values():
            service.process.wait()
        self._holders.clear()
        self.services.clear()
        shutil.rmtree(DIRECTORY, ignore_errors=True)

    # Commands in hosts

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        stdin: str = "",
        timeout: float = 30.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; LabError with its output if it fails and `check` is set."""
        try:
            result = subprocess.run(
                self.command(host, argv),
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as exc:
            raise LabError(f"{host}: {' '.join(argv)}: no end within {timeout} s") from exc
        if check and result.returncode != 0:
            output = (result.stderr or result.stdout).strip()
            raise LabError(f"{host}: {' '.join(argv)}: exit {result.returncode}: {output}")
        return result

    def start(self, host: str, argv: Sequence[str], log: str) -> Service:
        """Start in the background; output goes to the log of that name, which is also the key."""
        path = DIRECTORY / "logs" / f"{log}.log"
        with path.open("ab") as output:
            process = subprocess.Popen(
                self.command(host, argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us; what we started ends in order, or with us.
                start_new_session=True,
            )
        service = Service(host, list(argv), path, process)
        self.services[log] = service
        return service

    def restart(self, log: str) -> Service:
        service = self.services[log]
        service.kill()
        return self.start(service.host, service.argv, log)

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in the host."""
        return [*_nsenter(self._holders[host].pid), *argv]

    def processes(self, host: str) -> dict[int, str]:
        """Everything that runs in the host: process id and command line."""
        holder = self._holders[host].pid
        namespace = os.readlink(f"/proc/{holder}/ns/net")
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            # Processes end while we look, and those of other users hide their namespace.
            with contextlib.suppress(OSError):
                if os.readlink(entry / "ns" / "net") == namespace and int(entry.name) != holder:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    found[int(entry.name)] = b" ".join(words).decode(errors="replace").strip()
        return found

    def address(self, host: str, interface: str = "eth0") -> str:
        """The IPv4 address a host has now, or an empty string."""
        links = json.loads(
            self.run(host, ["ip", "-json", "-4", "address", "show", interface]).stdout
        )
        return next((str(a["local"]) for link in links for a in link.get("addr_info", ())), "")

    # The ISP

    def portal_login(self, address: str) -> None:
        """What happens when a subscriber types name and password into the portal's page."""
        self.run("isp", ["nft", f"add element ip portal admitted {{ {address} }}"])

    def portal_packets(self, counter: str = "refused") -> int:
        """How many packets the portal `refused` or `passed` so far."""
        listing = self.run("isp", ["nft", "-j", "list", "counter", "ip", "portal", counter]).stdout
        return next(
            int(item["counter"]["packets"])
            for item in json.loads(listing)["nftables"]
            if "counter" in item
        )

    @contextlib.contextmanager
    def wan_cut(self, host: str = "isp") -> Iterator[None]:
        """Nothing is forwarded by that host inside the block; nobody is told."""
        self.run(host, ["nft", "-f", "-"], stdin=CUT_NFT)
        try:
            yield
        finally:
            self.run(host, ["nft", "delete", "table", "ip", "cut"])

    # Construction

    def _build(self) -> None:
        (DIRECTORY / "logs").mkdir(parents=True)
        for name in self.topology.hosts:
            self._holders[name] = _hold(DIRECTORY / "hosts" / name)
        for name, holder in self._holders.items():
            if holder.stdout is None or holder.stdout.readline() != "held\n":
                _, error = holder.communicate()
                raise LabError(f"host {name}: {error.strip()}")
        HOSTS_FILE.write_text(json.dumps({n: h.pid for n, h in self._holders.items()}))
        self._ip(["ip", "-batch", "-"], self._cables())
        for name, host in self.topology.hosts.items():
            self._configure(name, host)

    def _cables(self) -> Iterator[str]:
        for cable in self.topology.cables:
            (left, left_interface), (right, right_interface) = cable.left, cable.right
            mac = f"address {MACS[left]}" if left in MACS else ""
            yield (
                f"link add {left_interface} netns {self._holders[left].pid} {mac} type veth"
                f" peer name {right_interface} netns {self._holders[right].pid}"
            )

    def _configure(self, name: str, host: Host) -> None:
        lines = ["link set lo up"]
        if host.bridge_ports:
            lines.append("link add br-lan type bridge forward_delay 0 mcast_snooping 0")
            lines += [f"link set {port} master br-lan" for port in host.bridge_ports]
        interfaces = {
            interface
            for cable in self.topology.cables
            for owner, interface in (cable.left, cable.right)
            if owner == name
        }
        lines += [f"link set {interface} up" for interface in sorted(interfaces)]
        lines += ["link set br-lan up"] if host.bridge_ports else []
        lines += [f"address add {a} dev {interface}" for interface, a in host.addresses.items()]
        lines += [f"route add {route}" for route in host.routes]
        lines += [f"rule add {rule}" for rule in host.rules]
        self._ip(self.command(name, ["ip", "-batch", "-"]), lines)
        sysctls = {**SYSCTLS, "net/ipv4/ip_forward": str(int(host.forwards))}
        script = ";".join(f"echo {value} >/proc/sys/{key}" for key, value in sysctls.items())
        self.run(name, ["sh", "-ec", script])
        if host.nft:
            self.run(name, ["nft", "-f", "-"], stdin=host.nft)

    def _ip(self, argv: list[str], lines: Iterator[str] | list[str]) -> None:
        result = subprocess.run(argv, input="\n".join(lines), capture_output=True, text=True)
        if result.returncode != 0:
            raise LabError(f"ip: {result.stderr.strip()}")


def wait_until(what: str, probe: Callable[[], T | None], timeout: float) -> T:
    """The first value of `probe` that is neither None nor False; LabError after `timeout`."""
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value is not None and value is not False:
            return value
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:g} s")
        time.sleep(0.05)


def python(module: str, *arguments: str) -> list[str]:
    """The command line of one of our own programs, whatever PATH says."""
    return [sys.executable, "-m", module, *arguments]


def enter_command(host: str, argv: Sequence[str]) -> list[str]:
    """As `Lab.command`, for another process than the one that built the lab."""
    try:
        hosts: dict[str, int] = json.loads(HOSTS_FILE.read_text())
    except OSError as exc:
        raise LabError("the lab is not up yet, or just ended") from exc
    if host not in hosts:
        raise LabError(f"no host {host} in this lab; there are: {', '.join(hosts)}")
    return [*_nsenter(hosts[host]), *argv]


def _hold(directory: Path) -> subprocess.Popen[str]:
    directory.mkdir(parents=True)
    return subprocess.Popen(
        ["unshare", "--mount", "--net", "sh", "-c", HOLD, "hold", str(directory)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _nsenter(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", "--net", "--mount", "--"]
