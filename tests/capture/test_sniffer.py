from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from gwmodule.capture.sniffer import Frame, Sniffer
from gwmodule.errors import CaptureError
from tests.capture.carrier import wait_for_carrier
from tests.capture.frames import ack, dhcp_frame
from tests.lan.netns import Namespace, needs_root

pytestmark = [pytest.mark.root, needs_root]

FRAME = dhcp_frame(ack())


@pytest.fixture
def lan() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture
def sniffer(lan: Namespace) -> Iterator[Sniffer]:
    sniffer = lan.run(lambda: Sniffer("lan1"))
    yield sniffer
    sniffer.close()


def add_interface(lan: Namespace) -> None:
    lan.ip("link add lan1 type veth peer name pc")
    lan.ip("link set pc up")
    lan.ip("link set lan1 up")
    lan.run(lambda: wait_for_carrier("lan1", "pc"))


def send(lan: Namespace, ifname: str) -> None:
    with lan.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) as sock:
        lan.run(lambda: sock.bind((ifname, 0)))
        sock.send(FRAME)


def received(sniffer: Sniffer) -> Frame | None:
    for _ in range(50):
        frame = sniffer.receive()
        if frame is not None:
            return frame
        time.sleep(0.01)
    return None


def test_incoming_and_outgoing_frames_are_told_apart(lan: Namespace, sniffer: Sniffer) -> None:
    add_interface(lan)
    lan.run(sniffer.follow)
    send(lan, "pc")
    assert received(sniffer) == Frame(FRAME, outgoing=False, vlan=None)
    send(lan, "lan1")
    assert received(sniffer) == Frame(FRAME, outgoing=True, vlan=None)
    assert sniffer.update_drops() == 0


def test_an_interface_may_come_go_down_and_return_as_another(
    lan: Namespace, sniffer: Sniffer
) -> None:
    lan.run(sniffer.follow)
    assert lan.run(lambda: sniffer.state) == "absent"
    add_interface(lan)
    lan.run(sniffer.follow)
    assert lan.run(lambda: sniffer.state) == "up"

    lan.ip("link set lan1 down")
    with pytest.raises(CaptureError, match="lan1: Network is down"):
        sniffer.receive()
    assert lan.run(lambda: sniffer.state) == "down"
    lan.ip("link set lan1 up")
    lan.run(lambda: wait_for_carrier("lan1", "pc"))
    lan.run(sniffer.follow)
    send(lan, "pc")
    assert received(sniffer) is not None

    lan.ip("link delete lan1")
    with pytest.raises(CaptureError, match="lan1: Network is down"):
        sniffer.receive()
    lan.run(sniffer.follow)
    assert lan.run(lambda: sniffer.state) == "absent"
    add_interface(lan)
    lan.run(sniffer.follow)
    send(lan, "pc")
    assert received(sniffer) is not None


def test_a_renamed_interface_is_another_network(lan: Namespace, sniffer: Sniffer) -> None:
    add_interface(lan)
    lan.run(sniffer.follow)
    lan.ip("link set lan1 down")
    lan.ip("link set lan1 name wan1")
    lan.ip("link set wan1 up")
    lan.run(lambda: wait_for_carrier("wan1", "pc"))
    lan.run(sniffer.follow)
    send(lan, "pc")
    with pytest.raises(CaptureError):
        sniffer.receive()
    assert lan.run(lambda: received(sniffer)) is None
    assert lan.run(lambda: sniffer.state) == "absent"


def test_frames_that_the_kernel_could_not_queue_are_counted(
    lan: Namespace, sniffer: Sniffer
) -> None:
    add_interface(lan)
    lan.run(sniffer.follow)
    sender = lan.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    with sender:
        lan.run(lambda: sender.bind(("pc", 0)))
        for _ in range(20000):
            sender.send(FRAME)
    drops = sniffer.update_drops()
    queued = 0
    while sniffer.receive() is not None:
        queued += 1
    assert drops + queued == 20000
    assert sniffer.update_drops() == drops


def test_the_filter_cannot_be_taken_off_again(sniffer: Sniffer) -> None:
    sock = socket.socket(fileno=sniffer.fileno())
    try:
        with pytest.raises(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, 27, 0)  # SO_DETACH_FILTER
    finally:
        sock.detach()
