import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from gwmodule.errors import Code
from gwmodule.msp.accounts import Role
from gwmodule.msp.api.tokens import REDIRECTION_LIFETIME
from gwmodule.msp.console_protocol import CONSOLE_SUBPROTOCOL
from gwmodule.msp.subprotocol import CLOSE_BASE
from gwmodule.sim.device import ANY_PORTS, SimulatedDevice
from gwmodule.sim.machine import Machine
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import StreamTarget
from tests.msp.api.conftest import Site
from tests.msp.conftest import NOW, PC, REALM, RECHECK, TcpStream

SOL = f"/api/v1/amt/sol/{PC}"
PASSWORD = "P@ssw0rd"


@pytest.fixture
async def site(site: Site) -> AsyncIterator[Site]:
    """With a simulated PC behind the gateway."""
    machine = Machine(
        PC,
        PASSWORD,
        now=asyncio.get_running_loop().time(),
        realm=REALM,
        hostname="pc",
        serial_pace=0.01,
    )
    async with SimulatedDevice("127.0.0.1", machine, ports=ANY_PORTS) as device:
        streams = []

        async def open_stream(target: StreamTarget, priority: Priority) -> TcpStream:
            assert target.port == 16994
            reader, writer = await asyncio.open_connection("127.0.0.1", device.ports.redirection)
            streams.append(TcpStream(reader, writer, priority))
            return streams[-1]

        site.service.session.open = open_stream
        yield site
        for stream in streams:
            stream.reset(Code.OK, "")


async def attach(site: Site, role: Role, want: str = "seat") -> aiohttp.ClientWebSocketResponse:
    path = f"/api/v1/authorize/redirection/{PC}"
    status, body = await site.request("GET", path, token=site.token(role))
    assert status == 200
    protocols = (CONSOLE_SUBPROTOCOL, body["token"])
    websocket = await site.http.ws_connect(site.url + SOL, protocols=protocols)
    assert websocket.protocol == CONSOLE_SUBPROTOCOL
    await websocket.send_json({"type": "attach", "want": want})
    return websocket


async def until(websocket: aiohttp.ClientWebSocketResponse, text: bytes) -> None:
    data = b""
    async with asyncio.timeout(5):
        while text not in data:
            message = await websocket.receive()
            assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
            data += message.data if message.type is aiohttp.WSMsgType.BINARY else b""


async def closed(websocket: aiohttp.ClientWebSocketResponse) -> tuple[int, str]:
    async with asyncio.timeout(5):
        while (message := await websocket.receive()).type is not aiohttp.WSMsgType.CLOSE:
            pass
    return message.data, message.extra or ""


async def store_login(site: Site) -> None:
    await site.service.vault.store("default", PC, "admin", PASSWORD, NOW, actor="test")


async def test_the_stored_login_opens_it_and_both_ends_are_audited(site: Site) -> None:
    await store_login(site)
    websocket = await attach(site, Role.TECHNICIAN)
    await until(websocket, b"login: ")
    await websocket.send_bytes(b"root\r")
    await until(websocket, b"Hello, root.")
    await websocket.send_json({"type": "hangup"})
    assert (await closed(websocket))[1] == "closed by technician@default"
    await site.audited("technician@default", "console.close")
    entries = await site.service.registry.audit_entries(uuid=PC)
    assert [e.action for e in entries if e.action.startswith("console")] == [
        "console.close",
        "console.open",
    ]


async def test_without_a_login_it_ends_with_the_reason(site: Site) -> None:
    code, reason = await closed(await attach(site, Role.TECHNICIAN))
    assert code == CLOSE_BASE + Code.NOT_PROVISIONED
    assert reason == "no AMT login is stored for this device"


async def test_cutting_the_device_s_streams_hangs_up(site: Site) -> None:
    await store_login(site)
    websocket = await attach(site, Role.TECHNICIAN)
    await until(websocket, b"login: ")
    path = f"/api/v1/devices/disconnect/{PC}"
    _, cut = await site.request("DELETE", path, token=site.token())
    assert cut["streams"] == 1
    code, _ = await closed(websocket)
    assert code == CLOSE_BASE + Code.CANCELLED
    async with asyncio.timeout(5):
        while len(site.service.api.consoles):
            await asyncio.sleep(0.01)


async def test_a_viewer_watches_what_a_technician_has_open(site: Site) -> None:
    await store_login(site)
    code, reason = await closed(await attach(site, Role.VIEWER))
    assert (code, reason) == (
        CLOSE_BASE + Code.REFUSED_POLICY,
        "nobody has this console open",
    )
    technician = await attach(site, Role.TECHNICIAN)
    viewer = await attach(site, Role.VIEWER)
    await until(viewer, b"login: ")
    await viewer.send_json({"type": "takeover"})
    assert (await closed(viewer))[0] == CLOSE_BASE + Code.REFUSED_POLICY
    await technician.close()


@pytest.mark.parametrize("change", [{"disabled": True}, {"role": Role.VIEWER}])
async def test_who_loses_his_right_leaves_the_console_and_the_others_stay(
    site: Site, change: dict[str, Any]
) -> None:
    await store_login(site)
    technician = await attach(site, Role.TECHNICIAN)
    await until(technician, b"login: ")
    others = [await attach(site, role) for role in (Role.ADMIN, Role.VIEWER)]
    for each in others:
        await until(each, b"login: ")
    await site.service.accounts.set_user(
        "technician@default", "default", at=NOW, actor="test", **change
    )
    assert await closed(technician) == (
        CLOSE_BASE + Code.CANCELLED,
        "this account has changed; log in again",
    )
    await others[0].send_json({"type": "takeover"})
    await others[0].send_bytes(b"root\r")
    for each in others:
        await until(each, b"Hello, root.")
        await each.close()


async def test_a_console_outlives_the_token_that_opened_it(site: Site) -> None:
    await store_login(site)
    websocket = await attach(site, Role.TECHNICIAN)
    await until(websocket, b"login: ")
    site.service.clock.now += REDIRECTION_LIFETIME + 1
    await asyncio.sleep(6 * RECHECK)
    await websocket.send_bytes(b"root\r")
    await until(websocket, b"Hello, root.")
    await websocket.close()


async def test_who_has_the_seat_is_in_the_way_of_somebody_elses_power_action(site: Site) -> None:
    await store_login(site)
    websocket = await attach(site, Role.TECHNICIAN)
    await until(websocket, b"login:")
    watcher = await attach(site, Role.VIEWER)
    arguments: dict[str, object] = {"state": "off"}
    off = {"function": "power.set", "arguments": arguments}
    call = f"/api/v1/devices/{PC}/call"
    status, body = await site.request("POST", call, off, token=site.token(Role.ADMIN))
    assert (status, body["error"]) == (409, "BUSY")
    assert re.match("held by .* since 20.*Z; force closes it", body["errorDescription"])
    # His own is not, and nor is who only looks at it.
    status, _ = await site.request("POST", call, off, token=site.token(Role.TECHNICIAN))
    assert status == 200
    arguments["force"] = True
    status, _ = await site.request("POST", call, off, token=site.token(Role.ADMIN))
    assert status == 200
    for each in (websocket, watcher):
        await each.close()


async def test_the_console_is_served_with_its_policy(site: Site) -> None:
    async with site.http.get(site.url + "/") as response:
        assert response.status == 200
        assert "script-src 'self'" in response.headers["Content-Security-Policy"]
        assert "text/html" in response.headers["Content-Type"]
        tag = response.headers["ETag"]
    async with site.http.get(site.url + "/", headers={"If-None-Match": tag}) as response:
        assert response.status == 304


@pytest.mark.parametrize(
    "path", ["/console/__init__.py", "/console/../api.py", "/console/package.json", "/console/"]
)
async def test_nothing_else_is_served(site: Site, path: str) -> None:
    async with site.http.get(site.url + path) as response:
        assert response.status == 404


RELAY = f"/relay/webrelay.ashx?p=2&host={PC}&port=16994&tls=0&mode=sol"


async def test_the_seat_of_a_console_holds_the_line_and_can_be_taken_over(site: Site) -> None:
    await store_login(site)
    console = await attach(site, Role.TECHNICIAN)
    await until(console, b"login: ")
    headers = {"Authorization": f"Bearer {site.token(Role.ADMIN)}"}
    async with site.http.ws_connect(site.url + RELAY, headers=headers) as websocket:
        code, reason = await closed(websocket)
        assert code == CLOSE_BASE + Code.LIMIT
        assert reason.startswith("busy: held by technician@default since 2027-")
    async with site.http.ws_connect(site.url + RELAY + "&takeover=1", headers=headers) as websocket:
        assert (await closed(console))[1] == "taken over by admin@default"
        # The device has let go of the console, and takes another session.
        await websocket.send_bytes(b"\x10\x00\x00\x00SOL ")
        async with asyncio.timeout(5):
            answer = await websocket.receive_bytes()
        assert answer[:2] == b"\x11\x00"


async def script(site: Site, name: str) -> str:
    async with site.http.get(f"{site.url}/console/{name}") as response:
        return await response.text()


async def test_a_console_waits_for_no_raw_stream_and_can_take_over_from_it(site: Site) -> None:
    await store_login(site)
    headers = {"Authorization": f"Bearer {site.token(Role.ADMIN)}"}
    async with site.http.ws_connect(site.url + RELAY, headers=headers) as websocket:
        await websocket.send_bytes(b"\x10\x00\x00\x00SOL ")
        assert (await websocket.receive_bytes())[:2] == b"\x11\x00"
        code, reason = await closed(await attach(site, Role.TECHNICIAN))
        assert code == CLOSE_BASE + Code.DEVICE_REFUSED
        # The page offers a takeover where it can read this.
        held = re.search("^const HELD = /(.+)/;$", await script(site, "sol.js"), re.MULTILINE)
        assert held is not None
        told = re.search(held[1], reason)
        assert told is not None
        assert told.groups() == ("admin@default", "2027-01-15T08:00:00.000Z")
        # A viewer ends nothing, whatever he asks for.
        code, _ = await closed(await attach(site, Role.VIEWER, "takeover"))
        assert code == CLOSE_BASE + Code.REFUSED_POLICY
        console = await attach(site, Role.TECHNICIAN, "takeover")
        await until(console, b"login: ")
        assert (await closed(websocket))[1] == "taken over by technician@default"
        await console.close()
