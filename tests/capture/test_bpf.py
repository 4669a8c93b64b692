from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.capture.bpf import (
    JEQ,
    LAN_PROGRAM,
    LD_H_ABS,
    MAX_INSTRUCTIONS,
    RET,
    SNAP_LENGTH,
    Instruction,
    assemble,
)
from gwmodule.capture.packet import parse_frame
from tests.capture import classic_bpf
from tests.capture.frames import (
    HELLO_A,
    ack,
    dhcp_frame,
    ethernet,
    hello_frames,
    ipv4,
    recorded,
    request,
    tagged,
    tcp,
    udp,
)
from tests.lan.netns import needs_root

PROGRAM = assemble(LAN_PROGRAM)

DHCP = dhcp_frame(ack())
TO_SERVER = ethernet(ipv4(17, udp(request(), 68, 67)))
SYN, HELLO, FIN = hello_frames(HELLO_A)

PASSING = {
    "dhcp to a client": DHCP,
    "dhcp to a server": TO_SERVER,
    "syn": SYN,
    "hello": HELLO,
    "fin": FIN,
    "dhcp behind ip options": ethernet(ipv4(17, udp(ack()), options=bytes(8))),
    "dhcp with a tag": tagged(DHCP),
    "dhcp with a priority tag": tagged(DHCP, vlan=0),
    "dhcp with a service tag": tagged(DHCP, tpid=0x88A8),
    "hello with a tag": tagged(HELLO),
}
DROPPED = {
    "dns": ethernet(ipv4(17, udp(b"?", 53, 5353))),
    "from the dhcp port only": ethernet(ipv4(17, udp(b"?", 67, 69))),
    "web": ethernet(ipv4(6, tcp(b"GET", destination_port=80))),
    "an answer to a hello": ethernet(ipv4(6, tcp(source_port=9971, destination_port=40000))),
    "hello port over udp": ethernet(ipv4(17, udp(HELLO_A, 40000, 9971))),
    "icmp": ethernet(ipv4(1, bytes(8))),
    "arp": ethernet(bytes(28), ethertype=0x0806),
    "ipv6": ethernet(bytes(60), ethertype=0x86DD),
    "first fragment": ethernet(ipv4(17, udp(ack()), fragment=0x2000)),
    "later fragment": ethernet(ipv4(17, udp(ack()), fragment=20)),
    "two tags": tagged(tagged(DHCP)),
    "cut in the ip header": DHCP[:30],
    "cut in the udp header": DHCP[:37],
    "empty": b"",
}


@pytest.mark.parametrize("frame", PASSING.values(), ids=PASSING)
def test_dhcp_and_hello_pass(frame: bytes) -> None:
    assert classic_bpf.run(PROGRAM, frame) == SNAP_LENGTH


@pytest.mark.parametrize("frame", DROPPED.values(), ids=DROPPED)
def test_everything_else_is_dropped(frame: bytes) -> None:
    assert classic_bpf.run(PROGRAM, frame) == 0


def test_a_tag_that_the_kernel_took_out_does_not_shift_anything() -> None:
    assert classic_bpf.run(PROGRAM, DHCP, tag_stripped=True) == SNAP_LENGTH
    assert classic_bpf.run(PROGRAM, tagged(DHCP), tag_stripped=True) == 0


def test_every_frame_of_a_recorded_lease_passes() -> None:
    assert all(classic_bpf.run(PROGRAM, frame) for _, _, frame in recorded())


@given(st.binary(max_size=80))
def test_what_the_parser_takes_for_a_hello_the_program_lets_through(body: bytes) -> None:
    frame = ethernet(ipv4(6, tcp(body)))
    assert parse_frame(frame) is not None
    assert classic_bpf.run(PROGRAM, frame) == SNAP_LENGTH


@given(st.binary(max_size=120))
def test_garbage_is_judged_without_an_error(frame: bytes) -> None:
    assert classic_bpf.run(PROGRAM, frame) in (0, SNAP_LENGTH)


def test_a_jump_counts_the_instructions_it_skips() -> None:
    program = (
        Instruction(LD_H_ABS, 12),
        Instruction(JEQ, 0x0800, false="drop"),
        Instruction(RET, 1),
        Instruction(RET, 0, label="drop"),
    )
    assert assemble(program)[8:16] == bytes.fromhex("1500 00 01 00080000")


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ((Instruction(JEQ, true="nowhere"),), "'nowhere', which is nowhere"),
        ((Instruction(RET, label="a"), Instruction(RET, label="a")), "'a' is defined twice"),
        ((Instruction(RET, label="a"), Instruction(JEQ, true="a")), "backwards to 'a'"),
        ((Instruction(RET),) * (MAX_INSTRUCTIONS + 1), "256 instructions, maximum 255"),
    ],
)
def test_a_program_that_cannot_be_assembled_says_why(
    program: tuple[Instruction, ...], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        assemble(program)


_ON_A_VETH = """
import json, os, socket, subprocess, sys, time
from gwmodule.capture.sniffer import Sniffer
from tests.capture.carrier import wait_for_carrier
subprocess.run("ip link add lan type veth peer name pc && ip link set lan up && ip link set pc up",
               shell=True, check=True)
wait_for_carrier("lan", "pc")
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # A queue of each core's own.
sniffer = Sniffer("lan")
pc = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
pc.bind(("pc", 0))
frames = [bytes.fromhex(frame) for frame in json.load(sys.stdin)]
for frame in frames:  # Not bound yet: none of these may arrive.
    pc.send(frame)
sniffer.follow()
last = frames[0]  # Again: a veth keeps the order, so whatever comes has come before it.
for frame in [*frames, last]:
    pc.send(frame)
received = []
while not received or [data for data, _ in received].count(last.hex()) < 2:
    while (frame := sniffer.receive()) is not None:
        received.append((frame.data.hex(), frame.vlan))
    time.sleep(0.01)
json.dump(received[:-1], sys.stdout)
"""


@pytest.mark.root
@needs_root
def test_the_kernel_agrees_with_the_interpreter() -> None:
    frames = [*PASSING.values(), *(f for f in DROPPED.values() if len(f) > 14)]
    answer = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", _ON_A_VETH],
        input=json.dumps([frame.hex() for frame in frames]),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    received = [(bytes.fromhex(data), vlan) for data, vlan in json.loads(answer.stdout)]
    untagged = [(frame, None) for name, frame in PASSING.items() if "tag" not in name]
    stripped = [
        (frame[:12] + frame[16:], int.from_bytes(frame[14:16], "big"))
        for name, frame in PASSING.items()
        if "tag" in name
    ]
    assert received == untagged + stripped
