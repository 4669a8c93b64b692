from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.errors import RemoteProtocolError
from gwmodule.wire.resumption import ReplayBuffer


def filled(*sent: bytes) -> ReplayBuffer:
    buffer = ReplayBuffer()
    for frame in sent:
        buffer.append(frame)
    return buffer


def test_a_frame_is_kept_until_it_is_acknowledged() -> None:
    buffer = filled(b"one", b"three", b"five")
    assert buffer.size == 12
    buffer.acknowledge(2)
    assert buffer.size == 4
    assert buffer.acknowledged == 2
    assert buffer.resume(2) == [b"five"]


def test_a_late_lower_count_changes_nothing() -> None:
    buffer = filled(b"one", b"two")
    buffer.acknowledge(2)
    buffer.acknowledge(1)
    assert buffer.acknowledged == 2
    assert buffer.resume(2) == []


def test_more_than_was_sent_cannot_be_acknowledged() -> None:
    with pytest.raises(RemoteProtocolError, match="acknowledges 3 frames, 2 were sent"):
        filled(b"one", b"two").acknowledge(3)


@pytest.mark.parametrize("count", [0, 4, 2**64 - 1])
def test_a_resume_outside_what_is_kept_is_an_error(count: int) -> None:
    buffer = filled(b"one", b"two", b"three")
    buffer.acknowledge(1)
    with pytest.raises(RemoteProtocolError, match=f"resumes at {count}, possible is 1 to 3"):
        buffer.resume(count)
    assert buffer.resume(1) == [b"two", b"three"]


@given(
    sizes=st.lists(st.integers(0, 20), max_size=30),
    counts=st.lists(st.integers(0, 30), max_size=10),
)
def test_what_is_kept_is_what_the_peer_has_not(sizes: list[int], counts: list[int]) -> None:
    sent = [bytes([i]) * size for i, size in enumerate(sizes)]
    buffer = filled(*sent)
    highest = 0
    for count in counts:
        count = min(count, len(sent))
        highest = max(highest, count)
        buffer.acknowledge(count)
    assert buffer.size == sum(map(len, sent[highest:]))
    assert buffer.resume(highest) == sent[highest:]
