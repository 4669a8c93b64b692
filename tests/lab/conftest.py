"""What the lab tests need around them, and the logs of the lab where one fails."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest

from gwmodule.sim import isolate
from gwmodule.sim.hosts import Lab, LabError
from gwmodule.sim.lab import DEVICES, hello_target
from gwmodule.sim.services import MSP_STATE, UUIDS, System
from gwmodule.sim.topology import PCS, TWO_WANS

PROGRAMS = ("ip", "nft", "nsenter", "unshare", "dnsmasq", "udhcpc", "amtterm", "strace", "setpriv")


@pytest.fixture(scope="session", autouse=True)
def _surroundings() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    problem = ""
    if missing:
        problem = f"not installed: {', '.join(missing)} (run: make setup)"
    elif not isolate.isolated():
        problem = "run them with: make test-lab"
    if problem and os.environ.get("CI"):
        pytest.fail(f"the lab tests must run in CI: {problem}", pytrace=False)
    if problem:
        pytest.skip(f"no lab here: {problem}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        fixtures: dict[str, Any] = getattr(item, "funcargs", {})
        for value in fixtures.values():
            lab = getattr(value, "lab", value)
            if isinstance(lab, Lab):
                report.sections += [
                    (f"log {name}", service.tail(40)) for name, service in lab.services.items()
                ]
                break
    return report


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """The whole of `two-wans`: three PCs registered, provisioned and known by their login."""
    with Lab(TWO_WANS) as lab:
        system = System(lab)
        bring_up(system)
        yield system


def bring_up(system: System, pcs: tuple[str, ...] = PCS, **settings: object) -> None:
    """Start everything; those PCs become managed and known by their login."""
    try:
        _bring_up(system, pcs, settings)
    except LabError as exc:
        # A fixture that failed has no value that the report could find the logs by.
        for name, service in system.lab.services.items():
            exc.add_note(f"log {name}:\n{service.tail(40)}")
        raise


def _bring_up(system: System, pcs: tuple[str, ...], settings: dict[str, object]) -> None:
    system.start_msp()
    system.enrol(settings)
    if system.lab.topology.relay == "gateway":
        system.start_gateway()
    system.start_lan()
    if system.lab.topology.relay != "gateway":
        system.start_gateway()
    relay = system.lab.topology.relay_address
    for pc in pcs:
        hello = hello_target(pc, relay)
        system.start_device(pc, *DEVICES[pc], *(("--hello", hello) if hello else ()))
    for pc in pcs:
        if hello_target(pc, relay):
            system.wait_for_device(pc)
            system.activate(pc)
        else:
            system.wait_for_candidate(pc)
    for pc in pcs:
        system.identify(pc)


@contextmanager
def registry_says(pc: str, address: str, mac: str) -> Iterator[None]:
    """An MSP that is wrong, stolen or lied to: its record sends every request elsewhere."""
    update = "UPDATE devices SET address = ?, mac = ? WHERE uuid = ?"
    key = UUID(UUIDS[pc]).bytes
    database = sqlite3.connect(MSP_STATE / "registry.db", timeout=5, isolation_level=None)
    try:
        read = "SELECT address, mac FROM devices WHERE uuid = ?"
        true_address, true_mac = database.execute(read, (key,)).fetchone()
        database.execute(update, (address, bytes.fromhex(mac.replace(":", "")), key))
        yield
        database.execute(update, (true_address, true_mac, key))
    finally:
        database.close()
