from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from gwmodule.config import Config, load
from gwmodule.errors import ConfigError
from gwmodule.provisioning.identity import ProvisioningError
from gwmodule.provisioning.settings import Settings, changes, edited, write

STUB = Path(__file__).parents[1] / "openwrt" / "stubs" / "uci"

WANTED: Settings = {
    ("msp", "address"): ("msp.example:8883", "[2001:db8::1]:8883"),
    ("msp", "server_name"): "gwmodule-msp",
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[msp]\n",
        '# a comment\n[log]\nlevel = "debug"\n',
        '[msp] # here\naddress = "old:1" # gone\nserver_name="x"\n[lan]\ninterface = "br0"\n',
        '[lan]\ninterface = "br0"\n\n[msp]\nconnect_timeout = 3.0',
    ],
)
def test_settings_come_out_as_wanted_and_others_stay(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gwmodule.toml"
    path.write_text(text)
    path.chmod(0o640)
    before = load(path)
    write(path, WANTED)
    after = load(path)
    assert changes(after, WANTED) == {}
    assert (after.lan, after.log) == (before.lan, before.log)
    assert after.msp.connect_timeout == before.msp.connect_timeout
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "text",
    [
        'msp = {address = "old:1"}\n',
        'msp.address = "old:1"\n',
        '[msp]\naddress = [\n  "old:1",\n]\n',
        '[log]\nlevel = """\n[msp]\n"""\n',
    ],
)
def test_a_file_that_is_written_otherwise_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gwmodule.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"by hand: msp\.address"):
        write(path, WANTED)
    assert path.read_text() == text


def test_none_takes_a_setting_away() -> None:
    text = edited('[msp]\nserver_name = "x"\naddress = "a:1"\n', {("msp", "server_name"): None})
    assert tomllib.loads(text) == {"msp": {"address": "a:1"}}


def test_a_default_that_is_not_written_is_no_change() -> None:
    assert changes(Config(), {("msp", "server_name"): None, ("msp", "enrolment"): ""}) == {}


@pytest.fixture
def uci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A UCI file, and OpenWrt's `uci` as far as the harness has it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "uci").symlink_to(STUB)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("UCI_STUB", str(tmp_path))
    path = tmp_path / "gwmodule"
    path.write_text("config lan\n\tlist interface 'br-lan'\n")
    return path


def test_uci_gets_one_batch(uci: Path) -> None:
    write(uci, WANTED)
    assert changes(load(uci), WANTED) == {}
    assert load(uci).lan.interface == ("br-lan",)
    write(uci, {("msp", "address"): ("other.example:1",)})
    assert load(uci).msp.address == ("other.example:1",)
    assert load(uci).msp.server_name == "gwmodule-msp"
    write(uci, {("msp", "address"): None, ("msp", "server_name"): None})
    assert load(uci).msp == Config().msp
    assert (uci.parent / "commits").read_text().splitlines() == ["gwmodule"] * 3


@pytest.mark.parametrize("value", ["it's", "a\nb"])
def test_what_a_shell_would_see_otherwise_is_refused(uci: Path, value: str) -> None:
    before = uci.read_text()
    with pytest.raises(ProvisioningError, match="cannot be written"):
        write(uci, {("msp", "server_name"): value})
    assert uci.read_text() == before


def test_a_missing_uci_is_named(uci: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ProvisioningError, match="command uci is missing"):
        write(uci, WANTED)
