from __future__ import annotations

import logging
import os

import pytest

from gwmodule.telemetry import MAX_VALUE, EventLog, escape, format_event, memory


def test_an_event_is_one_line_of_keys_and_values() -> None:
    line = format_event("link_up", {"msp": "msp.example:8883", "resumed": True, "ms": 12.5})
    assert line == "event=link_up msp=msp.example:8883 resumed=True ms=12.5"


def test_values_with_blanks_and_quotes_are_quoted() -> None:
    line = format_event("x", {"reason": 'a "b" \\ c', "empty": ""})
    assert line == 'event=x reason="a \\"b\\" \\\\ c" empty=""'


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[2Jclear", "nul\0", "\u202ertl"])
def test_text_of_strangers_stays_on_its_line(text: str) -> None:
    line = format_event("lease", {"hostname": text})
    assert line.isprintable()
    assert "\\x" in line


def test_a_long_value_is_cut() -> None:
    assert len(escape("x" * 10_000)) == MAX_VALUE


def test_debug_lines_cost_nothing_when_nobody_wants_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("formatted")

    log = EventLog("gwmodule.test")
    with caplog.at_level(logging.INFO):
        log.debug("tick", value=Costly())
        log.warning("tock", value=1)
    assert caplog.messages == ["event=tock value=1"]


def test_the_size_of_a_process_is_what_the_kernel_says() -> None:
    mine = memory()
    assert 5_000 < mine["pss_kib"] <= mine["rss_kib"] < 5_000_000
    assert memory(os.getpid()).keys() == mine.keys()
    assert memory(0) == {}
