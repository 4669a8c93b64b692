"""One-time boot: from where the PC starts next, then its reset or power-on.

    AMT_BootSettingData         what kind of boot            Put
    CIM_BootConfigSetting       from which source            ChangeBootOrder
    CIM_BootService             for the next boot only       SetBootConfigRole
    CIM_PowerManagementService  reset or on                  RequestPowerStateChange

AMT wants exactly this order, and forgets all of it with the boot (reference/amt-protocols.md 3.3).
A step that fails puts the settings back, so that nobody is surprised at the boot after next.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gwmodule.amt.functions.identity import require_identity
from gwmodule.amt.functions.power import (
    ON,
    POWER_STATES,
    REQUEST_NAMES,
    RESET,
    power_state,
    request_power,
)
from gwmodule.amt.functions.reading import flag, named
from gwmodule.amt.functions.schema import (
    Argument,
    Arguments,
    Context,
    Field,
    Function,
    Kind,
    NotSupported,
    Result,
    Wsman,
)
from gwmodule.amt.wsman import Instance, Value, check_return, reference
from gwmodule.errors import AmtError, BadArgument, DeadlineExceeded, DeviceUnreachable

_CONFIG = "CIM_BootConfigSetting"
_CONFIG_ID = {"InstanceID": "Intel(r) AMT: Boot Configuration 0"}
_SERVICE = "CIM_BootService"
_SERVICE_NAME = {"Name": "Intel(r) AMT Boot Service"}
_SETTINGS = "AMT_BootSettingData"
# Role of the boot configuration: for the next boot, or for none.
_NEXT_SINGLE_USE = 1
_NOT_NEXT = 32768

# What firmware reports but does not take back.
_READ_ONLY = frozenset(
    {
        "BIOSLastStatus",
        "BootguardStatus",
        "OptionsCleared",
        "RPEEnabled",
        "RSEPassword",
        "SecureBootControlEnabled",
        "UEFIHTTPSBootEnabled",
        "UEFILocalPBABootEnabled",
        "UefiBootParametersArray",
        "WinREBootEnabled",
    }
)
# Every boot begins from these; a property that this firmware does not have is left out.
_NEUTRAL: dict[str, Value] = {
    "BIOSPause": False,
    "BIOSSetup": False,
    "BootMediaIndex": 0,
    "ConfigurationDataReset": False,
    "IDERBootDevice": 0,
    "PlatformErase": False,
    "ReflashBIOS": False,
    "SecureErase": False,
    "UefiBootNumberOfParams": 0,
    "UseIDER": False,
    "UseSOL": False,
    "UseSafeMode": False,
}
# UEFI boot parameters are vendor, type and length, then the value, all little-endian; the types are
# Intel's OCR_EFI_NETWORK_DEVICE_PATH and OCR_HTTPS_CERT_SYNC_ROOT_CA.
_PARAMETER = struct.Struct("<HHI")
_INTEL = 0x8086
_NETWORK_DEVICE_PATH = 1
_SYNC_ROOT_CA = 20
MAX_URL = 1024


@dataclass(frozen=True, slots=True)
class _Boot:
    """One kind of boot: the capability it needs, its settings, and its source if it forces one."""

    capability: str = ""
    settings: dict[str, Value] = field(default_factory=dict)
    source: str = ""


_BOOTS = {
    # In the BIOS's own order; what is asked for is the view of it, by SOL.
    "default": _Boot(),
    "pxe": _Boot("ForcePXEBoot", source="Intel(r) AMT: Force PXE Boot"),
    "hdd": _Boot("ForceHardDriveBoot", source="Intel(r) AMT: Force Hard-drive Boot"),
    "cd": _Boot("ForceCDorDVDBoot", source="Intel(r) AMT: Force CD/DVD Boot"),
    "diagnostics": _Boot("ForceDiagnosticBoot", source="Intel(r) AMT: Force Diagnostic Boot"),
    "bios": _Boot("BIOSSetup", {"BIOSSetup": True}),
    "ider-floppy": _Boot("IDER", {"UseIDER": True, "IDERBootDevice": 0}),
    "ider-cd": _Boot("IDER", {"UseIDER": True, "IDERBootDevice": 1}),
    "uefi-https": _Boot("ForceUEFIHTTPSBoot", source="Intel(r) AMT: Force OCR UEFI HTTPS Boot"),
}


async def boot_once(client: Wsman, arguments: Arguments, context: Context) -> Result:
    device, stream = arguments["device"], arguments["stream"]
    sol = arguments["sol"] or bool(stream)
    boot = _BOOTS[device]
    extra = _uefi_settings(device, arguments["url"])
    if stream and not context.stream_open(stream):
        raise BadArgument(f"stream {stream} is not open to this device; open the console first")
    await require_identity(client, context)
    capabilities = await client.get("AMT_BootCapabilities")
    for capability in (boot.capability, "SOL" if sol else ""):
        if capability and not flag(capabilities, capability):
            raise NotSupported(
                f"this PC cannot boot so: {capability} is not among its capabilities"
            )
    state, _ = await power_state(client)
    original = await client.get(_SETTINGS)
    wanted = _changed(original, boot.settings | extra | {"UseSOL": sol})
    request = None
    try:
        context.progress(0, 4, "clearing the boot order")
        await _change_boot_order(client, "")
        context.progress(1, 4, "writing the boot settings")
        await client.put(_SETTINGS, wanted)
        context.progress(2, 4, "choosing the boot source")
        await _set_role(client, _NEXT_SINGLE_USE)
        if boot.source:
            await _change_boot_order(client, boot.source)
        if arguments["power"] == "now":
            context.progress(3, 4, "starting the PC")
            # A reset wakes no PC that is off, and switching on starts none that sleeps anew.
            request = RESET if state in (ON, 3, 4) else ON
            await request_power(client, request, context)
    except (DeviceUnreachable, DeadlineExceeded) as exc:
        if request is None:
            exc.args = (f"{exc}; {await _roll_back(client, original)}",)
        else:
            # Taken back now, the settings might be gone before the BIOS looks at them.
            exc.args = (f"{exc}; the PC may have started, so the boot settings stay",)
        raise
    except AmtError as exc:
        exc.args = (f"{exc}; {await _roll_back(client, original)}",)
        raise
    except BaseException:
        # Cancelled. What remains of the call's time is enough for three exchanges, or it is not.
        if request is None:
            await _roll_back(client, original)
        raise
    context.progress(4, 4, "done")
    return {
        "device": device,
        "sol": sol,
        **named("power_state_before", state, POWER_STATES),
        **named("requested", request, REQUEST_NAMES),
    }


def _uefi_settings(device: str, url: str) -> dict[str, Value]:
    if device != "uefi-https":
        if url:
            raise BadArgument(f"url is {url[:80]!r}, but only uefi-https takes one")
        return {}
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or not url.isascii():
        raise BadArgument(f"url is {url[:80]!r}, must be https://HOST/PATH in ASCII")
    parameters = ((_NETWORK_DEVICE_PATH, url.encode()), (_SYNC_ROOT_CA, b"\x01"))
    data = b"".join(_PARAMETER.pack(_INTEL, kind, len(value)) + value for kind, value in parameters)
    return {
        "UefiBootNumberOfParams": len(parameters),
        "UefiBootParametersArray": base64.b64encode(data).decode(),
    }


def _changed(original: Instance, settings: dict[str, Value]) -> Instance:
    neutral = {name: value for name, value in _NEUTRAL.items() if name in original}
    return _writable(original) | neutral | settings


def _writable(instance: Instance) -> Instance:
    return {name: value for name, value in instance.items() if name not in _READ_ONLY}


async def _change_boot_order(client: Wsman, source: str) -> None:
    """An empty `source` clears the order; there is never more than one."""
    arguments: dict[str, Value] = {}
    if source:
        arguments["Source"] = reference("CIM_BootSourceSetting", {"InstanceID": source})
    output = await client.invoke(_CONFIG, "ChangeBootOrder", arguments, _CONFIG_ID)
    check_return(_CONFIG, "ChangeBootOrder", output)


async def _set_role(client: Wsman, role: int) -> None:
    configuration = reference(_CONFIG, _CONFIG_ID)
    output = await client.invoke(
        _SERVICE,
        "SetBootConfigRole",
        {"BootConfigSetting": configuration, "Role": role},
        _SERVICE_NAME,
    )
    check_return(_SERVICE, "SetBootConfigRole", output)


async def _roll_back(client: Wsman, original: Instance) -> str:
    """Undo in the reverse order, as far as the device lets us; says what became of it."""
    failures = []
    for step in (
        lambda: _change_boot_order(client, ""),
        lambda: _set_role(client, _NOT_NEXT),
        lambda: client.put(_SETTINGS, _writable(original)),
    ):
        try:
            await step()
        except AmtError as exc:
            failures.append(str(exc))
    if failures:
        return f"putting the boot settings back failed too: {'; '.join(failures)}"
    return "the boot settings were put back"


FUNCTIONS = (
    Function(
        "boot.once",
        "Choose what the PC boots next, once, and reset or switch it on",
        boot_once,
        (
            Argument("device", Kind.NAME, "what to boot", names=tuple(_BOOTS)),
            Argument("sol", Kind.BOOLEAN, "let the BIOS write to Serial-over-LAN", default=False),
            Argument(
                "stream",
                Kind.INTEGER,
                "the open console that must see the boot, 0 for none; implies sol",
                default=0,
                high=0xFFFF,
            ),
            Argument(
                "power",
                Kind.NAME,
                "whether to start the PC now or to leave the boot for later",
                default="now",
                names=("now", "later"),
            ),
            Argument("url", Kind.TEXT, "the image, for uefi-https only", default="", high=MAX_URL),
        ),
        (
            Field("device", Kind.TEXT, "what the PC boots"),
            Field("sol", Kind.BOOLEAN, "whether the boot shows on Serial-over-LAN"),
            Field("power_state_before", Kind.CHOICE, "the state before", choices=POWER_STATES),
            Field("requested", Kind.CHOICE, "how the PC was started", choices=REQUEST_NAMES),
        ),
        changes_state=True,
    ),
)
