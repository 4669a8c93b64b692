"""Debian's Chromium in the laboratory, on the MSP's host; Playwright drives it by a pipe."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from gwmodule.sim import isolate
from gwmodule.sim.hosts import Lab
from gwmodule.sim.services import System
from gwmodule.sim.topology import TWO_WANS
from tests.console.site import PORT, Site
from tests.lab.conftest import bring_up

PROGRAMS = ("ip", "nft", "nsenter", "unshare", "curl", "chromium")
LIBRARY = "gwmodule/msp/console/node_modules/@xterm/xterm/lib/xterm.mjs"


def problem() -> str:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    missing += [] if Path(LIBRARY).is_file() else ["@xterm/xterm"]
    if missing:
        return f"not installed: {', '.join(missing)} (run: make setup)"
    return "" if isolate.isolated() else "run them with: make test-lab"


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context() as context:
        yield context.new_page()


@pytest.fixture(autouse=True)
def _no_complaints(page: Page) -> Iterator[None]:
    """Whatever a page does, its policy is never violated and nothing is thrown."""
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "console",
        lambda message: said.append(message.text) if "Content Security" in message.text else None,
    )
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    yield
    assert said == []
