"""A PostgreSQL server for tests: Debian's programs, a private unix socket, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

# What Debian's package calls its user; the server refuses to run as root.
USER = "postgres"


def programs() -> Path | None:
    """Where `initdb` and `pg_ctl` are: the newest version that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


def required() -> Path:
    """The same, for tests that cannot do without: they are skipped, but never in CI."""
    found = programs()
    if found is None:
        problem = "PostgreSQL is not installed (Debian package postgresql)"
        if "CI" in os.environ:
            pytest.fail(problem, pytrace=False)
        pytest.skip(problem)
    return found


class Server:
    def __init__(self, programs: Path) -> None:
        self._programs = programs
        # Short: a unix socket's path has 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="gwpg-", dir="/tmp"))
        self._user = USER if os.geteuid() == 0 else None
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(self.directory, entry.pw_uid, entry.pw_gid)
        self._data = self.directory / "data"
        options = ("-A", "trust", "-U", "gwmodule", "-E", "UTF8", "--locale=C", "-N")
        self._run("initdb", "-D", str(self._data), *options)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://gwmodule@/{database}?host={self.directory}"

    def start(self, *, fsync: bool = False) -> None:
        # Nobody cuts the power of a test.
        durable = "on" if fsync else "off"
        options = f"-c listen_addresses= -c fsync={durable} -k {self.directory}"
        log = str(self.directory / "log")
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """As an administrator who does not wait for clients."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "fast", "stop")

    def crash(self) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        subprocess.run(
            [self._programs / "pg_ctl", "-D", self._data, "-m", "immediate", "stop"],
            user=self._user, cwd="/", capture_output=True, check=False,
        )  # fmt: skip
        shutil.rmtree(self.directory, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            user=self._user, group=self._user, cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            check=False, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{program}: {done.stderr}"
