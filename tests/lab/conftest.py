"""What the lab tests need around them, and the logs of the lab where one fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from typing import Any

import pytest

from gwmodule.sim import isolate
from gwmodule.sim.hosts import Lab

PROGRAMS = ("ip", "nft", "nsenter", "unshare", "dnsmasq", "udhcpc", "amtterm", "strace", "setpriv")


@pytest.fixture(scope="session", autouse=True)
def _surroundings() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    problem = ""
    if missing:
        problem = f"not installed: {', '.join(missing)} (run: make setup)"
    elif not isolate.isolated():
        problem = "run them with: make test-lab"
    if problem and os.environ.get("CI"):
        pytest.fail(f"the lab tests must run in CI: {problem}", pytrace=False)
    if problem:
        pytest.skip(f"no lab here: {problem}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        fixtures: dict[str, Any] = getattr(item, "funcargs", {})
        for value in fixtures.values():
            lab = getattr(value, "lab", value)
            if isinstance(lab, Lab):
                report.sections += [
                    (f"log {name}", service.tail(40)) for name, service in lab.services.items()
                ]
                break
    return report
