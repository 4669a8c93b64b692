"""How much of what one sender sends is worth a parse, or a line in the log."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

# Forged senders are free; what we remember of them is not. 4096 buckets take 1 MiB.
MAX_BUCKETS = 4096


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled: float


class FloodLimit:
    """A token bucket per key: `burst` at once, `rate` per second in the long run."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[bytes, _Bucket] = OrderedDict()

    def admits(self, key: bytes, now: float) -> bool:
        """Take a token of `key`'s bucket, if there is one."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = _Bucket(self._burst, now)
        else:
            self._buckets.move_to_end(key)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.filled) * self._rate)
        bucket.filled = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True
