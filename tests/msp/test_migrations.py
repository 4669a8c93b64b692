import sqlite3

from gwmodule.msp.migrations import MIGRATIONS


def test_every_step_applies_to_what_the_step_before_left() -> None:
    db = sqlite3.connect(":memory:")
    for step in MIGRATIONS:
        db.executescript(step)
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    assert {"gateways", "hosts", "devices", "hellos", "audit"} <= tables
    db.close()
