from __future__ import annotations

import shutil

import pytest

from tests.openwrt.box import Box

pytestmark = pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox")

SCRIPT = "etc/uci-defaults/60_gwmodule"
NETWORK = """
config interface 'lan'
	option device 'br-home'

config interface 'shop'
	option device 'eth3'
"""


def configured(box: Box) -> str:
    box.run(SCRIPT)
    return (box.root / "etc/config/gwmodule").read_text()


def test_the_lan_device_is_the_networks(box: Box) -> None:
    box.write("etc/config/network", NETWORK)
    assert "list interface 'br-home'" in configured(box)


def test_a_second_run_changes_nothing(box: Box) -> None:
    box.write("etc/config/network", NETWORK)
    assert configured(box) == configured(box)


def test_what_an_image_overlay_says_is_kept(box: Box) -> None:
    box.write("etc/config/network", NETWORK)
    box.configure("config lan 'lan'\n\tlist interface 'br-own'\n")
    text = configured(box)
    assert "br-own" in text
    assert "br-home" not in text


def test_another_network_can_be_named(box: Box) -> None:
    box.write("etc/config/network", NETWORK)
    box.configure("config gwmodule 'main'\n\toption network 'shop'\n")
    assert "list interface 'eth3'" in configured(box)


def test_without_any_file_there_is_a_usable_start(box: Box) -> None:
    (box.root / "etc/config/gwmodule").unlink()
    assert "list interface 'br-lan'" in configured(box)


def test_the_certificate_is_looked_at_every_night_at_a_minute_of_its_own(box: Box) -> None:
    box.write("etc/config/network", NETWORK)
    crontab = box.write("etc/crontabs/root", "0 5 * * * reboot\n")
    lines = set()
    for _ in range(8):
        configured(box)
        first, line = crontab.read_text().splitlines()
        assert first == "0 5 * * * reboot"
        minute, hour, *rest = line.split()
        assert 0 <= int(minute) < 60
        assert 1 <= int(hour) <= 4
        assert "gwmodule renew" in " ".join(rest)
        lines.add(line)
        crontab.write_text(f"{first}\n")
    assert len(lines) > 1
    configured(box)
    before = crontab.read_text()
    configured(box)
    assert crontab.read_text() == before
