"""The real commands against the real service over the ISP's network: enrol, link, renew, end."""

from __future__ import annotations

import json
import shlex
import sqlite3
import subprocess
import time
from collections.abc import Iterator

import pytest

from gwmodule.sim.hosts import Lab, python, wait_until
from gwmodule.sim.services import (
    CONFIG,
    ENROLMENT,
    GATEWAY,
    HURRY,
    MSP_NAME,
    MSP_PORT,
    MSP_STATE,
    System,
    merged,
    toml,
)
from gwmodule.sim.topology import MSP, TWO_WANS

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

PORT = 8445
SHORT = ("--certificate-days", "0.00005")  # 4.3 seconds
KEY, CERTIFICATE = ENROLMENT / "gateway.key", ENROLMENT / "gateway.crt"


class Place:
    """A gateway without an identity, and an MSP that is started when the test says so."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.system = System(lab)
        ENROLMENT.mkdir(exist_ok=True)
        files = {"key": str(KEY), "certificate": str(CERTIFICATE), "cafile": str(ENROLMENT / "ca")}
        tree = merged(merged({"tls": files}, HURRY), lab.topology.settings)
        CONFIG.write_text(toml(tree))

    def start_msp(self, *options: str) -> None:
        if "msp" in self.lab.services:
            self.lab.services["msp"].stop()
        MSP_STATE.mkdir(exist_ok=True)
        argv = python(
            "gwmodule.msp.cli", "serve", "--state", str(MSP_STATE), "--name", MSP_NAME,
            "--listen", f"0.0.0.0:{MSP_PORT}", "--enrol", f"0.0.0.0:{PORT}", *options,
        )  # fmt: skip
        self.lab.start("msp", argv, log="msp")
        wait_until("the MSP answers", self.system._msp_answers, 20)

    def invite(self, *options: str) -> tuple[str, list[str]]:
        """The token and the arguments of the command that the MSP shows."""
        shown = self.system.ask_msp("gateway", "add", GATEWAY, *options)
        echo, command = shown["command"].split(" | ")
        assert shlex.split(echo) == ["echo", shown["token"]]
        words = shlex.split(command)
        assert words[:2] == ["gwmodule", "provision"]
        # The lab has no name server for the gateway's WAN.
        return shown["token"], [w.replace(MSP_NAME, MSP) for w in words[2:]]

    def gateway(
        self, verb: str, *arguments: str, stdin: str = "", wrapper: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        argv = [*wrapper, *python("gwmodule", verb, "--config", str(CONFIG), *arguments)]
        return self.lab.run("gateway", argv, stdin=stdin, check=False, timeout=60)

    def files(self) -> dict[str, tuple[int, bytes]]:
        return {f.name: (f.stat().st_ino, f.read_bytes()) for f in sorted(ENROLMENT.iterdir())}

    def registry(self, sql: str, *values: object) -> None:
        database = sqlite3.connect(MSP_STATE / "registry.db", timeout=5, isolation_level=None)
        try:
            assert database.execute(sql, values).rowcount == 1
        finally:
            database.close()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab(TWO_WANS) as lab:
        yield Place(lab)


def test_before_the_msp_is_there_it_is_worth_trying_again(place: Place) -> None:
    before = place.files()
    done = place.gateway(
        "provision", "--msp", f"{MSP}:{PORT}", "--ca-fingerprint", "0" * 64, "--token-file", "-",
        "--json", stdin="gwe_x",
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert json.loads(done.stdout)["retry"] is True
    assert {name for name in place.files() if name not in before} <= {"gateway.key"}


def test_wrong_tokens_pins_and_places_leave_it_unprovisioned(place: Place) -> None:
    place.start_msp()
    token, arguments = place.invite()
    before = CONFIG.read_text()
    at = arguments.index("--ca-fingerprint") + 1
    pinned_wrong = [*arguments[:at], "0" * 64, *arguments[at + 1 :]]
    read_only = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o ro none {ENROLMENT}; exec "$@"')
    for words, stdin, problem, wrapper in (
        (arguments, "gwe_wrong", "no such token", ()),
        (pinned_wrong, token, "somebody in between", ()),
        ([w for w in arguments if w not in arguments[at - 1 : at + 1]], token, "--ca-fing", ()),
        ([*arguments, "--lan", "br-lan"], token, "read-only", (*read_only, "sh")),
    ):
        done = place.gateway("provision", *words, stdin=stdin, wrapper=wrapper)
        assert done.returncode == 1, done.stderr
        assert problem in done.stderr
        assert CONFIG.read_text() == before
        assert not CERTIFICATE.exists()


def test_the_command_that_the_msp_shows_makes_a_link(place: Place) -> None:
    token, arguments = place.invite()
    done = place.gateway("provision", *arguments, "--json", stdin=token)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["msp"] == [f"{MSP}:{MSP_PORT}"]
    before = place.files()
    again = place.gateway("provision", *arguments, "--json")
    assert json.loads(again.stdout)["changed"] is False
    assert place.files() == before
    place.system.start_gateway()
    assert place.system.status()["link"]["gateway"] == GATEWAY


def test_a_renewed_certificate_carries_the_link_at_once(place: Place) -> None:
    before = place.files()
    assert "not due" in place.gateway("renew").stdout
    assert place.files() == before
    sessions = place.system.status()["link"]["counters"]["sessions"]
    done = place.gateway("renew", "--force", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reconnected"] is True
    status = place.system.wait_for_link()
    # The same session over a new link: no stream would have noticed.
    assert status["link"]["counters"]["sessions"] == sessions

    def used() -> bool:
        (now,) = place.system.ask_msp("gateways")
        return bool(now["fingerprint"] != fingerprint_of(before["gateway.crt"][1]))

    wait_until("the MSP knows the new certificate", used, 10)
    actions = [entry["action"] for entry in place.system.ask_msp("audit")]
    assert {"gateway.invite", "gateway.enrol", "gateway.renew"} <= set(actions)


def fingerprint_of(pem: bytes) -> str:
    from gwmodule.provisioning.identity import fingerprint

    return fingerprint(pem.decode())


def test_an_expired_certificate_renews_in_the_grace_period_and_not_after(place: Place) -> None:
    place.start_msp(*SHORT)
    assert place.gateway("renew", "--force").returncode == 0
    time.sleep(5)
    done = place.gateway("renew")
    assert "renewed" in done.stdout, done.stderr
    time.sleep(5)
    place.start_msp("--grace-days", "0")
    before = place.files()
    late = place.gateway("renew")
    assert late.returncode == 1
    assert "CERTIFICATE_EXPIRED" in late.stderr
    assert place.files() == before
    token, arguments = place.invite("--replace")
    assert place.gateway("provision", *arguments, stdin=token).returncode == 0
    place.system.wait_for_link()


def test_a_revoked_gateway_gets_nothing_and_one_that_leaves_is_gone(place: Place) -> None:
    place.registry("UPDATE gateways SET revoked_at = ? WHERE name = ?", time.monotonic(), GATEWAY)
    before = place.files()
    refused = place.gateway("renew", "--force")
    assert refused.returncode == 1
    assert "REVOKED" in refused.stderr
    assert place.files() == before
    place.registry("UPDATE gateways SET revoked_at = NULL WHERE name = ?", GATEWAY)
    done = place.gateway("deprovision", "--json")
    assert json.loads(done.stdout)["msp_told"] is True
    assert not KEY.exists()

    def gone() -> bool:
        (gateway,) = place.system.ask_msp("gateways")
        assert not gateway["fingerprint"]
        return not gateway["connectionStatus"]

    wait_until("the end of the session", gone, 10)
    time.sleep(2)
    assert gone()
