import asyncio
import base64
from collections.abc import Mapping

import pytest

from gwmodule.amt.functions import Context, NotSupported
from gwmodule.amt.wsman import Instance, Value
from gwmodule.errors import AmtError, BadArgument, DeviceRefused, DeviceUnreachable
from tests.amt.device import FakeDevice, no_sleep, run

ORDER = "CIM_BootConfigSetting.ChangeBootOrder"
ROLE = "CIM_BootService.SetBootConfigRole"
POWER = "CIM_PowerManagementService.RequestPowerStateChange"
SETTINGS = "AMT_BootSettingData"
CAPABILITIES = "AMT_BootCapabilities"
ALL = ("ForcePXEBoot", "ForceHardDriveBoot", "ForceCDorDVDBoot", "BIOSSetup", "IDER", "SOL")


def device_with(state: str = "2", /, **answers: Instance | AmtError) -> FakeDevice:
    """A PC that can boot from everything; `answers` replaces the answer of a method."""

    def answer(given: Instance | AmtError) -> Instance:
        if isinstance(given, AmtError):
            raise given
        return given

    device = FakeDevice(
        {
            CAPABILITIES: [dict.fromkeys((*ALL, "ForceUEFIHTTPSBoot"), "true")],
            "CIM_AssociatedPowerManagementService": [{"PowerState": state}],
            SETTINGS: [
                {
                    "BIOSLastStatus": ["2", "0"],
                    "BIOSPause": "true",
                    "BIOSSetup": "false",
                    "InstanceID": "Intel(r) AMT:BootSettingData 0",
                    "OptionsCleared": "true",
                    "RSEPassword": "",
                    "UseIDER": "false",
                    "UseSOL": "false",
                }
            ],
        }
    )
    for name in (ORDER, ROLE, POWER):
        short = name.rpartition(".")[2]
        given = answers.get(short, {"ReturnValue": "0"})
        device.methods[name] = lambda arguments, given=given: answer(given)  # type: ignore[misc]
    return device


def given_to(device: FakeDevice, name: str) -> list[Mapping[str, Value]]:
    invoked = [step for operation, step in device.asked if operation == "invoke"]
    return [a for step, a in zip(invoked, device.arguments, strict=True) if step == name]


async def test_the_steps_come_in_the_order_amt_needs() -> None:
    device = device_with()
    result = await run(device, "boot.once", device="pxe")
    changes = [s for s in device.asked if s[0] in ("put", "invoke")]
    assert changes == [
        ("invoke", ORDER),
        ("put", SETTINGS),
        ("invoke", ROLE),
        ("invoke", ORDER),
        ("invoke", POWER),
    ]
    cleared, chosen = given_to(device, ORDER)
    assert cleared == {}
    source = chosen["Source"]["SelectorSet"]["InstanceID"]
    assert source == "Intel(r) AMT: Force PXE Boot"
    assert given_to(device, ROLE)[0]["Role"] == 1
    assert (result["requested"], result["requested_name"]) == (10, "reset")


async def test_the_settings_go_back_whole_but_for_what_is_read_only() -> None:
    device = device_with()
    await run(device, "boot.once", device="bios", sol=True)
    assert device.put_instances == [
        {
            "BIOSPause": False,
            "BIOSSetup": True,
            "InstanceID": "Intel(r) AMT:BootSettingData 0",
            "UseIDER": False,
            "UseSOL": True,
        }
    ]
    # The set-up program is no source.
    assert len(given_to(device, ORDER)) == 1


@pytest.mark.parametrize(("name", "number"), [("ider-floppy", 0), ("ider-cd", 1)])
async def test_ide_redirection_chooses_its_drive(name: str, number: int) -> None:
    device = device_with()
    await run(device, "boot.once", device=name)
    assert device.put_instances[0]["UseIDER"] is True
    assert device.put_instances[0]["IDERBootDevice"] == number


@pytest.mark.parametrize(
    ("state", "request_"), [("2", 10), ("4", 10), ("8", 2), ("6", 2), ("7", 2)]
)
async def test_a_running_pc_is_reset_and_another_is_switched_on(state: str, request_: int) -> None:
    device = device_with(state)
    await run(device, "boot.once", device="hdd")
    assert given_to(device, POWER)[0]["PowerState"] == request_


async def test_the_start_can_be_left_for_later() -> None:
    device = device_with()
    result = await run(device, "boot.once", device="hdd", power="later")
    assert given_to(device, POWER) == []
    assert result["requested"] is None


async def test_uefi_https_hands_the_url_over() -> None:
    device = device_with()
    url = "https://boot.example/x.efi"
    await run(device, "boot.once", device="uefi-https", url=url)
    sent = device.put_instances[0]
    assert sent["UefiBootNumberOfParams"] == 2
    expected = (
        b"\x86\x80\x01\x00\x1a\x00\x00\x00" + url.encode() + b"\x86\x80\x14\x00\x01\0\0\0\x01"
    )
    assert base64.b64decode(sent["UefiBootParametersArray"]) == expected


@pytest.mark.parametrize(
    ("device", "url"),
    [
        ("uefi-https", ""),
        ("uefi-https", "http://boot.example/"),
        ("uefi-https", "https:///x"),
        ("pxe", "https://boot.example/"),
    ],
)
async def test_a_wrong_url_is_refused_before_anything_is_asked(device: str, url: str) -> None:
    pc = device_with()
    with pytest.raises(BadArgument, match="url is"):
        await run(pc, "boot.once", device=device, url=url)
    assert pc.asked == []


async def test_what_the_pc_cannot_is_refused_before_anything_changes() -> None:
    device = device_with()
    with pytest.raises(NotSupported, match="ForceDiagnosticBoot"):
        await run(device, "boot.once", device="diagnostics")
    assert device.steps == [CAPABILITIES]


async def test_a_console_that_is_not_open_stops_the_boot() -> None:
    device = device_with()
    with pytest.raises(BadArgument, match="stream 8 is not open"):
        await run(device, "boot.once", device="bios", stream=8)
    assert device.asked == []


async def test_an_open_console_sees_the_boot() -> None:
    device = device_with()
    context = Context(sleep=no_sleep, stream_open=lambda stream: stream == 8)
    result = await run(device, "boot.once", context, device="bios", stream=8)
    assert result["sol"] is True
    assert device.put_instances[0]["UseSOL"] is True


async def test_a_boot_in_the_bioss_own_order_can_be_watched() -> None:
    device = device_with()
    context = Context(sleep=no_sleep, stream_open=lambda stream: stream == 8)
    await run(device, "boot.once", context, device="default", stream=8)
    assert device.put_instances[0]["UseSOL"] is True
    # Cleared, and nothing chosen.
    assert given_to(device, ORDER) == [{}]


@pytest.mark.parametrize(
    "step", ["ChangeBootOrder", "SetBootConfigRole", "RequestPowerStateChange"]
)
async def test_a_refused_step_puts_the_settings_back(step: str) -> None:
    refusal: dict[str, Instance | AmtError] = {step: {"ReturnValue": "4097"}}
    device = device_with(**refusal)
    with pytest.raises(DeviceRefused, match=r"invalid state transition\); .*put") as caught:
        await run(device, "boot.once", device="pxe")
    assert caught.value.return_value == 4097
    last = device.put_instances[-1]
    assert (last["BIOSPause"], last["UseSOL"]) == ("true", "false")
    assert given_to(device, ROLE)[-1]["Role"] == 32768
    assert given_to(device, ORDER)[-1] == {}


async def test_a_boot_that_may_have_begun_keeps_its_settings() -> None:
    device = device_with(RequestPowerStateChange=DeviceUnreachable("connection lost"))
    with pytest.raises(DeviceUnreachable, match="may have started"):
        await run(device, "boot.once", device="pxe")
    assert len(device.put_instances) == 1


async def test_a_step_that_was_lost_before_the_start_is_taken_back() -> None:
    device = device_with(SetBootConfigRole=DeviceUnreachable("connection lost"))
    with pytest.raises(DeviceUnreachable, match="back failed too: connection lost"):
        await run(device, "boot.once", device="pxe")
    assert device.put_instances[-1]["BIOSPause"] == "true"


async def test_a_cancelled_call_puts_the_boot_settings_back() -> None:
    device = device_with()
    before = dict(device.instances[SETTINGS][0])

    def cancelled(_: Mapping[str, Value]) -> Instance:
        device.methods[ROLE] = lambda _: {"ReturnValue": "0"}
        raise asyncio.CancelledError

    device.methods[ROLE] = cancelled
    with pytest.raises(asyncio.CancelledError):
        await run(device, "boot.once", device="pxe")
    assert device.instances[SETTINGS][0] == before
    assert not given_to(device, POWER)


async def test_a_call_cancelled_while_the_pc_starts_leaves_them() -> None:
    device = device_with()

    def cancelled(_: Mapping[str, Value]) -> Instance:
        raise asyncio.CancelledError

    device.methods[POWER] = cancelled
    with pytest.raises(asyncio.CancelledError):
        await run(device, "boot.once", device="pxe")
    assert device.instances[SETTINGS][0]["BIOSPause"] == "false"
