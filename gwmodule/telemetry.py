"""One log line per event, as key=value; counters; and what the processes weigh."""

from __future__ import annotations

import logging
import sys
import traceback
from collections import Counter
from pathlib import Path

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:/@%+,-[]")
# A line must fit into one syslog datagram whatever a LAN host calls itself.
MAX_VALUE = 300
# Of a traceback, the innermost calls.
MAX_PLACES = 12


class Counters(Counter[str]):
    """What a counter counts needs no log line; `status` shows them all."""


def escape(text: str) -> str:
    """Text from outside as it may appear in a log line or on a terminal: printable, one line."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:MAX_VALUE])


def format_event(event: str, fields: dict[str, object]) -> str:
    parts = [f"event={event}"]
    for key, value in fields.items():
        text = escape(str(value))
        if not text or not _PLAIN.issuperset(text):
            text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        parts.append(f"{key}={text}")
    return " ".join(parts)


class LineFormatter(logging.Formatter):
    """`LEVEL LOGGER event=NAME key=value ...`, whoever logs, on one line.

    Of a traceback the places and the exception's type: its text may hold what was being worked on.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = record.getMessage()
        if not line.startswith("event="):
            line = format_event("message", {"text": line})
        if record.exc_info and record.exc_info[1] is not None:
            exc = record.exc_info[1]
            places = traceback.extract_tb(exc.__traceback__)[-MAX_PLACES:]
            where = " < ".join(f"{Path(p.filename).name}:{p.lineno}" for p in reversed(places))
            line += " " + format_event(type(exc).__name__, {"at": where}).replace(
                "event=", "exception=", 1
            )
        return f"{record.levelname} {record.name} {line}"


class EventLog:
    """`log.info("link_up", msp=address)`: never payload, never a secret."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: object) -> None:
        if self._logger.isEnabledFor(logging.DEBUG):
            self._logger.debug(format_event(event, fields))

    def info(self, event: str, **fields: object) -> None:
        self._logger.info(format_event(event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self._logger.warning(format_event(event, fields))

    def error(self, event: str, **fields: object) -> None:
        self._logger.error(format_event(event, fields))

    def exception(self, event: str, **fields: object) -> None:
        """Only for our own bugs: with the places of the traceback."""
        self._logger.exception(format_event(event, fields))


def start_logging(level: str) -> None:
    """To stderr without time stamps: journald and logd add their own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def memory(pid: int | str = "self") -> dict[str, int]:
    """Resident and proportional set size of a process in KiB; empty when it cannot be read."""
    sizes: dict[str, int] = {}
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            sizes[f"{name.lower()}_kib"] = int(rest.split()[0])
    return sizes
