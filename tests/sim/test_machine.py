from uuid import UUID

import pytest

from gwmodule.amt.redirection import SessionKind
from gwmodule.sim.machine import (
    CYCLE_PAUSE,
    Machine,
    PowerRequest,
    PowerState,
    Provisioning,
    ReturnValue,
)
from gwmodule.sim.profiles import PROFILES
from gwmodule.sim.serial import MAX_LINE, MAX_SERIAL

PC = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")


def machine(*, os_alive: bool = True, watched: bool = True) -> Machine:
    pc = Machine(PC, "P@ssw0rd", now=0.0, os_alive=os_alive)
    if watched:
        assert pc.open_session(SessionKind.SOL)
    return pc


def said(pc: Machine) -> str:
    return pc.data_to_send(1 << 20).decode()


def wait(pc: Machine) -> float:
    """Let the clock jump from deadline to deadline; the time at the end."""
    now = 0.0
    while (deadline := pc.next_timeout()) is not None:
        now = deadline
        pc.handle_timeout(now)
    return now


def answer(pc: Machine, line: str) -> str:
    said(pc)
    pc.receive_data(line.encode() + b"\r", 0.0)
    return said(pc)


def test_a_running_system_greets_whoever_connects() -> None:
    assert said(machine()) == "\r\npc login: "


def test_reset_plays_post_over_time_and_then_a_login_prompt() -> None:
    pc = machine()
    said(pc)
    assert pc.request_power(PowerRequest.RESET, 0.0) is ReturnValue.OK
    assert said(pc) == ""
    pc.handle_timeout(0.1)
    assert "BIOS" in said(pc)
    assert 3.0 < wait(pc) < 10.0
    text = said(pc)
    assert "8192 MB OK" in text
    assert text.endswith("pc login: ")
    assert pc.boots == 1


def test_typed_characters_are_echoed_and_a_line_is_answered() -> None:
    pc = machine()
    assert answer(pc, "anna") == "anna\r\nHello, anna.\r\npc:~$ "
    assert answer(pc, "uuid") == f"uuid\r\n{PC}\r\npc:~$ "
    assert answer(pc, "ls") == "ls\r\nls: not found\r\npc:~$ "
    assert "reset" in answer(pc, "help")
    assert answer(pc, "") == "\r\npc:~$ "
    assert answer(pc, "exit") == "exit\r\npc login: "
    assert answer(pc, "") == "\r\npc login: "


def test_a_dead_system_still_answers_a_typed_line() -> None:
    pc = machine(os_alive=False)
    pc.request_power(PowerRequest.RESET, 0.0)
    wait(pc)
    text = said(pc)
    assert "No bootable device" in text
    assert text.endswith("recovery> ")
    assert answer(pc, "uuid") == f"uuid\r\n{PC}\r\nrecovery> "
    assert answer(pc, "reset") == "reset\r\n"
    assert pc.boots == 2


def test_backspace_and_ctrl_c_edit_the_line() -> None:
    pc = machine()
    assert answer(pc, "annb\x7f\x08na") == "annb\b \b\b \bna\r\nHello, anna.\r\npc:~$ "
    assert answer(pc, "\x7fx\x03") == "x^C\r\npc:~$ \r\npc:~$ "
    assert answer(pc, "y\x15") == "y^U\r\npc:~$ \r\npc:~$ "
    assert answer(pc, "\x01\x02") == "\r\npc:~$ "


def test_an_endless_line_is_cut() -> None:
    pc = machine()
    assert answer(pc, "x" * 1000).startswith("x" * MAX_LINE + "\r\n")


def test_nobody_reads_the_line_while_the_machine_boots_or_is_off() -> None:
    pc = machine()
    pc.request_power(PowerRequest.RESET, 0.0)
    assert answer(pc, "hello") == ""
    pc.close_session(SessionKind.SOL)
    pc.request_power(PowerRequest.OFF, 20.0)
    assert pc.open_session(SessionKind.SOL)
    assert answer(pc, "hello") == ""


def test_what_nobody_listens_to_is_lost() -> None:
    pc = machine(watched=False)
    pc.request_power(PowerRequest.RESET, 0.0)
    wait(pc)
    assert said(pc) == ""


def test_the_serial_line_holds_no_more_than_its_buffer() -> None:
    pc = machine()
    for _ in range(2000):
        pc.receive_data(b"x" * 100 + b"\r", 0.0)
    assert len(said(pc)) == MAX_SERIAL


@pytest.mark.parametrize(
    ("request_", "state"),
    [
        (PowerRequest.OFF, PowerState.OFF),
        (PowerRequest.OFF_GRACEFUL, PowerState.OFF),
        (PowerRequest.SLEEP, PowerState.SLEEP),
        (PowerRequest.HIBERNATE, PowerState.HIBERNATE),
    ],
)
def test_what_goes_off_comes_on_again(request_: PowerRequest, state: PowerState) -> None:
    pc = machine(watched=False)
    assert pc.request_power(request_, 0.0) is ReturnValue.OK
    assert pc.power is state
    assert pc.available_requests[0] is PowerRequest.ON
    assert pc.request_power(PowerRequest.ON, 30.0) is ReturnValue.OK
    assert pc.power is PowerState.ON


def test_waking_from_sleep_is_no_boot() -> None:
    pc = machine()
    answer(pc, "anna")
    pc.request_power(PowerRequest.SLEEP, 0.0)
    pc.request_power(PowerRequest.ON, 20.0)
    assert pc.boots == 0
    assert said(pc) == "pc:~$ "


@pytest.mark.parametrize("request_", [PowerRequest.CYCLE_SOFT, PowerRequest.CYCLE_HARD])
def test_a_power_cycle_is_off_for_a_while(request_: PowerRequest) -> None:
    pc = machine(watched=False)
    assert pc.request_power(request_, 5.0) is ReturnValue.OK
    assert pc.power.name == "OFF"
    assert pc.next_timeout() == 5.0 + CYCLE_PAUSE
    pc.handle_timeout(5.0 + CYCLE_PAUSE)
    assert pc.power.name == "ON"
    assert pc.boots == 1


@pytest.mark.parametrize("request_", [5, 8, 9])
def test_power_off_and_cycle_are_refused_while_a_session_is_open(request_: int) -> None:
    pc = machine()
    assert pc.request_power(request_, 0.0) is ReturnValue.INVALID_TRANSITION
    assert pc.power is PowerState.ON
    pc.close_session(SessionKind.SOL)
    assert pc.request_power(request_, 20.0) is ReturnValue.OK


def test_reset_is_allowed_while_a_session_is_open() -> None:
    assert machine().request_power(10, 0.0) is ReturnValue.OK


def test_requests_that_the_state_does_not_offer_are_refused() -> None:
    pc = machine(watched=False)
    assert pc.request_power(PowerRequest.ON, 0.0) is ReturnValue.INVALID_TRANSITION
    pc.request_power(PowerRequest.OFF, 20.0)
    assert pc.request_power(PowerRequest.RESET, 40.0) is ReturnValue.INVALID_TRANSITION
    assert pc.request_power(PowerRequest.CYCLE_HARD, 60.0) is ReturnValue.INVALID_TRANSITION


def test_an_unknown_power_value_is_an_invalid_parameter() -> None:
    pc = machine()
    assert pc.request_power(99, 0.0) is ReturnValue.INVALID_PARAMETER
    assert pc.power_requests == 0


@pytest.mark.parametrize("request_", [4, 7, 12, 14])
def test_a_dead_system_does_not_help_with_graceful_requests(request_: int) -> None:
    pc = machine(os_alive=False)
    assert pc.request_power(request_, 0.0) is ReturnValue.FAILED


def test_nmi_shows_on_the_serial_line() -> None:
    pc = machine()
    pc.request_power(PowerRequest.NMI, 0.0)
    assert "NMI" in said(pc)


def test_requests_in_a_hurry_are_accepted_and_counted() -> None:
    pc = machine()
    pc.request_power(10, 0.0)
    pc.request_power(10, 9.0)
    pc.request_power(10, 30.0)
    assert (pc.power_requests, pc.hurried_requests) == (3, 1)


def test_one_session_of_a_kind_at_a_time() -> None:
    pc = machine()
    assert not pc.open_session(SessionKind.SOL)
    assert pc.open_session(SessionKind.IDER)
    assert pc.sessions == {SessionKind.SOL, SessionKind.IDER}
    pc.close_session(SessionKind.IDER)
    assert pc.sessions == {SessionKind.SOL}
    assert said(pc) == "\r\npc login: "


def test_somebody_provisions_it_once() -> None:
    pc = Machine(PC, "P@ssw0rd", now=0.0, provisioning=Provisioning.SETUP)
    assert pc.activate()
    assert pc.provisioning is Provisioning.MANAGED
    assert not pc.activate()


def test_the_realm_is_stable_and_shaped_like_firmwares() -> None:
    one, again = machine().realm, machine().realm
    assert one == again
    assert one.startswith("Digest:")
    assert len(one) == 39
    assert bytes.fromhex(one[7:]) != PC.bytes


def test_every_profile_has_a_server_header() -> None:
    for profile in PROFILES.values():
        pc = Machine(PC, "x", now=0.0, profile=profile)
        assert pc.server_header.startswith("Intel(R) Active Management Technology ")
