"""How functions read instances: texts become the types of the result."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping

from gwmodule.amt.functions.schema import Result
from gwmodule.amt.wsman import Instance, Value, values
from gwmodule.errors import DeviceAnswerError

# No property of any class has more than 64 bits.
_NUMBER = re.compile(r"-?[0-9]{1,20}")


def number(instance: Instance, name: str) -> int:
    """A property as a whole number; DeviceAnswerError when it is missing or none."""
    found = optional_number(instance, name)
    if found is None:
        raise DeviceAnswerError(f"the device's answer has no {name}")
    return found


def optional_number(instance: Instance, name: str) -> int | None:
    value = instance.get(name, "")
    return None if value == "" else _number(value, name)


def numbers(instance: Instance, name: str) -> list[int]:
    """An array property of whole numbers; empty when it is missing."""
    return [_number(value, name) for value in values(instance, name)]


def _number(value: Value, name: str) -> int:
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        raise DeviceAnswerError(f"{name} is {str(value)[:40]!r}, expected a whole number")
    return int(value)


def binary(value: Value, name: str) -> bytes:
    """Base64 as bytes; `name` is for the DeviceAnswerError when it is none."""
    try:
        return base64.b64decode(value, validate=True)
    # ValueError for characters beyond ASCII, TypeError for what is no text.
    except (ValueError, TypeError) as exc:
        raise DeviceAnswerError(f"{name} is {str(value)[:40]!r}, expected base64") from exc


def text(instance: Instance, name: str) -> str:
    """A property as text; empty when it is missing."""
    value = instance.get(name, "")
    return value if isinstance(value, str) else ""


def flag(instance: Instance, name: str) -> bool | None:
    """A property as a boolean; None when it is missing."""
    return {"true": True, "false": False, "1": True, "0": False}.get(text(instance, name).lower())


def named(name: str, value: int | None, names: Mapping[int, str]) -> Result:
    """Raw number and name side by side: numbers outlive our tables."""
    meaning = None if value is None else names.get(value, f"unknown ({value})")
    return {name: value, f"{name}_name": meaning}
