"""Event log and audit log (reference/amt-protocols.md 3.6 and 3.7)."""

from __future__ import annotations

import base64

from gwmodule.sim import logs
from gwmodule.sim.alarms import format_moment
from gwmodule.sim.classes.common import INVALID_PARAMETER, OK, returns, singleton
from gwmodule.sim.machine import Machine
from gwmodule.sim.wsman import CimTime, Invocation, Properties, Resource

# ReturnValues of AMT_MessageLog's methods.
_NOT_SUPPORTED = 1
_INVALID_RECORD = 2
_NO_RECORD = 2


def classes(machine: Machine) -> list[Resource]:
    return [_message_log(machine), _audit_log(machine)]


def _message_log(machine: Machine) -> Resource:
    name, title = "AMT_MessageLog", "Intel(r) AMT:MessageLog 1"
    log = machine.events

    def properties() -> Properties:
        return {
            "Capabilities": (5, 6, 8, 7),
            "CharacterSet": 10,
            "CreationClassName": name,
            "CurrentNumberOfRecords": len(log),
            "ElementName": title,
            "EnabledDefault": 2,
            "EnabledState": 2,
            "HealthState": 5,
            "IsFrozen": log.frozen,
            "LastChange": 0,
            "LogState": 4,
            "MaxLogSize": 0,
            "MaxNumberOfRecords": logs.MAX_EVENTS,
            "MaxRecordSize": 21,
            "Name": title,
            "OperationalStatus": 2,
            "OverwritePolicy": 2,
            "PercentageNearFull": 100,
            "RequestedState": 12,
            "SizeOfHeader": 0,
            "SizeOfRecordHeader": 0,
            "Status": "OK",
        }

    def position_to_first_record(invocation: Invocation) -> Properties:
        return returns(OK, {"IterationIdentifier": 1}) if len(log) else returns(_NO_RECORD)

    def get_records(invocation: Invocation) -> Properties:
        first = invocation.input.number("IterationIdentifier")
        count = invocation.input.number("MaxReadRecords")
        if not 0 < count <= logs.MAX_EVENTS:
            return returns(_NOT_SUPPORTED)
        if not 0 < first <= len(log):
            return returns(_INVALID_RECORD)
        records = log.read(first, count)
        after = first + len(records)
        return {
            "IterationIdentifier": after,
            "NoMoreRecords": after > len(log),
            "RecordArray": _texts(records),
            "ReturnValue": OK,
        }

    def get_record(invocation: Invocation) -> Properties:
        first = invocation.input.number("IterationIdentifier")
        if not 0 < first <= len(log):
            return returns(_INVALID_RECORD)
        [record] = _texts(log.read(first, 1))
        after = {"IterationIdentifier": first + 1, "NoMoreRecords": first == len(log)}
        return returns(OK, after | {"RecordData": record})

    def cancel_iteration(invocation: Invocation) -> Properties:
        return returns(OK)

    def clear_log(invocation: Invocation) -> Properties:
        log.clear()
        machine.record(logs.EVENT_LOG_CLEARED)
        return returns(OK)

    def freeze_log(invocation: Invocation) -> Properties:
        log.frozen = invocation.input.read("Freeze") in ("true", "1")
        machine.record(logs.EVENT_LOG_FROZEN)
        return returns(OK)

    methods = {
        "PositionToFirstRecord": position_to_first_record,
        "GetRecords": get_records,
        "GetRecord": get_record,
        "CancelIteration": cancel_iteration,
        "ClearLog": clear_log,
        "FreezeLog": freeze_log,
    }
    return Resource(name, singleton(properties), methods=methods)


def _audit_log(machine: Machine) -> Resource:
    log = machine.audit

    def properties() -> Properties:
        return {
            "AuditState": 16,
            "CurrentNumberOfRecords": len(log),
            "ElementName": "Intel(r) AMT Audit Log",
            "EnabledState": 2,
            "MaxAllowedAuditors": 1,
            "MaxNumberOfRecords": 0,
            "Name": "Intel(r) AMT:Audit Log",
            "OverwritePolicy": 2,
            "PercentageFree": 100 - 100 * len(log) // logs.MAX_AUDIT,
            "RequestedState": 2,
            "StoragePolicy": 1,
            "TimeOfLastRecord": CimTime("Datetime", format_moment(log.last)),
        }

    def read_records(invocation: Invocation) -> Properties:
        first = invocation.input.number("StartIndex")
        # The end is no error: the log may simply be empty.
        if first < 1 or first > len(log) + 1:
            return returns(INVALID_PARAMETER)
        records = log.read(first)
        return {
            "EventRecords": _texts(records),
            "RecordsReturned": len(records),
            "ReturnValue": OK,
            "TotalRecordCount": len(log),
        }

    return Resource("AMT_AuditLog", singleton(properties), methods={"ReadRecords": read_records})


def _texts(records: list[bytes]) -> tuple[str, ...]:
    return tuple(base64.b64encode(record).decode() for record in records)
