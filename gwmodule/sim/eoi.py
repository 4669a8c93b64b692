"""The SOAP 1.1 services (EOI) of AMT 1 to 8, without I/O: what amttool asks, and no more.

Paths, namespaces and calls: reference/amt-protocols.md 3.10. An answer is `<CALLResponse>` with
Status, a PT_STATUS, before everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import ClassVar, TypeAlias
from xml.sax.saxutils import escape

from gwmodule.sim.boot import SINGLE_USE, BootSource
from gwmodule.sim.machine import Machine, PowerRequest, PowerState, ReturnValue
from gwmodule.sim.wsman import Element, Fault, parse_xml

SOAP11 = "http://schemas.xmlsoap.org/soap/envelope/"
SCHEMAS = "http://schemas.intel.com/platform/client"
NAMESPACES = {
    "/SecurityAdministrationService": f"{SCHEMAS}/SecurityAdministration/2004/01",
    "/NetworkAdministrationService": f"{SCHEMAS}/NetworkAdministration/2004/01",
    "/RemoteControlService": f"{SCHEMAS}/RemoteControl/2004/01",
}
SUCCESS, INTERNAL_ERROR, INVALID_PARAMETER = 0, 1, 0x24
UNSUPPORTED_OEM, UNSUPPORTED_BOOT, INVALID_COMMAND = 0x801, 0x802, 0x803
INVALID_SPECIAL_COMMAND = 0x804
INTEL_IANA, ASF_IANA = 343, 4542
_INTERFACE = 0
_COMMANDS = {
    16: PowerRequest.RESET,
    17: PowerRequest.ON,
    18: PowerRequest.OFF,
    19: PowerRequest.CYCLE_SOFT,
}
_SPECIAL = {
    1: BootSource.NETWORK,
    2: BootSource.HARD_DRIVE,
    4: BootSource.DIAGNOSTIC,
    5: BootSource.DISC,
}
_OEM_COMMAND = 0xC1
# SpecialCommandParameter of the OEM command, and the setting that each bit is.
_OEM_BITS = {0x08: "BIOSSetup", 0x10: "BIOSPause"}
_USE_SOL = 1
# Low nibble: S0 to S5; S5 soft-off.
_POWER_STATES = {
    PowerState.ON: 0,
    PowerState.SLEEP: 3,
    PowerState.HIBERNATE: 4,
    PowerState.OFF: 5,
}
_Value: TypeAlias = "str | int | dict[str, _Value]"
_Answer: TypeAlias = dict[str, _Value]


class EoiServer:
    """All services of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def serves(self, path: str) -> bool:
        return path in NAMESPACES

    def respond(self, path: str, data: bytes, now: float) -> tuple[int, bytes]:
        """HTTP status and envelope of a POST to a path that is served. Never raises."""
        try:
            call = _parse(data)
            handler = self._CALLS.get((path, call.local))
            if handler is None or call.name != f"{{{NAMESPACES[path]}}}{call.local}":
                raise Fault("Client", f"no {call.local[:40]} at {path}")
            answer = handler(self, call, now)
        except Fault as fault:
            return 500, _envelope(
                "<s:Fault><faultcode>s:Client</faultcode>"
                f"<faultstring>{escape(str(fault))}</faultstring></s:Fault>"
            )
        name = f"{call.local}Response"
        inner = "".join(_element(key, value) for key, value in answer.items())
        return 200, _envelope(f'<{name} xmlns="{NAMESPACES[path]}">{inner}</{name}>')

    def _core_version(self, call: Element, now: float) -> _Answer:
        return {"Status": SUCCESS, "Version": self._machine.profile.version}

    def _host_name(self, call: Element, now: float) -> _Answer:
        name = self._machine.general("HostName", self._machine.hostname)
        return {"Status": SUCCESS, "HostName": str(name)}

    def _domain_name(self, call: Element, now: float) -> _Answer:
        name = self._machine.general("DomainName", "")
        return {"Status": SUCCESS, "DomainName": str(name) or "example.net"}

    def _interfaces(self, call: Element, now: float) -> _Answer:
        return {"Status": SUCCESS, "InterfaceHandle": _INTERFACE}

    def _interface_settings(self, call: Element, now: float) -> _Answer:
        if call.number("InterfaceHandle") != _INTERFACE:
            return {"Status": INVALID_PARAMETER}
        nic = self._machine.nic
        gateway = nic.gateway or "0.0.0.0"  # noqa: S104
        parameters: _Answer = {
            "LocalAddress": int(IPv4Address(nic.address or "0.0.0.0")),  # noqa: S104
            "SubnetMask": int(IPv4Address(nic.netmask)),
            "DefaultGatewayAddress": int(IPv4Address(gateway)),
            "PrimaryDnsAddress": int(IPv4Address(gateway)),
            "SecondaryDnsAddress": 0,
        }
        return {
            "Status": SUCCESS,
            "InterfaceDescriptor": {
                "InterfaceMode": "SHARED_MAC_ADDRESS",
                "LinkPolicy": 14,
                "HardwareAddress": nic.mac.hex("-"),
                "IPv4Parameters": parameters,
            },
        }

    def _power_state(self, call: Element, now: float) -> _Answer:
        return {"Status": SUCCESS, "SystemPowerState": _POWER_STATES[self._machine.power]}

    def _capabilities(self, call: Element, now: float) -> _Answer:
        # IDE-R, SOL, BIOS setup and pause; PXE, disk, diagnostics, CD; all four commands.
        return {
            "Status": SUCCESS,
            "IanaOemNumber": INTEL_IANA,
            "OemDefinedCapabilities": 0x1B,
            "SpecialCommandsSupported": 0x1B00,
            "SystemCapabilitiesSupported": 0x0F,
            "SystemFirmwareCapabilities": 0x4000,
        }

    def _remote_control(self, call: Element, now: float) -> _Answer:
        request = _COMMANDS.get(call.number("Command"))
        if request is None:
            return {"Status": INVALID_COMMAND}
        oem = call.number("IanaOemNumber")
        if oem not in (INTEL_IANA, ASF_IANA):
            return {"Status": UNSUPPORTED_OEM}
        status = self._set_boot(call, intel=oem == INTEL_IANA)
        if status != SUCCESS:
            return {"Status": status}
        accepted = self._machine.request_power(request, now) is ReturnValue.OK
        return {"Status": SUCCESS if accepted else INTERNAL_ERROR}

    def _set_boot(self, call: Element, *, intel: bool) -> int:
        """The boot options of a RemoteControl call, which hold for the boot that it makes."""
        boot = self._machine.boot
        settings: dict[str, str] = {}
        source = ""
        if intel and call.number("OEMparameters") > 0 and call.number("OEMparameters") & _USE_SOL:
            settings["UseSOL"] = "true"
        special = call.number("SpecialCommand")
        if special == _OEM_COMMAND and intel:
            bits = max(0, call.number("SpecialCommandParameter"))
            settings |= {name: "true" for bit, name in _OEM_BITS.items() if bits & bit}
        elif special in _SPECIAL:
            source = _SPECIAL[special]
        elif special > 0:
            return INVALID_SPECIAL_COMMAND
        if not boot.change_order(source):
            return UNSUPPORTED_BOOT
        boot.put(settings)
        boot.arm(SINGLE_USE)
        return SUCCESS

    _CALLS: ClassVar[dict[tuple[str, str], Callable[[EoiServer, Element, float], _Answer]]] = {
        ("/SecurityAdministrationService", "GetCoreVersion"): _core_version,
        ("/NetworkAdministrationService", "GetHostName"): _host_name,
        ("/NetworkAdministrationService", "GetDomainName"): _domain_name,
        ("/NetworkAdministrationService", "EnumerateInterfaces"): _interfaces,
        ("/NetworkAdministrationService", "GetInterfaceSettings"): _interface_settings,
        ("/RemoteControlService", "GetSystemPowerState"): _power_state,
        ("/RemoteControlService", "GetRemoteControlCapabilities"): _capabilities,
        ("/RemoteControlService", "RemoteControl"): _remote_control,
    }


def _parse(data: bytes) -> Element:
    envelope = parse_xml(data)
    body = envelope.find("Body")
    if envelope.name != f"{{{SOAP11}}}Envelope" or body is None or not body.children:
        raise Fault("Client", "not a SOAP 1.1 envelope")
    return body.children[0]


def _element(name: str, value: _Value) -> str:
    if isinstance(value, dict):
        return f"<{name}>{''.join(_element(k, v) for k, v in value.items())}</{name}>"
    return f"<{name}>{escape(str(value))}</{name}>"


def _envelope(body: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<s:Envelope xmlns:s="{SOAP11}"><s:Body>{body}</s:Body></s:Envelope>'
    ).encode()
