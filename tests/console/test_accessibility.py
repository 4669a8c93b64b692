"""Every page by the rules of WCAG 2.2 AA and axe's own, by day, by night and on a telephone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from gwmodule.sim.services import UUIDS
from tests.console.site import URL, NewPage, Site, candidate, connect, hang_up, sees, sign_in

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

AXE = Path("gwmodule/msp/console/node_modules/axe-core/axe.min.js")
TABS = {
    "Inventory": "Processors",
    "Event log": "records",
    "Explain": "It can be reached.",
    "Audit": "call",
}


def judge(page: Page, what: str) -> None:
    found: list[dict[str, Any]] = page.evaluate("axe.run().then(result => result.violations)")
    said = [
        f"{what}: {violation['id']}: {violation['help']}: {node['html'][:200]}"
        for violation in found
        for node in violation["nodes"]
    ]
    assert said == []


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"color_scheme": "light"}, id="light"),
        pytest.param({"color_scheme": "dark"}, id="dark"),
        pytest.param(
            {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}, id="small"
        ),
    ],
)
def test_every_page_can_be_used_by_everybody(
    site: Site, new_page: NewPage, options: dict[str, Any]
) -> None:
    # Only to let axe in: every other test runs under the policy as it is.
    page = new_page(bypass_csp=True, **options)
    page.add_init_script(path=AXE)
    page.goto(URL)
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    judge(page, "sign in")
    sign_in(page, "alice")
    judge(page, "devices")
    page.get_by_label("Search devices").fill("no such device")
    judge(page, "no device")
    page.route("**/api/v1/candidates", lambda route: route.fulfill(json=[candidate()]))
    page.get_by_role("tab", name="Found, not identified yet").click()
    page.get_by_role("button", name="Identify till-7").click()
    expect(page.get_by_label("AMT password")).to_be_visible()
    judge(page, "identify")
    page.keyboard.press("Escape")
    judge(page, "found")
    page.goto(f"{URL}/#/devices/{UUIDS['pc1']}")
    expect(page.locator(".state .value")).to_have_text("on", timeout=20_000)
    judge(page, "device")
    page.get_by_role("button", name="Reset", exact=True).click()
    judge(page, "confirmation")
    page.keyboard.press("Escape")
    for tab, text in TABS.items():
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_text(text).first).to_be_visible(timeout=20_000)
        judge(page, tab)
    for link, text in (("Audit", "call"), ("Users", "carol"), ("Gateways", "home-1")):
        page.get_by_role("navigation").get_by_role("link", name=link).click()
        # The page before may have the text as well.
        expect(page.get_by_role("heading", name=link, level=1)).to_be_visible()
        expect(page.get_by_text(text).first).to_be_visible()
        judge(page, link)
        if link == "Users":
            page.get_by_role("button", name="Make a key…").click()
            judge(page, "new key")
            page.keyboard.press("Escape")
            expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Enrol a gateway…").click()
    judge(page, "enrolment")
    page.get_by_label("Name").fill("home-8")
    page.get_by_role("button", name="Make the token").click()
    expect(page.get_by_role("heading", name="Enrol home-8")).to_be_visible()
    judge(page, "token")
    page.get_by_role("button", name="Done").click()
    page.goto(f"{URL}/#/devices/{UUIDS['pc1'][:-1]}f")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    judge(page, "refusal")
    connect(page, "pc1")
    sees(page, "recovery>")
    judge(page, "terminal")
    hang_up(page)
    judge(page, "closed terminal")
