"""Manual pages and shell completion, made from the programs' parsers and docs/configuration.md.

    python docs/generate.py OUTPUT [PROGRAM ...]      OUTPUT/man/*, OUTPUT/completion/*

Nothing of it is kept in the tree, so it cannot say anything but what the programs say. The pages of
`gwmodule` alone need no library but shtab: that is how the Debian package is built.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
# The tree itself, where nothing is installed.
sys.path.insert(1, str(DOCS.parent))

from gwmodule import BUILD_DATE, __version__  # noqa: E402

try:
    import shtab
except ModuleNotFoundError:
    sys.exit("shell completion is written by shtab: apt-get install python3-shtab, or make setup")

# module, section, what it is
PROGRAMS = {
    "gwmodule": ("gwmodule.cli", 8, "Intel AMT relay for ISP gateways"),
    "gwmodule-msp": ("gwmodule.msp.cli", 8, "MSP service for gwmodule gateways"),
    "gwmodule-sim": ("gwmodule.sim.cli", 1, "simulated Intel AMT devices and their laboratory"),
}
SEE_ALSO = ("gwmodule 8", "gwmodule-msp 8", "gwmodule-sim 1", "gwmodule.toml 5")
FILES = {
    "gwmodule": (
        ("/etc/gwmodule/gwmodule.toml", "configuration"),
        ("/etc/config/gwmodule", "the same on OpenWrt"),
        ("/run/gwmodule/control.sock", "where the running relay is asked; mode 0600"),
    ),
    "gwmodule-msp": (
        ("/var/lib/gwmodule-msp", "registry, certificate authority and keys"),
        ("/run/gwmodule-msp/api.sock", "the technicians' API; mode 0600"),
    ),
    "gwmodule-sim": (),
}
_SENTENCE = re.compile(r"(?<=[.:?!]) (?=[A-Z(\\])")
_ROW = re.compile(r"^\| (.*?) \| (.*?) \| (.*?) ?\| (.*?) \|$")


def main(output: Path, *programs: str) -> None:
    # argparse takes the width of its usage lines from here.
    os.environ["COLUMNS"] = "74"
    man, completion = output / "man", output / "completion"
    for directory in (man, completion):
        directory.mkdir(parents=True, exist_ok=True)
    for name in programs or PROGRAMS:
        module, section, text = PROGRAMS[name]
        page = "\n".join(command_page(name, section, text, parser_of(module)))
        (man / f"{name}.{section}").write_text(page + "\n")
        parser = parser_of(module)
        complete_files(parser)
        (completion / f"{name}.bash").write_text(shtab.complete(parser, "bash"))
        (completion / f"_{name}").write_text(shtab.complete(parser, "zsh"))
    (man / "gwmodule.toml.5").write_text("\n".join(configuration_page()) + "\n")


def parser_of(module: str) -> argparse.ArgumentParser:
    commands = importlib.import_module(module)
    parser: argparse.ArgumentParser = commands.parser()
    return parser


# Manual pages, in mdoc(7).


def command_page(
    name: str, section: int, text: str, parser: argparse.ArgumentParser
) -> Iterator[str]:
    yield from head(name, section, text)
    yield from (".Sh SYNOPSIS", f".Nm {name}", ".Ar COMMAND", ".Op Ar options")
    yield ".Sh DESCRIPTION"
    yield from prose(parser.description or text)
    yield from options(parser)
    yield ".Sh COMMANDS"
    for verb, text in verbs(parser):
        yield f".Ss {words(verb.prog)}"
        yield from prose(verb.description or text)
        yield ".Bd -literal -offset indent"
        yield from (
            words(line) for line in verb.format_usage().removeprefix("usage: ").splitlines()
        )
        yield ".Ed"
        yield from options(verb)
    if FILES[name]:
        yield ".Sh FILES"
        yield ".Bl -tag -width Ds"
        for path, meaning in FILES[name]:
            yield f".It Pa {path}"
            yield from prose(meaning)
        yield ".El"
    if name != "gwmodule-sim":
        yield ".Sh EXIT STATUS"
        yield ".Bl -tag -width Ds"
        for code, meaning in exit_codes():
            yield f".It {code}"
            yield from prose(meaning)
        yield ".El"
    yield from tail(name)


def configuration_page() -> Iterator[str]:
    yield from head("gwmodule.toml", 5, "configuration of a gwmodule gateway")
    yield ".Sh DESCRIPTION"
    text = (DOCS / "configuration.md").read_text()
    introduction, *sections = text.partition("\n## The MSP service")[0].split("\n## ")
    yield from paragraphs(introduction.partition("\n")[2])
    for section in sections:
        title, _, body = section.partition("\n")
        yield f".Sh {words(title.upper() if title == 'Top level' else title)}"
        yield from paragraphs(re.sub(r"(?m)^\|.*$", "", body))
        yield ".Bl -tag -width Ds"
        for line in body.splitlines():
            row = _ROW.match(line)
            if row and row[1] not in ("setting", "---"):
                yield f".It Cm {words(row[1].strip('`'))}"
                bounds = f"; {row[3]}" if row[3] else ""
                yield from prose(f"{row[4]} (Default: {row[2]}{bounds}.)")
        yield ".El"
    yield from tail("gwmodule.toml")


def head(name: str, section: int, text: str) -> Iterator[str]:
    yield f'.\\" Made by docs/generate.py of gwmodule {__version__}.'
    yield f".Dd {BUILD_DATE:%B} {BUILD_DATE.day}, {BUILD_DATE.year}"
    yield f".Dt {name.upper()} {section}"
    yield f".Os gwmodule {__version__}"
    yield from (".Sh NAME", f".Nm {name}", f".Nd {text}")


def tail(name: str) -> Iterator[str]:
    yield ".Sh SEE ALSO"
    others = sorted(
        (page for page in SEE_ALSO if page.split()[0] != name), key=lambda page: page.split()[::-1]
    )
    yield from (f".Xr {page}{' ,' if page != others[-1] else ''}" for page in others)


def verbs(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Every command that can be run with its help, `gateway add` and the like included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for listed in action._choices_actions:
                verb = action.choices[listed.dest]
                yield from list(verbs(verb)) or [(verb, listed.help or "")]


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    actions = [
        action
        for action in parser._actions
        if action.help is not argparse.SUPPRESS
        and not isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
    ]
    if not actions:
        return
    yield ".Bl -tag -width Ds"
    for action in actions:
        value = parser._get_formatter()._format_args(action, placeholder(action)).strip()
        if action.option_strings:
            flags = " , ".join(f"Fl {option[1:]}" for option in action.option_strings)
            yield f".It {flags}" + (f" Ar {words(value)}" if value and action.nargs != 0 else "")
        else:
            yield f".It Ar {words(value)}"
        help_text = parser._get_formatter()._expand_help(action) if action.help else ""
        choices = action.choices if action.metavar else None
        listed = f"one of {', '.join(map(str, choices))}" if choices else ""
        default = action.default
        # Where the help says it already, or there is none worth telling.
        told = default in (None, False, True, argparse.SUPPRESS, [], "") or "default" in help_text
        end = "" if told else f"(default {default})"
        yield from prose(" ".join(filter(None, (help_text, listed, end))))
    yield ".El"


def placeholder(action: argparse.Action) -> str:
    return str(action.metavar or action.dest.upper().replace("_", "-"))


def exit_codes() -> Iterator[tuple[str, str]]:
    text = (DOCS / "operation.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    for row in re.findall(r"(?m)^\| (\d+) \| (.*?) \|", text):
        yield row[0], row[1]


def paragraphs(text: str) -> Iterator[str]:
    """Markdown as far as docs/configuration.md uses it: paragraphs, lists, indented blocks."""
    first = True
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if not block.strip():
            continue
        if block.startswith("    "):
            yield ".Bd -literal -offset indent"
            yield from (words(line[4:]) for line in block.splitlines())
            yield ".Ed"
        elif block.startswith("- "):
            yield ".Bl -bullet -compact"
            for item in re.split(r"(?m)^- ", block)[1:]:
                yield ".It"
                yield from prose(item)
            yield ".El"
        else:
            if not first:
                yield ".Pp"
            yield from prose(block)
        first = False


def prose(text: str) -> Iterator[str]:
    """Running text, one sentence a line as mdoc wants it."""
    text = re.sub(r"\[([^]]+)\]\(([^)]+)\)", r"\1", " ".join(text.split()))
    text = words(text)
    text = re.sub(r"`([^`]*)`", r"\\(lq\1\\(rq", text)
    yield from filter(None, _SENTENCE.split(text))


def words(text: str) -> str:
    """Text without meaning to mandoc."""
    text = text.replace("\\", "\\e").replace("--", "\\-\\-")
    return "\\&" + text if text[:1] in (".", "'") else text


# Completion


def complete_files(parser: argparse.ArgumentParser) -> None:
    """Say which arguments are files: argparse does not know."""
    kinds: dict[str, Any] = {"FILE": shtab.FILE, "PATH": shtab.FILE, "DIR": shtab.DIRECTORY}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                complete_files(verb)
        elif action.metavar in kinds:
            action.complete = kinds[str(action.metavar)]  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
