"""The classes a simulated device has: names, properties and values of real AMT 12-16 firmware.

A class is one function of the machine that returns a `Resource`; `resources` collects them.
Values: reference/amt-protocols.md 3.3 to 3.5.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping

from gwmodule.sim.machine import Machine, Provisioning
from gwmodule.sim.wsman import Invocation, Properties, Reference, Resource

_SYSTEM = Reference(
    "CIM_ComputerSystem", (("CreationClassName", "CIM_ComputerSystem"), ("Name", "ManagedSystem"))
)
_CHASSIS = Reference("CIM_Chassis", (("CreationClassName", "CIM_Chassis"), ("Tag", "CIM_Chassis")))
_AMT_SYSTEM = {"SystemCreationClassName": "CIM_ComputerSystem", "SystemName": "Intel(r) AMT"}


def resources(machine: Machine) -> dict[str, Resource]:
    """Every class of `machine`, by name."""
    return {resource.name: resource for resource in (make(machine) for make in _CLASSES)}


def identify(machine: Machine) -> Mapping[str, str]:
    """What IdentifyResponse says."""
    return {
        "ProtocolVersion": "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd",
        "ProductVendor": "Intel(r)",
        "ProductVersion": f"AMT {machine.profile.version}",
    }


def _singleton(properties: Callable[[], Properties]) -> Callable[[], list[Properties]]:
    return lambda: [properties()]


def _service(name: str, title: str) -> dict[str, str]:
    """The properties every service instance has; all but ElementName are its keys."""
    return {"CreationClassName": name, "Name": title, "ElementName": title} | _AMT_SYSTEM


def _setup_and_configuration(machine: Machine) -> Resource:
    name = "AMT_SetupAndConfigurationService"

    def properties() -> Properties:
        managed = machine.provisioning is Provisioning.MANAGED
        return _service(name, "Intel(r) AMT Setup and Configuration Service") | {
            "EnabledState": 5,
            "PasswordModel": 1,
            "ProvisioningMode": 1,
            "ProvisioningState": 2 if managed else 0,
            "RequestedState": 12,
            "ZeroTouchConfigurationEnabled": True,
        }

    def get_uuid(invocation: Invocation) -> Properties:
        return {"UUID": base64.b64encode(machine.uuid.bytes_le).decode(), "ReturnValue": 0}

    return Resource(name, _singleton(properties), methods={"GetUuid": get_uuid})


def _general_settings(machine: Machine) -> Resource:
    title = "Intel(r) AMT: General Settings"

    def properties() -> Properties:
        return {
            "AMTNetworkEnabled": 1,
            "DDNSPeriodicUpdateInterval": 1440,
            "DDNSTTL": 900,
            "DDNSUpdateByDHCPServerEnabled": True,
            "DDNSUpdateEnabled": False,
            "DHCPv6ConfigurationTimeout": 0,
            "DigestRealm": machine.realm,
            "DomainName": "",
            "ElementName": title,
            "HostName": machine.hostname,
            "HostOSFQDN": machine.hostname,
            "IdleWakeTimeout": 1,
            "InstanceID": title,
            "NetworkInterfaceEnabled": True,
            "PingResponseEnabled": True,
            "PowerSource": 0,
            "PreferredAddressFamily": 0,
            "PresenceNotificationInterval": 0,
            "PrivacyLevel": 0,
            "RmcpPingResponseEnabled": True,
            "SharedFQDN": True,
            "WsmanOnlyMode": False,
        }

    return Resource("AMT_GeneralSettings", _singleton(properties))


def _ethernet_port_settings(machine: Machine) -> Resource:
    title = "Intel(r) AMT Ethernet Port Settings"

    def properties() -> Properties:
        nic = machine.nic
        settings: dict[str, str | int | bool | tuple[int, ...]] = {
            "DHCPEnabled": True,
            "ElementName": title,
            "InstanceID": f"{title} 0",
            "IpSyncEnabled": True,
            "LinkIsUp": True,
            "LinkPolicy": (1, 14),
            "MACAddress": nic.mac.hex("-"),
            "PhysicalConnectionType": 0,
            "SharedDynamicIP": True,
            "SharedMAC": True,
            "SharedStaticIp": False,
            "SubnetMask": nic.netmask,
        }
        if nic.address:
            settings["IPAddress"] = nic.address
        if nic.gateway:
            settings["DefaultGateway"] = nic.gateway
        return settings

    return Resource("AMT_EthernetPortSettings", _singleton(properties))


def _associated_power_management(machine: Machine) -> Resource:
    def properties() -> Properties:
        service = _service("CIM_PowerManagementService", "Intel(r) AMT Power Management Service")
        keys = tuple(sorted((k, v) for k, v in service.items() if k != "ElementName"))
        return {
            "AvailableRequestedPowerStates": tuple(int(r) for r in machine.available_requests),
            "PowerState": int(machine.power),
            "ServiceProvided": Reference("CIM_PowerManagementService", keys),
            "UserOfService": _SYSTEM,
        }

    return Resource("CIM_AssociatedPowerManagementService", _singleton(properties))


def _power_management(machine: Machine) -> Resource:
    name = "CIM_PowerManagementService"

    def properties() -> Properties:
        return _service(name, "Intel(r) AMT Power Management Service") | {
            "EnabledState": 5,
            "RequestedState": 12,
        }

    def request_power_state_change(invocation: Invocation) -> Properties:
        wanted = invocation.input.read("PowerState")
        requested = int(wanted) if wanted.isdecimal() and len(wanted) < 6 else -1
        return {"ReturnValue": int(machine.request_power(requested, invocation.now))}

    return Resource(
        name,
        _singleton(properties),
        methods={"RequestPowerStateChange": request_power_state_change},
    )


def _software_identity(machine: Machine) -> Resource:
    def instances() -> list[Properties]:
        profile = machine.profile
        versions = {
            "Flash": profile.version,
            "Netstack": profile.version,
            "AMTApps": profile.version,
            "AMT": profile.version,
            "Sku": profile.sku,
            "VendorID": 8086,
            "Build Number": profile.build,
            "Recovery Version": profile.version,
            "Recovery Build Num": profile.build,
            "Legacy Mode": "False",
            "AMT FW Core Version": profile.version,
        }
        return [
            {"InstanceID": name, "IsEntity": True, "VersionString": str(version)}
            for name, version in versions.items()
        ]

    return Resource("CIM_SoftwareIdentity", instances)


def _computer_system_package(machine: Machine) -> Resource:
    def properties() -> Properties:
        return {
            "Antecedent": _CHASSIS,
            "Dependent": _SYSTEM,
            "PlatformGUID": machine.uuid.bytes_le.hex().upper(),
        }

    return Resource("CIM_ComputerSystemPackage", _singleton(properties))


def _chassis(machine: Machine) -> Resource:
    def properties() -> Properties:
        return {
            "ChassisPackageType": 0,
            "CreationClassName": "CIM_Chassis",
            "ElementName": "Managed System Chassis",
            "Manufacturer": machine.profile.manufacturer,
            "Model": machine.profile.model,
            "OperationalStatus": 0,
            "PackageType": 3,
            "SerialNumber": f"SIM{machine.uuid.hex[-9:].upper()}",
            "Tag": "CIM_Chassis",
            "Version": "1.0",
        }

    return Resource("CIM_Chassis", _singleton(properties))


def _redirection_service(machine: Machine) -> Resource:
    name = "AMT_RedirectionService"

    def properties() -> Properties:
        return _service(name, "Intel(r) AMT Redirection Service") | {
            # SOL only: the simulator has no IDE-R.
            "EnabledState": 32770,
            "ListenerEnabled": machine.provisioning is Provisioning.MANAGED,
        }

    return Resource(name, _singleton(properties))


_CLASSES: tuple[Callable[[Machine], Resource], ...] = (
    _setup_and_configuration,
    _general_settings,
    _ethernet_port_settings,
    _associated_power_management,
    _power_management,
    _software_identity,
    _computer_system_package,
    _chassis,
    _redirection_service,
)
