from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gwmodule.config import UplinkConfig
from gwmodule.errors import LinkLost
from gwmodule.uplink.connect import MAX_LOOKUPS, connect, is_own, require_private_peer


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def dead_port() -> Iterator[int]:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [
            (family, socket.SOCK_STREAM, 0, "", (address, port))
            for address in addresses
            for family in [socket.AF_INET6 if ":" in address else socket.AF_INET]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A resolver whose servers do not answer, until this is set."""
    over = threading.Event()

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        over.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield over
    over.set()
    wait_for_lookups()


def wait_for_lookups() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("resolve"):
            thread.join(5)


async def test_every_address_of_a_name_is_tried(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "::1", "127.0.0.2", "127.0.0.1")
    with await connect("msp.example", server.getsockname()[1], UplinkConfig(), 5.0) as sock:
        assert sock.getpeername() == server.getsockname()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_the_last_failure_is_named_with_address_and_port(
    dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "::1", "127.0.0.1")
    with pytest.raises(LinkLost, match=rf"^127\.0\.0\.1 port {dead_port}: Connection refused$"):
        await connect("msp.example", dead_port, UplinkConfig(), 5.0)


async def test_a_name_without_an_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch)
    with pytest.raises(LinkLost, match=r"^msp\.example has no address$"):
        await connect("msp.example", 8883, UplinkConfig(), 5.0)


async def test_a_name_that_is_not_resolved_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(host: str, port: int, **_: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        LinkLost, match=r"^msp\.example is not resolved: Name or service not known$"
    ):
        await connect("msp.example", 8883, UplinkConfig(), 5.0)


async def test_a_resolver_that_does_not_answer_is_given_up(silence: threading.Event) -> None:
    with pytest.raises(LinkLost, match=r"^msp\.example was not resolved within 0\.05 s$"):
        await connect("msp.example", 8883, UplinkConfig(), 0.05)


def test_a_resolver_that_does_not_answer_holds_up_no_stop(silence: threading.Event) -> None:
    async def stopped_while_resolving() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await connect("msp.example", 8883, UplinkConfig(), 10.0)

    started = time.monotonic()
    asyncio.run(stopped_while_resolving())
    assert time.monotonic() - started < 3


async def test_lookups_that_hang_are_bounded(silence: threading.Event) -> None:
    for _ in range(MAX_LOOKUPS):
        with pytest.raises(LinkLost, match="not resolved within"):
            await connect("msp.example", 8883, UplinkConfig(), 0.01)
    with pytest.raises(LinkLost, match=rf"^{MAX_LOOKUPS} lookups .* hang$"):
        await connect("msp.example", 8883, UplinkConfig(), 0.01)
    silence.set()
    wait_for_lookups()
    with pytest.raises(LinkLost, match="Temporary failure"):
        await connect("msp.example", 8883, UplinkConfig(), 5.0)


async def test_a_name_that_cannot_be_one_is_told_apart() -> None:
    with pytest.raises(UnicodeError):
        await connect("a..b", 8883, UplinkConfig(), 5.0)


async def test_a_box_that_is_out_of_threads_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(MAX_LOOKUPS + 1):
            with pytest.raises(LinkLost, match="can't start new thread"):
                await connect("127.0.0.1", 8883, UplinkConfig(), 5.0)


async def test_a_host_that_does_not_answer_is_given_up() -> None:
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listening.getsockname()[1]
        # Linux drops the SYNs of those for whom the full queue has no place.
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        with pytest.raises(LinkLost, match=rf"port {port}: no answer within 0.1 s$"):
            await connect("127.0.0.1", port, UplinkConfig(), 0.1)


async def test_the_source_is_for_addresses_of_its_own_family(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with await connect("127.0.0.1", port, UplinkConfig(source="127.0.0.9"), 5.0) as sock:
        assert sock.getsockname()[0] == "127.0.0.9"
    with await connect("127.0.0.1", port, UplinkConfig(source="::1"), 5.0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


async def test_a_source_that_this_host_has_lost_is_named(server: socket.socket) -> None:
    with pytest.raises(LinkLost, match="Cannot assign requested address"):
        await connect("127.0.0.1", server.getsockname()[1], UplinkConfig(source="192.0.2.1"), 5.0)


async def test_an_interface_that_is_not_there_is_named(server: socket.socket) -> None:
    with pytest.raises(LinkLost, match="No such device"):
        await connect(
            "127.0.0.1", server.getsockname()[1], UplinkConfig(interface="no-such-wan"), 5.0
        )


@pytest.mark.parametrize(
    ("host", "level", "option"),
    [
        ("127.0.0.1", socket.IPPROTO_IP, socket.IP_TOS),
        ("::1", socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
    ],
)
async def test_the_class_of_service_stands_in_the_upper_six_bits(
    host: str, level: int, option: int
) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        port = listening.getsockname()[1]
        with await connect(host, port, UplinkConfig(dscp=46), 5.0) as sock:
            assert sock.getsockopt(level, option) == 46 << 2


class FarPeer(socket.socket):
    def getpeername(self) -> tuple[str, int]:
        return self.address, 8883

    address = ""


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "192.168.1.1", "::1", "fe80::1%eth0"])
def test_a_loopback_or_private_peer_may_go_without_tls(address: str) -> None:
    with FarPeer() as sock:
        sock.address = address
        require_private_peer(sock)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
def test_a_public_peer_may_not_go_without_tls(address: str) -> None:
    with FarPeer() as sock:
        sock.address = address
        with pytest.raises(LinkLost, match=f'tls.mode is "off", but {address} is neither'):
            require_private_peer(sock)


def test_an_address_is_own_as_long_as_it_can_be_bound() -> None:
    assert is_own("127.0.0.1")
    assert is_own("::1")
    assert not is_own("192.0.2.1")
    assert not is_own("2001:db8::1")
