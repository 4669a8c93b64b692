"""What runs in the hosts of the lab: DHCP, the MSP, the gateway's service, the simulated PCs.

Every program is a process of its own, started by its command line as a user would start it; what
they are asked, they are asked through the command lines that users have.
"""

from __future__ import annotations

import shutil
import stat

from gwmodule.sim.lab import DIRECTORY, Lab, Service, python, wait_until
from gwmodule.sim.topology import BOX_LAN, DOMAIN, LEASES, MACS, MSP, ROUTER_LAN

LAN_TIMEOUT = 15.0
START_TIMEOUT = 20.0

MSP_STATE = DIRECTORY / "msp"
MSP_API = MSP_STATE / "api.sock"
MSP_ADDRESS = f"{MSP}:8444"
GATEWAY_FILES = DIRECTORY / "gateway"

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


def lan_programs() -> str:
    """What is missing for a LAN with the real DHCP programs; empty if nothing is."""
    return ", ".join(name for name in ("dnsmasq", "udhcpc") if shutil.which(name) is None)


def start_dhcp_server(lab: Lab, *, real: bool = True) -> Service:
    """DHCP and DNS on br-lan of the gateway; the box of `standalone` has a reserved address."""
    if not real:
        argv = python(
            "sim.dhcp", "server", "br-lan", ROUTER_LAN, *LEASES, DOMAIN, "provisionserver",
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
        "--log-dhcp",
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
        else python("sim.dhcp", "client", "eth0", host, str(script))
    )  # fmt: skip
    return lab.start(host, argv, log=f"dhcp-{host}")


def wait_for_lease(lab: Lab, host: str) -> str:
    return wait_until(f"a lease for {host}", lambda: lab.address(host) or None, LAN_TIMEOUT)
