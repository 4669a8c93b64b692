"""How long to wait before the next attempt: doubling with full jitter, never giving up."""

from __future__ import annotations

import random

from gwmodule.config import BackoffConfig


class Backoff:
    def __init__(self, config: BackoffConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self._failures = 0
        self._skipped = False

    def next_delay(self) -> float:
        """Seconds to wait now; after a power cut a town's gateways must not dial in step."""
        ceiling: float = min(self._config.cap, self._config.first * 2 ** min(self._failures, 32))
        self._failures += 1
        # Half fixed, half random: a gateway alone does not wait in vain, a thousand spread out.
        return ceiling / 2 + self._rng.random() * ceiling / 2

    def skip(self) -> bool:
        """Whether to dial without a wait, as the MSP sends us on: once, until a link has lived."""
        skipped, self._skipped = self._skipped, True
        return not skipped

    def link_ended(self, lifetime: float) -> None:
        """Start over only after a link that lived: one that is dropped at once is a failure too."""
        if lifetime >= self._config.healthy:
            self.reset()

    def reset(self) -> None:
        """The way to the MSP changed: what failed before says nothing about it."""
        self._failures = 0
        self._skipped = False
