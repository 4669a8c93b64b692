"""The whole system in the laboratory, with the console as a browser on the MSP's host sees it."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

from playwright.sync_api import Locator, Page, expect

from gwmodule.sim.control import request
from gwmodule.sim.hosts import wait_until
from gwmodule.sim.services import GATEWAY, MSP_STATE, PASSWORD, USER, UUIDS, System, control_path
from gwmodule.sim.topology import MACS

# Options of a browser's context -> a page in a new one.
NewPage: TypeAlias = Callable[..., Page]

PORT = 8880
URL = f"http://127.0.0.1:{PORT}"
USERS = {"alice": "admin", "bob": "technician", "carol": "viewer"}
USER_PASSWORD = "correct horse battery"
ARTIFACTS = Path("artifacts/console")
SOCKET = "/run/gwmodule-msp/api.sock"
# Loopback, so that it is between browser and service and nowhere else.
CUT = f"""
table ip browser {{
  chain input {{
    type filter hook input priority -300;
    tcp dport {PORT} drop
    tcp sport {PORT} drop
  }}
}}
"""


@dataclass
class Site:
    system: System

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """As the operator, at the unix socket."""
        argv = ["curl", "-sS", "--fail-with-body", "--unix-socket", SOCKET, "-X", method]
        if body is not None:
            argv += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        text = self.system.lab.run("msp", [*argv, f"http://msp{path}"]).stdout
        return json.loads(text) if text else None

    def prepare(self) -> None:
        for name, role in USERS.items():
            user = {"name": name, "role": role, "password": USER_PASSWORD}
            self.ask("POST", "/api/v1/users", user)
        for pc in UUIDS:
            self.prepare_login(pc)

    def prepare_login(self, pc: str) -> None:
        login = {"username": USER, "password": PASSWORD}
        self.ask("PUT", f"/api/v1/devices/{UUIDS[pc]}/credential", login)
        wait_until(f"the host name of {pc}", partial(self._has_name, pc), 30)

    def _has_name(self, pc: str) -> bool:
        """Its lease may have been given before the gateway listened: let it be renewed."""
        if self.ask("GET", f"/api/v1/devices/{UUIDS[pc]}")["hostname"] == pc:
            return True
        self.system.lab.services[f"dhcp-{pc}"].process.send_signal(signal.SIGUSR1)
        time.sleep(2)
        return False

    def spoken(self, pc: str) -> bytes:
        """What the PC's serial line has said to SOL sessions so far."""
        answer = request(Path(control_path(pc)), "serial")
        return base64.b64decode(answer["serial"])

    @contextlib.contextmanager
    def browser_cut(self) -> Iterator[None]:
        """Nothing passes between the browser and the service; nobody is told."""
        self.system.lab.run("msp", ["nft", "-f", "-"], stdin=CUT)
        try:
            yield
        finally:
            self.system.lab.run("msp", ["nft", "delete", "table", "ip", "browser"])


@contextlib.contextmanager
def named(pc: str, name: str) -> Iterator[None]:
    """As if a gateway had said so; its capture never would."""

    def rename(to: str) -> None:
        with contextlib.closing(sqlite3.connect(MSP_STATE / "registry.db", timeout=5)) as database:
            key = UUID(UUIDS[pc]).bytes
            database.execute("UPDATE devices SET hostname = ? WHERE uuid = ?", (to, key))
            database.commit()

    rename(name)
    yield
    rename(pc)


def candidate() -> dict[str, Any]:
    """A host as the API shows it that has told its gateway no more than that it is AMT."""
    return {
        "gateway": GATEWAY, "mac": MACS["pc3"], "address": "192.0.2.7", "hostname": "till-7",
        "connectionStatus": True, "provisioning": "post", "ports": [16992], "realm": "",
        "server": "", "pin": None, "lastAnswer": None, "leaseUntil": None, "gone": None,
    }  # fmt: skip


def sign_in(page: Page, user: str = "bob") -> None:
    page.goto(URL)
    page.get_by_label("User").fill(user)
    page.get_by_label("Password").fill(USER_PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    # A password is hashed slowly on purpose, and more so on a busy machine.
    expect(page.get_by_role("heading", name="Devices")).to_be_visible(timeout=20_000)


def open_terminal(page: Page, pc: str) -> None:
    page.goto(f"{URL}/#/devices/{UUIDS[pc]}/terminal")
    expect(page.get_by_role("toolbar")).not_to_have_attribute("inert", "")


def connect(page: Page, pc: str) -> None:
    open_terminal(page, pc)
    page.get_by_role("button", name="Connect", exact=True).click()
    expect(pill(page)).to_have_text("connected", timeout=15_000)


def hang_up(page: Page) -> None:
    page.get_by_role("button", name="Disconnect").click()
    expect(pill(page)).to_have_text("not connected", timeout=10_000)


def pill(page: Page) -> Locator:
    return page.locator(".pill")


def screen(page: Page) -> Locator:
    return page.locator(".xterm-rows")


def type_on(page: Page, text: str) -> None:
    page.locator(".xterm-screen").click()
    page.keyboard.type(text)


def sees(page: Page, text: str, timeout: float = 15.0) -> None:
    expect(screen(page)).to_contain_text(text, timeout=timeout * 1000, use_inner_text=True)


def log_of(page: Page) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("button", name="Download log").click()
    return Path(download.value.path()).read_bytes()


def shot(page: Page, name: str) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png")
