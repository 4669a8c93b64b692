from collections.abc import Iterable
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.amt.digest import ha1
from gwmodule.amt.interceptor import NOBODY, LoginInterceptor
from gwmodule.amt.redirection import (
    Direction,
    LoginMethod,
    MessageReader,
    MessageType,
    build_authenticate,
)
from gwmodule.errors import AuthenticationFailed
from gwmodule.sim.machine import Machine
from gwmodule.sim.redirection import RedirectionServer
from tests.amt.transcript import (
    ACCEPTED,
    CHALLENGE,
    CNONCE,
    FIRST,
    HA1,
    METHODS,
    QUERY,
    REALM,
    SECOND,
    START,
    START_SOL,
    STARTED,
    TO_DEVICE,
    chunks,
    login_of,
)

PC = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
SIZES = st.lists(st.integers(1, 90), min_size=1, max_size=6)


def interceptor(username: str = "admin") -> LoginInterceptor:
    return LoginInterceptor(username, {REALM: HA1}.__getitem__, cnonce=lambda: CNONCE)


def passed(login: LoginInterceptor, pieces: Iterable[bytes]) -> bytes:
    return b"".join(login.to_device(piece) for piece in pieces)


@pytest.mark.parametrize("name", NOBODY)
def test_a_tool_without_a_login_is_logged_in(name: str) -> None:
    login = interceptor()
    assert login.to_device(START) == START
    login.from_device(STARTED)
    assert login.to_device(QUERY) == QUERY
    login.from_device(METHODS)
    assert login.to_device(login_of(name)) == FIRST
    login.from_device(CHALLENGE)
    assert login.to_device(login_of(name, b"1", b"ffff")) == SECOND
    login.from_device(ACCEPTED)
    assert login.to_device(START_SOL) == START_SOL


@given(SIZES, SIZES)
def test_however_the_bytes_are_cut(to_device: list[int], from_device: list[int]) -> None:
    login = interceptor()
    said = [passed(login, chunks(START + QUERY + login_of(""), to_device))]
    for piece in chunks(STARTED + METHODS + CHALLENGE, from_device):
        login.from_device(piece)
    said.append(passed(login, chunks(login_of("", b"1", b"ffff"), to_device)))
    login.from_device(ACCEPTED)
    said.append(passed(login, chunks(START_SOL, to_device)))
    assert said == [START + QUERY + FIRST, SECOND, START_SOL]


@given(SIZES)
def test_a_tool_that_has_a_login_is_not_touched(sizes: list[int]) -> None:
    login = interceptor("somebody else")
    stream = b"".join(TO_DEVICE)
    assert passed(login, chunks(stream, sizes)) == stream
    # Its failures are its own.
    for _ in range(3):
        login.from_device(CHALLENGE)


@given(st.binary(max_size=300), SIZES)
def test_what_is_no_login_passes_as_it_came(garbage: bytes, sizes: list[int]) -> None:
    login = interceptor()
    stream = START + build_authenticate(LoginMethod.CLEAR_TEXT, b"") + garbage
    assert passed(login, chunks(stream, sizes)) == stream


@given(st.binary(max_size=300))
def test_a_device_that_talks_nonsense_ends_the_help(garbage: bytes) -> None:
    login = interceptor()
    login.to_device(START + QUERY)
    login.from_device(STARTED + bytes([MessageType.SOL_DATA_TO_HOST]) + garbage)
    assert login.to_device(login_of("")) == login_of("")


def test_a_login_that_the_device_refuses_is_tried_once() -> None:
    login = interceptor()
    login.to_device(START + QUERY + login_of(""))
    login.from_device(STARTED + METHODS + CHALLENGE)
    login.to_device(login_of("", b"1", b"ffff"))
    with pytest.raises(AuthenticationFailed, match="stored"):
        login.from_device(CHALLENGE)


def test_half_a_message_of_the_tool_follows_after_the_login() -> None:
    login = interceptor()
    login.to_device(START + login_of(""))
    login.from_device(STARTED + CHALLENGE)
    assert login.to_device(login_of("") + START_SOL[:1]) == SECOND
    login.from_device(ACCEPTED)
    assert login.to_device(START_SOL[1:]) == START_SOL


def test_the_simulated_device_lets_it_in() -> None:
    machine = Machine(PC, "P@ssw0rd", now=0.0)
    device = RedirectionServer(machine, now=0.0, nonce=lambda: "00" * 16)
    login = LoginInterceptor("admin", lambda realm: ha1("admin", realm, "P@ssw0rd"))
    replies = MessageReader(Direction.FROM_DEVICE)
    for now, message in enumerate((START, QUERY, login_of(""), login_of("", b"1", b"ffff"))):
        device.receive_data(login.to_device(message), float(now))
        said = device.data_to_send(1 << 16)
        login.from_device(said)
        replies.receive(said)
    *_, last = iter(replies.next_message, None)
    assert last == ACCEPTED
