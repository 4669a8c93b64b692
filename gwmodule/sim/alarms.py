"""The device's clock and the alarms that switch its PC on, without I/O.

Time here is the device's own: seconds since 1970, as somebody set it.
Source: reference/amt-protocols.md 3.4 and 3.8.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, replace

MAX_TIME = 0xFFFFFFFF
MAX_ALARMS = 5
MAX_NAME = 64
# xs:duration as AMT writes it: P0DT0H1M, with or without seconds.
_DURATION = re.compile(r"P(?:(\d{1,4})D)?(?:T(?:(\d{1,4})H)?(?:(\d{1,4})M)?(?:(\d{1,4})S)?)?")


class BadAlarm(ValueError):
    """A time, a duration or a name that cannot be one."""


class DeviceClock:
    """Runs on the loop's clock, from `wall` at `now`."""

    def __init__(self, now: float, wall: float) -> None:
        self._offset = wall - now

    def wall(self, now: float) -> float:
        return now + self._offset

    def seconds(self, now: float) -> int:
        return int(self.wall(now))

    def loop_time(self, wall: float) -> float:
        """When the clock will say `wall`."""
        return wall - self._offset

    def set(self, now: float, wall: float) -> None:
        """Within the 32 bits that its messages have for it."""
        self._offset = min(max(wall, 0), MAX_TIME) - now


@dataclass(frozen=True, slots=True)
class Alarm:
    """IPS_AlarmClockOccurrence. `interval` is seconds, 0 for once only."""

    name: str
    title: str
    start: float
    interval: int = 0
    delete: bool = True
    done: bool = False


class AlarmClock:
    """The alarms by name, which is their InstanceID."""

    def __init__(self) -> None:
        self._alarms: dict[str, Alarm] = {}

    @property
    def alarms(self) -> list[Alarm]:
        return list(self._alarms.values())

    @property
    def full(self) -> bool:
        return len(self._alarms) >= MAX_ALARMS

    def add(self, alarm: Alarm) -> bool:
        """False when there is one of that name."""
        if alarm.name in self._alarms:
            return False
        self._alarms[alarm.name] = alarm
        return True

    def delete(self, name: str) -> bool:
        return self._alarms.pop(name, None) is not None

    def next_wall(self) -> float | None:
        return min((each.start for each in self.alarms if not each.done), default=None)

    def ring(self, wall: float) -> bool:
        """Whether an alarm was due by `wall`; what repeats is set to its next time."""
        due = [each for each in self.alarms if not each.done and each.start <= wall]
        for alarm in due:
            if alarm.interval:
                missed = (wall - alarm.start) // alarm.interval
                start = alarm.start + (missed + 1) * alarm.interval
                self._alarms[alarm.name] = replace(alarm, start=start)
            elif alarm.delete:
                del self._alarms[alarm.name]
            else:
                self._alarms[alarm.name] = replace(alarm, done=True)
        return bool(due)


def parse_moment(text: str) -> float:
    """Seconds since 1970 of `2026-01-31T23:59:00Z`; without a zone it is UTC. BadAlarm."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as exc:
        raise BadAlarm(f"{text[:40]!r} is no date and time") from exc
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    seconds = moment.timestamp()
    if not 0 <= seconds <= MAX_TIME:
        raise BadAlarm(f"{text[:40]!r} is before 1970 or after 2106")
    return seconds


def parse_duration(text: str) -> int:
    """Seconds of `P1DT2H3M`; empty is none. BadAlarm."""
    if not text:
        return 0
    found = _DURATION.fullmatch(text)
    if found is None or text.endswith(("P", "T")):
        raise BadAlarm(f"{text[:40]!r} is no duration")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def format_moment(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def format_duration(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"P{days}DT{hours}H{minutes}M{f'{rest}S' if rest else ''}"
