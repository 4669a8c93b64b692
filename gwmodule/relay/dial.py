"""Opens the gateway's connections into the LAN. Nothing else in the relay dials there.

    cheap rules -> ARP, if the kernel does not know the address -> neighbour rules
                -> connect, bound to the interface -> neighbour rules again -> socket

The last look closes the gap in which an old neighbour entry was still believed: by the end of the
TCP handshake the kernel has heard from the address again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from ipaddress import IPv4Address

from gwmodule.config import Config
from gwmodule.errors import Code, DeviceUnreachable
from gwmodule.lan.netlink import LanWatcher, bind_to_interface
from gwmodule.relay.policy import Policy
from gwmodule.wire.notices import NO_MAC


class LanDialer:
    """TCP and UDP sockets to devices, under the policy."""

    def __init__(self, config: Config, watcher: LanWatcher, policy: Policy) -> None:
        self._connect_timeout = config.streams.connect_timeout
        self._watcher = watcher
        self._policy = policy

    async def dial(
        self, address: IPv4Address, port: int, mac: bytes, within: float | None = None
    ) -> socket.socket:
        """A connected, non-blocking TCP socket to the device with `mac` at `address`.

        `within` is seconds for all of it, default streams.connect_timeout. PolicyRefused, or
        DeviceUnreachable with what the network answered; its `code` tells a closed port
        (CONNECTION_REFUSED) from a device that is silent or gone (UNREACHABLE).
        """
        seconds = self._connect_timeout if within is None else within
        ifname = self._policy.check(self._watcher.model, address, port, None)
        step = f"answer ARP on {ifname}"
        try:
            async with asyncio.timeout(seconds):
                await self._resolve(address, ifname, mac)
                self._policy.check(self._watcher.model, address, port, mac)
                step = f"accept the connection to port {port}"
                sock = await self._connect(address, port, ifname)
        except TimeoutError as exc:
            raise DeviceUnreachable(f"{address} did not {step} within {seconds:g} s") from exc
        except OSError as exc:
            raise unreachable(address, port, exc) from exc
        try:
            self._policy.check(self._watcher.model, address, port, mac)
        except BaseException:
            sock.close()
            raise
        return sock

    def interface(self, address: IPv4Address) -> str:
        """The LAN interface that leads to `address`; PolicyRefused says why there is none."""
        return self._policy.check_address(self._watcher.model, address)

    async def resolve(self, address: IPv4Address, ifname: str, within: float) -> bytes:
        """Who the kernel says is at `address`. DeviceUnreachable when nobody answers ARP."""
        try:
            async with asyncio.timeout(within):
                return await self._watcher.resolve(address, ifname)
        except TimeoutError as exc:
            raise DeviceUnreachable(
                f"{address} did not answer ARP on {ifname} within {within:g} s"
            ) from exc
        except OSError as exc:
            raise DeviceUnreachable(f"{address}: {exc.strerror or exc}") from exc

    async def udp_socket(
        self, address: IPv4Address, port: int, mac: bytes, within: float | None = None
    ) -> socket.socket:
        """A non-blocking UDP socket, connected to the device with `mac` at `address`: for the RMCP
        presence ping, so `port` is not looked at. Errors as `dial`.
        """
        seconds = self._connect_timeout if within is None else within
        model = self._watcher.model
        ifname = self._policy.check_address(model, address)
        try:
            async with asyncio.timeout(seconds):
                await self._resolve(address, ifname, mac)
        except TimeoutError as exc:
            raise DeviceUnreachable(
                f"{address} did not answer ARP on {ifname} within {seconds:g} s"
            ) from exc
        except OSError as exc:
            raise unreachable(address, port, exc) from exc
        self._policy.check_neighbour(model, address, ifname, mac)
        try:
            sock = self._open(socket.SOCK_DGRAM, ifname)
            try:
                sock.connect((str(address), port))
            except BaseException:
                sock.close()
                raise
        except OSError as exc:
            raise unreachable(address, port, exc) from exc
        return sock

    async def _resolve(self, address: IPv4Address, ifname: str, mac: bytes) -> None:
        # Without a MAC to compare with, the policy refuses whatever ARP says: send nothing.
        if mac == NO_MAC:
            return
        if await self._watcher.resolve(address, ifname) != mac:
            # Perhaps another PC has the address by now. The refusal stands, but the kernel looks
            # again, so that the next attempt sees who is really there.
            self._watcher.confirm(address, ifname)

    async def _connect(self, address: IPv4Address, port: int, ifname: str) -> socket.socket:
        sock = self._open(socket.SOCK_STREAM, ifname)
        try:
            # Keystrokes are single bytes: never wait to fill a segment.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
        except BaseException:
            sock.close()
            raise
        return sock

    def _open(self, kind: socket.SocketKind, ifname: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
        try:
            bind_to_interface(sock, ifname, self._watcher.model.address_on(ifname))
        except BaseException:
            sock.close()
            raise
        return sock


def unreachable(address: IPv4Address, port: int, exc: OSError) -> DeviceUnreachable:
    """What the network said, as the answer of a call or stream."""
    text = os.strerror(exc.errno) if exc.errno else str(exc)
    error = DeviceUnreachable(f"{address} port {port}: {text}")
    if exc.errno == errno.ECONNREFUSED:
        error.code = Code.CONNECTION_REFUSED
    return error
