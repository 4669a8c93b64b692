"""Whether the peer is still there: PINGs, round trips, and the silence that ends a link."""

from __future__ import annotations

import random

from gwmodule.config import LivenessConfig
from gwmodule.errors import RemoteProtocolError

# A peer that answers no PING gets no more of them; no round trip takes sixteen intervals.
MAX_PINGS = 16


class Liveness:
    """Of one session, link after link. Both ends keep the deadline, and only one of them pings.

    Deadlines run on what was received, whatever is written: a full send buffer proves nothing.
    All times are in seconds, `now` is the loop's.
    """

    def __init__(self, config: LivenessConfig, rng: random.Random, *, pings: bool) -> None:
        self._config = config
        self._rng = rng
        self._pings = pings
        # Of the present link, or the last one: whether the peer said anything, and the last round
        # trip that is known.
        self.heard = False
        self.rtt = 0.0
        self._last_received = 0.0
        self._ping_at: float | None = None
        self._cookie = 0
        self._unanswered: dict[int, float] = {}

    def start(self, now: float, rtt: float) -> None:
        """A link is up; `rtt` is what is known of it before the first PONG."""
        self.stop()
        self.heard = False
        self.rtt = rtt
        self._last_received = now
        if self._pings:
            # Ten thousand gateways that came back together must not ping in step.
            self._ping_at = now + self._config.interval * self._rng.random()

    def stop(self) -> None:
        self._ping_at = None
        self._unanswered.clear()

    def received(self, now: float) -> None:
        """At least one whole frame came."""
        self.heard = True
        self._last_received = now

    def next_timeout(self) -> float:
        deadline = self._last_received + self._config.timeout
        return deadline if self._ping_at is None else min(deadline, self._ping_at)

    def silence(self, now: float) -> float | None:
        """How long nothing was received, when that is long enough to give the link up."""
        silent = now - self._last_received
        return silent if silent >= self._config.timeout else None

    def next_ping(self, now: float) -> int | None:
        """The cookie of the PING that must go out now, if one must."""
        if self._ping_at is None or now < self._ping_at:
            return None
        self._ping_at = now + self._config.interval
        if len(self._unanswered) >= MAX_PINGS:
            return None
        self._cookie = (self._cookie + 1) & 0xFFFFFFFF
        self._unanswered[self._cookie] = now
        return self._cookie

    def answered(self, cookie: int, now: float) -> float:
        """The round trip that ends with this PONG; RemoteProtocolError when it answers no PING."""
        sent = self._unanswered.get(cookie)
        if sent is None:
            raise RemoteProtocolError(f"PONG {cookie} answers no PING")
        # A slow peer answers only the newest of several PINGs.
        self._unanswered = {c: at for c, at in self._unanswered.items() if at > sent}
        self.rtt = now - sent
        return self.rtt
