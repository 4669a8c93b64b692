"""The classes a simulated device has: names, properties and values of real AMT 12-16 firmware.

A class is one function of the machine that returns a `Resource`; a module lists those of one
subject. Which classes a device has depends on its profile.
"""

from __future__ import annotations

from collections.abc import Mapping

from gwmodule.sim.classes import (
    certificates,
    inventory,
    logs,
    power,
    remote,
    settings,
    storage,
    timing,
)
from gwmodule.sim.machine import Machine
from gwmodule.sim.wsman import Resource

_SUBJECTS = (settings, power, inventory, logs, remote, timing, storage, certificates)


def resources(machine: Machine) -> dict[str, Resource]:
    """Every class of `machine`, by name."""
    return {
        resource.name: resource for subject in _SUBJECTS for resource in subject.classes(machine)
    }


def identify(machine: Machine) -> Mapping[str, str]:
    """What IdentifyResponse says."""
    return {
        "ProtocolVersion": "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd",
        "ProductVendor": "Intel(r)",
        "ProductVersion": f"AMT {machine.profile.version}",
    }
