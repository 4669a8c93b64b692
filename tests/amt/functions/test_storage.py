import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from gwmodule.amt.functions import Context, NotSupported
from gwmodule.amt.wsman import Instance, Value
from gwmodule.errors import BadArgument, DeviceRefused, DeviceUnreachable
from tests.amt.device import FakeDevice, no_sleep, run

SERVICE = "AMT_ThirdPartyDataStorageService"
HANDLE = "00112233"


@dataclass
class Storage(FakeDevice):
    """One block of 10,000 bytes under handle 5; transfers break at the byte `breaks_at`."""

    data: bytearray = field(default_factory=lambda: bytearray(range(250)) * 40)
    breaks_at: int = 1_000_000
    open_sessions: int = 0

    def __post_init__(self) -> None:
        for name in [
            "RegisterApplication",
            "UnregisterApplication",
            "GetCurrentApplicationHandle",
            "ReadBlock",
            "GetAllocatedBlocks",
            "GetBytesAvailable",
            "GetBlockAttributes",
            "WriteBlock",
            "AllocateBlock",
            "DeallocateBlock",
        ]:
            self.methods[f"{SERVICE}.{name}"] = lambda a, name=name: self.answer(name, a)  # type: ignore[misc]

    def answer(self, name: str, arguments: Mapping[str, Value]) -> Instance:
        ok = {"ReturnValue": "0"}
        if name == "RegisterApplication":
            self.open_sessions += 1
            return ok | {"SessionHandle": HANDLE}
        if arguments["SessionHandle"] != HANDLE:
            return {"ReturnValue": "2053"}
        match name:
            case "UnregisterApplication":
                self.open_sessions -= 1
            case "GetCurrentApplicationHandle":
                return ok | {"ApplicationHandle": "3"}
            case "GetAllocatedBlocks":
                return ok | {"BlockHandles": "5"}
            case "GetBytesAvailable":
                return ok | {"BytesAvailable": "4096"}
            case "GetBlockAttributes" if arguments["BlockHandle"] != 5:
                return {"ReturnValue": "2068"}
            case "GetBlockAttributes":
                size = str(len(self.data))
                return ok | {"BlockSize": size, "BlockName": "notes", "BlockHidden": "false"}
            case "ReadBlock":
                start, count = arguments["ByteOffset"], arguments["ByteCount"]
                assert count <= 4096
                if start + count > self.breaks_at:
                    raise DeviceUnreachable("connection lost")
                part = bytes(self.data[start : start + count])
                return ok | {"Data": base64.b64encode(part).decode()}
            case "WriteBlock":
                return self.write(arguments["ByteOffset"], base64.b64decode(arguments["Data"]))
            case "AllocateBlock":
                return ok | {"BlockHandle": "5"}
        return ok

    def write(self, start: int, part: bytes) -> Instance:
        assert len(part) <= 4096
        fits = part[: max(self.breaks_at - start, 0)]
        self.data[start : start + len(fits)] = fits
        value = "0" if fits == part else "1"
        return {"ReturnValue": value, "BytesWritten": str(len(fits))}


async def test_blocks_are_listed_with_what_is_left() -> None:
    device = Storage()
    assert await run(device, "nvm.list", enterprise="ACME") == {
        "blocks": [{"block": 5, "name": "notes", "size": 10_000, "hidden": False}],
        "available": 4096,
    }
    registration = device.arguments[0]
    assert list(registration) == ["CallerUUID", "VendorName", "ApplicationName", "EnterpriseName"]
    assert len(registration["CallerUUID"]) == 32
    assert device.open_sessions == 0


async def test_a_block_is_read_in_fragments() -> None:
    device = Storage()
    seen: list[tuple[int, int]] = []
    context = Context(sleep=no_sleep, progress=lambda done, total, _: seen.append((done, total)))
    result = await run(device, "nvm.read", context, enterprise="E", block=5)
    assert base64.b64decode(result["data"]) == device.data
    assert result["complete"] is True
    assert seen == [(4096, 10_000), (8192, 10_000), (10_000, 10_000)]


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [(0, 10, 10), (9_990, 0, 10), (9_990, 500, 10), (10_000, 0, 0), (1, 4097, 4097)],
)
async def test_a_part_is_read(offset: int, size: int, expected: int) -> None:
    device = Storage()
    result = await run(device, "nvm.read", enterprise="E", block=5, offset=offset, size=size)
    data = base64.b64decode(result["data"])
    assert data == device.data[offset : offset + expected]


async def test_a_failed_read_tells_where_to_go_on() -> None:
    device = Storage(breaks_at=9_000)
    first = await run(device, "nvm.read", enterprise="E", block=5)
    assert (first["complete"], first["next_offset"]) == (False, 8192)
    assert "connection lost" in first["failure"]
    device.breaks_at = 1_000_000
    rest = await run(device, "nvm.read", enterprise="E", block=5, offset=first["next_offset"])
    assert base64.b64decode(first["data"]) + base64.b64decode(rest["data"]) == device.data
    assert device.open_sessions == 0


async def test_a_failed_write_goes_on_where_the_device_stopped() -> None:
    device = Storage(breaks_at=5_000)
    new = bytes(reversed(range(250))) * 40
    sent = base64.b64encode(new).decode()
    first = await run(device, "nvm.write", enterprise="E", block=5, data=sent)
    assert (first["complete"], first["written"], first["next_offset"]) == (False, 5_000, 5_000)
    assert "internal error" in first["failure"]
    device.breaks_at = 1_000_000
    rest = base64.b64encode(new[5_000:]).decode()
    second = await run(device, "nvm.write", enterprise="E", block=5, offset=5_000, data=rest)
    assert second["complete"] is True
    assert device.data == new


async def test_what_does_not_fit_is_refused_before_it_is_written() -> None:
    device = Storage()
    data = base64.b64encode(bytes(20)).decode()
    with pytest.raises(BadArgument, match="byte 10010, the block has 10000"):
        await run(device, "nvm.write", enterprise="E", block=5, offset=9_990, data=data)
    with pytest.raises(BadArgument, match="offset is 10001"):
        await run(device, "nvm.read", enterprise="E", block=5, offset=10_001)
    assert f"{SERVICE}.WriteBlock" not in device.steps
    assert device.open_sessions == 0


async def test_a_block_that_is_not_there_is_refused_and_the_session_closed() -> None:
    device = Storage()
    with pytest.raises(DeviceRefused, match="not found"):
        await run(device, "nvm.read", enterprise="E", block=6)
    assert device.open_sessions == 0


async def test_blocks_come_and_go() -> None:
    device = Storage()
    made = await run(device, "nvm.allocate", enterprise="E", size=4096, name="notes")
    assert made["block"] == 5
    assert await run(device, "nvm.free", enterprise="E", block=5) == {}


@pytest.mark.parametrize(
    ("version", "reason"),
    [("12.0.67", "ended with AMT 11"), ("9.1.0", "offers no"), ("", "offers")],
)
async def test_firmware_without_storage_says_why(version: str, reason: str) -> None:
    software = [{"InstanceID": "AMT", "VersionString": version}]
    with pytest.raises(NotSupported, match=reason):
        await run(FakeDevice({"CIM_SoftwareIdentity": software}), "nvm.list", enterprise="E")


@pytest.mark.parametrize(
    ("output", "failure"),
    [
        ({"BytesWritten": "4097"}, "wrote 4097 bytes of 10"),
        ({"BytesWritten": "0", "ReturnValue": "0"}, "wrote nothing"),
        ({}, "no BytesWritten"),
    ],
)
async def test_a_write_that_makes_no_sense_ends_it(output: Instance, failure: str) -> None:
    device = Storage()
    device.methods[f"{SERVICE}.WriteBlock"] = lambda arguments: output
    data = base64.b64encode(bytes(10)).decode()
    result = await run(device, "nvm.write", enterprise="E", block=5, data=data)
    assert (result["complete"], result["next_offset"]) == (False, 0)
    assert failure in result["failure"]


async def test_a_read_that_returns_too_much_ends_it() -> None:
    device = Storage()
    long = base64.b64encode(bytes(4097)).decode()
    device.methods[f"{SERVICE}.ReadBlock"] = lambda arguments: {"Data": long}
    result = await run(device, "nvm.read", enterprise="E", block=5)
    assert (result["complete"], result["size"]) == (False, 0)
    assert "4097 bytes, asked for 4096" in result["failure"]
