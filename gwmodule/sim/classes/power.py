"""Power and boot (reference/amt-protocols.md 3.3)."""

from __future__ import annotations

from gwmodule.sim import logs
from gwmodule.sim.boot import STRUCTURED, BadBootSetting
from gwmodule.sim.classes.common import (
    CIM_INVALID_PARAMETER,
    NOT_PERMITTED,
    OK,
    SYSTEM,
    returns,
    service,
    singleton,
)
from gwmodule.sim.machine import Machine
from gwmodule.sim.profiles import Feature
from gwmodule.sim.wsman import Element, Fault, Invocation, Properties, Reference, Resource

_SERVICE = "CIM_PowerManagementService"
_TITLE = "Intel(r) AMT Power Management Service"
_CONFIGURATION = "Intel(r) AMT: Boot Configuration"
_FULL_POWER, _SAVING = 2, 3


def classes(machine: Machine) -> list[Resource]:
    every = [
        _associated_power_management(machine),
        _power_management(machine),
        _power_capabilities(machine),
        _boot_service(machine),
        _boot_config_setting(machine),
        _boot_source_setting(machine),
        _boot_setting_data(machine),
        _boot_capabilities(machine),
    ]
    if machine.profile.has(Feature.POWER_SAVING):
        every.append(_power_saving(machine))
    return every


def _associated_power_management(machine: Machine) -> Resource:
    def properties() -> Properties:
        keys = {k: v for k, v in service(_SERVICE, _TITLE).items() if k != "ElementName"}
        return {
            "AvailableRequestedPowerStates": tuple(int(r) for r in machine.available_requests),
            "PowerState": int(machine.power),
            "ServiceProvided": Reference(_SERVICE, tuple(sorted(keys.items()))),
            "UserOfService": SYSTEM,
        }

    return Resource("CIM_AssociatedPowerManagementService", singleton(properties))


def _power_management(machine: Machine) -> Resource:
    def properties() -> Properties:
        return service(_SERVICE, _TITLE) | {"EnabledState": 5, "RequestedState": 12}

    def request_power_state_change(invocation: Invocation) -> Properties:
        requested = invocation.input.number("PowerState")
        return returns(machine.request_power(requested, invocation.now))

    methods = {"RequestPowerStateChange": request_power_state_change}
    return Resource(_SERVICE, singleton(properties), methods=methods)


def _power_capabilities(machine: Machine) -> Resource:
    helped = machine.profile.has(Feature.SLEEP)
    states = (5, 8, 2, 10, 11, *((4, 7, 12, 14) if helped else ()))

    def properties() -> Properties:
        return {
            "ElementName": "Power Management Capabilities",
            "InstanceID": "Intel(r) AMT:PowerManagementCapabilities 0",
            "PowerChangeCapabilities": (2, 3, 4, 7, 8),
            "PowerStatesSupported": states,
            "RequestedPowerStatesSupported": states,
        }

    return Resource("CIM_PowerManagementCapabilities", singleton(properties))


def _power_saving(machine: Machine) -> Resource:
    name = "IPS_PowerManagementService"

    def properties() -> Properties:
        saving = machine.settings.get(name, {}).get("OSPowerSavingState", _FULL_POWER)
        return service(name, _TITLE) | {
            "EnabledState": 5,
            "OSPowerSavingState": saving,
            "RequestedState": 12,
        }

    def request(invocation: Invocation) -> Properties:
        wanted = invocation.input.number("OSPowerSavingState")
        if wanted not in (_FULL_POWER, _SAVING):
            return returns(CIM_INVALID_PARAMETER)
        machine.settings[name] = {"OSPowerSavingState": wanted}
        return returns(OK)

    methods = {"RequestOSPowerSavingStateChange": request}
    return Resource(name, singleton(properties), methods=methods)


def _boot_service(machine: Machine) -> Resource:
    name = "CIM_BootService"

    def properties() -> Properties:
        return service(name, "Intel(r) AMT Boot Service") | {
            "EnabledState": 2,
            "OperationalStatus": 0,
            "RequestedState": 12,
        }

    def set_boot_config_role(invocation: Invocation) -> Properties:
        setting = invocation.input.selectors("BootConfigSetting").get("InstanceID", "")
        if setting and setting != f"{_CONFIGURATION} 0":
            return returns(CIM_INVALID_PARAMETER)
        if machine.consent.bars_boot:
            return returns(NOT_PERMITTED)
        if not machine.boot.arm(invocation.input.number("Role")):
            return returns(CIM_INVALID_PARAMETER)
        machine.record(logs.BOOT_OPTIONS)
        return returns(OK)

    return Resource(
        name, singleton(properties), methods={"SetBootConfigRole": set_boot_config_role}
    )


def _boot_config_setting(machine: Machine) -> Resource:
    def properties() -> Properties:
        return {"ElementName": _CONFIGURATION, "InstanceID": f"{_CONFIGURATION} 0"}

    def change_boot_order(invocation: Invocation) -> Properties:
        source = invocation.input.selectors("Source").get("InstanceID", "")
        if source and machine.consent.bars_boot:
            return returns(NOT_PERMITTED)
        if not machine.boot.change_order(source):
            return returns(CIM_INVALID_PARAMETER)
        return returns(OK)

    methods = {"ChangeBootOrder": change_boot_order}
    return Resource("CIM_BootConfigSetting", singleton(properties), methods=methods)


def _boot_source_setting(machine: Machine) -> Resource:
    def instances() -> list[Properties]:
        return [
            {
                "ElementName": "Intel(r) AMT: Boot Source",
                "FailThroughSupported": 2,
                "InstanceID": source.value,
                "StructuredBootString": STRUCTURED.get(source, ""),
            }
            for source in machine.boot.sources
        ]

    return Resource("CIM_BootSourceSetting", instances)


def _boot_setting_data(machine: Machine) -> Resource:
    recovery = machine.profile.has(Feature.HTTPS_BOOT)

    def properties() -> Properties:
        # Write-only: what erases a disk, and what One-Click Recovery is to fetch.
        settings = dict(machine.boot.settings)
        settings.pop("UefiBootParametersArray", None)
        if "RSEPassword" in settings:
            settings["RSEPassword"] = ""
        extra = {
            "BootguardStatus": 127,
            "RPEEnabled": recovery,
            "SecureBootControlEnabled": recovery,
            "UEFIHTTPSBootEnabled": recovery,
            "UEFILocalPBABootEnabled": False,
            "WinREBootEnabled": False,
        }
        return {
            **settings,
            **(extra if machine.profile.major >= 15 else {}),
            "BIOSLastStatus": (2, 0),
            "ElementName": "Intel(r) AMT Boot Configuration Settings",
            "InstanceID": "Intel(r) AMT:BootSettingData 0",
            "OptionsCleared": machine.boot.cleared,
            "OwningEntity": "Intel(r) AMT",
        }

    def put(current: Properties, sent: Element) -> None:
        if machine.consent.bars_boot:
            raise Fault("c:AccessDenied", "The consent of the user is required.")
        try:
            machine.boot.put(sent.texts())
        except BadBootSetting as exc:
            raise Fault("t:InvalidRepresentation", str(exc)) from exc

    return Resource("AMT_BootSettingData", singleton(properties), put=put)


def _boot_capabilities(machine: Machine) -> Resource:
    def properties() -> Properties:
        return {
            **machine.boot.capabilities,
            "ElementName": "Intel(r) AMT: Boot Capabilities",
            "InstanceID": "Intel(r) AMT:BootCapabilities 0",
        }

    return Resource("AMT_BootCapabilities", singleton(properties))
