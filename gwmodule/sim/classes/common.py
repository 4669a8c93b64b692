"""What all classes are built from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from gwmodule.sim.machine import Machine
from gwmodule.sim.wsman import Element, Fault, Properties, Reference

SYSTEM = Reference(
    "CIM_ComputerSystem", (("CreationClassName", "CIM_ComputerSystem"), ("Name", "ManagedSystem"))
)
CHASSIS = Reference("CIM_Chassis", (("CreationClassName", "CIM_Chassis"), ("Tag", "CIM_Chassis")))
AMT_SYSTEM = {"SystemCreationClassName": "CIM_ComputerSystem", "SystemName": "Intel(r) AMT"}
MANAGED_SYSTEM = AMT_SYSTEM | {"SystemName": "ManagedSystem"}
# PT_STATUS and CIM ReturnValues that several classes use.
OK = 0
CIM_INVALID_PARAMETER = 5
NOT_PERMITTED = 0x10
INVALID_PARAMETER = 0x24

Setting = str | int | bool


def singleton(properties: Callable[[], Properties]) -> Callable[[], list[Properties]]:
    return lambda: [properties()]


def service(name: str, title: str) -> dict[str, str]:
    """The properties every service instance has; all but ElementName are its keys."""
    return {"CreationClassName": name, "Name": title, "ElementName": title} | AMT_SYSTEM


def returns(value: int, outputs: Mapping[str, Setting] | None = None) -> Properties:
    """A method's output."""
    return {**(outputs or {}), "ReturnValue": int(value)}


def chosen(machine: Machine, name: str, defaults: Mapping[str, Setting]) -> dict[str, Setting]:
    """The settings of class `name` as Puts left them."""
    return {**defaults, **machine.settings.get(name, {})}


def keep(
    machine: Machine, name: str, sent: Element, current: Properties, writable: Iterable[str]
) -> None:
    """Take the `writable` settings of a Put; Fault when one is not of its type.

    What it leaves out stays. What is not writable may be sent back, as whole instances are.
    """
    texts = sent.texts()
    kept: dict[str, Setting] = dict(machine.settings.get(name, {}))
    for key in writable:
        if key in texts:
            kept[key] = _typed(key, texts[key], current.get(key))
    machine.settings[name] = kept


def _typed(name: str, text: str, current: object) -> Setting:
    if isinstance(current, bool):
        if text not in ("true", "false"):
            raise refuse_value(name, text)
        return text == "true"
    if isinstance(current, int):
        if not text.isascii() or not text.isdecimal() or len(text) > 10:
            raise refuse_value(name, text)
        return int(text)
    return text[:256]


def refuse_value(name: str, text: str) -> Fault:
    return Fault("t:InvalidRepresentation", f"{name} cannot be {text[:40]!r}")
