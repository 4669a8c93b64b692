from uuid import UUID

import pytest

from gwmodule.amt.functions import Context
from gwmodule.amt.functions.identity import device_uuid, require_identity
from gwmodule.errors import DeviceAnswerError, DeviceRefused, IdentityMismatch
from tests.amt.device import FakeDevice, no_sleep

# The pair of reference/amt-protocols.md 3.4, which proves the byte order.
THEIRS = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
GET_UUID = "AMT_SetupAndConfigurationService.GetUuid"


def answering(output: dict[str, str]) -> FakeDevice:
    return FakeDevice(methods={GET_UUID: lambda arguments: output})


async def test_the_uuid_is_little_endian_in_its_first_half() -> None:
    assert await device_uuid(answering({"UUID": "E67jVdK/u2EXoIiu3XA36g=="})) == THEIRS


async def test_firmware_without_the_method_tells_it_by_the_package() -> None:
    package = {"PlatformGUID": "13AEE355D2BFBB6117A088AEDD7037EA"}
    assert await device_uuid(FakeDevice({"CIM_ComputerSystemPackage": [package]})) == THEIRS


@pytest.mark.parametrize("value", ["baduuid", "", "AAAA", "*", "ä"])
async def test_a_bad_uuid_is_a_bad_answer(value: str) -> None:
    with pytest.raises(DeviceAnswerError):
        await device_uuid(answering({"UUID": value}))
    with pytest.raises(DeviceAnswerError):
        await device_uuid(FakeDevice({"CIM_ComputerSystemPackage": [{"PlatformGUID": value}]}))


async def test_a_refused_method_says_why() -> None:
    with pytest.raises(DeviceRefused, match="not permitted"):
        await device_uuid(answering({"ReturnValue": "16"}))


async def test_another_device_is_refused_with_both_uuids() -> None:
    device = answering({"UUID": "E67jVdK/u2EXoIiu3XA36g=="})
    expected = UUID(int=7)
    with pytest.raises(IdentityMismatch, match=f"{THEIRS}.*{expected}"):
        await require_identity(device, Context(sleep=no_sleep, uuid=expected))
    await require_identity(device, Context(sleep=no_sleep, uuid=THEIRS))


async def test_without_an_expected_uuid_nothing_is_asked() -> None:
    device = FakeDevice()
    await require_identity(device, Context(sleep=no_sleep))
    assert device.asked == []
