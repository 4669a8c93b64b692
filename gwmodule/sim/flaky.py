"""How a flaky device behaves: for each request one mood, drawn from a seeded generator.

The same seed and the same requests in the same order meet the same moods.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from gwmodule.sim.profiles import Mischief


class Mood(enum.Enum):
    """`DROP_BEFORE` does nothing and closes; `DROP_AFTER` does it, and closes without an answer."""

    GOOD = enum.auto()
    DROP_BEFORE = enum.auto()
    DROP_AFTER = enum.auto()
    FAULT = enum.auto()


@dataclass(frozen=True, slots=True)
class Turn:
    """What happens to one request; `delay` is seconds before its answer."""

    mood: Mood = Mood.GOOD
    delay: float = 0.0


class Temper:
    """Draws a Turn for each request. Only those that a login let through are played with."""

    def __init__(self, mischief: Mischief, rng: random.Random) -> None:
        self._mischief = mischief
        self._rng = rng

    def next_turn(self) -> Turn:
        mischief = self._mischief
        # Always both draws, so that one chance does not shift the other's sequence.
        luck, patience = self._rng.random(), self._rng.random()
        delay = mischief.delay if patience < mischief.slow else 0.0
        if luck < mischief.drop:
            return Turn(Mood.DROP_AFTER if luck < mischief.drop / 2 else Mood.DROP_BEFORE, delay)
        if luck < mischief.drop + mischief.fault:
            return Turn(Mood.FAULT, delay)
        return Turn(Mood.GOOD, delay)
