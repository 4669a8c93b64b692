"""What holds for every shell script that is installed on a router."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.openwrt.box import FILES, STUBS

SCRIPTS = ("gwmodule.init", "gwmodule.defaults", "gwmodule.provisionserver", "gwmodule.rpcd")
# Not in the default busybox of 24.10.
MISSING = "base64|dig|hostname|install|jq|stat|su|sudo|timeout|wget"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    # START and USE_PROCD are rc.common's, uci_load_validate sets variables, ash has `local`, and
    # OpenWrt's libraries are not here.
    excluded = "SC1091,SC2034,SC2154,SC3043"
    done = subprocess.run(
        ["shellcheck", "-s", "dash", "-e", excluded, str(FILES / script)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stdout == ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_applet_is_used_that_openwrt_leaves_out(script: str) -> None:
    text = re.sub(r"^\s*#.*$", "", (FILES / script).read_text(), flags=re.MULTILINE)
    assert not re.search(rf"(^|[;&|(]|\$\()\s*({MISSING})\s", text, flags=re.MULTILINE)
    assert not re.search(r"\bsleep\s+[0-9]*\.", text)


def test_the_init_script_is_one_for_procd() -> None:
    text = (FILES / "gwmodule.init").read_text()
    assert text.startswith("#!/bin/sh /etc/rc.common\n")
    assert "\nUSE_PROCD=1\n" in text
    assert "pidfile" not in text
    assert not re.search(r"[^&]&\s*$", text, flags=re.MULTILINE)


def test_the_stand_ins_are_executable() -> None:
    for name in ("rc.common", "uci", "nslookup"):
        assert (STUBS / name).stat().st_mode & 0o111
