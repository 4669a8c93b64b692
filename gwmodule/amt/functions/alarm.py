"""AMT's alarm clock, which switches the PC on (reference/amt-protocols.md 3.8)."""

from __future__ import annotations

import re

from gwmodule.amt.functions.identity import require_identity
from gwmodule.amt.functions.reading import flag, text
from gwmodule.amt.functions.records import iso
from gwmodule.amt.functions.schema import (
    Argument,
    Arguments,
    Context,
    Field,
    Function,
    Kind,
    Result,
    Wsman,
)
from gwmodule.amt.wsman import Embedded, Instance, Value, check_return

_SERVICE = "AMT_AlarmClockService"
_OCCURRENCE = "IPS_AlarmClockOccurrence"
_INTERVAL = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:\d+S)?)?")
MAX_INTERVAL = 366 * 24 * 60


async def alarm_list(client: Wsman, arguments: Arguments, context: Context) -> Result:
    alarms = await client.enumerate(_OCCURRENCE)
    return {"alarms": [_alarm(each) for each in alarms]}


def _alarm(instance: Instance) -> Result:
    return {
        "name": text(instance, "InstanceID"),
        "time_text": _member(instance, "StartTime", "Datetime"),
        "interval": _minutes(_member(instance, "Interval", "Interval")),
        "once": flag(instance, "DeleteOnCompletion"),
    }


def _member(instance: Instance, name: str, kind: str) -> str:
    value = instance.get(name, "")
    if isinstance(value, dict):
        return text(value, kind)
    return value if isinstance(value, str) else ""


def _minutes(duration: str) -> int | None:
    """An ISO 8601 duration in minutes; None for what is none, as `0` for an alarm of one time."""
    found = _INTERVAL.fullmatch(duration)
    if not found or len(duration) > 40:
        return None
    days, hours, minutes = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes


async def alarm_add(client: Wsman, arguments: Arguments, context: Context) -> Result:
    await require_identity(client, context)
    name, minutes = arguments["name"], arguments["interval"]
    occurrence: dict[str, Value] = {
        "InstanceID": name,
        "ElementName": name,
        "StartTime": {"Datetime": iso(arguments["time"])},
    }
    if minutes:
        days, rest = divmod(minutes, 24 * 60)
        duration = f"P{days}DT{rest // 60}H{rest % 60}M"
        occurrence["Interval"] = {"Interval": duration}
    occurrence["DeleteOnCompletion"] = arguments["once"]
    output = await client.invoke(
        _SERVICE, "AddAlarm", {"AlarmTemplate": Embedded(_OCCURRENCE, occurrence)}
    )
    check_return(_SERVICE, "AddAlarm", output)
    return {"name": name, "time_text": iso(arguments["time"]), "interval": minutes}


async def alarm_delete(client: Wsman, arguments: Arguments, context: Context) -> Result:
    await require_identity(client, context)
    await client.delete(_OCCURRENCE, {"InstanceID": arguments["name"]})
    return {}


_NAME = Argument("name", Kind.TEXT, "what the alarm is called", low=1, high=64)

FUNCTIONS = (
    Function(
        "alarm.list",
        "The alarms that switch the PC on",
        alarm_list,
        result=(Field("alarms", Kind.LIST, "name, time_text, interval in minutes, once"),),
    ),
    Function(
        "alarm.add",
        "Switch the PC on at a time, once or again and again",
        alarm_add,
        (
            _NAME,
            Argument(
                "time",
                Kind.INTEGER,
                "when, on the device's clock",
                low=1_000_000_000,
                unit="seconds since 1970",
            ),
            Argument(
                "interval",
                Kind.INTEGER,
                "time between two alarms, 0 for a single one",
                default=0,
                high=MAX_INTERVAL,
                unit="minutes",
            ),
            Argument("once", Kind.BOOLEAN, "forget the alarm after its last time", default=True),
        ),
        (
            Field("name", Kind.TEXT, "the alarm's name"),
            Field("time_text", Kind.TEXT, "when, as ISO 8601 in UTC"),
            Field("interval", Kind.INTEGER, "time between two", unit="minutes"),
        ),
        changes_state=True,
    ),
    Function("alarm.delete", "Remove an alarm", alarm_delete, (_NAME,), changes_state=True),
)
