"""AMT 1 and 2, which know no WS-Man: their SOAP 1.1 services (EOI) for power and remote control.

    EoiClient      the calls, one coroutine each
    EoiDevice      the same as if it were WS-Man, so that power.get and power.set do not notice

Everything goes through a `Post`, one authenticated HTTP exchange at a path of the caller's choice;
envelopes are built and read without I/O. Paths, calls and numbers: reference/amt-protocols.md 3.10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol
from xml.sax.saxutils import escape

from gwmodule.amt.connection import HttpAnswer
from gwmodule.amt.wsman import PT_STATUS, Instance, Value, instance_from, local_name, parse_xml
from gwmodule.errors import AmtError, Code, DeviceAnswerError, DeviceRefused, WsmanFault

SOAP11 = "http://schemas.xmlsoap.org/soap/envelope/"
_SCHEMAS = "http://schemas.intel.com/platform/client"
SECURITY = "/SecurityAdministrationService"
NETWORK = "/NetworkAdministrationService"
REMOTE_CONTROL = "/RemoteControlService"
NAMESPACES = {
    SECURITY: f"{_SCHEMAS}/SecurityAdministration/2004/01",
    NETWORK: f"{_SCHEMAS}/NetworkAdministration/2004/01",
    REMOTE_CONTROL: f"{_SCHEMAS}/RemoteControl/2004/01",
}
# RemoteControl's Command.
RESET, POWER_UP, POWER_DOWN, POWER_CYCLE = 16, 17, 18, 19
# RemoteControl's SpecialCommand.
SPECIAL_COMMANDS = {"pxe": 1, "hdd": 2, "hdd-safe": 3, "diagnostics": 4, "cd": 5}
INTEL_IANA = 343
# PT_STATUS that only these services answer with.
_STATUS = PT_STATUS | {
    0x801: "unsupported OEM number",
    0x803: "invalid command",
    0x804: "invalid special command",
}
# What the functions ask of WS-Man, as this interface has it: RequestedPowerState, Command.
_COMMANDS = {2: POWER_UP, 8: POWER_DOWN, 5: POWER_CYCLE, 10: RESET}
# The low nibble of the power state, S0 to S5 and off, as CIM's PowerState.
_POWER_STATES = (2, 3, 3, 4, 7, 8, 8, 8)
_ON = 2
# The requests that a PC that runs, and one that does not, can be sent.
_WHEN_ON = ("10", "8", "5")
_WHEN_OFF = ("2",)


class EoiOnly(AmtError):
    """What was asked for needs WS-Man, and this firmware is older than that."""

    code = Code.NOT_SUPPORTED


class Post(Protocol):
    """One POST with the device's login, whole and within the deadline of the call.

    `reads`: it changes nothing, so it may be sent again on a new connection.
    """

    async def __call__(
        self, path: str, headers: list[tuple[str, str]], body: bytes, *, reads: bool
    ) -> HttpAnswer: ...


# ---- envelopes, without I/O -------------------------------------------------------------------


def build_call(path: str, call: str, arguments: Mapping[str, str | int]) -> bytes:
    """The envelope of one call; arguments in the order given."""
    inner = "".join(f"<{k}>{escape(str(v))}</{k}>" for k, v in arguments.items())
    return (
        '<?xml version="1.0" encoding="utf-8"?>'
        f'<s:Envelope xmlns:s="{SOAP11}"><s:Body>'
        f'<{call} xmlns="{NAMESPACES[path]}">{inner}</{call}>'
        "</s:Body></s:Envelope>"
    ).encode()


def build_headers(path: str, call: str) -> list[tuple[str, str]]:
    """What SOAP 1.1 wants beside the login."""
    action = f'"{NAMESPACES[path]}#{call}"'
    return [("Content-Type", "text/xml; charset=utf-8"), ("SOAPAction", action)]


def parse_response(call: str, data: bytes) -> Instance:
    """The members of a `<CALLResponse>` whose Status is success.

    DeviceRefused says its Status, WsmanFault a SOAP fault, DeviceAnswerError everything else.
    """
    envelope = parse_xml(data)
    body = envelope.find(f"{{{SOAP11}}}Body")
    if envelope.tag != f"{{{SOAP11}}}Envelope" or body is None or len(body) == 0:
        raise DeviceAnswerError(
            f"the answer is a {local_name(envelope)[:40]!r}, not a SOAP 1.1 body"
        )
    element = body[0]
    if element.tag == f"{{{SOAP11}}}Fault":
        code, reason = element.findtext("faultcode"), element.findtext("faultstring")
        raise WsmanFault((code or "")[:40], "", (reason or "").strip()[:200])
    if local_name(element) != f"{call}Response":
        raise DeviceAnswerError(
            f"the answer holds {local_name(element)[:40]!r}, not {call}Response"
        )
    members = instance_from(element)
    status = _number(members, "Status")
    if status != 0:
        raise DeviceRefused(call, status, _STATUS.get(status, "unknown status"))
    return members


def _number(members: Instance, name: str) -> int:
    value = members.get(name)
    wanted = isinstance(value, str) and value.isascii() and value.isdecimal()
    if not wanted or len(str(value)) > 10:
        raise DeviceAnswerError(f"{name} is {str(value)[:40]!r}, expected a number")
    return int(str(value))


# ---- calls ------------------------------------------------------------------------------------


class EoiClient:
    """The calls, over one device's `post`.

    They raise DeviceRefused with the device's status, WsmanFault for a SOAP fault,
    DeviceAnswerError, and what `post` raises.
    """

    def __init__(self, post: Post) -> None:
        self._post = post

    async def version(self) -> str:
        """The firmware's version, as `2.2.20`."""
        return str((await self._read(SECURITY, "GetCoreVersion")).get("Version", ""))

    async def host_name(self) -> str:
        return str((await self._read(NETWORK, "GetHostName")).get("HostName", ""))

    async def power_state(self) -> int:
        """0 for S0 to 5 for S5, 6 for S4 or S5, 7 for off."""
        state = _number(await self._read(REMOTE_CONTROL, "GetSystemPowerState"), "SystemPowerState")
        return state & 0xF

    async def capabilities(self) -> dict[str, int]:
        """The four bit masks of what the PC supports, by name."""
        found = await self._read(REMOTE_CONTROL, "GetRemoteControlCapabilities")
        names = (
            "OemDefinedCapabilities",
            "SpecialCommandsSupported",
            "SystemCapabilitiesSupported",
            "SystemFirmwareCapabilities",
        )
        return {name: _number(found, name) for name in names}

    async def remote_control(self, command: int, special: int = 0) -> None:
        """RESET, POWER_UP ...; `special` is one of SPECIAL_COMMANDS and holds for that boot."""
        arguments = {"Command": command, "IanaOemNumber": INTEL_IANA}
        if special:
            arguments["SpecialCommand"] = special
        await self._call(REMOTE_CONTROL, "RemoteControl", arguments, reads=False)

    async def _read(self, path: str, call: str) -> Instance:
        return await self._call(path, call, {}, reads=True)

    async def _call(
        self, path: str, call: str, arguments: Mapping[str, str | int], *, reads: bool
    ) -> Instance:
        body = build_call(path, call, arguments)
        answer = await self._post(path, build_headers(path, call), body, reads=reads)
        kind = answer.header("content-type").partition(";")[0].strip().lower()
        if kind not in ("text/xml", "application/xml", "application/soap+xml"):
            raise DeviceAnswerError(
                f"{call}: HTTP {answer.status} with {len(answer.body)} bytes of {kind[:60]!r}, "
                "expected SOAP"
            )
        return parse_response(call, answer.body)


class EoiDevice:
    """A `Wsman` for functions about power, spoken as EOI; everything else raises EoiOnly.

    That includes the UUID: no service of this firmware tells it that we know the path of.
    """

    def __init__(self, client: EoiClient) -> None:
        self._client = client

    async def get(self, cls: str, selectors: Mapping[str, str] | None = None) -> Instance:
        if cls != "CIM_AssociatedPowerManagementService":
            raise _eoi_only(cls)
        nibble = await self._client.power_state()
        if nibble >= len(_POWER_STATES):
            raise DeviceAnswerError(f"SystemPowerState is {nibble}, expected 0 to 7")
        state = _POWER_STATES[nibble]
        return {
            "PowerState": str(state),
            "AvailableRequestedPowerStates": list(_WHEN_ON if state == _ON else _WHEN_OFF),
        }

    async def put(
        self,
        cls: str,
        properties: Mapping[str, Value],
        selectors: Mapping[str, str] | None = None,
    ) -> Instance:
        raise _eoi_only(cls)

    async def delete(self, cls: str, selectors: Mapping[str, str]) -> None:
        raise _eoi_only(cls)

    async def enumerate(self, cls: str) -> list[Instance]:
        if cls != "CIM_SoftwareIdentity":
            raise _eoi_only(cls)
        return [{"InstanceID": "AMT", "VersionString": await self._client.version()}]

    async def invoke(
        self,
        cls: str,
        method: str,
        arguments: Mapping[str, Value] | None = None,
        selectors: Mapping[str, str] | None = None,
        *,
        reads: bool = False,
    ) -> Instance:
        if (cls, method) != ("CIM_PowerManagementService", "RequestPowerStateChange"):
            raise _eoi_only(f"{cls}.{method}")
        wanted = (arguments or {}).get("PowerState")
        command = _COMMANDS.get(wanted) if isinstance(wanted, int) else None
        if command is None:
            raise _eoi_only(f"power request {wanted!r}")
        await self._client.remote_control(command)
        return {"ReturnValue": "0"}


def _eoi_only(what: str) -> EoiOnly:
    return EoiOnly(f"this firmware is older than WS-Man and has no {what[:80]}")
