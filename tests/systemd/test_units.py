"""The systemd units as systemd itself judges them, and what they promise beyond that."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gwmodule.config import CREDENTIALS, Config

UNITS = Path(__file__).parents[2] / "systemd"
SERVICES = ("gwmodule-relay.service", "gwmodule-capture.service", "gwmodule-msp.service")
ON_THE_GATEWAY = SERVICES[:2]
MAX_EXPOSURE = {
    "gwmodule-relay.service": 1.3,
    "gwmodule-capture.service": 1.8,
    "gwmodule-msp.service": 1.3,
    # Root, because the key is root's.
    "gwmodule-renew.service": 1.8,
}

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(
    ANALYZE is None and "CI" not in os.environ,
    reason="needs systemd-analyze (Debian package systemd)",
)


class Unit:
    """The sections of a unit file; a key may have several values."""

    def __init__(self, name: str) -> None:
        self._text = (UNITS / name).read_text()

    def values(self, key: str) -> list[str]:
        return re.findall(rf"^{key}=(.*)$", self._text, re.MULTILINE)

    def value(self, key: str) -> str:
        (value,) = self.values(key)
        return value


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units with programs that exist here: `verify` looks for them."""
    programs = Path(sys.executable).parent
    for unit in UNITS.glob("*.*"):
        if unit.suffix in (".service", ".target", ".timer"):
            text = re.sub(
                r"^(Exec\w+=\+?)gwmodule", rf"\1{programs}/gwmodule", unit.read_text(), flags=re.M
            )
            (tmp_path / unit.name).write_text(text)
    return tmp_path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert ANALYZE, "CI must have systemd-analyze (Debian package systemd)"
    return subprocess.run(
        [ANALYZE, *arguments], capture_output=True, text=True, timeout=15, check=False
    )


@needs_systemd
@pytest.mark.parametrize(
    "name", [*SERVICES, "gwmodule.target", "gwmodule-renew.service", "gwmodule-renew.timer"]
)
def test_systemd_finds_nothing_wrong(installed: Path, name: str) -> None:
    answer = analyze("verify", "--man=no", str(installed / name))
    assert (answer.returncode, answer.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("name", MAX_EXPOSURE)
def test_the_exposure_is_low(installed: Path, name: str) -> None:
    answer = analyze("security", "--offline=yes", "--no-pager", str(installed / name))
    found = re.search(r"exposure level for \S+: ([0-9.]+)", answer.stdout)
    assert found, answer.stderr
    print(f"{name}: exposure {found[1]}")
    assert float(found[1]) <= MAX_EXPOSURE[name]


@pytest.mark.parametrize("name", SERVICES)
def test_only_a_hopeless_start_is_not_repeated(name: str) -> None:
    unit = Unit(name)
    assert unit.value("Restart") == "on-failure"
    assert unit.value("RestartPreventExitStatus").split() == ["2", "78"]
    assert unit.value("StartLimitIntervalSec") == "0"


@pytest.mark.parametrize("name", ON_THE_GATEWAY)
def test_the_router_outlives_the_gateways_services(name: str) -> None:
    unit = Unit(name)
    assert unit.value("Nice") == "5"
    assert unit.value("OOMScoreAdjust") == "500"
    assert unit.value("MemoryMax") == "64M"


def test_only_capture_has_a_capability() -> None:
    capabilities = {name: Unit(name).value("CapabilityBoundingSet") for name in SERVICES}
    assert capabilities == dict(zip(SERVICES, ("", "CAP_NET_RAW", ""), strict=True))
    for name in SERVICES:
        assert Unit(name).value("AmbientCapabilities") == capabilities[name]


def test_relay_and_capture_meet_and_share_nothing_else() -> None:
    relay, capture = (Unit(name) for name in ON_THE_GATEWAY)
    for key in ("User", "RuntimeDirectory"):
        assert (relay.value(key), capture.value(key)) == ("gwmodule", "gwmodule-capture")
    assert capture.value("ExecStart").endswith("--allow-user " + relay.value("User"))
    # The socket is for the group, and so is its folder.
    assert capture.value("Group") == relay.value("Group") == "gwmodule"
    assert capture.value("RuntimeDirectoryMode") == "0750"
    assert Path(Config().capture.socket).parent == Path("/run", capture.value("RuntimeDirectory"))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_hangs_is_killed_and_started_again(name: str) -> None:
    unit = Unit(name)
    assert unit.value("Type") == "notify"
    assert 10 <= int(unit.value("WatchdogSec")) <= 60
    # SIGABRT would wait for a stopped process to go on, and its core dump would hold keys.
    assert unit.value("WatchdogSignal") == "SIGKILL"


def test_the_unit_gives_the_key_and_no_copy_of_what_a_renewal_replaces() -> None:
    relay = Unit("gwmodule-relay.service")
    name = CREDENTIALS["key"]
    assert relay.values("LoadCredential") == [f"{name}:{Config().tls.key}"]
    assert relay.values("SetCredential") == [f"{name}:none"]


@pytest.mark.parametrize("name", SERVICES)
def test_the_user_of_a_unit_is_made_by_sysusers(name: str) -> None:
    lines = [
        line.split()
        for file in UNITS.glob("*.sysusers.conf")
        for line in file.read_text().splitlines()
        if line.startswith("u ")
    ]
    assert Unit(name).value("User") in [line[1] for line in lines]


def test_the_key_is_for_root_alone() -> None:
    lines = (UNITS / "gwmodule.tmpfiles.conf").read_text().splitlines()
    modes = {line.split()[1]: line.split()[2:5] for line in lines if line[:1] in ("d", "z")}
    assert modes["/etc/gwmodule/gateway.key"] == ["0600", "root", "root"]
    assert modes["/etc/gwmodule"] == ["0750", "root", "gwmodule"]
