"""A TCP connection to the MSP over the WAN that the configuration names."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
from concurrent.futures import Future
from typing import Any

from gwmodule.config import UplinkConfig
from gwmodule.errors import LinkLost

# Lookups that may hang at once, each in a thread. A new one is worth its thread: the WAN, and with
# it the resolver, may be another one by now.
MAX_LOOKUPS = 4
_lookups = threading.BoundedSemaphore(MAX_LOOKUPS)


async def connect(host: str, port: int, uplink: UplinkConfig, patience: float) -> socket.socket:
    """Every address of the name in turn, as resolved now; each has `patience` seconds.

    LinkLost names the last failure. UnicodeError (a ValueError) when `host` cannot be a name.
    """
    try:
        async with asyncio.timeout(patience):
            found = await _resolve(host, port)
    except TimeoutError as exc:
        raise LinkLost(f"{host} was not resolved within {patience:g} s") from exc
    except OSError as exc:
        raise LinkLost(f"{host} is not resolved: {exc.strerror}") from exc
    failure = LinkLost(f"{host} has no address")
    for family, _, _, _, address in found:
        try:
            return await _connect_to(family, address, uplink, patience)
        except TimeoutError:
            failure = LinkLost(f"{address[0]} port {port}: no answer within {patience:g} s")
        except OSError as exc:
            # asyncio's own text has the address once more and not the reason.
            reason = os.strerror(exc.errno) if exc.errno else str(exc)
            failure = LinkLost(f"{address[0]} port {port}: {reason}")
    raise failure


async def _resolve(host: str, port: int) -> list[Any]:
    """`getaddrinfo` in a thread that nobody waits for: the loop's executor is joined when the loop
    ends, and with a dead resolver a service would be killed before that.
    """
    if not _lookups.acquire(blocking=False):
        raise LinkLost(f"{MAX_LOOKUPS} lookups of a name hang")
    found: Future[list[Any]] = Future()
    found.set_running_or_notify_cancel()

    def look_up() -> None:
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as exc:
            found.set_exception(exc)
        else:
            found.set_result(addresses)
        finally:
            _lookups.release()

    try:
        threading.Thread(target=look_up, name=f"resolve-{host}", daemon=True).start()
    except RuntimeError as exc:
        _lookups.release()
        raise LinkLost(f"{host} is not resolved: {exc}") from exc
    return await asyncio.wrap_future(found)


async def _connect_to(
    family: int, address: Any, uplink: UplinkConfig, patience: float
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _bind(sock, uplink)
        async with asyncio.timeout(patience):
            await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, uplink: UplinkConfig) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if uplink.interface:
        interface = uplink.interface.encode() + b"\0"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface)
    if uplink.source and (":" in uplink.source) == (sock.family == socket.AF_INET6):
        sock.bind((uplink.source, 0))
    if uplink.dscp:
        # The upper six bits of the octet; the lower two are ECN's (RFC 2474 section 3).
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, uplink.dscp << 2)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, uplink.dscp << 2)


def require_private_peer(sock: socket.socket) -> None:
    """Without TLS only a loopback or private peer; LinkLost otherwise."""
    address = ipaddress.ip_address(sock.getpeername()[0].partition("%")[0])
    if not address.is_private:
        raise LinkLost(f'tls.mode is "off", but {address} is neither loopback nor private')


def is_own(address: str) -> bool:
    """Whether this host still has the address: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True
