"""One session: channels, control messages, credit, priorities and replay over a chain of links.

What leaves, and in which order, is decided at the last moment, when `data_to_send` is asked:

    1. link frames      PONG, PING, ACK, CREDIT, GOAWAY: not counted, lost with their link
    2. replay           after a resume, what the peer has not received
    3. control          OPEN, ACCEPT, REFUSE, RESET, then messages under the credit of channel 0
    4. interactive      round robin; what floods goes with 5 until it falls
    5. bulk             round robin; while it waits it still gets one byte in `bulk_share`

Frames of 2 to 5 are counted and kept for replay when they leave. A session ends by `abandon`; its
owner then makes a new Mux. There is no way to merge an old session's state into a new one.
"""

from __future__ import annotations

import enum
import random
from collections import deque

from gwmodule.config import LivenessConfig, MuxConfig
from gwmodule.errors import (
    ChannelStateError,
    Code,
    FrameLayoutError,
    LocalProtocolError,
    RemoteProtocolError,
)
from gwmodule.wire import codec
from gwmodule.wire.channel import RESETTING, SENDING, Channel, ChannelNumbers, Input, State
from gwmodule.wire.codec import Decoder, Frame
from gwmodule.wire.control import build_message, parse_message
from gwmodule.wire.credit import MemoryPool, ReceiveWindow, SendWindow
from gwmodule.wire.events import (
    ChannelAccepted,
    ChannelEnded,
    ChannelOpened,
    ChannelWritable,
    DataReceived,
    EofReceived,
    Event,
    LinkDead,
    MessageReceived,
    PeerGoingAway,
    RoundTrip,
    SessionReset,
)
from gwmodule.wire.frames import (
    CONTROL_CHANNEL,
    FIRST_SEQUENCED,
    HEADER_SIZE,
    MAX_PAYLOAD,
    MESSAGES,
    FrameType,
    Priority,
)
from gwmodule.wire.liveness import Liveness
from gwmodule.wire.messages import GoAway, Message, Target
from gwmodule.wire.resumption import ReplayBuffer

# An ACK of its own after this much; PING, PONG and CREDIT carry the count anyway.
ACK_FRAMES = 64
ACK_BYTES = 128 * 1024
# Answers that a peer may make us queue by flooding OPENs and RESETs without reading them.
MAX_ANSWERS = 1024
# Messages that wait for credit: a peer that asks for ever and never gives any is cut off.
MAX_MESSAGES = 4096
# A message above this goes behind the keys that wait: the results of 64 inventories, 150 KiB, would
# hold one up for as long as they take, and no caller waits for a key.
MAX_URGENT_MESSAGE = 1024
# What `room` allows to wait in a channel's send queue.
# Indexed by priority (a list: hashing an enumeration member is a call in Python); channel 0 has
# messages instead of a queue.
SEND_QUEUE = (0, 16384, 262144)


class Side(enum.IntEnum):
    """The MSP opens even channel numbers, the gateway odd ones."""

    MSP = 0
    GATEWAY = 1


class Mux:
    def __init__(
        self, side: Side, config: MuxConfig, liveness: LivenessConfig, rng: random.Random
    ) -> None:
        self._side = side
        self._config = config
        self._liveness = Liveness(liveness, rng, pings=side is Side.GATEWAY)
        self._decoder = Decoder()
        self._events: deque[Event] = deque()
        self._channels: dict[int, Channel] = {}
        self._pool = MemoryPool(config.memory)
        self._pool.reserve(config.control_window)
        self._control_in = ReceiveWindow(config.control_window)
        self._control_out = SendWindow()
        # Of the messages among the events, which stay charged until the owner takes them.
        self._message_sizes: deque[int] = deque()
        # Channels that ended in order before all was consumed: bytes that stay charged.
        self._unread: dict[int, int] = {}
        # Output, in the order of the module docstring.
        self._link_frames: deque[bytes] = deque()
        self._credits: dict[int, int] = {}
        self._pong: int | None = None
        self._replaying: deque[bytes] = deque()
        self._answers: deque[bytes] = deque()
        self._messages: deque[bytes] = deque()
        self._ready: list[deque[int]] = [deque() for _ in SEND_QUEUE]
        self._bulk_owed = 0
        # The largest DATA payload of bulk; pacing lowers it so that a keystroke waits less.
        self.bulk_chunk = MAX_PAYLOAD
        self._replay = ReplayBuffer()
        self._received = 0
        self._ack_frames = 0
        self._ack_bytes = 0
        # Channel 0 is nobody's to open.
        self._numbers = ChannelNumbers(first=2 - side)
        self.ended = False
        self._attached = False

    # ---- links --------------------------------------------------------------------------------

    @property
    def received(self) -> int:
        """Sequenced frames received: goes into the greeting."""
        return self._received

    @property
    def attached(self) -> bool:
        return self._attached

    @property
    def heard(self) -> bool:
        """Whether the peer said anything on the present (or last) link."""
        return self._liveness.heard

    @property
    def rtt(self) -> float:
        """Seconds; 0 when no round trip is known."""
        return self._liveness.rtt

    def attach(self, received: int, now: float, rtt: float = 0.0) -> None:
        """A link is up, both sides agreed on this session; `received` is the peer's count.

        `rtt` (seconds) is what is known of this link: bulk windows grow before the first PONG.

        RemoteProtocolError when the peer's count is impossible.
        """
        self.detach()
        self._replaying = deque(self._replay.resume(received))
        # Credits are lost with a link, so all limits are said again; that of channel 0 also
        # starts a fresh session.
        self._credits = {
            number: channel.receive_window.limit
            for number, channel in self._channels.items()
            if channel.state not in RESETTING
        }
        self._credits[CONTROL_CHANNEL] = self._control_in.limit
        self._attached = True
        self._liveness.start(now, rtt)

    def detach(self) -> None:
        """The link is gone. Half a frame died with it, and so did everything not sequenced."""
        self._attached = False
        self._decoder = Decoder()
        self._link_frames.clear()
        self._credits.clear()
        self._pong = None
        self._replaying.clear()
        self._liveness.stop()

    def abandon(self, code: Code, reason: str) -> None:
        """The peer has no such session any more: every channel ends with this code and reason."""
        self.detach()
        self.ended = True
        for channel in list(self._channels.values()):
            if channel.state not in RESETTING:
                self._events.append(ChannelEnded(channel.number, code, reason))
            channel.drop_queue()
        self._channels.clear()
        self._unread.clear()
        self._messages.clear()
        self._answers.clear()
        self._events.append(SessionReset())

    # ---- the five verbs -----------------------------------------------------------------------

    def receive_data(self, data: bytes, now: float) -> None:
        """Feed what the link received; RemoteProtocolError means: goaway, then drop the link."""
        if not self._attached:
            # A late read from a lost link: the peer sends these frames again on the next one.
            return
        self._decoder.receive(data)
        frame = self._decoder.next_frame()
        if frame is not None:
            self._liveness.received(now)
        while frame is not None:
            if frame.type < FIRST_SEQUENCED:
                self._on_link_frame(frame, now)
            else:
                self._received += 1
                self._ack_frames += 1
                self._ack_bytes += len(frame.payload)
                self._on_sequenced(frame)
            frame = self._decoder.next_frame()

    def next_event(self) -> Event | None:
        if not self._events:
            return None
        event = self._events.popleft()
        if isinstance(event, MessageReceived):
            limit = self._control_in.consume(self._message_sizes.popleft())
            if limit is not None:
                self._credits[CONTROL_CHANNEL] = limit
        return event

    def data_to_send(self, budget: int) -> bytes:
        """About `budget` bytes of whole frames, at least one frame if there is any."""
        frames: list[bytes] = []
        size = 0
        while size < budget and self._has_output():
            frame = self._next_frame()
            if frame is None:
                break
            frames.append(frame)
            size += len(frame)
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called next, in the loop's time."""
        return self._liveness.next_timeout() if self._attached else None

    def handle_timeout(self, now: float) -> None:
        if not self._attached:
            return
        silent = self._liveness.silence(now)
        if silent is not None:
            self._events.append(LinkDead(silent))
            self.detach()
            return
        cookie = self._liveness.next_ping(now)
        if cookie is not None:
            self._link_frames.append(codec.build_ping(cookie, self._received, self.rtt))
            self._acknowledged()

    # ---- the application's side ---------------------------------------------------------------

    def open(self, target: Target, priority: Priority) -> int:
        """Ask the peer for a channel; ChannelAccepted or ChannelEnded follows."""
        number = self._numbers.free(self._replay.acknowledged, self._channels, self._unread)
        window = self._window_for(priority)
        if not self._reserve(window):
            raise ChannelStateError(
                f"{len(self._channels)} channels are open, windows of {self._pool.reserved} bytes"
            )
        channel = Channel(number, State.OPENING, priority, window)
        self._channels[number] = channel
        payload = codec.build_open(priority, window, target)
        self._answers.append(codec.build_frame(FrameType.OPEN, number, payload))
        return number

    def accept(self, number: int) -> None:
        """Answer ChannelOpened; without effect when the peer has reset it meanwhile."""
        channel = self._channels.get(number)
        if channel is None or channel.state is not State.OFFERED:
            return
        channel.advance(Input.ACCEPT_SENT)
        payload = codec.build_accept(channel.receive_window.limit)
        self._answers.append(codec.build_frame(FrameType.ACCEPT, number, payload))

    def refuse(self, number: int, code: Code, reason: str) -> None:
        channel = self._channels.get(number)
        if channel is None or channel.state is not State.OFFERED:
            return
        channel.advance(Input.REFUSE_SENT)
        self._answer_end(FrameType.REFUSE, number, code, reason)
        self._close(channel)

    def send(self, number: int, data: bytes, now: float) -> None:
        """Queue one chunk. Chunks are never merged; look at `room` before sending more.

        Without effect on an ended channel: its ChannelEnded may still wait among the events.
        """
        channel = self._sending(number)
        if channel is None or not data:
            return
        channel.put(data, now)
        channel.was_full |= channel.queued >= SEND_QUEUE[channel.priority]
        self._make_ready(channel)

    def send_eof(self, number: int) -> None:
        """End our direction behind what is queued. Without effect on an ended channel."""
        channel = self._sending(number)
        if channel is None:
            return
        channel.eof_queued = True
        self._make_ready(channel)

    def reset(self, number: int, code: Code, reason: str) -> None:
        """End a channel now; what is queued is dropped, what was received is given back."""
        self._pool.release(self._unread.pop(number, 0))
        channel = self._channels.get(number)
        if channel is None or channel.state in RESETTING:
            return
        if channel.state is State.OFFERED:
            self.refuse(number, code, reason)
            return
        channel.advance(Input.RESET_SENT)
        channel.drop_queue()
        self._credits.pop(number, None)
        self._answer_end(FrameType.RESET, number, code, reason)

    def consume(self, number: int, size: int, now: float) -> bool:
        """Give back `size` bytes of a DataReceived; the peer may send as much again.

        True when that is worth telling the peer: flush then.
        """
        channel = self._channels.get(number)
        if channel is None:
            self._consume_rest(number, size)
            return False
        if channel.state in RESETTING:
            return False
        window = channel.receive_window
        limit = window.consume(size)
        if limit is None or channel.state is State.HALF_CLOSED_REMOTE:
            return False
        if channel.priority is Priority.BULK and window.wants_growth(now, self.rtt):
            extra = min(window.size, self._config.bulk_window_cap - window.size)
            if extra > 0 and self._pool.reserve(extra):
                limit = window.grow(window.size + extra)
        self._credits[number] = limit
        return True

    def send_message(self, message: Message) -> None:
        """Queue a control message; FrameSizeError when it does not fit into one frame."""
        self._messages.append(build_message(message))

    def go_away(self, goaway: GoAway) -> None:
        self._link_frames.append(codec.build_goaway(goaway))

    def room(self, number: int) -> int:
        """Bytes that may be queued on a channel before its source should pause."""
        channel = self._channels.get(number)
        if channel is None or channel.state not in SENDING:
            return 0
        return SEND_QUEUE[channel.priority] - channel.queued

    def set_priority(self, number: int, priority: Priority) -> None:
        """Reclassify what we send on this channel; the peer decides for its own direction."""
        channel = self._channels.get(number)
        if channel is not None:
            channel.classify(priority)
            # Its source pauses when the new class allows less: it must be woken again.
            channel.was_full |= channel.queued >= SEND_QUEUE[priority]
            self._make_ready(channel)

    def shares_the_line(self, now: float) -> bool:
        """Both classes are open: the sender must pace itself. A stream that floods is both; its
        keys may come again at any moment.
        """
        if len(self._channels) < 2:
            return False
        channels = self._channels.values()
        for channel in channels:
            if channel.meter.flooding and channel.calm(now):
                self._make_ready(channel)
        return Priority.INTERACTIVE in [channel.priority for channel in channels] and (
            Priority.BULK in [channel.turn for channel in channels]
        )

    @property
    def unacknowledged(self) -> int:
        """Bytes kept for replay."""
        return self._replay.size

    @property
    def channels(self) -> int:
        return len(self._channels)

    @property
    def queued_messages(self) -> int:
        return len(self._messages)

    # ---- output -------------------------------------------------------------------------------

    def _has_output(self) -> bool:
        """Whether to walk through all queues for a frame, which mostly ends with none: after each
        keystroke the link asks once more than there are frames.
        """
        return self._attached and bool(
            self._ready[Priority.INTERACTIVE]
            or self._ready[Priority.BULK]
            or self._credits
            or self._messages
            or self._answers
            or self._link_frames
            or self._replaying
            or self._pong is not None
            or self._ack_frames >= ACK_FRAMES
            or self._ack_bytes >= ACK_BYTES
        )

    def _next_frame(self) -> bytes | None:
        if self._link_frames:
            return self._link_frames.popleft()
        if self._pong is not None:
            cookie, self._pong = self._pong, None
            self._acknowledged()
            return codec.build_pong(cookie, self._received)
        if self._credits:
            number, limit = self._credits.popitem()
            self._acknowledged()
            return codec.build_credit(number, limit, self._received)
        if self._ack_frames >= ACK_FRAMES or self._ack_bytes >= ACK_BYTES:
            self._acknowledged()
            return codec.build_ack(self._received)
        if self._replaying:
            return self._replaying.popleft()
        return self._next_sequenced()

    def _next_sequenced(self) -> bytes | None:
        # The peer holds us to its windows, and so this bound only bites when it never acknowledges.
        if self._replay.size >= self._config.memory:
            return None
        if self._answers:
            return self._sequence(self._answers.popleft())
        if not self._ready[Priority.BULK] or self._next_ready(Priority.BULK) is None:
            self._bulk_owed = 0
            frame = self._next_urgent()
            return None if frame is None else self._sequence(frame)
        # Bytes that went before waiting bulk; each byte of bulk pays for `others` of them.
        others = self._config.bulk_share - 1
        if self._bulk_owed < self.bulk_chunk * others:
            frame = self._next_urgent()
            if frame is not None:
                self._bulk_owed += len(frame)
                return self._sequence(frame)
        frame = self._next_data(Priority.BULK)
        assert frame is not None  # noqa: S101 - it waits
        self._bulk_owed = max(self._bulk_owed - len(frame) * others, 0)
        return self._sequence(frame)

    def _next_urgent(self) -> bytes | None:
        if self._messages:
            size = len(self._messages[0]) - HEADER_SIZE
            if size > MAX_URGENT_MESSAGE:
                frame = self._next_data(Priority.INTERACTIVE)
                if frame is not None:
                    return frame
            if size <= self._control_out.available:
                self._control_out.sent += size
                return self._messages.popleft()
        return self._next_data(Priority.INTERACTIVE)

    def _next_ready(self, priority: Priority) -> Channel | None:
        """The channel whose turn it is; entries that went stale are dropped on the way."""
        ready = self._ready[priority]
        while ready:
            channel = self._channels.get(ready[0])
            if channel is not None and channel.turn is priority and channel.sendable:
                return channel
            ready.popleft()
        return None

    def _next_data(self, priority: Priority) -> bytes | None:
        channel = self._next_ready(priority)
        if channel is None:
            return None
        ready = self._ready[priority]
        ready.popleft()
        if not channel.queue:
            channel.eof_queued = False
            channel.advance(Input.EOF_SENT)
            frame = codec.build_frame(FrameType.EOF, channel.number, b"")
            if channel.state is State.CLOSED:
                self._close(channel, ahead=1, unread=channel.receive_window.unread)
            return frame
        chunk = self.bulk_chunk if priority is Priority.BULK else MAX_PAYLOAD
        data = channel.take(chunk)
        if channel.was_full and channel.queued < SEND_QUEUE[channel.priority] // 2:
            channel.was_full = False
            self._events.append(ChannelWritable(channel.number))
        if (channel.queue or channel.eof_queued) and channel.sendable:
            ready.append(channel.number)
        return codec.build_frame(FrameType.DATA, channel.number, data)

    def _sequence(self, frame: bytes) -> bytes:
        self._replay.append(frame)
        return frame

    def _make_ready(self, channel: Channel) -> None:
        ready = self._ready[channel.turn]
        if channel.sendable and channel.number not in ready:
            ready.append(channel.number)

    def _check_flood(self) -> None:
        if len(self._answers) >= MAX_ANSWERS:
            raise RemoteProtocolError(f"{MAX_ANSWERS} answers wait for a peer that does not read")

    def _answer_end(self, frame_type: FrameType, number: int, code: Code, reason: str) -> None:
        payload = codec.build_end(frame_type, code, reason)
        self._answers.append(codec.build_frame(frame_type, number, payload))

    def _acknowledged(self) -> None:
        self._ack_frames = self._ack_bytes = 0

    # ---- input --------------------------------------------------------------------------------

    def _on_link_frame(self, frame: Frame, now: float) -> None:
        if frame.channel != CONTROL_CHANNEL and frame.type is not FrameType.CREDIT:
            raise ChannelStateError(f"{frame.type.name} on channel {frame.channel}")
        match frame.type:
            case FrameType.CREDIT:
                limit, received = codec.parse_credit(frame.payload)
                self._replay.acknowledge(received)
                self._on_credit(frame.channel, limit)
            case FrameType.ACK:
                self._replay.acknowledge(codec.parse_ack(frame.payload))
            case FrameType.PING:
                if self._side is Side.GATEWAY:
                    raise FrameLayoutError("PING from the MSP")
                self._pong, received, self._liveness.rtt = codec.parse_ping(frame.payload)
                self._replay.acknowledge(received)
            case FrameType.PONG:
                cookie, received = codec.parse_pong(frame.payload)
                self._replay.acknowledge(received)
                self._events.append(RoundTrip(self._liveness.answered(cookie, now)))
            case FrameType.GOAWAY:
                self._events.append(PeerGoingAway(codec.parse_goaway(frame.payload)))
            case _:
                raise FrameLayoutError(f"second {frame.type.name} on a link")

    def _on_credit(self, number: int, limit: int) -> None:
        if number == CONTROL_CHANNEL:
            self._control_out.raise_to(limit)
            return
        # A credit for a channel that just ended crossed its end; it means nothing any more.
        channel = self._channels.get(number)
        if channel is not None and channel.send_window.raise_to(limit):
            self._make_ready(channel)

    def _on_sequenced(self, frame: Frame) -> None:
        if frame.type is FrameType.DATA and (channel := self._channels.get(frame.channel)):
            self._on_data(channel, frame.payload)
            return
        if frame.type in MESSAGES:
            self._on_message(frame)
            return
        if frame.channel == CONTROL_CHANNEL:
            raise ChannelStateError(f"{frame.type.name} on channel 0")
        if frame.type is FrameType.OPEN:
            self._on_open(frame)
            return
        channel = self._channels.get(frame.channel)
        if channel is None:
            # Our end and the peer's RESET crossed each other: nobody needs an answer.
            if frame.type is FrameType.RESET:
                codec.parse_end(FrameType.RESET, frame.payload)
                return
            raise ChannelStateError(f"{frame.type.name} on channel {frame.channel}, never opened")
        match frame.type:
            case FrameType.EOF:
                self._on_eof(channel, frame.payload)
            case FrameType.ACCEPT:
                channel.advance(Input.ACCEPT_RECEIVED)
                limit = codec.parse_accept(frame.payload)
                if channel.state is State.OPEN:
                    channel.send_window.raise_to(limit)
                    self._events.append(ChannelAccepted(channel.number))
            case FrameType.REFUSE:
                self._on_end(channel, frame, Input.REFUSE_RECEIVED)
            case _:  # RESET is the only one left.
                self._on_end(channel, frame, Input.RESET_RECEIVED)

    def _on_message(self, frame: Frame) -> None:
        if frame.channel != CONTROL_CHANNEL:
            raise ChannelStateError(f"{frame.type.name} on channel {frame.channel}")
        if len(self._messages) >= MAX_MESSAGES:
            raise RemoteProtocolError(f"{MAX_MESSAGES} messages wait for a peer without credit")
        size = len(frame.payload)
        self._control_in.receive(size)
        self._events.append(MessageReceived(parse_message(frame.type, frame.payload)))
        self._message_sizes.append(size)

    def _on_open(self, frame: Frame) -> None:
        number = frame.channel
        priority, limit, target = codec.parse_open(frame.payload)
        if number % 2 == self._side % 2 or number in self._channels:
            raise ChannelStateError(f"OPEN of channel {number}, which is not the peer's to open")
        window = self._window_for(priority)
        if number in self._unread or not self._reserve(window):
            self._check_flood()
            reason = f"{len(self._channels)} channels are open"
            self._answer_end(FrameType.REFUSE, number, Code.LIMIT, reason)
            return
        channel = Channel(number, State.OFFERED, priority, window)
        channel.send_window.raise_to(limit)
        self._channels[number] = channel
        self._events.append(ChannelOpened(number, priority, target))

    def _on_data(self, channel: Channel, data: bytes) -> None:
        if not data:
            # It would cost us an event and the peer no credit.
            raise FrameLayoutError("DATA of 0 bytes, expected at least one")
        channel.advance(Input.DATA_RECEIVED)
        channel.receive_window.receive(len(data))
        if channel.state not in RESETTING:
            self._events.append(DataReceived(channel.number, data))

    def _on_eof(self, channel: Channel, payload: bytes) -> None:
        if payload:
            raise FrameLayoutError(f"EOF of {len(payload)} bytes, expected none")
        was_resetting = channel.state in RESETTING
        channel.advance(Input.EOF_RECEIVED)
        if not was_resetting:
            self._events.append(EofReceived(channel.number))
        if channel.state is State.CLOSED:
            self._close(channel, unread=0 if was_resetting else channel.receive_window.unread)

    def _on_end(self, channel: Channel, frame: Frame, event: Input) -> None:
        was_resetting = channel.state in RESETTING
        channel.advance(event)
        code, reason = codec.parse_end(frame.type, frame.payload)
        if not was_resetting:
            self._events.append(ChannelEnded(channel.number, code, reason))
            if event is Input.RESET_RECEIVED:
                self._check_flood()
                self._answer_end(FrameType.RESET, channel.number, Code.OK, "")
        self._close(channel)

    # ---- channels -----------------------------------------------------------------------------

    def _window_for(self, priority: Priority) -> int:
        if priority is Priority.BULK:
            return self._config.bulk_window
        return self._config.interactive_window

    def _reserve(self, window: int) -> bool:
        """Room for one more channel and its window?"""
        used = len(self._channels) + len(self._unread)
        return used < self._config.max_channels and self._pool.reserve(window)

    def _sending(self, number: int) -> Channel | None:
        """The channel, or None when it has ended; LocalProtocolError when it cannot send."""
        channel = self._channels.get(number)
        if channel is None or channel.state in RESETTING:
            return None
        if channel.state not in SENDING or channel.eof_queued:
            raise LocalProtocolError(f"send on channel {number}, which is {channel.state.name}")
        return channel

    def _consume_rest(self, number: int, size: int) -> None:
        unread = self._unread.get(number, 0)
        size = min(size, unread)
        self._pool.release(size)
        if size < unread:
            self._unread[number] = unread - size
        else:
            self._unread.pop(number, None)

    def _close(self, channel: Channel, ahead: int = 0, unread: int = 0) -> None:
        """Forget a channel. `ahead`: frames of it that are about to be counted as sent.

        `unread`: received bytes that its owner has not consumed yet, and will.
        """
        del self._channels[channel.number]
        self._credits.pop(channel.number, None)
        self._pool.release(channel.receive_window.size - unread)
        if unread:
            self._unread[channel.number] = unread
        if channel.number % 2 == self._side % 2:
            # Answers still queued (a RESET) leave before anything that is opened later, and the
            # peer's credits for the old channel come before its acknowledgement of them.
            known_at = self._replay.sent + len(self._answers) + ahead
            self._numbers.retire(channel.number, known_at)
