from __future__ import annotations

import shutil

import pytest

from tests.openwrt.box import Box

pytestmark = pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox")

GOOD = """
config gwmodule 'main'
	option enabled '1'

config msp 'msp'
	list address '127.0.0.1:4433'

config tls 'tls'
	option mode 'off'

config lan 'lan'
	list interface 'lo'
"""
FULL = """
config gwmodule 'main'
	option enabled 'on'
	option network 'home'
	option zone 'inside'

config msp 'msp'
	list address '127.0.0.1:4433'

config tls 'tls'
	option mode 'off'
	option key '/srv/gateway.key'

config lan 'lan'
	list interface 'lo'
	option hello_port '9972'
	option lease_file '/tmp/dhcp.leases'
"""
BAD = GOOD.replace("list address '127.0.0.1:4433'", "list address 'nowhere'")
COMMON = {
    "respawn": ["3600", "5", "0"],
    "stdout": ["1"],
    "stderr": ["1"],
    "nice": ["5"],
    "limits": ["data=134217728", "core=0"],
    "group": ["gwmodule"],
}
MOUNTS = dict.fromkeys(("/usr/lib", "/lib", "/etc/passwd", "/var/etc/gwmodule"), "ro")


def test_a_good_configuration_is_two_jailed_instances(box: Box) -> None:
    box.install_capture()
    box.configure(GOOD)
    box.init("start")
    service = box.handed()
    assert service is not None
    assert service.instances == {
        "relay": COMMON
        | {
            "command": ["/usr/bin/gwmodule", "relay", "--config", "/var/etc/gwmodule"],
            "user": ["gwmodule"],
            "file": ["/var/etc/gwmodule"],
            "no_new_privs": ["1"],
            "capabilities": ["/etc/capabilities/gwmodule-relay.json"],
            "jail": {
                "name": "gwmodule-relay",
                "flags": ["log", "procfs"],
                "mount": MOUNTS
                | dict.fromkeys(("/etc/gwmodule", "/etc/resolv.conf", "/etc/hosts"), "ro")
                | {"/var/run/gwmodule": "rw"},
            },
        },
        "capture": COMMON
        | {
            "command": [
                *("/usr/bin/gwmodule", "capture", "--config", "/var/etc/gwmodule"),
                *("--allow-user", "gwmodule"),
            ],
            "user": ["gwcapture"],
            "file": ["/var/etc/gwmodule"],
            "no_new_privs": ["1"],
            "capabilities": ["/etc/capabilities/gwmodule-capture.json"],
            "jail": {
                "name": "gwmodule-capture",
                "flags": ["log", "procfs"],
                "mount": MOUNTS | {"/var/run/gwmodule-capture": "rw"},
            },
        },
    }
    assert service.firewall == {
        "type": "rule",
        "src": "lan",
        "proto": "tcp",
        "dest_port": "9971",
        "target": "ACCEPT",
    }
    assert service.triggers == [
        ["add_reload_trigger", "gwmodule"],
        ["add_reload_interface_trigger", "lan"],
    ]


def test_every_option_of_the_init_script_counts(box: Box) -> None:
    box.configure(FULL)
    box.init("start")
    service = box.handed()
    assert service is not None
    assert service.triggers[1] == ["add_reload_interface_trigger", "home"]
    assert service.firewall["src"] == "inside"
    assert service.firewall["dest_port"] == "9972"
    mounts = service.instances["relay"]["jail"]["mount"]
    assert mounts["/srv/gateway.key"] == "ro"
    assert service.instances["relay"]["file"] == ["/var/etc/gwmodule", "/srv/gateway.key"]
    assert mounts["/tmp/dhcp.leases"] == "ro"


def test_the_shipped_configuration_waits_for_the_msp(box: Box) -> None:
    assert box.init("start", check=False).returncode == 0
    service = box.handed()
    assert service is not None
    assert service.instances == {}
    assert service.triggers[0] == ["add_reload_trigger", "gwmodule"]
    assert (
        "logger -t gwmodule -p daemon.err /etc/config/gwmodule: msp.address: is empty: "
        "where is the MSP?"
    ) in box.log()


def test_without_the_capture_package_the_relay_runs_alone(box: Box) -> None:
    box.configure(GOOD)
    box.init("start")
    service = box.handed()
    assert service is not None
    assert list(service.instances) == ["relay"]


def test_capture_can_be_switched_off(box: Box) -> None:
    box.install_capture()
    box.configure(f"{GOOD}\nconfig capture 'capture'\n\toption enabled '0'\n")
    box.init("start")
    service = box.handed()
    assert service is not None
    assert list(service.instances) == ["relay"]


def test_without_ujail_only_capture_keeps_root_for_its_sockets(box: Box) -> None:
    box.install_capture()
    (box.root / "sbin/ujail").unlink()
    box.configure(GOOD)
    box.init("start")
    service = box.handed()
    assert service is not None
    assert service.instances["relay"]["user"] == ["gwmodule"]
    assert "user" not in service.instances["capture"]
    for instance in service.instances.values():
        assert "jail" not in instance
        assert "capabilities" not in instance


def test_disabled_means_nothing_runs_and_nothing_is_open(box: Box) -> None:
    box.configure(GOOD.replace("enabled '1'", "enabled '0'"))
    box.init("start")
    service = box.handed()
    assert service is not None
    assert (service.instances, service.firewall) == ({}, {})


def test_a_bad_configuration_does_not_reach_procd_on_reload(box: Box) -> None:
    box.configure(GOOD)
    box.init("start")
    box.handed()
    box.log()
    box.configure(BAD)
    assert box.init("reload", check=False).returncode == 1
    assert box.handed() is None
    said = "\n".join(box.log())
    assert "/etc/config/gwmodule: msp.address: 'nowhere' is not HOST:PORT" in said
    assert "not reloaded; the running services keep their configuration" in said
    assert (box.root / "var/etc/gwmodule").read_text() == GOOD


@pytest.mark.parametrize("config", [GOOD.replace("'1'", "'maybe'", 1), "config gwmodule 'main"])
def test_nor_does_one_that_uci_refuses(box: Box, config: str) -> None:
    box.configure(GOOD)
    box.init("start")
    box.handed()
    box.configure(config)
    assert box.init("reload", check=False).returncode != 0
    assert box.handed() is None


def test_a_restart_with_a_bad_configuration_goes_on_with_the_last_good_one(box: Box) -> None:
    box.configure(FULL)
    box.init("start")
    before = box.handed()
    box.configure(BAD.replace("option mode 'off'", "option mode 'off'\n\toption key '/elsewhere'"))
    box.init("restart")
    after = box.handed()
    assert before is not None
    assert after is not None
    assert after.instances == before.instances
    assert "going on with the last configuration that could be used" in "\n".join(box.log())


def test_a_good_reload_hands_procd_the_new_configuration(box: Box) -> None:
    box.configure(GOOD)
    box.init("start")
    box.handed()
    box.configure(FULL)
    box.init("reload")
    service = box.handed()
    assert service is not None
    assert service.firewall["dest_port"] == "9972"
    assert (box.root / "var/etc/gwmodule").read_text() == FULL


def test_an_interface_event_does_not_start_python(box: Box) -> None:
    box.configure(GOOD)
    box.init("start")
    box.log()
    box.init("reload")
    assert not [line for line in box.log() if line.startswith("checked")]


def test_a_new_key_is_checked_again(box: Box) -> None:
    box.configure(GOOD)
    box.init("start")
    box.log()
    box.write("etc/gwmodule/gateway.key", "new")
    box.init("reload")
    assert "checked check-config --config /etc/config/gwmodule" in box.log()


def test_a_check_that_fails_for_another_reason_stops_nothing(box: Box) -> None:
    box.configure(GOOD)
    box.command("exit 137")
    box.init("start")
    service = box.handed()
    assert service is not None
    assert list(service.instances) == ["relay"]


def test_keys_are_shared_with_the_relay_and_nobody_else(box: Box) -> None:
    box.configure(GOOD)
    text = (box.root / "etc/init.d/gwmodule").read_text()
    # The stand-in chgrp changes nothing, so the group to compare with is the one that is there.
    group = "gwmodule"
    key = box.write("etc/gwmodule/gateway.key", "secret", 0o600)
    assert f'"$4" = {group}' in text
    box.init("start")
    assert key.stat().st_mode & 0o777 == 0o640
    assert key.parent.stat().st_mode & 0o777 == 0o750
    log = box.log()
    assert "chgrp gwmodule /etc/gwmodule/gateway.key" in log
    assert "chown gwmodule:gwmodule /var/run/gwmodule" in log


def test_stopping_closes_the_port_in_the_firewall(box: Box) -> None:
    box.init("stop")
    assert "firewall reload" in box.log()


def test_provisionserver_follows_the_option(box: Box) -> None:
    box.write("usr/libexec/gwmodule-provisionserver", '#!/bin/sh\necho "ps $*" >>"$LOG"\n', 0o755)
    box.configure(GOOD.replace("option enabled '1'", "option provisionserver '1'"))
    box.init("start")
    assert "ps add lan" in box.log()
    service = box.handed()
    assert service is not None
    assert ["add_reload_trigger", "dhcp"] in service.triggers
    box.configure(GOOD)
    box.init("reload")
    assert "ps remove" in box.log()
