"""The recipes of docs/provisioning.md, cut out of it and run against the real service."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gwmodule.config import load
from gwmodule.uplink.tls import client_context
from tests.openwrt.box import Box

DOCUMENT = (Path(__file__).parents[2] / "docs/provisioning.md").read_text()
PYTHON = sys.executable
ANSIBLE = Path(PYTHON).with_name("ansible-playbook")

needs_busybox = pytest.mark.skipif(
    shutil.which("busybox") is None and "CI" not in os.environ, reason="needs busybox"
)


def recipe(name: str) -> str:
    found = re.search(rf"<!-- recipe: {re.escape(name)} -->\n((?:    .*\n|\n)+)", DOCUMENT)
    assert found, f"docs/provisioning.md has no recipe {name}"
    return textwrap.dedent(found[1]).rstrip() + "\n"


@dataclass
class Service:
    api: Path
    port: int

    def command(self, *arguments: str) -> list[str]:
        return [PYTHON, "-m", "gwmodule.msp.cli", "--api", str(self.api), "--json", *arguments]

    def ask(self, *arguments: str) -> Any:
        done = subprocess.run(
            self.command(*arguments), check=True, capture_output=True, text=True, timeout=30
        )
        return json.loads(done.stdout)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    api = tmp_path / "api.sock"
    argv = [
        PYTHON, "-m", "gwmodule.msp.cli", "serve", "--state", str(tmp_path / "msp"),
        "--listen", "127.0.0.1:0", "--enrol", "127.0.0.1:0", "--api", str(api),
        "--name", "127.0.0.1",
    ]  # fmt: skip
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    port = 0
    for line in process.stderr:
        if found := re.search(r"event=enrolling address=127\.0\.0\.1:(\d+)", line):
            port = int(found[1])
        if "event=listening" in line:
            break
    try:
        yield Service(api, port)
    finally:
        process.terminate()
        process.communicate(timeout=15)


@pytest.fixture
def router(tmp_path: Path) -> Box:
    """A router whose key and certificates lie inside the box."""
    root = tmp_path / "router"
    root.mkdir()
    box = Box(root)
    (root / "bin/openssl").symlink_to(shutil.which("openssl") or "")
    files = {"key": "gateway.key", "certificate": "gateway.crt", "cafile": "ca.crt"}
    tls = "".join(f"\toption {key} '{root}/etc/gwmodule/{name}'\n" for key, name in files.items())
    box.configure(f"config lan 'lan'\n\tlist interface 'br-lan'\n\nconfig tls 'tls'\n{tls}")
    box.command(f'exec python3 -m gwmodule "$@" --config {root}/etc/config/gwmodule')
    box.write("etc/init.d/gwmodule", f'#!/bin/sh\necho "gwmodule $*" >>{root}/log\n', 0o755)
    return box


def wrapper(programs: Path, config: Path) -> None:
    programs.mkdir()
    (programs / "gwmodule").write_text(
        f'#!/bin/sh\nexec {PYTHON} -m gwmodule "$@" --config {config}\n'
    )
    (programs / "gwmodule").chmod(0o755)


def test_the_line_that_is_shown_can_be_pasted_into_a_shell(
    service: Service, tmp_path: Path
) -> None:
    words = [
        w for w in service.command("gateway", "add", "home-1", "--lan", "br 0") if w != "--json"
    ]
    shown = subprocess.run(words, check=True, capture_output=True, text=True, timeout=30)
    (line,) = shown.stdout.splitlines()
    assert "the token is good until" in shown.stderr
    config = tmp_path / "etc" / "gwmodule.toml"
    wrapper(tmp_path / "bin", config)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}"}
    bad = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, check=False)
    assert b"is no interface name" in bad.stderr
    line = line.replace("'br 0'", "br-lan")
    done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    client_context(load(config).tls, clock_trusted=True)


@needs_busybox
def test_an_image_with_a_token_enrols_itself_once(service: Service, router: Box) -> None:
    invitation = service.ask("gateway", "add", "home-1")
    script = (
        recipe("enrolment.sh")
        .replace("msp.example.net", f"127.0.0.1:{service.port}")
        .replace("FINGERPRINT", invitation["caFingerprint"])
    )
    router.write("etc/gwmodule/enrolment.sh", router._inside(script))
    router.write("etc/uci-defaults/99-gwmodule-enrolment", router._inside(recipe("uci-defaults")))
    token = router.write("etc/gwmodule/enrolment.token", "gwe_not_yet\n")
    for _ in range(2):
        router.run("etc/uci-defaults/99-gwmodule-enrolment")
    assert token.stat().st_mode & 0o777 == 0o600
    (line,) = (router.root / "etc/crontabs/root").read_text().splitlines()
    assert line.split()[-1].endswith("/etc/gwmodule/enrolment.sh")

    router.run("etc/gwmodule/enrolment.sh")
    assert "no such token" in "\n".join(router.log())
    assert token.exists()

    token.write_text(invitation["token"] + "\n")
    router.run("etc/gwmodule/enrolment.sh")
    assert "gwmodule reload" in router.log()
    assert not token.exists()
    config = load(router.root / "etc/config/gwmodule")
    assert config.msp.enrolment == f"127.0.0.1:{service.port}"
    client_context(config.tls, clock_trusted=True)

    router.run("etc/gwmodule/enrolment.sh")
    assert router.log() == []


@needs_busybox
def test_the_uci_batch_may_be_run_twice(router: Box) -> None:
    router.write("bin/reload_config", f"#!/bin/sh\necho reload >>{router.root}/log\n", 0o755)
    router.write("batch.sh", recipe("uci-batch"))
    for _ in range(2):
        router.run("batch.sh")
        assert router.log() == ["reload"]
        msp = load(router.root / "etc/config/gwmodule").msp
        assert msp.address == ("msp.example.net:8883",)
        assert (msp.server_name, msp.enrolment) == ("gwmodule-msp", "msp.example.net:8884")


@pytest.mark.timeout(180)
@pytest.mark.skipif(not ANSIBLE.exists(), reason="ansible-core is not installed")
def test_the_playbook_changes_something_once(service: Service, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    directory = tmp_path / "etc"
    directory.mkdir()
    config = directory / "gwmodule.toml"
    for name, body in (
        ("gwmodule", f'exec {PYTHON} -m gwmodule "$@" --config {config}'),
        ("gwmodule-msp", f'exec {PYTHON} -m gwmodule.msp.cli --api {service.api} "$@"'),
        ("systemctl", f'echo "$*" >>{tmp_path}/systemctl'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "playbook.yml").write_text(recipe("playbook.yml"))
    local = f"ansible_connection=local ansible_python_interpreter={PYTHON}"
    (tmp_path / "hosts").write_text(f"[gateways]\nhome-1 {local}\n[msps]\nmsp {local}\n")

    def play() -> str:
        done = subprocess.run(
            [
                ANSIBLE, "-i", "hosts", "playbook.yml", "-e", "msp_host=msp",
                "-e", f"msp=127.0.0.1:{service.port}",
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
                "ANSIBLE_HOME": str(tmp_path / "ansible"),
                "ANSIBLE_NOCOLOR": "1",
                "LC_ALL": "C.UTF-8",
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = play()
    assert re.search(r"home-1 .* failed=0", first)
    assert "gwe_" not in first
    client_context(load(config).tls, clock_trusted=True)
    assert (tmp_path / "systemctl").read_text() == "restart gwmodule.target\n"
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    second = play()
    assert re.search(r"home-1 +: ok=1 +changed=0 ", second), second
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
