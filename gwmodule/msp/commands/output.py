"""Data on stdout, for people or as JSON; messages on stderr."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import sys
from collections.abc import Callable
from typing import Any

from gwmodule.telemetry import escape


def notice(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2), flush=True)


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
