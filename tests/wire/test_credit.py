from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.errors import Code, FlowControlError, LocalProtocolError
from gwmodule.wire.credit import MemoryPool, ReceiveWindow, SendWindow


def test_a_pool_gives_until_it_is_full() -> None:
    pool = MemoryPool(100)
    assert pool.reserve(60)
    assert not pool.reserve(41)
    assert pool.reserve(40)
    pool.release(60)
    assert pool.reserve(60)
    assert pool.reserved == 100


def test_bytes_are_charged_on_arrival() -> None:
    window = ReceiveWindow(1000)
    window.receive(1000)
    with pytest.raises(
        FlowControlError, match="1 bytes behind 1000, but the limit is 1000"
    ) as info:
        window.receive(1)
    assert info.value.code is Code.FLOW_CONTROL


def test_the_limit_is_said_again_per_half_window() -> None:
    window = ReceiveWindow(1000)
    window.receive(1000)
    assert window.consume(499) is None
    assert window.consume(1) == 1500
    assert window.consume(499) is None
    assert window.unread == 1
    assert window.consume(1) == 2000


def test_nothing_is_consumed_that_was_not_received() -> None:
    window = ReceiveWindow(1000)
    window.receive(10)
    with pytest.raises(LocalProtocolError, match="consumed 11 of 10 bytes"):
        window.consume(11)


def test_a_window_grows_only_when_it_empties_faster_than_the_line_turns_round() -> None:
    window = ReceiveWindow(1000)
    assert not window.wants_growth(now=0.0, rtt=0.1)
    assert window.wants_growth(now=0.19, rtt=0.1)
    assert not window.wants_growth(now=0.40, rtt=0.1)


def test_a_grown_window_keeps_its_promise() -> None:
    window = ReceiveWindow(1000)
    window.receive(1000)
    window.consume(1000)
    assert window.limit == 2000
    assert window.grow(4000) == 5000
    assert window.grow(3000) == 5000


def test_a_lower_limit_is_a_late_repeat() -> None:
    window = SendWindow(100)
    assert not window.raise_to(99)
    assert window.limit == 100


def test_raising_tells_whether_a_shut_window_opened() -> None:
    window = SendWindow(100)
    assert not window.raise_to(200)
    window.sent = 200
    assert window.available == 0
    assert window.raise_to(201)
    assert window.available == 1


@given(
    size=st.integers(2, 64),
    steps=st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64)), max_size=50),
)
def test_credit_is_never_overrun_and_never_stuck(size: int, steps: list[tuple[int, int]]) -> None:
    receiver, sender = ReceiveWindow(size), SendWindow(size)
    for send, consume in steps:
        sending = min(send, sender.available)
        sender.sent += sending
        receiver.receive(sending)
        limit = receiver.consume(min(consume, receiver.unread))
        if limit is not None:
            sender.raise_to(limit)
        assert receiver.unread <= size
    limit = receiver.consume(receiver.unread)
    if limit is not None:
        sender.raise_to(limit)
    assert sender.available >= size // 2 > 0
