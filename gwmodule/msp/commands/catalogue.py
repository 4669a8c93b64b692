"""`gwmodule-msp functions`: what a call can ask for. Needs no running service."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from gwmodule.amt.functions import CATALOGUE, Argument, Field, Function, find
from gwmodule.errors import UnknownFunction
from gwmodule.msp.commands.common import OK, Command, UsageError
from gwmodule.msp.commands.output import show

_INTRODUCTION = """\
# Functions

What `gwmodule-msp call UUID FUNCTION [KEY=VALUE ...]` and `POST /api/v1/devices/{guid}/call` can
name. This page is what `gwmodule-msp functions --markdown` prints. An enumeration takes a name or
its raw number; a result has the raw number as `NAME` and its name as `NAME_name`. A function that
changes state is never repeated by the software, whatever happens to the link.
"""


def add(command: Command) -> None:
    parser = command("functions", _functions, "list the functions of a call with their arguments")
    parser.add_argument("name", metavar="FUNCTION", nargs="?")
    parser.add_argument("--markdown", action="store_true", help="the page docs/functions.md")


def _functions(options: argparse.Namespace) -> int:
    try:
        chosen = [find(options.name)] if options.name else list(CATALOGUE.values())
    except UnknownFunction as exc:
        raise UsageError(str(exc)) from exc
    if options.markdown:
        print(as_markdown(chosen), end="")
    elif options.name and not options.json:
        print("\n".join(_told(chosen[0])))
    else:
        show(
            options,
            [function.as_json() for function in chosen],
            {
                "FUNCTION": lambda f: f["name"],
                "CHANGES": lambda f: "state" if f["changes_state"] else "",
                "WHAT": lambda f: f["summary"],
            },
        )
    return OK


def as_markdown(functions: list[Function]) -> str:
    return "\n".join([_INTRODUCTION, *(line for f in functions for line in _section(f))])


def _section(function: Function) -> Iterator[str]:
    yield f"## {function.name}\n"
    yield f"{function.summary}.{' Changes state.' if function.changes_state else ''}\n"
    if function.arguments:
        yield "| argument | what | allowed | default |\n|---|---|---|---|"
        for argument in function.arguments:
            yield (
                f"| `{argument.name}` | {argument.summary} | {_cell(argument.allowed)}"
                f" | {_default(argument)} |"
            )
        yield ""
    yield "| result | kind | what |\n|---|---|---|"
    for member in function.result:
        yield f"| `{member.name}` | {member.kind.value} | {_cell(_meaning(member))} |"
    yield ""


def _told(function: Function) -> Iterator[str]:
    """One function on a terminal."""
    yield f"{function.name}: {function.summary}"
    if function.arguments:
        yield "\narguments:"
    for argument in function.arguments:
        yield f"  {argument.name}: {argument.summary}"
        yield f"      {argument.allowed}; {_default(argument)}"
    yield "\nresult:"
    for member in function.result:
        yield f"  {member.name}: {_meaning(member)}"


def _default(argument: Argument) -> str:
    described = argument.as_json()
    return "required" if described["required"] else f"default {json.dumps(described['default'])}"


def _meaning(member: Field) -> str:
    unit = f", in {member.unit}" if member.unit else ""
    known = ", ".join(f"{number} {name}" for number, name in member.choices.items())
    return f"{member.summary}{unit}{': ' + known if known else ''}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
