import base64
from typing import Any
from uuid import UUID

import pytest

from gwmodule.amt.wsman import Embedded
from gwmodule.errors import WsmanFault
from gwmodule.sim.alarms import MAX_ALARMS
from gwmodule.sim.classes import identify, resources
from gwmodule.sim.machine import Machine, Nic, Provisioning
from gwmodule.sim.profiles import PROFILES
from tests.sim.direct import Direct

PC = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")


def test_every_class_is_listed_under_its_own_name() -> None:
    for name, resource in resources(Machine(PC, "x", now=0.0)).items():
        assert resource.name == name
        assert resource.uri.endswith(f"/{name}")
        # A PC begins without alarms, and by itself it has no TLS.
        assert resource.instances() or name in (
            "IPS_AlarmClockOccurrence",
            "AMT_PublicKeyCertificate",
            "AMT_PublicPrivateKeyPair",
        )


def test_instances_follow_the_machine() -> None:
    pc = Machine(PC, "x", now=0.0, provisioning=Provisioning.SETUP)
    service = resources(pc)["AMT_SetupAndConfigurationService"]
    assert service.instances()[0]["ProvisioningState"] == 0
    pc.activate()
    assert service.instances()[0]["ProvisioningState"] == 2


def test_the_port_shows_address_and_gateway_when_they_are_known() -> None:
    nic = Nic(bytes.fromhex("c8d9d27a1e33"), "192.0.2.10", gateway="192.0.2.1")
    pc = Machine(PC, "x", now=0.0, nic=nic)
    [port] = resources(pc)["AMT_EthernetPortSettings"].instances()
    assert port["MACAddress"] == "c8-d9-d2-7a-1e-33"
    assert (port["IPAddress"], port["DefaultGateway"]) == ("192.0.2.10", "192.0.2.1")


def test_identify_names_the_version() -> None:
    assert identify(Machine(PC, "x", now=0.0))["ProductVersion"] == "AMT 12.0.67"


def pc(profile: str = "amt12") -> Direct:
    return Direct(Machine(PC, "x", now=0.0, wall=1_750_000_000.0, profile=PROFILES[profile]))


async def value_of(device: Direct, cls: str, method: str, **arguments: Any) -> str:
    return str((await device.invoke(cls, method, arguments))["ReturnValue"])


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        ("AMT_GeneralSettings", "DomainName", "lan"),
        ("AMT_GeneralSettings", "WsmanOnlyMode", "true"),
        ("AMT_GeneralSettings", "IdleWakeTimeout", "30"),
        ("AMT_EthernetPortSettings", "DHCPEnabled", "false"),
        ("IPS_KVMRedirectionSettingData", "SessionTimeout", "10"),
        ("IPS_OptInService", "OptInRequired", "1"),
        ("AMT_RedirectionService", "EnabledState", "32768"),
        ("AMT_BootSettingData", "BIOSSetup", "true"),
    ],
)
async def test_a_setting_is_put_and_stays(cls: str, name: str, value: str) -> None:
    device = pc()
    whole = await device.get(cls)
    assert (await device.put(cls, whole | {name: value}))[name] == value
    assert (await device.get(cls))[name] == value


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        ("AMT_GeneralSettings", "WsmanOnlyMode", "yes"),
        ("AMT_GeneralSettings", "IdleWakeTimeout", "soon"),
        ("IPS_OptInService", "OptInRequired", "2"),
        ("AMT_RedirectionService", "EnabledState", "1"),
        ("AMT_RedirectionService", "ListenerEnabled", "perhaps"),
        ("AMT_BootSettingData", "UseSOL", "perhaps"),
    ],
)
async def test_a_value_of_another_type_is_refused(cls: str, name: str, value: str) -> None:
    device = pc()
    whole = await device.get(cls)
    with pytest.raises(WsmanFault, match="InvalidRepresentation"):
        await device.put(cls, whole | {name: value})
    assert await device.get(cls) == whole


async def test_client_control_forces_consent() -> None:
    device = pc("ccm")
    whole = await device.get("IPS_OptInService")
    assert (whole["CanModifyOptInPolicy"], whole["OptInRequired"]) == ("0", "4294967295")
    await device.put("IPS_OptInService", whole)
    with pytest.raises(WsmanFault, match="AccessDenied"):
        await device.put("IPS_OptInService", whole | {"OptInRequired": 0})
    role = {"BootConfigSetting": "", "Role": 1}
    assert await value_of(device, "CIM_BootService", "SetBootConfigRole", **role) == "16"


async def test_methods_tell_what_they_do_not_take() -> None:
    device = pc()
    saving = ("IPS_PowerManagementService", "RequestOSPowerSavingStateChange")
    assert await value_of(device, *saving, OSPowerSavingState=9) == "5"
    assert await value_of(device, *saving, OSPowerSavingState=3) == "0"
    assert (await device.get(saving[0]))["OSPowerSavingState"] == "3"
    role = ("CIM_BootService", "SetBootConfigRole")
    assert await value_of(device, *role, Role=5) == "5"
    other = {"ResourceURI": "x", "SelectorSet": {"InstanceID": "another"}}
    assert await value_of(device, *role, BootConfigSetting=other, Role=1) == "5"
    order = ("CIM_BootConfigSetting", "ChangeBootOrder")
    assert await value_of(device, *order, Source=other) == "5"
    assert await value_of(device, "CIM_KVMRedirectionSAP", "RequestStateChange") == "5"
    redirection = ("AMT_RedirectionService", "RequestStateChange")
    assert await value_of(device, *redirection, RequestedState=2) == "5"


async def test_a_boot_order_needs_consent_where_the_settings_do() -> None:
    device = pc("ccm")
    source = {
        "ResourceURI": "x",
        "SelectorSet": {"InstanceID": "Intel(r) AMT: Force PXE Boot"},
    }
    order = ("CIM_BootConfigSetting", "ChangeBootOrder")
    assert await value_of(device, *order, Source=source) == "16"
    assert await value_of(device, *order) == "0"


async def test_the_event_log_can_be_read_one_by_one_and_frozen() -> None:
    device = pc()
    log = "AMT_MessageLog"
    assert await value_of(device, log, "PositionToFirstRecord") == "2"
    assert await value_of(device, log, "GetRecord", IterationIdentifier=1) == "2"
    device.machine.login_judged(proved=False)
    one = await device.invoke(log, "GetRecord", {"IterationIdentifier": 1})
    assert len(base64.b64decode(one["RecordData"])) == 21
    assert one["NoMoreRecords"] == "true"
    for count in (0, 391):
        asked = {"IterationIdentifier": 1, "MaxReadRecords": count}
        assert await value_of(device, log, "GetRecords", **asked) == "1"
    asked = {"IterationIdentifier": 2, "MaxReadRecords": 1}
    assert await value_of(device, log, "GetRecords", **asked) == "2"
    assert await value_of(device, log, "CancelIteration", IterationIdentifier=1) == "0"
    assert await value_of(device, log, "FreezeLog", Freeze=True) == "0"
    assert (await device.get(log))["IsFrozen"] == "true"
    assert await value_of(device, "AMT_AuditLog", "ReadRecords", StartIndex=0) == "36"


def alarm(name: str, start: str = "2030-01-01T00:00:00Z") -> dict[str, Any]:
    return {
        "InstanceID": name,
        "ElementName": name,
        "StartTime": {"Datetime": start},
        "Interval": {"Interval": "P1DT0H0M"},
        "DeleteOnCompletion": True,
    }


async def test_alarms_are_added_by_both_ways_and_have_limits() -> None:
    device = pc()
    cls, service = "IPS_AlarmClockOccurrence", "AMT_AlarmClockService"
    await device.create(cls, alarm("first"))
    for wrong in (alarm("first"), alarm("second", "never"), alarm("n" * 65)):
        with pytest.raises(WsmanFault):
            await device.create(cls, wrong)
    assert await value_of(device, service, "AddAlarm") == "36"
    for number in range(MAX_ALARMS - 1):
        template = Embedded(cls, alarm(str(number)))
        assert await value_of(device, service, "AddAlarm", AlarmTemplate=template) == "0"
        assert await value_of(device, service, "AddAlarm", AlarmTemplate=template) != "0"
    last = Embedded(cls, alarm("one more"))
    assert await value_of(device, service, "AddAlarm", AlarmTemplate=last) == "23"


async def test_a_clock_is_set_with_numbers_only() -> None:
    device = pc()
    service = "AMT_TimeSynchronizationService"
    wrong = {"Ta0": 1, "Tm1": "now", "Tm2": 1}
    assert await value_of(device, service, "SetHighAccuracyTimeSynch", **wrong) == "36"


async def test_storage_has_an_administrator() -> None:
    device = pc("amt11")
    admin = "AMT_ThirdPartyDataStorageAdministrationService"
    made = await device.invoke(admin, "AddStorageEaclEntry", {"EnterpriseName": "Acme"})
    handle = made["Handle"]
    entry = await device.invoke(admin, "GetStorageEaclEntry", {"Handle": handle})
    assert entry["EnterpriseName"] == "Acme"
    listed = await device.invoke(admin, "EnumerateStorageEaclEntries")
    assert listed["Handles"] == ["1", handle]
    assert await value_of(device, admin, "RemoveStorageEaclEntry", Handle=handle) == "0"
    assert await value_of(device, admin, "GetStorageEaclEntry", Handle=handle) == "2053"
    partner = {"VendorName": "we", "ApplicationName": "notes", "TotalAllocationSize": 49152}
    assert await value_of(device, admin, "AddStorageFpaclEntry", **partner) == "0"
    attributes = await device.invoke(admin, "GetGlobalStorageAttributes")
    assert attributes["TotalStorage"] == "196608"


async def test_storage_has_applications_locks_and_limits() -> None:
    device = pc("amt11")
    service = "AMT_ThirdPartyDataStorageService"
    names = {"CallerUUID": "1" * 32, "VendorName": "we", "ApplicationName": "notes"}
    given = {**names, "EnterpriseName": "Contoso"}
    session = (await device.invoke(service, "RegisterApplication", given))["SessionHandle"]

    async def call(method: str, **arguments: Any) -> dict[str, Any]:
        return await device.invoke(service, method, {"SessionHandle": session, **arguments})

    assert (await call("GetMTU"))["Mtu"] == "4096"
    own = (await call("GetCurrentApplicationHandle"))["ApplicationHandle"]
    assert (await call("GetRegisteredApplications"))["AppHandles"] == own
    about = await call("GetApplicationAttributes", ApplicationBeingRequested=own)
    assert (about["VendorName"], about["ApplicationName"]) == ("we", "notes")
    block = (await call("AllocateBlock", BytesRequested=4096, BlockHidden=True))["BlockHandle"]
    assert (await call("LockBlock", BlockHandle=block))["ReturnValue"] == "0"
    assert (await call("UnlockBlock", BlockHandle=block))["ReturnValue"] == "0"
    too_much = base64.b64encode(bytes(4097)).decode()
    for data, status in ((too_much, "15"), ("?", "36")):
        written = await call("WriteBlock", BlockHandle=block, ByteOffset=0, Data=data)
        assert (written["BytesWritten"], written["ReturnValue"]) == ("0", status)
    assert (await call("RemoveApplication"))["ReturnValue"] == "0"
    assert (await call("GetBytesAvailable"))["ReturnValue"] == "2053"
