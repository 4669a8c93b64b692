"""The two logs: AMT_MessageLog (events) and AMT_AuditLog (reference/amt-protocols.md 3.6, 3.7)."""

from __future__ import annotations

from typing import Any

from gwmodule.amt.functions.identity import require_identity
from gwmodule.amt.functions.reading import binary, flag, number, optional_number
from gwmodule.amt.functions.records import (
    APPLICATIONS,
    ENTITIES,
    INITIATORS,
    SEVERITIES,
    decode_audit,
    decode_event,
)
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
from gwmodule.amt.wsman import Instance, check_return, values

_EVENTS = "AMT_MessageLog"
_AUDIT = "AMT_AuditLog"
# The log holds this many, and GetRecords gives no more at a time.
MAX_EVENTS = 390
# An audit log is at most 64 KiB of records of at least 12 bytes.
MAX_AUDIT = 5461
_LOG_RETURN_VALUES = {1: "not supported", 2: "invalid record pointer", 3: "no record"}
_NO_RECORD = ("2", "3")


def _records(output: Instance, name: str) -> list[bytes]:
    return [binary(value, name) for value in values(output, name)]


async def eventlog_get(client: Wsman, arguments: Arguments, context: Context) -> Result:
    limit = arguments["limit"]
    log = await client.get(_EVENTS)
    total = min(optional_number(log, "CurrentNumberOfRecords") or 0, limit)
    records: list[Result] = []
    output = await client.invoke(_EVENTS, "PositionToFirstRecord", reads=True)
    empty = output.get("ReturnValue") in _NO_RECORD
    if not empty:
        check_return(_EVENTS, "PositionToFirstRecord", output, _LOG_RETURN_VALUES)
    read = 0
    while not empty and read < limit:
        asked = {
            "IterationIdentifier": number(output, "IterationIdentifier"),
            "MaxReadRecords": min(MAX_EVENTS, limit - read),
        }
        output = await client.invoke(_EVENTS, "GetRecords", asked)
        if output.get("ReturnValue") in _NO_RECORD:
            break
        check_return(_EVENTS, "GetRecords", output, _LOG_RETURN_VALUES)
        page = _records(output, "RecordArray")
        read += len(page)
        records += [event for event in map(decode_event, page) if event is not None]
        context.progress(read, max(total, read), "reading the event log")
        if flag(output, "NoMoreRecords") is not False or not page:
            break
    return {
        "records": records[:limit],
        "frozen": flag(log, "IsFrozen"),
        "capacity": optional_number(log, "MaxNumberOfRecords"),
    }


async def eventlog_clear(client: Wsman, arguments: Arguments, context: Context) -> Result:
    await require_identity(client, context)
    output = await client.invoke(_EVENTS, "ClearLog")
    check_return(_EVENTS, "ClearLog", output, _LOG_RETURN_VALUES)
    return {}


async def auditlog_get(client: Wsman, arguments: Arguments, context: Context) -> Result:
    start, limit = arguments["start"], arguments["limit"]
    records: list[Result] = []
    total = 0
    while len(records) < limit:
        asked = {"StartIndex": start + len(records)}
        output = await client.invoke(_AUDIT, "ReadRecords", asked, reads=True)
        check_return(_AUDIT, "ReadRecords", output)
        total = number(output, "TotalRecordCount")
        page: list[Any] = [decode_audit(data) for data in _records(output, "EventRecords")]
        records += page
        wanted = min(limit, max(total - start + 1, 0))
        context.progress(min(len(records), wanted), wanted, "reading the audit log")
        if not page or len(records) >= wanted:
            break
    return {"records": records[:limit], "total": total}


FUNCTIONS = (
    Function(
        "eventlog.get",
        "The event log, decoded, in the device's order (newest first)",
        eventlog_get,
        (
            Argument(
                "limit",
                Kind.INTEGER,
                "most records to read",
                default=MAX_EVENTS,
                low=1,
                high=MAX_EVENTS,
            ),
        ),
        (
            Field(
                "records", Kind.LIST, "events: time (seconds since 1970), severity, entity, text"
            ),
            Field("records.severity", Kind.CHOICE, "how bad", choices=SEVERITIES),
            Field("records.entity", Kind.CHOICE, "what reported it", choices=ENTITIES),
            Field("frozen", Kind.BOOLEAN, "whether new events are dropped"),
            Field("capacity", Kind.INTEGER, "records that the log can hold"),
        ),
    ),
    Function("eventlog.clear", "Erase the event log", eventlog_clear, changes_state=True),
    Function(
        "auditlog.get",
        "The audit log, decoded; the login needs the auditor's right",
        auditlog_get,
        (
            Argument("start", Kind.INTEGER, "first record", default=1, low=1, high=65535),
            Argument(
                "limit",
                Kind.INTEGER,
                "most records to read",
                default=MAX_AUDIT,
                low=1,
                high=MAX_AUDIT,
            ),
        ),
        (
            Field("records", Kind.LIST, "who did what: time (seconds since 1970), initiator, text"),
            Field("records.application", Kind.CHOICE, "which part of AMT", choices=APPLICATIONS),
            Field("records.initiator_type", Kind.CHOICE, "kind of user", choices=INITIATORS),
            Field("total", Kind.INTEGER, "records in the log"),
        ),
    ),
)
