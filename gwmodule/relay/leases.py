"""Follows dnsmasq's lease file (lan.leases says what is in it) for gateways without capture."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gwmodule.lan.leases import MAX_FILE, LeaseFile
from gwmodule.telemetry import EventLog
from gwmodule.wire.notices import Lease, LeaseEnd

# Seconds between two looks at the file's time: dnsmasq tells nobody when it writes.
INTERVAL = 5.0


class LeaseFollower:
    """`run` is a long-lived child of the composition's TaskGroup.

    `on_lease` hears what is new, changed or gone. A file that cannot be read changes nothing: why
    it cannot is in `status` until it can, and once in the log.
    """

    def __init__(
        self,
        path: str,
        on_lease: Callable[[Lease | LeaseEnd], None],
        interval: float = INTERVAL,
    ) -> None:
        self._path = Path(path)
        self._on_lease = on_lease
        self._interval = interval
        self._file = LeaseFile()
        self._read_at = 0
        self._failed = ""
        self._log = EventLog("gwmodule.relay")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                self._look()
                self._failed = ""
            except OSError as exc:
                self._fail(exc.strerror or str(exc))
            await asyncio.sleep(self._interval)

    def status(self) -> dict[str, Any]:
        """Why the file cannot be read, empty while it can; what in it was no lease."""
        return {"failed": self._failed, **self._file.counters}

    def _look(self) -> None:
        # Before the reading: what is written meanwhile makes the file newer once more.
        changed = self._path.stat().st_mtime_ns
        if changed == self._read_at:
            return
        with self._path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
        self._read_at = changed
        wall = datetime.datetime.now(datetime.UTC).timestamp()
        for lease in self._file.changes(data, wall):
            self._on_lease(lease)

    def _fail(self, reason: str) -> None:
        if reason != self._failed:
            self._log.warning("lease_file_failed", path=self._path, reason=reason)
        self._failed = reason
