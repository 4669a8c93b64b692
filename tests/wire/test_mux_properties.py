from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwmodule.config import LivenessConfig, MuxConfig
from gwmodule.errors import Code, RemoteProtocolError
from gwmodule.wire import codec
from gwmodule.wire.events import Event
from gwmodule.wire.frames import FrameType, Priority
from gwmodule.wire.messages import Cancel, Result, ResultTarget
from gwmodule.wire.mux import Mux, Side
from tests.wire.pair import EVERYTHING, TARGET, Pair, events

CONFIG = MuxConfig(memory=4000, control_window=500, interactive_window=200, max_channels=6)
U64 = st.integers(0, 2**64 - 1)
COUNT = st.integers(0, 6) | U64
REASON = codec.build_end(FrameType.RESET, Code.CANCELLED, "enough")

# Well-formed frames, garbage in known frames, and garbage.
CHANNEL = st.integers(0, 9) | st.integers(0, 0xFFFF)
PAYLOAD = st.one_of(
    st.sampled_from(
        [
            b"",
            REASON,
            bytes(4),
            codec.build_open(Priority.INTERACTIVE, 300, TARGET),
            codec.build_open(Priority.BULK, 2**32 - 1, ResultTarget(1)),
        ]
    ),
    st.binary(max_size=60),
)
FRAME = st.one_of(
    st.builds(codec.build_frame, st.sampled_from(FrameType), CHANNEL, PAYLOAD),
    st.builds(codec.build_credit, CHANNEL, U64, COUNT),
    st.builds(codec.build_ack, COUNT),
    st.builds(codec.build_pong, st.integers(0, 3), COUNT),
    st.builds(codec.build_ping, st.integers(0, 3), COUNT, st.just(0.0)),
    st.binary(max_size=12),
)


def mux_with_channels_in_every_state(side: Side) -> Mux:
    """Own numbers 1/2 to 13/14, the peer's 2/1 to 8/7; raw frames play the peer."""
    mux = Mux(side, MuxConfig(), LivenessConfig(), random.Random(1))
    mux.attach(0, 0.0)
    own = [mux.open(TARGET, Priority.INTERACTIVE) for _ in range(7)]
    mux.data_to_send(EVERYTHING)

    def hear(frame_type: FrameType, number: int, payload: bytes = b"") -> None:
        mux.receive_data(codec.build_frame(frame_type, number, payload), 0.0)

    for number in own[1:]:
        hear(FrameType.ACCEPT, number, codec.build_accept(100))
    mux.send_eof(own[2])
    mux.send_eof(own[3])
    hear(FrameType.EOF, own[4])
    mux.data_to_send(EVERYTHING)
    mux.reset(own[3], Code.CANCELLED, "after our EOF")
    mux.reset(own[5], Code.CANCELLED, "in the middle")
    hear(FrameType.RESET, own[6], REASON)
    for number in range(2 - (1 - side), 9, 2):
        hear(FrameType.OPEN, number, codec.build_open(Priority.BULK, 100, TARGET))
    mux.accept(2 - (1 - side))
    mux.handle_timeout(4.0)
    mux.data_to_send(EVERYTHING)
    return mux


@pytest.mark.parametrize("side", list(Side))
@given(frames=st.lists(FRAME, min_size=1, max_size=4))
def test_any_frame_in_any_state_is_taken_or_is_the_peers_error(
    side: Side, frames: list[bytes]
) -> None:
    mux = mux_with_channels_in_every_state(side)
    for frame in frames:
        try:
            mux.receive_data(frame, 5.0)
        except RemoteProtocolError as exc:
            assert exc.code in set(Code)  # noqa: PT017 - each error has its number on the wire
            return
        events(mux)
        mux.data_to_send(EVERYTHING)
    mux.abandon(Code.SESSION_LOST, "done")


def a_conversation() -> bytes:
    """What a busy MSP says, and nothing that only an answer could have called forth."""
    pair = Pair()
    first, second = pair.open(), pair.open(Priority.BULK)
    heard = bytearray()

    def turn() -> None:
        down = pair.msp.data_to_send(EVERYTHING)
        heard.extend(down)
        pair.gateway.receive_data(down, 0.0)
        events(pair.gateway)
        pair.msp.receive_data(pair.gateway.data_to_send(EVERYTHING), 0.0)
        events(pair.msp)

    for size in (1, 5, 300):
        pair.msp.send(first, bytes(size), 0.0)
        pair.msp.send(second, bytes(size * 7), 0.0)
        pair.msp.send_message(Cancel(size))
        turn()
    pair.gateway.handle_timeout(4.0)
    pair.msp.send_eof(first)
    pair.msp.send_eof(second)
    turn()
    pair.msp.open(TARGET, Priority.BULK)
    turn()
    turn()
    return bytes(heard)


CONVERSATION = a_conversation()


@settings(max_examples=50)
@given(cuts=st.lists(st.integers(0, len(CONVERSATION)), max_size=20))
def test_any_segmentation_gives_the_same_events(cuts: list[int]) -> None:
    def hear(ends: list[int]) -> tuple[list[Event], int]:
        pair = Pair()
        pair.open()
        pair.open(Priority.BULK)
        pair.gateway.handle_timeout(4.0)
        found = []
        for start, end in zip([0, *ends], [*ends, len(CONVERSATION)], strict=True):
            pair.gateway.receive_data(CONVERSATION[start:end], 4.5)
            found += events(pair.gateway)
        return found, pair.gateway.received

    assert hear(sorted(cuts)) == hear([])


@settings(max_examples=50)
@given(sizes=st.lists(st.integers(0, 400), max_size=40), budgets=st.lists(st.integers(1, 900)))
def test_what_leaves_under_any_budget_is_the_same_in_the_end(
    sizes: list[int], budgets: list[int]
) -> None:
    def say(pair: Pair, budgets: list[int]) -> tuple[bytes, list[Event]]:
        for size in sizes:
            pair.msp.send(2, bytes([size % 256]) * size, 0.0)
            pair.msp.send_message(Result(size, Code.OK, 0.0, 0, b""))
        heard = b""
        for budget in [*budgets, EVERYTHING]:
            data = pair.msp.data_to_send(budget)
            heard += data
            pair.gateway.receive_data(data, 0.0)
        return heard, events(pair.gateway)

    pairs = Pair(), Pair()
    for pair in pairs:
        assert pair.open() == 2
    assert say(pairs[0], budgets) == say(pairs[1], [])
