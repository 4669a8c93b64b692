from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.errors import ChannelStateError, Code
from gwmodule.wire.channel import SENDING, TRANSITIONS, Channel, ChannelNumbers, Input, State
from gwmodule.wire.frames import MAX_CHANNEL, Priority


def channel(state: State = State.OPEN, credit: int = 100) -> Channel:
    made = Channel(4, state, Priority.INTERACTIVE, window=100)
    made.send_window.raise_to(credit)
    return made


def test_every_state_has_its_row_and_only_the_last_one_is_empty() -> None:
    assert set(TRANSITIONS) == set(State)
    assert [state for state, row in TRANSITIONS.items() if not row] == [State.CLOSED]


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(Input))
def test_a_pair_that_is_not_in_the_table_is_the_peers_error(state: State, event: Input) -> None:
    moved = channel(state)
    if event in TRANSITIONS[state]:
        moved.advance(event)
        assert moved.state is TRANSITIONS[state][event]
    else:
        with pytest.raises(
            ChannelStateError, match=f"{event.name} on channel 4, which is {state.name}"
        ) as info:
            moved.advance(event)
        assert info.value.code is Code.CHANNEL_STATE
        assert moved.state is state


def test_from_every_state_a_channel_can_still_be_ended_by_the_peer() -> None:
    for state, row in TRANSITIONS.items():
        if state is not State.CLOSED:
            assert row[Input.RESET_RECEIVED] is State.CLOSED


def test_nothing_is_sent_before_the_channel_is_open_or_after_our_eof() -> None:
    for state in State:
        waiting = channel(state)
        waiting.queue.append(b"data")
        assert waiting.sendable == (state in SENDING)


def test_data_waits_for_credit_and_eof_does_not() -> None:
    waiting = channel(credit=0)
    waiting.queue.append(b"data")
    waiting.eof_queued = True
    assert not waiting.sendable
    waiting.queue.clear()
    assert waiting.sendable


def test_an_empty_channel_has_nothing_to_send() -> None:
    assert not channel().sendable


def test_dropping_the_queue_drops_the_eof_as_well() -> None:
    dropped = channel()
    dropped.queue.append(b"data")
    dropped.queued = 4
    dropped.eof_queued = True
    dropped.drop_queue()
    assert not dropped.sendable
    assert dropped.queued == 0


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), min_size=1),
    sizes=st.lists(st.integers(1, 50), min_size=1),
    credit=st.integers(1, 400),
)
def test_chunks_are_split_but_never_merged(
    chunks: list[bytes], sizes: list[int], credit: int
) -> None:
    sender = channel(credit=credit)
    for chunk in chunks:
        sender.queue.append(chunk)
        sender.queued += len(chunk)
    taken: list[bytes] = []
    while sender.sendable:
        taken.append(sender.take(sizes[len(taken) % len(sizes)]))
    sent = b"".join(taken)
    assert sent == b"".join(chunks)[:credit]
    assert sender.queued == sum(map(len, chunks)) - len(sent)
    assert sender.send_window.sent == len(sent)
    ends = {sum(map(len, chunks[: i + 1])) for i in range(len(chunks))}
    position = 0
    for piece in taken:
        # No piece reaches over the end of a chunk.
        assert not ends & set(range(position + 1, position + len(piece)))
        position += len(piece)


@pytest.mark.parametrize("first", [1, 2])
def test_the_numbers_of_a_side_are_used_in_turn_and_all_of_them(first: int) -> None:
    numbers = ChannelNumbers(first)
    own = list(range(first, MAX_CHANNEL + 1, 2))
    assert [numbers.free(0) for _ in own] == own
    assert numbers.free(0) == first


def test_a_number_that_is_taken_is_passed_over() -> None:
    numbers = ChannelNumbers(1)
    assert numbers.free(0, {1: "open"}, {3, 5}) == 7
    with pytest.raises(ChannelStateError, match="all channel numbers are in use"):
        numbers.free(0, range(MAX_CHANNEL + 1))


def test_a_number_rests_until_the_peer_has_acknowledged_its_end() -> None:
    numbers = ChannelNumbers(1)
    others = range(5, MAX_CHANNEL + 1)
    numbers.retire(1, known_at=7)
    numbers.retire(3, known_at=9)
    with pytest.raises(ChannelStateError, match="all channel numbers are in use"):
        numbers.free(6, others)
    assert numbers.free(7, others) == 1
    assert numbers.free(9, others) == 3
