from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.amt import redirection
from gwmodule.amt.redirection import (
    Direction,
    LoginMethod,
    MessageReader,
    MessageType,
    SessionKind,
    SolSettings,
    build_authenticate,
    build_sol_data,
    build_sol_plain,
    build_start_sol,
)
from gwmodule.amt.sol import SolClient, SolData, SolEvent, SolOpened, SolRefused
from gwmodule.sim.machine import Machine, PowerRequest, Provisioning
from gwmodule.sim.profiles import PROFILES
from gwmodule.sim.redirection import (
    MAX_BACKLOG,
    MAX_FAILED_LOGINS,
    STAND_ALONE_PAUSE,
    Login,
    RedirectionServer,
)
from gwmodule.sim.serial import MAX_SERIAL
from tests.amt import transcript

PC = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
QUICK = SolSettings(tx_buffer_timeout_ms=10, host_session_rx_timeout_ms=0, heartbeat_interval_ms=0)


def machine(**changes: object) -> Machine:
    arguments: dict[str, object] = {"now": 0.0, "realm": transcript.REALM}
    return Machine(PC, "P@ssw0rd", **(arguments | changes))  # type: ignore[arg-type]


def server(pc: Machine, login: Login = Login.DIGEST) -> RedirectionServer:
    return RedirectionServer(pc, now=0.0, login=login, nonce=lambda: transcript.NONCE)


def sent(device: RedirectionServer) -> bytes:
    return device.data_to_send(1 << 20)


def ask(device: RedirectionServer, *messages: bytes, now: float = 0.0) -> bytes:
    """The device's answer to the last message."""
    answer = b""
    for message in messages:
        device.receive_data(message, now)
        answer = sent(device)
    return answer


def opened(pc: Machine, settings: SolSettings = QUICK) -> RedirectionServer:
    device = server(pc, Login.PLAIN)
    login = redirection.CLEAR_TEXT_LOGIN.build({"username": b"admin", "password": b"P@ssw0rd"})
    ask(device, transcript.START, build_authenticate(LoginMethod.CLEAR_TEXT, login))
    assert ask(device, build_start_sol(settings, 0)) == transcript.SOL_STARTED
    return device


def later(device: RedirectionServer, now: float) -> list[bytes]:
    """The whole messages that come until `now`, timer by timer."""
    reader = MessageReader(Direction.FROM_DEVICE)
    reader.receive(sent(device))
    while (deadline := device.next_timeout()) is not None and deadline <= now:
        device.handle_timeout(deadline)
        reader.receive(sent(device))
    return list(iter(reader.next_message, None))


def test_the_transcript_is_answered_byte_for_byte() -> None:
    device = server(machine())
    started = ask(device, transcript.START)
    assert started[:6] + started[8:] == transcript.STARTED[:6] + transcript.STARTED[8:]
    assert ask(device, transcript.QUERY) == transcript.METHODS
    assert ask(device, transcript.FIRST) == transcript.CHALLENGE
    assert ask(device, transcript.SECOND) == transcript.ACCEPTED
    assert ask(device, transcript.START_SOL) == transcript.SOL_STARTED
    messages = later(device, 1.0)
    assert messages[0] == transcript.CONTROLS
    assert messages[1][0] == MessageType.SOL_DATA_FROM_HOST
    assert messages[1][10:] == b"\r\npc login: "


def test_replies_that_amtterm_reads_alone_travel_alone() -> None:
    device = opened(machine())
    device.handle_timeout(STAND_ALONE_PAUSE / 2)
    assert sent(device) == b""
    device.handle_timeout(STAND_ALONE_PAUSE)
    assert sent(device)[0] == MessageType.SOL_CONTROLS_FROM_HOST
    assert sent(device) == b""
    device.handle_timeout(2 * STAND_ALONE_PAUSE)
    assert sent(device)[0] == MessageType.SOL_DATA_FROM_HOST


def test_an_empty_digest_response_is_refused() -> None:
    device = server(machine())
    ask(device, transcript.START, transcript.FIRST)
    login = redirection.DigestLogin("admin", transcript.REALM, transcript.NONCE)
    login.cnonce, login.nc, login.qop = transcript.CNONCE, "00000002", "auth"
    data = redirection.build_digest_login(LoginMethod.DIGEST, login)
    refused = ask(device, build_authenticate(LoginMethod.DIGEST, data))
    assert refused == bytes.fromhex("14010000 04 00000000")
    assert ask(device, transcript.START_SOL) == b""
    assert device.closed


def test_a_response_cut_short_is_refused() -> None:
    device = server(machine())
    ask(device, transcript.START, transcript.FIRST)
    cut = transcript.SECOND.replace(
        b"\x20d0188627ce6559a2cb50b5aeb956d5df", b"\x08d0188627"
    ).replace(bytes.fromhex("b3000000"), bytes.fromhex("9b000000"))
    assert ask(device, cut) == bytes.fromhex("14010000 04 00000000")


def test_a_response_without_a_challenge_or_used_twice_is_refused() -> None:
    device = server(machine())
    refused = bytes.fromhex("14010000 04 00000000")
    assert ask(device, transcript.START, transcript.SECOND) == refused
    wrong = transcript.SECOND.replace(b"d0188627", b"00000000")
    assert ask(device, transcript.FIRST, wrong) == refused
    # The nonce is used up, so the right response comes too late.
    assert ask(device, transcript.SECOND) == refused


def test_failed_logins_end_the_connection() -> None:
    device = server(machine())
    ask(device, transcript.START)
    for _ in range(MAX_FAILED_LOGINS):
        ask(device, transcript.SECOND)
    assert device.closed
    assert "failed logins" in device.closed_because


@pytest.mark.parametrize(
    ("login", "methods"),
    [(Login.DIGEST, b"\x03\x04"), (Login.PLAIN, b"\x01"), (Login.BOTH, b"\x01\x03\x04")],
)
def test_the_query_names_what_the_switch_allows(login: Login, methods: bytes) -> None:
    device = server(machine(profile=PROFILES["amt11"]), login)
    assert ask(device, transcript.START, transcript.QUERY)[9:] == methods


def test_a_method_that_is_switched_off_is_not_supported() -> None:
    device = server(machine())
    ask(device, transcript.START)
    assert ask(device, build_authenticate(LoginMethod.CLEAR_TEXT, b""))[1] == 2


@pytest.mark.parametrize("password", [b"", b"P@ssw0r", b"P@ssw0rd!"])
def test_a_wrong_clear_text_password_is_refused(password: bytes) -> None:
    device = server(machine(), Login.PLAIN)
    login = redirection.CLEAR_TEXT_LOGIN.build({"username": b"admin", "password": password})
    ask(device, transcript.START)
    assert ask(device, build_authenticate(LoginMethod.CLEAR_TEXT, login))[1] == 1


@pytest.mark.parametrize("profile", ["amt6", "amt12"])
def test_our_own_client_logs_in_with_methods_3_and_4(profile: str) -> None:
    pc = machine(profile=PROFILES[profile])
    console, device = SolClient("admin", password="P@ssw0rd", now=0.0), server(pc)
    events = converse(console, device, 0.2)
    assert events[0] == SolOpened(LoginMethod.DIGEST)
    assert SolData(b"\r\npc login: ") in events
    console.send(b"anna\r")
    text = b"".join(e.data for e in converse(console, device, 0.4) if isinstance(e, SolData))
    assert text == b"anna\r\nHello, anna.\r\npc:~$ "
    console.close()
    converse(console, device, 0.6)
    assert device.closed
    assert pc.sessions == frozenset()


def test_method_3_is_judged_too() -> None:
    pc = machine(profile=PROFILES["amt6"])
    device = server(pc)
    challenge = ask(
        device,
        transcript.START,
        build_authenticate(LoginMethod.DIGEST_RFC2069, transcript.FIRST[9:-1]),
    )
    assert challenge == bytes.fromhex("14010000 03 49000000") + transcript.CHALLENGE[9:-5]
    login = redirection.DigestLogin("admin", transcript.REALM, transcript.NONCE)
    login.response = "bc003076310965d13a3ec28169d5f02b"
    data = redirection.build_digest_login(LoginMethod.DIGEST_RFC2069, login)
    assert ask(device, build_authenticate(LoginMethod.DIGEST_RFC2069, data))[1] == 0


def converse(console: SolClient, device: RedirectionServer, until: float) -> list[SolEvent]:
    """Join both ends by hand until `until`, in steps of ten milliseconds."""
    for step in range(int(until * 100) + 1):
        now = step / 100
        for _ in range(6):
            if data := console.data_to_send(1 << 20):
                device.receive_data(data, now)
            device.handle_timeout(now)
            if data := sent(device):
                console.receive_data(data, now)
    return list(iter(console.next_event, None))


def test_a_second_console_finds_the_line_busy() -> None:
    pc = machine()
    first = opened(pc)
    assert ask(server(pc), transcript.START)[:2] == b"\x11\x02"
    ask(first, build_sol_plain(MessageType.END_SOL_REDIRECTION, 0))
    assert ask(server(pc), transcript.START)[:2] == b"\x11\x00"


def test_two_consoles_that_log_in_together_do_not_both_get_the_line() -> None:
    pc = machine()
    slow = server(pc)
    for message in (transcript.START, transcript.QUERY, transcript.FIRST, transcript.SECOND):
        ask(slow, message)
    opened(pc)
    assert ask(slow, transcript.START_SOL)[:2] == b"\x21\x02"
    assert slow.closed


@pytest.mark.parametrize(
    ("kind", "status"), [(b"IDER", 3), (b"KVMR", 3), (b"XXXX", 1), (b"SOL ", 3)]
)
def test_sessions_that_cannot_be_are_refused_with_all_thirteen_bytes(
    kind: bytes, status: int
) -> None:
    device = server(machine(provisioning=Provisioning.SETUP))
    reply = ask(device, b"\x10\0\0\0" + kind)
    assert (reply[1], len(reply)) == (status, 13)
    assert device.closed


def test_our_client_understands_the_refusal() -> None:
    console = SolClient("admin", password="P@ssw0rd", now=0.0)
    [refused] = converse(console, server(machine(provisioning=Provisioning.SETUP)), 0.1)
    assert isinstance(refused, SolRefused)
    assert refused.status == 3


def test_serial_bytes_wait_for_company_as_long_as_the_console_asked() -> None:
    pc = machine()
    device = opened(pc, SolSettings(tx_buffer_timeout_ms=100, heartbeat_interval_ms=0))
    later(device, 1.0)
    device.receive_data(build_sol_data(MessageType.SOL_DATA_TO_HOST, 0, b"ab"), 1.0)
    assert device.next_timeout() == pytest.approx(1.1)
    assert sent(device) == b""
    assert later(device, 1.2) == [build_sol_data(MessageType.SOL_DATA_FROM_HOST, 2, b"ab")]


def test_a_full_buffer_waits_for_nobody() -> None:
    device = opened(machine(), SolSettings(max_tx_buffer=4, tx_buffer_timeout_ms=0))
    later(device, 0.2)
    device.receive_data(build_sol_data(MessageType.SOL_DATA_TO_HOST, 0, b"12345"), 1.0)
    reader = MessageReader(Direction.FROM_DEVICE)
    reader.receive(sent(device))
    # The greeting is twelve bytes, so nothing of it waited.
    assert [m[10:] for m in iter(reader.next_message, None)] == [b"1234"]


def test_a_silent_console_loses_its_session() -> None:
    pc = machine()
    device = opened(pc, SolSettings(host_session_rx_timeout_ms=10000, heartbeat_interval_ms=0))
    device.receive_data(build_sol_plain(MessageType.SOL_HEARTBEAT, 0), 4.0)
    later(device, 13.9)
    assert not device.closed
    later(device, 14.0)
    assert device.closed
    assert "heard nothing for 10 s" in device.closed_because
    assert pc.sessions == frozenset()


def test_heartbeats_come_at_the_interval_the_console_asked_for() -> None:
    device = opened(machine(), SolSettings(heartbeat_interval_ms=5000))
    later(device, 1.0)
    kinds = [message[0] for message in later(device, 15.0)]
    assert kinds == [MessageType.SOL_HEARTBEAT] * 3


def test_a_login_that_takes_for_ever_is_ended() -> None:
    device = server(machine())
    ask(device, transcript.START)
    later(device, 60.0)
    assert device.closed


def test_a_ping_is_answered_and_the_controls_are_taken() -> None:
    device = opened(machine())
    later(device, 1.0)
    device.receive_data(
        redirection.SOL_CONTROLS_TO_HOST.build(
            {"type": 0x27, "status": 0, "sequence": 1, "body": bytes.fromhex("00001b000000")}
        )
        + build_sol_plain(MessageType.SOL_KEEP_ALIVE_PING, 9)
        + build_sol_plain(MessageType.SOL_KEEP_ALIVE_PONG, 9)
        + build_sol_plain(MessageType.SOL_HEARTBEAT, 9),
        1.0,
    )
    assert sent(device) == build_sol_plain(MessageType.SOL_KEEP_ALIVE_PONG, 9)


def test_the_power_line_is_told_when_it_changes() -> None:
    pc = machine()
    device = opened(pc)
    later(device, 1.0)
    pc.request_power(PowerRequest.SLEEP, 1.0)
    device.pump(1.0)
    assert sent(device)[8:] == b"\x00\x00"


def test_amtterms_last_keystroke_after_the_end_is_no_offence() -> None:
    device = opened(machine())
    later(device, 1.0)
    device.receive_data(
        build_sol_plain(MessageType.END_SOL_REDIRECTION, 0)
        + build_sol_data(MessageType.SOL_DATA_TO_HOST, 0, b"\x1d")
        + build_sol_plain(MessageType.SOL_HEARTBEAT, 0),
        1.0,
    )
    assert sent(device)[0] == MessageType.END_SOL_REDIRECTION_REPLY
    assert not device.closed
    ask(device, bytes.fromhex("12000000"), now=2.0)
    assert device.closed_because == "the console ended the session"


def test_sol_can_be_started_again_in_one_session() -> None:
    pc = machine()
    device = opened(pc)
    ask(device, build_sol_plain(MessageType.END_SOL_REDIRECTION, 0), now=1.0)
    device.receive_data(build_start_sol(QUICK, 1), 2.0)
    assert pc.sessions == {SessionKind.SOL}


# Each line of a hundred characters makes the system say more than two hundred.
@pytest.mark.parametrize(
    ("overflow_ms", "lines"), [(0, (MAX_BACKLOG + MAX_SERIAL) // 100), (100, MAX_BACKLOG // 100)]
)
def test_a_console_that_reads_nothing_costs_bounded_memory_and_is_told(
    overflow_ms: int, lines: int
) -> None:
    pc = machine()
    device = opened(pc, replace(QUICK, tx_overflow_timeout_ms=overflow_ms))
    line = build_sol_data(MessageType.SOL_DATA_TO_HOST, 0, b"x" * 99 + b"\r")
    for _ in range(lines):
        device.receive_data(line, 1.0)
    assert device.pending < 2 * MAX_BACKLOG
    # Time drops nothing unless the console said so; the host's own full buffer does.
    assert (device.dropped > 0) == (overflow_ms == 0)
    device.handle_timeout(1.2)
    assert device.dropped > 0
    told = later(device, 2.0)
    device.pump(2.0)
    told += later(device, 3.0)
    assert len(told) > 16
    controls = [m for m in told if m[0] == MessageType.SOL_CONTROLS_FROM_HOST]
    assert any(message[9] & 1 for message in controls)


def test_the_console_leaves_without_a_word() -> None:
    pc = machine()
    device = opened(pc)
    device.receive_data(b"", 1.0)
    assert device.closed
    assert pc.sessions == frozenset()
    device.receive_data(transcript.START, 2.0)
    assert device.closed_because == "the console closed"


def test_the_device_may_stop() -> None:
    device = opened(machine())
    device.abort("the device stops")
    device.abort("again")
    assert device.closed_because == "the device stops"


def test_data_before_the_login_ends_the_connection() -> None:
    device = server(machine())
    ask(device, transcript.START, build_sol_data(MessageType.SOL_DATA_TO_HOST, 0, b"x"))
    assert device.closed_because == "message type 0x28 while logging in"


@given(st.integers(0, 5), st.binary(min_size=1, max_size=300))
def test_garbage_never_raises(good: int, garbage: bytes) -> None:
    pc = machine()
    device = server(pc)
    for message in transcript.TO_DEVICE[:good]:
        ask(device, message)
    device.receive_data(garbage, 1.0)
    device.receive_data(garbage, 2.0)
    later(device, 5.0)


@given(st.lists(st.integers(1, 40), min_size=1))
def test_any_segmentation_opens_the_line(sizes: list[int]) -> None:
    pc = machine()
    device = server(pc)
    for chunk in transcript.chunks(b"".join(transcript.TO_DEVICE), sizes):
        device.receive_data(chunk, 0.0)
    assert pc.sessions == {SessionKind.SOL}
