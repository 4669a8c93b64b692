r"""The life of a channel as a table; credit and queues are no states and stay out of it.

          open()                                   OPEN received
             |                                          |
          OPENING --ACCEPT--> OPEN <---accept()--- OFFERED
             |               /    \
           REFUSE      EOF sent    EOF received
             |             /          \
             |  HALF_CLOSED_LOCAL  HALF_CLOSED_REMOTE
             |             \          /
             +-----------> CLOSED <--+---- RESET received (answered by a RESET)
                             ^
                  RESETTING -+-- our RESET is answered, or crossed the peer's end
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Container

from gwmodule.errors import ChannelStateError
from gwmodule.wire.credit import ReceiveWindow, SendWindow
from gwmodule.wire.frames import MAX_CHANNEL, Priority


# Integers because each DATA looks into the table: the hash of a plain enumeration's member is a
# call in Python.
class State(enum.IntEnum):
    OPENING = enum.auto()
    OFFERED = enum.auto()
    OPEN = enum.auto()
    HALF_CLOSED_LOCAL = enum.auto()
    HALF_CLOSED_REMOTE = enum.auto()
    RESETTING = enum.auto()
    # Our EOF went out before our RESET: the peer may have closed on its own EOF and never answer.
    RESETTING_AFTER_EOF = enum.auto()
    CLOSED = enum.auto()


class Input(enum.IntEnum):
    ACCEPT_SENT = enum.auto()
    ACCEPT_RECEIVED = enum.auto()
    REFUSE_SENT = enum.auto()
    REFUSE_RECEIVED = enum.auto()
    DATA_RECEIVED = enum.auto()
    EOF_SENT = enum.auto()
    EOF_RECEIVED = enum.auto()
    RESET_SENT = enum.auto()
    RESET_RECEIVED = enum.auto()


TRANSITIONS: dict[State, dict[Input, State]] = {
    State.OPENING: {
        Input.ACCEPT_RECEIVED: State.OPEN,
        Input.REFUSE_RECEIVED: State.CLOSED,
        Input.RESET_SENT: State.RESETTING,
        Input.RESET_RECEIVED: State.CLOSED,
    },
    State.OFFERED: {
        Input.ACCEPT_SENT: State.OPEN,
        Input.REFUSE_SENT: State.CLOSED,
        Input.RESET_RECEIVED: State.CLOSED,
    },
    State.OPEN: {
        Input.DATA_RECEIVED: State.OPEN,
        Input.EOF_SENT: State.HALF_CLOSED_LOCAL,
        Input.EOF_RECEIVED: State.HALF_CLOSED_REMOTE,
        Input.RESET_SENT: State.RESETTING,
        Input.RESET_RECEIVED: State.CLOSED,
    },
    State.HALF_CLOSED_LOCAL: {
        Input.DATA_RECEIVED: State.HALF_CLOSED_LOCAL,
        Input.EOF_RECEIVED: State.CLOSED,
        Input.RESET_SENT: State.RESETTING_AFTER_EOF,
        Input.RESET_RECEIVED: State.CLOSED,
    },
    State.HALF_CLOSED_REMOTE: {
        Input.EOF_SENT: State.CLOSED,
        Input.RESET_SENT: State.RESETTING,
        Input.RESET_RECEIVED: State.CLOSED,
    },
    State.RESETTING: {
        Input.ACCEPT_RECEIVED: State.RESETTING,
        Input.REFUSE_RECEIVED: State.CLOSED,
        Input.DATA_RECEIVED: State.RESETTING,
        Input.EOF_RECEIVED: State.RESETTING,
        Input.RESET_RECEIVED: State.CLOSED,
    },
    State.RESETTING_AFTER_EOF: {
        Input.DATA_RECEIVED: State.RESETTING_AFTER_EOF,
        Input.EOF_RECEIVED: State.CLOSED,
        Input.RESET_RECEIVED: State.CLOSED,
    },
    State.CLOSED: {},
}
RESETTING = (State.RESETTING, State.RESETTING_AFTER_EOF)
SENDING = (State.OPEN, State.HALF_CLOSED_REMOTE)

# Bytes per second, averaged over two: 64 kbit/s. A stream above is a flood, and takes its turns
# with bulk so that it does not hold up the keys of others.
FLOOD_RATE = 8000
_FLOOD = 2 * FLOOD_RATE


class Meter:
    """How much an interactive stream sends: a bucket that leaks at FLOOD_RATE. The stream floods
    from when the bucket is full until it is half empty, which silence makes it within a second.
    """

    __slots__ = ("_at", "_level", "flooding")

    def __init__(self) -> None:
        self._level = self._at = 0.0
        self.flooding = False

    def count(self, size: int, now: float) -> bool:
        """Add `size` bytes; whether `flooding` has changed by it."""
        left = max(0.0, self._level - (now - self._at) * FLOOD_RATE)
        before, self._at = self.flooding, now
        self._level = min(left + size, _FLOOD)
        self.flooding = self._level >= _FLOOD if not before else self._level > _FLOOD / 2
        return self.flooding is not before


class Channel:
    """State, credit and send queue of one channel."""

    __slots__ = (
        "eof_queued",
        "meter",
        "number",
        "priority",
        "queue",
        "queued",
        "receive_window",
        "send_window",
        "state",
        "turn",
        "was_full",
    )

    def __init__(self, number: int, state: State, priority: Priority, window: int) -> None:
        self.number = number
        self.state = state
        self.classify(priority)
        self.receive_window = ReceiveWindow(window)
        self.send_window = SendWindow()
        # One entry a `send`: chunks keep their boundaries, amtterm loses what is glued together.
        self.queue: deque[bytes] = deque()
        self.queued = 0
        self.eof_queued = False
        self.was_full = False

    def advance(self, event: Input) -> None:
        """Follow the table; a missing pair is the peer's error (ours are checked first)."""
        state = TRANSITIONS[self.state].get(event)
        if state is None:
            raise ChannelStateError(
                f"{event.name} on channel {self.number}, which is {self.state.name}"
            )
        self.state = state

    def classify(self, priority: Priority) -> None:
        """From now on it is of this class; flooding is measured afresh."""
        self.priority = self.turn = priority
        self.meter = Meter()

    def put(self, data: bytes, now: float) -> None:
        """Queue one chunk, and take turns with bulk from when it floods until it falls."""
        self.queue.append(data)
        self.queued += len(data)
        if self.priority is Priority.INTERACTIVE and self.meter.count(len(data), now):
            self.turn = Priority.BULK if self.meter.flooding else Priority.INTERACTIVE

    def calm(self, now: float) -> bool:
        """Whether it floods no longer, by having been silent."""
        if self.meter.count(0, now):
            self.turn = self.priority
        return not self.meter.flooding

    @property
    def sendable(self) -> bool:
        """Something may leave now: data under credit, or the EOF behind the last byte."""
        if self.state not in SENDING:
            return False
        if self.queue:
            return self.send_window.available > 0
        return self.eof_queued

    def take(self, size: int) -> bytes:
        """Up to `size` bytes of the oldest chunk, within credit."""
        chunk = self.queue[0]
        size = min(size, self.send_window.available)
        if len(chunk) > size:
            self.queue[0] = chunk[size:]
            chunk = chunk[:size]
        else:
            self.queue.popleft()
        self.queued -= len(chunk)
        self.send_window.sent += len(chunk)
        return chunk

    def drop_queue(self) -> None:
        self.queue.clear()
        self.queued = 0
        self.eof_queued = False


class ChannelNumbers:
    """The numbers under which one side opens channels: every second one, round and round.

    What was sent about a channel may still be on its way when it has ended here; so its number
    rests until the peer has acknowledged everything up to that end.
    """

    def __init__(self, first: int) -> None:
        self._first = self._next = first
        # Those that rest, and the count of sent frames at which the peer knows of their end.
        self._resting: deque[tuple[int, int]] = deque()

    def retire(self, number: int, known_at: int) -> None:
        self._resting.append((number, known_at))

    def free(self, acknowledged: int, *taken: Container[int]) -> int:
        """The next one that neither rests nor is in `taken`; ChannelStateError if there is none.

        `acknowledged`: how many of our frames the peer has received.
        """
        while self._resting and self._resting[0][1] <= acknowledged:
            self._resting.popleft()
        resting = {number for number, _ in self._resting}
        for _ in range(MAX_CHANNEL // 2 + 1):
            number = self._next
            self._next = number + 2 if number + 2 <= MAX_CHANNEL else self._first
            if number not in resting and not any(number in numbers for numbers in taken):
                return number
        raise ChannelStateError("all channel numbers are in use")
