"""The device's answer to an RMCP presence ping, without I/O (reference/amt-protocols.md 3.11)."""

from __future__ import annotations

import struct

from gwmodule.sim.machine import Machine, Provisioning

_HEAD = struct.Struct(">BBBBIBBBB")
_BODY = struct.Struct(">IHBBBB6x")
_ASF = 0x11BE
_INTEL = 0x157
_PING = 0x80
_PONG = 0x40
_BOTH_PORTS = 4
_POST_PROVISIONING = 2


def pong(ping: bytes, machine: Machine, port: int) -> bytes | None:
    """The pong to `ping`, with the same tag; None to anything else. It names the WS-Man `port`."""
    if len(ping) < _HEAD.size:
        return None
    version, _, sequence, kind, enterprise, message, tag, _, _ = _HEAD.unpack_from(ping)
    if (version, kind, enterprise, message) != (6, 6, _ASF, _PING):
        return None
    if not machine.general("RmcpPingResponseEnabled", True):
        return None
    major, minor, *_ = (int(part) for part in machine.profile.version.split("."))
    state = _BOTH_PORTS
    if machine.provisioning is Provisioning.MANAGED:
        state |= _POST_PROVISIONING
    head = _HEAD.pack(6, 0, sequence, 6, _ASF, _PONG, tag, 0, _BODY.size)
    # Four bits hold no 16: later firmware says 15.
    numbers = min(major, 15) << 4 | min(minor, 15)
    return head + _BODY.pack(_INTEL, port, numbers, state, 0x80, 0)
