"""What a function is: its declared arguments and result, and what it is given to run.

    call (JSON) --> validate --> typed Arguments --> function.run(client, ...) --> Result (JSON)

Functions talk to a `Wsman`, never to a socket, and get time and progress from the `Context`.
"""

from __future__ import annotations

import base64
import difflib
import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias
from uuid import UUID

from gwmodule.amt.wsman import Instance, Value
from gwmodule.errors import AmtError, BadArgument, Code

# A call's arguments fit a frame; this is what one text or one block of data of them may take.
MAX_TEXT = 4096
MAX_DATA = 64 * 1024
# A reference inside a reference's selector inside a parameter; nothing in AMT is deeper.
MAX_NESTING = 8


class NotSupported(AmtError):
    """This device's firmware does not have what the function needs."""

    code = Code.NOT_SUPPORTED


class Wsman(Protocol):
    """What functions need of a client; `amt.client.WsmanClient` is one."""

    async def get(self, cls: str, selectors: Mapping[str, str] | None = None) -> Instance: ...

    async def put(
        self,
        cls: str,
        properties: Mapping[str, Value],
        selectors: Mapping[str, str] | None = None,
    ) -> Instance: ...

    async def delete(self, cls: str, selectors: Mapping[str, str]) -> None: ...

    async def enumerate(self, cls: str) -> list[Instance]: ...

    async def invoke(
        self,
        cls: str,
        method: str,
        arguments: Mapping[str, Value] | None = None,
        selectors: Mapping[str, str] | None = None,
        *,
        reads: bool = False,
    ) -> Instance: ...


def _no_progress(done: int, total: int, step: str) -> None:
    """Nobody watches."""


async def _no_pause() -> None:
    """Nobody else asks this device for power."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a call knows beside its arguments.

    `uuid` is the expected device, None when it is not known. `release_redirection(reason)` closes
    our own redirection streams to the device and says how many there were. `power_turn` returns
    when a power request may be sent: AMT wants ten seconds between two. `stream_open(stream)` tells
    whether a redirection stream of ours is open to this device. `wall_clock` is seconds since 1970.
    """

    sleep: Callable[[float], Awaitable[object]]
    uuid: UUID | None = None
    progress: Callable[[int, int, str], None] = _no_progress
    release_redirection: Callable[[str], int] = lambda reason: 0
    power_turn: Callable[[], Awaitable[None]] = _no_pause
    stream_open: Callable[[int], bool] = lambda stream: False
    wall_clock: Callable[[], float] | None = None


class Kind(enum.StrEnum):
    TEXT = "text"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    CHOICE = "choice"  # A name of `choices`, or its raw number.
    NAME = "name"  # One of `names`.
    UUID = "uuid"
    DATA = "data"  # Bytes, as base64.
    OBJECT = "object"  # Names and values, as the class of the call has them.
    LIST = "list"  # In results only.


REQUIRED = object()

Arguments: TypeAlias = dict[str, Any]
Result: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument; `low` and `high` bound a number, or the length of a text or of data."""

    name: str
    kind: Kind
    summary: str
    default: Any = REQUIRED
    low: int = 0
    high: int = 0xFFFFFFFF
    choices: Mapping[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    unit: str = ""

    def parse(self, value: Any) -> Any:
        """The typed value; BadArgument says what it was and what is allowed."""
        parsed = _PARSERS[self.kind](self, value)
        if parsed is _WRONG:
            raise BadArgument(f"{self.name} is {_shown(value)}, must be {self.allowed}")
        return parsed

    @property
    def allowed(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        match self.kind:
            case Kind.INTEGER:
                return f"a whole number between {self.low} and {self.high}{unit}"
            case Kind.CHOICE:
                names = (f"{name} ({number})" for name, number in self.choices.items())
                return f"one of {', '.join(names)}"
            case Kind.NAME:
                return f"one of {', '.join(self.names)}"
            case Kind.TEXT:
                return f"a text of {self.low} to {min(self.high, MAX_TEXT)} characters"
            case Kind.DATA:
                return f"base64 of {self.low} to {min(self.high, MAX_DATA)} bytes"
            case Kind.BOOLEAN:
                return "true or false"
            case Kind.UUID:
                return "a UUID"
            case Kind.OBJECT:
                return f"an object of names and values, at most {MAX_NESTING} deep"
            case Kind.LIST:
                return "nothing"

    def as_json(self) -> Result:
        described: Result = {
            "name": self.name,
            "kind": self.kind.value,
            "summary": self.summary,
            "required": self.default is REQUIRED,
            "allowed": self.allowed,
        }
        if self.default is not REQUIRED:
            plain = self.default is None or isinstance(self.default, (str, int, dict))
            described["default"] = self.default if plain else str(self.default)
        if self.unit:
            described["unit"] = self.unit
        if self.choices:
            described["choices"] = dict(self.choices)
        if self.names:
            described["names"] = list(self.names)
        return described


@dataclass(frozen=True, slots=True)
class Field:
    """One member of a result. A CHOICE comes as its raw number, and its name as NAME_name."""

    name: str
    kind: Kind
    summary: str
    unit: str = ""
    choices: Mapping[int, str] = field(default_factory=dict)

    def as_json(self) -> Result:
        described: Result = {
            "name": self.name,
            "kind": self.kind.value,
            "summary": self.summary,
        }
        if self.unit:
            described["unit"] = self.unit
        if self.choices:
            described["choices"] = {str(number): name for number, name in self.choices.items()}
        return described


Run: TypeAlias = Callable[[Wsman, Arguments, Context], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class Function:
    """One entry of the catalogue.

    `changes_state`: must never be repeated by software. `without_wsman`: works on AMT 1 and 2 too.
    """

    name: str
    summary: str
    run: Run
    arguments: tuple[Argument, ...] = ()
    result: tuple[Field, ...] = ()
    changes_state: bool = False
    without_wsman: bool = False

    def as_json(self) -> Result:
        return {
            "name": self.name,
            "summary": self.summary,
            "changes_state": self.changes_state,
            "arguments": [argument.as_json() for argument in self.arguments],
            "result": [member.as_json() for member in self.result],
        }


def validate(function: Function, arguments: Mapping[str, Any]) -> Arguments:
    """Every argument of `function`, typed and with its default; BadArgument names the wrong one."""
    known = {argument.name: argument for argument in function.arguments}
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            allowed = ", ".join(known) or "none"
            raise BadArgument(
                f"{function.name} has no argument {_shown(name)} (it has: {allowed}){hint}"
            )
    typed: Arguments = {}
    for name, argument in known.items():
        if name in arguments:
            typed[name] = argument.parse(arguments[name])
        elif argument.default is REQUIRED:
            raise BadArgument(f"{name} is missing, must be {argument.allowed}")
        else:
            typed[name] = argument.default
    return typed


_WRONG = object()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _integer(argument: Argument, value: Any) -> Any:
    # A shell has only texts: `wait=20` comes as "20".
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return _WRONG
    return value if argument.low <= value <= argument.high else _WRONG


def _choice(argument: Argument, value: Any) -> Any:
    if isinstance(value, str) and value in argument.choices:
        return argument.choices[value]
    number = _integer(argument, value)
    return number if number in argument.choices.values() else _WRONG


def _name(argument: Argument, value: Any) -> Any:
    return value if isinstance(value, str) and value in argument.names else _WRONG


def _boolean(argument: Argument, value: Any) -> Any:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower(), value)
    return value if isinstance(value, bool) else _WRONG


def _text(argument: Argument, value: Any) -> Any:
    if not isinstance(value, str) or not value.isprintable():
        return _WRONG
    return value if argument.low <= len(value) <= min(argument.high, MAX_TEXT) else _WRONG


def _uuid(argument: Argument, value: Any) -> Any:
    try:
        return UUID(value)
    except (AttributeError, TypeError, ValueError):
        return _WRONG


def _data(argument: Argument, value: Any) -> Any:
    if not isinstance(value, str):
        return _WRONG
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError:
        return _WRONG
    return data if argument.low <= len(data) <= min(argument.high, MAX_DATA) else _WRONG


def _object(argument: Argument, value: Any) -> Any:
    return value if isinstance(value, dict) and _is_shallow(value) else _WRONG


def _is_shallow(value: Any, depth: int = MAX_NESTING) -> bool:
    if not isinstance(value, (dict, list)):
        return True
    members = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(member, depth - 1) for member in members)


_PARSERS: dict[Kind, Callable[[Argument, Any], Any]] = {
    Kind.INTEGER: _integer,
    Kind.CHOICE: _choice,
    Kind.NAME: _name,
    Kind.BOOLEAN: _boolean,
    Kind.TEXT: _text,
    Kind.UUID: _uuid,
    Kind.DATA: _data,
    Kind.OBJECT: _object,
}
