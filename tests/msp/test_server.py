import asyncio
import random
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gwmodule.config import BackoffConfig, Config, load
from gwmodule.msp.client import ApiClient, ApiRefused, ApiUnavailable
from gwmodule.msp.pki import Authority
from gwmodule.msp.server import wall_clock
from gwmodule.provisioning.provision import Wanted, provision
from gwmodule.uplink.dialer import Dialer
from tests.msp.postgres import Server, required
from tests.uplink.peers import Recorder, until

ServeCommand = Callable[..., list[str]]


@pytest.fixture
def command(tmp_path: Path) -> ServeCommand:
    def build(*extra: str, listen: str = "127.0.0.1:0", api: str = "s") -> list[str]:
        return [
            sys.executable, "-m", "gwmodule.msp.cli", "serve", "--state", str(tmp_path / "state"),
            "--listen", listen, "--api", str(tmp_path / api), *extra,
        ]  # fmt: skip

    return build


@pytest.fixture
async def processes() -> AsyncIterator[list[asyncio.subprocess.Process]]:
    started: list[asyncio.subprocess.Process] = []
    yield started
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def serve(
    processes: list[asyncio.subprocess.Process], argv: list[str]
) -> tuple[asyncio.subprocess.Process, int]:
    """Start the service and wait for its `listening` line; the gateways' port."""
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    processes.append(process)
    assert process.stderr is not None
    async with asyncio.timeout(15):
        while b"event=listening" not in (line := await process.stderr.readline()):
            assert line, "the service ended"
    return process, int(line.partition(b"gateways=127.0.0.1:")[2].split()[0])


def handshake(port: int, bundle: dict[str, str], directory: Path, *, with_key: bool) -> str | None:
    context = ssl.create_default_context(cadata=bundle["ca"])
    context.set_alpn_protocols(["gwmodule/1"])
    if with_key:
        (directory / "crt").write_text(bundle["certificate"])
        (directory / "key").write_text(bundle["key"])
        context.load_cert_chain(directory / "crt", directory / "key")
    with (
        socket.create_connection(("127.0.0.1", port), 5) as sock,
        context.wrap_socket(sock, server_hostname="gwmodule-msp") as tls,
    ):
        if not with_key and not tls.recv(1):
            raise ConnectionResetError("closed instead of reset")
        return tls.selected_alpn_protocol()


async def test_it_serves_gateways_and_technicians_until_sigterm(
    processes: list[asyncio.subprocess.Process], command: ServeCommand, tmp_path: Path
) -> None:
    process, port = await serve(processes, command("--name", "msp.example"))
    async with ApiClient(str(tmp_path / "s")) as client:
        bundle = await client.request("POST", "/api/v1/gateways", {"name": "home1"})
        assert bundle["serverNames"] == ["gwmodule-msp", "msp.example"]
        shaken = await asyncio.to_thread(handshake, port, bundle, tmp_path, with_key=True)
        assert shaken == "gwmodule/1"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(handshake, port, bundle, tmp_path, with_key=False)
        assert (await client.request("GET", "/healthz"))["status"] == "ok"
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        _, err = await process.communicate()
    assert process.returncode == 0
    assert b"event=stopped" in err
    assert b"Traceback" not in err
    assert not (tmp_path / "s").is_socket()


async def test_what_was_enrolled_survives_kill_9(
    processes: list[asyncio.subprocess.Process], command: ServeCommand, tmp_path: Path
) -> None:
    process, _ = await serve(processes, command())
    async with ApiClient(str(tmp_path / "s")) as client:
        before = await client.request("POST", "/api/v1/gateways", {"name": "home1"})
    process.kill()
    await process.wait()
    await serve(processes, command())
    async with ApiClient(str(tmp_path / "s")) as client:
        (gateway,) = await client.request("GET", "/api/v1/gateways")
        assert gateway["fingerprint"] == before["fingerprint"]
        again = await client.request("POST", "/api/v1/gateways", {"name": "home2"})
        assert again["ca"] == before["ca"]


def provisioned(directory: Path, invitation: dict[str, Any]) -> Config:
    """The configuration of a box that has enrolled with this invitation."""
    directory.mkdir()
    (directory / "token").write_text(invitation["token"])
    wanted = Wanted(
        directory / "gwmodule.toml",
        invitation["enrolment"],
        str(directory / "token"),
        invitation["caFingerprint"],
        lan=("br-lan",),
    )
    provision(wanted)
    return replace(load(wanted.config), backoff=BackoffConfig(0.02, 0.1, 10.0))


@pytest.mark.parametrize("revoked", [True, False])
async def test_who_has_a_gateways_old_key_is_out_once_it_is_revoked_or_the_new_one_is_used(
    processes: list[asyncio.subprocess.Process],
    command: ServeCommand,
    tmp_path: Path,
    revoked: bool,
) -> None:
    await serve(processes, command("--name", "127.0.0.1", "--enrol", "127.0.0.1:0"))
    async with ApiClient(str(tmp_path / "s")) as client, asyncio.TaskGroup() as group:

        def dial(config: Config) -> tuple[Dialer, Recorder, asyncio.Task[None]]:
            recorder = Recorder()
            dialer = Dialer(config, recorder, group, random.Random(7))
            return dialer, recorder, group.create_task(dialer.run())

        async def enrolled(box: str, *, again: bool) -> Config:
            path = "/api/v1/gateways/home1/enrolment"
            invitation = await client.request("POST", path, {"replace": again})
            return await asyncio.to_thread(provisioned, tmp_path / box, invitation)

        thief, thiefs, stealing = dial(await enrolled("stolen", again=False))
        await until(lambda: thief.connected)
        if revoked:
            await client.request("DELETE", "/api/v1/gateways/home1")
            await until(lambda: not thief.connected)
        config = await enrolled("new", again=True)
        await until(lambda: not thief.connected)
        owner, owners, owning = dial(config)
        await until(lambda: owner.connected)
        await asyncio.sleep(0.5)
        assert (thiefs.ups, owners.ups, owner.connected) == ([True], [True], True)
        stealing.cancel()
        owning.cancel()


async def test_who_replaces_a_gateway_is_told_what_to_do_if_its_key_was_stolen(
    processes: list[asyncio.subprocess.Process], command: ServeCommand, tmp_path: Path
) -> None:
    await serve(processes, command("--enrol", "127.0.0.1:0"))
    for verb, told in (("add", False), ("replace", True)):
        argv = [sys.executable, "-m", "gwmodule.msp.cli", "--api", str(tmp_path / "s")]
        done = await asyncio.to_thread(
            subprocess.run, [*argv, "gateway", verb, "home1"],
            capture_output=True, text=True, timeout=15, check=True,
        )  # fmt: skip
        assert done.stdout.startswith("echo gwe_")
        assert ("gwmodule-msp gateway revoke home1" in done.stderr) is told


async def test_a_second_service_is_refused_with_the_reason(
    processes: list[asyncio.subprocess.Process], command: ServeCommand, tmp_path: Path
) -> None:
    _, port = await serve(processes, command())
    for argv, reason in (
        (command(api="other"), "another service uses this directory"),
        (
            command("--state", str(tmp_path / "b"), "--log-level", "error"),
            "another service answers",
        ),
        (
            command("--state", str(tmp_path / "c"), listen=f"127.0.0.1:{port}", api="c"),
            "in use",
        ),
    ):
        done = await asyncio.to_thread(
            subprocess.run, argv, capture_output=True, text=True, timeout=15, check=False
        )
        assert done.returncode == 78, done.stderr
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
    async with ApiClient(str(tmp_path / "s")) as client:
        assert (await client.request("GET", "/healthz"))["status"] == "ok"


async def test_it_serves_from_postgresql_and_outlives_a_restart_of_it(
    processes: list[asyncio.subprocess.Process], command: ServeCommand, tmp_path: Path
) -> None:
    server = await asyncio.to_thread(Server, required())
    try:
        await asyncio.to_thread(server.start)
        process, port = await serve(processes, command("--database", server.url()))
        async with ApiClient(str(tmp_path / "s")) as client:
            bundle = await client.request("POST", "/api/v1/gateways", {"name": "home1"})
            await asyncio.to_thread(server.crash)
            with pytest.raises(ApiRefused, match="registry cannot be used now") as refused:
                await client.request("GET", "/api/v1/gateways")
            assert refused.value.status == 503
            # The gateways' side still answers meanwhile.
            shaken = await asyncio.to_thread(handshake, port, bundle, tmp_path, with_key=True)
            assert shaken == "gwmodule/1"
            await asyncio.to_thread(server.start)
            (gateway,) = await client.request("GET", "/api/v1/gateways")
            assert gateway["fingerprint"] == bundle["fingerprint"]
        assert not (tmp_path / "state" / "registry.db").exists()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            _, err = await process.communicate()
        assert process.returncode == 0
        assert b"Traceback" not in err
    finally:
        await asyncio.to_thread(server.remove)


async def test_a_database_or_key_that_cannot_be_used_is_a_clear_error(
    processes: list[asyncio.subprocess.Process], command: ServeCommand, tmp_path: Path
) -> None:
    process, _ = await serve(processes, command())
    process.terminate()
    await process.wait()
    other = tmp_path / "key"
    other.write_text("00" * 32)
    other.chmod(0o600)
    for extra, code, reason in (
        (("--database", f"postgresql://x:secret@/x?host={tmp_path}"), 1, "database localhost/x"),
        (("--database", "mysql://x"), 78, "neither sqlite nor postgresql"),
        (("--key-file", str(other)), 78, "not the key of this database"),
        (("--key-file", "/nowhere"), 78, "No such file"),
    ):
        done = await asyncio.to_thread(
            subprocess.run, command(*extra), capture_output=True, text=True, timeout=15, check=False
        )
        assert done.returncode == code, done.stderr
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
        assert "secret" not in done.stderr


async def test_a_damaged_registry_or_state_is_a_clear_error(
    command: ServeCommand, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "registry.db").write_bytes(b"garbage" * 1000)
    done = await asyncio.to_thread(
        subprocess.run, command(), capture_output=True, text=True, timeout=15, check=False
    )
    assert done.returncode == 1
    assert "not a database" in done.stderr
    assert "Traceback" not in done.stderr
    async with ApiClient(str(tmp_path / "s")) as client:
        with pytest.raises(ApiUnavailable):
            await client.request("GET", "/healthz")


async def test_it_serves_people_over_tcp_with_their_own_login(
    processes: list[asyncio.subprocess.Process], command: ServeCommand, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process, _ = await serve(processes, command("--http", address))
    url = f"http://{address}"
    user = {"name": "anna", "role": "viewer", "password": "correct horse"}
    async with ApiClient(str(tmp_path / "s")) as client:
        await client.request("POST", "/api/v1/users", user)
    async with ApiClient(url) as client:
        with pytest.raises(ApiRefused) as caught:
            await client.request("GET", "/api/v1/devices")
        assert caught.value.status == 401
        login = {"username": "anna", "password": "correct horse"}
        token = (await client.request("POST", "/api/v1/authorize", login))["token"]
    async with ApiClient(url, token=token) as client:
        assert await client.request("GET", "/api/v1/devices") == []
        # The key that signs is in the database: a restart ends nobody's session.
        process.kill()
        await process.wait()
        process, _ = await serve(processes, command("--http", address))
        assert await client.request("GET", "/api/v1/devices") == []


def certified(directory: Path, *, of: Path | None = None) -> str:
    """A certificate for 127.0.0.1 that nobody else has, in `directory`; the CA to trust it by."""
    authority = Authority.open(directory, wall_clock())
    authority.ensure_server_certificate(("127.0.0.1",), wall_clock())
    target = of or directory
    for name, path in (
        ("crt", authority.server_certificate_path), ("key", authority.server_key_path)
    ):  # fmt: skip
        (target / f"http.{name}").write_bytes(path.read_bytes())
    return authority.ca


async def said(process: asyncio.subprocess.Process, event: bytes) -> bytes:
    assert process.stderr is not None
    async with asyncio.timeout(5):
        while event not in (line := await process.stderr.readline()):
            assert line, "the service ended"
    return line


async def test_a_renewed_certificate_is_shown_after_hup_and_nothing_ends(
    processes: list[asyncio.subprocess.Process], command: ServeCommand, tmp_path: Path
) -> None:
    here, other = tmp_path / "first", tmp_path / "second"
    former = certified(here)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    files = "--http-certificate", str(here / "http.crt"), "--http-key", str(here / "http.key")
    process, _ = await serve(processes, command("--http", address, *files))

    async def is_shown(ca: str) -> bool:
        async with ApiClient(f"https://{address}", cadata=ca) as client:
            try:
                return bool(await client.request("GET", "/healthz"))
            except ApiUnavailable:
                return False

    async with ApiClient(f"https://{address}", cadata=former) as stays:
        assert await stays.request("GET", "/healthz")
        renewed = certified(other, of=here)
        process.send_signal(signal.SIGHUP)
        await said(process, b"event=reload ")
        assert (await is_shown(renewed), await is_shown(former)) == (True, False)
        # A key that is not the certificate's, and no certificate at all.
        for name, content in (("http.key", (here / "server.key").read_bytes()), ("http.crt", b"x")):
            (here / name).write_bytes(content)
            process.send_signal(signal.SIGHUP)
            assert b"http-certificate" in await said(process, b"event=reload_failed ")
            assert await is_shown(renewed)
        assert await stays.request("GET", "/healthz")


async def test_hup_ends_nothing_where_there_is_no_certificate(
    processes: list[asyncio.subprocess.Process], command: ServeCommand, tmp_path: Path
) -> None:
    process, _ = await serve(processes, command())
    process.send_signal(signal.SIGHUP)
    await said(process, b"event=reload_unchanged")
    async with ApiClient(str(tmp_path / "s")) as client:
        assert await client.request("GET", "/healthz")


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
async def test_it_shows_no_password_to_the_network(command: ServeCommand, address: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        command("--http", address),
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert done.returncode == 78
    assert "no loopback address" in done.stderr
