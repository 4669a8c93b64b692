import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.amt.redirection import (
    Control,
    ControlStatus,
    Direction,
    LoginMethod,
    MessageReader,
    MessageType,
    SolSettings,
)
from gwmodule.amt.sol import (
    SolClient,
    SolClosed,
    SolControls,
    SolData,
    SolEvent,
    SolOpened,
    SolRefused,
    fresh_cnonce,
)
from gwmodule.errors import LocalProtocolError
from tests.amt.transcript import (
    ACCEPTED,
    ADMIN,
    AMTTERM,
    CHALLENGE,
    CNONCE,
    FIRST,
    FROM_DEVICE,
    HA1,
    LOGIN_PROMPT,
    METHODS,
    REALM,
    SECOND,
    SOL_ENDED,
    SOL_STARTED,
    STARTED,
    TO_DEVICE,
    chunks,
)


def client(**changes: object) -> SolClient:
    arguments: dict[str, object] = {
        "now": 0.0,
        "password": "P@ssw0rd",
        "settings": AMTTERM,
        "cnonce": lambda: CNONCE,
    }
    return SolClient("admin", **(arguments | changes))  # type: ignore[arg-type]


def sent(sol: SolClient) -> bytes:
    return sol.data_to_send(1 << 20)


def events(sol: SolClient) -> list[SolEvent]:
    return list(iter(sol.next_event, None))


def feed(sol: SolClient, *messages: bytes, now: float = 0.0) -> list[bytes]:
    """What the client says first and after each message."""
    said = [sent(sol)]
    for message in messages:
        sol.receive_data(message, now)
        said.append(sent(sol))
    return said


@pytest.fixture
def opened() -> SolClient:
    sol = client()
    feed(sol, STARTED, METHODS, CHALLENGE, ACCEPTED, SOL_STARTED)
    assert events(sol) == [SolOpened(LoginMethod.DIGEST)]
    return sol


def test_the_transcript_is_spoken_byte_for_byte() -> None:
    sol = client()
    assert feed(sol, *FROM_DEVICE) == [*TO_DEVICE, b"", b"", b""]
    assert events(sol) == [
        SolOpened(LoginMethod.DIGEST),
        SolControls(Control.DTR, ControlStatus.SYSTEM_POWERED_ON),
        SolData(b"login: "),
    ]


def test_a_typed_line_becomes_data_to_host_with_the_next_sequence(opened: SolClient) -> None:
    opened.send(b"hello\r")
    assert sent(opened) == bytes.fromhex("28000000 01000000 0600 68656c6c6f0d")


def test_ha1_of_the_recorded_realm_logs_in_without_the_password() -> None:
    sol = client(password="", ha1=HA1, realm=REALM)
    assert feed(sol, STARTED, METHODS, CHALLENGE)[3] == SECOND


def test_another_realm_than_the_recorded_one_gets_no_response() -> None:
    sol = client(password="", ha1=HA1, realm="Digest:" + "0" * 32)
    assert feed(sol, STARTED, METHODS, CHALLENGE)[3] == bytes.fromhex("12000000")
    [refused] = events(sol)
    assert isinstance(refused, SolRefused)
    assert "realm" in refused.reason


def test_a_device_that_only_knows_rfc_2069_gets_method_3() -> None:
    methods = bytes.fromhex("14000000 00 02000000 01 03")
    challenge = bytes.fromhex("14010000 03 49000000") + CHALLENGE[9:-5][:0x49]
    said = feed(client(), STARTED, methods, challenge)
    assert said[2] == bytes.fromhex("13000000 03 1f000000") + FIRST[9:-1]
    assert said[3][4] == LoginMethod.DIGEST_RFC2069
    assert b"bc003076310965d13a3ec28169d5f02b" in said[3]


@pytest.mark.parametrize("methods", ["14000000 00 01000000 01", "14020000 00 00000000"])
def test_clear_text_is_spoken_only_when_allowed(methods: str) -> None:
    timid, bold = client(), client(allow_clear_text=True)
    assert feed(timid, STARTED, bytes.fromhex(methods))[2] == bytes.fromhex("12000000")
    assert isinstance(events(timid)[0], SolRefused)
    said = feed(bold, STARTED, bytes.fromhex(methods))[2]
    assert said == bytes.fromhex("13000000 01 0f000000") + ADMIN + b"\x08P@ssw0rd"


def test_digest_is_preferred_even_if_clear_text_is_allowed() -> None:
    methods = bytes.fromhex("14000000 00 03000000 01 03 04")
    assert feed(client(allow_clear_text=True), STARTED, methods)[2] == FIRST


def test_a_second_challenge_is_not_answered() -> None:
    sol = client()
    assert feed(sol, STARTED, METHODS, CHALLENGE, CHALLENGE)[4] == bytes.fromhex("12000000")
    assert events(sol) == [SolRefused(1, "wrong user name or password")]
    sol.receive_data(CHALLENGE, 0.0)
    assert sent(sol) == b""
    assert sol.next_timeout() is None


def test_a_busy_device_is_named_so_even_if_it_sends_four_bytes_only() -> None:
    sol = client()
    feed(sol, bytes.fromhex("11020000"))
    assert events(sol) == [SolRefused(2, "busy: another SOL session is open")]


@pytest.mark.parametrize("status", [1, 3, 0xFF])
def test_every_refusal_has_a_reason(status: int) -> None:
    sol = client()
    feed(sol, bytes([0x11, status, 0, 0]))
    [refused] = events(sol)
    assert isinstance(refused, SolRefused)
    assert refused.status == status
    assert refused.reason


def test_sol_itself_may_be_refused() -> None:
    sol = client()
    feed(sol, STARTED, METHODS, CHALLENGE, ACCEPTED, b"\x21\x02\0\0")
    assert events(sol) == [SolRefused(2, "busy: another SOL session is open")]


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(bytes.fromhex("14000000 04 00000000"), id="accepted without a proof"),
        pytest.param(bytes.fromhex("14010000 03 00000000"), id="another method"),
        pytest.param(CHALLENGE[:-4] + b"none", id="another quality of protection"),
    ],
)
def test_a_reply_that_is_no_usable_challenge_ends_the_login(reply: bytes) -> None:
    sol = client()
    assert feed(sol, STARTED, METHODS, reply)[3] == bytes.fromhex("12000000")
    assert isinstance(events(sol)[0], SolRefused)


def test_a_heartbeat_is_answered(opened: SolClient) -> None:
    opened.receive_data(bytes.fromhex("2b000000 05000000"), 1.0)
    assert sent(opened) == bytes.fromhex("2b000000 01000000")
    assert events(opened) == []


def test_a_ping_is_answered_with_its_own_sequence(opened: SolClient) -> None:
    opened.receive_data(bytes.fromhex("24000000 07000000"), 1.0)
    assert sent(opened) == bytes.fromhex("25000000 07000000")


def test_a_silent_user_sends_heartbeats_within_the_devices_patience(opened: SolClient) -> None:
    # Rx timeout 10 s: at 2.5 s, for nothing was said.
    assert opened.next_timeout() == 2.5
    opened.handle_timeout(2.5)
    assert sent(opened) == bytes.fromhex("2b000000 01000000")


def test_a_typing_user_needs_no_heartbeat(opened: SolClient) -> None:
    opened.send(b"x")
    sent(opened)
    opened.handle_timeout(2.5)
    assert sent(opened) == b""
    opened.handle_timeout(5.0)
    assert sent(opened)[0] == MessageType.SOL_HEARTBEAT


def test_a_silent_device_ends_the_session(opened: SolClient) -> None:
    opened.receive_data(LOGIN_PROMPT, 15.0)
    opened.handle_timeout(20.0)
    assert events(opened) == [SolData(b"login: ")]
    opened.handle_timeout(35.0)
    assert events(opened) == [SolClosed("the device is silent")]


def test_a_device_that_never_answers_the_login_is_given_up() -> None:
    sol = client(login_timeout=7.0)
    assert sol.next_timeout() == 7.0
    sol.handle_timeout(7.0)
    assert events(sol) == [SolClosed("the device is silent")]


def test_closing_ends_sol_then_the_session(opened: SolClient) -> None:
    opened.close()
    assert sent(opened) == bytes.fromhex("22000000 01000000")
    opened.send(b"\x1d")
    assert sent(opened) == b""
    opened.receive_data(LOGIN_PROMPT + SOL_ENDED, 1.0)
    assert sent(opened) == bytes.fromhex("12000000")
    assert events(opened) == [SolData(b"login: "), SolClosed("closed by us")]


def test_closing_does_not_wait_for_ever(opened: SolClient) -> None:
    opened.close()
    opened.close()
    deadline = opened.next_timeout()
    assert deadline == SolClient.CLOSE_TIMEOUT
    opened.handle_timeout(deadline)
    assert events(opened) == [SolClosed("closed by us")]


def test_closing_during_the_login_leaves_at_once() -> None:
    sol = client()
    feed(sol, STARTED)
    sol.close()
    assert sent(sol) == bytes.fromhex("12000000")
    assert events(sol) == [SolClosed("closed by us")]
    sol.close()
    assert events(sol) == []


def test_the_devices_end_is_told(opened: SolClient) -> None:
    opened.receive_data(b"", 1.0)
    assert events(opened) == [SolClosed("the device closed the connection")]


def test_the_device_may_end_sol(opened: SolClient) -> None:
    opened.receive_data(SOL_ENDED, 1.0)
    assert events(opened) == [SolClosed("the device ended SOL")]


def test_a_paste_is_cut_and_sent_within_the_budget(opened: SolClient) -> None:
    paste = bytes(range(256)) * 2
    opened.send(paste + b"end")
    assert opened.pending == 3 * 10 + len(paste) + 3
    pieces = b"".join(iter(lambda: opened.data_to_send(7), b""))
    reader = MessageReader(Direction.TO_DEVICE)
    reader.receive(pieces)
    messages = list(iter(reader.next_message, None))
    assert [len(message) - 10 for message in messages] == [256, 256, 3]
    assert b"".join(message[10:] for message in messages) == paste + b"end"
    assert [message[4] for message in messages] == [1, 2, 3]


def test_typing_before_the_line_is_open_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        client().send(b"x")


@pytest.mark.parametrize(
    "changes",
    [{"password": ""}, {"ha1": HA1}, {"password": "", "ha1": HA1}, {"password": "x" * 256}],
)
def test_a_login_that_cannot_work_is_our_own_mistake(changes: dict[str, str]) -> None:
    with pytest.raises(LocalProtocolError):
        client(**changes)


def test_two_fresh_client_nonces_differ_and_fit_the_firmware() -> None:
    one, other = fresh_cnonce(), fresh_cnonce()
    assert one != other
    assert len(one) == 32


@given(st.lists(st.integers(1, 40), min_size=1))
def test_any_segmentation_gives_the_same_session(sizes: list[int]) -> None:
    sol = client()
    said = sent(sol)
    stream = b"".join(FROM_DEVICE)
    for chunk in chunks(stream, sizes):
        sol.receive_data(chunk, 0.0)
        said += sent(sol)
    assert said == b"".join(TO_DEVICE)
    assert events(sol)[-1] == SolData(b"login: ")


@given(st.integers(0, len(FROM_DEVICE)), st.binary(min_size=1, max_size=200))
def test_garbage_at_any_point_is_an_event_and_never_an_exception(good: int, garbage: bytes) -> None:
    sol = client()
    feed(sol, *FROM_DEVICE[:good], garbage, garbage)
    ends = [e for e in events(sol) if isinstance(e, SolClosed | SolRefused)]
    assert len(ends) <= 1
    if ends:
        sol.receive_data(garbage, 1.0)
        assert sol.next_timeout() is None
        assert events(sol) == []


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n", id="http"),
        pytest.param(LOGIN_PROMPT, id="data before the login"),
        pytest.param(bytes.fromhex("14000000 00 ffffffff"), id="a login of 4 GB"),
    ],
)
def test_what_is_no_answer_says_so(message: bytes) -> None:
    sol = client()
    feed(sol, message)
    [closed] = events(sol)
    assert isinstance(closed, SolClosed)
    assert "does not speak the redirection protocol" in closed.reason


def test_a_challenge_cut_short_inside_says_so() -> None:
    sol = client()
    feed(sol, STARTED, METHODS, bytes.fromhex("14010000 04 02000000 27 44"))
    [closed] = events(sol)
    assert isinstance(closed, SolClosed)


@pytest.mark.parametrize("position", [9, 49])
def test_a_challenge_that_is_no_text_says_so(position: int) -> None:
    sol = client()
    texts = b"\xff" + b"\xff" * 255 + b"\xff" + b"n" * 255 + b"\x04auth"
    if position == 49:
        texts = b"\xff" + b"r" * 255 + b"\xff" + b"\xff" * 255 + b"\x04auth"
    length = len(texts).to_bytes(4, "little")
    feed(sol, STARTED, METHODS, bytes.fromhex("14010000 04") + length + texts)
    [closed] = events(sol)
    assert isinstance(closed, SolClosed)
    assert "not UTF-8" in closed.reason


def test_an_empty_data_message_is_no_event(opened: SolClient) -> None:
    opened.receive_data(bytes.fromhex("2a000000 00000000 0000 25000000 00000000"), 0.0)
    assert events(opened) == []


def test_a_client_that_waits_for_ever_still_keeps_alive() -> None:
    forever = SolSettings(host_session_rx_timeout_ms=0)
    sol = client(settings=forever, silence_timeout=0)
    feed(sol, STARTED, METHODS, CHALLENGE, ACCEPTED, SOL_STARTED)
    assert sol.next_timeout() == 20.0
    sol.handle_timeout(19.9)
    assert sent(sol) == b""
    sol.handle_timeout(20.0)
    assert sent(sol)[0] == MessageType.SOL_HEARTBEAT
    assert sol.next_timeout() == 40.0


def test_the_password_is_not_shown(opened: SolClient) -> None:
    assert "P@ssw0rd" not in repr(opened)


def test_a_ping_tells_how_long_the_device_took_and_is_not_repeated(opened: SolClient) -> None:
    opened.ping(now=3.0)
    opened.ping(now=3.2)
    assert sent(opened) == bytes.fromhex("24000000 01000000")
    opened.receive_data(bytes.fromhex("25000000 01000000") * 2, 3.5)
    assert opened.round_trip == 0.5


def test_no_ping_leaves_before_the_line_is_open() -> None:
    sol = client()
    sent(sol)
    sol.ping(now=0.0)
    assert sent(sol) == b""
    assert sol.round_trip is None
