from gwmodule.amt.functions.records import decode_audit, decode_event
from gwmodule.sim.logs import (
    AUDIT_PAGE,
    MAX_AUDIT,
    MAX_EVENTS,
    RESET,
    AuditLog,
    EventLog,
    firmware_progress,
    login_failed,
    no_bootable_media,
    redirection_session,
)

NOW = 1_704_511_587


def test_a_record_is_the_one_that_was_recorded_from_a_device() -> None:
    log = EventLog()
    log.add(NOW, login_failed(10))
    [record] = log.read(1, 1)
    # reference/amt-protocols.md 3.6; the entity's instance, byte 12, is that PC's own.
    recorded = bytes.fromhex("63c89865ff066f056810ff2661aa0a000000000000")
    assert record[:12] == recorded[:12]
    assert record[13:] == recorded[13:]


def test_the_newest_comes_first() -> None:
    log = EventLog()
    for age, event in enumerate([no_bootable_media(), redirection_session(1)]):
        log.add(NOW + age, event)
    decoded = [decode_event(record) for record in log.read(1, 2)]
    assert [each["text"] for each in decoded if each] == [
        "Serial-over-LAN session closed",
        "no bootable media",
    ]


def test_the_oldest_is_overwritten() -> None:
    log = EventLog()
    for number in range(MAX_EVENTS + 1):
        log.add(NOW + number, firmware_progress(7))
    assert len(log) == MAX_EVENTS
    [oldest] = log.read(MAX_EVENTS, 5)
    assert int.from_bytes(oldest[:4], "little") == NOW + 1


def test_a_frozen_log_takes_nothing() -> None:
    log = EventLog()
    log.frozen = True
    log.add(NOW, no_bootable_media())
    assert len(log) == 0


def test_a_log_after_years_is_full_and_can_be_cleared() -> None:
    log = EventLog()
    log.fill(NOW)
    assert len(log) == MAX_EVENTS
    log.clear()
    assert len(log) == 0


def test_audit_records_are_read_page_by_page() -> None:
    log = AuditLog()
    for number in range(AUDIT_PAGE + 2):
        log.add(NOW + number, RESET, "admin", b"\x01")
    assert len(log.read(1)) == AUDIT_PAGE
    [_, last] = log.read(1 + AUDIT_PAGE)
    decoded = decode_audit(last)
    assert (decoded["text"], decoded["initiator"]) == ("reset", "admin")
    assert decoded["time"] == NOW + AUDIT_PAGE + 1
    assert decoded["extended"] == "01"
    assert log.last == decoded["time"]


def test_the_audit_log_is_bounded() -> None:
    log = AuditLog()
    for _ in range(MAX_AUDIT + 5):
        log.add(NOW, RESET, "admin")
    assert len(log) == MAX_AUDIT
