"""The first frame of a link, before there is a session to give it to.

    gateway                          MSP
       | GREETING(token, received) --> |      token zero: a fresh session, please
       | <-- WELCOME(resumed, token)   |      resumed 0: the old session is gone, this one is fresh
       |     or GOAWAY(code, reason)   |

Whatever the peer sent behind its first frame belongs to the session: `rest`.
"""

from __future__ import annotations

from typing import TypeAlias

from gwmodule.errors import FrameLayoutError, FrameSizeError
from gwmodule.wire import codec
from gwmodule.wire.events import LinkDead
from gwmodule.wire.frames import CONTROL_CHANNEL, FrameType
from gwmodule.wire.messages import GoAway, Greeting, Welcome

# Both first frames are under 700 bytes with every text at its longest.
MAX_FIRST_FRAME = 1024

FirstFrame: TypeAlias = Greeting | Welcome | GoAway


class Handshake:
    """Waits for one first frame of the `expected` type until `deadline` (loop time)."""

    # There is no bulk before there is a session.
    bulk_chunk = 0

    def __init__(self, expected: FrameType, deadline: float) -> None:
        self._expected = expected
        self._deadline: float | None = deadline
        self._decoder = codec.Decoder()
        self._size = 0
        self._event: FirstFrame | LinkDead | None = None

    def shares_the_line(self, now: float) -> bool:
        return False

    def receive_data(self, data: bytes, now: float) -> None:
        """RemoteProtocolError when the first frame is anything but what is expected."""
        self._decoder.receive(data)
        if self._deadline is None:
            # The first frame is out; the rest is the session's.
            return
        self._size += len(data)
        frame = self._decoder.next_frame()
        if frame is None:
            if self._size > MAX_FIRST_FRAME:
                raise FrameSizeError(f"first frame over {MAX_FIRST_FRAME} bytes")
            return
        if frame.channel != CONTROL_CHANNEL:
            raise FrameLayoutError(f"{frame.type.name} on channel {frame.channel}, expected 0")
        if frame.type is FrameType.GOAWAY:
            self._event = codec.parse_goaway(frame.payload)
        elif frame.type is not self._expected:
            raise FrameLayoutError(f"{frame.type.name} instead of {self._expected.name}")
        elif frame.type is FrameType.GREETING:
            self._event = codec.parse_greeting(frame.payload)
        else:
            self._event = codec.parse_welcome(frame.payload)
        self._deadline = None

    def next_event(self) -> FirstFrame | LinkDead | None:
        event, self._event = self._event, None
        return event

    def rest(self) -> bytes:
        return self._decoder.rest()

    def data_to_send(self, budget: int) -> bytes:
        return b""

    def next_timeout(self) -> float | None:
        return self._deadline

    def handle_timeout(self, now: float) -> None:
        if self._deadline is not None and now >= self._deadline:
            self._event = LinkDead(now - self._deadline)
            self._deadline = None
