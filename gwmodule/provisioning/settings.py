"""Settings written into the gateway's configuration: TOML by replacing lines, UCI by `uci`.

Comments and everything else in a TOML file stay as they are. What came out is read again before
it replaces the old file: a file that is written in a way this does not understand is left alone.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gwmodule.config import Config, load, parse
from gwmodule.errors import ConfigError
from gwmodule.files import write_atomically
from gwmodule.provisioning.identity import ProvisioningError

# By table and key; None removes the setting, an empty table name is the top level.
Value = str | tuple[str, ...] | None
Settings = Mapping[tuple[str, str], Value]

_UCI_TIMEOUT = 30.0
_NEW_FILE = "# Written by `gwmodule provision`; docs/configuration.md has every setting.\n"


def is_uci(path: Path) -> bool:
    return not path.suffix


def current(path: Path) -> Config:
    """The configuration, or the defaults where there is no file yet."""
    if path.exists():
        return load(path)
    return parse({}, str(path))


def changes(config: Config, wanted: Settings) -> dict[tuple[str, str], Value]:
    """Those of `wanted` that `config` does not have already."""
    return {
        (table, key): value
        for (table, key), value in wanted.items()
        if getattr(getattr(config, table), key) != _default(table, key, value)
    }


def write(path: Path, wanted: Settings) -> None:
    """All of `wanted` in one step. ConfigError and OSError leave the file as it was."""
    if is_uci(path):
        _write_uci(path, wanted)
    else:
        _write_toml(path, wanted)


def _default(table: str, key: str, value: Value) -> Any:
    return getattr(getattr(Config(), table), key) if value is None else value


def rehearse(path: Path, wanted: Settings) -> None:
    """ConfigError if `write` would find a file that it cannot edit; nothing is written."""
    if not is_uci(path):
        _rendered(path, wanted)


def _write_toml(path: Path, wanted: Settings) -> None:
    new = _rendered(path, wanted)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if path.exists():
        status = path.stat()
        write_atomically(path, new.encode(), status.st_mode & 0o777, status.st_gid)
    else:
        # Nothing in it is secret, and the services' user has to read it.
        write_atomically(path, new.encode(), 0o644)


def _rendered(path: Path, wanted: Settings) -> str:
    old = path.read_text() if path.exists() else _NEW_FILE
    new = edited(old, wanted)
    merged: dict[str, Any] = tomllib.loads(old)
    for (table, key), value in wanted.items():
        if value is None:
            merged.get(table, {}).pop(key, None)
        else:
            merged.setdefault(table, {})[key] = list(value) if isinstance(value, tuple) else value
    try:
        understood = _without_empty(tomllib.loads(new)) == _without_empty(merged)
    except tomllib.TOMLDecodeError:
        understood = False
    if not understood:
        raise ConfigError(
            str(path),
            "",
            "cannot be edited as it is written; set by hand: "
            + ", ".join(f"{table}.{key}" for table, key in wanted),
        )
    parse(tomllib.loads(new), str(path))
    return new


def edited(text: str, wanted: Settings) -> str:
    """`text` with these settings, each on a line of its own below its table's header."""
    lines = text.splitlines()
    for (table, key), value in wanted.items():
        start = next((n for n, line in enumerate(lines, 1) if _header(line) == table), None)
        if start is None:
            if value is not None:
                lines += ["", f"[{table}]", _assignment(key, value)]
            continue
        end = next((n for n in range(start, len(lines)) if lines[n].lstrip()[:1] == "["), None)
        pattern = re.compile(rf"\s*{re.escape(key)}\s*=")
        present = [n for n in range(start, end or len(lines)) if pattern.match(lines[n])]
        replacement = [] if value is None else [_assignment(key, value)]
        if present:
            lines[present[0] : present[0] + 1] = replacement
        else:
            lines[start:start] = replacement
    return "\n".join(lines) + "\n"


def _header(line: str) -> str | None:
    found = re.fullmatch(r"\s*\[\s*([A-Za-z0-9_]+)\s*\]\s*(?:#.*)?", line)
    return found[1] if found else None


def _assignment(key: str, value: str | tuple[str, ...]) -> str:
    # A JSON string without characters outside ASCII is a TOML basic string.
    return f"{key} = {json.dumps(value)}"


def _without_empty(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if value != {}}


def _write_uci(path: Path, wanted: Settings) -> None:
    """One batch and one commit, which replaces the file by a rename."""
    package = path.name
    # A section may have any name, or none.
    lines = [
        f"set {package}.{table}={table}"
        for table in dict.fromkeys(table for table, _ in wanted)
        if _uci(path, "get", f"{package}.@{table}[0]") != 0
    ]
    for (table, key), value in wanted.items():
        option = f"{package}.@{table}[0].{key}"
        if value is None or isinstance(value, tuple):
            # Of a batch, `uci` stops at what is not there.
            if _uci(path, "get", option) == 0:
                lines.append(f"delete {option}")
            lines += [f"add_list {option}={_quoted(entry)}" for entry in value or ()]
        else:
            lines.append(f"set {option}={_quoted(value)}")
    lines.append(f"commit {package}")
    if not path.exists():
        path.touch(mode=0o644)
    if _uci(path, "batch", stdin="\n".join(lines) + "\n") != 0:
        raise ProvisioningError(f"{path}: uci could not change it")
    missing = changes(load(path), wanted)
    if missing:
        raise ProvisioningError(f"{path}: uci did not set {next(iter(missing))[1]}")


def _uci(path: Path, *arguments: str, stdin: str = "") -> int:
    command = ["uci", "-q", "-c", str(path.parent), *arguments]
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=_UCI_TIMEOUT,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as exc:
        raise ProvisioningError(f"{path} is a UCI file, and the command uci is missing") from exc
    except subprocess.TimeoutExpired as exc:
        raise ProvisioningError(f"{path}: uci did not end") from exc
    return done.returncode


def _quoted(text: str) -> str:
    if "'" in text or "\n" in text:
        raise ProvisioningError(f"{text[:80]!r} cannot be written into a UCI file")
    return f"'{text}'"
