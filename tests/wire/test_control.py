from __future__ import annotations

import contextlib
from dataclasses import replace
from ipaddress import IPv4Address
from typing import get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.errors import Code, FrameLayoutError, FrameSizeError
from gwmodule.wire.control import build_message, parse_message
from gwmodule.wire.frames import (
    MAX_PAYLOAD,
    MESSAGES,
    CredentialMode,
    FrameType,
    TlsMode,
)
from gwmodule.wire.messages import (
    Call,
    Cancel,
    Challenge,
    Credential,
    Message,
    Notice,
    NoticeAck,
    Progress,
    Responses,
    Result,
)
from gwmodule.wire.notices import Gone
from tests.wire.pair import frames

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
TEXT8 = st.text(max_size=60)
MILLISECONDS = st.integers(0, 2**32 - 1).map(lambda ms: ms / 1000)
RESPONSE = st.binary(min_size=16, max_size=16)

CALLS = st.builds(
    Call,
    call=U32,
    deadline=MILLISECONDS,
    address=U32.map(IPv4Address),
    mac=st.binary(min_size=6, max_size=6),
    uuid=st.uuids(),
    function=TEXT8,
    arguments=st.binary(max_size=300),
    credential=st.builds(
        Credential,
        st.sampled_from([m for m in CredentialMode if m is not CredentialMode.CHALLENGE]),
        TEXT8,
        TEXT8,
        TEXT8,
    )
    | st.builds(Credential, st.just(CredentialMode.CHALLENGE), TEXT8, realm=TEXT8),
    tls=st.sampled_from(TlsMode),
    pin=st.binary(min_size=32, max_size=32),
)
RESULTS = st.builds(
    Result, U32, st.sampled_from(Code), MILLISECONDS, U16, st.binary(max_size=300), st.booleans()
)
ALL_MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Notice,
        U64,
        MILLISECONDS,
        st.builds(Gone, st.binary(min_size=6, max_size=6), U32.map(IPv4Address)),
    ),
    st.builds(NoticeAck, U64, st.booleans()),
    CALLS,
    st.builds(Progress, U32, U32, U32, TEXT8),
    RESULTS,
    st.builds(Cancel, U32),
    st.builds(Challenge, U32, TEXT8, TEXT8, TEXT8, U32, U8),
    st.builds(Responses, U32, TEXT8, st.lists(RESPONSE, max_size=64).map(tuple), TEXT8),
)
A_CALL = Call(1, 10.0, IPv4Address("10.0.0.1"), bytes(6), UUID(int=0), "power.get")
ONE_OF_EACH: list[Message] = [
    Notice(1, 2.0, Gone(bytes(6), IPv4Address("10.0.0.1"))),
    NoticeAck(1),
    A_CALL,
    Progress(1, 2, 3, "step"),
    Result(1, Code.OK, 0.5, 4, b"{}"),
    Cancel(1),
    Challenge(1, "realm", "nonce", "/wsman", 1, 2),
    Responses(1, "cnonce", (bytes(16),)),
]


def payload_of(data: bytes) -> bytes:
    (frame,) = frames(data)
    return frame.payload


def test_each_message_has_its_frame_type() -> None:
    assert {type(message) for message in ONE_OF_EACH} == set(get_args(Message))
    assert {frames(build_message(message))[0].type for message in ONE_OF_EACH} == MESSAGES


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda message: type(message).__name__)
def test_a_message_cut_anywhere_is_an_error_or_has_a_shorter_body(message: Message) -> None:
    (frame,) = frames(build_message(message))
    for size in range(len(frame.payload)):
        short = frame.payload[:size]
        if isinstance(message, Result) and size >= len(frame.payload) - len(message.body):
            # What the body is, is nobody's business here.
            assert parse_message(frame.type, short) != message
        elif isinstance(message, Responses) and size == len(frame.payload) - 16:
            assert parse_message(frame.type, short) == replace(message, responses=())
        else:
            with pytest.raises(FrameLayoutError, match=f"{frame.type.name}|observation"):
                parse_message(frame.type, short)


@pytest.mark.parametrize(
    "message", ONE_OF_EACH[:4] + ONE_OF_EACH[5:], ids=lambda message: type(message).__name__
)
def test_a_message_with_something_behind_it_is_an_error(message: Message) -> None:
    (frame,) = frames(build_message(message))
    with pytest.raises(FrameLayoutError, match=f"{frame.type.name}|observation"):
        parse_message(frame.type, frame.payload + b"\0")


@given(frame_type=st.sampled_from(FrameType), data=st.binary(max_size=200))
def test_garbage_is_a_remote_error_and_nothing_else(frame_type: FrameType, data: bytes) -> None:
    with contextlib.suppress(FrameLayoutError):
        parse_message(frame_type, data)


@given(message=ALL_MESSAGES)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    (frame,) = frames(build_message(message))
    assert frame.channel == 0
    assert parse_message(frame.type, frame.payload) == message


def test_only_messages_are_messages() -> None:
    with pytest.raises(FrameLayoutError, match="ACK is no control message"):
        parse_message(FrameType.ACK, bytes(8))


def test_a_message_too_large_for_a_frame_is_our_own_error() -> None:
    fits = MAX_PAYLOAD - len(payload_of(build_message(Result(1, Code.OK, 0, 0, b""))))
    build_message(Result(1, Code.OK, 0, 0, bytes(fits)))
    with pytest.raises(FrameSizeError, match="RESULT of 16385 bytes, maximum 16384"):
        build_message(Result(1, Code.OK, 0, 0, bytes(fits + 1)))


def test_values_too_large_for_their_fields_are_cut_or_refused() -> None:
    result = Result(1, Code.OK, 1e9, 1 << 20, b"")
    parsed = parse_message(FrameType.RESULT, payload_of(build_message(result)))
    assert parsed == Result(1, Code.OK, 0xFFFFFFFF / 1000, 0xFFFF, b"")
    old = Notice(1, 1e9, Gone(bytes(6), IPv4Address("10.0.0.1")))
    parsed = parse_message(FrameType.NOTICE, payload_of(build_message(old)))
    assert isinstance(parsed, Notice)
    assert parsed.age == 0xFFFFFFFF / 1000
    long_name = Call(1, 10.0, IPv4Address("10.0.0.1"), bytes(6), UUID(int=0), "x" * 256)
    with pytest.raises(FrameSizeError, match="CALL cannot be built: "):
        build_message(long_name)


def test_no_error_shows_a_secret() -> None:
    secret = Credential(CredentialMode.PASSWORD, "admin", "P@ssw0rd" * 40, "realm")
    call = Call(1, 10.0, IPv4Address("10.0.0.1"), bytes(6), UUID(int=0), "f", credential=secret)
    with pytest.raises(FrameSizeError) as info:
        build_message(call)
    assert "P@ss" not in f"{info.value}{info.value.__context__!r:.0}{call!r}"
    secret.secret = "P@ssw0rd\ud800"
    with pytest.raises(FrameLayoutError, match="not Unicode") as other:
        build_message(call)
    assert "P@ss" not in str(other.value)


def test_a_call_with_wrong_utf8_or_numbers_is_an_error() -> None:
    good = payload_of(build_message(A_CALL))
    tls = good.index(b"\x09power.get") - 33
    for wrong in (good.replace(b"power", b"pow\xffr"), good[:tls] + b"\x09" + good[tls + 1 :]):
        with pytest.raises(FrameLayoutError, match="CALL: "):
            parse_message(FrameType.CALL, wrong)


def test_a_call_in_mode_challenge_never_carries_its_secret() -> None:
    secret = "5f4dcc3b5aa765d61d8327deb882cf99"
    call = replace(
        A_CALL, credential=Credential(CredentialMode.CHALLENGE, "admin", secret, "Digest:A1")
    )
    built = build_message(call)
    assert secret.encode() not in built
    parsed = parse_message(FrameType.CALL, payload_of(built))
    assert isinstance(parsed, Call)
    assert parsed.credential == Credential(CredentialMode.CHALLENGE, "admin", "", "Digest:A1")


def test_a_part_of_a_response_is_refused() -> None:
    built = payload_of(build_message(Responses(1, "c", (bytes(16),))))
    with pytest.raises(FrameLayoutError, match="15 bytes"):
        parse_message(FrameType.RESPONSES, built[:-1])
