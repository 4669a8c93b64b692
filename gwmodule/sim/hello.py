"""The Hello message as a device in setup state sends it, without I/O.

Layout: reference/amt-protocols.md section 1, version 3 (PKI), little-endian.
"""

from __future__ import annotations

import hashlib
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
