"""Third-party data storage: small blocks of flash that AMT 3 to 11 keeps for applications.

    RegisterApplication -> session -> blocks: allocate, read, write, free -> UnregisterApplication

An application is known by vendor, name, enterprise and a UUID of its own; the enterprise must have
been allowed by the administrator before (reference/amt-protocols.md 3.9). Reads and writes go in
fragments; one that fails leaves a result that says where to go on.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator, Mapping
from uuid import UUID

from gwmodule.amt.functions.identity import require_identity, software_versions
from gwmodule.amt.functions.reading import binary, flag, number, numbers, text
from gwmodule.amt.functions.schema import (
    Argument,
    Arguments,
    Context,
    Field,
    Function,
    Kind,
    NotSupported,
    Result,
    Wsman,
)
from gwmodule.amt.wsman import Instance, Value, check_return
from gwmodule.errors import AmtError, BadArgument, DeviceAnswerError, WsmanFault

_SERVICE = "AMT_ThirdPartyDataStorageService"
# The firmware's buffer: what one ReadBlock or WriteBlock may carry.
FRAGMENT = 4096
# Flash for all applications together is 192 KiB; more than this no firmware has.
MAX_BLOCK = 1024 * 1024
# By this the devices know us, unless the caller is another application.
OUR_UUID = UUID("1f6a7f3e-3d0c-4a52-9b7e-6a1d0c5e8b21")


class _Session:
    """A registered application."""

    def __init__(self, client: Wsman, handle: str) -> None:
        self._client = client
        self._handle = handle

    async def invoke(
        self, method: str, arguments: Mapping[str, Value] | None = None, *, reads: bool = False
    ) -> Instance:
        given = {"SessionHandle": self._handle, **(arguments or {})}
        output = await self._client.invoke(_SERVICE, method, given, reads=reads)
        # A write that fails may have written something all the same, so it is judged later.
        if method != "WriteBlock":
            check_return(_SERVICE, method, output)
        return output

    async def block(self, handle: int) -> Result:
        found = await self.invoke("GetBlockAttributes", {"BlockHandle": handle}, reads=True)
        return {
            "block": handle,
            "name": text(found, "BlockName"),
            "size": number(found, "BlockSize"),
            "hidden": flag(found, "BlockHidden"),
        }


@contextlib.asynccontextmanager
async def _registered(client: Wsman, arguments: Arguments) -> AsyncIterator[_Session]:
    given = {
        "CallerUUID": arguments["caller"].hex,
        "VendorName": arguments["vendor"],
        "ApplicationName": arguments["application"],
        "EnterpriseName": arguments["enterprise"],
    }
    try:
        output = await client.invoke(_SERVICE, "RegisterApplication", given)
    except WsmanFault as exc:
        raise NotSupported(await _why_not(client, exc)) from exc
    check_return(_SERVICE, "RegisterApplication", output)
    session = _Session(client, text(output, "SessionHandle"))
    try:
        yield session
    finally:
        # The device ends idle registrations itself; a session that cannot be closed is no failure.
        with contextlib.suppress(AmtError):
            await session.invoke("UnregisterApplication")


async def _why_not(client: Wsman, fault: WsmanFault) -> str:
    versions = software_versions(await client.enumerate("CIM_SoftwareIdentity"))
    version = versions.get("AMT", "")
    major = version.partition(".")[0]
    if major.isdecimal() and len(major) < 4 and int(major) > 11:
        return f"AMT {version} has no third-party data storage: it ended with AMT 11"
    return f"AMT {version} offers no third-party data storage ({fault})"


async def nvm_list(client: Wsman, arguments: Arguments, context: Context) -> Result:
    async with _registered(client, arguments) as session:
        own = await session.invoke("GetCurrentApplicationHandle", reads=True)
        application = number(own, "ApplicationHandle")
        found = await session.invoke(
            "GetAllocatedBlocks", {"BlockOwnerApplication": application}, reads=True
        )
        available = await session.invoke("GetBytesAvailable", reads=True)
        blocks = [await session.block(handle) for handle in numbers(found, "BlockHandles")]
    return {"blocks": blocks, "available": number(available, "BytesAvailable")}


async def nvm_read(client: Wsman, arguments: Arguments, context: Context) -> Result:
    handle, start = arguments["block"], arguments["offset"]
    data = bytearray()
    failure = ""
    async with _registered(client, arguments) as session:
        block = await session.block(handle)
        end = min(start + arguments["size"], block["size"]) if arguments["size"] else block["size"]
        if start > block["size"]:
            raise BadArgument(f"offset is {start}, the block has {block['size']} bytes")
        while start + len(data) < end:
            try:
                data += await _read(session, handle, start + len(data), end)
            except AmtError as exc:
                failure = str(exc)
                break
            context.progress(len(data), end - start, "reading")
    return {
        "data": base64.b64encode(data).decode(),
        "size": len(data),
        "next_offset": start + len(data),
        "complete": not failure,
        "failure": failure,
    }


async def _read(session: _Session, handle: int, offset: int, end: int) -> bytes:
    count = min(FRAGMENT, end - offset)
    asked = {"BlockHandle": handle, "ByteOffset": offset, "ByteCount": count}
    output = await session.invoke("ReadBlock", asked, reads=True)
    data = binary(text(output, "Data"), "Data")
    if not 0 < len(data) <= count:
        raise DeviceAnswerError(f"ReadBlock returned {len(data)} bytes, asked for {count}")
    return data


async def nvm_write(client: Wsman, arguments: Arguments, context: Context) -> Result:
    handle, start, data = arguments["block"], arguments["offset"], arguments["data"]
    await require_identity(client, context)
    written = 0
    failure = ""
    async with _registered(client, arguments) as session:
        block = await session.block(handle)
        if start + len(data) > block["size"]:
            raise BadArgument(
                f"data ends at byte {start + len(data)}, the block has {block['size']} bytes"
            )
        while written < len(data) and not failure:
            fragment = data[written : written + FRAGMENT]
            try:
                count, failure = await _write(session, handle, start + written, fragment)
            except AmtError as exc:
                count, failure = 0, str(exc)
            written += count
            context.progress(written, len(data), "writing")
    return {
        "written": written,
        "next_offset": start + written,
        "complete": not failure,
        "failure": failure,
    }


async def _write(session: _Session, handle: int, offset: int, fragment: bytes) -> tuple[int, str]:
    """How much was written, and why not more."""
    given = {
        "BlockHandle": handle,
        "ByteOffset": offset,
        "Data": base64.b64encode(fragment).decode(),
    }
    output = await session.invoke("WriteBlock", given)
    count = number(output, "BytesWritten")
    if not 0 <= count <= len(fragment):
        raise DeviceAnswerError(f"WriteBlock wrote {count} bytes of {len(fragment)}")
    try:
        check_return(_SERVICE, "WriteBlock", output)
    except AmtError as exc:
        return count, str(exc)
    return count, "" if count else "the device wrote nothing"


async def nvm_allocate(client: Wsman, arguments: Arguments, context: Context) -> Result:
    await require_identity(client, context)
    async with _registered(client, arguments) as session:
        given: dict[str, Value] = {
            "BytesRequested": arguments["size"],
            "BlockHidden": arguments["hidden"],
        }
        if arguments["name"]:
            given["BlockName"] = arguments["name"]
        output = await session.invoke("AllocateBlock", given)
        return await session.block(number(output, "BlockHandle"))


async def nvm_free(client: Wsman, arguments: Arguments, context: Context) -> Result:
    await require_identity(client, context)
    async with _registered(client, arguments) as session:
        await session.invoke("DeallocateBlock", {"BlockHandle": arguments["block"]})
    return {}


_APPLICATION = (
    Argument("enterprise", Kind.TEXT, "enterprise that the device allows", low=1, high=64),
    Argument("vendor", Kind.TEXT, "the application's vendor", default="gwmodule", low=1, high=64),
    Argument("application", Kind.TEXT, "its name", default="gwmodule", low=1, high=64),
    Argument("caller", Kind.UUID, "its UUID", default=OUR_UUID),
)
_BLOCK = Argument("block", Kind.INTEGER, "the block's handle, as nvm.list gives it")
_OFFSET = Argument("offset", Kind.INTEGER, "first byte", default=0, high=MAX_BLOCK, unit="bytes")
_BLOCK_FIELDS = (
    Field("block", Kind.INTEGER, "the block's handle"),
    Field("name", Kind.TEXT, "its name"),
    Field("size", Kind.INTEGER, "its size", unit="bytes"),
    Field("hidden", Kind.BOOLEAN, "whether other applications do not see it"),
)
_FRAGMENTS = (
    Field("next_offset", Kind.INTEGER, "where to go on after a failure", unit="bytes"),
    Field("complete", Kind.BOOLEAN, "whether every fragment went through"),
    Field("failure", Kind.TEXT, "why one did not"),
)

FUNCTIONS = (
    Function(
        "nvm.list",
        "Blocks of an application in AMT's data storage (AMT 3 to 11), and what is left",
        nvm_list,
        _APPLICATION,
        (
            Field("blocks", Kind.LIST, "block, name, size in bytes, hidden"),
            Field("available", Kind.INTEGER, "what can still be allocated", unit="bytes"),
        ),
    ),
    Function(
        "nvm.read",
        "Read a block in fragments of 4 KiB",
        nvm_read,
        (
            *_APPLICATION,
            _BLOCK,
            _OFFSET,
            Argument(
                "size",
                Kind.INTEGER,
                "how much, 0 for the rest of the block",
                default=0,
                high=MAX_BLOCK,
                unit="bytes",
            ),
        ),
        (
            Field("data", Kind.DATA, "what was read"),
            Field("size", Kind.INTEGER, "how much that is", unit="bytes"),
            *_FRAGMENTS,
        ),
    ),
    Function(
        "nvm.write",
        "Write into a block in fragments of 4 KiB",
        nvm_write,
        (*_APPLICATION, _BLOCK, _OFFSET, Argument("data", Kind.DATA, "what to write", low=1)),
        (Field("written", Kind.INTEGER, "how much was written", unit="bytes"), *_FRAGMENTS),
        changes_state=True,
    ),
    Function(
        "nvm.allocate",
        "Allocate a block",
        nvm_allocate,
        (
            *_APPLICATION,
            Argument(
                "size",
                Kind.INTEGER,
                "a multiple of the device's unit, mostly 4096",
                low=1,
                high=MAX_BLOCK,
                unit="bytes",
            ),
            Argument("name", Kind.TEXT, "the block's name", default="", high=32),
            Argument("hidden", Kind.BOOLEAN, "from other applications", default=False),
        ),
        _BLOCK_FIELDS,
        changes_state=True,
    ),
    Function(
        "nvm.free",
        "Give a block and what is in it back",
        nvm_free,
        (*_APPLICATION, _BLOCK),
        changes_state=True,
    ),
)
