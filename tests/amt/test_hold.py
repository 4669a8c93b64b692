from __future__ import annotations

from gwmodule.amt.hold import DeviceHold, ToolHold
from gwmodule.amt.redirection import (
    MessageType,
    SolSettings,
    build_sol_data,
    build_sol_plain,
    build_start_sol,
)

START = bytes.fromhex("10000000534f4c20")
STARTED = bytes.fromhex("11000000010000000000000000")
AMTTERM = SolSettings(1000, 100, 0, 10000, 0, 5000)
HEARTBEAT = build_sol_plain(MessageType.SOL_HEARTBEAT, 7)
OURS = build_sol_plain(MessageType.SOL_HEARTBEAT, 0)
START_SOL_REPLY = bytes([0x21]) + bytes(22)


def device_hold() -> DeviceHold:
    hold = DeviceHold()
    hold.to_device(START, 0.0)
    hold.from_device(STARTED, 0.0)
    hold.to_device(build_start_sol(AMTTERM, 0), 0.0)
    hold.from_device(START_SOL_REPLY, 0.0)
    return hold


def tool_hold() -> ToolHold:
    hold = ToolHold()
    hold.to_device(START, 0.0)
    hold.from_device(STARTED, 0.0)
    hold.to_device(build_start_sol(AMTTERM, 0), 0.0)
    hold.from_device(START_SOL_REPLY, 0.0)
    return hold


def test_an_unanswered_heartbeat_is_answered_after_a_third_of_rx_timeout() -> None:
    hold = device_hold()
    hold.from_device(HEARTBEAT, 5.0)
    due = hold.next_timeout()
    assert due is not None
    assert round(due, 3) == 8.333
    assert hold.handle_timeout(8.0) == b""
    assert hold.handle_timeout(due) == OURS
    assert hold.next_timeout() is None


def test_each_heartbeat_is_answered_once() -> None:
    hold = device_hold()
    hold.from_device(HEARTBEAT, 5.0)
    assert hold.handle_timeout(9.0) == OURS
    assert hold.handle_timeout(9.5) == b""
    hold.from_device(HEARTBEAT, 10.0)
    assert hold.handle_timeout(14.0) == OURS
    assert hold.heartbeats == 2


def test_any_byte_of_the_console_is_answer_enough() -> None:
    hold = device_hold()
    hold.from_device(HEARTBEAT, 5.0)
    hold.to_device(build_sol_data(MessageType.SOL_DATA_TO_HOST, 1, b"x"), 6.0)
    assert hold.next_timeout() is None
    assert hold.handle_timeout(20.0) == b""


def test_a_heartbeat_glued_to_output_counts_too() -> None:
    hold = device_hold()
    data = build_sol_data(MessageType.SOL_DATA_FROM_HOST, 1, b"login: ")
    hold.from_device(HEARTBEAT + data, 5.0)
    assert hold.handle_timeout(9.0) == OURS


def test_nothing_is_put_into_the_middle_of_a_message() -> None:
    hold = device_hold()
    message = build_sol_data(MessageType.SOL_DATA_TO_HOST, 1, b"half of it")
    hold.to_device(message[:12], 4.0)
    hold.from_device(HEARTBEAT, 5.0)
    assert hold.handle_timeout(9.0) == b""
    assert hold.heartbeats == 0


def test_before_the_settings_are_known_there_is_no_hold() -> None:
    hold = DeviceHold()
    hold.to_device(START, 0.0)
    hold.from_device(STARTED + HEARTBEAT, 0.0)
    assert hold.next_timeout() is None


def test_an_unknown_type_ends_the_hold_for_good() -> None:
    hold = device_hold()
    hold.from_device(HEARTBEAT, 5.0)
    hold.from_device(b"\xee", 5.1)
    assert hold.lost
    assert hold.next_timeout() is None
    assert hold.handle_timeout(9.0) == b""


def test_other_sessions_than_sol_are_not_held() -> None:
    hold = DeviceHold()
    hold.to_device(bytes.fromhex("10010000") + b"KVMR", 0.0)
    assert hold.lost


def test_a_tool_hears_heartbeats_while_the_device_is_out_of_reach() -> None:
    hold = tool_hold()
    hold.from_device(HEARTBEAT, 5.0)
    due = hold.next_timeout()
    assert due is not None
    assert round(due, 3) == 13.333
    assert hold.handle_timeout(due) == OURS
    due = hold.next_timeout()
    assert due is not None
    assert round(due, 3) == 18.333
    assert hold.handle_timeout(due) == OURS


def test_a_tool_hears_only_the_device_while_it_can() -> None:
    hold = tool_hold()
    for second in range(5, 60, 5):
        hold.from_device(HEARTBEAT, float(second))
        assert hold.handle_timeout(second + 4.9) == b""
    assert hold.heartbeats == 0


def test_a_tool_that_asked_for_no_heartbeats_gets_none() -> None:
    hold = ToolHold()
    hold.to_device(START + build_start_sol(SolSettings(heartbeat_interval_ms=0), 0), 0.0)
    hold.from_device(STARTED + START_SOL_REPLY, 0.0)
    assert hold.next_timeout() is None


def test_a_half_message_of_the_device_is_not_interrupted() -> None:
    hold = tool_hold()
    hold.from_device(build_sol_data(MessageType.SOL_DATA_FROM_HOST, 1, b"half")[:11], 1.0)
    assert hold.handle_timeout(20.0) == b""
    assert hold.next_timeout() == 25.0
