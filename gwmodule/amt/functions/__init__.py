"""The catalogue of functions: what a technician does, by name (design: "Calls").

Each is a short coroutine over a `Wsman` client. Names are API.
"""

from __future__ import annotations

import difflib

from gwmodule.amt.functions import (
    alarm,
    boot,
    generic,
    identity,
    inventory,
    logs,
    power,
    redirection,
    settings,
    storage,
)
from gwmodule.amt.functions.schema import (
    Argument,
    Arguments,
    Context,
    Field,
    Function,
    Kind,
    NotSupported,
    Result,
    Wsman,
    validate,
)
from gwmodule.errors import UnknownFunction

__all__ = [
    "CATALOGUE",
    "Argument",
    "Arguments",
    "Context",
    "Field",
    "Function",
    "Kind",
    "NotSupported",
    "Result",
    "Wsman",
    "find",
    "validate",
]

_MODULES = (identity, power, boot, inventory, settings, logs, redirection, alarm, storage, generic)

CATALOGUE: dict[str, Function] = {
    function.name: function for module in _MODULES for function in module.FUNCTIONS
}


def find(name: str) -> Function:
    """UnknownFunction names the nearest ones."""
    function = CATALOGUE.get(name)
    if function is None:
        near = difflib.get_close_matches(name, CATALOGUE, n=3, cutoff=0.5)
        hint = f"near: {', '.join(near)}" if near else f"known: {', '.join(CATALOGUE)}"
        raise UnknownFunction(f"no function {name[:64]!r}; {hint}")
    return function
