"""Identity, versions and settings (reference/amt-protocols.md 3.4)."""

from __future__ import annotations

import base64

from gwmodule.sim.classes.common import Setting, chosen, keep, service, singleton
from gwmodule.sim.machine import Machine, Provisioning
from gwmodule.sim.wsman import Element, Invocation, Properties, Resource

_GENERAL = "AMT_GeneralSettings"
_WRITABLE = (
    "DDNSPeriodicUpdateInterval",
    "DDNSTTL",
    "DDNSUpdateByDHCPServerEnabled",
    "DDNSUpdateEnabled",
    "DomainName",
    "HostName",
    "HostOSFQDN",
    "IdleWakeTimeout",
    "PingResponseEnabled",
    "PreferredAddressFamily",
    "PresenceNotificationInterval",
    "RmcpPingResponseEnabled",
    "SharedFQDN",
    "WsmanOnlyMode",
)
_ETHERNET = "AMT_EthernetPortSettings"
_PORT_WRITABLE = ("DHCPEnabled", "IPAddress", "SubnetMask", "DefaultGateway", "PrimaryDNS")


def classes(machine: Machine) -> list[Resource]:
    return [
        _setup_and_configuration(machine),
        _general_settings(machine),
        _ethernet_port_settings(machine),
        _software_identity(machine),
    ]


def _setup_and_configuration(machine: Machine) -> Resource:
    name = "AMT_SetupAndConfigurationService"

    def properties() -> Properties:
        managed = machine.provisioning is Provisioning.MANAGED
        return service(name, "Intel(r) AMT Setup and Configuration Service") | {
            "EnabledState": 5,
            "PasswordModel": 1,
            "ProvisioningMode": 4 if machine.profile.client_control else 1,
            "ProvisioningState": 2 if managed else 0,
            "RequestedState": 12,
            "ZeroTouchConfigurationEnabled": True,
        }

    def get_uuid(invocation: Invocation) -> Properties:
        return {"UUID": base64.b64encode(machine.uuid.bytes_le).decode(), "ReturnValue": 0}

    return Resource(name, singleton(properties), methods={"GetUuid": get_uuid})


def _general_settings(machine: Machine) -> Resource:
    title = "Intel(r) AMT: General Settings"

    def properties() -> Properties:
        defaults: dict[str, Setting] = {
            "DDNSPeriodicUpdateInterval": 1440,
            "DDNSTTL": 900,
            "DDNSUpdateByDHCPServerEnabled": True,
            "DDNSUpdateEnabled": False,
            "DomainName": "",
            "HostName": machine.hostname,
            "HostOSFQDN": machine.hostname,
            "IdleWakeTimeout": 1,
            "PingResponseEnabled": True,
            "PreferredAddressFamily": 0,
            "PresenceNotificationInterval": 0,
            "RmcpPingResponseEnabled": True,
            "SharedFQDN": True,
            "WsmanOnlyMode": False,
        }
        return chosen(machine, _GENERAL, defaults) | {
            "AMTNetworkEnabled": 1,
            "DHCPv6ConfigurationTimeout": 0,
            "DigestRealm": machine.realm,
            "ElementName": title,
            "InstanceID": title,
            "NetworkInterfaceEnabled": True,
            "PowerSource": 0,
            "PrivacyLevel": 0,
        }

    def put(current: Properties, sent: Element) -> None:
        keep(machine, _GENERAL, sent, current, _WRITABLE)

    return Resource(_GENERAL, singleton(properties), put=put)


def _ethernet_port_settings(machine: Machine) -> Resource:
    title = "Intel(r) AMT Ethernet Port Settings"

    def wired() -> Properties:
        nic = machine.nic
        defaults: dict[str, Setting] = {"DHCPEnabled": True, "SubnetMask": nic.netmask}
        if nic.address:
            defaults["IPAddress"] = nic.address
        if nic.gateway:
            defaults |= {"DefaultGateway": nic.gateway, "PrimaryDNS": nic.gateway}
        return {
            **chosen(machine, _ETHERNET, defaults),
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
        }

    def put(current: Properties, sent: Element) -> None:
        keep(machine, _ETHERNET, sent, current, _PORT_WRITABLE)

    return Resource(_ETHERNET, singleton(wired), put=put)


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
