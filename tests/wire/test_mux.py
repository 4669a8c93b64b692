from __future__ import annotations

import pytest

from gwmodule.config import LivenessConfig, MuxConfig
from gwmodule.errors import ChannelStateError, Code, LocalProtocolError, RemoteProtocolError
from gwmodule.wire import codec
from gwmodule.wire.channel import FLOOD_RATE
from gwmodule.wire.control import build_message
from gwmodule.wire.events import (
    ChannelAccepted,
    ChannelEnded,
    ChannelOpened,
    ChannelWritable,
    DataReceived,
    EofReceived,
    LinkDead,
    MessageReceived,
    PeerGoingAway,
    RoundTrip,
    SessionReset,
)
from gwmodule.wire.frames import FrameType, Priority
from gwmodule.wire.liveness import MAX_PINGS
from gwmodule.wire.messages import Cancel, GoAway, NoticeAck, Result, ResultTarget
from gwmodule.wire.mux import SEND_QUEUE, Mux
from tests.wire.pair import EVERYTHING, TARGET, Pair, events, frames

INTERACTIVE, BULK = Priority.INTERACTIVE, Priority.BULK
SMALL = MuxConfig(
    memory=1024 * 1024,
    control_window=64 * 1024,
    interactive_window=16 * 1024,
    bulk_window=64 * 1024,
    bulk_window_cap=256 * 1024,
    max_channels=4,
)


def type_calmly(mux: Mux, number: int, size: int) -> None:
    """Queue any size on an interactive channel, by a clock slow enough to make it no flood."""
    for second, done in enumerate(range(0, size, FLOOD_RATE)):
        mux.send(number, bytes(min(FLOOD_RATE, size - done)), float(second))


def types(data: bytes) -> list[FrameType]:
    return [frame.type for frame in frames(data)]


# ---- the life of a channel --------------------------------------------------------------------


def test_a_stream_is_offered_accepted_and_carries_bytes_both_ways(pair: Pair) -> None:
    number = pair.msp.open(TARGET, INTERACTIVE)
    pair.deliver()
    assert events(pair.gateway) == [ChannelOpened(number, INTERACTIVE, TARGET)]
    pair.gateway.accept(number)
    pair.deliver()
    assert events(pair.msp) == [ChannelAccepted(number)]
    pair.msp.send(number, b"up", 0.0)
    pair.gateway.send(number, b"down", 0.0)
    pair.deliver()
    assert events(pair.gateway) == [DataReceived(number, b"up")]
    assert events(pair.msp) == [DataReceived(number, b"down")]


def test_each_side_counts_its_own_channels(pair: Pair) -> None:
    assert [pair.msp.open(TARGET, BULK) for _ in range(3)] == [2, 4, 6]
    assert [pair.gateway.open(ResultTarget(call), BULK) for call in range(3)] == [1, 3, 5]


def test_a_refusal_tells_code_and_reason(pair: Pair) -> None:
    number = pair.msp.open(TARGET, INTERACTIVE)
    pair.deliver()
    pair.gateway.refuse(number, Code.REFUSED_POLICY, "not in the LAN")
    pair.deliver()
    assert events(pair.msp) == [ChannelEnded(number, Code.REFUSED_POLICY, "not in the LAN")]
    assert pair.msp.channels == pair.gateway.channels == 0


def test_each_direction_ends_by_itself(pair: Pair) -> None:
    number = pair.open()
    pair.msp.send(number, b"last words", 0.0)
    pair.msp.send_eof(number)
    pair.deliver()
    assert events(pair.gateway) == [DataReceived(number, b"last words"), EofReceived(number)]
    pair.gateway.send(number, b"an answer", 0.0)
    pair.gateway.send_eof(number)
    pair.deliver()
    assert events(pair.msp) == [DataReceived(number, b"an answer"), EofReceived(number)]
    assert pair.msp.channels == pair.gateway.channels == 0


def test_both_ends_may_say_eof_at_once(pair: Pair) -> None:
    number = pair.open()
    pair.msp.send_eof(number)
    pair.gateway.send_eof(number)
    pair.deliver()
    assert events(pair.msp) == events(pair.gateway) == [EofReceived(number)]
    assert pair.msp.channels == pair.gateway.channels == 0


def test_a_reset_tells_code_and_reason_and_drops_what_is_queued(pair: Pair) -> None:
    number = pair.open()
    pair.msp.send(number, b"never seen", 0.0)
    pair.msp.reset(number, Code.POWER_ACTION, "power action by Ann")
    pair.deliver()
    ended = ChannelEnded(number, Code.POWER_ACTION, "power action by Ann")
    assert events(pair.gateway) == [ended]
    assert events(pair.msp) == []
    assert pair.msp.channels == pair.gateway.channels == 0


def test_two_resets_may_cross(pair: Pair) -> None:
    number = pair.open()
    pair.msp.reset(number, Code.CANCELLED, "mine")
    pair.gateway.reset(number, Code.CONNECTION_LOST, "mine too")
    pair.deliver()
    assert events(pair.msp) == events(pair.gateway) == []
    assert pair.msp.channels == pair.gateway.channels == 0


@pytest.mark.parametrize("eof_by_msp", [False, True])
@pytest.mark.parametrize("eof_by_gateway", [False, True])
@pytest.mark.parametrize("data", [b"", b"crossing"])
def test_a_reset_may_cross_everything_the_peer_says(
    pair: Pair, eof_by_msp: bool, eof_by_gateway: bool, data: bytes
) -> None:
    number = pair.open()
    pair.gateway.send(number, data, 0.0)
    if eof_by_gateway:
        pair.gateway.send_eof(number)
    if eof_by_msp:
        pair.msp.send_eof(number)
    down = pair.msp.data_to_send(EVERYTHING)
    up = pair.gateway.data_to_send(EVERYTHING)
    pair.msp.reset(number, Code.CANCELLED, "enough")
    pair.msp.receive_data(up, 0.0)
    pair.gateway.receive_data(down, 0.0)
    pair.deliver()
    assert events(pair.msp) == []
    assert pair.msp.channels == pair.gateway.channels == 0


def test_a_reset_of_half_closed_channels_ends_them(pair: Pair) -> None:
    for first, second in ((pair.msp, pair.gateway), (pair.gateway, pair.msp)):
        for resetting in (first, second):
            number = pair.open()
            first.send_eof(number)
            pair.deliver()
            resetting.reset(number, Code.CANCELLED, "enough")
            pair.deliver()
            assert pair.msp.channels == pair.gateway.channels == 0


def test_a_reset_may_cross_accept_and_refuse(pair: Pair) -> None:
    accepted, refused = pair.msp.open(TARGET, INTERACTIVE), pair.msp.open(TARGET, INTERACTIVE)
    pair.deliver()
    pair.gateway.accept(accepted)
    pair.gateway.refuse(refused, Code.UNREACHABLE, "off")
    up = pair.gateway.data_to_send(EVERYTHING)
    pair.msp.reset(accepted, Code.CANCELLED, "too late")
    pair.msp.reset(refused, Code.CANCELLED, "too late")
    pair.msp.receive_data(up, 0.0)
    pair.deliver()
    assert events(pair.msp) == []
    assert pair.msp.channels == pair.gateway.channels == 0


def test_answers_to_an_offer_that_was_withdrawn_have_no_effect(pair: Pair) -> None:
    number = pair.msp.open(TARGET, INTERACTIVE)
    pair.deliver()
    pair.msp.reset(number, Code.CANCELLED, "never mind")
    pair.deliver()
    ended = ChannelEnded(number, Code.CANCELLED, "never mind")
    assert events(pair.gateway) == [ChannelOpened(number, INTERACTIVE, TARGET), ended]
    pair.gateway.accept(number)
    pair.gateway.refuse(number, Code.LIMIT, "full")
    pair.deliver()
    assert events(pair.msp) == []


def test_resetting_an_offer_refuses_it(pair: Pair) -> None:
    number = pair.msp.open(TARGET, INTERACTIVE)
    pair.deliver()
    pair.gateway.reset(number, Code.UNREACHABLE, "off")
    assert types(pair.gateway.data_to_send(EVERYTHING))[-1] is FrameType.REFUSE


def test_what_comes_late_for_an_ended_channel_has_no_effect(pair: Pair) -> None:
    number = pair.open()
    pair.msp.reset(number, Code.CANCELLED, "enough")
    pair.msp.reset(number, Code.CANCELLED, "again")
    pair.msp.send(number, b"late", 0.0)
    pair.msp.send_eof(number)
    pair.msp.consume(number, 1, 0.0)
    assert pair.msp.room(number) == 0
    down = pair.msp.data_to_send(EVERYTHING)
    assert types(down) == [FrameType.RESET]
    pair.gateway.receive_data(down, 0.0)
    # The end still waits among the gateway's events, and its owner cannot know.
    pair.gateway.send(number, b"late", 0.0)
    pair.gateway.send_eof(number)
    pair.gateway.set_priority(number, BULK)
    pair.gateway.consume(number, 1, 0.0)
    assert types(pair.gateway.data_to_send(EVERYTHING)) == [FrameType.RESET]


def test_sending_too_early_or_after_eof_is_our_own_error(pair: Pair) -> None:
    number = pair.msp.open(TARGET, INTERACTIVE)
    with pytest.raises(LocalProtocolError, match="which is OPENING"):
        pair.msp.send(number, b"early", 0.0)
    number = pair.open()
    pair.msp.send_eof(number)
    with pytest.raises(LocalProtocolError, match="which is OPEN"):
        pair.msp.send(number, b"behind the EOF", 0.0)
    pair.deliver()
    with pytest.raises(LocalProtocolError, match="which is HALF_CLOSED_LOCAL"):
        pair.msp.send_eof(number)


# ---- limits -----------------------------------------------------------------------------------


def test_no_more_channels_than_configured_are_opened_or_taken() -> None:
    pair = Pair(SMALL)
    for _ in range(4):
        pair.open()
    with pytest.raises(ChannelStateError, match="4 channels are open"):
        pair.msp.open(TARGET, INTERACTIVE)
    pair = Pair(SMALL)
    for call in range(3):
        pair.open_result(call)
    first, second = pair.msp.open(TARGET, INTERACTIVE), pair.gateway.open(ResultTarget(9), BULK)
    pair.deliver()
    assert events(pair.gateway) == [ChannelEnded(second, Code.LIMIT, "4 channels are open")]
    assert events(pair.msp) == [ChannelEnded(first, Code.LIMIT, "4 channels are open")]


def test_all_windows_together_stay_within_the_memory() -> None:
    pair = Pair(MuxConfig(memory=1024 * 1024, control_window=256 * 1024, bulk_window=256 * 1024))
    numbers = [pair.msp.open(TARGET, BULK) for _ in range(3)]
    with pytest.raises(ChannelStateError, match="windows of 1048576 bytes"):
        pair.msp.open(TARGET, INTERACTIVE)
    pair.deliver()
    pair.gateway.refuse(numbers[0], Code.UNREACHABLE, "off")
    pair.deliver()
    pair.msp.open(TARGET, BULK)


def test_data_that_is_still_being_read_stays_charged_after_the_channel_ended() -> None:
    pair = Pair(SMALL)
    number = pair.open()
    pair.msp.send(number, bytes(10000), 0.0)
    pair.msp.send_eof(number)
    pair.gateway.send_eof(number)
    pair.deliver()
    assert pair.gateway.channels == 0
    others = [pair.msp.open(TARGET, INTERACTIVE) for _ in range(4)]
    pair.deliver()
    assert events(pair.msp)[-1] == ChannelEnded(others[-1], Code.LIMIT, "3 channels are open")
    pair.gateway.consume(number, 4000, 0.0)
    pair.gateway.consume(number, 6000, 0.0)
    pair.gateway.consume(number, 1, 0.0)
    last = pair.msp.open(TARGET, INTERACTIVE)
    pair.deliver()
    assert events(pair.gateway)[-1] == ChannelOpened(last, INTERACTIVE, TARGET)


def test_what_is_still_being_read_counts_against_the_memory_and_the_rest_does_not() -> None:
    pair = Pair(MuxConfig(memory=1024 * 1024, control_window=256 * 1024, bulk_window=256 * 1024))
    number = pair.open(BULK)
    pair.msp.send(number, bytes(200 * 1024), 0.0)
    pair.msp.send_eof(number)
    pair.gateway.send_eof(number)
    pair.deliver()
    first, second, third = (pair.msp.open(TARGET, BULK) for _ in range(3))
    pair.deliver()
    taken = [e.channel for e in events(pair.gateway) if isinstance(e, ChannelOpened)]
    assert taken == [first, second]
    assert events(pair.msp)[-1] == ChannelEnded(third, Code.LIMIT, "2 channels are open")
    pair.gateway.consume(number, 200 * 1024 - 1, 0.0)
    # More than there is gives back no more than that.
    pair.gateway.consume(number, 300 * 1024, 0.0)
    last = pair.msp.open(TARGET, BULK)
    pair.deliver()
    assert events(pair.gateway) == [ChannelOpened(last, BULK, TARGET)]
    with pytest.raises(ChannelStateError, match="windows of 1048576 bytes"):
        pair.gateway.open(ResultTarget(1), BULK)


def test_a_reset_gives_back_what_was_left_unread() -> None:
    pair = Pair(SMALL)
    for _ in range(10):
        number = pair.open()
        assert pair.gateway.channels == 1
        pair.gateway.send_eof(number)
        pair.msp.send(number, bytes(10000), 0.0)
        pair.deliver()
        pair.msp.send_eof(number)
        pair.deliver()
        pair.gateway.reset(number, Code.CONNECTION_LOST, "the device is gone")
        assert pair.gateway.channels == 0


def test_a_number_whose_data_is_still_read_is_not_opened_again(pair: Pair) -> None:
    number = pair.open()
    pair.gateway.send(number, b"unread", 0.0)
    pair.msp.send(number, b"unread", 0.0)
    pair.msp.send_eof(number)
    pair.gateway.send_eof(number)
    pair.deliver()
    events(pair.gateway)
    assert pair.msp.open(TARGET, INTERACTIVE) != number
    open_again = codec.build_open(INTERACTIVE, 100, TARGET)
    pair.gateway.receive_data(codec.build_frame(FrameType.OPEN, number, open_again), 0.0)
    assert types(pair.gateway.data_to_send(EVERYTHING))[-1] is FrameType.REFUSE
    assert events(pair.gateway) == []


def test_a_number_comes_back_after_all_others_and_when_the_peer_acknowledged_its_end() -> None:
    pair = Pair(MuxConfig(memory=256 * 1024 * 1024, interactive_window=1, max_channels=40000))
    closed, broken = pair.open(), pair.open()
    pair.gateway.send(closed, b"u", 0.0)
    pair.gateway.send_eof(closed)
    pair.deliver()
    refused, *_ = [pair.msp.open(TARGET, INTERACTIVE) for _ in range(32765)]
    said = pair.gateway.received

    def say() -> list[FrameType]:
        nonlocal said
        sent = types(pair.msp.data_to_send(EVERYTHING))
        said += len(sent)
        return sent

    def none_is_free() -> None:
        with pytest.raises(ChannelStateError, match="all channel numbers are in use"):
            pair.msp.open(TARGET, INTERACTIVE)

    def acknowledge(count: int) -> None:
        pair.msp.receive_data(codec.build_ack(count), 0.0)

    assert len(say()) == 32765
    unreachable = codec.build_end(FrameType.REFUSE, Code.UNREACHABLE, "off")
    pair.msp.receive_data(frame(FrameType.REFUSE, refused, unreachable), 0.0)
    # The refusal proves that the OPEN arrived, but only the count is the rule.
    acknowledge(said - 1)
    none_is_free()
    acknowledge(said)
    assert pair.msp.open(TARGET, INTERACTIVE) == refused
    say()
    acknowledge(said)
    # An answer that is still queued is the last word about a channel, too.
    pair.msp.receive_data(frame(FrameType.RESET, broken, RESET_PAYLOAD), 0.0)
    none_is_free()
    assert say() == [FrameType.RESET]
    none_is_free()
    acknowledge(said)
    assert pair.msp.open(TARGET, INTERACTIVE) == broken
    say()
    acknowledge(said)
    pair.msp.send_eof(closed)
    assert say() == [FrameType.EOF]
    none_is_free()
    acknowledge(said)
    # What came under it is still being read.
    none_is_free()
    pair.msp.consume(closed, 1, 0.0)
    assert pair.msp.open(TARGET, INTERACTIVE) == closed


# ---- credit -----------------------------------------------------------------------------------


def test_the_sender_stops_at_the_limit_and_goes_on_when_it_rises() -> None:
    pair = Pair(SMALL)
    number = pair.open()
    pair.msp.send(number, bytes(20 * 1024), 0.0)
    pair.deliver()
    received = sum(len(e.data) for e in events(pair.gateway) if isinstance(e, DataReceived))
    assert received == SMALL.interactive_window
    assert not pair.gateway.consume(number, 8 * 1024 - 1, 0.0)
    pair.deliver()
    assert events(pair.gateway) == []
    assert pair.gateway.consume(number, 1, 0.0)
    pair.deliver()
    assert events(pair.gateway) == [DataReceived(number, bytes(4 * 1024))]


def test_an_eof_waits_for_the_last_byte_and_needs_no_credit() -> None:
    pair = Pair(SMALL)
    number = pair.open()
    pair.msp.send(number, bytes(SMALL.interactive_window + 1), 0.0)
    pair.msp.send_eof(number)
    pair.deliver()
    assert events(pair.gateway) == [DataReceived(number, bytes(SMALL.interactive_window))]
    pair.gateway.consume(number, SMALL.interactive_window, 0.0)
    pair.deliver()
    assert events(pair.gateway) == [DataReceived(number, b"\0"), EofReceived(number)]


def test_no_credit_is_given_for_a_direction_that_has_ended(pair: Pair) -> None:
    number = pair.open()
    pair.msp.send(number, bytes(pair.config.interactive_window), 0.0)
    pair.msp.send_eof(number)
    pair.deliver()
    pair.gateway.consume(number, pair.config.interactive_window, 0.0)
    assert pair.gateway.data_to_send(EVERYTHING) == b""


def test_a_bulk_window_grows_with_the_round_trip_up_to_its_cap() -> None:
    pair = Pair(SMALL)
    number = pair.open(BULK)
    pair.cut()
    pair.gateway.attach(pair.msp.received, 0.0, rtt=1.0)
    pair.msp.attach(pair.gateway.received, 0.0)
    sizes = []
    for turn in range(8):
        pair.msp.send(number, bytes(1024 * 1024), 0.0)
        pair.deliver()
        size = sum(len(e.data) for e in events(pair.gateway) if isinstance(e, DataReceived))
        sizes.append(size)
        pair.gateway.consume(number, size, turn * 0.1)
    assert sizes[0] == SMALL.bulk_window
    assert max(sizes) == SMALL.bulk_window_cap


def test_a_bulk_window_does_not_grow_beyond_the_memory() -> None:
    pair = Pair(MuxConfig(memory=1024 * 1024, control_window=64 * 1024, bulk_window=512 * 1024))
    number = pair.open(BULK)
    pair.cut()
    pair.gateway.attach(pair.msp.received, 0.0, rtt=1.0)
    pair.msp.attach(pair.gateway.received, 0.0)
    for turn in range(4):
        pair.msp.send(number, bytes(1024 * 1024), 0.0)
        pair.deliver()
        size = sum(len(e.data) for e in events(pair.gateway) if isinstance(e, DataReceived))
        assert size <= 512 * 1024
        pair.gateway.consume(number, size, turn * 0.1)


def test_messages_stop_at_the_control_credit_and_go_on() -> None:
    pair = Pair(SMALL)
    results = [Result(call, Code.OK, 0.0, 1, bytes(1010)) for call in range(65)]
    for result in results:
        pair.gateway.send_message(result)
    # Nothing but the limit is said before the MSP's CREDIT arrives.
    assert types(pair.gateway.data_to_send(EVERYTHING)) == [FrameType.CREDIT]
    pair.deliver()
    assert pair.gateway.queued_messages == 1
    assert events(pair.msp) == [MessageReceived(result) for result in results[:64]]
    pair.deliver()
    assert events(pair.msp) == [MessageReceived(results[64])]
    assert pair.gateway.queued_messages == 0


def test_a_message_that_is_taken_early_gives_no_credit_yet(pair: Pair) -> None:
    pair.gateway.send_message(Cancel(1))
    pair.deliver()
    assert events(pair.msp) == [MessageReceived(Cancel(1))]
    assert pair.msp.data_to_send(EVERYTHING) == b""


def test_a_source_is_woken_when_its_queue_has_half_gone(pair: Pair) -> None:
    number = pair.open(BULK)
    assert pair.msp.room(number) == SEND_QUEUE[BULK]
    pair.msp.send(number, bytes(SEND_QUEUE[BULK]), 0.0)
    assert pair.msp.room(number) == 0
    pair.msp.data_to_send(SEND_QUEUE[BULK] // 2)
    assert events(pair.msp) == []
    pair.msp.data_to_send(1)
    assert events(pair.msp) == [ChannelWritable(number)]
    pair.msp.data_to_send(EVERYTHING)
    assert events(pair.msp) == []


def test_a_source_paused_by_a_change_of_class_is_woken(pair: Pair) -> None:
    number = pair.open(BULK)
    pair.msp.send(number, bytes(SEND_QUEUE[INTERACTIVE] + 1), 0.0)
    pair.msp.set_priority(number, INTERACTIVE)
    assert pair.msp.room(number) < 0
    pair.msp.data_to_send(EVERYTHING)
    assert events(pair.msp) == [ChannelWritable(number)]


# ---- fairness ---------------------------------------------------------------------------------


def test_a_keystroke_overtakes_queued_bulk(pair: Pair) -> None:
    bulk, terminal = pair.open(BULK), pair.open()
    pair.msp.send(bulk, bytes(200_000), 0.0)
    first = pair.msp.data_to_send(budget=1)
    pair.msp.send(terminal, b"\r", 0.0)
    pair.gateway.receive_data(first + pair.msp.data_to_send(budget=1), now=0.0)
    assert events(pair.gateway)[-1] == DataReceived(terminal, b"\r")


def test_a_keystroke_overtakes_long_messages_and_no_short_ones(pair: Pair) -> None:
    terminal = pair.open()
    for call in range(3):
        pair.gateway.send_message(Result(call, Code.OK, 0.0, 1, bytes(3000)))
    first = pair.gateway.data_to_send(budget=1)
    pair.gateway.send(terminal, b"\r", 0.0)
    pair.msp.receive_data(first + pair.gateway.data_to_send(budget=1), now=0.0)
    assert events(pair.msp)[-1] == DataReceived(terminal, b"\r")
    pair.deliver()
    assert len(events(pair.msp)) == 2
    pair.gateway.send_message(Result(3, Code.OK, 0.0, 1, b"{}"))
    pair.gateway.send(terminal, b"\r", 0.0)
    assert types(pair.gateway.data_to_send(budget=1)) == [FrameType.RESULT]


def test_the_classes_are_strict_control_then_interactive_then_bulk(pair: Pair) -> None:
    bulk, terminal = pair.open(BULK), pair.open()
    pair.msp.send(bulk, b"bulk", 0.0)
    pair.msp.send(terminal, b"key", 0.0)
    pair.msp.send_message(NoticeAck(1))
    opened = pair.msp.open(TARGET, INTERACTIVE)
    pair.msp.go_away(GoAway(Code.SHUTDOWN, "maintenance"))
    order = [(frame.type, frame.channel) for frame in frames(pair.msp.data_to_send(EVERYTHING))]
    assert order == [
        (FrameType.GOAWAY, 0),
        (FrameType.OPEN, opened),
        (FrameType.NOTICE_ACK, 0),
        (FrameType.DATA, terminal),
        (FrameType.DATA, bulk),
    ]


def test_channels_of_one_class_take_turns(pair: Pair) -> None:
    numbers = [pair.open(BULK) for _ in range(3)]
    for number in numbers:
        pair.msp.send(number, bytes(3 * 16384), 0.0)
    order = [frame.channel for frame in frames(pair.msp.data_to_send(EVERYTHING))]
    assert order == numbers * 3


@pytest.mark.parametrize("piece", [100, 2048, 16384])
@pytest.mark.parametrize("bulk_chunk", [2048, 16384])
def test_bulk_keeps_its_share_whatever_the_size_of_its_pieces(piece: int, bulk_chunk: int) -> None:
    pair = Pair(MuxConfig(interactive_window=1024 * 1024, bulk_window=1024 * 1024))
    bulk, terminal = pair.open(BULK), pair.open()
    pair.msp.bulk_chunk = bulk_chunk
    for _ in range(800):
        pair.msp.send(bulk, bytes(piece), 0.0)
    type_calmly(pair.msp, terminal, 1024 * 1024)
    sizes = {bulk: 0, terminal: 0}
    while sizes[terminal] < 900_000:
        for frame in frames(pair.msp.data_to_send(1)):
            sizes[frame.channel] += 8 + len(frame.payload)
    share = sizes[bulk] / sum(sizes.values())
    # The first turn comes after a whole chunk has been earned.
    floor = 1 / pair.config.bulk_share - bulk_chunk / 900_000
    assert floor * 0.95 <= share < 0.08


def test_bulk_that_waited_for_nobody_is_owed_nothing(pair: Pair) -> None:
    bulk, terminal = pair.open(BULK), pair.open()
    type_calmly(pair.msp, terminal, 60_000)
    pair.msp.data_to_send(EVERYTHING)
    pair.msp.send(bulk, bytes(100_000), 0.0)
    pair.msp.send(terminal, b"key", 60.0)
    assert frames(pair.msp.data_to_send(1))[0].channel == terminal


def test_what_bulk_was_owed_ends_with_it(pair: Pair) -> None:
    bulk, terminal = pair.open(BULK), pair.open()
    pair.msp.bulk_chunk = 2048
    pair.msp.send(bulk, b"short", 0.0)
    type_calmly(pair.msp, terminal, 48_000)
    assert [f.channel for f in frames(pair.msp.data_to_send(EVERYTHING))][-2:] == [bulk, terminal]
    pair.msp.send(bulk, bytes(100_000), 0.0)
    pair.msp.send(terminal, b"key", 60.0)
    assert frames(pair.msp.data_to_send(1))[0].channel == terminal


def test_the_budget_is_overshot_by_at_most_one_frame(pair: Pair) -> None:
    bulk, terminal = pair.open(BULK), pair.open()
    pair.msp.send(bulk, bytes(100_000), 0.0)
    pair.msp.send(terminal, bytes(20_000), 0.0)
    assert pair.msp.data_to_send(0) == b""
    for budget in (1, 100, 16384, 16392, 20_000, 40_000):
        sent = frames(pair.msp.data_to_send(budget))
        assert sum(8 + len(frame.payload) for frame in sent[:-1]) < budget


def test_chunks_are_never_merged(pair: Pair) -> None:
    number = pair.open()
    chunks = [b"a", b"bc", b"", b"def"]
    for chunk in chunks:
        pair.msp.send(number, chunk, 0.0)
    pair.deliver()
    received = [e.data for e in events(pair.gateway) if isinstance(e, DataReceived)]
    assert received == [b"a", b"bc", b"def"]


def test_a_paced_bulk_chunk_is_short_and_a_keystroke_is_not_cut(pair: Pair) -> None:
    bulk, terminal = pair.open(BULK), pair.open()
    pair.msp.bulk_chunk = 2048
    pair.msp.send(bulk, bytes(5000), 0.0)
    pair.msp.send(terminal, bytes(5000), 0.0)
    sizes = [len(frame.payload) for frame in frames(pair.msp.data_to_send(EVERYTHING))]
    assert sizes == [5000, 2048, 2048, 904]


def test_a_stream_can_change_its_class_while_data_waits(pair: Pair) -> None:
    first, second = pair.open(), pair.open()
    assert not pair.msp.shares_the_line(0.0)
    pair.msp.send(first, b"first", 0.0)
    pair.msp.send(second, b"second", 0.0)
    pair.msp.set_priority(first, BULK)
    assert pair.msp.shares_the_line(0.0)
    assert [f.channel for f in frames(pair.msp.data_to_send(EVERYTHING))] == [second, first]


def test_a_flooding_terminal_goes_with_bulk_until_it_falls() -> None:
    pair = Pair(MuxConfig(interactive_window=1024 * 1024))
    flood, terminal = pair.open(), pair.open()

    def order() -> list[int]:
        return [frame.channel for frame in frames(pair.msp.data_to_send(EVERYTHING))]

    pair.msp.send(flood, bytes(15_999), 0.0)
    pair.msp.send(terminal, b"key", 0.0)
    assert order() == [flood, terminal]
    assert not pair.msp.shares_the_line(0.0)
    # 64 kbit/s on the average of two seconds, and one byte more.
    pair.msp.send(flood, b"12", 0.0)
    pair.msp.send(terminal, b"key", 0.0)
    assert order() == [terminal, flood]
    assert pair.msp.shares_the_line(0.0)
    # Above the rate it stays; it needs a second of silence, however long it flooded.
    for tenth in range(1, 100):
        pair.msp.send(flood, bytes(900), tenth / 10)
        pair.msp.send(terminal, b"key", tenth / 10)
        assert order() == [terminal, flood]
    pair.msp.send(flood, b"x", 11.0)
    pair.msp.send(terminal, b"key", 11.0)
    assert order() == [flood, terminal]
    assert not pair.msp.shares_the_line(0.0)


def test_silence_ends_a_flood_and_what_it_shared_the_line_for(pair: Pair) -> None:
    flood, terminal = pair.open(), pair.open()
    pair.msp.send(flood, bytes(20_000), 0.0)
    assert pair.msp.shares_the_line(0.9)
    pair.msp.send(terminal, b"key", 0.9)
    # A second later, though nothing more was said; what still waits goes along.
    assert not pair.msp.shares_the_line(1.0)
    sent = [frame.channel for frame in frames(pair.msp.data_to_send(EVERYTHING))]
    assert sent == [terminal, flood, flood]


def test_what_waits_of_a_terminal_that_becomes_a_flood_goes_along_in_its_order(pair: Pair) -> None:
    terminal = pair.open()
    pair.msp.send(terminal, b"first", 0.0)
    pair.msp.send(terminal, bytes(16_384), 0.0)
    assert pair.msp.room(terminal) < 0
    pair.msp.send(terminal, b"last", 60.0)
    pair.msp.send_eof(terminal)
    sent = frames(pair.msp.data_to_send(EVERYTHING))
    assert [frame.payload for frame in sent] == [b"first", bytes(16_384), b"last", b""]
    assert events(pair.msp) == [ChannelWritable(terminal)]


def test_a_flooding_terminal_paces_itself_beside_bulk_alone_and_alone_it_does_not(
    pair: Pair,
) -> None:
    flood = pair.open()
    pair.msp.send(flood, bytes(16_000), 0.0)
    assert not pair.msp.shares_the_line(0.0)
    pair.open(BULK)
    assert pair.msp.shares_the_line(0.0)


def test_bulk_never_becomes_a_terminal_by_being_slow(pair: Pair) -> None:
    bulk, terminal = pair.open(BULK), pair.open()
    pair.msp.send(bulk, bytes(16_000), 0.0)
    pair.msp.send(bulk, b"slow", 60.0)
    pair.msp.send(terminal, b"key", 60.0)
    sent = [frame.channel for frame in frames(pair.msp.data_to_send(EVERYTHING))]
    assert sent == [terminal, bulk, bulk]


def test_a_flood_that_is_told_its_class_is_measured_afresh(pair: Pair) -> None:
    flood, terminal = pair.open(), pair.open()
    pair.msp.send(flood, bytes(16_000), 0.0)
    pair.msp.set_priority(flood, INTERACTIVE)
    pair.msp.send(terminal, b"key", 0.0)
    sent = [frame.channel for frame in frames(pair.msp.data_to_send(EVERYTHING))]
    assert sent == [flood, terminal]


# ---- links and sessions -----------------------------------------------------------------------


def test_a_cut_anywhere_loses_and_doubles_nothing(pair: Pair) -> None:
    number = pair.open()
    pair.msp.send(number, b"first", 0.0)
    pair.msp.send(number, b"second", 0.0)
    pair.msp.send(number, b"third", 0.0)
    wire = pair.msp.data_to_send(EVERYTHING)
    for arrived in range(len(wire) + 1):
        other = Pair()
        assert other.open() == number
        for chunk in (b"first", b"second", b"third"):
            other.msp.send(number, chunk, 0.0)
        assert other.msp.data_to_send(EVERYTHING) == wire
        other.gateway.receive_data(wire[:arrived], 0.0)
        other.cut()
        other.resume()
        other.deliver()
        received = [e.data for e in events(other.gateway) if isinstance(e, DataReceived)]
        assert received == [b"first", b"second", b"third"]


def test_what_was_queued_while_away_leaves_behind_the_replay(pair: Pair) -> None:
    number = pair.open()
    pair.msp.send(number, b"lost on the way", 0.0)
    pair.msp.data_to_send(EVERYTHING)
    pair.cut()
    pair.msp.send(number, b"said while away", 0.0)
    pair.resume()
    pair.deliver()
    received = [e.data for e in events(pair.gateway) if isinstance(e, DataReceived)]
    assert received == [b"lost on the way", b"said while away"]


def test_a_link_cut_in_the_middle_of_the_replay_is_replayed_again(pair: Pair) -> None:
    number = pair.open()
    for chunk in (b"one", b"two", b"three"):
        pair.msp.send(number, chunk, 0.0)
    pair.msp.data_to_send(EVERYTHING)
    pair.cut()
    pair.resume()
    pair.gateway.receive_data(pair.msp.data_to_send(60), 0.0)
    pair.cut()
    pair.resume()
    pair.deliver()
    received = [e.data for e in events(pair.gateway) if isinstance(e, DataReceived)]
    assert received == [b"one", b"two", b"three"]


def test_a_peer_may_have_received_more_than_it_acknowledged(pair: Pair) -> None:
    number = pair.open()
    pair.msp.send(number, b"data", 0.0)
    pair.gateway.receive_data(pair.msp.data_to_send(EVERYTHING), 0.0)
    assert pair.msp.unacknowledged > 0
    pair.cut()
    pair.resume()
    assert pair.msp.unacknowledged == 0
    pair.deliver()
    assert events(pair.gateway) == [DataReceived(number, b"data")]


def test_limits_are_said_again_on_a_new_link() -> None:
    pair = Pair(SMALL)
    number = pair.open()
    pair.msp.send(number, bytes(20 * 1024), 0.0)
    pair.deliver()
    events(pair.gateway)
    pair.gateway.consume(number, 16 * 1024, 0.0)
    assert types(pair.gateway.data_to_send(EVERYTHING)) == [FrameType.CREDIT]
    pair.cut()
    pair.resume()
    pair.deliver()
    assert events(pair.gateway) == [DataReceived(number, bytes(4 * 1024))]


def test_no_limit_is_said_for_a_channel_that_is_being_reset(pair: Pair) -> None:
    number = pair.open()
    pair.msp.reset(number, Code.CANCELLED, "enough")
    pair.cut()
    pair.resume()
    credits = [f.channel for f in frames(pair.msp.data_to_send(EVERYTHING)) if f.type == 7]
    assert credits == [0]


def test_a_late_read_from_a_lost_link_is_not_counted(pair: Pair) -> None:
    number = pair.open()
    pair.msp.send(number, b"data", 0.0)
    late = pair.msp.data_to_send(EVERYTHING)
    pair.cut()
    pair.gateway.receive_data(late, 0.0)
    pair.resume()
    pair.deliver()
    assert events(pair.gateway) == [DataReceived(number, b"data")]


def test_nothing_is_said_without_a_link(pair: Pair) -> None:
    pair.msp.open(TARGET, INTERACTIVE)
    pair.cut()
    assert not pair.msp.attached
    assert pair.msp.data_to_send(EVERYTHING) == b""
    assert pair.msp.next_timeout() is None
    pair.msp.handle_timeout(1e9)
    assert events(pair.msp) == []


def test_what_belongs_to_a_link_dies_with_it(pair: Pair) -> None:
    pair.deliver()
    pair.now = 5.0
    pair.gateway.handle_timeout(pair.now)
    pair.msp.receive_data(pair.gateway.data_to_send(EVERYTHING), pair.now)
    pair.msp.go_away(GoAway(Code.SHUTDOWN, "old news"))
    pair.cut()
    pair.msp.go_away(GoAway(Code.SHUTDOWN, "said to nobody"))
    pair.resume()
    assert types(pair.msp.data_to_send(EVERYTHING)) == [FrameType.CREDIT]


@pytest.mark.parametrize("count", [1, 2**64 - 1])
def test_an_impossible_resume_count_is_an_error(pair: Pair, count: int) -> None:
    pair.cut()
    with pytest.raises(RemoteProtocolError, match=f"resumes at {count}") as info:
        pair.msp.attach(count, 0.0)
    assert info.value.code is Code.PROTOCOL_ERROR
    assert not pair.msp.attached


def test_a_resume_below_what_was_acknowledged_is_an_error(pair: Pair) -> None:
    pair.open()
    pair.cut()
    pair.resume()
    with pytest.raises(RemoteProtocolError, match="resumes at 0, possible is 1 to 1"):
        pair.msp.attach(0, 0.0)


def test_every_channel_hears_the_end_of_its_session(pair: Pair) -> None:
    opened, offered, half = pair.open(), pair.msp.open(TARGET, BULK), pair.open()
    pair.msp.send_eof(half)
    pair.deliver()
    resetting = pair.open()
    pair.gateway.reset(resetting, Code.CANCELLED, "known already")
    opening = pair.gateway.open(ResultTarget(1), BULK)
    pair.gateway.send_message(Cancel(1))
    events(pair.gateway)
    pair.gateway.abandon(Code.SESSION_LOST, "the MSP restarted")
    ended = events(pair.gateway)
    assert ended[-1] == SessionReset()
    assert {e.channel for e in ended[:-1] if isinstance(e, ChannelEnded)} == {
        opened,
        offered,
        half,
        opening,
    }
    assert all(e.code is Code.SESSION_LOST for e in ended if isinstance(e, ChannelEnded))
    assert pair.gateway.channels == pair.gateway.queued_messages == 0
    assert not pair.gateway.attached


# ---- acknowledgement --------------------------------------------------------------------------


def test_one_way_traffic_that_nobody_consumes_is_still_acknowledged(pair: Pair) -> None:
    number = pair.open(BULK)
    pair.msp.send(number, bytes(pair.config.bulk_window), 0.0)
    pair.deliver()
    assert pair.msp.unacknowledged < 128 * 1024 + 16392


def test_many_small_frames_are_acknowledged(pair: Pair) -> None:
    number = pair.open()
    for _ in range(200):
        pair.msp.send(number, b"x", 0.0)
    pair.deliver()
    assert pair.msp.unacknowledged < 64 * 9


def test_the_rest_is_acknowledged_by_ping_and_pong(pair: Pair) -> None:
    number = pair.open()
    pair.msp.send(number, b"down", 0.0)
    pair.gateway.send(number, b"up", 0.0)
    pair.deliver()
    assert min(pair.msp.unacknowledged, pair.gateway.unacknowledged) > 0
    pair.gateway.handle_timeout(4.0)
    pair.deliver()
    assert pair.msp.unacknowledged == pair.gateway.unacknowledged == 0


def test_the_replay_buffer_is_bounded_and_an_acknowledgement_lets_it_go_on() -> None:
    pair = Pair(MuxConfig(memory=1024 * 1024, control_window=65536, bulk_window=65536))
    number = pair.open(BULK)
    pair.msp.receive_data(codec.build_credit(number, 1 << 40, 0), 0.0)
    pair.msp.send(number, bytes(4 * 1024 * 1024), 0.0)
    sent = frames(pair.msp.data_to_send(EVERYTHING))
    assert pair.msp.unacknowledged < 1024 * 1024 + 16392
    pair.msp.send_message(NoticeAck(1))
    assert pair.msp.data_to_send(EVERYTHING) == b""
    pair.msp.receive_data(codec.build_ack(1 + len(sent)), 0.0)
    assert frames(pair.msp.data_to_send(1))[0].type is FrameType.NOTICE_ACK


def test_a_full_replay_buffer_on_both_sides_is_no_deadlock() -> None:
    pair = Pair(
        MuxConfig(memory=1024 * 1024, control_window=65536, bulk_window=900 * 1024),
    )
    number = pair.open(BULK)
    for mux in (pair.msp, pair.gateway):
        mux.receive_data(codec.build_credit(number, 900 * 1024, 0), 0.0)
        mux.send(number, bytes(900 * 1024), 0.0)
    up, down = pair.gateway.data_to_send(EVERYTHING), pair.msp.data_to_send(EVERYTHING)
    pair.msp.receive_data(up, 0.0)
    pair.gateway.receive_data(down, 0.0)
    pair.deliver()
    assert pair.msp.unacknowledged == pair.gateway.unacknowledged == 0


# ---- liveness ---------------------------------------------------------------------------------


def test_only_the_gateway_pings_and_the_msp_answers(pair: Pair) -> None:
    pair.deliver()
    deadline = pair.liveness.timeout
    assert pair.msp.next_timeout() == deadline
    at = pair.gateway.next_timeout()
    assert at is not None
    assert 0.0 <= at <= pair.liveness.interval
    pair.gateway.handle_timeout(at)
    assert pair.gateway.next_timeout() == at + pair.liveness.interval
    pair.msp.handle_timeout(at)
    pair.msp.receive_data(pair.gateway.data_to_send(EVERYTHING), at)
    assert pair.msp.next_timeout() == at + deadline
    pair.gateway.receive_data(pair.msp.data_to_send(EVERYTHING), at + 0.25)
    assert events(pair.gateway) == [RoundTrip(0.25)]
    assert pair.gateway.rtt == 0.25


def test_the_msp_learns_the_round_trip_from_the_next_ping(pair: Pair) -> None:
    pair.gateway.attach(0, 0.0, rtt=0.025)
    pair.gateway.handle_timeout(4.0)
    pair.deliver()
    assert pair.msp.rtt == 0.025


def test_a_timer_that_fires_early_does_nothing(pair: Pair) -> None:
    pair.deliver()
    at = pair.gateway.next_timeout()
    assert at is not None
    pair.gateway.handle_timeout(at - 0.001)
    assert pair.gateway.data_to_send(EVERYTHING) == b""


def test_silence_is_found_by_both_sides_whatever_they_write(pair: Pair) -> None:
    number = pair.open()
    pair.msp.send(number, b"still writing", 0.0)
    for mux in (pair.msp, pair.gateway):
        mux.handle_timeout(12.5)
        assert events(mux) == [LinkDead(12.5)]
        assert not mux.attached


def test_only_whole_frames_prove_that_the_peer_lives(pair: Pair) -> None:
    pair.gateway.receive_data(codec.build_ack(0)[:-1], 11.0)
    pair.gateway.handle_timeout(12.0)
    assert events(pair.gateway) == [LinkDead(12.0)]


def test_a_slow_peer_answers_only_the_newest_ping(pair: Pair) -> None:
    pair.deliver()
    for at in (4.0, 8.0):
        pair.gateway.handle_timeout(at)
    pair.msp.receive_data(pair.gateway.data_to_send(EVERYTHING), 9.0)
    answer = pair.msp.data_to_send(EVERYTHING)
    assert types(answer) == [FrameType.PONG]
    pair.gateway.receive_data(answer, 9.0)
    assert events(pair.gateway) == [RoundTrip(1.0)]


def test_a_peer_that_answers_no_ping_costs_a_bounded_number_of_them(pair: Pair) -> None:
    pair.deliver()
    pings = 0
    for turn in range(1, 100):
        pair.gateway.receive_data(codec.build_ack(0), turn * 4.0)
        pair.gateway.handle_timeout(turn * 4.0)
        pings += len(frames(pair.gateway.data_to_send(EVERYTHING)))
    assert pings == MAX_PINGS


def test_a_random_phase_keeps_many_gateways_from_pinging_in_step() -> None:
    phases = set()
    pair = Pair(liveness=LivenessConfig(interval=10, timeout=30))
    for _ in range(5):
        pair.cut()
        pair.resume()
        phases.add(pair.gateway.next_timeout())
    assert len(phases) == 5


def test_a_goaway_is_passed_on(pair: Pair) -> None:
    goaway = GoAway(Code.SHUTDOWN, "maintenance", "msp2.example:4433", 60)
    pair.msp.go_away(goaway)
    pair.deliver()
    assert events(pair.gateway) == [PeerGoingAway(goaway)]


# ---- bad peers --------------------------------------------------------------------------------


def frame(frame_type: FrameType, channel: int, payload: bytes = b"") -> bytes:
    return codec.build_frame(frame_type, channel, payload)


RESET_PAYLOAD = codec.build_end(FrameType.RESET, Code.CANCELLED, "enough")
OPEN_PAYLOAD = codec.build_open(INTERACTIVE, 1000, TARGET)
CANCEL = build_message(Cancel(1))


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (bytes.fromhex("1300000200004001"), Code.FRAME_SIZE, "payload of 16385 bytes"),
        (bytes.fromhex("13000002ffffffff"), Code.FRAME_SIZE, "payload of 4294967295 bytes"),
        (bytes.fromhex("ff00000000000000"), Code.FRAME_LAYOUT, "type 0xff with flags 0x00"),
        (bytes.fromhex("1301000200000000"), Code.FRAME_LAYOUT, "type 0x13 with flags 0x01"),
        (frame(FrameType.GREETING, 0), Code.FRAME_LAYOUT, "second GREETING on a link"),
        (frame(FrameType.WELCOME, 0), Code.FRAME_LAYOUT, "second WELCOME on a link"),
        (frame(FrameType.ACK, 3, bytes(8)), Code.CHANNEL_STATE, "ACK on channel 3"),
        (codec.build_ack(2), Code.PROTOCOL_ERROR, "acknowledges 2 frames, 1 were sent"),
        (codec.build_credit(2, 0, 2**64 - 1), Code.PROTOCOL_ERROR, "acknowledges 1844674407370955"),
        (codec.build_pong(7, 0), Code.PROTOCOL_ERROR, "PONG 7 answers no PING"),
        (codec.build_ping(1, 0, 0.0), Code.FRAME_LAYOUT, "PING from the MSP"),
        (frame(FrameType.OPEN, 0, OPEN_PAYLOAD), Code.CHANNEL_STATE, "OPEN on channel 0"),
        (frame(FrameType.OPEN, 3, OPEN_PAYLOAD), Code.CHANNEL_STATE, "not the peer's to open"),
        (frame(FrameType.OPEN, 2, OPEN_PAYLOAD), Code.CHANNEL_STATE, "not the peer's to open"),
        (frame(FrameType.DATA, 0, b"x"), Code.CHANNEL_STATE, "DATA on channel 0"),
        (frame(FrameType.DATA, 4, b"x"), Code.CHANNEL_STATE, "DATA on channel 4, never opened"),
        (frame(FrameType.EOF, 5), Code.CHANNEL_STATE, "EOF on channel 5, never opened"),
        (frame(FrameType.ACCEPT, 6), Code.CHANNEL_STATE, "ACCEPT on channel 6, never opened"),
        (frame(FrameType.REFUSE, 6), Code.CHANNEL_STATE, "REFUSE on channel 6, never opened"),
        (frame(FrameType.RESET, 6, b"x"), Code.FRAME_LAYOUT, "RESET of 1 bytes"),
        (frame(FrameType.DATA, 2), Code.FRAME_LAYOUT, "DATA of 0 bytes"),
        (frame(FrameType.EOF, 2, b"x"), Code.FRAME_LAYOUT, "EOF of 1 bytes"),
        (frame(FrameType.ACCEPT, 2, bytes(4)), Code.CHANNEL_STATE, "which is OPEN"),
        (frame(FrameType.CANCEL, 2, bytes(4)), Code.CHANNEL_STATE, "CANCEL on channel 2"),
        (frame(FrameType.CANCEL, 0, bytes(3)), Code.FRAME_LAYOUT, "CANCEL of 3 bytes"),
    ],
)
def test_a_bad_frame_ends_the_link_with_its_code(data: bytes, code: Code, message: str) -> None:
    pair = Pair()
    pair.open()
    with pytest.raises(RemoteProtocolError, match=message) as info:
        pair.gateway.receive_data(data, 0.0)
    assert info.value.code is code


def test_frames_behind_a_refusal_or_both_eofs_are_errors() -> None:
    for ended_by_refusal in (False, True):
        pair = Pair()
        number = pair.msp.open(TARGET, INTERACTIVE) if ended_by_refusal else pair.open()
        pair.deliver()
        if ended_by_refusal:
            pair.gateway.refuse(number, Code.UNREACHABLE, "off")
        else:
            pair.gateway.send_eof(number)
            pair.msp.send_eof(number)
        pair.deliver()
        with pytest.raises(ChannelStateError, match="DATA on channel 2, never opened"):
            pair.gateway.receive_data(frame(FrameType.DATA, number, b"late"), 0.0)


def test_credit_for_a_channel_that_is_not_there_means_nothing(pair: Pair) -> None:
    pair.deliver()
    pair.gateway.receive_data(codec.build_credit(40000, 2**64 - 1, 0), 0.0)
    assert pair.gateway.channels == 0
    assert pair.gateway.data_to_send(EVERYTHING) == b""


def test_data_beyond_the_credit_is_an_error_with_the_numbers() -> None:
    pair = Pair(SMALL)
    number = pair.open()
    pair.gateway.receive_data(frame(FrameType.DATA, number, bytes(16384)), 0.0)
    with pytest.raises(RemoteProtocolError, match="1 bytes behind 16384, but the limit") as info:
        pair.gateway.receive_data(frame(FrameType.DATA, number, b"x"), 0.0)
    assert info.value.code is Code.FLOW_CONTROL


def test_a_channel_that_is_being_reset_has_no_more_credit_than_before() -> None:
    pair = Pair(SMALL)
    number = pair.open()
    pair.gateway.reset(number, Code.CANCELLED, "enough")
    pair.gateway.receive_data(frame(FrameType.DATA, number, bytes(16384)), 0.0)
    assert events(pair.gateway) == []
    with pytest.raises(RemoteProtocolError, match="the limit is 16384"):
        pair.gateway.receive_data(frame(FrameType.DATA, number, b"x"), 0.0)


def test_messages_beyond_the_control_credit_are_an_error() -> None:
    pair = Pair(SMALL)
    with pytest.raises(RemoteProtocolError, match="the limit is 65536") as info:
        pair.gateway.receive_data(CANCEL * (16 * 1024 + 1), 0.0)
    assert info.value.code is Code.FLOW_CONTROL
    assert len(events(pair.gateway)) == 16 * 1024


def test_a_flood_of_opens_is_refused_and_then_ended() -> None:
    pair = Pair(SMALL)
    opens = [frame(FrameType.OPEN, number, OPEN_PAYLOAD) for number in range(2, 4000, 2)]
    with pytest.raises(RemoteProtocolError, match="1024 answers wait") as info:
        pair.gateway.receive_data(b"".join(opens), 0.0)
    assert info.value.code is Code.PROTOCOL_ERROR
    assert pair.gateway.channels == 4
    assert len(events(pair.gateway)) == 4


def test_a_flood_of_opens_whose_refusals_are_read_goes_on_for_ever(pair: Pair) -> None:
    for number in range(2, 5000, 2):
        pair.gateway.receive_data(frame(FrameType.OPEN, number, OPEN_PAYLOAD), 0.0)
        answered = len(frames(pair.gateway.data_to_send(EVERYTHING)))
        pair.gateway.receive_data(codec.build_ack(max(0, number // 2 - 128)), 0.0)
    assert answered == 1
    assert pair.gateway.channels == pair.config.max_channels
    assert pair.gateway.unacknowledged == 0


def test_a_flood_of_opens_and_resets_is_ended(pair: Pair) -> None:
    both = frame(FrameType.OPEN, 2, OPEN_PAYLOAD) + frame(FrameType.RESET, 2, RESET_PAYLOAD)
    with pytest.raises(RemoteProtocolError, match="1024 answers wait"):
        pair.gateway.receive_data(both * 2000, 0.0)
    assert len(events(pair.gateway)) <= 2 * 1024 + 2


def test_a_flood_of_pings_gets_one_answer(pair: Pair) -> None:
    pair.deliver()
    pair.msp.receive_data(codec.build_ping(1, 0, 0.0) * 1000 + codec.build_ping(9, 0, 0.0), 0.0)
    assert pair.msp.data_to_send(EVERYTHING) == codec.build_pong(9, 0)


def test_a_pong_answers_once(pair: Pair) -> None:
    pair.deliver()
    pair.gateway.handle_timeout(4.0)
    pair.msp.receive_data(pair.gateway.data_to_send(EVERYTHING), 4.0)
    pong = pair.msp.data_to_send(EVERYTHING)
    pair.gateway.receive_data(pong, 4.0)
    with pytest.raises(RemoteProtocolError, match="PONG 1 answers no PING"):
        pair.gateway.receive_data(pong, 4.0)


def test_an_eof_crossing_our_reset_and_eof_ends_the_channel_quietly(pair: Pair) -> None:
    number = pair.open()
    pair.gateway.send(number, b"unread", 0.0)
    pair.deliver()
    pair.msp.send_eof(number)
    down = pair.msp.data_to_send(EVERYTHING)
    pair.msp.reset(number, Code.CANCELLED, "enough")
    events(pair.msp)
    pair.gateway.receive_data(down, 0.0)
    pair.gateway.send_eof(number)
    pair.msp.receive_data(pair.gateway.data_to_send(EVERYTHING), 0.0)
    assert pair.msp.channels == pair.gateway.channels == 0
    pair.deliver()
    assert events(pair.msp) == []
