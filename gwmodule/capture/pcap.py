"""The pcap file format (libpcap's pcap-savefile(5)): what `gwmodule capture -w` writes."""

from __future__ import annotations

import struct

from gwmodule.capture.bpf import SNAP_LENGTH

_MAGIC_MICROSECONDS = 0xA1B2C3D4
_LINKTYPE_ETHERNET = 1
_FILE_HEADER = struct.Struct("<IHHiIII")
_RECORD_HEADER = struct.Struct("<IIII")
_ADDRESSES = 12  # Destination and source; a VLAN tag follows them.
_TPID = 0x8100  # IEEE 802.1Q
_TAG = struct.Struct("!HH")

FILE_HEADER = _FILE_HEADER.pack(_MAGIC_MICROSECONDS, 2, 4, 0, 0, SNAP_LENGTH, _LINKTYPE_ETHERNET)


def build_record(frame: bytes, length: int, at: float) -> bytes:
    """One frame of `length` bytes on the wire, of which `frame` was kept; `at` is unix seconds."""
    seconds, micros = divmod(round(at * 1_000_000), 1_000_000)
    return _RECORD_HEADER.pack(seconds, micros, len(frame), length) + frame


def with_vlan(frame: bytes, vlan: int | None) -> bytes:
    """The frame with the tag that the kernel took out of it."""
    if vlan is None:
        return frame
    return frame[:_ADDRESSES] + _TAG.pack(_TPID, vlan) + frame[_ADDRESSES:]
