from __future__ import annotations

import asyncio
import random
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.config import Config
from gwmodule.errors import BadArgument, Code, DeviceUnreachable, PolicyRefused
from gwmodule.explain import Explainer, Result, Target, parse_target
from gwmodule.gateway import Relay
from gwmodule.relay.policy import Lockdown
from gwmodule.sim.device import ANY_PORTS, SimulatedDevice
from gwmodule.sim.machine import Machine, Provisioning
from gwmodule.wire.functions import EXPLAIN
from gwmodule.wire.messages import Call
from gwmodule.wire.notices import NO_MAC, NO_UUID

ADDRESS = IPv4Address("192.0.2.7")
MAC = bytes.fromhex("020000000007")
OTHER = bytes.fromhex("020000000008")
UUID_1 = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
ROW: dict[str, Any] = {
    "mac": "02:00:00:00:00:07",
    "address": str(ADDRESS),
    "hostname": "pc",
    "uuid": str(UUID_1),
    "state": "managed",
    "reachable": True,
    "seen_ago": 3.0,
    "lease_left": 600.0,
    "provisioning": None,
}
STEPS = [
    "known", "access", "policy", "lease", "neighbour", "ports", "tls", "amt", "provisioned",
    "redirection", "uuid", "sessions",
]  # fmt: skip


@dataclass
class Home:
    """A LAN with one PC in it, as far as the checklist looks."""

    ports: dict[int, int] = field(default_factory=dict)
    mac: bytes | None = MAC
    forbidden: bool = False
    silent: bool = False
    rows: list[dict[str, Any]] = field(default_factory=lambda: [dict(ROW)])
    locked: bool = False
    udp: int = 0
    activity: dict[str, int] = field(default_factory=dict)
    opened: list[socket.socket] = field(default_factory=list)

    def interface(self, address: IPv4Address) -> str:
        if self.forbidden:
            raise PolicyRefused("wan-address", f"{address} is on the WAN")
        return "br-lan"

    async def resolve(self, address: IPv4Address, ifname: str, within: float) -> bytes:
        if self.mac is None:
            raise DeviceUnreachable(f"{address} did not answer ARP on {ifname} within {within:g} s")
        return self.mac

    async def dial(
        self, address: IPv4Address, port: int, mac: bytes, within: float | None = None
    ) -> socket.socket:
        assert mac == self.mac
        if port not in self.ports:
            error = DeviceUnreachable(f"{address} port {port}: Connection refused")
            error.code = Code.UNREACHABLE if self.silent else Code.CONNECTION_REFUSED
            raise error
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.ports[port]))
        self.opened.append(sock)
        return sock

    async def udp_socket(
        self, address: IPv4Address, port: int, mac: bytes, within: float | None = None
    ) -> socket.socket:
        if not self.udp:
            raise DeviceUnreachable("no route")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(("127.0.0.1", self.udp))
        return sock

    async def explain(self, target: Target | None = None, limit: float = 9.0) -> dict[str, Any]:
        explainer = Explainer(
            self,
            rows=lambda: self.rows,
            leases_from=lambda: "",
            locked=lambda: self.locked,
            activity=lambda address, mac: self.activity,
            limit=limit,
        )
        answer = await explainer.explain(target or Target(uuid=UUID_1))
        assert [sock for sock in self.opened if sock.fileno() >= 0] == []
        return answer


def of(device: SimulatedDevice) -> dict[int, int]:
    own = device.ports
    return {
        16992: own.wsman,
        16993: own.wsman_tls,
        16994: own.redirection,
        16995: own.redirection_tls,
    }


async def device(activated: bool = True) -> SimulatedDevice:
    state = Provisioning.MANAGED if activated else Provisioning.SETUP
    machine = Machine(UUID_1, "P@ssw0rd", provisioning=state, now=asyncio.get_running_loop().time())
    return SimulatedDevice("127.0.0.1", machine, ports=ANY_PORTS)


def step(answer: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in answer["steps"] if s["step"] == name)
    return found


async def test_a_managed_device_passes_every_step_without_a_login() -> None:
    async with await device() as simulated:
        home = Home(of(simulated), udp=simulated.ports.rmcp, activity={"streams open": 2})
        answer = await home.explain()
    assert (answer["ok"], answer["failed"], answer["advice"]) == (True, None, "")
    assert [s["step"] for s in answer["steps"]] == STEPS
    assert {s["result"] for s in answer["steps"]} == {Result.OK}
    assert answer["device"]["mac"] == "02:00:00:00:00:07"
    assert "TLSv1.3, certificate " in step(answer, "tls")["found"]
    assert simulated.machine.realm in step(answer, "amt")["found"]
    assert step(answer, "sessions")["found"] == "2 streams open"


async def test_a_device_without_tls_and_redirection_works_but_is_worth_a_look() -> None:
    async with await device() as simulated:
        answer = await Home({16992: simulated.ports.wsman}).explain()
    assert answer["ok"]
    notes = [s["step"] for s in answer["steps"] if s["result"] == Result.NOTE]
    assert notes == ["tls", "provisioned", "redirection"]
    assert step(answer, "amt")["result"] == Result.OK
    assert all(s["advice"] for s in answer["steps"] if s["result"] == Result.NOTE)


async def test_a_device_in_setup_state_is_told_to_be_provisioned() -> None:
    async with await device(activated=False) as simulated:
        answer = await Home(of(simulated), udp=simulated.ports.rmcp).explain()
    assert "provisioned" in [s["step"] for s in answer["steps"] if s["result"] == Result.FAILED]
    assert "MEBx" in step(answer, "provisioned")["advice"]


@pytest.mark.parametrize(
    ("home", "failed", "advice"),
    [
        (Home(rows=[]), "known", "network cable"),
        (Home(locked=True), "access", "gwmodule lockdown off"),
        (Home(forbidden=True), "policy", "lan.interface"),
        (Home(mac=None), "neighbour", "mains power"),
        (Home(mac=OTHER), "neighbour", "another PC has this address"),
        (Home(), "ports", "AMT does not listen"),
        (Home(silent=True), "ports", "firewall"),
    ],
    ids=["unknown", "locked", "policy", "off", "other-mac", "refused", "silent"],
)
async def test_the_first_step_that_fails_says_what_to_do(
    home: Home, failed: str, advice: str
) -> None:
    answer = await home.explain()
    assert (answer["ok"], answer["failed"]) == (False, failed)
    assert advice in answer["advice"]
    later = [s for s in answer["steps"] if s["step"] in STEPS[STEPS.index(failed) + 1 :]]
    if failed in ("policy", "neighbour", "ports"):
        assert step(answer, "amt")["result"] == Result.SKIPPED
        assert f"after {failed}" in [s["found"] for s in later]


async def test_another_certificate_than_the_pinned_one_is_named_with_both() -> None:
    async with await device() as simulated:
        target = Target(UUID_1, ADDRESS, MAC, pin=b"\x11" * 32)
        answer = await Home(of(simulated)).explain(target)
    assert answer["failed"] == "tls"
    assert "11" * 32 in step(answer, "tls")["found"]
    assert "unpin" in answer["advice"]


async def test_another_uuid_than_the_msp_has_is_named_with_both() -> None:
    other = UUID("00112233-4455-6677-8899-aabbccddeeff")
    async with await device() as simulated:
        answer = await Home(of(simulated)).explain(Target(other, ADDRESS, MAC))
    assert answer["failed"] == "uuid"
    assert str(other) in step(answer, "uuid")["found"]
    assert str(UUID_1) in step(answer, "uuid")["found"]


async def serve(answer: bytes) -> asyncio.Server:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    return await asyncio.start_server(talk, "127.0.0.1", 0)


async def test_another_server_on_the_port_is_not_taken_for_amt() -> None:
    page = b"HTTP/1.1 404 Not Found\r\nServer: nginx\r\nContent-Length: 0\r\n\r\n"
    async with await serve(page) as server:
        answer = await Home({16992: server.sockets[0].getsockname()[1]}).explain()
    assert answer["failed"] == "amt"
    assert "nginx" in step(answer, "amt")["found"]


async def test_garbage_instead_of_tls_fails_at_tls() -> None:
    async with await serve(b"") as server:
        port = server.sockets[0].getsockname()[1]
        server.close()
        garbage = await asyncio.start_server(_babble, "127.0.0.1", 0)
        async with garbage:
            port = garbage.sockets[0].getsockname()[1]
            answer = await Home({16993: port}).explain()
    assert answer["failed"] == "tls"
    assert step(answer, "amt")["result"] == Result.SKIPPED


async def _babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\xff" * 100)
    await writer.drain()
    await reader.read(2000)
    writer.close()


async def test_a_device_that_hangs_ends_the_checklist_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        home = Home({16992: hanging.getsockname()[1]})
        answer = await home.explain(limit=0.3)
    assert answer["failed"] == "time"
    assert answer["seconds"] < 2


async def test_an_address_that_nobody_noticed_is_asked_all_the_same() -> None:
    async with await device() as simulated:
        home = Home(of(simulated), rows=[])
        answer = await home.explain(Target(address=ADDRESS))
    assert answer["ok"]
    assert step(answer, "known")["result"] == Result.NOTE
    assert answer["device"]["mac"] == "02:00:00:00:00:07"


@pytest.mark.parametrize(
    ("lease", "found", "result"),
    [
        (60.0, "60 s left", Result.OK),
        (-5.0, "ended 5 s ago", Result.NOTE),
        (None, "not watched", Result.NOTE),
    ],
)
async def test_the_lease_is_told_and_never_a_failure(
    lease: float | None, found: str, result: Result
) -> None:
    answer = await Home(rows=[{**ROW, "lease_left": lease}]).explain()
    assert found in step(answer, "lease")["found"]
    assert step(answer, "lease")["result"] == result


def test_what_somebody_types_is_an_address_a_mac_or_a_uuid() -> None:
    assert parse_target("192.0.2.7") == Target(address=ADDRESS)
    for text in ("02:00:00:00:00:07", "02-00-00-00-00-07", "020000000007"):
        assert parse_target(text) == Target(mac=MAC)
    assert parse_target(str(UUID_1).upper()) == Target(uuid=UUID_1)


@pytest.mark.parametrize("garbage", [None, 7, [], "", "pc", "192.0.2", "::1", "0" * 200, "é" * 17])
def test_anything_else_is_refused(garbage: object) -> None:
    with pytest.raises(BadArgument, match="is no UUID, IPv4 address or MAC address") as problem:
        parse_target(garbage)
    assert str(garbage)[:64] in str(problem.value)
    assert len(str(problem.value)) < 150


@given(st.text(max_size=80))
def test_any_text_gives_a_target_or_a_bad_argument(text: str) -> None:
    try:
        target = parse_target(text)
    except BadArgument:
        return
    assert [target.uuid, target.address, target.mac].count(None) == 2


@pytest.mark.parametrize("mac", [NO_MAC, b"\xff" * 6])
async def test_an_msp_that_names_no_pc_is_not_told_who_is_at_an_address(mac: bytes) -> None:
    relay = Relay(Config(), random.Random(7), Lockdown(False))
    call = Call(1, 5.0, ADDRESS, mac, NO_UUID, EXPLAIN)
    with pytest.raises(PolicyRefused) as refused:
        await relay._explain_to_msp(call)
    assert refused.value.rule == "unknown-mac"
