import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.sim.alarms import (
    MAX_ALARMS,
    MAX_TIME,
    Alarm,
    AlarmClock,
    BadAlarm,
    DeviceClock,
    format_duration,
    format_moment,
    parse_duration,
    parse_moment,
)


def test_an_alarm_rings_once_and_is_gone() -> None:
    clock = AlarmClock()
    assert clock.add(Alarm("a", "", 100.0))
    assert not clock.add(Alarm("a", "", 200.0))
    assert clock.next_wall() == 100.0
    assert not clock.ring(99.0)
    assert clock.ring(100.0)
    assert clock.alarms == []


def test_an_alarm_that_is_to_stay_stays_silent() -> None:
    clock = AlarmClock()
    clock.add(Alarm("a", "", 100.0, delete=False))
    assert clock.ring(150.0)
    assert not clock.ring(200.0)
    assert clock.next_wall() is None
    assert len(clock.alarms) == 1


def test_a_repeating_alarm_skips_what_it_missed() -> None:
    clock = AlarmClock()
    clock.add(Alarm("a", "", 100.0, interval=60))
    assert clock.ring(100.0)
    assert clock.next_wall() == 160.0
    assert clock.ring(1000.0)
    assert clock.next_wall() == 1060.0


def test_there_is_room_for_a_few() -> None:
    clock = AlarmClock()
    for number in range(MAX_ALARMS):
        assert not clock.full
        clock.add(Alarm(str(number), "", 100.0))
    assert clock.full
    assert clock.delete("0")
    assert not clock.delete("0")


def test_the_clock_follows_the_loop_and_can_be_set() -> None:
    clock = DeviceClock(now=10.0, wall=1000.0)
    assert clock.seconds(15.9) == 1005
    clock.set(20.0, 1110.0)
    assert clock.wall(30.0) == 1120.0
    assert clock.loop_time(1110.0) == 20.0
    clock.set(20.0, 1e12)
    assert clock.seconds(20.0) == MAX_TIME


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T00:01:00", 60.0),
        ("1970-01-01T01:01:00+01:00", 60.0),
    ],
)
def test_a_moment_is_read(text: str, seconds: float) -> None:
    assert parse_moment(text) == seconds
    assert format_moment(seconds) == "1970-01-01T00:01:00Z"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", 0), ("P0DT0H1M", 60), ("P1DT2H3M", 93780), ("PT5S", 5), ("P2D", 172800)],
)
def test_a_duration_is_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "tomorrow", "9999-12-31T23:59:59-23:59", "1969-12-31"])
def test_what_is_no_moment_is_an_error(text: str) -> None:
    with pytest.raises(BadAlarm):
        parse_moment(text)


@pytest.mark.parametrize("text", ["P", "PT", "P1DT", "0", "P1Y", "-P1D", "P99999D"])
def test_what_is_no_duration_is_an_error(text: str) -> None:
    with pytest.raises(BadAlarm):
        parse_duration(text)


@given(st.integers(0, 10**8))
def test_a_written_duration_is_read_again(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text(max_size=40))
def test_garbage_is_a_bad_alarm_and_nothing_else(text: str) -> None:
    for parse in (parse_moment, parse_duration):
        with contextlib.suppress(BadAlarm):
            parse(text)
