"""Two endpoints, any interleaving of what can happen to them, against a model of what was sent."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gwmodule.config import LivenessConfig, MuxConfig
from gwmodule.errors import ChannelStateError, Code
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
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import Progress
from gwmodule.wire.mux import Mux, Side
from tests.wire.pair import EVERYTHING, TARGET

# Small enough that windows, the pool, the replay bound and the channel limit are all reached.
CONFIG = MuxConfig(
    memory=3000,
    control_window=300,
    interactive_window=256,
    bulk_window=500,
    bulk_window_cap=1500,
    max_channels=5,
    bulk_share=4,
)
LIVENESS = LivenessConfig(interval=4, timeout=12)
SEED = st.integers(0, 1 << 30)


@dataclass
class Flow:
    """One direction of one channel, as its two ends see it."""

    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    unconsumed: int = 0
    eof_sent: bool = False
    eof_received: bool = False


@dataclass
class Life:
    """One use of a channel number. `ended` holds the sides for which nothing more happens."""

    number: int
    opener: Side
    flows: dict[Side, Flow] = field(default_factory=lambda: {side: Flow() for side in Side})
    offered: bool = False
    accepted: bool = False
    open_at: set[Side] = field(default_factory=set)
    ended: set[Side] = field(default_factory=set)
    broken: bool = False
    refused: bool = False

    def over_for(self, side: Side) -> bool:
        """Also without a ChannelEnded: both ends of file passed, and a RESET that crossed them
        finds nothing that could still be reset.
        """
        clean = self.flows[side].eof_sent and self.flows[other(side)].eof_received
        return clean or side in self.ended


def other(side: Side) -> Side:
    return Side.GATEWAY if side is Side.MSP else Side.MSP


class SessionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.attached = True
        self.start_session()

    def start_session(self) -> None:
        self.muxes = {side: Mux(side, CONFIG, LIVENESS, random.Random(7)) for side in Side}
        # What left one side and has not reached the other.
        self.wire = {side: bytearray() for side in Side}
        self.lives: list[Life] = []
        # For each side, the life that it knows under a number.
        self.current: dict[Side, dict[int, Life]] = {side: {} for side in Side}
        self.messages_sent: dict[Side, int] = dict.fromkeys(Side, 0)
        self.messages_received: dict[Side, int] = dict.fromkeys(Side, 0)
        for mux in self.muxes.values():
            mux.attach(0, self.now)

    @initialize(bulk=st.booleans(), cut=st.booleans())
    def begin(self, bulk: bool, cut: bool) -> None:
        """Most runs should be about streams that carry data, on links that break."""
        for side in Side:
            self.open(side, bulk)
        self.exchange()
        for _ in self.lives:
            self.answer(0, refuse=False)
        self.exchange()
        for side in Side:
            self.send(side, 1, 300)
            self.send(side, 2, 20)
            if cut:
                self.pull(side, EVERYTHING)
        if cut:
            self.cut(50, 90)

    # ---- what the owners do -------------------------------------------------------------------

    @rule(side=st.sampled_from(Side), bulk=st.booleans())
    def open(self, side: Side, bulk: bool) -> None:
        try:
            number = self.muxes[side].open(TARGET, Priority.BULK if bulk else Priority.INTERACTIVE)
        except ChannelStateError:
            return
        old = self.current[side].get(number)
        over = old is None or all(map(old.over_for, Side))
        assert over, "reused before both sides saw the end"
        life = Life(number, side)
        self.lives.append(life)
        self.current[side][number] = life

    @rule(seed=SEED, refuse=st.booleans())
    def answer(self, seed: int, refuse: bool) -> None:
        waiting = [life for life in self.lives if life.offered and not life.accepted]
        waiting = [life for life in waiting if other(life.opener) not in life.ended]
        if not waiting:
            return
        life = waiting[seed % len(waiting)]
        acceptor = other(life.opener)
        if refuse:
            self.muxes[acceptor].refuse(life.number, Code.LIMIT, "no")
            life.refused = True
            life.ended.add(acceptor)
        else:
            self.muxes[acceptor].accept(life.number)
            life.accepted = True
            life.open_at.add(acceptor)

    def sending(self, side: Side) -> list[Life]:
        return [
            life
            for life in self.lives
            if side in life.open_at
            and side not in life.ended
            and not life.flows[side].eof_sent
            and self.current[side].get(life.number) is life
        ]

    @rule(side=st.sampled_from(Side), seed=SEED, size=st.integers(0, 700))
    def send(self, side: Side, seed: int, size: int) -> None:
        lives = self.sending(side)
        if lives:
            life = lives[seed % len(lives)]
            data = random.Random(seed).randbytes(size)
            self.muxes[side].send(life.number, data, self.now)
            life.flows[side].sent += data

    @rule(side=st.sampled_from(Side), seed=SEED)
    def send_eof(self, side: Side, seed: int) -> None:
        lives = self.sending(side)
        if lives:
            life = lives[seed % len(lives)]
            self.muxes[side].send_eof(life.number)
            life.flows[side].eof_sent = True

    @rule(side=st.sampled_from(Side), seed=SEED)
    def reset(self, side: Side, seed: int) -> None:
        lives = [life for life in self.current[side].values() if side not in life.ended]
        if lives:
            life = lives[seed % len(lives)]
            self.muxes[side].reset(life.number, Code.CANCELLED, "enough")
            life.broken = True
            life.ended.add(side)
            for flow in life.flows.values():
                flow.unconsumed = 0 if flow is life.flows[other(side)] else flow.unconsumed

    @rule(side=st.sampled_from(Side), seed=SEED, size=st.integers(1, 600))
    def consume(self, side: Side, seed: int, size: int) -> None:
        lives = [life for life in self.lives if life.flows[other(side)].unconsumed]
        if lives:
            life = lives[seed % len(lives)]
            flow = life.flows[other(side)]
            size = min(size, flow.unconsumed)
            flow.unconsumed -= size
            self.muxes[side].consume(life.number, size, self.now)

    @rule(side=st.sampled_from(Side), seed=SEED, bulk=st.booleans())
    def set_priority(self, side: Side, seed: int, bulk: bool) -> None:
        numbers = list(self.current[side])
        if numbers:
            priority = Priority.BULK if bulk else Priority.INTERACTIVE
            self.muxes[side].set_priority(numbers[seed % len(numbers)], priority)

    # A message takes at most half of the window, as 16 KiB do of the smallest real one.
    @rule(side=st.sampled_from(Side), size=st.integers(0, 137))
    def send_message(self, side: Side, size: int) -> None:
        count = self.messages_sent[side]
        self.messages_sent[side] += 1
        self.muxes[side].send_message(Progress(count, 0, 0, "x" * size))

    # ---- what the line does -------------------------------------------------------------------

    @precondition(lambda self: self.attached)
    @rule(side=st.sampled_from(Side), budget=st.integers(1, 2000))
    def pull(self, side: Side, budget: int) -> None:
        self.wire[side] += self.muxes[side].data_to_send(budget)

    @precondition(lambda self: self.attached)
    @rule(side=st.sampled_from(Side), size=st.integers(1, 1500))
    def arrive(self, side: Side, size: int) -> None:
        self.carry(side, size)

    @precondition(lambda self: self.attached)
    @rule()
    def exchange(self) -> None:
        """Both speak, hear and react once."""
        for side in Side:
            self.pull(side, EVERYTHING)
        for side in Side:
            self.carry(side, len(self.wire[side]))
            self.take_events(other(side))

    @rule(side=st.sampled_from(Side))
    def take_events(self, side: Side) -> None:
        while (event := self.muxes[side].next_event()) is not None:
            self.handle(side, event)

    @precondition(lambda self: self.attached)
    @rule(up=st.integers(0, 100), down=st.integers(0, 100))
    def cut(self, up: int, down: int) -> None:
        """So many per cent of what was on its way still arrive; half a frame perhaps."""
        self.carry(Side.GATEWAY, len(self.wire[Side.GATEWAY]) * up // 100)
        self.carry(Side.MSP, len(self.wire[Side.MSP]) * down // 100)
        for side in Side:
            self.wire[side].clear()
            self.muxes[side].detach()
        self.attached = False

    @precondition(lambda self: not self.attached)
    @rule()
    def resume(self) -> None:
        counts = {side: self.muxes[side].received for side in Side}
        for side in Side:
            self.muxes[side].attach(counts[other(side)], self.now)
        self.attached = True

    @rule(seconds=st.floats(0, 5))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for side in Side:
            self.muxes[side].handle_timeout(self.now)
        if self.attached and not all(mux.attached for mux in self.muxes.values()):
            self.cut(0, 0)

    @precondition(lambda self: len(self.lives) > 5)
    @rule()
    def lose_the_session(self) -> None:
        for side in Side:
            mux = self.muxes[side]
            self.take_events(side)
            waiting = {n for n, life in self.current[side].items() if side not in life.ended}
            mux.abandon(Code.SESSION_LOST, "restarted")
            told = []
            while (event := mux.next_event()) is not None:
                told.append(event)
            assert told.pop() == SessionReset()
            assert all(isinstance(event, ChannelEnded) for event in told)
            heard = {e.channel for e in told if isinstance(e, ChannelEnded)}
            assert heard <= waiting
            assert all(self.current[side][number].over_for(side) for number in waiting - heard)
            assert mux.channels == 0
        self.attached = True
        self.start_session()

    def carry(self, sender: Side, size: int) -> None:
        data = bytes(self.wire[sender][:size])
        del self.wire[sender][:size]
        self.muxes[other(sender)].receive_data(data, self.now)

    # ---- what the owners are told -------------------------------------------------------------

    def handle(self, side: Side, event: Event) -> None:
        current = self.current[side]
        match event:
            case ChannelOpened(number, _, _):
                life = self.current[other(side)][number]
                assert not life.offered
                life.offered = True
                current[number] = life
            case ChannelAccepted(number):
                current[number].open_at.add(side)
            case DataReceived(number, data):
                life = current[number]
                if side not in life.ended:
                    flow = life.flows[other(side)]
                    assert not flow.eof_received
                    flow.received += data
                    flow.unconsumed += len(data)
            case EofReceived(number):
                life = current[number]
                if side not in life.ended:
                    life.flows[other(side)].eof_received = True
            case ChannelEnded(number, _, _):
                life = current[number]
                # Refused for want of room: the acceptor's owner never heard of it.
                life.broken = True
                life.refused |= not life.offered
                life.ended.add(side)
                if not life.offered:
                    life.ended.add(other(side))
                life.flows[other(side)].unconsumed = 0
            case MessageReceived(message):
                assert isinstance(message, Progress)
                assert message.call == self.messages_received[side]
                self.messages_received[side] += 1
            case ChannelWritable() | RoundTrip() | LinkDead():
                pass
            case PeerGoingAway() | SessionReset():
                raise AssertionError(event)
        for life in self.lives:
            if not life.broken and all(
                flow.eof_sent and flow.eof_received for flow in life.flows.values()
            ):
                life.ended |= set(Side)

    # ---- what must hold -----------------------------------------------------------------------

    @invariant()
    def what_is_received_was_sent(self) -> None:
        for life in self.lives:
            for flow in life.flows.values():
                assert flow.sent.startswith(flow.received)

    @invariant()
    def memory_is_bounded(self) -> None:
        for side in Side:
            held = sum(life.flows[other(side)].unconsumed for life in self.lives)
            assert held <= CONFIG.memory - CONFIG.control_window
            # One frame may be on top of the bound.
            assert self.muxes[side].unacknowledged < CONFIG.memory + 800
            assert self.muxes[side].channels <= CONFIG.max_channels

    def teardown(self) -> None:
        """Whatever happened: with a working line and reading owners, everything arrives."""
        if not self.attached:
            self.resume()
        quiet = 0
        while quiet < 2:
            moved = False
            for side in Side:
                self.take_events(side)
                for life in self.lives:
                    unconsumed = life.flows[other(side)].unconsumed
                    if unconsumed:
                        life.flows[other(side)].unconsumed = 0
                        self.muxes[side].consume(life.number, unconsumed, self.now)
                self.wire[side] += self.muxes[side].data_to_send(EVERYTHING)
                moved |= bool(self.wire[side])
            for side in Side:
                self.carry(side, len(self.wire[side]))
            if not moved:
                # PING and PONG carry the last counts.
                quiet += 1
                self.now += 4
                self.muxes[Side.GATEWAY].handle_timeout(self.now)
        for side in Side:
            self.take_events(side)
            assert self.messages_received[side] == self.messages_sent[other(side)]
            assert self.muxes[side].unacknowledged == 0
        for life in self.lives:
            assert life.offered or life.refused or life.broken
            if not life.broken:
                for flow in life.flows.values():
                    assert flow.received == flow.sent
                    assert flow.eof_received == flow.eof_sent
            elif life.offered:
                assert all(map(life.over_for, Side))
        living = sum(not life.broken and len(life.ended) < 2 for life in self.lives)
        for mux in self.muxes.values():
            assert mux.channels == living


TestSession = SessionMachine.TestCase
TestSession.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
