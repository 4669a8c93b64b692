import asyncio
import re
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from gwmodule.errors import Code
from gwmodule.msp import webrelay
from gwmodule.msp.accounts import Role
from gwmodule.msp.api.streams import busy
from gwmodule.msp.subprotocol import CLOSE_BASE, SUBPROTOCOL, close_reason
from tests.msp.api.conftest import Site
from tests.msp.conftest import NOW, PC

RELAY = f"/relay/webrelay.ashx?p=2&host={PC}&port=16994&tls=0&mode=sol"
DEVICE = f"/api/v1/devices/{PC}"

Ask = Callable[[], Awaitable[str]]


@pytest.fixture
def ask(site: Site) -> Ask:
    """A new redirection token of the technician."""

    async def ask() -> str:
        path = f"/api/v1/authorize/redirection/{PC}"
        status, body = await site.request("GET", path, token=site.token(Role.TECHNICIAN))
        assert status == 200
        return str(body["token"])

    return ask


async def refused(site: Site, token: str, headers: dict[str, str] | None = None) -> int:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await site.http.ws_connect(site.url + RELAY, protocols=(token,), headers=headers)
    return caught.value.status


async def test_a_token_as_subprotocol_opens_one_stream(site: Site, ask: Ask) -> None:
    token = await ask()
    async with site.http.ws_connect(site.url + RELAY, protocols=(token,)) as websocket:
        # What a browser offered it must get back.
        assert websocket.protocol == token
        await websocket.send_bytes(b"\x10\x00\x00\x00SOL ")
        stream = await site.service.session.streams.get()
        stream.incoming.put_nowait(b"hello")
        assert await websocket.receive_bytes() == b"hello"
    assert await refused(site, token) == 401
    opened = [e for e in await site.service.registry.audit_entries(uuid=PC) if "stream" in e.action]
    assert {entry.actor for entry in opened} == {"technician@default"}


async def test_our_own_tool_offers_the_subprotocol_beside_its_token(site: Site, ask: Ask) -> None:
    protocols = (SUBPROTOCOL, await ask())
    async with site.http.ws_connect(site.url + RELAY, protocols=protocols) as websocket:
        assert websocket.protocol == SUBPROTOCOL


async def test_a_refusal_does_not_spend_the_token(site: Site, ask: Ask) -> None:
    token = await ask()
    site.service.session.connected = False
    assert await refused(site, token) == 503
    headers = {"Sec-WebSocket-Protocol": token}
    status, error = await site.request("GET", RELAY, headers=headers)
    assert (status, error["error"]) == (503, "GATEWAY_OFFLINE")
    site.service.session.connected = True
    async with site.http.ws_connect(site.url + RELAY, protocols=(token,)):
        pass


async def test_another_site_cannot_open_a_stream(site: Site, ask: Ask) -> None:
    token = await ask()
    assert await refused(site, token, headers={"Origin": "https://evil.example"}) == 403
    async with site.http.ws_connect(
        site.url + RELAY, protocols=(token,), headers={"Origin": site.url}
    ):
        pass


async def test_a_token_in_the_url_is_refused(site: Site, ask: Ask) -> None:
    token = await ask()
    status, _ = await site.request("GET", f"{RELAY}&token={token}")
    assert status == 401
    status, _ = await site.request("GET", f"{RELAY}&token={token}", token=site.token())
    assert status == 400


async def test_neither_a_viewer_nor_a_locked_out_user_gets_a_stream(site: Site, ask: Ask) -> None:
    path = f"/api/v1/authorize/redirection/{PC}"
    # It is good for looking at a console that somebody else has open.
    _, body = await site.request("GET", path, token=site.token(Role.VIEWER))
    assert await refused(site, body["token"]) == 403
    token = await ask()
    await site.service.accounts.set_user(
        "technician@default", "default", disabled=True, at=NOW, actor="test"
    )
    assert await refused(site, token) == 401


async def test_open_streams_are_shown_and_can_be_cut(site: Site, ask: Ask) -> None:
    status_path = f"/api/v1/devices/redirectStatus/{PC}"
    cut_path = f"/api/v1/devices/disconnect/{PC}"
    async with site.http.ws_connect(site.url + RELAY, protocols=(await ask(),)) as websocket:
        await websocket.send_bytes(b"\x10\x00\x00\x00SOL ")
        await site.service.session.streams.get()
        _, status = await site.request("GET", status_path, token=site.token())
        assert status == {
            "isKVMConnected": False, "isSOLConnected": True, "isIDERConnected": False,
        }  # fmt: skip
        assert (await site.request("DELETE", cut_path, token=site.token(tenant="other")))[0] == 404
        status, cut = await site.request("DELETE", cut_path, token=site.token())
        assert (status, cut["streams"], cut["success"]) == (200, 1, 200)
        message = await websocket.receive()
        assert message.data == CLOSE_BASE + Code.CANCELLED
        assert message.extra == "disconnected by admin@default"
    _, cut = await site.request("DELETE", cut_path, token=site.token())
    assert cut["streams"] == 0


async def opened(site: Site, role: Role, more: str = "") -> aiohttp.ClientWebSocketResponse:
    headers = {"Authorization": f"Bearer {site.token(role)}"}
    websocket = await site.http.ws_connect(site.url + RELAY + more, headers=headers)
    await websocket.send_bytes(b"\x10\x00\x00\x00SOL ")
    return websocket


async def test_who_comes_second_to_a_serial_line_is_told_who_has_it(site: Site) -> None:
    first = await opened(site, Role.TECHNICIAN)
    stream = await site.service.session.streams.get()
    second = await opened(site, Role.ADMIN)
    message = await second.receive()
    assert message.data == CLOSE_BASE + Code.LIMIT
    assert message.extra == "busy: held by technician@default since 2027-01-15T08:00:00.000Z"
    assert site.service.session.streams.empty()
    entry = await site.audited("admin@default", "stream.close")
    assert entry.detail["reason"] == message.extra
    await first.send_bytes(b"x")
    await stream.wait_for(lambda: stream.written[-1] == b"x")
    await first.close()
    await site.audited("technician@default", "stream.close")
    again = await opened(site, Role.ADMIN)
    await site.service.session.streams.get()
    await again.close()


async def test_a_stream_that_is_no_serial_line_is_in_nobodys_way(site: Site) -> None:
    headers = {"Authorization": f"Bearer {site.token()}"}
    path = f"/relay/webrelay.ashx?p=2&host={PC}&port=16992&tls=0"
    async with site.http.ws_connect(site.url + path, headers=headers) as page:
        await page.send_bytes(b"GET /")
        await site.service.session.streams.get()
        line = await opened(site, Role.TECHNICIAN)
        await site.service.session.streams.get()
        async with site.http.ws_connect(site.url + path, headers=headers) as another:
            await another.send_bytes(b"GET /")
            await site.service.session.streams.get()
        await line.close()


async def test_only_redirection_is_in_the_way_of_somebody_elses_power_action(site: Site) -> None:
    headers = {"Authorization": f"Bearer {site.token(Role.TECHNICIAN)}"}
    login = {"username": "admin", "password": "P@ssw0rd"}
    off = {"function": "power.set", "arguments": {"state": "off"}, "credential": login}

    async def switched_off() -> tuple[int, str]:
        call = f"/api/v1/devices/{PC}/call"
        status, body = await site.request("POST", call, off, token=site.token(Role.ADMIN))
        return status, body.get("error", "")

    path = f"/relay/webrelay.ashx?p=2&host={PC}&port=16992&tls=0"
    page = await site.http.ws_connect(site.url + path, headers=headers)
    await page.send_bytes(b"GET /")
    await site.service.session.streams.get()
    assert await switched_off() == (200, "")
    media = await site.http.ws_connect(
        site.url + RELAY.replace("mode=sol", "mode=ider"), headers=headers
    )
    await media.send_bytes(b"\x10\x00\x00\x00IDER")
    await site.service.session.streams.get()
    assert await switched_off() == (409, "BUSY")
    for each in (page, media):
        await each.close()


def test_a_name_of_any_length_leaves_room_for_since_when() -> None:
    name = "n" * 64 + "@" + "t" * 63
    reason = busy(name, 1_800_000_000.0)
    assert close_reason(reason).decode() == reason
    assert re.fullmatch(r"busy: held by n{64}@t+\.\.\. since 2027-01-15T08:00:00.000Z", reason)
    assert busy("n" * 78, 0.0).startswith("busy: held by " + "n" * 78 + " since ")


async def test_a_takeover_ends_the_other_and_says_whose_doing_it_is(site: Site) -> None:
    first = await opened(site, Role.TECHNICIAN)
    before = await site.service.session.streams.get()
    second = await opened(site, Role.ADMIN, "&takeover=1")
    message = await first.receive()
    assert (message.data, message.extra) == (
        CLOSE_BASE + Code.CANCELLED, "taken over by admin@default",
    )  # fmt: skip
    after = await site.service.session.streams.get()
    # The line was given back before it was asked for again.
    assert before.reset_with == (Code.CANCELLED, "taken over by admin@default")
    after.incoming.put_nowait(b"hello")
    assert await second.receive_bytes() == b"hello"
    await second.close()


async def test_a_tool_that_does_not_say_what_it_opens_is_heard(site: Site) -> None:
    """amtterm behind `forward`: the service knows only what it says to the device."""
    headers = {"Authorization": f"Bearer {site.token(Role.TECHNICIAN)}"}
    path = RELAY.removesuffix("&mode=sol")
    first = await site.http.ws_connect(site.url + path, headers=headers)
    await first.send_bytes(b"\x10\x00\x00\x00SOL ")
    await site.service.session.streams.get()
    status_path = f"/api/v1/devices/redirectStatus/{PC}"
    _, status = await site.request("GET", status_path, token=site.token())
    assert status["isSOLConnected"]
    second = await opened(site, Role.ADMIN)
    assert str((await second.receive()).extra).startswith("busy: held by technician@default since ")
    headers = {"Authorization": f"Bearer {site.token(Role.ADMIN)}"}
    media = await site.http.ws_connect(site.url + path, headers=headers)
    await media.send_bytes(b"\x10\x00\x00\x00IDER")
    await site.service.session.streams.get()
    for each in (first, media):
        await each.close()


async def test_of_two_takeovers_at_once_one_has_the_line(site: Site) -> None:
    await opened(site, Role.ADMIN)
    await site.service.session.streams.get()
    both = [await opened(site, Role.TECHNICIAN, "&takeover=1") for _ in range(2)]
    streams = [await site.service.session.streams.get() for _ in both]
    async with asyncio.timeout(5):
        while sum(stream.reset_with is None for stream in streams) != 1:
            await asyncio.sleep(0.01)
    for each in both:
        await each.close()


async def test_a_tool_that_comes_back_ends_what_it_left_behind(site: Site) -> None:
    ghost = await opened(site, Role.TECHNICIAN, "&tool=one")
    before = await site.service.session.streams.get()
    again = await opened(site, Role.TECHNICIAN, "&tool=one")
    await site.service.session.streams.get()
    assert before.reset_with == (Code.REPLACED, "this tool opened its stream again")
    # His other window is somebody else.
    other = await opened(site, Role.TECHNICIAN, "&tool=two")
    assert str((await other.receive()).extra).startswith("busy: held by technician@default since ")
    # And nobody becomes him by saying what his tool says.
    thief = await opened(site, Role.ADMIN, "&tool=one")
    assert str((await thief.receive()).extra).startswith("busy: held by technician@default since ")
    for each in (ghost, again):
        await each.close()


async def test_a_takeover_does_not_wait_for_who_takes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webrelay, "CLOSE_TIMEOUT", 0.2)
    first = await opened(site, Role.TECHNICIAN)
    before = await site.service.session.streams.get()
    first._response.connection.transport.pause_reading()  # type: ignore[union-attr]
    for _ in range(200):
        before.incoming.put_nowait(bytes(65536))
    await asyncio.sleep(0.2)
    second = await opened(site, Role.ADMIN, "&takeover=1")
    await site.service.session.streams.get()
    assert before.reset_with == (Code.CANCELLED, "taken over by admin@default")
    await second.close()
    await first.close()


async def test_ones_own_old_stream_is_not_in_the_way(site: Site) -> None:
    """A lost connection may have left it behind; whether it lives the device knows."""
    ghost = await opened(site, Role.TECHNICIAN)
    await site.service.session.streams.get()
    websocket = await opened(site, Role.TECHNICIAN)
    stream = await site.service.session.streams.get()
    stream.incoming.put_nowait(b"busy, says the device")
    assert await websocket.receive_bytes() == b"busy, says the device"
    await websocket.close()
    await ghost.close()
