"""OpenWrt's UCI files, read without libuci into the tree that `config.parse` takes.

    config gwmodule 'main'                 {"deployment": "gateway",
            option deployment 'gateway'     "msp": {"address": ["msp.example:4433"]}}
    config msp 'msp'                   -->
            list address 'msp.example:4433'

The section's type names the table of the schema; the type `gwmodule` is the root. A section's own
name is free. UCI knows only text, so the schema says what a value becomes. What `uci` itself never
writes (a second section of a type, a value over two lines, two commands on a line) is an error.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from typing import Any

from gwmodule.errors import ConfigError

ROOT = "gwmodule"
# Options of the root section that are the init script's business, not ours.
INIT_OPTIONS = ("enabled", "network", "provisionserver", "zone")
# OpenWrt has /var/run, in RAM, and the jails of the two services mount these folders.
OPENWRT = {
    "control": {"socket": "/var/run/gwmodule/control.sock"},
    "capture": {"socket": "/var/run/gwmodule-capture/capture.sock"},
}

# libuci's own words (util.c, uci_validate_type and uci_validate_str).
_SECTION_TYPE = re.compile(r"[!-~]+")
_NAME = re.compile(r"[A-Za-z0-9_]+")
_TRUE = ("1", "on", "true", "yes", "enabled")
_FALSE = ("0", "off", "false", "no", "disabled")
# Not what int() and float() take: they know underscores, "nan" and digits of other scripts.
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_DECIMAL = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")


def tree(text: str, schema: type[Any], path: str) -> dict[str, Any]:
    """The file's sections as tables; ConfigError names file, section, option and line."""
    tables = {table: dict(values) for table, values in OPENWRT.items()}
    root: dict[str, Any] = {}
    for section in _sections(text, path):
        if section.type == ROOT:
            root = _table(section, schema, path)
        elif (hint := _branches(schema).get(section.type)) is not None:
            tables.setdefault(section.type, {}).update(_table(section, hint, path))
        else:
            known = ", ".join(sorted((ROOT, *_branches(schema))))
            problem = f"line {section.line}: unknown section type (known: {known})"
            raise ConfigError(path, section.type, problem)
    return {**root, **tables}


@dataclasses.dataclass(slots=True)
class _Section:
    type: str
    line: int
    # A list is what `list` lines gave; a string came from an `option` line.
    values: dict[str, str | list[str]] = dataclasses.field(default_factory=dict)
    lines: dict[str, int] = dataclasses.field(default_factory=dict)


def _sections(text: str, path: str) -> list[_Section]:
    found: dict[str, _Section] = {}
    section: _Section | None = None
    # Not splitlines: a form feed ends no line in libuci.
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"line {number}"
        try:
            words = list(_words(line))
        except ValueError as exc:
            raise ConfigError(path, where, str(exc)) from exc
        match words:
            case []:
                continue
            case ["package", _]:
                continue
            case ["config", kind] | ["config", kind, _]:
                if not _SECTION_TYPE.fullmatch(kind) or (
                    len(words) == 3 and not _NAME.fullmatch(words[2])
                ):
                    raise ConfigError(path, where, "the section has no valid type and name")
                if kind in found:
                    first = found[kind].line
                    raise ConfigError(path, kind, f"{where}: this section is on line {first} too")
                section = found[kind] = _Section(kind, number)
            case ["option" | "list" as keyword, name, value]:
                if section is None:
                    raise ConfigError(path, where, f"{keyword} {name} stands before any section")
                if not _NAME.fullmatch(name):
                    raise ConfigError(path, where, f"{name!r} is no option name")
                _add(section, keyword, name, value, number, path)
            case _:
                raise ConfigError(path, where, "is not `config`, `option` or `list` with a value")
    return list(found.values())


def _add(section: _Section, keyword: str, name: str, value: str, number: int, path: str) -> None:
    present = section.values.get(name)
    if keyword == "list" and isinstance(present, list):
        present.append(value)
        return
    if present is not None:
        first = section.lines[name]
        raise ConfigError(path, f"{section.type}.{name}", f"line {number}: set on line {first} too")
    section.values[name] = [value] if keyword == "list" else value
    section.lines[name] = number


def _words(line: str) -> Iterator[str]:
    """The words of one line. ValueError says what is wrong with it."""
    position, end = 0, len(line)
    while True:
        while position < end and line[position] in " \t\r":
            position += 1
        if position == end or line[position] == "#":
            return
        word = ""
        while position < end and line[position] not in " \t\r":
            piece, position = _piece(line, position)
            word += piece
        yield word


def _piece(line: str, position: int) -> tuple[str, int]:
    """A quoted run, an escape or one plain character: its text and where it ends."""
    char = line[position]
    if char == "'":
        closing = line.find("'", position + 1)
        if closing < 0:
            raise ValueError("a quote is not closed on its line")
        return line[position + 1 : closing], closing + 1
    if char == '"':
        text, position = "", position + 1
        while position < len(line) and line[position] != '"':
            position += line[position] == "\\"
            text += line[position : position + 1]
            position += 1
        if position >= len(line):
            raise ValueError("a quote is not closed on its line")
        return text, position + 1
    if char == "\\":
        if position + 1 == len(line):
            raise ValueError("a backslash at the end of the line")
        return line[position + 1], position + 2
    if char in ";#":
        raise ValueError(f"put a value with {char!r} in quotes")
    return char, position + 1


def _table(section: _Section, schema: type[Any], path: str) -> dict[str, Any]:
    branches = _branches(schema)
    leaves = {
        name: hint for name, hint in typing.get_type_hints(schema).items() if name not in branches
    }
    table: dict[str, Any] = {}
    for name, value in section.values.items():
        where = f"{section.type}.{name}"
        line = f"line {section.lines[name]}"
        if section.type == ROOT and name in INIT_OPTIONS:
            continue
        if name not in leaves:
            init = INIT_OPTIONS if section.type == ROOT else ()
            known = ", ".join(sorted((*leaves, *init)))
            raise ConfigError(path, where, f"{line}: unknown option (known here: {known})")
        try:
            table[name] = _value(leaves[name], value)
        except ValueError as exc:
            raise ConfigError(path, where, f"{line}: {exc}") from exc
    return table


def _value(hint: Any, value: str | list[str]) -> Any:
    if typing.get_origin(hint) is tuple:
        return value
    if isinstance(value, list):
        raise ValueError("is a single value: write `option`, not `list`")
    if hint is bool:
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
        raise ValueError(f"must be 1 or 0, not {value!r}")
    if hint is int:
        if not _WHOLE.fullmatch(value):
            raise ValueError(f"must be a whole number, not {value!r}")
        return int(value)
    if hint is float:
        if not _DECIMAL.fullmatch(value):
            raise ValueError(f"must be a number, not {value!r}")
        return float(value)
    return value


def _branches(schema: type[Any]) -> dict[str, type[Any]]:
    hints: dict[str, Any] = typing.get_type_hints(schema)
    return {
        name: hint
        for name, hint in hints.items()
        if isinstance(hint, type) and dataclasses.is_dataclass(hint)
    }
