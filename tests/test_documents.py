"""README and docs say what is there: settings with their defaults, files, commands, functions."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gwmodule import cli
from gwmodule.amt.functions import CATALOGUE
from gwmodule.config import Config
from gwmodule.errors import Code
from gwmodule.msp import cli as msp_cli
from gwmodule.relay.policy import Rule

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = sorted([README, ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_ROW = re.compile(r"\| `([a-z_]+)` \| `(.*?)` \| (.*?) ?\| (.*) \|")
_CODE = re.compile(r"^    (\S.*)$", re.MULTILINE)
_COMMAND = re.compile(r"(gwmodule(?:-msp)?) ([^#]*)")


def settings() -> dict[str, dict[str, tuple[Any, typing.Mapping[Any, Any]]]]:
    """By table (empty: top level) and name: the default and its bounds."""
    tables: dict[str, dict[str, tuple[Any, typing.Mapping[Any, Any]]]] = {"": {}}
    config = Config()
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tables[field.name] = {
                leaf.name: (getattr(value, leaf.name), leaf.metadata)
                for leaf in dataclasses.fields(value)
            }
        else:
            tables[""][field.name] = (value, field.metadata)
    return tables


def documented() -> dict[str, dict[str, tuple[str, str]]]:
    """By table and name: default and bounds as docs/configuration.md writes them."""
    tables: dict[str, dict[str, tuple[str, str]]] = {}
    for section in (ROOT / "docs/configuration.md").read_text().split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        if title == "Top level" or title.startswith("["):
            name = "" if title == "Top level" else title.strip("[]")
            tables[name] = {row[1]: (row[2], row[3]) for row in _ROW.finditer(text)}
    return tables


def test_every_setting_is_documented_and_no_other() -> None:
    assert {table: sorted(rows) for table, rows in documented().items()} == {
        table: sorted(leaves) for table, leaves in settings().items()
    }


def test_documented_defaults_are_those_of_the_code() -> None:
    written = {
        (table, name): default
        for table, rows in documented().items()
        for name, (default, _) in rows.items()
    }
    assert written == {
        (table, name): json.dumps(default)
        for table, leaves in settings().items()
        for name, (default, _) in leaves.items()
    }


def test_documented_bounds_are_those_of_the_code() -> None:
    tables = documented()
    for table, leaves in settings().items():
        for name, (_, bounds) in leaves.items():
            text = tables[table][name][1]
            if bounds.get("low") is not None:
                low, high = (f"{bounds[key]:.10g}" for key in ("low", "high"))
                assert text == f"{low} to {high}", f"{table}.{name}"
            if bounds.get("one_of"):
                assert text == ", ".join(f"`{word}`" for word in bounds["one_of"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_to_files(document: Path) -> None:
    targets = [link.partition("#")[0] for link in _LINK.findall(document.read_text())]
    relative = [target for target in targets if target and "://" not in target]
    assert [target for target in relative if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_code_blocks_are_accepted_by_the_parsers(document: Path) -> None:
    for line in commands(document.read_text()):
        program, *words = shlex.split(line)
        parser = cli.parser() if program == "gwmodule" else msp_cli.parser()
        try:
            parser.parse_args(words, argparse.Namespace())
        except SystemExit as exc:
            pytest.fail(f"{document.name}: {line!r} ends with {exc.code}")


def test_the_readme_shows_the_commands_that_matter() -> None:
    shown = {" ".join(shlex.split(line)[:2]) for line in commands(README.read_text())}
    assert {
        "gwmodule run",
        "gwmodule-msp serve",
        "gwmodule-msp gateway",
        "gwmodule-msp devices",
        "gwmodule-msp call",
        "gwmodule-msp sol",
        "gwmodule-msp forward",
    } <= shown


def test_functions_in_code_blocks_are_in_the_catalogue() -> None:
    called = [
        shlex.split(line)[3]
        for document in DOCUMENTS
        for line in commands(document.read_text())
        if line.startswith("gwmodule-msp call ")
    ]
    assert called
    assert set(called) <= set(CATALOGUE)


def test_the_readme_lists_the_catalogue() -> None:
    rows = re.findall(r"^\| [^|]+ \| (`[a-z]+\.[^|]+) \|$", README.read_text(), re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`([a-z.]+)`", row)]
    assert sorted(listed) == sorted(CATALOGUE)


def test_what_the_log_says_is_in_the_operators_table_and_nothing_else() -> None:
    text = (ROOT / "docs/operation.md").read_text().partition("\n## Log\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \| `?[a-z.]", text, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    sources = "".join(
        path.read_text()
        for path in (ROOT / "gwmodule").rglob("*.py")
        if path.relative_to(ROOT).parts[1] != "sim"
    )
    levels = "debug|info|warning|error|exception"
    said = set(re.findall(rf"\.(?:{levels})\(\s*\"([a-z_]+)\"", sources))
    assert len(said) > 40
    assert said - listed == set()
    assert [name for name in listed if not re.search(rf"\b{name}\b", sources)] == []


def test_modules_of_the_architecture_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| ((?:`[a-z_.]+`(?:, )?)+) \|", text.partition("## Modules")[2], re.M)
    named = [name for row in rows for name in re.findall(r"`([a-z_.]+)`", row)]
    assert len(named) > 40
    paths = {name: ROOT / "gwmodule" / name.replace(".", "/") for name in named}
    assert [
        name
        for name, path in paths.items()
        if not path.with_suffix(".py").exists() and not (path / "__init__.py").exists()
    ] == []


def test_the_policy_table_names_every_rule_in_order() -> None:
    text = (ROOT / "docs/security.md").read_text()
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE) == [r.value for r in Rule]


def test_codes_in_the_troubleshooting_table_exist() -> None:
    text = (ROOT / "docs/operation.md").read_text().partition("## When something")[2]
    named = set(re.findall(r"`([A-Z]{2}[A-Z_]+)`", text)) - {"CONTESTED", "NOTE"}
    assert named
    assert named <= set(Code.__members__)


def test_the_licence_is_the_gpl_version_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.lstrip().startswith("GNU GENERAL PUBLIC LICENSE\n")
    assert "Version 2, June 1991" in text


def commands(text: str) -> Iterator[str]:
    """Command lines of our programs in the indented blocks of a document."""
    for line in _CODE.findall(text):
        found = _COMMAND.fullmatch(line.partition("#")[0].rstrip())
        # A diagram also has the programs' names in it; a command has neither arrows nor holes.
        if found and not re.search(r"[<>|=]{2}|--->|   |\b[A-Z]{3,}\b", found[2]):
            yield found[0]


def events() -> set[str]:
    """What the gateway's programs log: the first argument of every call of an EventLog."""
    found = set()
    for path in (ROOT / "gwmodule").rglob("*.py"):
        if {"msp", "sim"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                level = node.func.attr in ("debug", "info", "warning", "error", "exception")
                if level and "log" in ast.unparse(node.func.value) and node.args:
                    assert isinstance(node.args[0], ast.Constant | ast.Call), ast.unparse(node)
                    if isinstance(node.args[0], ast.Constant):
                        found.add(str(node.args[0].value))
    return found


def test_every_event_of_the_gateway_is_documented_and_its_name_is_a_word() -> None:
    text = (ROOT / "docs/operation.md").read_text().partition("## Log")[2].partition("\n## ")[0]
    documented = {
        name
        for row in re.findall(r"(?m)^\| (`[a-z_`, ]+`) \|", text)
        for name in re.findall(r"`([a-z_]+)`", row)
    }
    emitted = events()
    assert emitted - documented == set()
    assert all(re.fullmatch("[a-z_]+", name) for name in emitted)


def test_the_checklist_has_the_steps_that_are_documented() -> None:
    text = (ROOT / "docs/operation.md").read_text().partition("| step |")[2].partition("\n\n")[0]
    written = re.findall(r"(?m)^\| `([a-z]+)` \|", text)
    module = (ROOT / "gwmodule/explain.py").read_text()
    assert sorted(written) == sorted(module.partition("\n\n")[2].partition("\n")[0].split())
