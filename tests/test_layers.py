"""The architecture: imports point down, never up, and the two sides do not know each other.

The table is docs/architecture.md in code. A module that no row names fails the test: somebody has
to say where it belongs.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Lowest first. The longest matching name decides.
LAYERS: dict[str, tuple[str, ...]] = {
    "base": (
        "gwmodule",
        "gwmodule.errors",
        "gwmodule.config",
        "gwmodule.files",
        "gwmodule.ports",
        "gwmodule.uci",
    ),
    "protocols": (
        "gwmodule.wire",
        "gwmodule.amt",
        "gwmodule.capture",
        "gwmodule.lan",
        "gwmodule.relay",
        "gwmodule.uplink",
        "gwmodule.sim",
        "gwmodule.msp",
        "gwmodule.provisioning",
        "gwmodule.amt.digest",
        "gwmodule.amt.functions",
        "gwmodule.amt.hold",
        "gwmodule.amt.interceptor",
        "gwmodule.amt.redirection",
        "gwmodule.amt.sol",
        "gwmodule.amt.wsman",
        "gwmodule.capture.bpf",
        "gwmodule.capture.datagrams",
        "gwmodule.capture.dhcp",
        "gwmodule.capture.hello",
        "gwmodule.capture.observer",
        "gwmodule.capture.packet",
        "gwmodule.capture.pcap",
        "gwmodule.capture.rmcp",
        "gwmodule.devices",
        "gwmodule.flood",
        "gwmodule.msp.console_protocol",
        "gwmodule.lan.leases",
        "gwmodule.lan.model",
        "gwmodule.relay.policy",
        "gwmodule.uplink.backoff",
        "gwmodule.uplink.pacing",
    ),
    "adapters": (
        "gwmodule.amt.client",
        "gwmodule.amt.connection",
        "gwmodule.amt.eoi",
        "gwmodule.amt.presence",
        "gwmodule.capture.dissect",
        "gwmodule.capture.sniffer",
        "gwmodule.lan.facts",
        "gwmodule.lan.netlink",
        "gwmodule.notify",
        "gwmodule.privileges",
        "gwmodule.provisioning.client",
        "gwmodule.provisioning.identity",
        "gwmodule.provisioning.settings",
        "gwmodule.telemetry",
        "gwmodule.uplink.connect",
        "gwmodule.uplink.link",
        "gwmodule.uplink.tls",
    ),
    "roles": (
        "gwmodule.capture.service",
        "gwmodule.control",
        "gwmodule.explain",
        "gwmodule.msp.api",
        "gwmodule.msp.acceptor",
        "gwmodule.msp.accounts",
        "gwmodule.msp.client",
        "gwmodule.msp.console",
        "gwmodule.msp.consoles",
        "gwmodule.msp.database",
        "gwmodule.msp.enrolment",
        "gwmodule.msp.enrolment_site",
        "gwmodule.msp.enrolment_tokens",
        "gwmodule.msp.forward",
        "gwmodule.msp.http_port",
        "gwmodule.msp.journal",
        "gwmodule.msp.labels",
        "gwmodule.msp.lines",
        "gwmodule.msp.listener",
        "gwmodule.msp.migrations",
        "gwmodule.msp.observations",
        "gwmodule.msp.pki",
        "gwmodule.msp.postgresql",
        "gwmodule.msp.records",
        "gwmodule.msp.registry",
        "gwmodule.msp.seam",
        "gwmodule.msp.secured",
        "gwmodule.msp.subprotocol",
        "gwmodule.msp.session",
        "gwmodule.msp.sol",
        "gwmodule.msp.sol_log",
        "gwmodule.msp.places",
        "gwmodule.msp.strangers",
        "gwmodule.msp.stream",
        "gwmodule.msp.tables",
        "gwmodule.msp.terminal",
        "gwmodule.msp.tls",
        "gwmodule.msp.vault",
        "gwmodule.msp.viewers",
        "gwmodule.msp.traffic",
        "gwmodule.msp.webrelay",
        "gwmodule.relay.calls",
        "gwmodule.relay.capture_client",
        "gwmodule.relay.dial",
        "gwmodule.relay.leases",
        "gwmodule.relay.listener",
        "gwmodule.relay.probe",
        "gwmodule.relay.streams",
        "gwmodule.sim.connections",
        "gwmodule.sim.control",
        "gwmodule.sim.device",
        "gwmodule.sim.resolver",
        "gwmodule.sim.tls",
        "gwmodule.uplink.dialer",
    ),
    "compositions": (
        "gwmodule.gateway",
        "gwmodule.msp.server",
        "gwmodule.process",
        "gwmodule.provisioning.provision",
        "gwmodule.sim.demo",
        "gwmodule.sim.dhcp",
        "gwmodule.sim.hosts",
        "gwmodule.sim.isolate",
        "gwmodule.sim.lab",
        "gwmodule.sim.services",
        "gwmodule.sim.topology",
        "gwmodule.supervisor",
    ),
    "commands": (
        "gwmodule.__main__",
        "gwmodule.cli",
        "gwmodule.msp.cli",
        "gwmodule.msp.commands",
        "gwmodule.provisioning.commands",
        "gwmodule.sim.cli",
    ),
}
RANK = {name: rank for rank, (_, names) in enumerate(LAYERS.items()) for name in names}
# Packages whose modules belong to the layer of the package unless they have a row of their own.
OPEN_PACKAGES = (
    "gwmodule.msp.api",
    "gwmodule.wire",
    "gwmodule.amt.functions",
    "gwmodule.msp.commands",
    "gwmodule.sim",
)
PROTOCOLS = list(LAYERS).index("protocols")

# Below the sans-I/O line: no sockets, no tasks, no clocks, no logging.
FORBIDDEN_BELOW = {"asyncio", "logging", "select", "selectors", "signal", "socket", "ssl", "time"}

GATEWAY_SIDE = (
    "gwmodule.capture.service",
    "gwmodule.capture.sniffer",
    "gwmodule.control",
    "gwmodule.devices",
    "gwmodule.explain",
    "gwmodule.gateway",
    "gwmodule.lan",
    "gwmodule.process",
    "gwmodule.provisioning",
    "gwmodule.relay",
    "gwmodule.supervisor",
    "gwmodule.uplink.connect",
    "gwmodule.uplink.dialer",
)
MSP_SIDE = ("gwmodule.msp",)


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / "gwmodule").rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Every module imported anywhere in the file, in functions too; type-only imports as well."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {
                f"{node.module}.{alias.name}"
                for alias in node.names
                if f"{node.module}.{alias.name}" in MODULES
            }
    return found


def rank(name: str) -> int:
    if name in RANK:
        return RANK[name]
    for package in OPEN_PACKAGES:
        if name.startswith(package + "."):
            return RANK[package]
    raise AssertionError(f"{name} has no row in tests/test_layers.py: which layer is it?")


def belongs(name: str, side: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in side)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_only_down(name: str) -> None:
    up = [
        target
        for target in imports(MODULES[name])
        if target.startswith("gwmodule") and target in MODULES and rank(target) > rank(name)
    ]
    # A command may start what lies beside it, nothing else looks up.
    assert not up, f"{name} imports upwards: {up}"


@pytest.mark.parametrize("name", [n for n in MODULES if rank(n) <= PROTOCOLS])
def test_below_the_line_there_is_no_input_or_output(name: str) -> None:
    used = {target.partition(".")[0] for target in imports(MODULES[name])} & FORBIDDEN_BELOW
    assert not used, f"{name} uses {used}"


@pytest.mark.parametrize("name", MODULES)
def test_gateway_side_and_msp_side_do_not_know_each_other(name: str) -> None:
    if belongs(name, GATEWAY_SIDE):
        wrong = [target for target in imports(MODULES[name]) if belongs(target, MSP_SIDE)]
    elif belongs(name, MSP_SIDE):
        wrong = [target for target in imports(MODULES[name]) if belongs(target, GATEWAY_SIDE)]
    else:
        wrong = []
    assert not wrong, f"{name} imports the other side: {wrong}"


def test_scapy_is_loaded_in_one_place_and_never_as_a_whole() -> None:
    users = {
        name
        for name, path in MODULES.items()
        if any(target.partition(".")[0] == "scapy" for target in imports(path))
    }
    assert users <= {"gwmodule.capture.dissect", "gwmodule.sim.dhcp"}
    assert not any("scapy.all" in imports(path) for path in MODULES.values())


def test_netifaces_is_used_in_one_module_only() -> None:
    users = {name for name, path in MODULES.items() if "netifaces" in imports(path)}
    assert users == {"gwmodule.lan.facts"}


def test_the_table_names_only_what_exists() -> None:
    assert set(RANK) - set(MODULES) == set()
    assert sys.version_info >= (3, 11)
