import asyncio
import json
import os
import signal
import socket
import sys
import tomllib
from pathlib import Path

import pytest

from gwmodule import __version__, config
from gwmodule.amt.functions import CATALOGUE
from gwmodule.errors import Code
from gwmodule.msp import cli
from gwmodule.msp.commands.output import ago
from gwmodule.wire.frames import CredentialMode
from gwmodule.wire.notices import Hello, Lease, Source
from tests.msp.conftest import IP, MAC, NOW, PC, Service, answer, presence

OTHER = "55e3ffff-0000-0000-0000-000000000001"
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name != "AMT_PASSWORD" and not name.startswith("GWMODULE_")
}


async def start(
    *arguments: str,
    password: str | None = "P@ssw0rd",
    stdin: int = asyncio.subprocess.DEVNULL,
    stderr: int = asyncio.subprocess.PIPE,
) -> asyncio.subprocess.Process:
    environment = ENVIRONMENT if password is None else ENVIRONMENT | {"AMT_PASSWORD": password}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gwmodule.msp.cli",
        *arguments,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        env=environment,
    )


async def run(
    service: Service, *arguments: str, password: str | None = "P@ssw0rd", typed: bytes | None = None
) -> tuple[int, str, str]:
    stdin = asyncio.subprocess.DEVNULL if typed is None else asyncio.subprocess.PIPE
    process = await start("--api", str(service.path), *arguments, password=password, stdin=stdin)
    out, err = await process.communicate(typed)
    assert process.returncode is not None
    assert "Traceback" not in err.decode()
    return process.returncode, out.decode(), err.decode()


async def test_lists_for_people_and_for_scripts(service: Service) -> None:
    await service.tell(Lease(MAC, IP, 60, "pc\x1b[31m"))
    code, out, _ = await run(service, "devices")
    assert code == 0
    assert out.splitlines()[0].split()[:3] == ["UUID", "STATE", "ADDRESS"]
    assert str(PC) in out
    assert "pc\\x1b[31m" in out
    code, out, _ = await run(service, "devices", "--json")
    assert json.loads(out)[0]["hostname"] == "pc\x1b[31m"
    code, out, _ = await run(service, "--json", "gateways")
    assert json.loads(out)[0]["rtt"] == 0.021
    code, out, err = await run(service, "candidates")
    assert (code, out, err) == (0, "", "none\n")
    code, out, _ = await run(service, "audit")
    assert "device.registered" in out


async def test_a_contested_device_is_marked(service: Service) -> None:
    await service.registry.add_gateway("home2", "bb", NOW)
    await service.tell(presence(), NOW + 1, gateway="home2")
    _, out, _ = await run(service, "devices")
    assert "managed CONTESTED" in out
    assert "appeared at another place" in out


async def test_a_call_with_the_beginning_of_a_uuid(service: Service) -> None:
    code, out, err = await run(service, "call", "55e3", "power.set", "state=10", "note=a b")
    assert (code, out) == (0, "power_state: 2\n")
    assert "4 exchanges in 0.500 s" in err
    sent = json.loads(service.session.calls[0]["arguments"])
    assert (sent["state"], sent["note"]) == (10, "a b")
    code, out, _ = await run(service, "--json", "call", str(PC).upper(), "power.get")
    assert json.loads(out)["result"] == {"power_state": 2}


async def test_the_secret_stays_at_the_msp_where_the_technician_wants_that(
    service: Service,
) -> None:
    for extra, mode in (([], CredentialMode.HA1), (["--challenge"], CredentialMode.CHALLENGE)):
        code, _, _ = await run(service, "call", "55e3", "power.get", *extra)
        assert (code, service.session.credential.mode) == (0, mode)


async def test_a_beginning_that_fits_several_or_none_is_wrong_usage(service: Service) -> None:
    await service.tell(Hello(type(PC)(OTHER), IP, bytes(6), 3, 0, Source.LISTENER, b""))
    code, _, err = await run(service, "call", "55e3", "power.get")
    assert code == 2
    assert f"2 devices begin with 55e3: {PC}, {OTHER}" in err
    code, _, err = await run(service, "call", "66", "power.get")
    assert (code, err) == (2, "gwmodule-msp: no device begins with 66\n")
    code, _, err = await run(service, "call", "xyz", "power.get")
    assert code == 2
    assert "neither a UUID nor its beginning" in err


async def test_the_password_comes_from_file_stdin_or_environment_and_nowhere_else(
    service: Service, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("from file\nsecond line\n")
    secrets = []
    for extra, password, typed in (
        (["--password-file", str(file)], None, None),
        (["--password-file", "-"], None, b"from file\nrest"),
        ([], "from file", None),
    ):
        code, _, err = await run(
            service, "call", "55e3", "power.get", *extra, password=password, typed=typed
        )
        assert (code, "" if code == 0 else err) == (0, "")
        secrets.append(service.session.credential.secret)
    assert len(set(secrets)) == 1
    code, _, err = await run(service, "call", "55e3", "power.get", password=None)
    assert code == 2
    assert "no password: give --password-file" in err
    code, _, err = await run(service, "call", "55e3", "power.get", "--password-file", "/none/x")
    assert (code, err) == (2, "gwmodule-msp: /none/x: No such file or directory\n")
    code, _, err = await run(service, "call", "55e3", "power.get", "--password", "x")
    assert code == 2


async def test_a_call_that_failed_says_why_on_stderr(service: Service) -> None:
    service.session.answer = answer(Code.DEVICE_REFUSED, {"error": "no\x1b[2J"})
    code, out, err = await run(service, "call", "55e3", "power.set", "state=8")
    assert (code, out, err) == (1, "", "gwmodule-msp: no\\x1b[2J\n")
    code, out, err = await run(service, "call", "55e3", "power.set", "state=8", "--json")
    assert json.loads(err) == {"error": "DEVICE_REFUSED", "errorDescription": "no\x1b[2J"}
    code, out, err = await run(service, "call", "55e3", "power.get", "state")
    assert (code, err) == (2, "gwmodule-msp: 'state' is not KEY=VALUE\n")


async def test_identify_prints_the_uuid(service: Service) -> None:
    await service.tell(presence(mac=bytes.fromhex("020000000007"), uuid=None))
    service.session.answer = answer(Code.OK, {"uuid": OTHER})
    code, out, _ = await run(service, "identify", "home1", "02:00:00:00:00:07")
    assert (code, out) == (0, f"{OTHER}\n")
    code, _, err = await run(service, "identify", "home1", "../../x")
    assert code == 2
    code, _, err = await run(service, "identify", "home1", "02:00:00:00:00:08")
    assert (code, err) == (
        1,
        "gwmodule-msp: gateway home1 has not reported 02:00:00:00:00:08 yet\n",
    )


async def test_identify_takes_the_login_that_is_stored_for_all(service: Service) -> None:
    await service.tell(presence(mac=bytes.fromhex("020000000007"), uuid=None))
    service.session.answer = answer(Code.OK, {"uuid": OTHER})
    argv = ("identify", "home1", "02:00:00:00:00:07")
    code, _, err = await run(service, *argv, password=None)
    assert (code, "no password" in err) == (2, True)
    await service.vault.store("default", None, "shop", "everywhere", NOW, actor="test")
    code, out, _ = await run(service, *argv, password=None)
    assert (code, out, service.session.credential.username) == (0, f"{OTHER}\n", "shop")
    code, _, _ = await run(service, *argv, "--user", "other")
    assert (code, service.session.credential.username) == (0, "other")


async def test_a_new_gateway_gets_a_configuration_that_loads(
    service: Service, tmp_path: Path
) -> None:
    out_directory = tmp_path / "bundle"
    add = ["gateway", "add", "home2", "--out", str(out_directory), "--lan", "br0", "--lan", "wl0"]
    code, out, _ = await run(
        service, *add, "--msp", "192.0.2.1:8883", "--directory", str(out_directory), "--json"
    )
    assert code == 0
    fingerprint = json.loads(out)["fingerprint"]
    assert await service.registry.is_gateway_allowed("home2", fingerprint)
    loaded = config.load(out_directory / "gwmodule.toml")
    assert loaded.msp.address == ("192.0.2.1:8883",)
    # The address is not in the server's certificate; its own name always is.
    assert loaded.msp.server_name == "gwmodule-msp"
    assert loaded.tls.key == str(out_directory / "gateway.key")
    assert loaded.lan.interface == ("br0", "wl0")
    assert (out_directory / "gateway.key").stat().st_mode & 0o777 == 0o600
    code, _, err = await run(service, *add)
    assert code == 2
    assert "--replace makes a new one" in err
    code, _, err = await run(service, *add, "--replace", "--msp", "msp.example:1")
    assert code == 0
    assert not await service.registry.is_gateway_allowed("home2", fingerprint)
    tree = tomllib.loads((out_directory / "gwmodule.toml").read_text())
    assert "server_name" not in tree["msp"]
    assert tree["tls"]["cafile"] == "/etc/gwmodule/ca.crt"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["gateway", "add", "a b", "--out", "x"], 2, "no gateway name"),
        (["gateway", "add", "a", "--msp", "nowhere"], 2, "not HOST:PORT"),
        (["gateway", "add", "a", "--out", "/proc/1/x"], 1, "/proc/1/x"),
        (["forward", "55e3", "70000"], 2, "between 1 and 65535"),
        (["forward", "55e3", "16994", "--listen", "x"], 2, "not HOST:PORT"),
        (["serve", "--listen", "8883"], 2, "not HOST:PORT"),
        (["nonsense"], 2, "invalid choice"),
        ([], 2, "required"),
    ],
)
async def test_wrong_usage_is_explained(
    service: Service, arguments: list[str], code: int, text: str
) -> None:
    found, out, err = await run(service, *arguments)
    assert (found, out) == (code, "")
    assert text in err


async def test_no_service_is_one_sentence(tmp_path: Path) -> None:
    process = await start("--api", str(tmp_path / "none"), "devices")
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.decode().startswith("gwmodule-msp: no gwmodule-msp service answers on ")
    assert err.count(b"\n") == 1


async def test_sol_over_pipes_says_why_it_ends(service: Service) -> None:
    service.session.connected = False
    code, out, err = await run(service, "sol", "55e3", "--expect", "x")
    assert (code, out, err) == (1, "", "gwmodule-msp: gateway home1 is not connected\n")


async def test_forward_prints_its_port_and_ends_with_sigterm(service: Service) -> None:
    process = await start(
        "forward", "--api", str(service.path), "55e3", "16994", "--listen", "127.0.0.1:0", "--json"
    )
    assert process.stdout is not None
    async with asyncio.timeout(10):
        text = b""
        while b"}" not in text:
            text += await process.stdout.readline()
    where = json.loads(text)
    with socket.socket() as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (where["address"], where["port"]))
        await loop.sock_sendall(sock, b"12345678")
        stream = await service.session.streams.get()
        await stream.wait_for(lambda: stream.written == [b"12345678"])
        process.send_signal(signal.SIGTERM)
        _, err = await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in err


async def test_forget_and_unpin(service: Service) -> None:
    assert (await run(service, "unpin", "55e3"))[0] == 0
    assert (await run(service, "forget", str(PC)))[0] == 0
    assert await service.registry.devices() == []
    code, _, err = await run(service, "forget", str(PC))
    assert (code, err) == (1, f"gwmodule-msp: no device {PC}\n")


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for option, text in (("--version", __version__), ("--help", "gateway")):
        with pytest.raises(SystemExit) as caught:
            cli.main([option])
        assert caught.value.code == 0
        assert text in capsys.readouterr().out


def test_ages_for_people() -> None:
    assert ago(None) == "never"
    assert ago("2020-01-01T00:00:00.000Z").endswith(" d ago")
    assert ago("no time") == "no time"


def test_functions_are_listed_without_a_service(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["functions", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed == [function.as_json() for function in CATALOGUE.values()]
    assert cli.main(["functions"]) == 0
    assert "inventory.get" in capsys.readouterr().out


def test_one_function_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["functions", "power.set"]) == 0
    told = capsys.readouterr().out
    assert "wait: how long to wait for the new state" in told
    assert "between 0 and 300 seconds; default 0" in told
    assert cli.main(["functions", "power.sit"]) == 2
    assert "power.set" in capsys.readouterr().err


def test_the_page_of_functions_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["functions", "--markdown"]) == 0
    page = Path(__file__).parents[2] / "docs/functions.md"
    assert page.read_text() == capsys.readouterr().out
