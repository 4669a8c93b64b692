import random
from collections.abc import Callable

import pytest

from gwmodule.amt.redirection import SessionKind
from gwmodule.sim.consent import (
    BLOCKED_FOR,
    CODE_TIMEOUT,
    DISPLAY_TIMEOUT,
    EVERYTHING,
    KVM_ONLY,
    NOBODY,
    Consent,
    ConsentResult,
    ConsentState,
)


def consent(*, forced: bool = True) -> Consent:
    return Consent(random.Random(1), forced=forced)


def shown(now: float = 0.0) -> Consent:
    asked = consent()
    assert asked.start(now, screen=True) is ConsentResult.OK
    return asked


def given(now: float = 0.0) -> Consent:
    asked = shown(now)
    assert asked.send(asked.code, now) is ConsentResult.OK
    return asked


def test_the_right_code_lets_a_session_open() -> None:
    asked = shown()
    assert asked.state is ConsentState.DISPLAYED
    assert len(asked.code) == 6
    assert asked.wants(SessionKind.SOL)
    assert asked.send(asked.code, 1.0) is ConsentResult.OK
    assert asked.state.name == "RECEIVED"
    assert asked.code == ""
    assert not asked.wants(SessionKind.SOL)


def test_leading_zeros_may_be_left_out() -> None:
    asked = shown()
    asked.code = "000420"
    assert asked.send("420", 0.0) is ConsentResult.OK


def test_the_code_leaves_the_screen_after_a_while() -> None:
    asked = shown(now=10.0)
    assert asked.next_timeout() == 10.0 + DISPLAY_TIMEOUT
    asked.handle_timeout(10.0 + DISPLAY_TIMEOUT)
    assert asked.state is ConsentState.NOT_STARTED
    assert asked.send("000000", 400.0) is ConsentResult.INVALID_STATE


def test_an_accepted_code_waits_only_so_long_for_a_session() -> None:
    asked = given(now=5.0)
    asked.handle_timeout(5.0 + CODE_TIMEOUT - 1)
    assert not asked.bars_boot
    asked.handle_timeout(5.0 + CODE_TIMEOUT)
    assert asked.bars_boot


def test_a_session_holds_the_consent_and_its_end_starts_the_clock() -> None:
    asked = given()
    asked.session_opened()
    assert asked.state is ConsentState.IN_SESSION
    assert asked.next_timeout() is None
    asked.sessions_ended(1000.0)
    assert asked.state.name == "RECEIVED"
    assert asked.next_timeout() == 1000.0 + CODE_TIMEOUT


def test_three_wrong_codes_block_for_a_while() -> None:
    asked = shown()
    asked.code = "123456"
    assert [asked.send("654321", 0.0) for _ in range(3)] == [ConsentResult.FAILED] * 3
    assert asked.send("123456", 0.0) is ConsentResult.INVALID_STATE
    assert asked.start(1.0, screen=True) is ConsentResult.BLOCKED
    assert asked.start(BLOCKED_FOR, screen=True) is ConsentResult.OK


@pytest.mark.parametrize("make", [shown, given])
def test_it_can_be_cancelled(make: Callable[[], Consent]) -> None:
    asked = make()
    assert asked.cancel() is ConsentResult.OK
    assert (asked.state, asked.code) == (ConsentState.NOT_STARTED, "")
    assert asked.cancel() is ConsentResult.INVALID_STATE


def test_no_code_is_shown_where_none_is_needed_or_nobody_could_see_it() -> None:
    assert consent(forced=False).start(0.0, screen=True) is ConsentResult.INVALID_STATE
    assert consent().start(0.0, screen=False) is ConsentResult.INVALID_STATE
    assert shown().start(1.0, screen=True) is ConsentResult.INVALID_STATE


def test_the_policy_decides_what_needs_consent() -> None:
    asked = consent(forced=False)
    assert not asked.wants(SessionKind.KVM)
    assert asked.set_policy(KVM_ONLY)
    assert asked.wants(SessionKind.KVM)
    assert not asked.wants(SessionKind.SOL)
    assert asked.set_policy(EVERYTHING)
    assert asked.wants(SessionKind.SOL)
    assert not asked.set_policy(2)
    assert asked.set_policy(NOBODY)


def test_client_control_lets_nobody_change_the_policy() -> None:
    asked = consent()
    assert asked.required == EVERYTHING
    assert not asked.set_policy(NOBODY)


def test_a_session_without_consent_changes_nothing() -> None:
    asked = consent(forced=False)
    asked.session_opened()
    asked.sessions_ended(1.0)
    assert asked.state is ConsentState.NOT_STARTED
