from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv4Address

import pytest
from construct import ConstructError, StreamError
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.errors import (
    Code,
    FrameLayoutError,
    FrameSizeError,
)
from gwmodule.wire import codec
from gwmodule.wire.codec import Decoder, Frame
from gwmodule.wire.frames import (
    HEADER,
    HEADER_SIZE,
    MAX_PAYLOAD,
    PAYLOADS,
    ChannelKind,
    FrameType,
    Priority,
)
from gwmodule.wire.messages import (
    GoAway,
    Greeting,
    ResultTarget,
    StreamTarget,
    Welcome,
)

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
TEXT8 = st.text(max_size=60)
MILLISECONDS = st.integers(0, 2**32 - 1).map(lambda ms: ms / 1000)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


FRAMES = st.lists(
    st.builds(Frame, st.sampled_from(FrameType), U16, st.binary(max_size=80)), max_size=8
)
TARGETS = st.one_of(
    st.builds(
        StreamTarget,
        U32.map(IPv4Address),
        U16,
        st.binary(min_size=6, max_size=6),
        st.uuids(),
        st.booleans(),
    ),
    st.builds(ResultTarget, U32),
)
GREETINGS = st.builds(
    Greeting,
    boot_id=st.binary(min_size=8, max_size=8),
    token=st.binary(min_size=16, max_size=16),
    received=U64,
    timeout=MILLISECONDS,
    clock_trusted=st.booleans(),
    deployment=TEXT8,
    software=TEXT8,
    lowest_version=U8,
    highest_version=U8,
)
WELCOMES = st.builds(
    Welcome,
    version=U8,
    resumed=st.booleans(),
    token=st.binary(min_size=16, max_size=16),
    received=U64,
    wait=U16,
    observed_address=TEXT8,
    observed_port=U16,
    gateway=TEXT8,
)
GOAWAYS = st.builds(GoAway, st.sampled_from(Code), TEXT8, TEXT8, U16)


def decoded(data: bytes) -> list[Frame]:
    decoder = Decoder()
    decoder.receive(data)
    found = []
    while (frame := decoder.next_frame()) is not None:
        found.append(frame)
    return found


def payload(data: bytes) -> bytes:
    (frame,) = decoded(data)
    return frame.payload


# ---- the struct forms -------------------------------------------------------------------------


@given(frame_type=st.sampled_from(FrameType), channel=U16, data=st.binary(max_size=40))
def test_the_header_is_built_as_construct_builds_it(
    frame_type: FrameType, channel: int, data: bytes
) -> None:
    header = HEADER.build({"type": frame_type, "flags": 0, "channel": channel, "length": len(data)})
    assert codec.build_frame(frame_type, channel, data) == header + data
    assert len(header) == HEADER.sizeof() == HEADER_SIZE


@given(head=st.binary(min_size=8, max_size=8))
def test_the_header_is_parsed_as_construct_parses_it(head: bytes) -> None:
    parsed = HEADER.parse(head)
    decoder = Decoder()
    decoder.receive(head + bytes(min(parsed.length, MAX_PAYLOAD)))
    if parsed.length > MAX_PAYLOAD:
        with pytest.raises(FrameSizeError, match=f"payload of {parsed.length} bytes"):
            decoder.next_frame()
    elif parsed.flags or parsed.type not in set(FrameType):
        with pytest.raises(FrameLayoutError, match=f"type {parsed.type:#04x} with flags"):
            decoder.next_frame()
    else:
        frame = decoder.next_frame()
        assert frame == Frame(FrameType(parsed.type), parsed.channel, bytes(parsed.length))


@given(cookie=U32, received=U64, limit=U64, channel=U16, rtt_us=U32)
def test_hot_frames_are_built_as_construct_builds_them(
    cookie: int, received: int, limit: int, channel: int, rtt_us: int
) -> None:
    built = {
        FrameType.PING: codec.build_ping(cookie, received, (rtt_us + 0.5) / 1e6),
        FrameType.PONG: codec.build_pong(cookie, received),
        FrameType.ACK: codec.build_ack(received),
        FrameType.CREDIT: codec.build_credit(channel, limit, received),
    }
    values = {"cookie": cookie, "received": received, "limit": limit, "rtt_us": rtt_us}
    for frame_type, data in built.items():
        assert payload(data) == PAYLOADS[frame_type].build(values)


@pytest.mark.parametrize("frame_type", ["PING", "PONG", "ACK", "CREDIT"])
@given(data=st.binary(max_size=20) | st.sampled_from([8, 12, 16]).flatmap(exactly))
def test_hot_frames_are_parsed_as_construct_parses_them(frame_type: str, data: bytes) -> None:
    layout = PAYLOADS[FrameType[frame_type]]
    parse = getattr(codec, f"parse_{frame_type.lower()}")
    try:
        expected = layout.parse(data)
    except ConstructError:
        with pytest.raises(FrameLayoutError, match=f"{frame_type} of {len(data)} bytes"):
            parse(data)
        return
    parsed = parse(data)
    values = parsed if isinstance(parsed, tuple) else (parsed,)
    if frame_type == "PING":
        values = (*values[:2], round(values[2] * 1e6))
    assert values == tuple(value for key, value in expected.items() if not key.startswith("_"))


@pytest.mark.parametrize("size", range(HEADER_SIZE))
def test_a_truncated_header_is_no_frame_in_either_form(size: int) -> None:
    head = codec.build_ack(1)[:size]
    assert decoded(head) == []
    with pytest.raises(StreamError):
        HEADER.parse(head)


def test_a_round_trip_too_long_for_its_field_is_cut() -> None:
    assert codec.parse_ping(payload(codec.build_ping(1, 2, 1e9))) == (1, 2, 0xFFFFFFFF / 1e6)


# ---- the decoder ------------------------------------------------------------------------------


@given(sent=FRAMES, cuts=st.lists(st.integers(0, 800), max_size=12))
def test_any_segmentation_gives_the_same_frames(sent: list[Frame], cuts: list[int]) -> None:
    wire = b"".join(codec.build_frame(*frame) for frame in sent)
    decoder, found = Decoder(), []
    ends = sorted({min(cut, len(wire)) for cut in cuts} | {len(wire)})
    for start, end in zip([0, *ends], ends, strict=False):
        decoder.receive(wire[start:end])
        while (frame := decoder.next_frame()) is not None:
            found.append(frame)
    assert found == sent
    assert decoder.rest() == b""


def test_what_lies_behind_a_frame_is_its_rest() -> None:
    decoder = Decoder()
    decoder.receive(codec.build_ack(1) + b"rest")
    assert decoder.next_frame() == Frame(FrameType.ACK, 0, bytes(7) + b"\1")
    assert decoder.rest() == b"rest"


def test_a_wrong_header_is_an_error_before_its_payload_arrives() -> None:
    with pytest.raises(FrameSizeError, match="payload of 16385 bytes, maximum 16384") as info:
        decoded(struct.pack(">BBHI", FrameType.DATA, 0, 1, MAX_PAYLOAD + 1))
    assert info.value.code is Code.FRAME_SIZE
    with pytest.raises(FrameLayoutError, match="frame type 0x13 with flags 0x80") as other:
        decoded(struct.pack(">BBHI", FrameType.DATA, 0x80, 1, 5))
    assert other.value.code is Code.FRAME_LAYOUT
    assert decoded(codec.build_frame(FrameType.DATA, 1, bytes(MAX_PAYLOAD)))


# ---- typed contents ---------------------------------------------------------------------------


@given(priority=st.sampled_from([Priority.INTERACTIVE, Priority.BULK]), limit=U32, target=TARGETS)
def test_an_open_comes_back_as_it_was(
    priority: Priority, limit: int, target: StreamTarget | ResultTarget
) -> None:
    data = codec.build_open(priority, limit, target)
    assert codec.parse_open(data) == (priority, limit, target)


@given(greeting=GREETINGS, welcome=WELCOMES, goaway=GOAWAYS)
def test_first_frames_come_back_as_they_were(
    greeting: Greeting, welcome: Welcome, goaway: GoAway
) -> None:
    assert codec.parse_greeting(payload(codec.build_greeting(greeting))) == greeting
    assert codec.parse_welcome(payload(codec.build_welcome(welcome))) == welcome
    assert codec.parse_goaway(payload(codec.build_goaway(goaway))) == goaway


@given(limit=U32, code=st.sampled_from(Code), reason=TEXT8)
def test_answers_come_back_as_they_were(limit: int, code: Code, reason: str) -> None:
    assert codec.parse_accept(codec.build_accept(limit)) == limit
    for frame_type in (FrameType.REFUSE, FrameType.RESET):
        built = codec.build_end(frame_type, code, reason)
        assert codec.parse_end(frame_type, built) == (code, reason)


def built_payloads() -> list[tuple[FrameType, bytes]]:
    greeting = Greeting(bytes(8), bytes(16), 7, 12.0, True, "gateway", "gwmodule/1", 1, 1)
    welcome = Welcome(1, True, bytes(16), 7, 120, "192.0.2.1", 40000, "gw-1")
    target = StreamTarget(IPv4Address("10.0.0.1"), 16994, bytes(6))
    first = [
        codec.build_greeting(greeting),
        codec.build_welcome(welcome),
        codec.build_goaway(GoAway(Code.SHUTDOWN, "bye", "msp:1", 9)),
    ]
    return [
        *((decoded(data)[0].type, payload(data)) for data in first),
        (FrameType.OPEN, codec.build_open(Priority.BULK, 5, target)),
        (FrameType.OPEN, codec.build_open(Priority.BULK, 5, ResultTarget(5))),
        (FrameType.ACCEPT, codec.build_accept(5)),
        (FrameType.REFUSE, codec.build_end(FrameType.REFUSE, Code.LIMIT, "full")),
        (FrameType.RESET, codec.build_end(FrameType.RESET, Code.LIMIT, "full")),
    ]


PARSED_HERE = sorted({frame_type for frame_type, _ in built_payloads()})


def parse(frame_type: FrameType, data: bytes) -> object:
    match frame_type:
        case FrameType.GREETING:
            return codec.parse_greeting(data)
        case FrameType.WELCOME:
            return codec.parse_welcome(data)
        case FrameType.GOAWAY:
            return codec.parse_goaway(data)
        case FrameType.OPEN:
            return codec.parse_open(data)
        case FrameType.ACCEPT:
            return codec.parse_accept(data)
        case _:
            return codec.parse_end(frame_type, data)


@pytest.mark.parametrize(("frame_type", "data"), built_payloads())
def test_a_payload_cut_or_lengthened_anywhere_is_an_error(
    frame_type: FrameType, data: bytes
) -> None:
    parse(frame_type, data)
    for wrong in (*(data[:size] for size in range(len(data))), data + b"\0"):
        with pytest.raises(FrameLayoutError, match=frame_type.name):
            parse(frame_type, wrong)


@given(frame_type=st.sampled_from(PARSED_HERE), data=st.binary(max_size=200))
def test_garbage_is_a_remote_error_and_nothing_else(frame_type: FrameType, data: bytes) -> None:
    with contextlib.suppress(FrameLayoutError):
        parse(frame_type, data)


@pytest.mark.parametrize(
    ("kind", "priority", "message"),
    [
        (3, 1, "3 is not a valid ChannelKind"),
        (ChannelKind.RESULT, 3, "3 is not a valid Priority"),
        (ChannelKind.RESULT, 0, "priority CONTROL"),
    ],
)
def test_an_open_with_unknown_numbers_is_an_error(kind: int, priority: int, message: str) -> None:
    body = struct.pack(">BBI", kind, priority, 0) + (bytes(4) if kind == 2 else b"")
    with pytest.raises(FrameLayoutError, match=message):
        codec.parse_open(body)


def test_a_code_from_the_future_is_internal() -> None:
    data = PAYLOADS[FrameType.RESET].build({"code": 65000, "reason": b"a new one"})
    assert codec.parse_end(FrameType.RESET, data) == (Code.INTERNAL, "a new one")


def test_a_text_is_cut_at_255_bytes_and_a_lone_surrogate_replaced() -> None:
    code, reason = codec.parse_end(
        FrameType.RESET, codec.build_end(FrameType.RESET, Code.INTERNAL, "é" * 200)
    )
    assert (code, reason) == (Code.INTERNAL, "é" * 127 + "\N{REPLACEMENT CHARACTER}")
    built = codec.build_end(FrameType.RESET, Code.INTERNAL, "\ud800")
    assert codec.parse_end(FrameType.RESET, built) == (Code.INTERNAL, "?")
