"""Ports that close, and devices that behave badly, seen from the other end of real sockets."""

import asyncio
import contextlib
import dataclasses
import random
import time

import pytest

from gwmodule.amt.redirection import SessionKind
from gwmodule.amt.sol import SolOpened, SolRefused
from gwmodule.errors import DeviceUnreachable, WsmanFault
from gwmodule.sim.device import SimulatedDevice
from gwmodule.sim.machine import Machine
from gwmodule.sim.profiles import PROFILES, Mischief, Profile
from gwmodule.wire.frames import TlsMode
from tests.amt.test_loopback import client_of, run
from tests.sim.test_device import Console, connected, simulated, until
from tests.sim.test_wsman import PC


def machine(profile: Profile, seed: int = 1) -> Machine:
    now = asyncio.get_running_loop().time()
    rng = random.Random(seed)
    return Machine(PC, "P@ssw0rd", now=now, profile=profile, serial_pace=0.05, rng=rng)


def moody(**mischief: float | bool) -> Profile:
    return dataclasses.replace(PROFILES["amt11"], mischief=Mischief(**mischief))  # type: ignore[arg-type]


async def refused(port: int) -> bool:
    try:
        async with connected(port):
            return False
    except ConnectionRefusedError:
        return True


async def test_the_listener_closes_and_opens_the_redirection_ports() -> None:
    async with simulated() as device:
        ports = (device.ports.redirection, device.ports.redirection_tls)
        async with client_of(device, TlsMode.OFF) as client:
            await run(client, "redirection.set", listener=False)
            assert [await refused(port) for port in ports] == [True, True]
            await run(client, "redirection.set", listener=True)
            assert [await refused(port) for port in ports] == [False, False]
        async with connected(ports[0]) as streams:
            assert isinstance(await Console(*streams).next_event(), SolOpened)


async def test_a_port_that_was_taken_meanwhile_stays_closed() -> None:
    async with simulated() as device:
        device.machine.remote.listener = False
        device.changed()
        server = await asyncio.start_server(
            lambda r, w: None, "127.0.0.1", device.ports.redirection
        )
        async with server:
            device.machine.remote.listener = True
            device.changed()
            await asyncio.sleep(0)
            assert not await refused(device.ports.redirection_tls)


async def test_sol_that_is_disabled_is_unsupported() -> None:
    async with simulated() as device:
        async with client_of(device, TlsMode.OFF) as client:
            await run(client, "redirection.set", sol=False)
        async with connected(device.ports.redirection) as streams:
            event = await Console(*streams).next_event()
            assert isinstance(event, SolRefused)
            assert event.status == 3


async def test_the_administrator_ends_a_session() -> None:
    async with simulated() as device, connected(device.ports.redirection) as streams:
        assert isinstance(await Console(*streams).next_event(), SolOpened)
        async with client_of(device, TlsMode.OFF) as client:
            service = "AMT_RedirectionService"
            output = await client.invoke(service, "TerminateSession", {"SessionType": 1})
            assert output["ReturnValue"] == "0"
            output = await client.invoke(service, "TerminateSession", {"SessionType": 1})
            assert output["ReturnValue"] == "36"
        assert device.machine.sessions == frozenset()
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                while await streams[0].read(4096):
                    pass


async def test_a_session_needs_the_consent_that_its_pc_wants() -> None:
    async with simulated(machine(PROFILES["ccm"])) as device:
        async with connected(device.ports.redirection) as streams:
            event = await Console(*streams).next_event()
            assert isinstance(event, SolRefused)
            assert event.status == 0xFF
        async with client_of(device, TlsMode.OFF) as client:
            await run(client, "consent.start")
            code = device.state()["consent_code"]
            assert (await run(client, "consent.send", code=int(code)))["state"] == 3
        async with connected(device.ports.redirection) as streams:
            assert isinstance(await Console(*streams).next_event(), SolOpened)
            assert device.state()["consent"] == "in_session"
        await until(lambda: SessionKind.SOL not in device.machine.sessions)
        assert device.state()["consent"] == "received"


async def test_the_newest_generation_speaks_tls_only() -> None:
    async with simulated(machine(PROFILES["amt16"])) as device:
        assert (device.ports.wsman, device.ports.redirection) == (0, 0)
        async with client_of(device, TlsMode.MODERN) as client:
            assert (await run(client, "identity.get"))["version"] == "16.1.25"
        assert not await refused(device.ports.redirection_tls)


async def test_a_slow_device_answers_all_the_same() -> None:
    async with (
        simulated(machine(moody(slow=1.0, delay=0.1))) as device,
        client_of(device, TlsMode.OFF) as client,
    ):
        begun = time.monotonic()
        await client.get("CIM_Chassis")
        assert time.monotonic() - begun >= 0.1


async def test_a_client_that_does_not_wait_is_no_trouble() -> None:
    async with simulated(machine(moody(slow=1.0, delay=0.2))) as device:
        async with client_of(device, TlsMode.OFF) as client:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.get("CIM_Chassis")
        await asyncio.sleep(0.2)


async def test_a_dropped_request_ends_the_connection() -> None:
    async with (
        simulated(machine(moody(drop=1.0))) as device,
        client_of(device, TlsMode.OFF) as client,
    ):
        with pytest.raises(DeviceUnreachable):
            await client.get("CIM_Chassis")


async def test_half_of_the_dropped_requests_were_obeyed() -> None:
    obeyed = []
    for seed in range(12):
        async with simulated(machine(moody(drop=1.0), seed)) as device:
            async with client_of(device, TlsMode.OFF) as client:
                with pytest.raises(DeviceUnreachable):
                    await client.invoke(
                        "CIM_PowerManagementService", "RequestPowerStateChange", {"PowerState": 10}
                    )
            obeyed.append(device.machine.boots)
    assert set(obeyed) == {0, 1}


async def test_a_fault_out_of_nothing_is_typed() -> None:
    async with (
        simulated(machine(moody(fault=1.0))) as device,
        client_of(device, TlsMode.OFF) as client,
    ):
        with pytest.raises(WsmanFault, match="InternalError"):
            await client.get("CIM_Chassis")


async def test_a_nonce_of_single_use_costs_a_401_each_time() -> None:
    async with (
        simulated(machine(moody(single_use=True, page=1))) as device,
        client_of(device, TlsMode.OFF) as client,
    ):
        instances = await client.enumerate("CIM_SoftwareIdentity")
        assert len(instances) == 11
        # One enumeration and eleven pulls, two exchanges each.
        assert client.facts.exchanges == 24


async def read_until_it_works(device: SimulatedDevice) -> tuple[int, list[str]]:
    failures = []
    while True:
        async with client_of(device, TlsMode.OFF) as client:
            try:
                result = await run(client, "inventory.get")
            except (DeviceUnreachable, WsmanFault) as exc:
                failures.append(type(exc).__name__)
                continue
        if not result["missing"]:
            return len(failures), failures


async def test_a_flaky_device_can_be_read_with_patience_and_repeats_its_moods() -> None:
    profile = dataclasses.replace(
        PROFILES["flaky"], mischief=dataclasses.replace(PROFILES["flaky"].mischief, delay=0.01)
    )
    seen = []
    for _ in range(2):
        async with simulated(machine(profile, seed=3)) as device:
            seen.append(await read_until_it_works(device))
    assert seen[0] == seen[1]
