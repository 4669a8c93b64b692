"""The command as scripts use it: exit codes, and what is said on which stream."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gwmodule.cli import main, parser
from gwmodule.control import ControlServer
from gwmodule.errors import CaptureError
from gwmodule.msp.pki import Authority

# Verbs that work with a configuration, with what each needs besides.
SERVICES = {"run": (), "relay": ()}
QUESTIONS: dict[str, tuple[str, ...]] = {
    "status": (),
    "devices": (),
    "reconnect": (),
    "explain": ("192.0.2.7",),
    "lockdown": ("on", "--for", "60"),
}
WITH_CONFIG: dict[str, tuple[str, ...]] = {
    **SERVICES,
    **QUESTIONS,
    "capture": (),
    "check-config": (),
}
# Their exit codes are in tests/provisioning.
ELSEWHERE = {"provision", "renew", "deprovision"}
ANSWERS: dict[str, Any] = {
    "status": {"version": "1", "link": {"connected": True}},
    "devices": [{"mac": None, "address": "192.0.2.7"}],
    "reconnect": {"dialling": True},
    "explain": {
        "ok": True,
        "failed": None,
        "advice": "",
        "steps": [{"step": "known", "result": "ok", "found": "managed", "advice": ""}],
    },
    "lockdown": {"on": True, "seconds_left": 60.0},
}


NO_TLS = '[tls]\nmode = "off"'


def written(directory: Path, text: str) -> str:
    path = directory / "gwmodule.toml"
    path.write_text(text)
    return str(path)


def good(directory: Path, more: str = NO_TLS, lan: str = "") -> str:
    return written(
        directory,
        f"""
        [msp]
        address = "127.0.0.1:1"
        [lan]
        interface = "lo"
        {lan}
        [control]
        socket = "{directory}/control.sock"
        [capture]
        socket = "{directory}/capture.sock"
        {more}
        """,
    )


@contextlib.contextmanager
def relay(directory: Path, answers: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """A control socket that gives these answers, and what it was asked."""
    heard: list[dict[str, Any]] = []

    def verb(name: str) -> Callable[[dict[str, Any]], Any]:
        async def answer(arguments: dict[str, Any]) -> Any:
            heard.append(arguments)
            made = answers[name]
            if isinstance(made, Exception):
                raise made
            return made() if callable(made) else made

        return answer

    path = directory / "control.sock"
    server = ControlServer(str(path), {name: verb(name) for name in answers})
    loop = asyncio.new_event_loop()
    task = loop.create_task(server.run())

    def serve() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        # Not the path: it is there before somebody listens on it.
        while not server.listening.is_set():
            time.sleep(0.005)
        yield heard
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


def test_every_verb_is_looked_at_here() -> None:
    (verbs,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert set(verbs.choices) - ELSEWHERE == set(WITH_CONFIG)


@pytest.mark.parametrize("verb", WITH_CONFIG)
def test_a_bad_configuration_is_78_with_file_key_and_problem_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    config = written(tmp_path, "[tls]\nmode = 7")
    assert main([verb, *WITH_CONFIG[verb], "--config", config]) == 78
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"gwmodule: {config}: tls.mode: must be a string, not 7\n")


@pytest.mark.parametrize("verb", WITH_CONFIG)
def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, *WITH_CONFIG[verb], "--nonsense"])
    assert ended.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["lockdown", "--for", "60"],
        ["lockdown", "off", "--for", "60"],
        ["capture", "--seconds", "5"],
        ["capture", "--count", "5"],
        ["capture", "-w", "x", "--allow-user", "0"],
    ],
)
def test_options_that_do_not_fit_together_are_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main([*words, "--config", good(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("gwmodule: --")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("number", ["0", "601", "-1", "x", "1e3", "9" * 5000, "000000005999"])
def test_numbers_have_bounds(capsys: pytest.CaptureFixture[str], number: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["capture", "-w", "x", f"--seconds={number}"])
    assert ended.value.code == 2
    assert "is not between 1 and 600" in capsys.readouterr().err


@pytest.mark.parametrize("verb", QUESTIONS)
def test_without_a_service_it_is_1_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert main([verb, *QUESTIONS[verb], "--config", good(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "is the service running?" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("verb", QUESTIONS)
def test_an_answer_is_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, options: list[str]
) -> None:
    config = good(tmp_path)
    with relay(tmp_path, ANSWERS):
        assert main([verb, *QUESTIONS[verb], *options, "--config", config]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    if options:
        assert json.loads(out) == ANSWERS[verb]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_checklist_with_a_failing_step_is_1_and_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    step = {"step": "ports", "result": "failed", "found": "16992 refused", "advice": "look there"}
    answer = {"ok": False, "failed": "ports", "advice": "look there", "steps": [step]}
    config = good(tmp_path)
    with relay(tmp_path, {"explain": answer}) as heard:
        assert main(["explain", "192.0.2.7", *options, "--config", config]) == 1
    out = capsys.readouterr().out
    assert heard == [{"device": "192.0.2.7"}]
    if options:
        assert json.loads(out) == answer
    else:
        assert out.splitlines() == [
            "failed   ports        16992 refused",
            "                      -> look there",
            "",
            "fails at: ports",
        ]


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ([], {}),
        (["off"], {"on": False, "seconds": None}),
        (["on"], {"on": True, "seconds": None}),
        (["on", "--for", "60"], {"on": True, "seconds": 60}),
    ],
)
def test_lockdown_asks_for_what_was_typed(
    tmp_path: Path, words: list[str], asked: dict[str, Any]
) -> None:
    with relay(tmp_path, ANSWERS) as heard:
        assert main(["lockdown", *words, "--config", good(tmp_path)]) == 0
    assert heard == [asked]


async def _pcap() -> AsyncGenerator[bytes, None]:
    yield b"head"
    yield b"frames"


def test_a_recording_goes_into_a_file_of_its_owner_alone(tmp_path: Path) -> None:
    config, target = good(tmp_path), tmp_path / "lan.pcap"
    with relay(tmp_path, {"capture": _pcap}) as heard:
        words = ["capture", "-w", str(target), "--seconds", "5", "--count", "7"]
        assert main([*words, "--config", config]) == 0
    assert heard == [{"seconds": 5, "count": 7}]
    assert target.read_bytes() == b"headframes"
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_recording_to_standard_output_is_nothing_but_the_recording(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "gwmodule", "capture", "-w", "-", "--config", good(tmp_path)]
    with relay(tmp_path, {"capture": _pcap}):
        done = subprocess.run(argv, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"headframes")


def test_a_refused_recording_leaves_the_file_alone(tmp_path: Path) -> None:
    config, target = good(tmp_path), tmp_path / "lan.pcap"
    target.write_text("precious")
    refusal = CaptureError("the capture service is not connected")
    with relay(tmp_path, {"capture": refusal}):
        assert main(["capture", "-w", str(target), "--config", config]) == 1
    assert target.read_text() == "precious"


# What the configuration names, and what is there


@pytest.fixture
def enrolled(tmp_path: Path) -> tuple[Path, str]:
    """Files of a gateway, and the configuration that names them."""
    authority = Authority.open(tmp_path / "ca", 1_800_000_000.0)
    for name in ("gateway", "other"):
        bundle = authority.gateway_bundle(name, 1_800_000_000.0)
        (tmp_path / f"{name}.crt").write_text(bundle.certificate)
        (tmp_path / f"{name}.key").write_text(bundle.key)
        (tmp_path / f"{name}.key").chmod(0o600)
        (tmp_path / "ca.crt").write_text(bundle.ca)
    text = "\n".join(
        ["[tls]"]
        + [
            f'{key} = "{tmp_path}/{file}"'
            for key, file in (
                ("certificate", "gateway.crt"),
                ("key", "gateway.key"),
                ("cafile", "ca.crt"),
            )
        ]
    )
    return tmp_path, good(tmp_path, text, "hello_port = 0")


def refused(capsys: pytest.CaptureFixture[str], config: str, *words: str, code: int = 78) -> str:
    assert main(["check-config", *words, "--config", config]) == code
    err = capsys.readouterr().err
    assert err.startswith("gwmodule: ")
    assert err.count("\n") == 1
    return err


def test_a_whole_enrolment_is_good(enrolled: tuple[Path, str]) -> None:
    assert main(["check-config", "--strict", "--config", enrolled[1]]) == 0


@pytest.mark.parametrize(
    ("key", "file"),
    [("tls.key", "gateway.key"), ("tls.certificate", "gateway.crt"), ("tls.cafile", "ca.crt")],
)
def test_a_missing_file_is_78_with_its_key(
    enrolled: tuple[Path, str], capsys: pytest.CaptureFixture[str], key: str, file: str
) -> None:
    directory, config = enrolled
    (directory / file).unlink()
    assert f"{directory / file}: {key}: No such file" in refused(capsys, config)


@pytest.mark.parametrize("file", ["gateway.key", "gateway.crt", "ca.crt"])
def test_a_file_of_garbage_is_78(
    enrolled: tuple[Path, str], capsys: pytest.CaptureFixture[str], file: str
) -> None:
    directory, config = enrolled
    (directory / file).write_text("garbage")
    assert "tls." in refused(capsys, config)


def test_the_certificate_of_another_gateway_is_78(
    enrolled: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, config = enrolled
    shutil.copy(directory / "other.crt", directory / "gateway.crt")
    assert f"{directory}/gateway.crt: tls.certificate: not a pair" in refused(capsys, config)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602])
def test_a_key_that_everybody_may_use_is_78_with_the_cure(
    enrolled: tuple[Path, str], capsys: pytest.CaptureFixture[str], mode: int
) -> None:
    directory, config = enrolled
    key = directory / "gateway.key"
    key.chmod(mode)
    assert f"{key}: tls.key: everybody may use it (mode {mode:04o}): chmod o= {key}" in refused(
        capsys, config
    )
    key.chmod(0o640)
    assert main(["check-config", "--config", config]) == 0


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root")
def test_a_key_that_the_service_may_not_read_is_78(enrolled: tuple[Path, str]) -> None:
    directory, config = enrolled
    for path in (directory, *directory.parents):
        if str(path).startswith("/tmp/"):
            path.chmod(0o755)
    user = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
    script = "import sys; from gwmodule.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = [*user, sys.executable, "-c", script, "check-config", "--config", config]
    done = subprocess.run(argv, capture_output=True, text=True)
    if "gwmodule" not in done.stderr or "ModuleNotFound" in done.stderr:
        pytest.skip("another user cannot run the interpreter here")
    assert done.returncode == 78
    assert f"{directory}/gateway.key: tls.key: Permission denied" in done.stderr


@pytest.mark.parametrize("table", ["lan", "uplink"])
def test_a_missing_interface_is_a_warning_and_with_strict_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str
) -> None:
    config = good(tmp_path, '[tls]\nmode = "off"\n[uplink]\ninterface = "none0"')
    if table == "lan":
        text = Path(config).read_text().replace('"lo"', '"none0"').replace("[uplink]", "[probe]")
        Path(config).write_text(text.replace('[probe]\ninterface = "none0"', ""))
    wanted = f"{config}: {table}.interface: interface none0 does not exist now; there are "
    assert wanted in refused(capsys, config, code=0)
    assert wanted in refused(capsys, config, "--strict")


def test_a_port_in_use_is_a_warning_and_with_strict_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = good(tmp_path, lan=f"hello_port = {port}")
        wanted = f"{config}: lan.hello_port: port {port} on 127.0.0.1: Address already in use"
        assert wanted in refused(capsys, config, code=0)
        assert wanted in refused(capsys, config, "--strict")
        # Our own running relay has it.
        with relay(tmp_path, ANSWERS):
            assert main(["check-config", "--strict", "--config", config]) == 0


def test_a_second_relay_does_not_take_the_first_ones_socket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [sys.executable, "-m", "gwmodule", "relay", "--config", good(tmp_path)]
    with relay(tmp_path, ANSWERS):
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 1
        assert "control.sock: another relay is running here; stop it" in done.stderr
        assert "Traceback" not in done.stderr
        assert main(["status", "--json", "--config", good(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == ANSWERS["status"]
