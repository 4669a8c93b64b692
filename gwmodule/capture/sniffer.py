"""One AF_PACKET socket: opened with a privilege, used without one.

The order matters. A socket with protocol 0 receives nothing, so the program is attached and
locked before the first frame can arrive; nothing unfiltered gets through and nothing has to be
drained (packet(7)). Only opening needs CAP_NET_RAW: binding, and binding again when the interface
has gone and come back under another index, does not.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from dataclasses import dataclass

from gwmodule.capture.bpf import LAN_PROGRAM, SNAP_LENGTH, assemble
from gwmodule.errors import CaptureError

# asm-generic/socket.h, linux/if_packet.h, linux/if_ether.h, linux/sockios.h
_SO_ATTACH_FILTER = 26
_SO_LOCK_FILTER = 44
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_AUXDATA = 8
_PACKET_OUTGOING = 4
_ETH_P_ALL = 0x0003
_ARPHRD_ETHER = 1
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 0x1
_IFREQ = struct.Struct("16sH14x")
_STATISTICS = struct.Struct("=II")
_AUXDATA = struct.Struct("=IIIHHHH")
_TP_STATUS_VLAN_VALID = 1 << 4
_VLAN_ID = 0x0FFF

# Room for a burst while Python is busy elsewhere; the kernel cuts it to net.core.rmem_max.
_RECEIVE_BUFFER = 4 * 1024 * 1024

_GONE = frozenset({errno.ENETDOWN, errno.ENODEV, errno.ENXIO})


@dataclass(slots=True)
class Frame:
    """`vlan` is the tag that the kernel took out of the frame, None without one."""

    data: bytes
    outgoing: bool
    vlan: int | None


class Sniffer:
    """The frames of one interface that pass the program; the interface may come and go.

    CaptureError from the constructor: no CAP_NET_RAW, or a kernel without packet sockets.
    """

    def __init__(self, ifname: str) -> None:
        self.ifname = ifname
        self.drops = 0
        self._ifindex = 0
        self._lost = False
        self._buffer = bytearray(SNAP_LENGTH)
        try:
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
            )
        except OSError as exc:
            raise CaptureError(f"{ifname}: packet socket: {exc.strerror}") from exc
        try:
            _attach(self._socket, assemble(LAN_PROGRAM))
            self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        except OSError as exc:
            self._socket.close()
            raise CaptureError(f"{ifname}: packet filter: {exc.strerror}") from exc

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    @property
    def state(self) -> str:
        """`up`, `down` or `absent`: what the interface is right now."""
        if not self._ifindex:
            return "absent"
        try:
            request = _IFREQ.pack(self.ifname.encode(), 0)
            answer = fcntl.ioctl(self._socket.fileno(), _SIOCGIFFLAGS, request)
        except OSError:
            return "absent"
        flags: int = _IFREQ.unpack(answer)[1]
        return "up" if flags & _IFF_UP else "down"

    def follow(self) -> None:
        """Bind to the interface if it has come, or come back.

        Call it after every change of the system's interfaces. One that was removed returns under
        another index, usually; one that was down could as well have been replaced, so it is bound
        anew.
        """
        try:
            ifindex = socket.if_nametoindex(self.ifname)
        except OSError:
            self._ifindex = 0
            return
        if ifindex == self._ifindex and not self._lost:
            return
        self._lost = False
        try:
            self._socket.bind((self.ifname, _ETH_P_ALL))
        except OSError as exc:
            if exc.errno not in _GONE:
                raise CaptureError(f"{self.ifname}: bind: {exc.strerror}") from exc
            self._ifindex = 0  # Gone between the two calls; the next event tells.
            return
        self._ifindex = ifindex

    def receive(self) -> Frame | None:
        """The next frame, None when none waits; CaptureError when the interface has gone."""
        while True:
            try:
                size, control, _, address = self._socket.recvmsg_into(
                    [self._buffer], socket.CMSG_SPACE(_AUXDATA.size)
                )
            except BlockingIOError:
                return None
            except OSError as exc:
                if exc.errno not in _GONE:
                    raise
                self._lost = True
                raise CaptureError(f"{self.ifname}: {exc.strerror}") from exc
            ifname, _, packet_type, hardware_type, _ = address
            # A renamed interface is another network until the configuration names it.
            if ifname == self.ifname and hardware_type == _ARPHRD_ETHER:
                return Frame(
                    bytes(memoryview(self._buffer)[:size]),
                    packet_type == _PACKET_OUTGOING,
                    _vlan(control),
                )

    def update_drops(self) -> int:
        """Frames the kernel could not queue since the start. Reading resets the kernel's count."""
        data = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        self.drops += _STATISTICS.unpack(data)[1]
        return self.drops


def _attach(sock: socket.socket, program: bytes) -> None:
    filters = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of 8-byte instructions and where they are.
    fprog = struct.pack("HP", len(program) // 8, ctypes.addressof(filters))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
    sock.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)


def _vlan(control: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in control:
        if level == _SOL_PACKET and kind == _PACKET_AUXDATA and len(data) >= _AUXDATA.size:
            status, _, _, _, _, tci, _ = _AUXDATA.unpack_from(data)
            if status & _TP_STATUS_VLAN_VALID:
                return int(tci) & _VLAN_ID
    return None
