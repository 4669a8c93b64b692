"""Data on stdout, for people or as JSON; messages on stderr."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import shutil
import sys
from collections.abc import Callable
from typing import Any, TextIO

from gwmodule.telemetry import escape

BAR_WIDTH = 24


def notice(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


class ProgressBar:
    """One line that draws over itself; only on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn = False
        self.shown = stream.isatty()

    def show(self, done: int, total: int, step: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r{progress_line(done, total, step)[:width]}\x1b[K")
        self._stream.flush()
        self._drawn = True

    def clear(self) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False


def progress_line(done: int, total: int, step: str) -> str:
    """With `total` 0 nobody knows how much there is."""
    if total <= 0:
        return f"{done} {escape(step)}"
    filled = BAR_WIDTH * min(max(done, 0), total) // total
    bar = "#" * filled + "." * (BAR_WIDTH - filled)
    return f"[{bar}] {done}/{total} {escape(step)}"


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2), flush=True)


def print_checklist(found: dict[str, Any]) -> None:
    """What `gwmodule explain` prints at the gateway, with the service's own steps before it."""
    for step in found["steps"]:
        print(f"{step['result']:<8} {escape(step['step']):<12} {escape(step['found'])}".rstrip())
        if step["advice"]:
            print(f"{'':<21} -> {escape(step['advice'])}")
    where = next((s["step"] for s in found["steps"] if s["result"] == "failed"), "")
    print(f"\nfails at: {where}" if where else "\nnothing stands in the way")


def print_tree(value: Any, indent: str = "") -> None:
    """A result for people: one `name: value` per line, nested by indentation."""
    match value:
        case dict():
            for key, inner in value.items():
                if isinstance(inner, (dict, list)) and inner:
                    print(f"{indent}{escape(str(key))}:")
                    print_tree(inner, f"{indent}  ")
                else:
                    print(f"{indent}{escape(str(key))}: {_scalar(inner)}")
        case list():
            for inner in value:
                if isinstance(inner, (dict, list)):
                    print(f"{indent}-")
                    print_tree(inner, f"{indent}  ")
                else:
                    print(f"{indent}- {_scalar(inner)}")
        case _:
            print(f"{indent}{_scalar(value)}")


def _scalar(value: Any) -> str:
    return escape(value) if isinstance(value, str) else json.dumps(value)


def show(
    options: argparse.Namespace, rows: list[Any], columns: dict[str, Callable[[Any], str]]
) -> None:
    """A table for people: texts from a LAN are escaped, columns without any entry are left out."""
    if options.json:
        print_json(rows)
        return
    cells = [[escape(str(cell(row))) for cell in columns.values()] for row in rows]
    kept = [i for i in range(len(columns)) if any(row[i] for row in cells)] if rows else []
    if not rows:
        notice("none\n")
        return
    table = [[list(columns)[i] for i in kept]] + [[row[i] for i in kept] for row in cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(kept))]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def ago(text: str | None) -> str:
    if text is None:
        return "never"
    with contextlib.suppress(ValueError):
        moment = datetime.datetime.fromisoformat(text)
        seconds = (datetime.datetime.now(datetime.UTC) - moment).total_seconds()
        for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
            if seconds >= 2 * size:
                return f"{seconds / size:.0f} {unit} ago"
        return f"{max(seconds, 0):.0f} s ago"
    return text
