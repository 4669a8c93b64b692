"""Client, functions and probe against the simulated device, over real sockets."""

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from uuid import UUID

import pytest

from gwmodule.amt import digest
from gwmodule.amt.client import WsmanClient
from gwmodule.amt.functions import CATALOGUE, Context, Result, validate
from gwmodule.amt.presence import probe
from gwmodule.errors import AuthenticationFailed, DeviceUnreachable, IdentityMismatch
from gwmodule.sim.device import ANY_PORTS, SimulatedDevice
from gwmodule.sim.machine import Machine, Provisioning
from gwmodule.wire.frames import CredentialMode, TlsMode
from gwmodule.wire.messages import Credential
from gwmodule.wire.notices import Provisioning as Pong

UUID1 = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
HERE = IPv4Address("127.0.0.1")
MAC = bytes.fromhex("020000000001")


@pytest.fixture
async def device() -> AsyncIterator[SimulatedDevice]:
    machine = Machine(UUID1, "P@ssw0rd", now=asyncio.get_running_loop().time(), hostname="pc7")
    async with SimulatedDevice(str(HERE), machine, ports=ANY_PORTS) as device:
        yield device


def port_of(device: SimulatedDevice, port: int) -> int:
    ports = device.ports
    return {
        16992: ports.wsman,
        16993: ports.wsman_tls,
        16994: ports.redirection,
        16995: ports.redirection_tls,
        623: ports.rmcp,
    }[port]


async def connected(kind: socket.SocketKind, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (str(HERE), port))
    except OSError as exc:
        sock.close()
        raise DeviceUnreachable(f"port {port}: {exc.strerror or exc}") from exc
    return sock


def client_of(device: SimulatedDevice, tls: TlsMode = TlsMode.AUTO) -> WsmanClient:
    machine = device.machine
    secret = digest.ha1("admin", machine.realm, machine.password)
    return WsmanClient(
        lambda port: connected(socket.SOCK_STREAM, port_of(device, port)),
        Credential(CredentialMode.HA1, "admin", secret, machine.realm),
        tls=tls,
        deadline=asyncio.get_running_loop().time() + 10,
    )


async def run(client: WsmanClient, name: str, uuid: UUID = UUID1, **arguments: object) -> Result:
    function = CATALOGUE[name]
    context = Context(sleep=asyncio.sleep, uuid=uuid)
    return await function.run(client, validate(function, arguments), context)


@pytest.mark.parametrize("tls", [TlsMode.OFF, TlsMode.MODERN, TlsMode.LEGACY, TlsMode.AUTO])
async def test_the_three_functions_work_in_every_tls_mode(
    device: SimulatedDevice, tls: TlsMode
) -> None:
    async with client_of(device, tls) as client:
        identity = await run(client, "identity.get")
        before = await run(client, "power.get")
        change = await run(client, "power.set", state="off", wait=3)
        after = await run(client, "power.get")
    assert identity["uuid"] == str(UUID1)
    assert identity["version"] == "12.0.67"
    assert identity["host_name"] == "pc7"
    assert before["power_state_name"] == "on"
    assert change["verified"]
    assert (after["power_state"], after["available"]) == (8, [{"state": 2, "name": "on"}])
    wanted = TlsMode.MODERN if tls is TlsMode.AUTO else tls
    assert client.facts.tls is wanted


async def test_another_device_is_not_switched_off(device: SimulatedDevice) -> None:
    other = UUID("00000000-0000-4000-8000-000000000002")
    async with client_of(device, TlsMode.OFF) as client:
        with pytest.raises(IdentityMismatch, match=f"{UUID1}.*{other}"):
            await run(client, "power.set", other, state="off")
    assert device.machine.power_requests == 0


async def test_a_device_in_setup_refuses_every_login(device: SimulatedDevice) -> None:
    device.machine.provisioning = Provisioning.SETUP
    async with client_of(device, TlsMode.OFF) as client:
        with pytest.raises(AuthenticationFailed):
            await run(client, "power.get")


async def test_the_probe_finds_everything_a_device_shows(device: SimulatedDevice) -> None:
    presence = await probe(
        HERE,
        MAC,
        dial=lambda address, port, mac: connected(socket.SOCK_STREAM, port_of(device, port)),
        udp=lambda address, port, mac: connected(socket.SOCK_DGRAM, port_of(device, port)),
        timeout=3,
    )
    assert presence is not None
    assert presence.ports == (16992, 16993, 16994, 16995)
    assert presence.provisioning is Pong.POST
    assert presence.realm == device.machine.realm
    assert presence.server == device.machine.server_header
    assert presence.pin != bytes(32)


async def test_a_device_that_has_gone_is_unreachable_in_every_tls_mode(
    device: SimulatedDevice,
) -> None:
    ports = dataclasses.replace(device.ports)
    await device.__aexit__(None, None, None)
    device.ports = ports
    for tls in TlsMode:
        async with client_of(device, tls) as client:
            with pytest.raises(DeviceUnreachable, match=r"^Get CIM_Associated.*failed"):
                await run(client, "power.get")
