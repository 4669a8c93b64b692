"""Third-party data storage (3PDS) of AMT 3 to 11, without I/O: flash that survives the PC's disk.

    register(names) --> session --> allocate(size) --> block --> write, read in pieces of MTU

Methods and limits: reference/amt-protocols.md 3.9. Statuses are PT_STATUS (3.2).
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

# One call carries no more, and blocks are multiples of it.
MTU = 4096
TOTAL_SIZE = 192 * 1024
# What an application may have that nobody has made a partner.
OTHERS_QUOTA = 16 * 1024
MAX_ENTERPRISES = 4
MAX_PARTNERS = 16
MAX_SESSIONS = 16
MAX_NAME = 64
MAX_BLOCK_NAME = 32
_CALLER = re.compile(r"[0-9A-Fa-f]{32}")


class Status(enum.IntEnum):
    """PT_STATUS."""

    SUCCESS = 0
    INVALID_NAME = 0xC
    INVALID_BYTE_COUNT = 0xF
    NOT_PERMITTED = 0x10
    MAX_LIMIT_REACHED = 0x17
    INVALID_PARAMETER = 0x24
    INVALID_HANDLE = 0x805
    DUPLICATE = 0x80A
    NOT_FOUND = 0x814


class StorageRefused(Exception):
    """A call that ends with another status than success."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


@dataclass(frozen=True, slots=True)
class Application:
    """Who owns blocks. The same four names are the same application, whichever session asks."""

    caller: str
    vendor: str
    name: str
    enterprise: str


@dataclass(slots=True)
class Block:
    owner: int
    name: str
    hidden: bool
    data: bytearray
    # The session that locked it.
    locked_by: str = ""


class Storage:
    """Blocks, who owns them, and who may have some. StorageRefused carries the status."""

    def __init__(self, enterprise: str) -> None:
        # EACL: enterprises that exist at all. FPACL: quotas of (vendor, application).
        self.enterprises: dict[int, str] = {1: enterprise}
        self._partners: dict[tuple[str, str], int] = {}
        self._applications: dict[int, Application] = {}
        self._sessions: dict[str, int] = {}
        self._blocks: dict[int, Block] = {}
        self._last_handle = 1

    # ---- the administrator --------------------------------------------------------------------

    def add_enterprise(self, name: str) -> int:
        _check_name(name, MAX_NAME)
        if name in self.enterprises.values():
            raise StorageRefused(Status.DUPLICATE)
        if len(self.enterprises) >= MAX_ENTERPRISES:
            raise StorageRefused(Status.MAX_LIMIT_REACHED)
        handle = self._next_handle()
        self.enterprises[handle] = name
        return handle

    def remove_enterprise(self, handle: int) -> None:
        if self.enterprises.pop(handle, None) is None:
            raise StorageRefused(Status.INVALID_HANDLE)

    def add_partner(self, vendor: str, application: str, quota: int) -> int:
        _check_name(vendor, MAX_NAME)
        _check_name(application, MAX_NAME)
        if (vendor, application) in self._partners:
            raise StorageRefused(Status.DUPLICATE)
        if len(self._partners) >= MAX_PARTNERS:
            raise StorageRefused(Status.MAX_LIMIT_REACHED)
        if not 0 < quota <= TOTAL_SIZE:
            raise StorageRefused(Status.INVALID_PARAMETER)
        self._partners[vendor, application] = quota
        return self._next_handle()

    # ---- sessions -----------------------------------------------------------------------------

    def register(self, application: Application) -> str:
        """A session handle: eight hex digits."""
        if not _CALLER.fullmatch(application.caller):
            raise StorageRefused(Status.INVALID_PARAMETER)
        for name in (application.vendor, application.name):
            _check_name(name, MAX_NAME)
        if application.enterprise not in self.enterprises.values():
            raise StorageRefused(Status.NOT_PERMITTED)
        handle = next((h for h, each in self._applications.items() if each == application), 0)
        if not handle:
            handle = self._next_handle()
            self._applications[handle] = application
        while len(self._sessions) >= MAX_SESSIONS:
            self.unregister(next(iter(self._sessions)))
        session = f"{self._next_handle():08X}"
        self._sessions[session] = handle
        return session

    def unregister(self, session: str) -> None:
        """End the session; its blocks stay, its locks do not."""
        self.application(session)
        del self._sessions[session]
        for block in self._blocks.values():
            if block.locked_by == session:
                block.locked_by = ""

    def application(self, session: str) -> int:
        """The application's handle."""
        if session not in self._sessions:
            raise StorageRefused(Status.INVALID_HANDLE)
        return self._sessions[session]

    def applications(self, session: str) -> list[int]:
        """The handles of all applications of the same vendor."""
        vendor = self._applications[self.application(session)].vendor
        return [h for h, each in self._applications.items() if each.vendor == vendor]

    def attributes(self, session: str, application: int) -> Application:
        if application not in self.applications(session):
            raise StorageRefused(Status.INVALID_HANDLE)
        return self._applications[application]

    def remove_application(self, session: str) -> None:
        """Everything it has goes with it."""
        handle = self.application(session)
        del self._applications[handle]
        self._sessions = {s: h for s, h in self._sessions.items() if h != handle}
        self._blocks = {h: b for h, b in self._blocks.items() if b.owner != handle}

    # ---- blocks -------------------------------------------------------------------------------

    def available(self, session: str) -> int:
        """Bytes that this application may still allocate."""
        handle = self.application(session)
        application = self._applications[handle]
        quota = self._partners.get((application.vendor, application.name), OTHERS_QUOTA)
        own = sum(len(block.data) for block in self._blocks.values() if block.owner == handle)
        used = sum(len(block.data) for block in self._blocks.values())
        return max(0, min(quota - own, TOTAL_SIZE - used))

    def allocate(self, session: str, size: int, name: str, *, hidden: bool) -> int:
        owner = self.application(session)
        if name:
            _check_name(name, MAX_BLOCK_NAME)
        if size <= 0 or size % MTU:
            raise StorageRefused(Status.INVALID_BYTE_COUNT)
        if size > self.available(session):
            raise StorageRefused(Status.MAX_LIMIT_REACHED)
        handle = self._next_handle()
        self._blocks[handle] = Block(owner, name, hidden, bytearray(size))
        return handle

    def deallocate(self, session: str, handle: int) -> None:
        self._own(session, handle)
        del self._blocks[handle]

    def blocks(self, session: str, owner: int) -> list[int]:
        """The handles of `owner`'s blocks that this session may know of."""
        own = self.application(session)
        if owner not in self._applications:
            raise StorageRefused(Status.INVALID_HANDLE)
        return [
            handle
            for handle, block in self._blocks.items()
            if block.owner == owner and (owner == own or not block.hidden)
        ]

    def block(self, session: str, handle: int) -> Block:
        """Its attributes; hidden from others when they are not to know of it."""
        own = self.application(session)
        block = self._blocks.get(handle)
        if block is None or (block.hidden and block.owner != own):
            raise StorageRefused(Status.INVALID_HANDLE)
        return block

    def lock(self, session: str, handle: int) -> None:
        self._own(session, handle).locked_by = session

    def unlock(self, session: str, handle: int) -> None:
        self._own(session, handle).locked_by = ""

    def read(self, session: str, handle: int, offset: int, count: int) -> bytes:
        block = self._own(session, handle)
        if not 0 < count <= MTU:
            raise StorageRefused(Status.INVALID_BYTE_COUNT)
        if not 0 <= offset <= len(block.data) - count:
            raise StorageRefused(Status.INVALID_PARAMETER)
        return bytes(block.data[offset : offset + count])

    def write(self, session: str, handle: int, offset: int, data: bytes) -> int:
        """How many bytes were written."""
        block = self._own(session, handle)
        if not 0 < len(data) <= MTU:
            raise StorageRefused(Status.INVALID_BYTE_COUNT)
        if not 0 <= offset <= len(block.data) - len(data):
            raise StorageRefused(Status.INVALID_PARAMETER)
        block.data[offset : offset + len(data)] = data
        return len(data)

    def _own(self, session: str, handle: int) -> Block:
        block = self.block(session, handle)
        if block.owner != self.application(session) or block.locked_by not in ("", session):
            raise StorageRefused(Status.NOT_PERMITTED)
        return block

    def _next_handle(self) -> int:
        self._last_handle += 1
        return self._last_handle


def _check_name(name: str, most: int) -> None:
    if not 0 < len(name) <= most or not name.isprintable():
        raise StorageRefused(Status.INVALID_NAME)
