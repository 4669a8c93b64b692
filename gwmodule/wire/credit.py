"""Credit of a channel in one direction: an absolute limit that only rises (RFC 9000, 4.1).

Absolute limits make repeats harmless, so a resumed session advertises them again without any
bookkeeping.
"""

from __future__ import annotations

from gwmodule.errors import FlowControlError, LocalProtocolError


class MemoryPool:
    """The one bound over all receive windows of a session."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.reserved = 0

    def reserve(self, size: int) -> bool:
        if self.reserved + size > self.total:
            return False
        self.reserved += size
        return True

    def release(self, size: int) -> None:
        self.reserved -= size


class ReceiveWindow:
    """What we let the peer send on one channel."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.limit = size
        self.received = 0
        self.consumed = 0
        self._raised_at: float | None = None

    @property
    def unread(self) -> int:
        """Bytes received and not yet given back."""
        return self.received - self.consumed

    def receive(self, size: int) -> None:
        # Charged on arrival, not on delivery: while the reader is paused the peer must still be
        # held to `size` bytes of our memory.
        if self.received + size > self.limit:
            raise FlowControlError(
                f"{size} bytes behind {self.received}, but the limit is {self.limit}"
            )
        self.received += size

    def consume(self, size: int) -> int | None:
        """Give back `size` bytes; return the limit to advertise, if it is worth a frame."""
        self.consumed += size
        if self.consumed > self.received:
            raise LocalProtocolError(f"consumed {self.consumed} of {self.received} bytes")
        if self.consumed + self.size - self.limit < self.size // 2:
            return None
        self.limit = self.consumed + self.size
        return self.limit

    def wants_growth(self, now: float, rtt: float) -> bool:
        """Asked at each raise of the limit: is half a window gone within two round trips?

        Then the window, not the line, is what holds the sender back.
        """
        last, self._raised_at = self._raised_at, now
        return last is not None and now - last < 2 * rtt

    def grow(self, size: int) -> int:
        """Make the window `size` bytes; return the limit to advertise."""
        self.size = size
        self.limit = max(self.limit, self.consumed + size)
        return self.limit


class SendWindow:
    """What the peer lets us send on one channel."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.sent = 0

    @property
    def available(self) -> int:
        return self.limit - self.sent

    def raise_to(self, limit: int) -> bool:
        """True when this opened a closed window. Lower limits are late repeats and ignored."""
        if limit <= self.limit:
            return False
        was_shut = self.available == 0
        self.limit = limit
        return was_shut
