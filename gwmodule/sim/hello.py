"""The Hello message as a device in setup state sends it, and the resolver for where it goes.

Layout: reference/amt-protocols.md section 1, version 3 (PKI), little-endian.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from dataclasses import dataclass
from uuid import UUID

from construct import (
    Bytes,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32ul,
    Prefixed,
    PrefixedArray,
    Struct,
)

HELLO_PORT = 9971
PKI_VERSION = 3
SHA1, SHA256, SHA384 = 1, 2, 3
# A cycle has fifteen tries, counted 0 to 14.
RETRIES = 15

HELLO = Struct(
    "admin_credentials_set" / Int16ul,
    "version" / Int16ul,
    "retry" / Int32ul,
    "uuid" / Bytes(16),
    "hashes"
    / PrefixedArray(Int8ul, Struct("type" / Int8ul, "hash" / Prefixed(Int8ul, GreedyBytes))),
)


@dataclass(frozen=True, slots=True)
class HelloTarget:
    """Where Hellos go: a name or an address, as somebody typed it into the firmware."""

    host: str
    port: int = HELLO_PORT


def build_hello(uuid: UUID, attempt: int) -> bytes:
    """The message of the `attempt`-th try (from 0), with three made-up root certificate hashes."""
    roots = [
        {"type": SHA1, "hash": hashlib.sha1(b"root 1", usedforsecurity=False).digest()},
        {"type": SHA256, "hash": hashlib.sha256(b"root 2").digest()},
        {"type": SHA384, "hash": hashlib.sha384(b"root 3").digest()},
    ]
    message = {
        "admin_credentials_set": 1,
        "version": PKI_VERSION,
        "retry": attempt % RETRIES,
        "uuid": uuid.bytes_le,
        "hashes": roots,
    }
    return bytes(HELLO.build(message))


async def resolve(host: str) -> str:
    """The first IPv4 address of `host`; OSError when there is none.

    In a thread of its own that nobody waits for: the loop's executor would hold up our exit for as
    long as a resolver takes to give up.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()

    def settle(address: str, error: OSError | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(address)
        else:
            answer.set_exception(error)

    def work() -> None:
        address, failure = "", None
        try:
            infos = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
            address = str(infos[0][4][0])
        except (OSError, UnicodeError) as exc:
            failure = exc if isinstance(exc, OSError) else OSError(f"{host!r} is no host name")
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, address, failure)

    threading.Thread(target=work, name=f"resolve {host}", daemon=True).start()
    return await answer
