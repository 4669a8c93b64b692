"""The real commands against a real site: exit codes, and SIGKILL at every write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gwmodule.config import load
from gwmodule.provisioning.commands import start_command
from gwmodule.provisioning.identity import Paths, read
from gwmodule.uplink.tls import client_context
from tests.provisioning.conftest import Gateway, Msp

# What changes a file system: a kill at each call is a kill between any two.
WRITES = ("fchmod", "fsync", "rename", "unlink", "mkdir")
Kill = tuple[str, int]

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None and "CI" not in os.environ, reason="needs strace"
)


def command(
    gateway: Gateway, verb: str, *arguments: str, kill_at: Kill | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "gwmodule", verb, "--config", str(gateway.config), *arguments]
    if kill_at:
        call, number = kill_at
        inject = f"--inject={call}:signal=SIGKILL:when={number}"
        argv = ["strace", "-qq", "-o", os.devnull, "-e", f"trace={call}", inject, *argv]
    return subprocess.run(
        argv, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def arguments(msp: Msp) -> list[str]:
    return [
        "--msp", msp.address, "--token-file", "-", "--ca-fingerprint", msp.fingerprint,
        "--lan", "br-lan",
    ]  # fmt: skip


def killed(done: subprocess.CompletedProcess[str]) -> bool:
    """strace ends as its child does; it was no other end."""
    assert "Traceback" not in done.stderr
    return done.returncode in (-9, 137)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("run/systemd/system/x", "usr/lib/systemd/system/gwmodule.target"), "systemctl restart"),
        (("run/systemd/system/x",), "gwmodule run"),
        (("etc/init.d/gwmodule",), "/etc/init.d/gwmodule reload"),
        ((), "gwmodule run"),
    ],
)
def test_it_says_what_starts_the_services_here(
    tmp_path: Path, there: tuple[str, ...], expected: str
) -> None:
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert start_command(tmp_path).startswith(expected)


def test_whoever_has_provisioned_a_gateway_is_told_the_next_step(
    msp: Msp, gateway: Gateway
) -> None:
    done = command(gateway, "provision", *arguments(msp), stdin=msp.token())
    assert done.stdout.splitlines()[1] == f"now start the services: {start_command()}"


def test_twice_and_then_back(msp: Msp, gateway: Gateway) -> None:
    first = command(gateway, "provision", *arguments(msp), "--json", stdin=msp.token())
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["changed"] is True
    before = gateway.state()
    second = command(gateway, "provision", *arguments(msp), "--json")
    assert (second.returncode, json.loads(second.stdout)["changed"]) == (0, False)
    assert "nothing changed" in command(gateway, "provision", *arguments(msp)).stdout
    assert "nothing changed" in command(gateway, "renew").stdout
    assert gateway.state() == before
    assert command(gateway, "renew", "--force").returncode == 0
    assert command(gateway, "deprovision").returncode == 0
    assert not gateway.key.exists()


def test_exit_codes_say_whether_to_try_again(msp: Msp, gateway: Gateway) -> None:
    refused = command(gateway, "provision", *arguments(msp), "--json", stdin="gwe_wrong")
    assert refused.returncode == 1
    assert "no such token" in refused.stderr
    assert json.loads(refused.stdout)["retry"] is False
    gateway.config.write_text("[msp]\naddress = 1\n")
    assert command(gateway, "provision", *arguments(msp), stdin="x").returncode == 78
    gateway.config.unlink()
    for bad in (["--msp", "a:b:c"], ["--ca-fingerprint", "zz"], ["--wait", "nan"]):
        assert command(gateway, "provision", *arguments(msp), *bad, stdin="x").returncode == 2
    msp.stop()
    away = command(gateway, "provision", *arguments(msp), "--json", "--wait", "1", stdin="x")
    msp.start()
    assert away.returncode == 75
    assert json.loads(away.stdout)["retry"] is True


def test_no_secret_is_printed(msp: Msp, gateway: Gateway) -> None:
    token = msp.token()
    for _ in range(2):
        done = command(gateway, "provision", *arguments(msp), "--json", stdin=token)
        assert token not in done.stdout + done.stderr
        assert "PRIVATE" not in done.stdout + done.stderr


def test_a_hook_is_run_after_a_renewal_and_only_then(msp: Msp, gateway: Gateway) -> None:
    command(gateway, "provision", *arguments(msp), stdin=msp.token())
    mark = gateway.directory / "hooked here"
    assert command(gateway, "renew", "--deploy-hook", f"touch '{mark}'").returncode == 0
    assert not mark.exists()
    assert command(gateway, "renew", "--force", "--deploy-hook", f"touch '{mark}'").returncode == 0
    assert mark.exists()


@pytest.mark.parametrize(
    ("hook", "code", "problem"),
    [
        ("sh -c 'echo said; exit 3'", 3, "ended with 3"),
        ("/does/not/exist", 127, "/does/not/exist: No such file or directory"),
        ("/", 127, "/: Permission denied"),
    ],
)
def test_a_hook_that_fails_is_told_apart_from_the_renewal(
    msp: Msp, gateway: Gateway, hook: str, code: int, problem: str
) -> None:
    command(gateway, "provision", *arguments(msp), stdin=msp.token())
    renewed = command(gateway, "renew", "--force", "--json", "--deploy-hook", hook)
    assert renewed.returncode == 1
    assert problem in renewed.stderr
    # What the hook says is not part of the answer.
    answer = json.loads(renewed.stdout)
    assert (answer["changed"], answer["deploy_hook"]) == (True, code)


@pytest.mark.parametrize("hook", ["", "touch 'x"])
def test_a_hook_that_is_no_command_line_is_wrong_usage(gateway: Gateway, hook: str) -> None:
    assert command(gateway, "renew", "--deploy-hook", hook).returncode == 2


@needs_strace
@pytest.mark.timeout(300)
def test_killed_at_any_write_it_is_as_before_or_done(msp: Msp, tmp_path: Path) -> None:
    kills = 0
    for call in WRITES:
        for number in range(1, 40):
            gateway = Gateway(tmp_path / f"{call}-{number}")
            token = msp.token(f"{call}-{number}")
            kill_at = (call, number)
            done = command(gateway, "provision", *arguments(msp), kill_at=kill_at, stdin=token)
            if gateway.config.exists():
                # Nothing refers to what is not there yet.
                client_context(load(gateway.config).tls, clock_trusted=True)
            if not killed(done):
                assert done.returncode == 0, done.stderr
                break
            kills += 1
            again = command(gateway, "provision", *arguments(msp), "--json", stdin=token)
            assert again.returncode == 0, (kill_at, again.stderr)
            assert msp.allowed(f"{call}-{number}", gateway.certificate)
            left = {file.name for file in gateway.directory.iterdir()}
            assert left == {"gateway.key", "gateway.crt", "ca.crt", "gwmodule.toml"}, kill_at
    # Four files, each with its mode, its content on the disk, its name, its name on the disk.
    assert kills >= 16


@needs_strace
@pytest.mark.timeout(300)
def test_killed_at_any_write_a_renewal_leaves_a_certificate(msp: Msp, gateway: Gateway) -> None:
    command(gateway, "provision", *arguments(msp), stdin=msp.token())
    kills = 0
    for call in WRITES:
        for number in range(1, 20):
            # One gateway may not renew that often.
            msp.site._renewals.refund(b"home-1")
            done = command(gateway, "renew", "--force", kill_at=(call, number))
            config = load(gateway.config)
            client_context(config.tls, clock_trusted=True)
            assert read(Paths.of(config.tls)) is not None
            assert msp.allowed("home-1", gateway.certificate), (call, number)
            if not killed(done):
                assert done.returncode == 0, done.stderr
                break
            kills += 1
    assert kills >= 4


@needs_strace
@pytest.mark.timeout(300)
def test_killed_at_any_write_deprovisioning_can_be_finished(msp: Msp, tmp_path: Path) -> None:
    kills = 0
    for call in WRITES:
        for number in range(1, 20):
            gateway = Gateway(tmp_path / f"{call}-{number}")
            name = f"{call}-{number}"
            command(gateway, "provision", *arguments(msp), stdin=msp.token(name))
            done = command(gateway, "deprovision", kill_at=(call, number))
            assert command(gateway, "deprovision").returncode == 0
            left = {file.name for file in gateway.directory.iterdir()}
            assert left == {"gwmodule.toml"}, (call, number)
            assert load(gateway.config).msp.address == ()
            if not killed(done):
                break
            kills += 1
    assert kills >= 8
