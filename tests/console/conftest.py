"""Debian's Chromium in the laboratory, on the MSP's host; Playwright drives it by a pipe."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from gwmodule.sim import isolate
from gwmodule.sim.hosts import Lab
from gwmodule.sim.services import System
from gwmodule.sim.topology import TWO_WANS
from tests.console.site import PORT, NewPage, Site
from tests.lab.conftest import bring_up

PROGRAMS = ("ip", "nft", "nsenter", "unshare", "curl", "chromium")
LIBRARY = "gwmodule/msp/console/node_modules/@xterm/xterm/lib/xterm.mjs"


def problem() -> str:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    missing += [] if Path(LIBRARY).is_file() else ["@xterm/xterm"]
    if missing:
        return f"not installed: {', '.join(missing)} (run: make setup)"
    return "" if isolate.isolated() else "run them with: make test-lab"


@pytest.fixture(scope="package")
def site() -> Iterator[Site]:
    """Three PCs, known by their login; a user of every role; the console at `URL`."""
    found = problem()
    if found and os.environ.get("CI"):
        pytest.fail(f"the console must be tested in CI: {found}", pytrace=False)
    if found:
        pytest.skip(f"no browser in a lab here: {found}")
    with Lab(TWO_WANS) as lab:
        site = Site(
            System(lab, msp_options=("--http", f"127.0.0.1:{PORT}", "--enrol", "0.0.0.0:8885"))
        )
        bring_up(site.system)
        site.prepare()
        yield site


@pytest.fixture(scope="package")
def browser(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """It runs on the MSP's host: a console over plain HTTP is there for loopback only."""
    wrapper = tmp_path_factory.mktemp("browser") / "chromium"
    command = shlex.join(site.system.lab.command("msp", ["chromium"]))
    wrapper.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    wrapper.chmod(0o755)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=wrapper,
            # The laboratory's root is root nowhere else, and Chromium refuses any.
            args=["--no-sandbox", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


# A test that cuts the network, or asks for what is refused, reads this too.
EXPECTED = ("Failed to load resource", "WebSocket connection to")


@pytest.fixture
def new_page(browser: Browser) -> Iterator[NewPage]:
    """Pages in contexts of their own. Whatever a test does, no policy is violated, nothing is
    thrown, and nothing opens a dialog of the browser's."""
    said: list[str] = []
    contexts: list[BrowserContext] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(EXPECTED):
            said.append(message.text)

    def new(**options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", heard)
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
        return page

    yield new
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture
def page(new_page: NewPage) -> Page:
    return new_page()
