"""What the API needs of a gateway's live session, wherever that session lives.

`session.Sessions` fulfils it in the process that holds the links. With several nodes on one
registry, a second implementation forwards to the node that owns the session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Protocol
from uuid import UUID

from gwmodule.errors import Code
from gwmodule.msp.traffic import Traffic
from gwmodule.wire.frames import Priority, TlsMode
from gwmodule.wire.messages import Credential, Progress, Result, StreamTarget


class StreamSeam(Protocol):
    """A raw channel to a port of a device."""

    priority: Priority

    @property
    def channel(self) -> int:
        """Its number, as `boot.once` takes it."""
        ...

    async def read(self) -> bytes:
        """The next chunk as it came; b"" at the device's end; ChannelReset when it was cut."""
        ...

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None:
        """Wait until the device's side takes more; ChannelReset when it was cut."""
        ...

    def write_eof(self) -> None: ...

    def reset(self, code: Code, reason: str) -> None: ...


class SessionSeam(Protocol):
    gateway: str
    observed_address: str
    observed_port: int
    software: str
    boot_id: bytes

    @property
    def connected(self) -> bool: ...

    @property
    def rtt(self) -> float | None: ...

    @property
    def buffered(self) -> int:
        """Bytes for the gateway that it has not acknowledged."""
        ...

    async def call(
        self,
        *,
        function: str,
        arguments: bytes,
        address: IPv4Address,
        mac: bytes,
        uuid: UUID,
        credential: Credential,
        tls: TlsMode,
        pin: bytes,
        deadline: float,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Result:
        """Run one function; LinkLost when the session ended first: the outcome is unknown."""
        ...

    async def open_stream(self, target: StreamTarget, priority: Priority) -> StreamSeam:
        """ChannelReset with code and reason when the gateway refuses."""
        ...

    async def explain(
        self,
        *,
        address: IPv4Address,
        mac: bytes,
        uuid: UUID,
        pin: bytes = bytes(32),
        deadline: float = 20.0,
    ) -> Result:
        """The gateway's checklist of why a device can be reached or not. Errors as `call`."""
        ...

    async def status(self, deadline: float = 10.0) -> Result:
        """What the gateway's own status says. Errors as `call`."""
        ...

    def end(self, code: Code, reason: str) -> None:
        """Every stream and call of it learns the reason now."""
        ...


class SessionsSeam(Protocol):
    @property
    def traffic(self) -> Traffic:
        """What the sessions of this process have carried."""
        ...

    def locate(self, gateway: str) -> SessionSeam | None: ...

    def all(self) -> Sequence[SessionSeam]: ...
