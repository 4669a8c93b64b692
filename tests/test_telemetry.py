from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterator

import pytest

from gwmodule.telemetry import MAX_VALUE, EventLog, escape, format_event, memory, start_logging


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


LINE = re.compile(r'[A-Z]+ [a-z.]+ event=[a-z_]+( [a-z_]+=("([^"\\]|\\.)*"|[^" ]+))*')


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the handler of `start_logging` writes."""
    root = logging.getLogger()
    handlers, level, stream = root.handlers[:], root.level, io.StringIO()
    try:
        with contextlib.redirect_stderr(stream):
            start_logging("debug")
        yield stream
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def test_a_traceback_is_one_line_with_the_places_and_without_the_text(
    written: io.StringIO,
) -> None:
    def inner() -> None:
        raise ValueError("P@ssw0rd\nis no number")

    try:
        inner()
    except ValueError:
        EventLog("gwmodule.calls").exception("call_failed", function="power.get")
    (line,) = written.getvalue().splitlines()
    assert LINE.fullmatch(line)
    assert "event=call_failed function=power.get exception=ValueError" in line
    assert line.count("test_telemetry.py:") == 2
    assert "P@ss" not in line


def test_lines_of_libraries_have_the_same_form(written: io.StringIO) -> None:
    logging.getLogger("asyncio").error("Task exception\nwas never retrieved")
    (line,) = written.getvalue().splitlines()
    assert LINE.fullmatch(line)
    assert line.startswith('ERROR asyncio event=message text="Task exception')


def test_the_size_of_a_process_is_what_the_kernel_says() -> None:
    mine = memory()
    assert 5_000 < mine["pss_kib"] <= mine["rss_kib"] < 5_000_000
    assert memory(os.getpid()).keys() == mine.keys()
    assert memory(0) == {}
