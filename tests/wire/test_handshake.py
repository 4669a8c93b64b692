from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.errors import Code, FrameLayoutError, FrameSizeError, RemoteProtocolError
from gwmodule.wire import codec
from gwmodule.wire.events import LinkDead
from gwmodule.wire.frames import FrameType
from gwmodule.wire.handshake import MAX_FIRST_FRAME, Handshake
from gwmodule.wire.messages import GoAway, Greeting, Welcome

GREETING = Greeting(b"boot id8", bytes(16), 7, 12.0, True, "gateway", "gwmodule/0.1", 1, 1)
WELCOME = Welcome(1, False, b"t" * 16, 0, 120, "198.51.100.7", 40112, "gw-7")
GOAWAY = GoAway(Code.VERSION, "too old")


def handshake(expected: FrameType = FrameType.GREETING) -> Handshake:
    return Handshake(expected, deadline=10.0)


def test_the_greeting_is_handed_out_once_and_what_follows_is_kept() -> None:
    waiting = handshake()
    waiting.receive_data(codec.build_greeting(GREETING) + b"the session's", 1.0)
    waiting.receive_data(b" first bytes", 1.0)
    assert waiting.next_event() == GREETING
    assert waiting.next_event() is None
    assert waiting.rest() == b"the session's first bytes"
    assert waiting.next_timeout() is None


def test_the_gateway_waits_for_a_welcome() -> None:
    waiting = handshake(FrameType.WELCOME)
    waiting.receive_data(codec.build_welcome(WELCOME), 1.0)
    assert waiting.next_event() == WELCOME


@pytest.mark.parametrize("expected", [FrameType.GREETING, FrameType.WELCOME])
def test_both_sides_may_be_sent_away(expected: FrameType) -> None:
    waiting = handshake(expected)
    waiting.receive_data(codec.build_goaway(GOAWAY), 1.0)
    assert waiting.next_event() == GOAWAY


def test_any_segmentation_gives_the_same_first_frame() -> None:
    data = codec.build_greeting(GREETING)
    waiting = handshake()
    for index in range(len(data)):
        assert waiting.next_event() is None
        assert waiting.next_timeout() == 10.0
        waiting.receive_data(data[index : index + 1], 1.0)
    assert waiting.next_event() == GREETING


def test_anything_else_first_is_an_error() -> None:
    with pytest.raises(FrameLayoutError, match="WELCOME instead of GREETING"):
        handshake().receive_data(codec.build_welcome(WELCOME), 1.0)
    with pytest.raises(FrameLayoutError, match="GREETING on channel 1, expected 0"):
        handshake().receive_data(codec.build_frame(FrameType.GREETING, 1, b""), 1.0)
    with pytest.raises(FrameLayoutError, match="frame type 0x47"):
        handshake().receive_data(b"GET / HTTP/1.1\r\n\r\n".replace(b" / HT", bytes(6)), 1.0)


def test_a_first_frame_that_never_ends_is_an_error() -> None:
    waiting = handshake()
    start = bytes.fromhex("0100000000004000")
    waiting.receive_data(start + bytes(MAX_FIRST_FRAME - len(start)), 1.0)
    with pytest.raises(FrameSizeError, match="first frame over 1024 bytes"):
        waiting.receive_data(b"\0", 2.0)


def test_the_deadline_is_for_the_whole_frame() -> None:
    waiting = handshake()
    waiting.receive_data(codec.build_greeting(GREETING)[:-1], 9.0)
    waiting.handle_timeout(9.9)
    assert waiting.next_event() is None
    waiting.handle_timeout(10.5)
    assert waiting.next_event() == LinkDead(0.5)
    waiting.handle_timeout(11.0)
    assert waiting.next_event() is None


def test_it_has_nothing_to_say_and_no_bulk() -> None:
    assert handshake().data_to_send(1000) == b""
    assert not handshake().shares_the_line(0.0)


def test_the_longest_first_frames_fit() -> None:
    long = "x" * 255
    greeting = Greeting(bytes(8), bytes(16), 0, 0.0, False, long, long, 1, 1)
    welcome = Welcome(1, False, bytes(16), 0, 0, long, 0, long)
    goaway = GoAway(Code.OK, long, long)
    for data in (
        codec.build_greeting(greeting),
        codec.build_welcome(welcome),
        codec.build_goaway(goaway),
    ):
        assert len(data) <= MAX_FIRST_FRAME


@given(chunks=st.lists(st.binary(max_size=100), max_size=8))
def test_garbage_is_a_remote_error_and_nothing_else(chunks: list[bytes]) -> None:
    waiting = handshake()
    for chunk in chunks:
        try:
            waiting.receive_data(chunk, 1.0)
        except RemoteProtocolError:
            return
        waiting.next_event()
