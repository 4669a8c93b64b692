"""Places of which there are only so many, shared by groups: by networks, or by tenants.

A fixed share would be wrong: one group may be thousands, and another nobody. So a group may take
every place as long as nobody else wants one. When none is left, a newcomer whose group holds fewer
than another one takes the place of one of that: of the oldest that is idle, else of the oldest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from gwmodule.flood import FloodLimit
from gwmodule.telemetry import EventLog

# Lines in the log about one group, per second.
_LINES = 1 / 60

T = TypeVar("T")


class Places(Generic[T]):
    """`event` and `kind` are what the log calls a full port and a group.

    Who is `idle` loses nothing, and goes for a newcomer of his own group too. `refused` and
    `displaced` count what the bound has cost.
    """

    def __init__(
        self,
        event: str,
        kind: str,
        port: str,
        most: int,
        idle: Callable[[T], bool] | None = None,
    ) -> None:
        self.port = port
        self._event = event
        self._kind = kind
        self._most = most
        self._idle = idle
        self._groups: dict[str, dict[T, None]] = {}
        self._group_of: dict[T, str] = {}
        self._lines = FloodLimit(_LINES, 1)
        self._log = EventLog("gwmodule.msp")
        self.refused = 0
        self.displaced = 0

    def __len__(self) -> int:
        return len(self._group_of)

    def __contains__(self, who: T) -> bool:
        return who in self._group_of

    def all(self) -> list[T]:
        return list(self._group_of)

    def group_of(self, who: T) -> str | None:
        return self._group_of.get(who)

    @property
    def full(self) -> bool:
        return len(self) >= self._most

    def enter(self, who: T, group: str, now: float) -> T | None:
        """Who has to go for it: nobody, somebody who was there, or `who` himself."""
        loser = None
        if self.full:
            loser = self._loser(who, group, now)
            if loser is who:
                self.refused += 1
                return who
            self.displaced += 1
            self.leave(loser)
        self._groups.setdefault(group, {})[who] = None
        self._group_of[who] = group
        return loser

    def leave(self, who: T) -> None:
        group = self._group_of.pop(who, None)
        if group is not None:
            members = self._groups[group]
            del members[who]
            if not members:
                del self._groups[group]

    def _loser(self, who: T, group: str, now: float) -> T:
        largest = max(self._groups, key=lambda name: len(self._groups[name]))
        held = len(self._groups[largest])
        if self._lines.admits(largest.encode(), now):
            named = {self._kind: largest}
            self._log.warning(self._event, port=self.port, **named, connections=held)
        own = self._groups.get(group, {})
        # One more here and one less there must not turn the tables: they would swap for ever.
        if len(own) + 1 < held:
            others = self._groups[largest]
            return self._oldest_idle(others, next(iter(others)))
        return self._oldest_idle(own, who)

    def _oldest_idle(self, members: Iterable[T], otherwise: T) -> T:
        return otherwise if self._idle is None else next(filter(self._idle, members), otherwise)
