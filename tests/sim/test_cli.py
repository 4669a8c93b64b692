import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from gwmodule import __version__
from gwmodule.sim import cli
from gwmodule.sim.control import request
from gwmodule.sim.device import Ports

UUID = "55e3ae13-bfd2-61bb-17a0-88aedd7037ea"
COMMAND = [sys.executable, "-m", "gwmodule.sim.cli"]


def free_offset() -> int:
    """An offset at which every port is free, as far as can be told from here."""
    # Four ports apart, so that processes with neighbouring numbers do not meet.
    for offset in range(3000 + os.getpid() % 1000 * 4, 48000, 404):
        ports = Ports.with_offset(offset)
        numbers = (ports.wsman, ports.wsman_tls, ports.redirection, ports.redirection_tls)
        try:
            for number in numbers:
                with socket.socket() as sock:
                    sock.bind(("127.0.0.1", number))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("127.0.0.1", ports.rmcp))
        except OSError:
            continue
        return offset
    raise AssertionError("no free ports")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path, str]]:
    control = tmp_path / "control.sock"
    offset = free_offset()
    arguments = ["device", "--bind", "127.0.0.1", "--uuid", UUID, "--password", "x", "--state"]
    arguments += ["setup", "--port-offset", str(offset), "--control", str(control)]
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process, control, process.stdout.readline()
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_device_says_when_it_listens_and_leaves_without_a_trace(
    running: tuple[subprocess.Popen[str], Path, str], number: signal.Signals
) -> None:
    process, control, line = running
    assert UUID in line
    assert "listens on 127.0.0.1" in line
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "", "")
    assert not control.exists()


def test_somebody_activates_the_pc_and_reads_its_state(
    running: tuple[subprocess.Popen[str], Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, control, _ = running
    for command, provisioning in (("state", "setup"), ("activate", "managed")):
        assert cli.main([command, "--control", str(control)]) == 0
        assert json.loads(capsys.readouterr().out)["provisioning"] == provisioning


def test_ports_that_cannot_be_opened_are_one_line_and_exit_1(
    running: tuple[subprocess.Popen[str], Path, str],
) -> None:
    port = int(running[2].split("ports ")[1].split()[0])
    arguments = ["device", "--bind", "127.0.0.1", "--uuid", UUID, "--password", "x"]
    arguments += ["--port-offset", str(port - 16992)]
    again = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=10, check=False
    )
    assert again.returncode == 1
    assert again.stderr.startswith(f"gwmodule-sim: 127.0.0.1 port {port}: ")
    assert again.stderr.count("\n") == 1


def test_a_device_has_the_profile_and_the_history_it_was_given(tmp_path: Path) -> None:
    control = tmp_path / "control.sock"
    arguments = ["device", "--bind", "127.0.0.1", "--uuid", UUID, "--password", "x"]
    arguments += ["--port-offset", str(free_offset()), "--control", str(control)]
    arguments += ["--profile", "amt16", "--events", "full", "--seed", "7"]
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--bios-console", "on-request"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        # TLS only: the two ports without it are closed.
        assert len(line.split("ports ")[1].split(" and ")[0].split()) == 2
        state = request(control, "state")
        assert (state["events"], state["software"]) == (390, "system")
    finally:
        process.kill()
        process.communicate()


def test_no_running_simulator_is_one_line_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["state", "--control", str(tmp_path / "none.sock")]) == 1
    assert capsys.readouterr().err.startswith("gwmodule-sim: no simulator answers")


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([option])
    assert left.value.code == 0
    assert (__version__ if option == "--version" else "activate") in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        ["--bind", "::1"],
        ["--uuid", "x"],
        ["--port-offset", "60000"],
        ["--port-offset", "-1"],
        ["--hello", ":1"],
        ["--hello", "gateway:0"],
        ["--login", "kerberos"],
        ["--mac", "00:11"],
        ["--mac", "x"],
    ],
)
def test_wrong_usage_is_exit_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    right = ["device", "--bind", "127.0.0.1", "--uuid", UUID, "--password", "x"]
    with pytest.raises(SystemExit) as left:
        cli.main([*right, *wrong])
    assert left.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_lab_and_its_hosts_are_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def enter(host: str, command: list[str]) -> int:
        seen.append((host, command))
        return 3

    def main(args: argparse.Namespace) -> int:
        seen.append(args.keep)
        return 4

    lab = types.ModuleType("gwmodule.sim.lab")
    lab.add_arguments = lambda parser: parser.add_argument("--keep")  # type: ignore[attr-defined]
    lab.main = main  # type: ignore[attr-defined]
    lab.enter = enter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gwmodule.sim.lab", lab)
    assert cli.main(["lab", "--keep", "it"]) == 4
    assert cli.main(["enter", "pc1", "ip", "-4", "addr"]) == 3
    assert seen == ["it", ("pc1", ["ip", "-4", "addr"])]


def test_ctrl_c_outside_a_device_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "request", interrupted)
    assert cli.main(["state"]) == 130
