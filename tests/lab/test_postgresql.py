"""The whole system with the service's registry in a real PostgreSQL, and restarts in the middle."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from gwmodule.sim.hosts import Lab, wait_until
from gwmodule.sim.services import LOGIN, PASSWORD, UUIDS, System
from gwmodule.sim.topology import TWO_WANS
from tests.lab.conftest import bring_up
from tests.lab.test_amtterm import Terminal
from tests.msp import postgres

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    server = postgres.Server(postgres.required())
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="module")
def system(server: postgres.Server) -> Iterator[System]:
    with Lab(TWO_WANS) as lab:
        system = System(lab, msp_options=("--database", server.url()))
        bring_up(system, ("pc1",))
        yield system


def works(system: System) -> bool:
    called = system.technician("call", UUIDS["pc1"], "power.get", *LOGIN, "--json")
    return called.returncode == 0


def test_amtterm_types_on_a_serial_line(system: System) -> None:
    forward = system.technician_command("forward", UUIDS["pc1"], "16994")
    service = system.lab.start("msp", forward, log="forward")
    ports = ["ss", "-ltnH"]
    wait_until(
        "the forwarded port", lambda: "127.0.0.1:16994" in system.lab.run("msp", ports).stdout, 15
    )
    amtterm = ["amtterm", "-p", PASSWORD, "127.0.0.1", "16994"]
    terminal = Terminal(system.lab.command("msp", amtterm))
    try:
        terminal.wait_for("recovery> ", 20)
        terminal.type("uuid\r")
        terminal.wait_for(f"uuid\\s+{UUIDS['pc1']}", 10)
    finally:
        terminal.close()
        service.kill()


def test_a_service_killed_in_a_call_leaves_its_outcome_unknown_and_serves_again(
    system: System,
) -> None:
    device = system.lab.services["device-pc1"].process
    # It answers nobody, so the call is under way for as long as we like.
    device.send_signal(signal.SIGSTOP)
    command = system.technician_command("call", UUIDS["pc1"], "power.set", "state=reset", *LOGIN)
    call = subprocess.Popen(
        system.lab.command("msp", command),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until("the call at the gateway", lambda: system.status()["calls"] == 1, 20)
    system.restart_msp()
    device.send_signal(signal.SIGCONT)
    _, error = call.communicate(timeout=30)
    assert call.returncode == 3, error
    system.wait_for_link()
    wait_until("a call works again", lambda: works(system) or None, 30)


def test_a_terminal_opens_again_after_the_service_was_killed(system: System) -> None:
    command = system.technician_command("sol", UUIDS["pc1"], *LOGIN)
    terminal = Terminal(system.lab.command("msp", command))
    try:
        terminal.wait_for("recovery> ", 20)
        system.restart_msp()
        terminal.wait_for("opened again", 45)
        terminal.type("uuid\r")
        terminal.wait_for(f"uuid\\s+{UUIDS['pc1']}", 30)
    finally:
        terminal.close()


def test_a_server_that_went_away_costs_no_registration(
    system: System, server: postgres.Server
) -> None:
    server.crash()
    refused = system.technician("devices", "--json")
    assert refused.returncode == 1
    assert "REGISTRY_UNAVAILABLE" in refused.stderr
    server.start()
    wait_until("a call works again", lambda: works(system) or None, 30)
    assert {device["guid"] for device in system.ask_msp("devices")} == {UUIDS["pc1"]}
