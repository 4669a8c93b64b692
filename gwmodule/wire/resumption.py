"""Sequenced frames by count: what the peer may still ask for after a link broke."""

from __future__ import annotations

from collections import deque

from gwmodule.errors import RemoteProtocolError


class ReplayBuffer:
    """Keeps sent frames until the peer has acknowledged them. Counts are frames since the start."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self.acknowledged = 0
        self.sent = 0
        self.size = 0

    def append(self, frame: bytes) -> None:
        self._frames.append(frame)
        self.sent += 1
        self.size += len(frame)

    def acknowledge(self, count: int) -> None:
        """The peer has received `count` frames; RemoteProtocolError when that cannot be."""
        if count > self.sent:
            raise RemoteProtocolError(f"acknowledges {count} frames, {self.sent} were sent")
        # A lower count is a late repeat: ACK, PONG and CREDIT carry it at different moments.
        while self.acknowledged < count:
            self.size -= len(self._frames.popleft())
            self.acknowledged += 1

    def resume(self, count: int) -> list[bytes]:
        """The frames behind the peer's `count`, which a resumed session sends again first."""
        if not self.acknowledged <= count <= self.sent:
            raise RemoteProtocolError(
                f"resumes at {count}, possible is {self.acknowledged} to {self.sent}"
            )
        self.acknowledge(count)
        return list(self._frames)
