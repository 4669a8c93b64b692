from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

# Loaded by itself: with the layers of scapy.all it would take 25 MiB.
from scapy.layers.l2 import Dot1Q, Ether
from scapy.utils import RawPcapReader, rdpcap

from gwmodule.capture.pcap import FILE_HEADER, build_record, with_vlan
from tests.capture.frames import ack, dhcp_frame

FRAME = dhcp_frame(ack())


def test_scapy_reads_what_was_written() -> None:
    data = FILE_HEADER + build_record(FRAME, len(FRAME), 1700000000.25)
    (packet,) = rdpcap(io.BytesIO(data))
    assert isinstance(packet, Ether)
    assert bytes(packet) == FRAME
    assert float(packet.time) == pytest.approx(1700000000.25, abs=1e-6)


def test_a_cut_frame_keeps_its_length() -> None:
    data = FILE_HEADER + build_record(FRAME[:60], 1500, 1.0)
    ((frame, metadata),) = RawPcapReader(io.BytesIO(data))
    assert (len(frame), metadata.wirelen) == (60, 1500)


def test_the_tag_that_the_kernel_took_out_is_back_in() -> None:
    packet = Ether(with_vlan(FRAME, 7))
    assert packet[Dot1Q].vlan == 7
    assert bytes(packet[Dot1Q].payload) == FRAME[14:]
    assert with_vlan(FRAME, None) == FRAME


@given(st.lists(st.binary(max_size=200), max_size=5), st.floats(0, 4e9))
def test_any_frames_come_back(frames: list[bytes], at: float) -> None:
    data = FILE_HEADER + b"".join(build_record(frame, len(frame), at) for frame in frames)
    assert [frame for frame, _ in RawPcapReader(io.BytesIO(data))] == frames
