"""The API over HTTPS, as a technician elsewhere sees it, with three users."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gwmodule.msp.accounts import Role
from gwmodule.msp.api.listening import tcp_port, tcp_socket, tls_context
from gwmodule.msp.pki import Authority
from gwmodule.msp.server import wall_clock
from tests.msp.conftest import NOW, Service, served
from tests.msp.test_cli import ENVIRONMENT

PASSWORD = "correct horse battery"
USERS = {"ada": Role.ADMIN, "tom": Role.TECHNICIAN, "vera": Role.VIEWER}


@dataclass
class Desk:
    """A technician's home directory, and what his commands print there."""

    service: Service
    url: str
    ca: Path
    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def saved(self) -> Path:
        return self.home / "gwmodule" / "msp.json"

    async def run(
        self, *arguments: str, typed: bytes | None = None, **environment: str
    ) -> tuple[int, str, str]:
        process = await self.start(*arguments, **environment)
        out, err = await process.communicate(typed or b"")
        assert process.returncode is not None
        assert "Traceback" not in err.decode()
        return process.returncode, out.decode(), err.decode()

    async def start(self, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gwmodule.msp.cli",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=ENVIRONMENT | {"XDG_CONFIG_HOME": str(self.home)} | environment,
        )

    async def login(self, user: str) -> None:
        code, _, err = await self.run(
            "login", self.url, "--user", user, "--ca-file", str(self.ca), "--password-file", "-",
            typed=f"{PASSWORD}\n".encode(),
        )  # fmt: skip
        assert (code, err) == (0, "")


@pytest.fixture
async def desk(service: Service, tmp_path: Path) -> AsyncIterator[Desk]:
    # Its certificates are for now; the service's clock is elsewhere.
    authority = Authority.open(tmp_path / "https", wall_clock())
    authority.ensure_server_certificate(["127.0.0.1"], wall_clock())
    for name, role in USERS.items():
        await service.accounts.add_user(name, "default", role, PASSWORD, NOW, actor="test")
    sock = tcp_socket("127.0.0.1", 0, tls=True)
    context = tls_context(authority.server_certificate_path, authority.server_key_path)
    async with served(tcp_port(service.runner, sock, context, service.api.callers)) as port:
        yield Desk(service, f"https://127.0.0.1:{port}", authority.ca_path, tmp_path / "config")
