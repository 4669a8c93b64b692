from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from tests.openwrt.box import FILES, Box

pytestmark = pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox")

SCRIPT = "usr/libexec/rpcd/gwmodule"


def call(box: Box, method: str, **arguments: str | int) -> Any:
    text = json.dumps(arguments, separators=(",", ":"))
    return json.loads(box.run(SCRIPT, "call", method, stdin=f"{text}\n").stdout)


def test_every_method_is_listed_and_allowed_to_somebody(box: Box) -> None:
    listed = json.loads(box.run(SCRIPT, "list").stdout)
    rights = json.loads((FILES / "gwmodule.acl.json").read_text())["gwmodule"]
    allowed = [*rights["read"]["ubus"]["gwmodule"], *rights["write"]["ubus"]["gwmodule"]]
    assert sorted(listed) == sorted(allowed)


def test_status_is_one_field_of_the_answer(box: Box) -> None:
    box.command("""echo '{"link": "up"}'""")
    assert call(box, "status") == {"ok": True, "status": {"link": "up"}}


def test_devices_is_a_list_in_an_object(box: Box) -> None:
    box.command("echo '[]'")
    assert call(box, "devices") == {"ok": True, "devices": []}


def test_explain_passes_the_device_on(box: Box) -> None:
    box.command("""echo "[\\"$*\\"]" """)
    answer = call(box, "explain", device="192.168.1.20")
    assert answer["explain"] == ["explain 192.168.1.20 --json"]


def test_a_checklist_that_fails_is_an_answer_and_no_error(box: Box) -> None:
    box.command("""echo '{"ok":false,"failed":"ports"}'; exit 1""")
    answer = call(box, "explain", device="02:00:00:00:00:07")
    assert answer == {"ok": True, "explain": {"ok": False, "failed": "ports"}}


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ({}, "lockdown --json"),
        ({"state": "off"}, "lockdown off --json"),
        ({"state": "on", "seconds": 600}, "lockdown on --for 600 --json"),
    ],
)
def test_lockdown_is_asked_for_and_switched(
    box: Box, arguments: dict[str, str | int], command: str
) -> None:
    box.command("""echo "[\\"$*\\"]" """)
    assert call(box, "lockdown", **arguments)["lockdown"] == [command]


@pytest.mark.parametrize(
    "arguments", [{"state": "--config=/x"}, {"state": "on", "seconds": -5}, {"state": "on off"}]
)
def test_lockdown_takes_nothing_else(box: Box, arguments: dict[str, str | int]) -> None:
    box.command('echo "ran $*" >>"$LOG"')
    assert call(box, "lockdown", **arguments)["ok"] is False
    assert box.log() == []


@pytest.mark.parametrize("device", ["", "--config=/etc/shadow", "a b", "$(reboot)", "x;y"])
def test_nothing_else_reaches_a_command_line(box: Box, device: str) -> None:
    box.command('echo "ran $*" >>"$LOG"')
    assert call(box, "explain", device=device)["ok"] is False
    assert box.log() == []


def test_a_service_that_does_not_run_is_an_error_text(box: Box) -> None:
    box.command("echo 'gwmodule: no such socket; is the service running?' >&2; exit 1")
    answer = call(box, "status")
    assert answer == {"ok": False, "error": "gwmodule: no such socket; is the service running?"}
    assert list((box.root / "tmp").iterdir()) == []


def test_an_unknown_method_and_bad_arguments_are_told(box: Box) -> None:
    assert call(box, "reboot") == {"ok": False, "error": "unknown method"}
    answer = box.run(SCRIPT, "call", "explain", stdin="garbage\n").stdout
    assert json.loads(answer)["error"] == "the arguments are no JSON"
