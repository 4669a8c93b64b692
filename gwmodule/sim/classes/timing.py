"""Clock and alarms (reference/amt-protocols.md 3.4 and 3.8)."""

from __future__ import annotations

from gwmodule.sim import logs
from gwmodule.sim.alarms import (
    MAX_NAME,
    Alarm,
    BadAlarm,
    format_duration,
    format_moment,
    parse_duration,
    parse_moment,
)
from gwmodule.sim.classes.common import INVALID_PARAMETER, OK, returns, service, singleton
from gwmodule.sim.machine import Machine
from gwmodule.sim.profiles import Feature
from gwmodule.sim.storage import Status
from gwmodule.sim.wsman import (
    CimTime,
    Element,
    Fault,
    Invocation,
    Properties,
    Reference,
    Resource,
)

_OCCURRENCE = "IPS_AlarmClockOccurrence"


def classes(machine: Machine) -> list[Resource]:
    every = [_time_synchronization(machine)]
    if machine.profile.has(Feature.ALARMS):
        every += [_alarm_clock_service(machine), _alarm_clock_occurrence(machine)]
    return every


def _time_synchronization(machine: Machine) -> Resource:
    name = "AMT_TimeSynchronizationService"

    def properties() -> Properties:
        return service(name, "Intel(r) AMT Time Synchronization Service") | {
            "EnabledState": 5,
            "LocalTimeSyncEnabled": 0,
            "RequestedState": 12,
            "TimeSource": 0,
        }

    def get_low_accuracy(invocation: Invocation) -> Properties:
        return returns(OK, {"Ta0": machine.clock.seconds(invocation.now)})

    def set_high_accuracy(invocation: Invocation) -> Properties:
        times = [invocation.input.number(each) for each in ("Ta0", "Tm1", "Tm2")]
        if min(times) < 0:
            return returns(INVALID_PARAMETER)
        # Ta0 and Tm1 are one moment, on this clock and on the console's.
        wall = machine.clock.wall(invocation.now) + times[1] - times[0]
        machine.clock.set(invocation.now, wall)
        machine.record(logs.CLOCK_SET)
        return returns(OK)

    methods = {
        "GetLowAccuracyTimeSynch": get_low_accuracy,
        "SetHighAccuracyTimeSynch": set_high_accuracy,
    }
    return Resource(name, singleton(properties), methods=methods)


def _alarm_clock_service(machine: Machine) -> Resource:
    name = "AMT_AlarmClockService"

    def properties() -> Properties:
        title = service(name, "Intel(r) AMT Alarm Clock Service")
        return title | {"SystemName": "ManagedSystem"}

    def add_alarm(invocation: Invocation) -> Properties:
        template = invocation.input.find("AlarmTemplate")
        try:
            if template is None:
                raise BadAlarm("no template")
            alarm = _alarm(template)
        except BadAlarm:
            return returns(INVALID_PARAMETER)
        if machine.alarms.full:
            return returns(Status.MAX_LIMIT_REACHED)
        if not machine.alarms.add(alarm):
            return returns(Status.DUPLICATE)
        return {"AlarmClock": _reference(alarm), "ReturnValue": OK}

    return Resource(name, singleton(properties), methods={"AddAlarm": add_alarm})


def _alarm_clock_occurrence(machine: Machine) -> Resource:
    def instances() -> list[Properties]:
        return [
            {
                "DeleteOnCompletion": alarm.delete,
                "ElementName": alarm.title,
                "InstanceID": alarm.name,
                "Interval": CimTime("Interval", format_duration(alarm.interval)),
                "StartTime": CimTime("Datetime", format_moment(alarm.start)),
            }
            for alarm in machine.alarms.alarms
        ]

    def create(sent: Element) -> Reference:
        try:
            alarm = _alarm(sent)
        except BadAlarm as exc:
            raise Fault("t:InvalidRepresentation", str(exc)) from exc
        if machine.alarms.full or not machine.alarms.add(alarm):
            raise Fault("c:AlreadyExists", "There is no room for another alarm of this name.")
        return _reference(alarm)

    def delete(chosen: Properties) -> None:
        machine.alarms.delete(str(chosen["InstanceID"]))

    return Resource(_OCCURRENCE, instances, create=create, delete=delete)


def _alarm(template: Element) -> Alarm:
    name = template.read("InstanceID")
    if not 0 < len(name) <= MAX_NAME:
        raise BadAlarm(f"InstanceID has {len(name)} characters, maximum {MAX_NAME}")
    return Alarm(
        name,
        template.read("ElementName")[:MAX_NAME],
        parse_moment(template.read("StartTime", "Datetime")),
        parse_duration(template.read("Interval", "Interval")),
        template.read("DeleteOnCompletion") == "true",
    )


def _reference(alarm: Alarm) -> Reference:
    return Reference(_OCCURRENCE, (("InstanceID", alarm.name),))
