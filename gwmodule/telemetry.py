"""One log line per event, as key=value; counters; and what the processes weigh."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from pathlib import Path

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:/@%+,-[]")
# A line must fit into one syslog datagram whatever a LAN host calls itself.
MAX_VALUE = 300


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
        """Only for our own bugs: with the traceback."""
        self._logger.exception(format_event(event, fields))


def start_logging(level: str) -> None:
    """To stderr without time stamps: journald and logd add their own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
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
