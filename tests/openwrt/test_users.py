"""The installed packages as procd starts them: two users, one shared group, one capability."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.openwrt.ipk import CONFIG, MINOR, Ipk, buildable

pytestmark = buildable

PYTHON = shutil.which(f"python{MINOR}", path="/usr/bin:/usr/local/bin")
# The ids of the packages' Require-User.
RELAY, CAPTURE, GROUP = 971, 972, 971
CONFINED = ["setpriv", f"--regid={GROUP}", "--clear-groups", "--no-new-privs"]


def can_switch() -> bool:
    command = [*CONFINED, f"--reuid={CAPTURE}", "--inh-caps=+net_raw", "--ambient-caps=+net_raw"]
    try:
        return subprocess.run([*command, "true"], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture
def router(packages: dict[str, Ipk]) -> Iterator[Path]:
    """All packages and scapy, in a folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="gwmodule-") as name:
        root = Path(name)
        root.chmod(0o755)
        for ipk in packages.values():
            ipk.unpack(root)
        site = root / f"usr/lib/python{MINOR}/site-packages"
        installed = importlib.metadata.distribution("scapy").locate_file("scapy")
        shutil.copytree(str(installed), site / "scapy")
        launcher = root / "usr/bin/gwmodule"
        private = f'"{root}/usr/lib/gwmodule"\nsys.path.insert(0, "{site}")'
        launcher.write_text(launcher.read_text().replace('"/usr/lib/gwmodule"', private))
        for path in root.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (root / "run").mkdir()
        (root / "run-capture").mkdir()
        os.chown(root / "run", RELAY, GROUP)
        os.chown(root / "run-capture", CAPTURE, GROUP)
        (root / "run-capture").chmod(0o750)
        config = root / "gwmodule"
        text = CONFIG.format(folder=root / "run", capture=1)
        config.write_text(text.replace("run/capture.sock", "run-capture/capture.sock"))
        os.chown(config, 0, GROUP)
        config.chmod(0o640)
        yield root


def status(root: Path) -> dict[str, object]:
    done = subprocess.run(
        [
            *(str(PYTHON), "-IB", f"{root}/usr/bin/gwmodule"),
            *("status", "--json", "--config", f"{root}/gwmodule"),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


@pytest.mark.root
@pytest.mark.skipif(PYTHON is None, reason="needs a Python that every user can run")
def test_relay_and_capture_meet_under_their_own_users(router: Path) -> None:
    if os.geteuid() != 0 or not can_switch():
        pytest.skip("needs root and setpriv")
    base = [str(PYTHON), "-IB", f"{router}/usr/bin/gwmodule"]
    config = ["--config", f"{router}/gwmodule"]
    capture = [*CONFINED, f"--reuid={CAPTURE}", "--inh-caps=+net_raw", "--ambient-caps=+net_raw"]
    relay = [*CONFINED, f"--reuid={RELAY}", "--inh-caps=-all", "--bounding-set=-all"]
    processes = []
    with ExitStack() as stack:
        for confined, verb in (
            (capture, ["capture", "--allow-user", str(RELAY)]),
            (relay, ["relay"]),
        ):
            process = stack.enter_context(
                subprocess.Popen([*confined, *base, *verb, *config], cwd="/")
            )
            stack.callback(process.terminate)
            processes.append(process)
        deadline = time.monotonic() + 60
        connected = False
        while not connected and time.monotonic() < deadline:
            assert all(process.poll() is None for process in processes)
            seen = status(router).get("capture")
            connected = isinstance(seen, dict) and seen["connected"]
            time.sleep(0.2)
        assert connected
        # Both have given up what they were started with.
        for process in processes:
            text = Path(f"/proc/{process.pid}/status").read_text()
            assert "CapEff:\t0000000000000000" in text
            assert "NoNewPrivs:\t1" in text
