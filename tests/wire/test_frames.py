from __future__ import annotations

from gwmodule.wire.frames import (
    HEADER,
    HEADER_SIZE,
    MESSAGES,
    PAYLOADS,
    TOKEN_SIZE,
    UNSEQUENCED,
    FrameType,
    Priority,
)


def test_every_frame_type_has_its_layout() -> None:
    assert set(PAYLOADS) == set(FrameType)
    assert HEADER.sizeof() == HEADER_SIZE


def test_a_frame_is_of_one_kind_only() -> None:
    assert not UNSEQUENCED & MESSAGES
    channel_frames = set(FrameType) - UNSEQUENCED - MESSAGES
    assert channel_frames == {
        FrameType.OPEN,
        FrameType.ACCEPT,
        FrameType.REFUSE,
        FrameType.DATA,
        FrameType.EOF,
        FrameType.RESET,
    }


def test_the_classes_sort_by_urgency() -> None:
    assert sorted(Priority) == [Priority.CONTROL, Priority.INTERACTIVE, Priority.BULK]


def test_the_session_token_is_128_bits() -> None:
    assert TOKEN_SIZE == 16
