"""What the pages do when something goes wrong, is missing, or is too much."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from uuid import UUID

import pytest
from playwright.sync_api import Browser, Page, Route, WebSocket, WebSocketRoute, expect

from gwmodule.errors import Code
from gwmodule.sim.services import LOGIN, UUIDS
from tests.console.site import (
    URL,
    USER_PASSWORD,
    NewPage,
    Site,
    connect,
    log_of,
    named,
    open_terminal,
    pill,
    sees,
    shot,
    sign_in,
)
from tests.lab.test_amtterm import Terminal

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


def sign_in_here(page: Page) -> None:
    page.get_by_label("User").fill("alice")
    page.get_by_label("Password").fill(USER_PASSWORD)
    page.get_by_role("button", name="Sign in").click()


def sees_gateways(page: Page) -> None:
    # The heading first: the list of devices, which names the gateway too, may be there still.
    expect(page.get_by_role("heading", name="Gateways")).to_be_visible()
    expect(page.get_by_text("home-1")).to_be_visible()


def test_the_policy_lets_nobody_make_markup_or_scripts(site: Site, browser: Browser) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(URL)
        for attempt in (
            "document.body.innerHTML = '<b>x</b>'",
            "document.body.append(Object.assign(document.createElement('script'), {text: 'x'}))",
            "setTimeout('document.title = 1')",
            "trustedTypes.createPolicy('any', {})",
        ):
            said = page.evaluate(f"() => {{ try {{ {attempt} }} catch (e) {{ return e.name }} }}")
            assert said in ("TypeError", "EvalError"), attempt
        assert page.evaluate("document.cookie") == ""


def test_who_signs_out_leaves_no_terminal_open(site: Site, page: Page) -> None:
    sockets: list[WebSocket] = []
    page.on("websocket", lambda socket: sockets.append(socket))
    sign_in(page)
    connect(page, "pc3")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.wait_for_timeout(1500)
    assert [socket.is_closed() for socket in sockets] == [True]
    assert page.evaluate("sessionStorage.length") == 0


def test_an_ended_session_says_so_and_goes_on_where_it_was(site: Site, page: Page) -> None:
    sign_in(page, "alice")
    page.goto(f"{URL}/#/gateways")
    sees_gateways(page)
    page.evaluate("sessionStorage['gwmodule.token'] = sessionStorage['gwmodule.token'] + 'x'")
    page.get_by_role("link", name="Users").click()
    expect(page.get_by_text("Your session has ended.")).to_be_visible()
    shot(page, "session-ended")
    sign_in_here(page)
    expect(page.get_by_role("heading", name="Users")).to_be_visible()


def test_a_page_that_comes_too_late_is_not_shown(site: Site, page: Page) -> None:
    sign_in(page, "alice")
    held: list[Route] = []
    page.route(f"**/api/v1/devices/{UUIDS['pc1']}", lambda route: held.append(route))
    page.get_by_role("link", name="pc1", exact=True).click()
    page.wait_for_timeout(300)
    page.get_by_role("navigation").get_by_role("link", name="Gateways").click()
    sees_gateways(page)
    held[0].continue_()
    page.wait_for_timeout(500)
    expect(page.get_by_role("heading", name="Gateways")).to_be_visible()
    assert page.title() == "Gateways · gwmodule"


def test_a_list_that_changes_leaves_the_focus_where_it_is(site: Site, page: Page) -> None:
    sign_in(page)
    link = page.get_by_role("link", name="pc2", exact=True)
    link.focus()
    for pc in ("pc1", "pc2"):
        site.ask("PATCH", "/api/v1/devices", {"guid": UUIDS[pc], "tags": ["late"]})
    # There is an event or, at the latest, the next reading.
    expect(page.get_by_text("late")).to_have_count(2, timeout=40_000)
    expect(link).to_be_focused()
    page.get_by_role("button", name="Host").click()
    page.get_by_role("button", name="Host").click()
    expect(page.locator("tbody .name")).to_have_text(["pc3", "pc2", "pc1"])
    expect(page.get_by_role("columnheader", name="Host")).to_have_attribute(
        "aria-sort", "descending"
    )


def test_who_leaves_a_confirmation_is_back_at_the_button_and_nothing_was_done(
    site: Site, page: Page
) -> None:
    sign_in(page)
    page.goto(f"{URL}/#/devices/{UUIDS['pc2']}")
    expect(page.locator(".state .value")).to_have_text("on", timeout=20_000)
    calls: list[str] = []
    page.on("request", lambda request: calls.append(request.post_data or ""))
    off = page.get_by_role("button", name="Off", exact=True)
    off.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Off: pc2?")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    expect(dialog).to_contain_text("Whatever is not saved on the PC is lost.")
    shot(page, "confirmation")
    page.keyboard.press("Enter")
    expect(off).to_be_focused()
    assert not any("power.set" in call for call in calls)


def test_a_power_action_over_somebody_elses_terminal_is_asked_for_twice(
    site: Site, page: Page, new_page: NewPage
) -> None:
    sign_in(page, "bob")
    connect(page, "pc2")
    other = new_page()
    sign_in(other, "alice")
    other.goto(f"{URL}/#/devices/{UUIDS['pc2']}")
    other.get_by_role("button", name="Power cycle").click()
    other.get_by_role("dialog").get_by_role("button", name="Power cycle").click()
    anyway = other.get_by_role("dialog", name="Close the terminal of somebody else?")
    expect(anyway).to_contain_text("held by bob since")
    anyway.get_by_role("button", name="Power cycle anyway").click()
    expect(page.locator(".notes")).to_contain_text("power action by alice", timeout=20_000)


def test_what_hides_in_a_name_is_shown(site: Site, page: Page) -> None:
    with named("pc3", "abc\u202egpj.exe\u2066" + 236 * "w"):
        sign_in(page)
        link = page.get_by_role("link", name=re.compile(r"^abc\\u\{202e\}gpj\.exe\\u\{2066\}w+$"))
        expect(link).to_be_visible()
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0
        link.click()
        page.get_by_role("button", name="Reset", exact=True).click()
        expect(page.get_by_role("dialog")).to_contain_text(r"abc\u{202e}gpj.exe")
        shot(page, "hidden-name")
        page.keyboard.press("Escape")


def test_a_service_that_is_away_is_said_and_comes_back(site: Site, page: Page) -> None:
    sign_in(page)
    page.goto(f"{URL}/#/devices/{UUIDS['pc1']}")
    expect(page.get_by_role("heading", name="pc1")).to_be_visible()
    page.context.set_offline(True)
    stale = page.get_by_text("The service does not answer. What you see is from")
    expect(stale).to_be_visible(timeout=20_000)
    shot(page, "service-away")
    page.get_by_role("navigation").get_by_role("link", name="Gateways").click()
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer.")
    expect(stale).to_be_hidden()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    sees_gateways(page)


def test_a_refusal_says_what_the_service_said(site: Site, page: Page) -> None:
    sign_in(page, "carol")
    page.goto(f"{URL}/#/users")
    expect(page.get_by_role("alert")).to_contain_text("admin")
    shot(page, "forbidden")
    away = {"error": "DATABASE_AWAY", "errorDescription": "the database is away"}
    page.route("**/api/v1/gateways", lambda route: route.fulfill(status=503, json=away))
    page.goto(f"{URL}/#/gateways")
    expect(page.get_by_role("alert")).to_contain_text("the database is away")
    page.unroute("**/api/v1/gateways")
    page.get_by_role("button", name="Try again").click()
    sees_gateways(page)


def test_who_has_nothing_yet_is_told_what_to_do(site: Site, page: Page) -> None:
    nothing = {"data": [], "totalCount": 0}
    page.route("**/api/v1/devices?*", lambda route: route.fulfill(json=nothing))
    page.route("**/api/v1/gateways", lambda route: route.fulfill(json=[]))
    sign_in(page, "alice")
    expect(page.get_by_text("No device has registered yet.")).to_be_visible()
    shot(page, "no-devices")
    page.get_by_role("link", name="enrol a gateway").click()
    expect(page.get_by_text("No gateway yet.")).to_be_visible()
    shot(page, "no-gateways")


def test_hundreds_of_devices_are_listed_and_searched(site: Site, page: Page) -> None:
    one = site.ask("GET", f"/api/v1/devices/{UUIDS['pc1']}")
    many = [
        one | {"guid": str(UUID(int=number)), "hostname": f"desk-{number}"} for number in range(900)
    ]
    answer = {"data": many, "totalCount": len(many)}
    page.route("**/api/v1/devices?*", lambda route: route.fulfill(json=answer))
    sign_in(page)
    expect(page.get_by_text("900 of 900, 900 connected; the first 500 are shown")).to_be_visible()
    expect(page.locator("tbody tr")).to_have_count(500)
    page.get_by_label("Search devices").fill("desk-899")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_label("Search devices").fill("")
    shot(page, "many-devices")


class Flood:
    """A service that sends 20 MiB of a serial line as fast as the page acknowledges them."""

    TEXT = b"".join(
        b"%08d the quick brown fox jumps over the lazy dog\r\n" % n for n in range(400_000)
    )
    SIZE = 20 * 1024 * 1024
    PIECE = 16 * 1024
    WINDOW = 256 * 1024

    def __init__(self) -> None:
        self._sent = self._acknowledged = 0

    def __call__(self, socket: WebSocketRoute) -> None:
        socket.on_message(lambda message: self._hear(socket, message))

    def _hear(self, socket: WebSocketRoute, message: str | bytes) -> None:
        said = json.loads(message)
        if said["type"] == "attach":
            place = {"console": "c", "seat": "s", "offset": 0, "mark": 0, "lost": 0}
            socket.send(json.dumps({"type": "attached"} | place))
            status = {"type": "status", "state": "open", "reason": "", "stream": 2, "writer": True}
            holder = {"seat": "s", "holder": "bob", "since": None, "viewers": 1}
            socket.send(json.dumps(status | holder))
        elif said["type"] == "ack":
            self._acknowledged = said["offset"]
        while self._sent < min(self.SIZE, self._acknowledged + self.WINDOW):
            socket.send(self.TEXT[self._sent : self._sent + self.PIECE])
            self._sent += self.PIECE


def memory(page: Page) -> int:
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")
    return int(used["usedSize"] + used["backingStorageSize"])


def test_a_terminal_that_is_left_open_stays_small(site: Site, page: Page) -> None:
    sign_in(page)
    page.route_web_socket(re.compile("/api/v1/amt/sol/"), Flood())
    open_terminal(page, "pc1")
    before = memory(page)
    page.get_by_role("button", name="Connect", exact=True).click()
    last = Flood.TEXT[: Flood.SIZE].splitlines()[-2].decode()
    sees(page, last, 90)
    grown = memory(page) - before
    # The log of 16 MiB and xterm's scrollback of 20,000 lines, with 12 bytes for each cell.
    assert grown < (16 + 64) * 1024 * 1024, f"{grown >> 20} MiB"
    log = log_of(page)
    assert len(log) > 15 * 1024 * 1024
    assert Flood.TEXT[: Flood.SIZE].endswith(log)
    for _ in range(5):
        page.get_by_role("navigation").get_by_role("link", name="Gateways").click()
        sees_gateways(page)
        open_terminal(page, "pc1")
    page.get_by_role("navigation").get_by_role("link", name="Gateways").click()
    sees_gateways(page)
    assert page.evaluate("document.adoptedStyleSheets.length") == 0
    left = memory(page) - before
    assert left < 24 * 1024 * 1024, f"{left >> 20} MiB are left of terminals that are gone"


def test_keys_that_a_telephone_lacks_can_be_sent(site: Site, page: Page) -> None:
    sign_in(page)
    sent: list[bytes] = []

    def heard(socket: WebSocket) -> None:
        socket.on("framesent", lambda data: sent.append(data) if isinstance(data, bytes) else None)

    page.on("websocket", heard)
    connect(page, "pc1")
    send, kind = page.get_by_label("Send a key"), page.get_by_label("Function keys")
    for key in ("↑", "F10", "Home"):
        send.select_option(label=key)
    kind.select_option("vt100+")
    send.select_option(label="F10")
    page.locator(".xterm-screen").click()
    page.keyboard.press("Home")
    kind.select_option("xterm")
    page.wait_for_timeout(200)
    assert b"".join(sent) == b"\x1b[A\x1b[21~\x1b[H\x1b0\x1bh"
    page.get_by_label("Text size").select_option("24")
    expect(page.locator(".xterm-rows")).to_have_css("font-size", "24px")
    page.get_by_role("button", name="Disconnect").click()
    expect(pill(page)).to_have_text("not connected", timeout=10_000)
    expect(page.get_by_role("button", name="Connect", exact=True)).to_be_focused()


def test_tabs_share_a_login_and_its_end(site: Site, page: Page) -> None:
    sign_in(page)
    other = page.context.new_page()
    other.goto(f"{URL}/#/devices/{UUIDS['pc2']}")
    expect(other.get_by_role("heading", name="pc2")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(other.get_by_role("heading", name="Sign in")).to_be_visible()
    assert other.evaluate("sessionStorage.length") == 0


@pytest.fixture
def own_tool(site: Site) -> Iterator[Terminal]:
    """A technician's tool that speaks SOL to pc2 itself; the service only carries its bytes."""
    # A console of an earlier test may be kept for whoever had it.
    argv = site.system.technician_command("sol", UUIDS["pc2"], *LOGIN, "--takeover")
    terminal = Terminal(site.system.lab.command("msp", argv))
    try:
        terminal.wait_for("with your own login", 30)
        yield terminal
    finally:
        terminal.close()


def test_who_may_only_look_takes_no_line_from_a_tool(
    site: Site, page: Page, own_tool: Terminal
) -> None:
    sign_in(page, "carol")
    open_terminal(page, "pc2")
    page.get_by_role("button", name="Watch").click()
    expect(page.locator(".notes")).to_contain_text("nobody has this console open")
    expect(page.get_by_role("button", name="Take over")).to_be_hidden()


def test_who_fell_behind_comes_back_by_himself(site: Site, page: Page) -> None:
    attempts: list[str | bytes] = []

    def behind(socket: WebSocketRoute) -> None:
        def attach(message: str | bytes) -> None:
            attempts.append(message)
            place = {"console": "c", "seat": "", "offset": 0, "mark": 0, "lost": 0}
            socket.send(json.dumps({"type": "attached"} | place))
            if len(attempts) == 1:
                socket.close(
                    code=4000 + Code.LIMIT, reason="5000000 bytes behind, more than are kept"
                )

        socket.on_message(attach)

    sign_in(page)
    page.route_web_socket(re.compile("/api/v1/amt/sol/"), behind)
    open_terminal(page, "pc1")
    page.get_by_role("button", name="Connect", exact=True).click()
    expect(page.locator(".notes")).to_contain_text("attaching again")
    page.wait_for_timeout(1000)
    assert [json.loads(said)["type"] for said in attempts[:2]] == ["attach", "attach"]
