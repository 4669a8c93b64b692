"""How much of what one sender sends is worth a parse, an answer, or a line in the log.

Pure: time is an argument. A token bucket for each key, as GCRA: all that is kept of it is the time
at which it is full again.
"""

from __future__ import annotations

from collections import OrderedDict

# Forged senders are free; what we remember of them is not. 4096 buckets take half a MiB.
MAX_BUCKETS = 4096


class FloodLimit:
    """`burst` at once, `rate` per second in the long run."""

    def __init__(self, rate: float, burst: float, most: int = MAX_BUCKETS) -> None:
        self._period = 1 / rate
        self._slack = (burst - 1) * self._period
        self._most = most
        self._full_at: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, key: bytes, now: float) -> float:
        """Seconds until there is a token in `key`'s bucket; 0 when there is one now."""
        return max(0.0, self._full_at.get(key, now) - now - self._slack)

    def charge(self, key: bytes, now: float) -> float:
        """Take a token; 0, or the seconds to wait when there is none, and none is taken."""
        wait = self.wait(key, now)
        if not wait:
            self._full_at[key] = max(self._full_at.get(key, now), now) + self._period
        # Refused or not: who is forgotten must be silent, not busy.
        self._full_at.move_to_end(key)
        if len(self._full_at) > self._most:
            self._full_at.popitem(last=False)
        return wait

    def admits(self, key: bytes, now: float) -> bool:
        """Take a token of `key`'s bucket, if there is one."""
        return not self.charge(key, now)

    def refund(self, key: bytes) -> None:
        """Give the last token back."""
        if key in self._full_at:
            self._full_at[key] -= self._period
