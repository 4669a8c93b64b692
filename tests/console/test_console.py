"""A technician at the console, from signing in to a repaired PC."""

from __future__ import annotations

import json
import re
import time

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from gwmodule.errors import Code
from gwmodule.sim.hosts import wait_until
from gwmodule.sim.services import LOGIN, UUIDS
from tests.console.site import (
    URL,
    USER_PASSWORD,
    NewPage,
    Site,
    connect,
    hang_up,
    log_of,
    named,
    open_terminal,
    pill,
    sees,
    shot,
    sign_in,
    type_on,
)
from tests.lab.test_restarts import kill

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

HOSTILE = "<img src=x onerror=\"document.title='owned'\">'; DROP TABLE devices;--"


def reset_and_watch(page: Page, boot: str = "as always") -> None:
    page.get_by_role("button", name="Reset and watch…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Then boot").select_option(label=boot)
    dialog.get_by_role("button", name="Reset", exact=True).click()


def test_a_pc_is_reset_watched_and_typed_on_over_a_cut_of_the_wan(site: Site, page: Page) -> None:
    sign_in(page)
    page.get_by_label("Search devices").fill("pc1")
    page.get_by_role("link", name="pc1", exact=True).click()
    page.get_by_role("link", name="Terminal", exact=True).click()
    before = len(site.spoken("pc1"))
    reset_and_watch(page)
    sees(page, "Management Engine", 40)
    # The rest of the boot is said while nothing gets through.
    with site.system.lab.wan_cut():
        heard = len(site.spoken("pc1"))
        time.sleep(5)
        assert len(site.spoken("pc1")) > heard
    sees(page, "recovery>", 40)
    type_on(page, "uuid\r")
    sees(page, UUIDS["pc1"])
    page.wait_for_timeout(500)
    shot(page, "terminal")
    said = site.spoken("pc1")[before:]
    assert b"Memory test: 8192 MB OK" in said
    assert log_of(page) == said
    assert "missing" not in page.locator(".notes").inner_text()
    hang_up(page)


def test_a_browser_that_loses_the_service_goes_on_where_it_was(site: Site, page: Page) -> None:
    sign_in(page)
    before = len(site.spoken("pc1"))
    connect(page, "pc1")
    sees(page, "recovery>")
    reset_and_watch(page)
    sees(page, "Management Engine", 30)
    with site.browser_cut():
        expect(pill(page)).to_have_text("reconnecting to the MSP", timeout=20_000)
    expect(pill(page)).to_have_text("connected", timeout=20_000)
    sees(page, "Starting the recovery console.", 30)
    sees(page, "recovery>", 30)
    page.wait_for_timeout(500)
    assert log_of(page) == site.spoken("pc1")[before:]
    hang_up(page)


def test_a_restarted_gateway_is_a_gap_that_is_said(site: Site, page: Page) -> None:
    sign_in(page)
    connect(page, "pc1")
    sees(page, "recovery>")
    kill(site.system, "relay")
    notes = page.locator(".notes")
    expect(notes).to_contain_text("output between may be missing", timeout=30_000)
    expect(notes).to_contain_text("opened again", timeout=40_000)
    expect(pill(page)).to_have_text("connected", timeout=10_000)
    type_on(page, "uuid\r")
    sees(page, UUIDS["pc1"])
    assert b"output between may be missing]" in log_of(page)
    hang_up(page)


def test_a_page_that_is_loaded_again_keeps_its_seat_and_its_scrollback(
    site: Site, page: Page
) -> None:
    sign_in(page)
    connect(page, "pc1")
    sees(page, "recovery>")
    type_on(page, "uuid\r")
    sees(page, UUIDS["pc1"])
    page.reload()
    expect(pill(page)).to_have_text("connected", timeout=15_000)
    sees(page, UUIDS["pc1"])
    type_on(page, "help\r")
    sees(page, "help uuid reset exit")
    hang_up(page)


def test_who_was_told_the_end_begins_anew(site: Site, page: Page) -> None:
    """Loading the page opens no line that was hung up, and the next one is no old one's sequel."""
    places: list[str] = []

    def sent(frame: str | bytes) -> None:
        if isinstance(frame, str) and (message := json.loads(frame))["type"] == "attach":
            places.append(message["console"])

    page.on("websocket", lambda socket: socket.on("framesent", sent))
    sign_in(page)
    connect(page, "pc1")
    hang_up(page)
    for _ in range(2):
        page.get_by_role("button", name="Connect", exact=True).click()
        expect(pill(page)).to_have_text("connected", timeout=15_000)
        hang_up(page)
        page.reload()
        expect(page.get_by_role("toolbar")).not_to_have_attribute("inert", "")
    assert places == ["", "", ""]


def test_a_page_that_stops_reading_holds_up_only_itself(
    site: Site, page: Page, new_page: NewPage
) -> None:
    sign_in(page)
    before = len(site.spoken("pc1"))
    connect(page, "pc1")
    sees(page, "recovery>")
    debugger = page.context.new_cdp_session(page)
    debugger.send("Debugger.enable")
    debugger.send("Debugger.pause")
    other = new_page()
    sign_in(other, "alice")
    open_terminal(other, "pc1")
    other.get_by_role("button", name="Connect", exact=True).click()
    sees(other, "recovery>")
    expect(other.locator(".holder")).to_contain_text("busy: held by bob since")
    shot(other, "busy")
    other.get_by_role("button", name="Take over").click()
    other.get_by_role("dialog").get_by_role("button", name="Take over").click()
    expect(other.get_by_role("button", name="Disconnect")).to_be_visible()
    type_on(other, "uuid\r")
    sees(other, UUIDS["pc1"])
    debugger.send("Debugger.resume")
    sees(page, UUIDS["pc1"])
    expect(page.locator(".holder")).to_contain_text("busy: held by alice since")
    assert log_of(page) == log_of(other) == site.spoken("pc1")[before:]
    hang_up(other)


def test_a_line_that_a_tool_has_can_be_taken_over(site: Site, page: Page) -> None:
    system, uuid = site.system, UUIDS["pc3"]
    script = ["--takeover", "--expect", "never", "--timeout", "60"]
    argv = system.technician_command("sol", uuid, *LOGIN, *script)
    sol = system.lab.start("msp", argv, log="sol-in-the-way")
    wait_until("its session", lambda: "connected" in sol.log.read_text(), 20)
    sign_in(page)
    open_terminal(page, "pc3")
    page.get_by_role("button", name="Connect", exact=True).click()
    expect(page.locator(".holder")).to_contain_text("busy: held by root")
    expect(pill(page)).to_have_text("not connected")
    shot(page, "busy-by-a-tool")
    page.get_by_role("button", name="Take over").click()
    page.get_by_role("dialog").get_by_role("button", name="Take over").click()
    expect(pill(page)).to_have_text("connected", timeout=15_000)
    expect(page.locator(".holder")).to_be_empty()
    assert sol.process.wait(10) == 1
    assert "taken over by bob" in sol.log.read_text()
    hang_up(page)


def test_no_room_for_another_console_is_said_once(site: Site, page: Page) -> None:
    attempts: list[str | bytes] = []

    def refuse(socket: WebSocketRoute) -> None:
        def attach(message: str | bytes) -> None:
            attempts.append(message)
            reason = "64 consoles are open; the rest is left to others"
            socket.close(code=4000 + Code.LIMIT, reason=reason)

        socket.on_message(attach)

    sign_in(page)
    page.route_web_socket(re.compile("/api/v1/amt/sol/"), refuse)
    open_terminal(page, "pc1")
    page.get_by_role("button", name="Connect", exact=True).click()
    expect(page.locator(".holder")).to_have_text(
        "no room: 64 consoles are open; the rest is left to others"
    )
    expect(page.get_by_role("button", name="Take over")).to_be_hidden()
    # Longer than the first three attempts of a browser that has lost its connection.
    page.wait_for_timeout(2500)
    assert len(attempts) == 1
    expect(page.get_by_role("button", name="Connect", exact=True)).to_be_visible()


def test_a_viewer_looks_and_touches_nothing(site: Site, page: Page, new_page: NewPage) -> None:
    sign_in(page)
    connect(page, "pc1")
    watcher = new_page()
    sign_in(watcher, "carol")
    open_terminal(watcher, "pc1")
    expect(watcher.get_by_role("button", name="Reset and watch…")).to_have_count(0)
    watcher.get_by_role("button", name="Watch").click()
    sees(watcher, "recovery>")
    type_on(watcher, "x")
    expect(watcher.get_by_text("Read-only: held by bob")).to_be_visible()
    expect(watcher.get_by_role("button", name="Take over")).to_be_hidden()
    hang_up(page)


def test_the_keyboard_is_enough(site: Site, page: Page) -> None:
    page.goto(URL)
    expect(page.get_by_label("User")).to_be_focused()
    keys = page.keyboard
    keys.type("bob")
    keys.press("Tab")
    keys.type(USER_PASSWORD)
    keys.press("Enter")
    expect(page.get_by_label("Search devices")).to_be_focused()
    keys.press("Enter")
    expect(page.get_by_role("link", name="pc1", exact=True)).to_be_focused()
    page.get_by_label("Search devices").focus()
    keys.type("pc3")
    keys.press("Enter")
    tab = page.get_by_role("tab", name="Overview")
    expect(tab).to_be_visible()
    while not tab.evaluate("element => element === document.activeElement"):
        keys.press("Tab")
    keys.press("ArrowRight")
    expect(page.get_by_role("tab", name="Inventory")).to_be_focused()
    keys.press("Enter")
    expect(page.get_by_text("Chassis")).to_be_visible(timeout=20_000)
    page.goto(f"{URL}/#/devices/{UUIDS['pc3']}/terminal")
    expect(page.get_by_role("toolbar")).not_to_have_attribute("inert", "")
    keys.press("Control+Alt+Home")
    expect(page.get_by_role("button", name="Connect", exact=True)).to_be_focused()
    keys.press("Enter")
    expect(pill(page)).to_have_text("connected", timeout=15_000)
    keys.type("root\r")
    sees(page, "Hello, root.")
    keys.press("Control+Alt+Home")
    expect(page.get_by_role("button", name="Reset and watch…")).to_be_focused()
    keys.press("Tab")
    keys.press("Enter")
    expect(pill(page)).to_have_text("not connected", timeout=10_000)


def test_a_host_name_is_text_whatever_it_says(site: Site, page: Page) -> None:
    with named("pc3", HOSTILE):
        sign_in(page)
        page.get_by_label("Search devices").fill("onerror")
        link = page.get_by_role("link", name=HOSTILE, exact=True)
        expect(link).to_be_visible()
        shot(page, "hostile-name")
        link.click()
        expect(page.get_by_role("heading", name=HOSTILE)).to_be_visible()
        page.get_by_role("tab", name="Audit").click()
        expect(page.get_by_role("row").nth(1)).to_be_visible()
        open_terminal(page, "pc3")
        assert page.locator("main img").count() == 0
        assert page.title() == f"{HOSTILE} terminal · gwmodule"


def walk(page: Page, name: str) -> None:
    """Every page, as a picture to look at and without a sideways scroll."""

    def look(what: str) -> None:
        page.wait_for_timeout(200)
        shot(page, f"{name}-{what}")
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{what} is {wide} pixels too wide"

    page.goto(URL)
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    look("sign-in")
    sign_in(page, "alice")
    look("devices")
    page.goto(f"{URL}/#/devices/{UUIDS['pc1']}")
    expect(page.get_by_role("heading", name="One-time boot")).to_be_visible()
    expect(page.locator(".state .value")).to_have_text("on", timeout=20_000)
    look("device")
    for tab, text in (
        ("Inventory", "Processors"),
        ("Event log", "records"),
        ("Explain", "It can be reached."),
        ("Audit", "call"),
    ):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_text(text).first).to_be_visible(timeout=20_000)
        look(f"device-{tab.split()[0].lower()}")
    for link, text in (("Gateways", "home-1"), ("Users", "carol"), ("Audit", "call")):
        page.get_by_role("navigation").get_by_role("link", name=link).click()
        # The page before may have the text as well.
        expect(page.get_by_role("heading", name=link, level=1)).to_be_visible()
        expect(page.get_by_text(text).first).to_be_visible()
        look(link.lower())
    open_terminal(page, "pc1")
    look("terminal")
    high = page.evaluate("document.documentElement.scrollHeight - innerHeight")
    assert high <= 0, f"the terminal's page is {high} pixels too high"


def test_every_page_by_day(site: Site, page: Page) -> None:
    walk(page, "light")


def test_every_page_by_night(site: Site, new_page: NewPage) -> None:
    page = new_page(color_scheme="dark")
    walk(page, "dark")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(colour.split("(")[1].split(",")[0])
    assert red < 64, colour


def test_every_page_on_a_telephone(site: Site, new_page: NewPage) -> None:
    walk(new_page(viewport={"width": 390, "height": 844}, has_touch=True), "small")


def test_every_page_at_twice_its_size(site: Site, new_page: NewPage) -> None:
    walk(new_page(viewport={"width": 640, "height": 400}, device_scale_factor=2), "zoomed")


def test_a_gateway_is_enrolled_by_a_command_that_is_shown_once(site: Site, page: Page) -> None:
    sign_in(page, "alice")
    page.get_by_role("navigation").get_by_role("link", name="Gateways").click()
    page.get_by_role("button", name="Enrol a gateway…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("home-9")
    dialog.get_by_role("button", name="Make the token").click()
    expect(page.get_by_role("dialog").locator("code").first).to_contain_text("provision")
    shot(page, "enrolment")


def test_a_user_is_added_changed_and_removed(site: Site, page: Page) -> None:
    sign_in(page, "alice")
    page.get_by_role("navigation").get_by_role("link", name="Users").click()
    page.get_by_role("button", name="Add a user…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("dora")
    dialog.get_by_label("Password").fill(USER_PASSWORD)
    dialog.get_by_role("button", name="Add").click()
    row = page.get_by_role("row").filter(has_text="dora")
    expect(row).to_contain_text("technician")
    row.get_by_role("button", name="Change").click()
    dialog.get_by_label("Role").select_option("viewer")
    dialog.get_by_role("button", name="Save").click()
    expect(row).to_contain_text("viewer")
    row.get_by_role("button", name="Remove").click()
    dialog.get_by_role("button", name="Remove").click()
    expect(row).to_have_count(0)


def test_an_api_key_is_made_shown_once_used_and_revoked(site: Site, page: Page) -> None:
    sign_in(page, "alice")
    page.get_by_role("navigation").get_by_role("link", name="Users").click()
    page.get_by_role("button", name="Make a key…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("not a name!")
    dialog.get_by_role("button", name="Make the key").click()
    expect(dialog.get_by_role("alert")).to_contain_text("name")
    dialog.get_by_label("Name").fill("night")
    dialog.get_by_label("Good for days").fill("30")
    dialog.get_by_role("button", name="Make the key").click()
    shown = page.get_by_role("dialog", name="API key night")
    key = shown.locator("code").inner_text()
    expect(shown.get_by_role("button", name="Copy the key")).to_be_visible()
    shot(page, "key-once")
    shown.get_by_role("button", name="Done").click()
    expect(page.locator("dialog")).to_have_count(0)
    assert key not in page.content()
    (told,) = [k for k in site.ask("GET", "/api/v1/keys") if k["name"] == "night"]
    assert (told["owner"], told["role"]) == ("alice", "viewer")
    row = page.get_by_role("row").filter(has=page.get_by_text("night", exact=True))
    mine = row.filter(has=page.get_by_role("button", name="Revoke"))
    expect(mine).to_contain_text("never")
    assert asks_with(page, key) == 200
    page.reload()
    expect(mine).to_contain_text("ago")
    mine.get_by_role("button", name="Revoke").click()
    dialog.get_by_role("button", name="Revoke").click()
    expect(mine).to_have_count(0)
    assert asks_with(page, key) == 401
    page.get_by_label("also those that have ended").check()
    expect(row.filter(has_text="revoked")).to_have_count(1)


def asks_with(page: Page, key: str) -> int:
    """The status of a script's request with this key, which no other login helps."""
    status: int = page.evaluate(
        "async (key) => (await fetch('/api/v1/devices',"
        " {headers: {Authorization: `Bearer ${key}`}})).status",
        key,
    )
    return status


def test_who_is_removed_takes_the_keys_along(site: Site, page: Page) -> None:
    site.ask("POST", "/api/v1/users", {"name": "erik", "role": "admin", "password": USER_PASSWORD})
    sign_in(page, "erik")
    page.get_by_role("navigation").get_by_role("link", name="Users").click()
    for name in ("erik-1", "erik-2"):
        page.get_by_role("button", name="Make a key…").click()
        page.get_by_label("Name").fill(name)
        page.get_by_role("button", name="Make the key").click()
        page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Sign out").click()
    sign_in(page, "alice")
    page.get_by_role("navigation").get_by_role("link", name="Users").click()
    page.get_by_role("button", name="Remove erik").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Its API keys are revoked: erik-1, erik-2.")
    dialog.get_by_role("button", name="Remove").click()
    said = page.get_by_text("erik is removed. Revoked with it: erik-1, erik-2.")
    expect(said).to_be_visible()
    expect(page.get_by_role("button", name="Revoke erik-1")).to_have_count(0)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_keys_fit(site: Site, new_page: NewPage, width: int) -> None:
    page = new_page(viewport={"width": width, "height": 800}, color_scheme="dark")
    sign_in(page, "alice")
    page.get_by_role("navigation").get_by_role("link", name="Users").click()
    page.get_by_role("button", name="Make a key…").click()
    page.get_by_label("Name").fill(f"script-{width}")
    shot(page, f"key-{width}")
    page.get_by_role("button", name="Make the key").click()
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("button", name=f"Revoke script-{width}")).to_be_visible()
    page.get_by_role("button", name=f"Revoke script-{width}").scroll_into_view_if_needed()
    shot(page, f"keys-{width}")
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0


def test_a_wrong_password_says_so(site: Site, page: Page) -> None:
    page.goto(URL)
    page.get_by_label("User").fill("bob")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("Wrong user name or password.")).to_be_visible()
