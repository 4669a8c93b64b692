"""A real MSP's enrolment site on loopback, in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gwmodule.msp.database import Database, open_database
from gwmodule.msp.enrolment_site import EnrolmentSite, SiteOptions
from gwmodule.msp.enrolment_tokens import Enrolments
from gwmodule.msp.pki import Authority, fingerprint
from gwmodule.msp.registry import Registry
from gwmodule.provisioning.provision import Wanted

T = TypeVar("T")
LINK_PORT = 8883


class Msp:
    """Its clock stands where the test puts it."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.now = datetime.datetime.now(datetime.UTC).timestamp()
        self.directory = directory
        self._options = options
        self.ended: list[tuple[str, str]] = []  # sessions of whom, and why
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()

    def start(self, port: int = 0) -> None:
        self.authority = Authority.open(self.directory, self.now)
        self.authority.ensure_server_certificate(["localhost"], self.now)
        options = SiteOptions("127.0.0.1", port, **self._options)
        self.run(self._start(options))
        self.port = self.site.port

    async def _start(self, options: SiteOptions) -> None:
        self.database: Database = await open_database(str(self.directory / "registry.db"))
        self.registry = Registry(self.database)
        self.enrolments = Enrolments(self.database)
        self.site = EnrolmentSite(
            options,
            self.enrolments,
            self.authority,
            lambda: self.now,
            lambda: LINK_PORT,
            lambda *ended: self.ended.append(ended),
        )
        self.site.listen()
        self._serving = self._loop.create_task(self.site.run())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(15)

    def stop(self) -> None:
        self.run(self._stop())

    async def _stop(self) -> None:
        self._serving.cancel()
        await asyncio.wait([self._serving])
        await self.database.aclose()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.authority.certificate)

    def token(self, gateway: str = "home-1", **options: Any) -> str:
        invited = self.run(self.enrolments.invite(gateway, self.now, actor="test", **options))
        return invited.token

    def audit(self) -> list[str]:
        return [entry.action for entry in self.run(self.registry.audit_entries())]

    def allowed(self, gateway: str, certificate: Path) -> bool:
        from cryptography import x509

        shown = fingerprint(x509.load_pem_x509_certificate(certificate.read_bytes()))
        return self.run(self.registry.is_gateway_allowed(gateway, shown))


@pytest.fixture
def msp(tmp_path: Path) -> Iterator[Msp]:
    directory = tmp_path / "msp"
    directory.mkdir()
    msp = Msp(directory)
    try:
        yield msp
        msp.stop()
    finally:
        msp.end()


class Gateway:
    """A directory that stands for /etc/gwmodule."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "gwmodule.toml"
        self.key = directory / "gateway.key"
        self.certificate = directory / "gateway.crt"
        self.ca = directory / "ca.crt"
        self.token_file = directory.parent / f"{directory.name}.token"

    def wanted(self, at: Msp, token: str, **options: Any) -> Wanted:
        self.token_file.write_text(token + "\n")
        return Wanted(
            **{
                "config": self.config,
                "msp": at.address,
                "token_file": str(self.token_file),
                "ca_fingerprint": at.fingerprint,
                "lan": ("br-lan",),
                **options,
            }
        )

    def state(self) -> dict[str, tuple[int, bytes]]:
        """Names, inodes and contents: what a second run must not change."""
        return {
            file.name: (file.stat().st_ino, file.read_bytes())
            for file in sorted(self.directory.iterdir())
        }


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    directory = tmp_path / "gwmodule"
    directory.mkdir()
    return Gateway(directory)
