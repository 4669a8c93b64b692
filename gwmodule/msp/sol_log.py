"""What a serial line said, by absolute offset, in bounded memory; pure.

Between the bytes stand marks: sentences about the session, among them the honest one that output
may be missing. They have numbers of their own, so that a reader who comes back misses none.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# A session that is opened again every five seconds for a quarter of an hour.
MAX_MARKS = 200


@dataclass(frozen=True, slots=True)
class Mark:
    """Said before the byte at `offset`; `gap`: bytes may be missing there. `at` is unix seconds."""

    number: int
    offset: int
    at: float
    text: str
    gap: bool


class SolLog:
    """Keeps the last `capacity` bytes."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept = bytearray()
        self._marks: deque[Mark] = deque(maxlen=MAX_MARKS)
        self._next_mark = 0
        self.end = 0

    @property
    def start(self) -> int:
        """The offset of the first byte that is still there."""
        return self.end - len(self._kept)

    @property
    def next_mark(self) -> int:
        """The number of the mark that comes next."""
        return self._next_mark

    def append(self, data: bytes) -> None:
        self._kept += data
        self.end += len(data)
        del self._kept[: -self._capacity]

    def mark(self, text: str, at: float, *, gap: bool = False) -> None:
        self._marks.append(Mark(self._next_mark, self.end, at, text, gap))
        self._next_mark += 1

    def next_item(self, offset: int, mark: int, budget: int) -> Mark | bytes | None:
        """What follows for a reader who has everything before `offset` and mark number `mark`.

        `offset` is between `start` and `end`.
        """
        following = next((m for m in self._marks if m.number >= mark), None)
        if following is not None and following.offset <= offset:
            return following
        upto = self.end if following is None else following.offset
        begin = offset - self.start
        data = bytes(self._kept[begin : begin + min(budget, upto - offset)])
        return data or None
