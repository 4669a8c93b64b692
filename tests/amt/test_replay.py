"""Recorded answers of real devices through a real HTTP server: every value must come out."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from gwmodule.amt.client import WsmanClient
from gwmodule.amt.functions import Context, NotSupported, Result
from gwmodule.errors import DeviceRefused
from gwmodule.wire.frames import CredentialMode
from gwmodule.wire.messages import Credential
from tests.amt.device import run
from tests.amt.replay import (
    PASSWORD,
    SERVER,
    USERNAME,
    DeviceServer,
    Recordings,
    dial_to,
    recordings,
)

THEIR_UUID = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")


@pytest.fixture
def recorded() -> Recordings:
    return recordings()


@pytest.fixture
async def client(recorded: Recordings) -> AsyncIterator[WsmanClient]:
    credential = Credential(CredentialMode.PASSWORD, USERNAME, PASSWORD)
    async with DeviceServer(recorded).serving() as server:
        dial = dial_to({16992: server.port})
        deadline = asyncio.get_running_loop().time() + 15
        async with WsmanClient(dial, credential, deadline=deadline) as client:
            yield client


async def call(client: WsmanClient, name: str, /, **arguments: Any) -> Result:
    return await run(client, name, Context(sleep=asyncio.sleep, uuid=THEIR_UUID), **arguments)


async def test_identity(client: WsmanClient) -> None:
    assert await call(client, "identity.get") == {
        "uuid": str(THEIR_UUID),
        "version": "12.0.67",
        "build": "1579",
        "sku": "16392",
        "provisioning_mode": 1,
        "provisioning_mode_name": "admin control",
        "provisioning_state": 2,
        "provisioning_state_name": "post",
        "realm": "Digest:F3EB554784E729164447A89F60B641C5",
        "host_name": "Test Host Name",
        "domain_name": "Test Domain Name",
    }
    assert client.facts.server == SERVER


async def test_power_state_and_what_is_available(client: WsmanClient) -> None:
    result = await call(client, "power.get")
    assert (result["power_state"], result["power_state_name"]) == (2, "on")
    available = [each["state"] for each in result["available"]]
    assert available == [10, 8, 5, 11, 4, 7, 14, 12]
    assert [each["name"] for each in result["available"]][:3] == ["reset", "off", "cycle"]


async def test_power_is_changed_after_the_uuid_was_checked(
    client: WsmanClient, recorded: Recordings
) -> None:
    result = await call(client, "power.set", state="reset", wait=2)
    assert result["verified"]
    assert ("AMT_SetupAndConfigurationService", "getuuid") in recorded.asked


async def test_inventory_and_the_class_that_was_not_recorded(client: WsmanClient) -> None:
    result = await call(client, "inventory.get")
    assert result["uuid"] == str(THEIR_UUID)
    assert result["version"] == "12.0.67"
    assert result["chassis"] == [
        {
            "manufacturer": "Intel(R) Client Systems",
            "model": "NUC9V7QNX",
            "serial": "JRQN0243007J",
            "version": "K47174-402",
        }
    ]
    assert result["boards"][0]["model"] == "NUC9V7QNB"
    assert result["bios"] == [
        {
            "manufacturer": "Intel Corp.",
            "version": "QNCFLX70.0054.2020.0810.2227",
            "released": "2020-08-10T00:00:00Z",
        }
    ]
    assert result["processors"][0] == {
        "name": "CPU 0",
        "family": 198,
        "stepping": "13",
        "clock": 2400,
        "max_clock": 8300,
        "status": 1,
        "status_name": "enabled",
        "brand": "Intel(R) Core(TM) i7-9850H CPU @ 2.60GHz",
    }
    assert [module["serial"] for module in result["memory"]] == ["E0E8D670", "E0E8D070"]
    assert result["memory"][0] | {"serial": ""} == {
        "bank": "BANK 0",
        "size": 16 * 1024**3,
        "type": 26,
        "type_name": "DDR4",
        "form_factor": 13,
        "form_factor_name": "SODIMM",
        "speed": 2400,
        "max_speed": 2400,
        "manufacturer": "859B",
        "part": "CT16G4SFD824A.M16FE",
        "serial": "",
    }
    assert [disk["size"] for disk in result["disks"]] == [960_197_124_000, 500_107_862_000]
    assert result["missing"] == []


async def test_general_settings(client: WsmanClient) -> None:
    result = await call(client, "general.get")
    assert result["os_name"] == "Test Host OS FQDN"
    assert result["network_enabled"] is True
    assert result["ddns_enabled"] is False
    assert (result["power_source"], result["power_source_name"]) == (0, "AC")
    assert result["idle_wake_timeout"] == 1


async def test_network_ports(client: WsmanClient) -> None:
    wired, wireless = (await call(client, "network.get"))["ports"]
    assert wired["mac"] == "00:be:43:d8:22:a4"
    assert wired["dhcp"] is wired["link"] is True
    assert wired["gateway"] == "192.168.6.1"
    assert wired["dns"] == ["192.168.6.1"]
    assert [each["name"] for each in wired["link_policy"]] == ["S0/AC", "Sx/AC"]
    assert (wireless["connection_name"], wireless["link"]) == ("wireless", False)


async def test_the_event_log(client: WsmanClient) -> None:
    result = await call(client, "eventlog.get")
    assert [event["text"] for event in result["records"]] == [
        "authentication failed 10 times",
        "firmware progress: PCI resource configuration",
        "firmware progress: PCI resource configuration",
    ]
    assert result["records"][0]["time_text"] == "2024-01-06T03:26:27Z"
    assert result["records"][0]["severity_name"] == "critical"
    assert result["capacity"] == 390


async def test_the_audit_log(client: WsmanClient) -> None:
    result = await call(client, "auditlog.get")
    assert result["total"] == 2
    assert [record["time_text"] for record in result["records"]] == [
        "2004-01-02T01:46:22Z",
        "2004-01-02T01:46:23Z",
    ]
    assert result["records"][0]["text"] == "firmware update from 12.0.40.1433 to 12.0.36.1428"


async def test_the_clock(client: WsmanClient) -> None:
    assert (await call(client, "time.get"))["time"] == 1704586865
    result = await call(client, "time.sync", time=1_800_000_000)
    assert (result["before"], result["time"]) == (1704586865, 1_800_000_000)


async def test_a_boot_goes_through_all_its_steps(client: WsmanClient, recorded: Recordings) -> None:
    result = await call(client, "boot.once", device="pxe", sol=True)
    assert result["requested_name"] == "reset"
    assert {
        ("AMT_BootCapabilities", "get"),
        ("AMT_BootSettingData", "put"),
        ("CIM_BootConfigSetting", "changebootorder"),
        ("CIM_BootService", "setbootconfigrole"),
        ("CIM_PowerManagementService", "requestpowerstatechange"),
    } <= recorded.asked


async def test_redirection_and_kvm(client: WsmanClient) -> None:
    result = await call(client, "redirection.get")
    assert (result["state_name"], result["listener"]) == ("IDE-R and SOL", True)
    assert (result["kvm_state"], result["kvm"], result["kvm_consent"]) == (6, True, True)
    assert (await call(client, "redirection.set", sol=False, listener=False))["state"] == 32771


async def test_consent(client: WsmanClient) -> None:
    result = await call(client, "consent.get")
    assert (result["required_name"], result["state_name"]) == ("never", "not started")
    assert (result["code_timeout"], result["display_timeout"]) == (120, 300)
    # Recorded while no consent was wanted: each method answers 2.
    for name, arguments in {
        "consent.start": {},
        "consent.send": {"code": 123456},
        "consent.cancel": {},
    }.items():
        with pytest.raises(DeviceRefused, match="invalid state"):
            await call(client, name, **arguments)


async def test_alarms(client: WsmanClient, recorded: Recordings) -> None:
    assert (await call(client, "alarm.list"))["alarms"] == [
        {"name": "testalarm", "time_text": "testdatetime", "interval": None, "once": True}
    ]
    await call(client, "alarm.add", name="testalarm", time=1_800_000_000)
    await call(client, "alarm.delete", name="testalarm")
    assert ("IPS_AlarmClockOccurrence", "delete") in recorded.asked


async def test_storage_of_firmware_that_has_none(client: WsmanClient) -> None:
    with pytest.raises(NotSupported, match=r"AMT 12\.0\.67 .* ended with AMT 11"):
        await call(client, "nvm.list", enterprise="ACME")


async def test_every_recorded_instance_comes_out_with_its_values(
    client: WsmanClient, recorded: Recordings
) -> None:
    for cls in recorded.classes("get"):
        found = (await call(client, "wsman.get", **{"class": cls}))["instance"]
        texts = [text for value in found.values() for text in flat(value)]
        assert texts == recorded.texts(cls, "get"), cls


async def test_every_recorded_page_comes_out_with_its_values(
    client: WsmanClient, recorded: Recordings
) -> None:
    for cls in recorded.classes("pull"):
        found = (await call(client, "wsman.enumerate", **{"class": cls}))["instances"]
        texts = [text for each in found for value in each.values() for text in flat(value)]
        assert texts == recorded.texts(cls, "pull"), cls


def flat(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in flat(each)]
    if isinstance(value, list):
        return [text for each in value for text in flat(each)]
    return [value] if value else []
