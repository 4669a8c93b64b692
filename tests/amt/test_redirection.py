from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.amt import redirection
from gwmodule.amt.redirection import (
    MAX_AUTHENTICATION,
    DigestLogin,
    Direction,
    LoginMethod,
    MessageReader,
    MessageTracker,
    MessageType,
    RedirectionFormatError,
    SessionKind,
    message_size,
    session_kind,
)
from tests.amt.transcript import (
    AMTTERM,
    CHALLENGE,
    CNONCE,
    CONTROLS,
    FROM_DEVICE,
    HA1,
    LOGIN_PROMPT,
    NONCE,
    REALM,
    SOL_STARTED,
    START,
    START_SOL,
    STARTED,
    TO_DEVICE,
    chunks,
)

LARGEST_LOGIN = redirection.build_authenticate(LoginMethod.DIGEST, bytes(MAX_AUTHENTICATION))


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (b"\x10\0\0\0SOL ", SessionKind.SOL),
        (b"\x10\0\0\0IDER", SessionKind.IDER),
        (b"\x10\x01\0\0KVMR", SessionKind.KVM),
        (b"\x10\0\0\0XXXX", SessionKind.UNKNOWN),
        (b"\x10\0\0\0\0\0\0\0", SessionKind.UNKNOWN),
        (b"\x13\0\0\0SOL ", SessionKind.UNKNOWN),
        (b"\x10\0\0\0SOL", SessionKind.UNKNOWN),
        (b"", SessionKind.UNKNOWN),
    ],
)
def test_a_stream_is_classified_by_its_first_eight_bytes(first: bytes, kind: SessionKind) -> None:
    assert session_kind(first) is kind


# One built message of every type, from the layouts alone.
def built() -> Iterator[tuple[Direction, bytes]]:
    plain = {"status": 0, "sequence": 3}
    to_device, from_device = Direction.TO_DEVICE, Direction.FROM_DEVICE
    yield to_device, START
    yield to_device, redirection.END_SESSION.build({"type": 0x12})
    yield to_device, LARGEST_LOGIN
    yield to_device, redirection.build_start_sol(AMTTERM, 0)
    yield (
        to_device,
        redirection.SOL_CONTROLS_TO_HOST.build(plain | {"type": 0x27, "body": bytes(6)}),
    )
    yield to_device, redirection.build_sol_data(MessageType.SOL_DATA_TO_HOST, 0, b"x" * 65535)
    for kind in (0x22, 0x24, 0x25, 0x2B):
        yield to_device, redirection.build_sol_plain(MessageType(kind), 0)
    for kind in (0x23, 0x24, 0x25, 0x2B):
        yield from_device, redirection.build_sol_plain(MessageType(kind), 0)
    yield from_device, STARTED
    yield from_device, CHALLENGE
    yield from_device, SOL_STARTED
    yield from_device, CONTROLS
    yield from_device, LOGIN_PROMPT


@pytest.mark.parametrize(("direction", "message"), list(built()))
def test_the_size_rules_agree_with_the_layouts(direction: Direction, message: bytes) -> None:
    assert message_size(direction, message) == len(message)
    assert message_size(direction, message[:1]) in (None, len(message))


def test_a_type_of_the_other_direction_is_unknown() -> None:
    with pytest.raises(RedirectionFormatError, match="0x20 from device"):
        message_size(Direction.FROM_DEVICE, START_SOL)


def test_a_size_is_not_told_before_the_bytes_that_tell_it() -> None:
    for direction in Direction:
        assert message_size(direction, b"") is None
    assert message_size(Direction.FROM_DEVICE, b"\x11") is None
    assert message_size(Direction.FROM_DEVICE, b"\x11\x02") == 4
    assert message_size(Direction.TO_DEVICE, LARGEST_LOGIN[:8]) is None
    assert message_size(Direction.TO_DEVICE, LARGEST_LOGIN[:9]) == 9 + MAX_AUTHENTICATION


def test_a_refusal_is_only_the_device_s() -> None:
    with pytest.raises(RedirectionFormatError, match="0x11 to device is unknown"):
        message_size(Direction.TO_DEVICE, b"\x11\x02\0\0")


@given(st.lists(st.integers(1, 30), min_size=1))
def test_the_reader_cuts_whole_messages_out_of_any_segmentation(sizes: list[int]) -> None:
    reader, got = MessageReader(Direction.FROM_DEVICE), []
    for chunk in chunks(b"".join(FROM_DEVICE), sizes):
        reader.receive(chunk)
        while (message := reader.next_message()) is not None:
            got.append(message)
    assert got == list(FROM_DEVICE)
    reader.receive(b"\x99")
    with pytest.raises(RedirectionFormatError, match="0x99"):
        reader.next_message()


@pytest.mark.parametrize(
    ("method", "response"),
    [
        (LoginMethod.DIGEST, "d0188627ce6559a2cb50b5aeb956d5df"),
        (LoginMethod.DIGEST_RFC2069, "bc003076310965d13a3ec28169d5f02b"),
    ],
)
def test_the_response_is_the_one_of_the_worked_transcript(
    method: LoginMethod, response: str
) -> None:
    login = DigestLogin("admin", REALM, NONCE, cnonce=CNONCE, nc="00000002", qop="auth")
    assert redirection.digest_response(method, HA1, login) == response


@given(st.lists(st.integers(1, 30), min_size=1))
def test_the_tracker_knows_every_boundary_of_both_directions(sizes: list[int]) -> None:
    typed = redirection.build_sol_data(MessageType.SOL_DATA_TO_HOST, 1, b"\0" * 300)
    for direction, messages in (
        (Direction.TO_DEVICE, [*TO_DEVICE, typed, typed[:8] + b"\0\0"]),
        (Direction.FROM_DEVICE, FROM_DEVICE),
    ):
        tracker = MessageTracker(direction)
        ends = {0}
        for message in messages:
            ends.add(max(ends) + len(message))
        passed = 0
        for chunk in chunks(b"".join(messages), sizes):
            tracker.receive_data(chunk)
            passed += len(chunk)
            assert tracker.at_boundary == (passed in ends)
        assert not tracker.lost
        assert tracker.heartbeats == sum(message[0] == 0x2B for message in messages)


def test_the_tracker_reads_the_timers_of_a_passing_start_sol() -> None:
    tracker = MessageTracker(Direction.TO_DEVICE)
    assert tracker.settings is None
    for byte in START + START_SOL:
        tracker.receive_data(bytes([byte]))
    assert tracker.settings == AMTTERM


@pytest.mark.parametrize(
    ("direction", "stream"),
    [
        pytest.param(Direction.TO_DEVICE, b"\x99", id="unknown type"),
        pytest.param(Direction.TO_DEVICE, b"\x10\0\0\0IDER", id="a session that is not SOL"),
        pytest.param(Direction.TO_DEVICE, b"GET / HTTP/1.1", id="another protocol"),
        pytest.param(Direction.FROM_DEVICE, b"\x11\x02\0\0", id="a refusal"),
        pytest.param(Direction.FROM_DEVICE, b"\x21\x02\0\0", id="SOL refused"),
        pytest.param(Direction.FROM_DEVICE, b"\x14\0\0\0\0\0\0\0\x80", id="a login too large"),
        pytest.param(Direction.FROM_DEVICE, b"\x2b" + bytes(7) + b"\x41", id="not at first"),
    ],
)
def test_a_tracker_that_is_lost_stays_lost(direction: Direction, stream: bytes) -> None:
    tracker = MessageTracker(direction)
    tracker.receive_data(stream)
    assert tracker.lost
    tracker.receive_data(START + bytes(100))
    assert tracker.lost
    assert not tracker.at_boundary


@given(st.sampled_from(Direction), st.lists(st.binary(max_size=50)))
def test_the_tracker_survives_anything(direction: Direction, stream: list[bytes]) -> None:
    tracker = MessageTracker(direction)
    for chunk in stream:
        tracker.receive_data(chunk)
    assert not (tracker.lost and tracker.at_boundary)


def test_the_response_of_a_login_is_not_shown() -> None:
    assert "d0188627" not in repr(redirection.DigestLogin("admin", response="d0188627"))
