"""The API over TCP, with a user of each role in two tenants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from gwmodule.msp.accounts import Principal, Role
from gwmodule.msp.api import tcp_socket
from gwmodule.msp.api.listening import tcp_port
from gwmodule.msp.records import AuditEntry
from tests.msp.conftest import NOW, PC, Service, served

PASSWORD = "correct horse battery"


@dataclass
class Site:
    """`tokens` by (tenant, role); `request` gives status and decoded body."""

    service: Service
    url: str
    http: aiohttp.ClientSession
    tokens: dict[tuple[str, Role], str] = field(default_factory=dict)

    def token(self, role: Role = Role.ADMIN, tenant: str = "default") -> str:
        return self.tokens[tenant, role]

    async def request(
        self, method: str, path: str, body: Any = None, *, token: str = "", **more: Any
    ) -> tuple[int, Any]:
        headers = more.pop("headers", {})
        if token:
            headers = headers | {"Authorization": f"Bearer {token}"}
        async with self.http.request(
            method, self.url + path, json=body, headers=headers, **more
        ) as response:
            data = await response.read()
            if response.content_type == "application/json":
                return response.status, await response.json()
            return response.status, data.decode()

    async def audited(self, actor: str, action: str) -> AuditEntry:
        """His last entry of this kind; what ends a stream comes after its last word."""
        async with asyncio.timeout(5):
            while True:
                for entry in await self.service.registry.audit_entries(uuid=PC):
                    if (entry.actor, entry.action) == (actor, action):
                        return entry
                await asyncio.sleep(0.01)


@pytest.fixture
async def site(service: Service) -> AsyncIterator[Site]:
    sock = tcp_socket("127.0.0.1", 0, tls=False)
    listening = served(tcp_port(service.runner, sock, None, service.api.callers))
    async with listening as port, aiohttp.ClientSession() as http:
        site = Site(service, f"http://127.0.0.1:{port}", http)
        for tenant in ("default", "other"):
            for role in Role:
                name = f"{role}@{tenant}"
                await service.accounts.add_user(name, tenant, role, PASSWORD, NOW, actor="test")
                known = await service.accounts.principal(name)
                assert known is not None
                site.tokens[tenant, role] = service.api.tokens.for_api(known)
        yield site


def principal(role: Role = Role.ADMIN, tenant: str = "default") -> Principal:
    return Principal(f"{role}@{tenant}", tenant, role, "password")
