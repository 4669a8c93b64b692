"""`make install`, below a prefix of one's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gwmodule import __version__

TREE = Path(__file__).parents[2]


def installed(prefix: Path, python: Path) -> Path:
    """The folder of commands."""
    environment = {**os.environ, "PREFIX": str(prefix), "DESTDIR": "", "PYTHON": str(python)}
    subprocess.run([TREE / "systemd" / "install.sh"], check=True, env=environment)
    return prefix / "bin"


def run(command: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([command, *arguments], capture_output=True, text=True, timeout=60)


def test_both_commands_run_from_their_own_folder(tmp_path: Path) -> None:
    commands = installed(tmp_path, Path(sys.executable))
    for name in ("gwmodule", "gwmodule-msp"):
        done = run(commands / name, "--version")
        assert (done.returncode, done.stdout) == (0, f"{name} {__version__}\n"), done.stderr
    assert (tmp_path / "lib/systemd/system/gwmodule-relay.service").exists()
    assert not list(tmp_path.rglob("sim"))


def test_a_library_that_is_missing_is_named_and_no_service_manager_tries_again(
    tmp_path: Path,
) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    commands = installed(tmp_path, bare / "bin" / "python")
    done = run(commands / "gwmodule-msp", "devices")
    assert done.returncode == 78
    assert done.stderr == f"gwmodule-msp: {bare}/bin/python has no module aiohttp\n"
