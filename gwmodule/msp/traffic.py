"""What this process has carried and refused, over all sessions it has had: numbers for the metrics.

Every key is an enum's member, so that nothing a peer says makes a new one.
"""

from __future__ import annotations

import enum
from collections import Counter

from gwmodule.errors import Code
from gwmodule.wire.frames import Priority


class Direction(enum.StrEnum):
    TO_DEVICE = "to_device"
    FROM_DEVICE = "from_device"


class Traffic:
    """Of streams whose link broke, `resumed` went on over a new one, and `lost` ended with their
    session. `links_lost` are links of sessions, by why.
    """

    def __init__(self) -> None:
        self.carried: Counter[tuple[Priority, Direction]] = Counter()
        self.refused: Counter[Code] = Counter()
        self.links_lost: Counter[Code] = Counter()
        self.resumed = 0
        self.lost = 0
