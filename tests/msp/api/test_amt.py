import json
from typing import Any

import pytest

from gwmodule.amt.functions import CATALOGUE, validate
from gwmodule.errors import Code
from gwmodule.msp.accounts import Role
from gwmodule.wire.messages import Result
from tests.msp.api.conftest import Site
from tests.msp.conftest import PC, result

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
        "boards": [], "bios": [{"version": "1.2", "released": "2019-01-01T00:00:00Z"}],
        "processors": [{"name": "CPU 0", "status": 1}],
        "memory": [{"size": 8589934592, "type": 26}], "disks": [{"name": "d", "size": 1000000}],
    },
    "network.get": {"ports": [{"name": "p0", "connection": 0, "mac": "02:00:00:00:00:01",
                               "dns": ["192.0.2.1"], "link_policy": [{"policy": 1}]}]},
    "redirection.get": {"sol": True, "ider": False, "listener": True, "kvm_state": 6, "kvm": True},
    "consent.get": {"required": 4294967295, "state": 2},
    "eventlog.get": {"records": [{"time_text": "2027-01-15T08:00:00Z", "severity_name": "critical",
                                  "text": "no bootable media", "data": "40ff"}]},
    "auditlog.get": {"records": [{"initiator": "admin", "text": "reset"}], "total": 12},
    "alarm.list": {"alarms": [{"name": "a", "time_text": "2027-01-15T08:00:00Z", "once": True}]},
    "nvm.list": {"blocks": [], "available": 0},
    "nvm.read": {"data": "", "size": 0},
}  # fmt: skip


@pytest.fixture
def amt(site: Site) -> Site:
    """A gateway that knows the catalogue, and checks the arguments as the real one does."""

    async def answer(call: dict[str, Any]) -> Result:
        function = CATALOGUE[call["function"]]
        validate(function, json.loads(call["arguments"]))
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
    assert hardware["CIM_Card"]["response"] == {}
    assert hardware["CIM_BIOSElement"]["response"]["ReleaseDate"]["Datetime"].startswith("2019")
    assert hardware["CIM_PhysicalMemory"]["responses"][0]["Capacity"] == 8589934592
    assert hardware["CIM_MediaAccessDevice"]["responses"][0]["MaxMediaSize"] == 1000
    network = await get(amt, "networkSettings")
    assert (network["wired"]["primaryDNS"], network["wireless"]) == ("192.0.2.1", None)


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


async def test_logs_have_open_amts_members(amt: Site) -> None:
    (event,) = (await get(amt, "log/event"))["records"]
    assert (event["Desc"], event["EventSeverity"]) == ("no bootable media", "critical")
    assert event["EventData"] == [0x40, 0xFF]
    audit = await get(amt, "log/audit", "?startIndex=10")
    assert (audit["totalCnt"], audit["records"][0]["Event"]) == (12, "reset")
    assert called(amt)[-1] == ("auditlog.get", {"start": 11})


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
    assert (alarm["ElementName"], alarm["Interval"]) == ("a", 0)
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
        ("power/action", {"action": 500}),
        ("power/action", {"action": "10"}),
        ("power/action", {}),
        ("power/bootOptions", {"action": 104}),
        ("power/bootOptions", {"action": 400, "bootdetails": {}}),
        ("userConsentCode", {"consentCode": 1_000_000}),
        ("features", {"userConsent": "maybe"}),
        ("alarmOccurrences", {"ElementName": "a", "StartTime": {"Datetime": "2027-13-15T08:00"}}),
        ("alarmOccurrences", {"ElementName": "a", "StartTime": "2027-01-15T08:00:00Z"}),
    ],
)
async def test_a_body_that_cannot_be_meant_calls_nothing(amt: Site, path: str, body: Any) -> None:
    status, error = await amt.request("POST", f"/api/v1/amt/{path}/{PC}", body, token=amt.token())
    assert (status, error["error"]) == (400, "BAD_REQUEST")
    assert called(amt) == []


@pytest.mark.parametrize(
    "body", [b"[1]", b"{}", b'{"power_state": "on"}', b"null", b"\xff", b'{"records": [1, null]}']
)
@pytest.mark.parametrize(
    "path", ["power/state", "hardwareInfo", "log/event", "features", "version"]
)
async def test_a_gateway_that_answers_nonsense_is_no_crash(
    site: Site, path: str, body: bytes
) -> None:
    async def nonsense(_: dict[str, Any]) -> Result:
        return Result(1, Code.OK, 0.1, 1, body)

    site.service.session.answer = nonsense
    status, _ = await site.request("GET", f"/api/v1/amt/{path}/{PC}", token=site.token())
    assert status in (200, 502)
