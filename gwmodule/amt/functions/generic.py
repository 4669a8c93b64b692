"""Any class of the device, so that nobody is stuck with our list of functions.

Values are as in `amt.wsman`: texts, lists, objects; a reference has Address, ResourceURI and
SelectorSet; an object with the member `class` is written as an instance of that class.
"""

from __future__ import annotations

from typing import Any

from gwmodule.amt.functions.identity import require_identity
from gwmodule.amt.functions.reading import optional_number
from gwmodule.amt.functions.schema import (
    Argument,
    Arguments,
    Context,
    Field,
    Function,
    Kind,
    Result,
    Wsman,
)
from gwmodule.amt.wsman import Embedded, Value, return_meaning
from gwmodule.errors import BadArgument


async def wsman_get(client: Wsman, arguments: Arguments, context: Context) -> Result:
    selectors = _selectors(arguments)
    return {"instance": await client.get(arguments["class"], selectors)}


async def wsman_put(client: Wsman, arguments: Arguments, context: Context) -> Result:
    selectors, properties = _selectors(arguments), to_values(arguments["properties"])
    await require_identity(client, context)
    return {"instance": await client.put(arguments["class"], properties, selectors)}


async def wsman_enumerate(client: Wsman, arguments: Arguments, context: Context) -> Result:
    return {"instances": await client.enumerate(arguments["class"])}


async def wsman_invoke(client: Wsman, arguments: Arguments, context: Context) -> Result:
    cls, method = arguments["class"], arguments["method"]
    selectors, given = _selectors(arguments), to_values(arguments["arguments"])
    await require_identity(client, context)
    output = await client.invoke(cls, method, given, selectors)
    value = optional_number(output, "ReturnValue")
    return {
        "output": output,
        "return_value": value,
        "return_value_name": None if value is None else return_meaning(cls, value),
    }


def _selectors(arguments: Arguments) -> dict[str, Any] | None:
    selectors: dict[str, Any] = arguments["selectors"]
    for name, value in selectors.items():
        if not isinstance(value, (str, dict)):
            raise BadArgument(f"selector {name[:40]!r} is {value!r:.40}, must be a text")
    return selectors or None


def to_values(value: dict[str, Any]) -> dict[str, Value]:
    """JSON as `amt.wsman` writes it: an object with a `class` becomes an instance of it."""
    return {name: _value(each) for name, each in value.items()}


def _value(value: Any) -> Value:
    if isinstance(value, list):
        return [_value(each) for each in value]
    if not isinstance(value, dict):
        return value
    cls = value.get("class")
    if isinstance(cls, str):
        return Embedded(cls, to_values({k: v for k, v in value.items() if k != "class"}))
    return to_values(value)


_CLASS = Argument("class", Kind.TEXT, "AMT_..., IPS_... or CIM_...", low=5, high=128)
_SELECTORS = Argument(
    "selectors", Kind.OBJECT, "keys of the instance; a single instance needs none", default={}
)
_INSTANCE = Field("instance", Kind.OBJECT, "the instance, values as texts")

FUNCTIONS = (
    Function("wsman.get", "One instance of a class", wsman_get, (_CLASS, _SELECTORS), (_INSTANCE,)),
    Function(
        "wsman.put",
        "Write one instance; send all of it, as wsman.get gives it",
        wsman_put,
        (_CLASS, Argument("properties", Kind.OBJECT, "the whole instance"), _SELECTORS),
        (_INSTANCE,),
        changes_state=True,
    ),
    Function(
        "wsman.enumerate",
        "All instances of a class",
        wsman_enumerate,
        (_CLASS,),
        (Field("instances", Kind.LIST, "the instances, values as texts"),),
    ),
    Function(
        "wsman.invoke",
        "Call a method; its ReturnValue is reported, not judged",
        wsman_invoke,
        (
            _CLASS,
            Argument("method", Kind.TEXT, "the method's name", low=1, high=128),
            Argument("arguments", Kind.OBJECT, "in the order of the class's schema", default={}),
            _SELECTORS,
        ),
        (
            Field("output", Kind.OBJECT, "everything the method returned"),
            Field("return_value", Kind.INTEGER, "its ReturnValue, where it has one"),
            Field("return_value_name", Kind.TEXT, "what that means"),
        ),
        changes_state=True,
    ),
)
