"""The kernel's part of the capture: which frames reach us at all, as classic BPF.

Programs are tables of instructions with labels; no libpcap at run time. The program passes

  * IPv4 UDP to port 67 or 68 that is not a fragment (DHCP), and
  * IPv4 TCP to port 9971 that is not a fragment (a Hello in transit; the SYN too, because
    reassembly has to know where the stream starts),

of untagged Ethernet frames and of frames with one VLAN tag. The kernel takes the outer tag out of
the frame and only remembers it beside the frame; then all offsets are those of an untagged frame.
Where it did not (a tag inside a tag, a raw tap), the tag is still at byte 12 and everything after
it lies four bytes further on. One tag is accepted, wherever it is; two are not.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from gwmodule.ports import HELLO_PORT

DHCP_SERVER_PORT = 67
DHCP_CLIENT_PORT = 68

# The most of a frame the kernel hands over. A Hello of the maximum size (8 KiB) that receive
# offload has merged into one segment fits; a larger frame is refused by its own length field.
SNAP_LENGTH = 16384

# linux/bpf_common.h: class | size or operation | mode or source
LD_B_ABS = 0x30
LD_H_ABS = 0x28
LD_H_IND = 0x48
LDX_MSH = 0xB1  # X = 4 * (byte & 0x0f): the length of an IPv4 header.
JEQ = 0x15
JSET = 0x45
RET = 0x06

# linux/filter.h: a load from SKF_AD_OFF on reads what the kernel knows about the frame.
SKF_AD_OFF = 0xFFFFF000
SKF_AD_VLAN_TAG_PRESENT = 48

ETH_P_IP = 0x0800
ETH_P_8021Q = 0x8100
ETH_P_8021AD = 0x88A8
IPPROTO_TCP = 6
IPPROTO_UDP = 17
IPV4_FRAGMENT = 0x3FFF  # More-fragments flag and fragment offset.

ETHERTYPE_OFFSET = 12
ETHERNET_HEADER = 14
VLAN_TAG = 4

MAX_INSTRUCTIONS = 255  # Jump offsets are one byte; the kernel's own limit is 4096.


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step; a jump names the labels to go on at, None is the next instruction."""

    code: int
    k: int = 0
    true: str | None = None
    false: str | None = None
    label: str | None = None


def _ipv4(at: int, prefix: str) -> tuple[Instruction, ...]:
    """The tests of an IPv4 packet that starts at byte `at` of the frame."""
    udp, tcp = f"{prefix}_udp", f"{prefix}_tcp"
    return (
        Instruction(LD_H_ABS, at + 6, label=prefix),
        Instruction(JSET, IPV4_FRAGMENT, true="drop"),
        Instruction(LD_B_ABS, at + 9),
        Instruction(JEQ, IPPROTO_UDP, true=udp),
        Instruction(JEQ, IPPROTO_TCP, true=tcp, false="drop"),
        Instruction(LDX_MSH, at, label=udp),
        Instruction(LD_H_IND, at + 2),
        Instruction(JEQ, DHCP_SERVER_PORT, true="pass"),
        Instruction(JEQ, DHCP_CLIENT_PORT, true="pass", false="drop"),
        Instruction(LDX_MSH, at, label=tcp),
        Instruction(LD_H_IND, at + 2),
        Instruction(JEQ, HELLO_PORT, true="pass", false="drop"),
    )


LAN_PROGRAM: tuple[Instruction, ...] = (
    Instruction(LD_B_ABS, SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT),
    Instruction(JEQ, 1, true="untagged"),
    Instruction(LD_H_ABS, ETHERTYPE_OFFSET),
    Instruction(JEQ, ETH_P_8021Q, true="tagged"),
    Instruction(JEQ, ETH_P_8021AD, true="tagged"),
    Instruction(LD_H_ABS, ETHERTYPE_OFFSET, label="untagged"),
    Instruction(JEQ, ETH_P_IP, true="plain", false="drop"),
    Instruction(LD_H_ABS, ETHERTYPE_OFFSET + VLAN_TAG, label="tagged"),
    Instruction(JEQ, ETH_P_IP, true="shifted", false="drop"),
    *_ipv4(ETHERNET_HEADER, "plain"),
    *_ipv4(ETHERNET_HEADER + VLAN_TAG, "shifted"),
    Instruction(RET, SNAP_LENGTH, label="pass"),
    Instruction(RET, 0, label="drop"),
)


def assemble(program: tuple[Instruction, ...]) -> bytes:
    """The program as the kernel's `struct sock_filter` array (native byte order, 8 bytes each).

    ValueError for an unknown or repeated label, a jump backwards, or too many instructions.
    """
    if len(program) > MAX_INSTRUCTIONS:
        raise ValueError(f"{len(program)} instructions, maximum {MAX_INSTRUCTIONS}")
    labels: dict[str, int] = {}
    for index, instruction in enumerate(program):
        if instruction.label is not None:
            if instruction.label in labels:
                raise ValueError(f"label {instruction.label!r} is defined twice")
            labels[instruction.label] = index
    return b"".join(
        struct.pack(
            "=HBBI",
            instruction.code,
            _distance(labels, instruction.true, index),
            _distance(labels, instruction.false, index),
            instruction.k,
        )
        for index, instruction in enumerate(program)
    )


def _distance(labels: dict[str, int], label: str | None, index: int) -> int:
    if label is None:
        return 0
    if label not in labels:
        raise ValueError(f"instruction {index} jumps to {label!r}, which is nowhere")
    distance = labels[label] - index - 1
    if distance < 0:
        raise ValueError(f"instruction {index} jumps backwards to {label!r}")
    return distance
