"""What the PC is made of (reference/amt-protocols.md 3.5)."""

from __future__ import annotations

from gwmodule.sim.classes.common import CHASSIS, MANAGED_SYSTEM, SYSTEM
from gwmodule.sim.machine import Machine
from gwmodule.sim.wsman import CimTime, Properties, Resource

_GIB = 1024**3
# DDR3 and DIMM before AMT 11, then DDR4 and SODIMM: SMBIOS 7.18.
_DDR3, _DDR4 = 24, 26
_DIMM, _SODIMM = 9, 13


def classes(machine: Machine) -> list[Resource]:
    modules = _modules(machine)
    packages = [_card(machine), _chassis(machine), _chip(), *modules]
    package: Properties = {
        "Antecedent": CHASSIS,
        "Dependent": SYSTEM,
        "PlatformGUID": machine.uuid.bytes_le.hex().upper(),
    }
    return [
        _fixed("CIM_Card", packages[0]),
        _fixed("CIM_Chassis", packages[1]),
        _fixed("CIM_Chip", packages[2]),
        _fixed("CIM_BIOSElement", _bios(machine)),
        _fixed("CIM_Processor", _processor()),
        _fixed("CIM_PhysicalMemory", *modules),
        _fixed("CIM_MediaAccessDevice", _disk(0, 256_060_514), _disk(1, 960_197_124)),
        _fixed("CIM_ComputerSystemPackage", package),
        # Enumerating these two brings instances of their subclasses.
        Resource(
            "CIM_PhysicalPackage",
            lambda: packages,
            element=lambda each: str(each["CreationClassName"]),
        ),
        Resource(
            "CIM_SystemPackaging",
            lambda: [package],
            element=lambda each: "CIM_ComputerSystemPackage",
        ),
    ]


def _fixed(name: str, *instances: Properties) -> Resource:
    return Resource(name, lambda: list(instances))


def _serial(machine: Machine, part: str) -> str:
    return f"{part}{machine.uuid.hex[-9:].upper()}"


def _chassis(machine: Machine) -> Properties:
    return {
        "ChassisPackageType": 0,
        "CreationClassName": "CIM_Chassis",
        "ElementName": "Managed System Chassis",
        "Manufacturer": machine.profile.manufacturer,
        "Model": machine.profile.model,
        "OperationalStatus": 0,
        "PackageType": 3,
        "SerialNumber": _serial(machine, "SIM"),
        "Tag": "CIM_Chassis",
        "Version": "1.0",
    }


def _card(machine: Machine) -> Properties:
    return {
        "CanBeFRUed": True,
        "CreationClassName": "CIM_Card",
        "ElementName": "Managed System Base Board",
        "Manufacturer": machine.profile.manufacturer,
        "Model": f"{machine.profile.model} board",
        "OperationalStatus": 0,
        "PackageType": 9,
        "SerialNumber": _serial(machine, "BRD"),
        "Tag": "CIM_Card",
        "Version": "B2",
    }


def _chip() -> Properties:
    return {
        "CanBeFRUed": True,
        "CreationClassName": "CIM_Chip",
        "ElementName": "Managed System Processor Chip",
        "Manufacturer": "Intel(R) Corporation",
        "OperationalStatus": 0,
        "Tag": "CPU 0",
        "Version": "Intel(R) Simulated(TM) CPU @ 2.40GHz",
    }


def _bios(machine: Machine) -> Properties:
    version = f"SIM{machine.profile.major:02d}.0214"
    return {
        "ElementName": "Primary BIOS",
        "Manufacturer": machine.profile.manufacturer,
        "Name": "Primary BIOS",
        "OperationalStatus": 0,
        "PrimaryBIOS": True,
        "ReleaseDate": CimTime("Datetime", "2020-08-10T00:00:00Z"),
        "SoftwareElementID": version,
        "SoftwareElementState": 2,
        "TargetOperatingSystem": 66,
        "Version": version,
    }


def _processor() -> Properties:
    return {
        "CPUStatus": 1,
        "CreationClassName": "CIM_Processor",
        "CurrentClockSpeed": 2400,
        "DeviceID": "CPU 0",
        "ElementName": "Managed System CPU",
        "EnabledState": 2,
        "ExternalBusClockSpeed": 100,
        "Family": 198,
        "HealthState": 0,
        "MaxClockSpeed": 4800,
        "OperationalStatus": 0,
        "OtherFamilyDescription": "",
        "RequestedState": 12,
        "Role": "Central",
        "Stepping": 13,
        "UpgradeMethod": 52,
        **MANAGED_SYSTEM,
    }


def _modules(machine: Machine) -> list[Properties]:
    modern = machine.profile.major >= 11
    speed = 2400 if modern else 1333
    return [
        {
            "BankLabel": f"BANK {2 * slot}",
            "Capacity": 4 * _GIB,
            **({"ConfiguredMemoryClockSpeed": speed, "IsSpeedInMhz": True} if modern else {}),
            "CreationClassName": "CIM_PhysicalMemory",
            "ElementName": "Managed System Memory Chip",
            "FormFactor": _SODIMM if modern else _DIMM,
            "Manufacturer": "859B",
            "MaxMemorySpeed": speed,
            "MemoryType": _DDR4 if modern else _DDR3,
            "PartNumber": f"SIM4G{speed}",
            "SerialNumber": f"{machine.uuid.hex[:7].upper()}{slot}",
            # Old firmware says nanoseconds here.
            "Speed": 0 if modern else 1,
            "Tag": f"9876543210 (#{slot})" if slot else "9876543210",
        }
        for slot in range(2)
    ]


def _disk(number: int, size: int) -> Properties:
    return {
        "Capabilities": 4,
        "CreationClassName": "CIM_MediaAccessDevice",
        "DeviceID": f"MEDIA DEV {number}",
        "ElementName": "Managed System Media Access Device",
        "EnabledDefault": 2,
        "EnabledState": 0,
        # In units of 1000 bytes.
        "MaxMediaSize": size,
        "OperationalStatus": 0,
        "RequestedState": 12,
        "Security": 2,
        **MANAGED_SYSTEM,
    }
