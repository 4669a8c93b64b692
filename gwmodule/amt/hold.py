"""SOL hold: keeps a SOL session alive while the link between its two ends is down.

AMT drops a session when it hears nothing for HostSessionRxTimeout (10 s in amtterm), and amtterm
gives up after 20 s of silence from the device; an outage of the WAN need not be either's business.
Each end of a stream therefore speaks for the missing one, in the smallest way the protocol has:

    gateway   a device heartbeat without console bytes behind it for rx_timeout / 3
              --> one heartbeat to the device
    MSP       nothing from the device for heartbeat interval + rx_timeout / 3
              --> one heartbeat to the tool

Only plaintext SOL can be held, only at a message boundary, and only by what the tool itself asked
for in its StartSolRedirection. Whatever the tracker does not understand ends the hold of that
stream for good; the bytes pass on untouched either way.
"""

from __future__ import annotations

from gwmodule.amt.redirection import (
    Direction,
    MessageTracker,
    MessageType,
    SolSettings,
    build_sol_plain,
)

# Of rx_timeout: late enough not to speak for an end that is only slow, early enough to be heard.
_PATIENCE = 1 / 3
# Nobody checks sequence numbers (reference/amt-protocols.md 2.3); the held end keeps its own.
_HEARTBEAT = build_sol_plain(MessageType.SOL_HEARTBEAT, 0)


class _Hold:
    """Both directions of one stream, followed but not touched."""

    def __init__(self) -> None:
        self._to_device = MessageTracker(Direction.TO_DEVICE)
        self._from_device = MessageTracker(Direction.FROM_DEVICE)
        self._due: float | None = None
        self.heartbeats = 0

    @property
    def lost(self) -> bool:
        """The stream is not (or no longer) one that can be held."""
        return self._to_device.lost or self._from_device.lost

    def next_timeout(self) -> float | None:
        return None if self.lost else self._due

    @property
    def _settings(self) -> SolSettings | None:
        return self._to_device.settings

    def _patience(self, settings: SolSettings) -> float:
        return settings.host_session_rx_timeout_ms / 1000 * _PATIENCE


class DeviceHold(_Hold):
    """The gateway's end: answers the device's heartbeats for a console that cannot."""

    def to_device(self, data: bytes, now: float) -> None:
        """Bytes of the console are on their way to the device."""
        self._to_device.receive_data(data)
        self._due = None

    def from_device(self, data: bytes, now: float) -> None:
        before = self._from_device.heartbeats
        self._from_device.receive_data(data)
        settings = self._settings
        heard = self._from_device.heartbeats > before
        if heard and settings is not None and self._due is None:
            self._due = now + self._patience(settings)

    def handle_timeout(self, now: float) -> bytes:
        """What to send to the device now: a heartbeat, or nothing."""
        if self._due is None or now < self._due or self.lost:
            return b""
        self._due = None
        if not self._to_device.at_boundary:
            return b""
        self.heartbeats += 1
        return _HEARTBEAT


class ToolHold(_Hold):
    """The MSP's end: keeps the technician's tool patient while the device cannot be heard."""

    def to_device(self, data: bytes, now: float) -> None:
        was_started = self._settings is not None
        self._to_device.receive_data(data)
        if not was_started:
            self._wait(now)

    def from_device(self, data: bytes, now: float) -> None:
        self._from_device.receive_data(data)
        self._wait(now)

    def handle_timeout(self, now: float) -> bytes:
        """What to send to the tool now: a heartbeat, or nothing."""
        if self._due is None or now < self._due or self.lost:
            return b""
        settings = self._settings
        assert settings is not None  # noqa: S101 - _due is only set with settings
        self._due = now + settings.heartbeat_interval_ms / 1000
        if not self._from_device.at_boundary:
            return b""
        self.heartbeats += 1
        return _HEARTBEAT

    def _wait(self, now: float) -> None:
        settings = self._settings
        # A tool that asked for no heartbeats does not count on any.
        if settings is not None and settings.heartbeat_interval_ms:
            self._due = now + settings.heartbeat_interval_ms / 1000 + self._patience(settings)
