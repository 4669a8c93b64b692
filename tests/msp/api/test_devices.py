import asyncio
import contextlib
import json
import socket
import sqlite3
from typing import Any, cast
from uuid import UUID

import aiohttp
import pytest

from gwmodule.msp.accounts import Role
from gwmodule.msp.api.devices import PART
from gwmodule.msp.database import RegistryError
from gwmodule.wire.frames import CredentialMode
from gwmodule.wire.messages import Progress, Result
from gwmodule.wire.notices import Lease
from tests.msp.api.conftest import Site
from tests.msp.conftest import IP, MAC, NOW, PC, presence, result
from tests.uplink.peers import until

DEVICE = f"/api/v1/devices/{PC}"
LOGIN = {"username": "admin", "password": "P@ssw0rd"}
CALL = {"function": "power.get"}


async def test_tags_and_a_friendly_name_are_set_found_and_forgotten(site: Site) -> None:
    token = site.token()
    change = {"guid": str(PC).upper(), "tags": ["küche", "vip", "vip"], "friendlyName": "Oma's PC"}
    status, device = await site.request("PATCH", "/api/v1/devices", change, token=token)
    assert (status, device["tags"], device["friendlyName"]) == (200, ["küche", "vip"], "Oma's PC")
    for query, found in (
        ("tags=vip", 1),
        ("tags=vip,none", 0),
        ("tags=vip,none&method=OR", 1),
        ("tags=none&method=OR", 0),
        ("friendlyName=Oma's PC", 1),
        ("friendlyName=Oma", 0),
    ):
        _, devices = await site.request("GET", f"/api/v1/devices?{query}", token=token)
        assert len(devices) == found, query
    assert (await site.request("GET", "/api/v1/devices/tags", token=token))[1] == ["küche", "vip"]
    _, device = await site.request("PATCH", "/api/v1/devices", {"guid": str(PC)}, token=token)
    assert device["tags"] == ["küche", "vip"]
    await site.request("DELETE", DEVICE, token=token)
    assert (await site.request("GET", "/api/v1/devices/tags", token=token))[1] == []


@pytest.mark.parametrize(
    "change",
    [
        {"tags": ["a,b"]}, {"tags": ["a\nb"]}, {"tags": [""]}, {"tags": ["x" * 64]},
        {"tags": [str(n) for n in range(33)]}, {"tags": "a"}, {"friendlyName": "a\x1b[2J"},
        {"friendlyName": "x" * 256}, {"hostname": "mine"}, {"tag": ["a"]}, {"guid": "' OR 1=1 --"},
    ],
)  # fmt: skip
async def test_a_label_that_cannot_be_is_refused(site: Site, change: dict[str, Any]) -> None:
    body = {"guid": str(PC)} | change
    assert (await site.request("PATCH", "/api/v1/devices", body, token=site.token()))[0] == 400


async def test_a_label_that_stays_as_it_is_leaves_no_audit_entry(site: Site) -> None:
    for name in ("till 3", "till 3", "till 4", "till 4"):
        change = {"guid": str(PC), "friendlyName": name}
        assert (await site.request("PATCH", "/api/v1/devices", change, token=site.token()))[
            0
        ] == 200
    entries = await site.service.registry.audit_entries(uuid=PC)
    labelled = [entry.detail for entry in entries if entry.action == "device.labelled"]
    assert [detail["friendlyName"] for detail in labelled] == ["till 4", "till 3"]


async def test_open_amts_console_sends_a_whole_device_back(site: Site) -> None:
    _, device = await site.request("GET", DEVICE, token=site.token())
    assert device["deviceInfo"]["fwVersion"] == "15.0.23.1706"
    assert device["deviceInfo"]["ipAddress"] == device["address"]
    changed = device | {"friendlyName": "till 3", "lastAnswer": None}
    status, answer = await site.request("PATCH", "/api/v1/devices", changed, token=site.token())
    assert (status, answer) == (200, device | {"friendlyName": "till 3"})


@pytest.mark.parametrize("server", ["nginx", "Intel(R) Active Management Technology ", "x" * 300])
async def test_a_server_that_tells_no_version_has_none(site: Site, server: str) -> None:
    await site.service.tell(presence(server=server))
    _, device = await site.request("GET", DEVICE, token=site.token())
    assert device["deviceInfo"]["fwVersion"] == ""


async def test_a_login_goes_with_its_device(site: Site) -> None:
    await site.request("PUT", f"{DEVICE}/credential", LOGIN, token=site.token())
    url = f"{DEVICE}?isSecretToBeDeleted="
    assert (await site.request("DELETE", url + "false", token=site.token()))[0] == 400
    assert (await site.request("DELETE", url + "true", token=site.token()))[0] == 204
    assert await site.service.database.fetch("SELECT * FROM credentials") == []


@pytest.mark.parametrize("name", ["'; DROP TABLE devices; --", '"><img src=x>', "a\x00b", "\ud800"])
async def test_a_host_name_is_data_whatever_it_says(site: Site, name: str) -> None:
    await site.service.tell(Lease(MAC, IP, 60, name))
    _, device = await site.request("GET", DEVICE, token=site.token())
    assert device["hostname"] == name.replace("\x00", "\ufffd").encode(errors="replace").decode()
    query = {"hostname": device["hostname"]}
    _, found = await site.request("GET", "/api/v1/devices", token=site.token(), params=query)
    assert [each["guid"] for each in found] == [str(PC)]


async def test_a_stored_login_is_used_and_never_shown(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    token = site.token()
    assert (await site.request("GET", f"{DEVICE}/credential", token=token))[0] == 404
    status, shown = await site.request("PUT", f"{DEVICE}/credential", LOGIN, token=token)
    assert (status, shown["username"], shown["mode"]) == (200, "admin", "ha1")
    technician = site.token(Role.TECHNICIAN)
    _, shown = await site.request("GET", f"{DEVICE}/credential", token=technician)
    assert "P@ssw0rd" not in str(shown) + caplog.text
    assert (await site.request("POST", f"{DEVICE}/call", CALL, token=technician))[0] == 200
    credential = site.service.session.credential
    assert (credential.mode, credential.username) == (CredentialMode.HA1, "admin")
    # What the request brings goes before what is stored.
    body = CALL | {"credential": LOGIN | {"username": "op"}}
    await site.request("POST", f"{DEVICE}/call", body, token=technician)
    assert site.service.session.credential.username == "op"
    assert (await site.request("DELETE", f"{DEVICE}/credential", token=token))[0] == 204
    await site.request("POST", f"{DEVICE}/call", CALL, token=technician)
    assert site.service.session.credential.mode is CredentialMode.NONE


async def test_the_tenants_default_login_is_for_devices_without_their_own(site: Site) -> None:
    challenge = LOGIN | {"mode": "challenge"}
    await site.request("PUT", "/api/v1/credential", challenge, token=site.token())
    await site.request("POST", f"{DEVICE}/call", CALL, token=site.token())
    assert site.service.session.credential.mode is CredentialMode.CHALLENGE
    _, shown = await site.request("GET", "/api/v1/credential", token=site.token())
    assert shown["mode"] == "challenge"
    assert (await site.request("DELETE", "/api/v1/credential", token=site.token()))[0] == 204


@pytest.mark.parametrize("function", ["wsman.put", "wsman.invoke"])
async def test_what_can_change_the_devices_accounts_needs_an_admin(
    site: Site, function: str
) -> None:
    body = {"function": function, "arguments": {"class": "AMT_X"}}
    status, error = await site.request(
        "POST", f"{DEVICE}/call", body, token=site.token(Role.TECHNICIAN)
    )
    assert (status, error["error"]) == (403, "FORBIDDEN")
    assert site.service.session.calls == []
    assert (await site.request("POST", f"{DEVICE}/call", body, token=site.token()))[0] == 200


async def test_a_running_call_is_cancelled_by_its_name(site: Site) -> None:
    started = asyncio.Event()

    async def hang(_: dict[str, Any]) -> Result:
        started.set()
        await asyncio.sleep(3600)
        raise AssertionError

    site.service.session.answer = hang
    headers = {"Call-Id": "mine"}
    async with asyncio.TaskGroup() as group:
        call = group.create_task(
            site.request("POST", f"{DEVICE}/call", CALL, token=site.token(), headers=headers)
        )
        await started.wait()
        path = "/api/v1/calls/mine"
        other = site.token(tenant="other")
        assert (await site.request("DELETE", path, token=other))[0] == 404
        colleague = site.token(Role.TECHNICIAN)
        assert (await site.request("DELETE", path, token=colleague))[0] == 403
        again = await site.request(
            "POST", f"{DEVICE}/call", CALL, token=site.token(), headers=headers
        )
        assert again[0] == 409
        assert (await site.request("DELETE", path, token=site.token()))[0] == 204
    status, error = call.result()
    assert (status, error["error"]) == (409, "CANCELLED")
    assert (await site.request("DELETE", path, token=site.token()))[0] == 404
    entry = (await site.service.registry.audit_entries(uuid=PC))[0]
    assert entry.detail["outcome"] == "unknown"


async def test_a_call_tells_its_progress_to_its_tenant(site: Site) -> None:
    async def slow(arguments: dict[str, Any]) -> Result:
        arguments["on_progress"](Progress(1, 1, 4, "reading CIM_Chip"))
        return result({})

    site.service.session.answer = slow
    events = site.service.api.events
    with events.watch("default") as watcher, events.watch("other") as stranger:
        await site.request(
            "POST", f"{DEVICE}/call", CALL, token=site.token(), headers={"Call-Id": "mine"}
        )
        text = (await watcher.next(1.0)).decode()
        assert await stranger.next(0.01) == b": still here\n\n"
    told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    calls = [each for each in told if each.get("callId") == "mine"]
    assert [each["state"] for each in calls] == ["started", "progress", "ended"]
    assert (calls[1]["done"], calls[1]["total"]) == (1, 4)


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "../x"])
async def test_a_bad_call_id_is_refused_and_nothing_is_called(site: Site, name: str) -> None:
    headers = {"Call-Id": name}
    status, _ = await site.request(
        "POST", f"{DEVICE}/call", CALL, token=site.token(), headers=headers
    )
    assert status == (400 if name else 200)
    assert len(site.service.session.calls) == (0 if name else 1)


async def test_explain_goes_on_at_the_gateway(site: Site) -> None:
    seen = {"step": "ports", "result": "failed", "found": "all closed", "advice": "enable AMT"}
    site.service.session.checklist = {"steps": [seen]}
    _, told = await site.request("GET", f"{DEVICE}/explain", token=site.token(Role.VIEWER))
    assert [step["step"] for step in told["steps"]] == ["record", "claims", "gateway", "ports"]
    assert (told["reachable"], told["steps"][-1]) == (False, seen)
    site.service.session.checklist = {"steps": "garbage"}
    _, told = await site.request("GET", f"{DEVICE}/explain", token=site.token())
    assert told["steps"][-1]["result"] == "failed"
    site.service.session.connected = False
    _, told = await site.request("GET", f"{DEVICE}/explain", token=site.token())
    assert [step["result"] for step in told["steps"]] == ["ok", "ok", "failed"]


async def test_another_technicians_key_does_not_give_him_my_answer(site: Site) -> None:
    headers = {"Idempotency-Key": "k"}
    for role in (Role.ADMIN, Role.TECHNICIAN):
        await site.request("POST", f"{DEVICE}/call", CALL, token=site.token(role), headers=headers)
    assert len(site.service.session.calls) == 2


async def test_the_audit_is_of_the_tenant_and_outlives_the_device(site: Site) -> None:
    await site.request("DELETE", DEVICE, token=site.token())
    path = f"/api/v1/audit?guid={PC}"
    _, entries = await site.request("GET", path, token=site.token())
    assert entries[0]["action"] == "device.forgotten"
    assert (await site.request("GET", path, token=site.token(tenant="other")))[1] == []


async def test_a_device_that_changes_is_an_event(site: Site) -> None:
    with site.service.api.events.watch("default") as watcher:
        await site.service.tell(presence(), NOW + 5)
        assert b'event: device\ndata: {"guid":"%s"' % str(PC).encode() in await watcher.next(1.0)
        await site.request("DELETE", DEVICE, token=site.token())
        assert b'"forgotten":true' in await watcher.next(1.0)


async def multiply(site: Site, table: str, name: str, number: int) -> None:
    """The only row of a table `number` times, each with another value of one column."""
    database = site.service.database
    row = cast(sqlite3.Row, await database.fetch_one(f"SELECT * FROM {table}"))
    columns = ", ".join(sorted({*row.keys()} - {name}))
    async with database.transaction() as db:
        for value in range(1, number):
            await db.execute(
                f"INSERT INTO {table} ({name}, {columns})"
                f" SELECT $1, {columns} FROM {table} LIMIT 1",
                value.to_bytes(16 if name == "uuid" else 6, "big"),
            )


async def many_entries(site: Site, number: int) -> None:
    async with site.service.database.transaction() as db:
        for at in range(number):
            await db.execute(
                "INSERT INTO audit (tenant, at, actor, action, detail) VALUES ($1, $2, $3, $4, $5)",
                "default", float(at), "a", "call", json.dumps({"reason": "x" * 500}),
            )  # fmt: skip


LISTS = ["/api/v1/devices", "/api/v1/devices?$count=true", "/api/v1/devices?status=1",
         "/api/v1/candidates", "/api/v1/audit?limit=10000"]  # fmt: skip


@pytest.mark.parametrize("path", LISTS)
async def test_who_does_not_read_a_long_list_costs_one_part_of_it(site: Site, path: str) -> None:
    for table, name in (("devices", "uuid"), ("hosts", "mac")):
        await multiply(site, table, name, 1000)
    await many_entries(site, 1000)
    host, port = site.url.removeprefix("http://").split(":")
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.token()}\r\n\r\n"
    server = site.service.runner.server
    assert server is not None

    def transports() -> list[asyncio.WriteTransport]:
        return [handler.transport for handler in server.connections if handler.transport]

    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(socket.socket()) for _ in range(5)]
        for reader in readers:
            # Before it connects: the window is what it says then.
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.setblocking(False)
            await asyncio.get_running_loop().sock_connect(reader, (host, int(port)))
        await until(lambda: len(transports()) == 5)
        for transport in transports():
            # What the kernel does not take waits in the transport, where it can be counted.
            ours = transport.get_extra_info("socket")
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for reader in readers:
            reader.send(request.encode())
        await until(lambda: all(each.get_write_buffer_size() for each in transports()))
        await asyncio.sleep(0.2)
        assert max(each.get_write_buffer_size() for each in transports()) < 160 * 1024


async def test_a_long_list_is_whole(site: Site) -> None:
    token = site.token()
    await multiply(site, "devices", "uuid", PART + 3)
    await multiply(site, "hosts", "mac", 2 * PART)
    await many_entries(site, 2 * PART)
    _, devices = await site.request("GET", "/api/v1/devices", token=token)
    everything = [UUID(int=number) for number in range(1, PART + 3)] + [PC]
    assert [device["guid"] for device in devices] == [str(each) for each in everything]
    _, page = await site.request("GET", "/api/v1/devices?$skip=1&$top=2&status=1", token=token)
    assert page == devices[1:3]
    path = "/api/v1/devices?$skip=1&$top=2&status=1&$count=true"
    _, page = await site.request("GET", path, token=token)
    assert page == {"data": devices[1:3], "totalCount": PART + 3}
    _, candidates = await site.request("GET", "/api/v1/candidates", token=token)
    macs = [host["mac"] for host in candidates]
    assert (len(macs), macs) == (2 * PART - 1, sorted(set(macs)))
    _, entries = await site.request("GET", f"/api/v1/audit?limit={PART + 9}", token=token)
    ids = [entry["id"] for entry in entries]
    assert ids == list(range(ids[0], ids[0] - PART - 9, -1))
    assert (await site.request("GET", "/api/v1/audit?limit=0", token=token))[1] == []


async def test_a_list_that_breaks_off_is_not_taken_for_a_whole_one(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await multiply(site, "devices", "uuid", 2 * PART)
    read = site.service.registry.devices

    async def fail_in_the_middle(*arguments: Any, **more: Any) -> Any:
        if more["after"] is not None:
            raise RegistryError("disk full")
        return await read(*arguments, **more)

    monkeypatch.setattr(site.service.registry, "devices", fail_in_the_middle)
    with pytest.raises(aiohttp.ClientPayloadError):
        await site.request("GET", "/api/v1/devices", token=site.token())
    assert "registry_failed" in caplog.text
