from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tracemalloc
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast

import pytest

from gwmodule.capture.bpf import SNAP_LENGTH
from gwmodule.capture.datagrams import (
    MAX_DATAGRAM,
    Counters,
    Datagram,
    Recorded,
    Seen,
    build_record,
    parse_datagram,
)
from gwmodule.capture.dhcp import Dissect
from gwmodule.capture.dissect import load_dissector
from gwmodule.capture.observer import Observer
from gwmodule.capture.service import (
    EXIT_CONFIG,
    EXIT_NO_PERMISSION,
    MAX_BACKLOG_BYTES,
    MAX_KEPT,
    MAX_KEPT_AGE,
    MAX_RELAYS,
    READ_BATCH,
    CaptureService,
    History,
    listen,
)
from gwmodule.capture.sniffer import Frame, Sniffer
from gwmodule.errors import CaptureError
from gwmodule.relay.capture_client import CaptureClient
from gwmodule.wire.notices import Hello, Lease, LeaseEnd, Observation
from tests.capture.carrier import wait_for_carrier
from tests.capture.dhcp_home import MACHINE_ID, PC_NAME, dhcp_home, have_dhcp_programs
from tests.capture.frames import (
    DISCOVER,
    HELLO_A,
    PC,
    PC_MAC,
    UUID_A,
    ack,
    dhcp_frame,
    ethernet,
    hello_frames,
    ipv4,
    request,
    tcp,
)
from tests.lan.netns import Namespace, ip, needs_root

LEASE = Lease(PC_MAC, PC, 3600)
STRANGER = bytes.fromhex("020000000001")


class FakeSniffer:
    """A sniffer's surface; an error in `frames` is raised when its turn comes."""

    ifname = "br-lan"
    state = "up"

    def __init__(self) -> None:
        self.frames: deque[bytes | CaptureError] = deque()
        self.follow_error: CaptureError | None = None
        self._wake, self._inside = socket.socketpair()
        self._inside.setblocking(False)

    def put(self, *frames: bytes | CaptureError) -> None:
        self.frames.extend(frames)
        self._wake.send(b"!")

    def fileno(self) -> int:
        return self._inside.fileno()

    def close(self) -> None:
        self._wake.close()
        self._inside.close()

    def follow(self) -> None:
        if self.follow_error is not None:
            raise self.follow_error

    def update_drops(self) -> int:
        return 0

    def receive(self) -> Frame | None:
        if not self.frames:
            self._inside.recv(1000)
            return None
        frame = self.frames.popleft()
        if isinstance(frame, CaptureError):
            raise frame
        return Frame(frame, outgoing=False, vlan=None)


@dataclass
class Relay:
    """The other end of the capture socket."""

    socket: socket.socket
    counters: list[dict[str, Any]] = field(default_factory=list)

    async def next(self) -> Seen:
        while True:
            datagram = await self.datagram()
            if isinstance(datagram, Seen):
                return datagram
            assert isinstance(datagram, Counters)
            self.counters.append(datagram.values)

    async def datagram(self) -> Datagram:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5):
            data = await loop.sock_recv(self.socket, MAX_DATAGRAM)
        if not data:
            raise ConnectionResetError
        return parse_datagram(data)


@dataclass
class Running:
    service: CaptureService
    sniffer: FakeSniffer
    path: Path

    @contextlib.asynccontextmanager
    async def relay(self) -> AsyncIterator[Relay]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, str(self.path))
            yield Relay(sock)


@contextlib.asynccontextmanager
async def running(
    directory: Path,
    allowed_uids: frozenset[int] = frozenset({os.geteuid()}),
    dissect: Dissect | None = None,
) -> AsyncIterator[Running]:
    path = directory / "capture.sock"
    sniffer = FakeSniffer()
    observer = Observer(dissect or load_dissector())
    with listen(path, 0o600) as listener, contextlib.closing(sniffer):
        service = CaptureService([cast(Sniffer, sniffer)], observer, listener, allowed_uids)
        service.start()
        try:
            yield Running(service, sniffer, path)
        finally:
            service.stop()


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_lease_and_a_hello_reach_the_relay(tmp_path: Path) -> None:
    async with running(tmp_path) as run, run.relay() as relay:
        for frame in (dhcp_frame(ack()), *hello_frames(HELLO_A)):
            run.sniffer.put(frame)
        assert await relay.next() == Seen(LEASE, 0.0)
        seen = await relay.next()
        assert isinstance(seen.observation, Hello)
        assert seen.observation.uuid == UUID_A


async def test_counters_come_first_and_name_the_interfaces(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        run.sniffer.put(b"garbage")
        await turns()
        async with run.relay() as relay:
            counters = await relay.datagram()
    assert isinstance(counters, Counters)
    assert counters.values["pid"] == os.getpid()
    assert counters.values["malformed"] == 1
    assert counters.values["interfaces"] == {"br-lan": {"state": "up", "kernel_drops": 0}}
    assert 0 < counters.values["pss_kib"] <= counters.values["rss_kib"]


async def test_what_was_seen_without_a_relay_comes_with_its_age(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        run.sniffer.put(dhcp_frame(ack()))
        await turns()
        async with run.relay() as relay:
            seen = await relay.next()
    assert seen.observation == LEASE
    assert 0 < seen.age < 5


async def test_a_relay_that_was_given_nothing_of_what_waited_for_it_finds_it_again(
    tmp_path: Path,
) -> None:
    large = HELLO_A[:2] + b"\x07\0" + HELLO_A[4:] + bytes(8000)
    macs = [b"\x02" + number.to_bytes(5, "big") for number in range(100)]
    async with running(tmp_path) as run:
        async with run.relay() as stalled:
            await stalled.datagram()
            for mac in macs:
                run.sniffer.put(*hello_frames(large, mac))
            await wait_for(lambda: not run.sniffer.frames)
            await turns()
        async with run.relay() as relay:
            hellos = [(await relay.next()).observation for _ in macs]
    assert [hello.mac for hello in hellos if isinstance(hello, Hello)] == macs


async def test_a_relay_that_begins_anew_in_the_same_process_is_given_what_the_last_one_had(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as run:
        run.sniffer.put(dhcp_frame(ack()))
        await turns()
        given: asyncio.Queue[tuple[Observation, float]] = asyncio.Queue()
        for _ in range(2):
            client = CaptureClient(
                str(run.path),
                lambda observation, age: given.put_nowait((observation, age)),
                lambda values: None,
            )
            async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
                connected = tasks.create_task(client.run())
                observation, age = await given.get()
                connected.cancel()
            assert isinstance(observation, Lease)
            assert 0 < age < 5
            assert given.empty()


def test_what_is_kept_is_given_in_its_order_until_it_is_too_old() -> None:
    history = History()
    history.add(LEASE, now=0.0)
    history.add(LeaseEnd(PC_MAC, PC), now=MAX_KEPT_AGE)
    everything = [(LEASE, MAX_KEPT_AGE), (LeaseEnd(PC_MAC, PC), 0.0)]
    assert list(history.kept(now=MAX_KEPT_AGE)) == everything
    assert list(history.kept(now=MAX_KEPT_AGE + 1)) == [(LeaseEnd(PC_MAC, PC), 1.0)]


def test_the_history_is_bounded() -> None:
    history = History()
    for _ in range(MAX_KEPT * 2):
        history.add(LEASE, now=0.0)
    assert len(list(history.kept(now=0.0))) == MAX_KEPT


async def test_a_relay_that_does_not_read_costs_only_its_own_datagrams(tmp_path: Path) -> None:
    async with running(tmp_path) as run, run.relay(), run.relay() as reader:
        await reader.datagram()
        large = HELLO_A[:2] + b"\x07\0" + HELLO_A[4:] + bytes(8000)
        for number in range(250):
            for frame in hello_frames(large, mac=b"\x02" + number.to_bytes(5, "big")):
                run.sniffer.put(frame)
            assert (await reader.next()).age == 0
        async with run.relay() as late:
            datagram = await late.datagram()
    assert isinstance(datagram, Counters)
    assert datagram.values["hellos"] == 250
    assert datagram.values["outbox_dropped"] > 0


async def test_a_relay_that_reads_late_gets_everything_that_fits(tmp_path: Path) -> None:
    large = HELLO_A[:2] + b"\x07\0" + HELLO_A[4:] + bytes(8000)
    macs = [b"\x02" + number.to_bytes(5, "big") for number in range(100)]
    async with running(tmp_path) as run, run.relay() as late:
        await late.datagram()
        for mac in macs:
            run.sniffer.put(*hello_frames(large, mac))
        await asyncio.sleep(0.1)
        hellos = [(await late.next()).observation for _ in macs]
    assert [hello.mac for hello in hellos if isinstance(hello, Hello)] == macs


async def test_a_relay_has_room_again_for_what_it_has_read(tmp_path: Path) -> None:
    large = HELLO_A[:2] + b"\x07\0" + HELLO_A[4:] + bytes(7000)
    # 1.3 MiB, more than MAX_OUTBOX; half of the first 800 KiB are read before the rest comes.
    macs = [b"\x02" + number.to_bytes(5, "big") for number in range(175)]
    async with running(tmp_path) as run, run.relay() as late:
        await late.datagram()
        hellos = []
        for batch, read in ((macs[:100], 50), (macs[100:], 125)):
            for mac in batch:
                run.sniffer.put(*hello_frames(large, mac))
            await wait_for(lambda: not run.sniffer.frames)
            await turns()
            hellos += [(await late.next()).observation for _ in range(read)]
    assert [hello.mac for hello in hellos if isinstance(hello, Hello)] == macs


async def test_more_than_can_wait_for_the_parser_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gwmodule.capture.service.MAX_BACKLOG", 5)
    macs = [b"\x02" + number.to_bytes(5, "big") for number in range(8)]
    async with running(tmp_path) as run, run.relay() as relay:
        await relay.datagram()
        run.sniffer.put(*(dhcp_frame(ack(mac=mac)) for mac in macs))
        assert [(await relay.next()).observation for _ in range(5)] == [
            Lease(mac, PC, 3600) for mac in macs[:5]
        ]
        async with run.relay() as late:
            counters = await late.datagram()
    assert isinstance(counters, Counters)
    assert (counters.values["backlog_dropped"], counters.values["leases"]) == (3, 5)


async def test_the_largest_segments_cannot_fill_the_memory_while_they_wait(
    tmp_path: Path,
) -> None:
    payload = bytes(SNAP_LENGTH - 54)
    macs = [b"\x02" + number.to_bytes(5, "big") for number in range(4)]
    frames = [ethernet(ipv4(6, tcp(payload)), mac) for mac in macs]
    async with running(tmp_path) as run, run.relay() as relay:
        await relay.datagram()
        tracemalloc.start()
        try:
            run.sniffer.put(*frames * 512)  # 32 MiB
            await wait_for(lambda: not run.sniffer.frames)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # What was parsed has made room.
        run.sniffer.put(dhcp_frame(ack()))
        assert (await relay.next()).observation == LEASE
        async with run.relay() as late:
            counters = await late.datagram()
    assert peak < MAX_BACKLOG_BYTES + 1024 * 1024
    assert isinstance(counters, Counters)
    assert counters.values["backlog_dropped"] > 1024


async def test_five_thousand_pcs_that_boot_at_once_find_room(tmp_path: Path) -> None:
    padding = bytes(300)  # Messages of 548 bytes, the most that every client takes (RFC 2131 2).
    frames = [
        dhcp_frame(payload + padding)
        for number in range(5000)
        for mac in [b"\x02" + number.to_bytes(5, "big")]
        for payload in (request(kind=DISCOVER, mac=mac), request(mac=mac), ack(mac=mac))
    ]
    async with running(tmp_path, dissect=lambda payload: None) as run:
        run.sniffer.put(*frames)
        await wait_for(lambda: not run.sniffer.frames)
        async with run.relay() as late:
            counters = await late.datagram()
    assert isinstance(counters, Counters)
    assert (counters.values["frames"], counters.values["backlog_dropped"]) == (15_000, 0)


async def test_a_relay_that_dies_with_datagrams_waiting_is_let_go(tmp_path: Path) -> None:
    large = HELLO_A[:2] + b"\x07\0" + HELLO_A[4:] + bytes(8000)
    async with running(tmp_path) as run, run.relay() as reader:
        async with run.relay() as dying:
            await dying.datagram()
            for number in range(100):
                mac = b"\x02" + number.to_bytes(5, "big")
                run.sniffer.put(*hello_frames(large, mac))
                await reader.next()
        run.sniffer.put(dhcp_frame(ack()))
        assert (await reader.next()).observation == LEASE


async def test_more_frames_than_one_turn_takes_are_all_read(tmp_path: Path) -> None:
    macs = [b"\x02" + number.to_bytes(5, "big") for number in range(2 * READ_BATCH + 1)]
    async with running(tmp_path) as run, run.relay() as relay:
        await relay.datagram()
        run.sniffer.put(*(dhcp_frame(ack(mac=mac)) for mac in macs))
        leases = [(await relay.next()).observation for _ in macs]
    assert leases == [Lease(mac, PC, 3600) for mac in macs]


async def test_frames_are_copied_to_who_asked_and_no_longer_than_asked(tmp_path: Path) -> None:
    frame, garbage = dhcp_frame(ack()), b"\xff" * 60
    async with running(tmp_path) as run, run.relay() as asking, run.relay() as other:
        await asking.datagram()
        await other.datagram()
        asking.socket.send(build_record(2, 60.0))
        await turns()
        # Also what is no valid message: that is what somebody looks for.
        run.sniffer.put(garbage, frame, frame)
        recorded = [await asking.datagram() for _ in range(2)]
        assert [d.frame for d in recorded if isinstance(d, Recorded)] == [garbage, frame]
        assert isinstance(await asking.datagram(), Seen)
        assert (await other.next()).observation == LEASE


@pytest.mark.parametrize("request_", [build_record(0, 0.0), build_record(5, 0.0)])
async def test_a_request_that_is_over_copies_nothing(tmp_path: Path, request_: bytes) -> None:
    async with running(tmp_path) as run, run.relay() as relay:
        await relay.datagram()
        relay.socket.send(build_record(5, 60.0))
        relay.socket.send(request_)
        await turns()
        await asyncio.sleep(0.01)
        run.sniffer.put(dhcp_frame(ack()))
        assert isinstance(await relay.datagram(), Seen)


async def test_nobody_gets_more_copies_or_for_longer_than_a_recording_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gwmodule.capture.service.MAX_RECORD_COUNT", 2)
    monkeypatch.setattr("gwmodule.capture.service.MAX_RECORD_SECONDS", 0.2)
    garbage = b"\xff" * 60
    async with running(tmp_path) as run, run.relay() as relay:
        await relay.datagram()
        relay.socket.send(build_record(100, 60.0))
        await turns()
        run.sniffer.put(garbage, garbage, dhcp_frame(ack()))
        told = [type(await relay.datagram()) for _ in range(3)]
        assert told == [Recorded, Recorded, Seen]
        relay.socket.send(build_record(100, 60.0))
        await turns()
        await asyncio.sleep(0.25)
        run.sniffer.put(garbage, dhcp_frame(ack()))
        assert isinstance(await relay.datagram(), Seen)


async def test_copies_never_take_the_room_of_observations(tmp_path: Path) -> None:
    macs = [b"\x02" + number.to_bytes(5, "big") for number in range(400)]
    frames = [dhcp_frame(ack(mac=mac)) + bytes(8000) for mac in macs]
    async with running(tmp_path) as run, run.relay() as stalled:
        await stalled.datagram()
        stalled.socket.send(build_record(400, 60.0))
        await turns()
        run.sniffer.put(*frames)
        await wait_for(lambda: not run.sniffer.frames)
        await turns()
        seen = 0
        while seen < len(macs):
            seen += isinstance(await stalled.datagram(), Seen)
        async with run.relay() as late:
            counters = await late.datagram()
    assert isinstance(counters, Counters)
    assert counters.values["frames_dropped"] > 0
    assert counters.values["outbox_dropped"] == 0


async def test_an_interface_that_fails_does_not_end_the_service(tmp_path: Path) -> None:
    async with running(tmp_path) as run, run.relay() as relay:
        run.sniffer.put(CaptureError("br-lan: Network is down"), dhcp_frame(ack()))
        assert (await relay.next()).observation == LEASE


@pytest.mark.root
@needs_root
def test_a_change_of_any_interface_makes_the_service_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    namespace = Namespace()

    async def main() -> None:
        async with running(tmp_path) as run:
            run.sniffer.follow_error = CaptureError("br-lan: bind: Operation not permitted")
            ip("link add other type bridge")
            await wait_for(lambda: "bind: Operation not permitted" in caplog.text)

    namespace.run_async(main)
    namespace.close()


async def test_a_user_who_may_not_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, allowed_uids=frozenset()) as run, run.relay() as relay:
        with pytest.raises(ConnectionResetError):
            await relay.datagram()
    assert "its user may not (--allow-user)" in caplog.text


async def test_too_many_relays_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as run, contextlib.AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(run.relay()) for _ in range(MAX_RELAYS)]
        for relay in relays:
            await relay.datagram()
        async with run.relay() as one_more:
            with pytest.raises(ConnectionResetError):
                await one_more.datagram()
    assert f"{MAX_RELAYS} are connected" in caplog.text


async def test_a_relay_that_talks_is_not_listened_to(tmp_path: Path) -> None:
    async with running(tmp_path) as run, run.relay() as relay:
        relay.socket.send(b"hello?")
        run.sniffer.put(dhcp_frame(ack()))
        assert (await relay.next()).observation == LEASE


def test_the_socket_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "capture.sock"
    with listen(path, 0o600):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "capture.sock"
    listen(path, 0o600).close()
    with listen(path, 0o600):
        assert path.is_socket()


def test_the_socket_of_a_running_service_is_not(tmp_path: Path) -> None:
    path = tmp_path / "capture.sock"
    with listen(path, 0o600), pytest.raises(CaptureError, match="another capture service"):
        listen(path, 0o600)


def test_a_file_in_the_socket_s_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "capture.sock"
    path.write_text("precious")
    with pytest.raises(CaptureError, match="exists and is no socket"):
        listen(path, 0o600)
    assert path.read_text() == "precious"


# The real process

_SERVE = """
import json, logging, sys
from gwmodule.capture.service import main
from gwmodule.config import parse
logging.basicConfig(level=logging.INFO)
sys.exit(main(parse(json.loads(sys.argv[1]))))
"""


def serve_command(path: Path, *interfaces: str) -> list[str]:
    tree = {"lan": {"interface": list(interfaces)}, "capture": {"socket": str(path)}}
    return [sys.executable, "-c", _SERVE, json.dumps(tree)]


def test_without_an_interface_there_is_nothing_to_capture(tmp_path: Path) -> None:
    path = tmp_path / "capture.sock"
    answer = subprocess.run(serve_command(path), capture_output=True, text=True)
    assert answer.returncode == EXIT_CONFIG
    assert "lan.interface: names no interface" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_without_the_privilege_the_reason_is_said(tmp_path: Path) -> None:
    path = tmp_path / "capture.sock"
    command = serve_command(path, "lo")
    command[2] = f"import gwmodule.privileges as p; p.drop_all_capabilities()\n{command[2]}"
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == EXIT_NO_PERMISSION
    assert "lo: packet socket: Operation not permitted" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not path.exists()


async def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise TimeoutError


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Relay]:
    """A relay of a process that is just starting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.setblocking(False)
        await wait_for(lambda: sock.connect_ex(str(path)) == 0)
        yield Relay(sock)


@pytest.mark.root
@needs_root
@pytest.mark.skipif(
    not have_dhcp_programs() and not os.environ.get("CI"), reason="needs dnsmasq and udhcpc"
)
async def test_a_real_pc_binds_renews_and_releases_under_a_process_without_privileges(
    tmp_path: Path,
) -> None:
    path = tmp_path / "capture.sock"
    with dhcp_home(tmp_path) as home:
        service = home.start(home.gateway, *serve_command(path, "br-lan", "guest"))
        async with connected(path) as relay:
            # The first counters come when everything is loaded and bound.
            counters = await relay.datagram()
            assert isinstance(counters, Counters)
            assert counters.values["interfaces"]["br-lan"]["state"] == "up"
            assert counters.values["interfaces"]["guest"]["state"] == "absent"
            assert counters.values["pss_kib"] < 44 * 1024
            assert capabilities(service.pid) == {0}

            pc = home.boot_pc()
            bound = (await relay.next()).observation
            assert isinstance(bound, Lease)
            assert (bound.mac, bound.seconds, bound.hostname) == (PC_MAC, 3600, PC_NAME)
            assert bound.uuid is not None
            assert bound.uuid.bytes_le.hex() == MACHINE_ID

            await wait_for(lambda: has_address(home.pc.tid(), bound.address))
            pc.send_signal(signal.SIGUSR1)
            assert (await relay.next()).observation == bound

            pc.send_signal(signal.SIGUSR2)
            assert (await relay.next()).observation == LeaseEnd(PC_MAC, bound.address)
        assert home.stop(service) == 0
    assert not path.exists()


def capabilities(pid: int) -> set[int]:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {int(line.split()[1], 16) for line in status if line.startswith("Cap")}


def has_address(tid: int, address: IPv4Address) -> bool:
    answer = subprocess.run(
        ["nsenter", "-t", str(tid), "-n", "ip", "-4", "address", "show", "dev", "eth0"],
        capture_output=True,
        text=True,
        check=True,
    )
    return str(address) in answer.stdout


@pytest.mark.root
@needs_root
@pytest.mark.skipif(
    not have_dhcp_programs() and not os.environ.get("CI"), reason="needs dnsmasq and udhcpc"
)
async def test_an_interface_that_vanishes_and_returns_is_captured_again(tmp_path: Path) -> None:
    path = tmp_path / "capture.sock"
    with dhcp_home(tmp_path) as home:
        home.start(home.gateway, *serve_command(path, "guest"))
        async with connected(path) as relay:
            await relay.datagram()
            for number in range(2):
                mac = b"\x02" + number.to_bytes(5, "big")
                home.gateway.ip("link add guest type veth peer name pc2")
                home.gateway.ip("link set pc2 up")
                home.gateway.ip("link set guest up")
                home.gateway.run(lambda: wait_for_carrier("guest", "pc2"))
                sender = home.gateway.run(partial(bound_socket, "pc2"))
                with sender:
                    await repeat_until_seen(
                        relay, partial(sender.send, dhcp_frame(ack(mac=mac), mac=mac)), mac
                    )
                home.gateway.ip("link delete guest")


def bound_socket(ifname: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((ifname, 0))
    return sock


async def repeat_until_seen(relay: Relay, send: Callable[[], int], mac: bytes) -> None:
    """The service binds when the kernel's message has reached it, which nobody else can see."""
    async with asyncio.timeout(10):
        while True:
            send()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    while (await relay.next()).observation != Lease(mac, PC, 3600):
                        pass
                    return
