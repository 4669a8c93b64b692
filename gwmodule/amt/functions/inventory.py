"""What the PC is made of (reference/amt-protocols.md 3.5): one call for twenty exchanges.

A class that this firmware does not have is named under `missing`; the rest is still reported.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gwmodule.amt.functions.identity import device_uuid, software_versions
from gwmodule.amt.functions.reading import flag, named, optional_number, text
from gwmodule.amt.functions.schema import Arguments, Context, Field, Function, Kind, Result, Wsman
from gwmodule.amt.wsman import Instance
from gwmodule.errors import DeviceAnswerError, DeviceRefused, WsmanFault

# SMBIOS 7.18.1 and 7.18.2, what home PCs with AMT have; firmware hands SMBIOS numbers through.
FORM_FACTORS = {9: "DIMM", 11: "row of chips", 13: "SODIMM", 15: "FB-DIMM", 16: "die"}
MEMORY_TYPES = {
    18: "DDR",
    19: "DDR2",
    20: "DDR2 FB-DIMM",
    24: "DDR3",
    26: "DDR4",
    27: "LPDDR",
    28: "LPDDR2",
    29: "LPDDR3",
    30: "LPDDR4",
    34: "DDR5",
    35: "LPDDR5",
}
CPU_STATES = {
    0: "unknown",
    1: "enabled",
    2: "disabled by the user",
    3: "disabled by the BIOS",
    4: "idle",
}


def _hardware(instance: Instance) -> Result:
    return {
        "manufacturer": text(instance, "Manufacturer"),
        "model": text(instance, "Model"),
        "serial": text(instance, "SerialNumber"),
        "version": text(instance, "Version"),
    }


def _bios(instance: Instance) -> Result:
    released = instance.get("ReleaseDate")
    return {
        "manufacturer": text(instance, "Manufacturer"),
        "version": text(instance, "Version"),
        "released": text(released, "Datetime") if isinstance(released, dict) else "",
    }


def _processor(instance: Instance) -> Result:
    return {
        "name": text(instance, "DeviceID"),
        "family": optional_number(instance, "Family"),
        "stepping": text(instance, "Stepping"),
        "clock": optional_number(instance, "CurrentClockSpeed"),
        "max_clock": optional_number(instance, "MaxClockSpeed"),
        **named("status", optional_number(instance, "CPUStatus"), CPU_STATES),
    }


def _chip(instance: Instance) -> Result:
    return {
        "name": text(instance, "Tag"),
        "manufacturer": text(instance, "Manufacturer"),
        "brand": text(instance, "Version"),
    }


def _memory(instance: Instance) -> Result:
    # Old firmware tells the speed in ns under Speed, newer in MHz under ConfiguredMemoryClockSpeed.
    speed = optional_number(instance, "ConfiguredMemoryClockSpeed")
    if not speed and flag(instance, "IsSpeedInMhz"):
        speed = optional_number(instance, "Speed")
    return {
        "bank": text(instance, "BankLabel"),
        "size": optional_number(instance, "Capacity"),
        **named("type", optional_number(instance, "MemoryType"), MEMORY_TYPES),
        **named("form_factor", optional_number(instance, "FormFactor"), FORM_FACTORS),
        "speed": speed or None,
        "max_speed": optional_number(instance, "MaxMemorySpeed"),
        "manufacturer": text(instance, "Manufacturer"),
        "part": text(instance, "PartNumber"),
        "serial": text(instance, "SerialNumber"),
    }


def _disk(instance: Instance) -> Result:
    # In units of 1000 bytes: the recorded 960 GB disk says 960197124.
    size = optional_number(instance, "MaxMediaSize")
    return {
        "name": text(instance, "DeviceID"),
        "size": None if size is None else size * 1000,
    }


_CLASSES: dict[str, tuple[str, Callable[[Instance], Result]]] = {
    "chassis": ("CIM_Chassis", _hardware),
    "boards": ("CIM_Card", _hardware),
    "bios": ("CIM_BIOSElement", _bios),
    "processors": ("CIM_Processor", _processor),
    "chips": ("CIM_Chip", _chip),
    "memory": ("CIM_PhysicalMemory", _memory),
    "disks": ("CIM_MediaAccessDevice", _disk),
}


async def inventory_get(client: Wsman, arguments: Arguments, context: Context) -> Result:
    result: Result = {"uuid": None, "version": "", "missing": []}
    steps: list[tuple[str, Callable[[], Awaitable[Result]]]] = [
        ("AMT_SetupAndConfigurationService", lambda: _system(client)),
        ("CIM_SoftwareIdentity", lambda: _software(client)),
        *((cls, lambda part=part: _part(client, part)) for part, (cls, _) in _CLASSES.items()),
    ]
    for done, (cls, read) in enumerate(steps):
        context.progress(done, len(steps), f"reading {cls}")
        try:
            result |= await read()
        except (WsmanFault, DeviceAnswerError, DeviceRefused) as exc:
            result["missing"].append({"class": cls, "reason": str(exc)})
    _name_processors(result)
    return result


async def _system(client: Wsman) -> Result:
    return {"uuid": str(await device_uuid(client))}


async def _software(client: Wsman) -> Result:
    versions = software_versions(await client.enumerate("CIM_SoftwareIdentity"))
    return {"version": versions.get("AMT", "")}


async def _part(client: Wsman, part: str) -> Result:
    cls, read = _CLASSES[part]
    return {part: [read(instance) for instance in await client.enumerate(cls)]}


def _name_processors(result: Result) -> None:
    """The brand string is the chip's, and both go by the same name: `CPU 0`."""
    brands = {chip["name"]: chip["brand"] for chip in result.pop("chips", [])}
    for processor in result.get("processors", []):
        processor["brand"] = brands.get(processor["name"], "")


FUNCTIONS = (
    Function(
        "inventory.get",
        "Chassis, board, BIOS, processors, memory, disks, UUID and AMT version",
        inventory_get,
        result=(
            Field("uuid", Kind.UUID, "the PC's system UUID"),
            Field("version", Kind.TEXT, "AMT version"),
            Field("chassis", Kind.LIST, "manufacturer, model, serial, version"),
            Field("boards", Kind.LIST, "manufacturer, model, serial, version"),
            Field("bios", Kind.LIST, "manufacturer, version, released"),
            Field("processors", Kind.LIST, "name, brand, family, stepping, clocks in MHz"),
            Field("processors.status", Kind.CHOICE, "whether it works", choices=CPU_STATES),
            Field("memory", Kind.LIST, "modules: bank, size in bytes, speeds in MHz, part, serial"),
            Field("memory.type", Kind.CHOICE, "kind of memory", choices=MEMORY_TYPES),
            Field("memory.form_factor", Kind.CHOICE, "kind of module", choices=FORM_FACTORS),
            Field("disks", Kind.LIST, "name, size in bytes"),
            Field("missing", Kind.LIST, "classes that could not be read: class, reason"),
        ),
    ),
)
