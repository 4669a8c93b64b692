"""From a PC that only answers to a device that can be repaired, without a command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from gwmodule.sim.services import PASSWORD, USER, UUIDS
from tests.console.site import URL, NewPage, Site, candidate, shot, sign_in

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


@pytest.fixture
def found(site: Site) -> Iterator[None]:
    """pc3 says no Hello: its gateway finds it, and only a login tells which device it is."""
    site.ask("DELETE", f"/api/v1/devices/{UUIDS['pc3']}")
    site.system.wait_for_candidate("pc3")
    yield
    if site.system.device(UUIDS["pc3"]) is None:
        site.system.identify("pc3")
    site.prepare_login("pc3")


def identify(page: Page, password: str = PASSWORD) -> None:
    page.get_by_role("tab", name="Found, not identified yet (1)").click()
    page.get_by_role("row").filter(has_text="pc3").get_by_role("button", name="Identify").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("AMT user").fill(USER)
    dialog.get_by_label("AMT password").fill(password)


@pytest.mark.usefixtures("found")
def test_a_found_pc_becomes_a_device_by_its_login(site: Site, page: Page) -> None:
    sign_in(page, "alice")
    identify(page, "wrong")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("a hash of the password that is good at this device only")
    expect(dialog.get_by_label("Send the password itself")).to_have_count(0)
    shot(page, "identify")
    dialog.get_by_role("button", name="Identify").click()
    refusal = dialog.get_by_role("alert")
    expect(refusal).not_to_be_empty(timeout=20_000)
    shot(page, "identify-refused")
    dialog.get_by_label("AMT password").fill(PASSWORD)
    dialog.get_by_role("button", name="Identify").click()
    expect(page.get_by_role("heading", name="pc3", exact=True)).to_be_visible(timeout=20_000)
    assert page.url == f"{URL}/#/devices/{UUIDS['pc3']}"
    assert site.ask("GET", f"/api/v1/devices/{UUIDS['pc3']}/credential")["username"] == USER
    expect(page.locator(".state .value")).to_have_text("on", timeout=20_000)


@pytest.mark.usefixtures("found")
def test_the_default_login_identifies_without_anybody_typing_it(site: Site, page: Page) -> None:
    site.ask("PUT", "/api/v1/credential", {"username": USER, "password": PASSWORD})
    try:
        sign_in(page)
        page.goto(f"{URL}/#/devices/found")
        page.get_by_role("button", name="Identify pc3").click()
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_label("AMT password")).to_be_hidden()
        # What only an admin may do is not offered.
        dialog.get_by_label("Login").select_option("own")
        expect(dialog.get_by_label("AMT password")).to_be_visible()
        expect(dialog.get_by_label("Store this login")).to_have_count(0)
        dialog.get_by_label("Login").select_option("common")
        dialog.get_by_role("button", name="Identify").click()
        expect(page.get_by_role("heading", name="pc3", exact=True)).to_be_visible(timeout=20_000)
    finally:
        site.ask("DELETE", "/api/v1/credential")


def test_a_password_that_must_be_sent_itself_is_consented_to(site: Site, page: Page) -> None:
    sent: list[Any] = []
    refusal = {"error": "IDENTITY_MISMATCH", "errorDescription": "another device answered"}

    def answer(route: Route) -> None:
        sent.append(json.loads(route.request.post_data or ""))
        route.fulfill(status=409, json=refusal)

    page.route("**/api/v1/candidates", lambda route: route.fulfill(json=[candidate()]))
    page.route("**/api/v1/candidates/*/*/identify", answer)
    sign_in(page, "alice")
    page.goto(f"{URL}/#/devices/found")
    page.get_by_role("button", name="Identify till-7").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("the gateway is sent the password itself")
    expect(dialog).to_contain_text("has not told its digest realm yet")
    dialog.get_by_label("AMT password").fill("secret")
    dialog.get_by_role("button", name="Identify").click()
    expect(dialog).to_be_visible()
    assert sent == []
    dialog.get_by_label("Send the password itself").check()
    dialog.get_by_role("button", name="Identify").click()
    expect(dialog.get_by_role("alert")).to_have_text("another device answered")
    login = {"username": "admin", "password": "secret"}
    assert sent == [{"credential": login, "allow_password": True, "deadline": 60}]
    shot(page, "identify-password")


def test_who_may_only_look_sees_what_is_found(site: Site, page: Page) -> None:
    page.route("**/api/v1/candidates", lambda route: route.fulfill(json=[candidate()]))
    sign_in(page, "carol")
    page.get_by_role("tab", name="Found, not identified yet (1)").click()
    expect(page.get_by_text("till-7")).to_be_visible()
    expect(page.get_by_role("button", name="Identify")).to_have_count(0)


def test_nothing_found_says_what_is_listed_here(site: Site, page: Page) -> None:
    page.route("**/api/v1/candidates", lambda route: route.fulfill(json=[]))
    sign_in(page)
    page.get_by_role("tab", name="Found, not identified yet").click()
    expect(page.get_by_text("A host is listed here when")).to_be_visible()


@pytest.mark.usefixtures("found")
@pytest.mark.parametrize("width", [1280, 390])
def test_what_is_found_fits(site: Site, new_page: NewPage, width: int) -> None:
    page = new_page(viewport={"width": width, "height": 800}, color_scheme="dark")
    sign_in(page, "alice")
    identify(page)
    shot(page, f"identify-{width}")
    page.keyboard.press("Escape")
    shot(page, f"found-{width}")
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
