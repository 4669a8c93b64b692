import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from gwmodule.amt.functions import CATALOGUE, validate
from gwmodule.errors import Code
from gwmodule.msp.accounts import Role
from gwmodule.sim.device import ANY_PORTS, SimulatedDevice
from gwmodule.sim.machine import Machine
from gwmodule.wire.messages import Result
from tests.amt.test_loopback import HERE, client_of, run
from tests.msp.api.conftest import Site
from tests.msp.conftest import PC, answer, result

ANSWERS: dict[str, dict[str, Any]] = {
    "power.get": {"power_state": 2, "available": [{"state": 10, "name": "reset"}]},
    "wsman.get": {"instance": {"BIOSSetup": "true", "IDER": "false", "OptInRequired": "1"}},
    "identity.get": {
        "version": "12.0.67", "build": "1579", "sku": "16392", "provisioning_mode": 1,
        "provisioning_state": 2,
    },
    "general.get": {"host_name": "pc", "realm": "Digest:1", "network_enabled": True},
    "inventory.get": {
        "uuid": str(PC),
        "chassis": [{"manufacturer": "HP", "model": "8", "serial": "1", "version": ""}],
        "boards": [{"model": "8", "serial": "2"}],
        "bios": [{"version": "1.2", "released": "2019-01-01T00:00:00Z"}],
        "processors": [{"name": "CPU 0", "status": 1, "stepping": "9"}],
        "memory": [{"size": 8589934592, "type": 26}], "disks": [{"name": "d", "size": 1000000}],
    },
    "network.get": {"ports": [{"name": "p0", "connection": 0, "mac": "02:00:00:00:00:01",
                               "dns": ["192.0.2.1"], "link_policy": [{"policy": 1}]}]},
    "redirection.get": {"sol": True, "ider": False, "listener": True, "kvm_state": 6, "kvm": True},
    "consent.get": {"required": 4294967295, "state": 2},
    "eventlog.get": {"records": [{"time_text": "2027-01-15T08:00:00Z", "severity_name": "critical",
                                  "text": "no bootable media", "data": "40ff",
                                  "severity": 16}]},
    "wsman.enumerate": {"instances": [{"InstanceID": "Intel(r) AMT: Force PXE Boot",
                                       "FailThroughSupported": "2"}]},
    "alarm.list": {"alarms": [{"name": "a", "time_text": "2027-01-15T08:00:00Z", "once": True,
                               "interval": 1500}]},
    "nvm.list": {"blocks": [], "available": 0},
    "nvm.read": {"data": "", "size": 0},
}  # fmt: skip


AUDITED = 25


def audit_log(start: int, limit: int) -> dict[str, Any]:
    """As the device counts them: the oldest is 1."""
    there = range(start, min(start + limit, AUDITED + 1))
    return {"records": [{"initiator": "admin", "text": f"{n}"} for n in there], "total": AUDITED}


@pytest.fixture
def amt(site: Site) -> Site:
    """A gateway that knows the catalogue, and checks the arguments as the real one does."""

    async def answer(call: dict[str, Any]) -> Result:
        function = CATALOGUE[call["function"]]
        arguments = json.loads(call["arguments"])
        validate(function, arguments)
        if call["function"] == "auditlog.get":
            return result(audit_log(**arguments))
        return result(ANSWERS.get(call["function"], {}))

    site.service.session.answer = answer
    return site


def called(site: Site) -> list[tuple[str, dict[str, Any]]]:
    return [
        (call["function"], json.loads(call["arguments"])) for call in site.service.session.calls
    ]


async def get(site: Site, path: str, query: str = "") -> Any:
    status, body = await site.request("GET", f"/api/v1/amt/{path}/{PC}{query}", token=site.token())
    assert status == 200, body
    return body


async def test_power_state_and_capabilities(amt: Site) -> None:
    assert await get(amt, "power/state") == {"powerstate": 2}
    assert await get(amt, "power/capabilities") == {
        "Reset": 10, "Power up to BIOS": 100, "Reset to BIOS": 101,
    }  # fmt: skip


async def test_version_has_open_amts_classes(amt: Site) -> None:
    version = await get(amt, "version")
    assert version["CIM_SoftwareIdentity"]["responses"][0] == {
        "InstanceID": "AMT", "VersionString": "12.0.67",
    }  # fmt: skip
    setup = version["AMT_SetupAndConfigurationService"]["response"]
    assert setup == {"ProvisioningMode": 1, "ProvisioningState": 2}


async def test_settings_and_hardware_have_open_amts_members(amt: Site) -> None:
    settings = (await get(amt, "generalSettings"))["Body"]
    assert (settings["HostName"], settings["DigestRealm"]) == ("pc", "Digest:1")
    hardware = await get(amt, "hardwareInfo")
    assert hardware["CIM_Chassis"]["response"]["Manufacturer"] == "HP"
    assert hardware["CIM_Card"]["response"]["SerialNumber"] == "2"
    assert hardware["CIM_Processor"]["responses"][0]["Stepping"] == 9
    package = hardware["CIM_ComputerSystemPackage"]["response"]
    assert package["PlatformGUID"] == "13AEE355D2BFBB6117A088AEDD7037EA"
    chips = [chip["CreationClassName"] for chip in hardware["CIM_Chip"]["responses"]]
    assert chips == ["CIM_Chip", "CIM_PhysicalMemory"]
    assert hardware["CIM_BIOSElement"]["response"]["ReleaseDate"]["Datetime"].startswith("2019")
    assert hardware["CIM_PhysicalMemory"]["responses"][0]["Capacity"] == 8589934592
    assert hardware["CIM_MediaAccessDevice"]["responses"][0]["MaxMediaSize"] == 1000
    network = await get(amt, "networkSettings")
    assert (network["wired"]["primaryDNS"], network["wireless"]) == ("192.0.2.1", None)
    assert network["wired"]["macAddress"] == "02-00-00-00-00-01"
    assert network["wired"]["linkPolicy"] == ["S0 AC"]


async def test_a_wireless_port_is_told_by_its_kind_or_by_its_name(amt: Site) -> None:
    ports: list[dict[str, Any]] = [
        {"name": "Intel(r) AMT Ethernet Port Settings 0", "connection": 1},
        {"name": "Intel(r) AMT Ethernet Port Settings 1", "connection": None},
    ]
    amt.service.session.answer = answer(Code.OK, {"ports": ports})
    network = await get(amt, "networkSettings")
    assert network["wired"]["physicalConnectionType"] == "Discrete LAN NIC"
    assert network["wireless"]["instanceID"] == ports[1]["name"]


async def test_features_are_read_and_switched(amt: Site) -> None:
    features = await get(amt, "features")
    assert features == {
        "userConsent": "all", "optInState": 2, "redirection": True, "KVM": True, "SOL": True,
        "IDER": False, "kvmAvailable": True,
    }  # fmt: skip
    amt.service.session.calls.clear()
    body = {"enableSOL": True, "enableIDER": False, "enableKVM": False, "userConsent": "none"}
    status, answer = await amt.request(
        "POST", f"/api/v1/amt/features/{PC}", body, token=amt.token()
    )
    assert (status, answer) == (200, {"status": "Updated AMT Features"})
    assert called(amt)[:2] == [
        ("redirection.set", {"sol": True, "ider": False, "listener": True}),
        ("kvm.set", {"enabled": False}),
    ]
    assert called(amt)[-1][1]["properties"]["OptInRequired"] == 0


async def test_consent_is_for_admins_and_half_of_a_request_is_not_done(amt: Site) -> None:
    body = {"enableSOL": True, "userConsent": "none"}
    token = amt.token(Role.TECHNICIAN)
    status, _ = await amt.request("POST", f"/api/v1/amt/features/{PC}", body, token=token)
    assert status == 403
    assert called(amt) == []


async def test_the_event_log_is_a_list_and_by_page_what_the_console_gives(amt: Site) -> None:
    (event,) = await get(amt, "log/event")
    assert (event["Desc"], event["EventSeverity"]) == ("no bootable media", 16)
    assert event["EventData"] == [0x40, 0xFF]
    known = ANSWERS["eventlog.get"]["records"] * 3
    amt.service.session.answer = answer(Code.OK, {"records": known})
    page = await get(amt, "log/event", "?$skip=1&$top=1")
    assert (len(page["records"]), page["hasMoreRecords"]) == (1, True)
    assert called(amt)[-1] == ("eventlog.get", {"limit": 3})
    page = await get(amt, "log/event", "?$skip=2")
    assert (len(page["records"]), page["hasMoreRecords"]) == (1, False)


@pytest.mark.parametrize(
    ("skip", "found"), [(0, range(25, 15, -1)), (10, range(15, 5, -1)), (20, range(5, 0, -1)),
                        (24, [1]), (25, []), (60_000, [])],
)  # fmt: skip
async def test_the_audit_log_comes_newest_first_in_blocks(
    amt: Site, skip: int, found: Iterable[int]
) -> None:
    audit = await get(amt, "log/audit", f"?startIndex={skip}")
    assert audit["totalCnt"] == AUDITED
    assert [record["Event"] for record in audit["records"]] == [str(n) for n in found]


async def test_a_short_audit_log_is_read_once(amt: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.msp.api.test_amt.AUDITED", 3)
    audit = await get(amt, "log/audit", "?startIndex=1")
    assert [record["Event"] for record in audit["records"]] == ["2", "1"]
    assert called(amt) == [("auditlog.get", {"start": 1, "limit": 10})]


@pytest.mark.parametrize(
    ("path", "body", "function", "arguments"),
    [
        ("power/action", {"action": 8}, "power.set", {"state": 8, "by": "admin@default"}),
        (
            "power/bootOptions",
            {"action": 400, "useSOL": True},
            "boot.once",
            {"device": "pxe", "sol": True},
        ),
        (
            "power/bootOptions",
            {"action": 105, "bootDetails": {"url": "https://x/y"}},
            "boot.once",
            {"device": "uefi-https", "sol": False, "url": "https://x/y"},
        ),
        ("userConsentCode", {"consentCode": 123456}, "consent.send", {"code": 123456}),
        ("userConsentCode", {"consentCode": "012345"}, "consent.send", {"code": 12345}),
        # As Open AMT's own console sends them.
        (
            "power/action",
            {"method": "PowerAction", "action": 10, "useSOL": True},
            "power.set",
            {"state": 10, "by": "admin@default"},
        ),
        (
            "features",
            {"enableSOL": True, "redirection": False, "ocr": False, "rpe": False},
            "redirection.set",
            {"sol": True, "listener": True},
        ),
        (
            "alarmOccurrences",
            {
                "ElementName": "a",
                "InstanceID": "a",
                "StartTime": "2027-01-15T08:00:00.000Z",
                "Interval": 60,
                "DeleteOnCompletion": False,
            },
            "alarm.add",
            {"name": "a", "time": 1_800_000_000, "interval": 60, "once": False},
        ),
        (
            "alarmOccurrences",
            {"ElementName": "a", "StartTime": {"Datetime": "2027-01-15T08:00:00Z"}},
            "alarm.add",
            {"name": "a", "time": 1_800_000_000, "interval": 0, "once": True},
        ),
    ],
)
async def test_what_acts_calls_one_function(
    amt: Site, path: str, body: Any, function: str, arguments: Any
) -> None:
    url = f"/api/v1/amt/{path}/{PC}"
    headers = {"Idempotency-Key": "once"}
    for _ in range(2):
        status, _ = await amt.request("POST", url, body, token=amt.token(), headers=headers)
        assert status == 200
    assert called(amt) == [(function, arguments)]


async def test_alarms_and_consent_as_open_amt_asks_for_them(amt: Site) -> None:
    (alarm,) = await get(amt, "alarmOccurrences")
    assert (alarm["ElementName"], alarm["IntervalInMinutes"]) == ("a", 1500)
    assert alarm["Interval"] == {"Interval": "P1DT1H0M"}
    await amt.request(
        "DELETE", f"/api/v1/amt/alarmOccurrences/{PC}", {"Name": "a"}, token=amt.token()
    )
    assert (await get(amt, "userConsentCode"))["Body"]["ReturnValue"] == 0
    await get(amt, "userConsentCode/cancel")
    assert [name for name, _ in called(amt)[1:]] == [
        "alarm.delete", "consent.start", "consent.cancel",
    ]  # fmt: skip


async def test_data_storage_is_listed_or_read(amt: Site) -> None:
    await get(amt, "nvm", "?enterprise=isp")
    await get(amt, "nvm", "?enterprise=isp&block=3&size=100")
    assert called(amt) == [
        ("nvm.list", {"enterprise": "isp"}),
        ("nvm.read", {"enterprise": "isp", "block": 3, "size": 100}),
    ]
    status, _ = await amt.request(
        "GET", f"/api/v1/amt/nvm/{PC}?enterprise=isp&offset=1", token=amt.token()
    )
    assert status == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("power/action", {"action": 17}),
        ("power/action", {"action": "10"}),
        ("power/action", {}),
        ("power/bootOptions", {"action": 10}),
        ("power/bootOptions", {"action": 400, "bootdetails": {}}),
        ("userConsentCode", {"consentCode": 1_000_000}),
        ("features", {"userConsent": "maybe"}),
        ("alarmOccurrences", {"ElementName": "a", "StartTime": {"Datetime": "2027-13-15T08:00"}}),
        ("alarmOccurrences", {"ElementName": "a", "StartTime": "tomorrow"}),
        (
            "alarmOccurrences",
            {"ElementName": "a", "InstanceID": "b", "StartTime": "2027-01-15T08:00:00Z"},
        ),
        ("userConsentCode", {"consentCode": "12345"}),
    ],
)
async def test_a_body_that_cannot_be_meant_calls_nothing(amt: Site, path: str, body: Any) -> None:
    status, error = await amt.request("POST", f"/api/v1/amt/{path}/{PC}", body, token=amt.token())
    assert (status, error["error"]) == (400, "BAD_REQUEST")
    assert called(amt) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("power/action", {"action": 500, "useSOL": False}),
        ("power/action", {"action": 501}),
        *(("power/bootOptions", {"action": n, "useSOL": False}) for n in (104, 107, 108, 109, 110)),
        (
            "power/bootOptions",
            {"action": 105, "bootDetails": {"url": "https://x", "enforceSecureBoot": False}},
        ),
        ("power/bootOptions", {"action": 105, "bootDetails": {"username": "u", "password": "p"}}),
        ("features", {"enableSOL": True, "ocr": True}),
        ("features", {"enableSOL": True, "enablePlatformErase": True}),
    ],
)
async def test_what_open_amt_does_and_we_do_not_is_refused_by_name(
    amt: Site, path: str, body: Any
) -> None:
    status, error = await amt.request("POST", f"/api/v1/amt/{path}/{PC}", body, token=amt.token())
    assert (status, error["error"]) == (501, "NOT_SUPPORTED")
    assert called(amt) == []


# Members of Open AMT MPS's answers (its published OpenAPI description, 2.22), written as paths.
OPEN_AMT: dict[str, str] = {
    "power/state": "powerstate OSPowerSavingState",
    "power/bootSources": "biosBootString bootString elementName failThroughSupported instanceID"
    " structuredBiosBootString",
    "version": "CIM_SoftwareIdentity.responses.InstanceID CIM_SoftwareIdentity.responses.IsEntity"
    " CIM_SoftwareIdentity.responses.VersionString CIM_SoftwareIdentity.status"
    " AMT_SetupAndConfigurationService.response.ProvisioningMode"
    " AMT_SetupAndConfigurationService.response.ProvisioningState"
    " AMT_SetupAndConfigurationService.status",
    "generalSettings": "Body.AMTNetworkEnabled Body.DDNSPeriodicUpdateInterval Body.DDNSTTL"
    " Body.DDNSUpdateByDHCPServerEnabled Body.DDNSUpdateEnabled Body.DHCPv6ConfigurationTimeout"
    " Body.DigestRealm Body.DomainName Body.ElementName Body.HostName Body.HostOSFQDN"
    " Body.IdleWakeTimeout Body.InstanceID Body.NetworkInterfaceEnabled Body.PingResponseEnabled"
    " Body.PowerSource Body.PreferredAddressFamily Body.PresenceNotificationInterval"
    " Body.PrivacyLevel Body.RmcpPingResponseEnabled Body.SharedFQDN Body.WsmanOnlyMode",
    "hardwareInfo": "CIM_ComputerSystemPackage.response.PlatformGUID CIM_SystemPackaging"
    " CIM_Chassis.response.Manufacturer CIM_Chassis.response.Model"
    " CIM_Chassis.response.SerialNumber CIM_Chassis.response.Version"
    " CIM_Card.response.Manufacturer CIM_Card.response.Model CIM_Card.response.SerialNumber"
    " CIM_Card.response.Version CIM_BIOSElement.response.Manufacturer"
    " CIM_BIOSElement.response.ReleaseDate.Datetime CIM_BIOSElement.response.Version"
    " CIM_Chip.responses.CreationClassName CIM_Chip.responses.Tag CIM_Chip.responses.Version"
    " CIM_Processor.responses.CPUStatus CIM_Processor.responses.CurrentClockSpeed"
    " CIM_Processor.responses.DeviceID CIM_Processor.responses.Family"
    " CIM_Processor.responses.MaxClockSpeed CIM_Processor.responses.Stepping"
    " CIM_PhysicalMemory.responses.BankLabel CIM_PhysicalMemory.responses.Capacity"
    " CIM_PhysicalMemory.responses.FormFactor CIM_PhysicalMemory.responses.Manufacturer"
    " CIM_PhysicalMemory.responses.MemoryType CIM_PhysicalMemory.responses.PartNumber"
    " CIM_PhysicalMemory.responses.SerialNumber CIM_PhysicalMemory.responses.Speed"
    " CIM_MediaAccessDevice.responses.DeviceID CIM_MediaAccessDevice.responses.MaxMediaSize"
    " CIM_PhysicalPackage.responses.CreationClassName CIM_PhysicalPackage.responses.Model",
    "features": "userConsent redirection KVM SOL IDER optInState kvmAvailable ocr"
    " httpsBootSupported localPBABootSupported winREBootSupported rpe rpeSupported",
    "networkSettings": "wired.elementName wired.instanceID wired.vlanTag wired.sharedMAC"
    " wired.macAddress wired.linkIsUp wired.linkPolicy wired.sharedStaticIP wired.sharedDynamicIP"
    " wired.ipSyncEnabled wired.dhcpEnabled wired.ipAddress wired.subnetMask wired.defaultGateway"
    " wired.primaryDNS wired.secondaryDNS wired.physicalConnectionType wired.physicalNICMedium"
    " wired.ieee8021x wireless",
    "certificates": "profileAssociation.type"
    " certificates.keyManagementItems certificates.publicKeyCertificateItems.elementName"
    " certificates.publicKeyCertificateItems.instanceID"
    " certificates.publicKeyCertificateItems.x509Certificate"
    " certificates.publicKeyCertificateItems.trustedRootCertificate"
    " certificates.publicKeyCertificateItems.issuer"
    " certificates.publicKeyCertificateItems.subject"
    " certificates.publicKeyCertificateItems.readOnlyCertificate"
    " certificates.publicKeyCertificateItems.publicKeyHandle"
    " certificates.publicKeyCertificateItems.associatedProfiles"
    " certificates.publicKeyCertificateItems.displayName"
    " publicKeys.publicPrivateKeyPairItems.elementName"
    " publicKeys.publicPrivateKeyPairItems.instanceID publicKeys.publicPrivateKeyPairItems.derKey"
    " publicKeys.publicPrivateKeyPairItems.certificateHandle",
    "log/event": "DeviceAddress EventSensorType EventType EventOffset EventSourceType"
    " EventSeverity SensorNumber Entity EntityInstance EventData TimeStamp EntityStr Desc",
    "log/audit": "totalCnt records.AuditAppID records.EventID records.InitiatorType"
    " records.AuditApp records.Event records.Initiator records.Time records.MCLocationType"
    " records.NetAddress records.Ex records.ExStr",
    "alarmOccurrences": "ElementName InstanceID StartTime Interval.Interval DeleteOnCompletion",
    "userConsentCode": "Body.ReturnValue Body.ReturnValueStr",
    "userConsentCode/cancel": "Body.ReturnValue Body.ReturnValueStr",
}
# What none of our functions reads.
ABSENT = {
    "OSPowerSavingState", "CIM_SoftwareIdentity.responses.IsEntity", "CIM_SystemPackaging",
    "Body.DDNSPeriodicUpdateInterval", "Body.DDNSTTL", "Body.DDNSUpdateByDHCPServerEnabled",
    "Body.DHCPv6ConfigurationTimeout", "Body.ElementName", "Body.InstanceID",
    "Body.PreferredAddressFamily", "Body.PresenceNotificationInterval",
    "ocr", "httpsBootSupported", "localPBABootSupported", "winREBootSupported", "rpe",
    "rpeSupported", "wired.elementName", "wired.vlanTag", "wired.sharedStaticIP",
    "profileAssociation.type", "certificates.keyManagementItems",
    "certificates.publicKeyCertificateItems.associatedProfiles",
    "wired.sharedDynamicIP", "wired.physicalNICMedium", "wired.ieee8021x", "records.ExStr",
}  # fmt: skip


def has(value: Any, path: list[str]) -> bool:
    """Lists are looked into: each member of the path is that of their first object."""
    if isinstance(value, list):
        return bool(value) and has(value[0], path)
    if not path:
        return True
    return isinstance(value, dict) and path[0] in value and has(value[path[0]], path[1:])


@pytest.mark.parametrize("path", OPEN_AMT)
async def test_answers_have_open_amts_members(amt: Site, path: str) -> None:
    answered = await get(amt, path)
    names = set(OPEN_AMT[path].split())
    missing = {name for name in names if not has(answered, name.split("."))}
    assert missing == names & ABSENT


@pytest.mark.parametrize(
    "body", [b"[1]", b"{}", b'{"power_state": "on"}', b"null", b"\xff", b'{"records": [1, null]}']
)
@pytest.mark.parametrize(
    "path", ["power/state", "hardwareInfo", "log/event", "features", "version", "certificates"]
)
async def test_a_gateway_that_answers_nonsense_is_no_crash(
    site: Site, path: str, body: bytes
) -> None:
    async def nonsense(_: dict[str, Any]) -> Result:
        return Result(1, Code.OK, 0.1, 1, body)

    site.service.session.answer = nonsense
    status, _ = await site.request("GET", f"/api/v1/amt/{path}/{PC}", token=site.token())
    assert status in (200, 502)


@pytest.fixture
async def simulated(site: Site) -> AsyncIterator[Site]:
    """The gateway runs each function on a simulated PC."""
    machine = Machine(PC, "P@ssw0rd", now=asyncio.get_running_loop().time(), hostname="pc7")

    async def call(called: dict[str, Any]) -> Result:
        async with client_of(device) as client:
            arguments = json.loads(called["arguments"])
            return result(await run(client, called["function"], PC, **arguments))

    async with SimulatedDevice(str(HERE), machine, ports=ANY_PORTS) as device:
        site.service.session.answer = call
        yield site


async def test_a_simulated_pc_is_read_and_switched_as_open_amt_does_it(simulated: Site) -> None:
    names = [
        "version", "generalSettings", "hardwareInfo", "features", "networkSettings",
        "power/bootSources", "certificates",
    ]  # fmt: skip
    for path in names:
        answered = await get(simulated, path)
        told = {name for name in OPEN_AMT[path].split() if has(answered, name.split("."))}
        assert told == set(OPEN_AMT[path].split()) - ABSENT, path
    sources = await get(simulated, "power/bootSources")
    assert "Intel(r) AMT: Force PXE Boot" in {source["instanceID"] for source in sources}
    assert (await get(simulated, "power/state"))["powerstate"] == 2
    assert {"Reset": 10, "Power down": 8}.items() <= (
        await get(simulated, "power/capabilities")
    ).items()
    for path in ("log/event", "alarmOccurrences"):
        assert isinstance(await get(simulated, path), list)
    status, answered = await simulated.request(
        "POST", f"/api/v1/amt/power/bootOptions/{PC}", {"action": 101, "useSOL": True},
        token=simulated.token(),
    )  # fmt: skip
    assert (status, answered["Body"]["ReturnValue"]) == (200, 0)
    newest, oldest = await audited(simulated, 0), await audited(simulated, 10_000)
    assert newest == sorted(newest, reverse=True)
    assert oldest == []


async def test_a_certificate_and_its_key_name_each_other(simulated: Site) -> None:
    read = await get(simulated, "certificates")
    (certificate,) = read["certificates"]["publicKeyCertificateItems"]
    (key,) = read["publicKeys"]["publicPrivateKeyPairItems"]
    assert certificate["publicKeyHandle"] == key["instanceID"] == "Intel(r) AMT Key: Handle: 0"
    assert key["certificateHandle"] == certificate["instanceID"]
    assert (certificate["displayName"], certificate["subject"]) == ("pc7", "CN=pc7")
    assert (certificate["trustedRootCertificate"], certificate["readOnlyCertificate"]) == (
        False,
        True,
    )


async def test_certificates_without_keys_and_garbage_are_told_as_they_are(site: Site) -> None:
    instances = [
        {"InstanceID": "1", "X509Certificate": "not base64", "Subject": "C=US, CN=root",
         "TrustedRootCertificate": "true"},
        {"InstanceID": "2", "DERKey": ""},
        {"InstanceID": 3, "X509Certificate": 4, "DERKey": "AAAA"},
    ]  # fmt: skip
    site.service.session.answer = answer(Code.OK, {"instances": instances})
    read = await get(site, "certificates")
    items = read["certificates"]["publicKeyCertificateItems"]
    assert [item["displayName"] for item in items] == ["root", "2", ""]
    assert [item["trustedRootCertificate"] for item in items] == [True, False, False]
    assert {item["publicKeyHandle"] for item in items} == {""}


async def audited(site: Site, skip: int) -> list[str]:
    audit = await get(site, "log/audit", f"?startIndex={skip}")
    return [record["Time"] for record in audit["records"]]
