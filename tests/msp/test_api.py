import asyncio
import base64
import getpass
import json
import socket
import stat
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gwmodule.amt.digest import ha1
from gwmodule.errors import ChannelReset, Code, ConfigError, DeadlineExceeded, LinkLost
from gwmodule.msp.api import unix_socket
from gwmodule.msp.api.devices import PART
from gwmodule.msp.api.once import Answers, UsedKeys
from gwmodule.msp.client import ApiRefused
from gwmodule.msp.database import RegistryError
from gwmodule.msp.records import State
from gwmodule.wire.frames import CredentialMode, TlsMode
from gwmodule.wire.messages import Result
from gwmodule.wire.notices import Hello, Lease, Provisioning, Source
from tests.msp.conftest import IP, MAC, NOW, PC, REALM, Service, answer, presence, result

DEVICE = f"/api/v1/devices/{PC}"
LOGIN = {"username": "admin", "password": "P@ssw0rd"}
PIN = bytes(range(32))


async def refused(service: Service, method: str, path: str, body: object = None) -> ApiRefused:
    with pytest.raises(ApiRefused) as caught:
        await service.client.request(method, path, body)
    return caught.value


async def raw(service: Service, method: str, path: str, **arguments: Any) -> tuple[int, Any]:
    connector = aiohttp.UnixConnector(str(service.path))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(method, f"http://x{path}", **arguments) as response,
    ):
        return response.status, await response.json()


async def test_health(service: Service) -> None:
    assert (await service.client.request("GET", "/healthz"))["status"] == "ok"


async def test_a_device_is_shown_with_its_place_and_state(service: Service) -> None:
    device = await service.client.request("GET", DEVICE)
    assert device["guid"] == str(PC)
    assert device["connectionStatus"] is True
    assert (device["address"], device["mac"]) == (str(IP), "02:00:00:00:00:01")
    assert (device["gatewayAddress"], device["gatewayPort"]) == ("203.0.113.7", 40000)
    assert (device["state"], device["contested"], device["claim"]) == ("managed", False, None)
    assert device["lastSeen"] == "2027-01-15T08:00:00.000Z"


async def test_devices_can_be_filtered_paged_and_counted(service: Service) -> None:
    await service.tell(Lease(MAC, IP, 60, "pc"))
    get = service.client.request
    assert len(await get("GET", "/api/v1/devices")) == 1
    assert await get("GET", "/api/v1/devices", query={"guid": "66"}) == []
    for wanted in ({"hostname": "pc"}, {"guid": "55E3"}, {"status": "1"}, {"state": "managed"}):
        assert len(await get("GET", "/api/v1/devices", query=wanted)) == 1
    for other in ({"hostname": "x"}, {"gateway": "home2"}, {"status": "0"}, {"$top": "0"}):
        assert await get("GET", "/api/v1/devices", query=other) == []
    page = await get("GET", "/api/v1/devices", query={"$count": "true", "$skip": "1"})
    assert page == {"data": [], "totalCount": 1}


async def test_a_long_list_comes_whole_in_order_and_with_its_labels(service: Service) -> None:
    total = 2 * PART + 5
    for number in range(1, total):
        mac = bytes([2, 1, 0, 0, 0, number])
        uuid = UUID(int=number << 96)
        await service.tell(presence(mac=mac, address=IP + number, uuid=uuid))
        await service.tell(Lease(mac, IP + number, 60, f"pc-{number % 2}", uuid))
    get = service.client.request
    last = str(UUID(int=(total - 1) << 96))
    await get("PATCH", "/api/v1/devices", {"guid": last, "tags": ["last"]})
    everything = await get("GET", "/api/v1/devices")
    guids = [device["guid"] for device in everything]
    assert len(guids) == total
    assert guids == sorted(set(guids))
    assert [device["guid"] for device in everything if device["tags"]] == [last]
    query = {"$skip": "3", "$top": str(PART + 2), "$count": "true"}
    page = await get("GET", "/api/v1/devices", query=query)
    assert page == {"data": everything[3 : PART + 5], "totalCount": total}
    query = {"hostname": "pc-1", "$count": "true", "$top": "1"}
    page = await get("GET", "/api/v1/devices", query=query)
    assert page["totalCount"] == len(range(1, total, 2))
    assert [device["hostname"] for device in page["data"]] == ["pc-1"]
    query = {"tags": "last", "$count": "true"}
    page = await get("GET", "/api/v1/devices", query=query)
    assert (page["totalCount"], page["data"][0]["guid"]) == (1, last)
    stats = await get("GET", "/api/v1/devices/stats")
    assert (stats["totalCount"], stats["connectedCount"]) == (total, total)


async def test_a_device_without_a_link_is_disconnected(service: Service) -> None:
    service.session.connected = False
    assert (await service.client.request("GET", DEVICE))["connectionStatus"] is False
    stats = await service.client.request("GET", "/api/v1/devices/stats")
    assert (stats["totalCount"], stats["connectedCount"]) == (1, 0)
    error = await refused(service, "POST", f"{DEVICE}/call", {"function": "power.get"})
    assert (error.status, error.error) == (503, "GATEWAY_OFFLINE")
    assert service.session.calls == []


async def test_gateways_show_their_link(service: Service) -> None:
    (gateway,) = await service.client.request("GET", "/api/v1/gateways")
    assert (gateway["name"], gateway["connectionStatus"], gateway["rtt"]) == ("home1", True, 0.021)


async def test_a_new_gateway_gets_its_bundle_and_is_allowed(service: Service) -> None:
    bundle = await service.client.request("POST", "/api/v1/gateways", {"name": "home2"})
    assert bundle["key"].startswith("-----BEGIN PRIVATE KEY-----")
    assert bundle["serverNames"] == ["gwmodule-msp", "msp.example"]
    assert await service.registry.is_gateway_allowed("home2", bundle["fingerprint"])
    error = await refused(service, "POST", "/api/v1/gateways", {"name": "home2"})
    assert error.status == HTTPStatus.CONFLICT
    again = {"name": "home2", "replace": True}
    await service.client.request("POST", "/api/v1/gateways", again)
    assert not await service.registry.is_gateway_allowed("home2", bundle["fingerprint"])


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", "x" * 64, "ü"])
async def test_a_bad_gateway_name_is_refused(service: Service, name: str) -> None:
    error = await refused(service, "POST", "/api/v1/gateways", {"name": name})
    assert error.status == HTTPStatus.BAD_REQUEST
    assert len(await service.registry.gateways()) == 1


async def test_a_call_goes_to_the_recorded_place_with_ha1(service: Service) -> None:
    body = {"function": "power.get", "credential": LOGIN, "deadline": 7}
    reply = await service.client.request("POST", f"{DEVICE}/call", body)
    assert (reply["ok"], reply["result"], reply["exchanges"]) == (True, {"power_state": 2}, 4)
    (call,) = service.session.calls
    assert (call["address"], call["mac"], call["uuid"], call["deadline"]) == (IP, MAC, PC, 7)
    assert (call["tls"], call["pin"], call["arguments"]) == (TlsMode.AUTO, bytes(32), b"{}")
    credential = service.session.credential
    assert (credential.mode, credential.realm) == (CredentialMode.HA1, REALM)
    assert credential.secret == ha1("admin", REALM, "P@ssw0rd")


async def test_in_mode_challenge_the_session_is_told_to_keep_the_secret(service: Service) -> None:
    body = {"function": "power.get", "credential": LOGIN | {"mode": "challenge"}}
    await service.client.request("POST", f"{DEVICE}/call", body)
    credential = service.session.credential
    assert (credential.mode, credential.realm) == (CredentialMode.CHALLENGE, REALM)
    assert credential.secret == ha1("admin", REALM, "P@ssw0rd")
    body = {"function": "power.get", "credential": LOGIN | {"mode": "plain"}}
    assert (await refused(service, "POST", f"{DEVICE}/call", body)).status == 400


async def test_no_secret_is_stored_or_logged(
    service: Service, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    files = [tmp_path / "registry.db", tmp_path / "registry.db-wal"]
    caplog.set_level("DEBUG")
    body = {"function": "power.get", "credential": LOGIN}
    await service.client.request("POST", f"{DEVICE}/call", body)
    await refused(service, "POST", f"{DEVICE}/call", body | {"deadline": -1})
    secret = service.session.credential.secret
    stored = b"".join(file.read_bytes() for file in files)
    for text in (LOGIN["password"], secret):
        assert text not in caplog.text
        assert text.encode() not in stored


async def test_a_call_is_in_the_audit_with_its_outcome_and_its_user(service: Service) -> None:
    body = {"function": "power.get", "credential": LOGIN}
    await service.client.request("POST", f"{DEVICE}/call", body)
    service.session.answer = answer(Code.AUTHENTICATION, {"error": "wrong password"})
    await refused(service, "POST", f"{DEVICE}/call", body)
    entries = await service.client.request("GET", "/api/v1/audit", query={"guid": str(PC)})
    calls = [entry for entry in entries if entry["action"] == "call"]
    assert [entry["detail"]["outcome"] for entry in calls] == ["authentication", "ok"]
    assert {entry["actor"] for entry in calls} == {getpass.getuser()}
    assert calls[0]["detail"]["user"] == "admin"


async def test_the_audit_tells_what_was_asked_for_and_no_secret(service: Service) -> None:
    for function, arguments in (
        ("power.set", {"state": "reset"}),
        ("boot.once", {"device": "uefi-https", "url": "https://x/?key=secret", "sol": True}),
        ("consent.send", {"code": 123456}),
        ("nvm.write", {"enterprise": "x" * 100, "block": 1, "data": "c2VjcmV0", "more": "secret"}),
        ("wsman.put", {"class": "AMT_X", "properties": {"Password": "secret"}}),
        ("eventlog.get", {"limit": 3}),
    ):
        body = {"function": function, "arguments": arguments, "credential": LOGIN}
        await service.client.request("POST", f"{DEVICE}/call", body)
    entries = [e for e in await service.registry.audit_entries(uuid=PC) if e.action == "call"]
    assert [entry.detail.get("arguments") for entry in reversed(entries)] == [
        "state=reset",
        "device=uefi-https sol=True",
        None,
        f"enterprise={'x' * 64} block=1",
        "class=AMT_X",
        None,
    ]


async def test_who_switches_is_told_to_those_whose_streams_it_closes(service: Service) -> None:
    body = {"function": "power.set", "arguments": {"state": "reset"}, "credential": LOGIN}
    await service.client.request("POST", f"{DEVICE}/call", body)
    arguments = json.loads(service.session.calls[0]["arguments"])
    assert arguments == {"state": "reset", "by": getpass.getuser()}


async def test_the_password_travels_only_without_a_realm_and_with_leave(service: Service) -> None:
    await service.registry.unpin(PC, NOW, actor="anna")
    body: dict[str, object] = {"function": "power.get", "credential": LOGIN}
    error = await refused(service, "POST", f"{DEVICE}/call", body)
    assert (error.status, error.error) == (409, "REALM_UNKNOWN")
    await service.client.request("POST", f"{DEVICE}/call", body | {"allow_password": True})
    await service.tell(presence(), NOW + 1)
    await service.client.request("POST", f"{DEVICE}/call", body | {"allow_password": True})
    modes = [call["credential"].mode for call in service.session.calls]
    assert modes == [CredentialMode.PASSWORD, CredentialMode.HA1]


async def test_a_device_in_setup_is_not_provisioned(service: Service) -> None:
    other = "00112233-4455-6677-8899-aabbccddeeff"
    from_lan = Hello(type(PC)(other), IP, bytes([2, 0, 0, 0, 0, 9]), 3, 0, Source.LISTENER, b"")
    await service.tell(from_lan)
    body = {"function": "power.get", "credential": LOGIN}
    error = await refused(service, "POST", f"/api/v1/devices/{other}/call", body)
    assert (error.status, error.error) == (409, "NOT_PROVISIONED")


async def test_a_pinned_device_is_never_called_in_plain(service: Service) -> None:
    await service.tell(presence(pin=PIN), NOW + 1)
    body = {"function": "power.get", "tls": "off", "credential": LOGIN}
    error = await refused(service, "POST", f"{DEVICE}/call", body)
    assert (error.status, error.error) == (409, "TLS_PIN")
    body["tls"] = "legacy"
    await service.client.request("POST", f"{DEVICE}/call", body)
    assert service.session.calls[0]["pin"] == PIN
    assert (await service.client.request("GET", DEVICE))["tls"] == "legacy"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.AUTHENTICATION, 403),
        (Code.UNKNOWN_FUNCTION, 404),
        (Code.IDENTITY_MISMATCH, 409),
        (Code.UNREACHABLE, 504),
        (Code.WSMAN_FAULT, 502),
    ],
)
async def test_a_call_that_failed_says_why(service: Service, code: Code, status: int) -> None:
    service.session.answer = answer(code, {"error": "the sentence", "detail": "more"})
    error = await refused(service, "POST", f"{DEVICE}/call", {"function": "power.get"})
    assert (error.status, error.error, str(error)) == (status, code.name, "the sentence: more")


@pytest.mark.parametrize("body", [b"", b"\xff", b"[1", b"[" * 100_000, b'"text"'])
async def test_a_result_that_is_no_json_is_still_an_answer(service: Service, body: bytes) -> None:
    async def garbage(_: dict[str, Any]) -> Result:
        return Result(1, Code.WSMAN_FAULT, 0.1, 1, body)

    service.session.answer = garbage
    error = await refused(service, "POST", f"{DEVICE}/call", {"function": "power.get"})
    assert error.status == HTTPStatus.BAD_GATEWAY


async def test_a_lost_session_leaves_the_outcome_unknown(service: Service) -> None:
    async def lose(_: dict[str, Any]) -> Result:
        raise LinkLost("outcome unknown: the gateway was away for 120 s")

    service.session.answer = lose
    error = await refused(service, "POST", f"{DEVICE}/call", {"function": "power.set"})
    assert (error.status, error.error) == (504, "OUTCOME_UNKNOWN")
    assert (await service.registry.audit_entries(uuid=PC))[0].detail["outcome"] == "unknown"


async def test_a_deadline_is_a_gateway_timeout(service: Service) -> None:
    async def late(_: dict[str, Any]) -> Result:
        raise DeadlineExceeded("no answer within 30.0 s")

    service.session.answer = late
    error = await refused(service, "POST", f"{DEVICE}/call", {"function": "power.get"})
    assert (error.status, error.error) == (504, "DEADLINE")


async def test_an_idempotency_key_acts_once(service: Service) -> None:
    go = asyncio.Event()

    async def slow(_: dict[str, Any]) -> Result:
        await go.wait()
        return result({"n": len(service.session.calls)})

    service.session.answer = slow
    body = {"function": "power.set", "arguments": {"state": 10}, "credential": LOGIN}
    headers = {"Idempotency-Key": "k1"}
    path = f"{DEVICE}/call"
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(raw(service, "POST", path, json=body, headers=headers))
            for _ in range(3)
        ]
        await asyncio.sleep(0.05)
        go.set()
    assert [task.result()[1]["result"] for task in tasks] == [{"n": 1}] * 3
    status, error = await raw(service, "POST", path, json=body | {"deadline": 9}, headers=headers)
    assert (status, error["error"]) == (422, "KEY_REUSED")
    assert len(service.session.calls) == 1


async def test_a_repetition_of_a_failed_request_gets_the_same_failure(service: Service) -> None:
    service.session.answer = answer(Code.DEVICE_REFUSED, {"error": "no"})
    for _ in range(2):
        status, error = await raw(
            service,
            "POST",
            f"{DEVICE}/call",
            json={"function": "power.set"},
            headers={"Idempotency-Key": "k"},
        )
        assert (status, error["errorDescription"]) == (409, "no")
    assert len(service.session.calls) == 1


async def test_a_request_that_was_broken_off_does_not_act_again(service: Service) -> None:
    async def break_off(_: dict[str, Any]) -> Result:
        raise RuntimeError("in the middle of it")

    service.session.answer = break_off
    answers = [
        await raw(
            service,
            "POST",
            f"{DEVICE}/call",
            json={"function": "power.set"},
            headers={"Idempotency-Key": "k"},
        )
        for _ in range(2)
    ]
    assert [(status, error["error"]) for status, error in answers] == [
        (500, "INTERNAL"),
        (504, "OUTCOME_UNKNOWN"),
    ]
    assert len(service.session.calls) == 1


async def test_a_repetition_after_a_restart_does_not_act_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.session.answer = answer(Code.OK, {})

    async def reset(key: str) -> tuple[int, Any]:
        body = {"function": "power.set", "arguments": {"state": 10}}
        headers = {"Idempotency-Key": key}
        return await raw(service, "POST", f"{DEVICE}/call", json=body, headers=headers)

    assert (await reset("k"))[0] == 200
    monkeypatch.setattr(service.api.calls, "_answers", Answers())
    for _ in range(2):
        status, error = await reset("k")
        assert (status, error["error"]) == (504, "OUTCOME_UNKNOWN")
    assert len(service.session.calls) == 1
    assert (await reset("l"))[0] == 200
    assert len(service.session.calls) == 2


async def test_a_key_is_not_used_up_by_what_sent_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.session.answer = answer(Code.OK, {})

    async def reset() -> tuple[int, str]:
        body = {"function": "power.set", "arguments": {"state": 10}}
        headers = {"Idempotency-Key": "k"}
        status, body = await raw(service, "POST", f"{DEVICE}/call", json=body, headers=headers)
        return status, body.get("error", "")

    async def load(*_: object) -> None:
        raise RegistryError("registry: disk I/O error")

    service.session.connected = False
    assert await reset() == (503, "GATEWAY_OFFLINE")
    service.session.connected = True
    with monkeypatch.context() as broken:
        broken.setattr(service.vault, "load", load)
        assert (await reset())[0] == 503
    assert service.session.calls == []
    assert await reset() == (200, "")
    assert await reset() == (200, "")
    assert len(service.session.calls) == 1


async def test_nobody_signs_with_another_name(service: Service) -> None:
    service.session.answer = answer(Code.OK, {})
    arguments = {"state": 10, "by": "boss@default"}
    body = {"function": "power.set", "arguments": arguments}
    assert (await raw(service, "POST", f"{DEVICE}/call", json=body))[0] == 200
    (call,) = service.session.calls
    sent = json.loads(call["arguments"])
    assert sent["state"] == 10
    assert sent["by"] not in ("", "boss@default")


async def test_a_call_that_was_never_made_is_not_in_the_audit(service: Service) -> None:
    body = {"function": "power.set", "arguments": {"state": 10}}
    status, _ = await raw(
        service, "POST", f"{DEVICE}/call", json=body, headers={"Call-Id": "not good"}
    )
    assert status == 400
    assert service.session.calls == []
    assert "call" not in [entry.action for entry in await service.registry.audit_entries()]


async def test_a_full_disk_keeps_nobody_from_acting_once(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(*_: object) -> bool:
        raise RegistryError("registry: database or disk is full")

    monkeypatch.setattr(UsedKeys, "use", use)
    service.session.answer = answer(Code.OK, {})
    body = {"function": "power.set", "arguments": {"state": 10}}
    for _ in range(2):
        status, _ = await raw(
            service, "POST", f"{DEVICE}/call", json=body, headers={"Idempotency-Key": "k"}
        )
        assert status == 200
    assert len(service.session.calls) == 1
    assert "idempotency_key_failed" in caplog.text


async def test_a_repetition_that_gives_up_waiting_costs_the_first_request_nothing(
    service: Service,
) -> None:
    async def read() -> bytes:
        return b""

    http = SimpleNamespace(
        headers={"Idempotency-Key": "k"}, method="POST", path="/api/v1/x", read=read
    )
    asked: Any = SimpleNamespace(tenant="default", actor="anna", http=http)
    go = asyncio.Event()

    async def act() -> web.Response:
        await go.wait()
        return web.Response(body=b"done")

    async with asyncio.TaskGroup() as group:
        first = group.create_task(service.api.calls.once(asked, act))
        await asyncio.sleep(0)
        again = group.create_task(service.api.calls.once(asked, act))
        await asyncio.sleep(0)
        again.cancel()
        await asyncio.wait([again])
        go.set()
    assert first.result().body == b"done"


async def test_a_key_belongs_to_one_request_and_is_bounded(service: Service) -> None:
    service.session.answer = answer(Code.OK, {})
    consent = "/api/v1/amt/userConsentCode"
    for path, key, status in (
        (f"{consent}/{PC}", "k" * 255, 200),
        (f"{consent}/cancel/{PC}", "k" * 255, 422),
        (f"{consent}/{PC}", "k" * 256, 400),
    ):
        got, _ = await raw(service, "GET", path, headers={"Idempotency-Key": key})
        assert got == status
    assert len(service.session.calls) == 1


async def test_a_candidate_is_identified_by_its_login(service: Service) -> None:
    mac = "02:00:00:00:00:07"
    await service.tell(presence(mac=bytes.fromhex("020000000007"), uuid=None))
    (candidate,) = await service.client.request("GET", "/api/v1/candidates")
    assert (candidate["gateway"], candidate["mac"]) == ("home1", mac)
    uuid = "00112233-4455-6677-8899-aabbccddeeff"
    service.session.answer = answer(Code.OK, {"uuid": uuid, "realm": "Digest:new"})
    path = f"/api/v1/candidates/home1/{mac}/identify"
    device = await service.client.request("POST", path, {"credential": LOGIN})
    assert (device["guid"], device["state"], device["realm"]) == (uuid, "managed", "Digest:new")
    assert service.session.calls[0]["function"] == "identity.get"
    assert await service.client.request("GET", "/api/v1/candidates") == []


async def test_a_candidate_is_identified_by_the_default_login_when_none_is_brought(
    service: Service,
) -> None:
    await service.tell(presence(mac=bytes.fromhex("020000000007"), uuid=None))
    await service.client.request("PUT", "/api/v1/credential", LOGIN)
    uuid = "00112233-4455-6677-8899-aabbccddeeff"
    service.session.answer = answer(Code.OK, {"uuid": uuid, "realm": "Digest:new"})
    path = "/api/v1/candidates/home1/02-00-00-00-00-07/identify"
    await service.client.request("POST", path, {})
    credential = service.session.credential
    assert (credential.mode, credential.username) == (CredentialMode.HA1, "admin")
    assert credential.secret == ha1("admin", REALM, "P@ssw0rd")


@pytest.mark.parametrize("body", [{}, {"uuid": "x"}, {"uuid": str(PC)[:-1]}, [1], {"uuid": 1}])
async def test_a_candidate_that_tells_no_uuid_stays_one(service: Service, body: object) -> None:
    await service.tell(presence(mac=bytes.fromhex("020000000007"), uuid=None))
    service.session.answer = answer(Code.OK, body)
    path = "/api/v1/candidates/home1/02-00-00-00-00-07/identify"
    error = await refused(service, "POST", path, {"credential": LOGIN})
    assert error.status == HTTPStatus.BAD_GATEWAY
    assert len(await service.registry.devices()) == 1


async def test_an_identity_that_contradicts_the_records_does_so_for_a_repetition_too(
    service: Service,
) -> None:
    await service.tell(presence(pin=bytes(range(32))))
    await service.tell(presence(mac=bytes.fromhex("020000000007"), uuid=None))
    service.session.answer = answer(Code.OK, {"uuid": str(PC)})
    path = "/api/v1/candidates/home1/02-00-00-00-00-07/identify"
    for _ in range(2):
        status, error = await raw(
            service, "POST", path, json={"credential": LOGIN}, headers={"Idempotency-Key": "k"}
        )
        assert (status, error["error"]) == (409, "CONFLICT")
        assert "pinned to certificate" in error["errorDescription"]
    assert len(service.session.calls) == 1


async def test_an_unknown_candidate_is_not_found(service: Service) -> None:
    path = "/api/v1/candidates/home1/02-00-00-00-00-07/identify"
    assert (await refused(service, "POST", path, {"credential": LOGIN})).status == 404
    path = "/api/v1/candidates/home1/nonsense/identify"
    assert (await refused(service, "POST", path, {"credential": LOGIN})).status == 400


async def test_identity_proves_a_known_device(service: Service) -> None:
    service.session.answer = answer(Code.OK, {"uuid": str(PC)})
    body = {"function": "identity.get", "credential": LOGIN}
    await service.client.request("POST", f"{DEVICE}/call", body)
    assert (await service.client.request("GET", DEVICE))["proved"] is not None


async def test_power_in_the_shape_of_open_amt(service: Service) -> None:
    basic = base64.b64encode(b"admin:P@ssw0rd").decode()
    headers = {"AMT-Authorization": f"Basic {basic}"}
    status, body = await raw(service, "GET", f"/api/v1/amt/power/state/{PC}", headers=headers)
    assert (status, body) == (200, {"powerstate": 2})
    assert service.session.credential.username == "admin"
    path = f"/api/v1/amt/power/action/{PC}"
    status, body = await raw(service, "POST", path, json={"action": 10}, headers=headers)
    assert (status, body["Body"]["ReturnValue"]) == (200, 0)
    assert json.loads(service.session.calls[-1]["arguments"])["state"] == 10
    bad = {"AMT-Authorization": "Basic ???"}
    status, body = await raw(service, "POST", path, json={"action": 10}, headers=bad)
    assert status == 400


async def test_forgetting_a_device(service: Service) -> None:
    await service.client.request("DELETE", DEVICE)
    assert (await refused(service, "GET", DEVICE)).status == 404
    assert (await service.registry.audit_entries())[0].action == "device.forgotten"


async def test_unpinning_over_the_api(service: Service) -> None:
    await service.tell(presence(pin=PIN), NOW + 1)
    device = await service.client.request("POST", f"{DEVICE}/unpin")
    assert device["pin"] is None


@pytest.mark.parametrize("guid", ["x", "%27", "55e3ae13", "urn:uuid:" + str(PC), str(PC) + "0"])
async def test_what_is_no_uuid_is_a_bad_request(service: Service, guid: str) -> None:
    assert (await refused(service, "GET", f"/api/v1/devices/{guid}")).status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"[]",
        b"[" * 60000,
        b"\xff\xfe",
        b'{"function": 5}',
        b'{"function": "POWER"}',
        b'{"function": "power.get", "extra": 1}',
        b'{"function": "power.get", "deadline": 0}',
        b'{"function": "power.get", "deadline": 1e999}',
        b'{"function": "power.get", "tls": "none"}',
        b'{"function": "power.get", "arguments": []}',
        b'{"function": "a", "credential": {"username": "a", "password": "x", "realm": "r"}}',
        b'{"function": "power.get", "credential": {"username": "a\\"", "password": "x"}}',
        b'{"function": "power.get", "credential": {"username": "a", "password": "x\\n"}}',
        b'{"function": "power.get", "credential": {"username": "a", "password": ""}}',
    ],
)
async def test_a_bad_body_is_refused_and_nothing_is_called(service: Service, body: bytes) -> None:
    status, error = await raw(service, "POST", f"{DEVICE}/call", data=body)
    assert (status, error["error"]) == (400, "BAD_REQUEST")
    assert service.session.calls == []


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: json.dumps(text).encode()))
async def test_garbage_never_gets_past_the_decoder(service: Service, body: bytes) -> None:
    status, error = await raw(service, "POST", f"{DEVICE}/call", data=body)
    assert (status, error["error"]) == (400, "BAD_REQUEST")


async def test_an_oversized_body_is_refused(service: Service) -> None:
    status, error = await raw(service, "POST", f"{DEVICE}/call", data=b" " * 70_000)
    assert (status, error["error"]) == (413, "REQUEST_ENTITY_TOO_LARGE")
    arguments = {"data": "x" * 16_000}
    body = {"function": "nvm.write", "arguments": arguments}
    status, error = await raw(service, "POST", f"{DEVICE}/call", json=body)
    assert (status, error["error"]) == (413, "REQUEST_ENTITY_TOO_LARGE")
    assert service.session.calls == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/api/v1/devices?x=1", 400),
        ("GET", "/api/v1/devices?$top=-1", 400),
        ("GET", "/api/v1/devices?$top=99999999999999999999", 400),
        ("GET", "/api/v1/devices?guid=zz", 400),
        ("GET", "/api/v1/audit?limit=x", 400),
        ("PUT", "/api/v1/devices", 405),
        ("POST", "/api/v1/devices/stats", 405),
        ("GET", f"/relay/webrelay.ashx?host={PC}", 426),
        ("GET", f"/relay/webrelay.ashx?host={PC}&tls=1", 400),
        ("GET", f"/relay/webrelay.ashx?host={PC}&port=70000", 400),
        ("GET", "/relay/webrelay.ashx?host=00112233-4455-6677-8899-aabbccddeeff", 404),
        ("GET", "/relay/webrelay.ashx", 400),
    ],
)
async def test_errors_have_one_shape(service: Service, method: str, path: str, status: int) -> None:
    found, error = await raw(service, method, path)
    assert found == status
    assert set(error) == {"error", "errorDescription"}
    assert error["errorDescription"]


async def test_our_own_fault_is_an_error_without_a_traceback(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: dict[str, Any]) -> Result:
        raise RuntimeError("secret detail")

    service.session.answer = broken
    error = await refused(service, "POST", f"{DEVICE}/call", {"function": "power.get"})
    assert (error.status, error.error) == (500, "INTERNAL")
    assert "secret detail" not in str(error)
    assert "secret detail" in caplog.text


async def test_a_registry_that_fails_is_unavailable_and_comes_back(service: Service) -> None:
    await service.database.execute("PRAGMA query_only = 1")
    error = await refused(service, "DELETE", DEVICE)
    assert (error.status, error.error) == (503, "REGISTRY_UNAVAILABLE")
    # The call itself is done, whether or not the audit can be written.
    body = {"function": "power.get", "credential": LOGIN}
    assert (await service.client.request("POST", f"{DEVICE}/call", body))["ok"]
    await service.database.execute("PRAGMA query_only = 0")
    await service.client.request("DELETE", DEVICE)


async def test_a_host_name_is_data_in_every_answer(service: Service) -> None:
    name = '"><script>alert(1)</script>\x1b[2J'
    await service.tell(Lease(MAC, IP, 60, name))
    assert (await service.client.request("GET", DEVICE))["hostname"] == name


async def test_a_refused_stream_closes_with_code_and_reason(service: Service) -> None:
    async def refuse(*_: object) -> None:
        raise ChannelReset(Code.REFUSED_POLICY, "port 22 is not a port of AMT")

    service.session.open = refuse
    stream = await service.client.open_stream(str(PC), 22)
    with pytest.raises(ChannelReset, match="port 22 is not") as caught:
        await stream.read()
    assert caught.value.code is Code.REFUSED_POLICY
    await stream.close()


def test_the_socket_is_only_for_its_owner_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "api.sock"
    first = unix_socket(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="another service answers"):
        unix_socket(path)
    first.close()
    unix_socket(path).close()


def test_a_file_in_place_of_the_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="no socket"):
        unix_socket(path)
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError):
        unix_socket(tmp_path / ("x" * 120))


async def test_a_peer_that_sends_no_http_does_no_harm(service: Service) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, str(service.path))
        await loop.sock_sendall(sock, b"\x16\x03\x01\x00\xff" * 4000 + b"\r\n\r\n")
        async with asyncio.timeout(5):
            assert b"400" in await loop.sock_recv(sock, 4096)
    assert (await service.client.request("GET", "/healthz"))["status"] == "ok"


async def test_a_contested_device_shows_its_claim(service: Service) -> None:
    await service.registry.add_gateway("home2", "bb", NOW)
    await service.tell(presence(), NOW + 1, gateway="home2")
    device = await service.client.request("GET", DEVICE)
    assert (device["contested"], device["claim"]["gateway"]) == (True, "home2")
    assert device["gateway"] == "home1"
    stats = await service.client.request("GET", "/api/v1/devices/stats")
    assert stats["contestedCount"] == 1


async def test_a_provisioning_answer_is_shown_with_the_candidate(service: Service) -> None:
    await service.tell(
        presence(mac=bytes([2, 0, 0, 0, 0, 7]), uuid=None, provisioning=Provisioning.PRE, realm="")
    )
    (candidate,) = await service.client.request("GET", "/api/v1/candidates")
    assert candidate["provisioning"] == "pre"
    assert (await service.registry.devices())[0].state is State.MANAGED
