"""What the PC's next start is to be: AMT_BootSettingData, the boot source, and their one use.

    change_order(source) --+
    put(settings) ---------+--> arm(SINGLE_USE) --> take() at the next boot --> all back to default

Order and names: reference/amt-protocols.md 3.3. Nothing happens at the boot unless it was armed.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from gwmodule.sim.profiles import Feature, Profile
from gwmodule.sim.serial import Software

_PREFIX = "Intel(r) AMT: "
NO_ROLE = 32768
SINGLE_USE = 1


class BootSource(enum.StrEnum):
    """CIM_BootSourceSetting.InstanceID."""

    HARD_DRIVE = f"{_PREFIX}Force Hard-drive Boot"
    NETWORK = f"{_PREFIX}Force PXE Boot"
    DISC = f"{_PREFIX}Force CD/DVD Boot"
    DIAGNOSTIC = f"{_PREFIX}Force Diagnostic Boot"
    HTTPS = f"{_PREFIX}Force OCR UEFI HTTPS Boot"


STRUCTURED = {
    BootSource.HARD_DRIVE: "CIM:Hard-Disk:1",
    BootSource.NETWORK: "CIM:Network:1",
    BootSource.DISC: "CIM:CD/DVD:1",
}

# AMT_BootSettingData as it is after every boot; the order is the class's own.
DEFAULTS: dict[str, bool | int | str] = {
    "BIOSPause": False,
    "BIOSSetup": False,
    "BootMediaIndex": 0,
    "ConfigurationDataReset": False,
    "EnforceSecureBoot": False,
    "FirmwareVerbosity": 0,
    "ForcedProgressEvents": False,
    "IDERBootDevice": 0,
    "LockKeyboard": False,
    "LockPowerButton": False,
    "LockResetButton": False,
    "LockSleepButton": False,
    "PlatformErase": False,
    "RSEPassword": "",
    "ReflashBIOS": False,
    "SecureErase": False,
    "UefiBootNumberOfParams": 0,
    "UefiBootParametersArray": "",
    "UseIDER": False,
    "UseSOL": False,
    "UseSafeMode": False,
    "UserPasswordBypass": False,
}
# The AMT_BootCapabilities flag that a setting needs.
_NEEDS = {
    "BIOSPause": "BIOSPause",
    "BIOSSetup": "BIOSSetup",
    "ConfigurationDataReset": "ConfigurationDataReset",
    "EnforceSecureBoot": "BIOSSecureBoot",
    "ForcedProgressEvents": "ForcedProgressEvents",
    "LockKeyboard": "KeyboardLock",
    "LockPowerButton": "PowerButtonLock",
    "LockResetButton": "ResetButtonLock",
    "LockSleepButton": "SleepButtonLock",
    "PlatformErase": "PlatformErase",
    "ReflashBIOS": "BIOSReflash",
    "SecureErase": "SecureErase",
    "UseIDER": "IDER",
    "UseSOL": "SOL",
    "UseSafeMode": "ForceHardDriveSafeModeBoot",
    "UserPasswordBypass": "UserPasswordBypass",
}
# Settings that came later than the rest, by the major version that brought them.
_SINCE = {
    "EnforceSecureBoot": 9,
    "SecureErase": 9,
    "RSEPassword": 9,
    "BootMediaIndex": 9,
    "PlatformErase": 15,
    "UefiBootNumberOfParams": 15,
    "UefiBootParametersArray": 15,
}
_MAXIMA = {"FirmwareVerbosity": 3, "IDERBootDevice": 1, "BootMediaIndex": 255}
_MAX_TEXT = 4096
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


class BadBootSetting(ValueError):
    """A setting that this PC does not have, or a value that it does not take."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one boot does differently; the default is an ordinary one."""

    source: BootSource | None = None
    setup: bool = False
    pause: bool = False
    sol: bool = False
    # IDERBootDevice: 0 floppy, 1 CD.
    ider: int | None = None


class BootSettings:
    """The settings and their one use."""

    def __init__(self, profile: Profile) -> None:
        self.capabilities = _capabilities(profile)
        self._defaults = {
            name: value for name, value in DEFAULTS.items() if profile.major >= _SINCE.get(name, 0)
        }
        self.sources = _sources(profile)
        self.settings = dict(self._defaults)
        self.source: BootSource | None = None
        self.role = NO_ROLE
        self.cleared = True

    def put(self, sent: Mapping[str, str]) -> None:
        """Take a whole AMT_BootSettingData; BadBootSetting leaves everything as it was.

        What is missing goes back to its default, as the real one does.
        """
        settings = dict(self._defaults)
        for name, default in self._defaults.items():
            if name in sent:
                settings[name] = _parse(name, sent[name], default)
        for name, capability in _NEEDS.items():
            if settings.get(name) and not self.capabilities.get(capability):
                raise BadBootSetting(f"this PC has no {capability}")
        self.settings = settings
        self.cleared = False

    def change_order(self, instance_id: str) -> bool:
        """Force one source, or none for an empty `instance_id`; False when there is no such."""
        if instance_id not in ("", *self.sources):
            return False
        self.source = BootSource(instance_id) if instance_id else None
        return True

    def arm(self, role: int) -> bool:
        """SetBootConfigRole; False when `role` is none."""
        if role not in (SINGLE_USE, NO_ROLE):
            return False
        self.role = role
        return True

    def take(self) -> Plan:
        """What the boot that begins now does; with it, everything is used up."""
        settings = self.settings
        plan = Plan()
        if self.role == SINGLE_USE:
            plan = Plan(
                source=self.source,
                setup=bool(settings["BIOSSetup"]),
                pause=bool(settings["BIOSPause"]),
                sol=bool(settings["UseSOL"]),
                ider=int(settings["IDERBootDevice"]) if settings["UseIDER"] else None,
            )
        self.settings = dict(self._defaults)
        self.source = None
        self.role = NO_ROLE
        self.cleared = True
        return plan


def boot_script(
    profile: Profile, plan: Plan, *, os_alive: bool, bios_speaks: bool
) -> tuple[list[tuple[float, str]], Software]:
    """What a booting PC says on its serial line: seconds since the text before, and the text.

    And what it then runs. `bios_speaks`: the BIOS writes there too, not only what comes after it.
    """
    script = _post(profile) if bios_speaks else [(3.0, "")]
    if plan.setup:
        return [*script, (0.5, "\x1b[2J\x1b[HBIOS setup\r\n")], Software.SETUP
    if plan.pause:
        return [*script, (0.5, "Paused. Type exit to go on.\r\n")], Software.SETUP
    if plan.ider is not None:
        device = "CD" if plan.ider else "floppy"
        script.append((1.0, f"Booting from redirected {device} ... no medium\r\n"))
    match plan.source:
        case BootSource.NETWORK:
            script.append((1.0, "Booting from network: PXE over IPv4\r\n"))
            return [*script, (1.5, "Network boot program started.\r\n")], Software.NETWORK
        case BootSource.HTTPS:
            script.append((1.0, "Booting from network: UEFI HTTPS\r\n"))
            return [*script, (1.5, "Recovery image started.\r\n")], Software.NETWORK
        case BootSource.DISC:
            return [*script, (1.0, "Booting from CD/DVD\r\nRescue disc.\r\n")], Software.DISC
        case BootSource.DIAGNOSTIC:
            return [*script, (1.0, "Starting diagnostics\r\n")], Software.DIAGNOSTICS
    if os_alive:
        if bios_speaks:
            script.append((1.0, "Booting from SATA port 0\r\n"))
        return [
            *script,
            (0.5, "Linux: starting system services\r\n"),
            (0.8, "\r\nWelcome.\r\n"),
        ], Software.SYSTEM
    if bios_speaks:
        script.append((1.0, "Booting from SATA port 0 ... failed\r\n"))
    return [
        *script,
        (0.5, "No bootable device. Starting the recovery console.\r\n"),
    ], Software.RECOVERY


def _post(profile: Profile) -> list[tuple[float, str]]:
    return [
        (0.1, f"\x1b[2J\x1b[H{profile.manufacturer} {profile.model}  BIOS 2.14\r\n"),
        (0.4, f"Management Engine {profile.version}.{profile.build}\r\n"),
        (0.6, "CPU: 4 cores, 2400 MHz\r\nMemory test: "),
        (0.8, "8192 MB OK\r\n"),
        (0.8, "SATA port 0: Contoso SSD 256 GB\r\nPress F2 for setup, F12 for the boot menu\r\n"),
    ]


def _capabilities(profile: Profile) -> dict[str, bool]:
    recovery = {
        "ForceUEFIHTTPSBoot": True,
        "ForceUEFILocalPBABoot": False,
        "ForceWinREBoot": False,
    }
    return {
        **(recovery if profile.has(Feature.HTTPS_BOOT) else {}),
        "BIOSPause": profile.has(Feature.DIAGNOSTIC_BOOT),
        "BIOSReflash": True,
        "BIOSSecureBoot": profile.major >= 9,
        "BIOSSetup": True,
        "ConfigurationDataReset": False,
        "ForceCDorDVDBoot": True,
        "ForceDiagnosticBoot": profile.has(Feature.DIAGNOSTIC_BOOT),
        "ForceHardDriveBoot": True,
        "ForceHardDriveSafeModeBoot": False,
        "ForcePXEBoot": True,
        "ForcedProgressEvents": True,
        "IDER": True,
        "KeyboardLock": True,
        "PowerButtonLock": False,
        "ResetButtonLock": False,
        "SOL": True,
        "SecureErase": False,
        "SleepButtonLock": False,
        "UserPasswordBypass": True,
        "VerbosityQuiet": False,
        "VerbosityScreenBlank": False,
        "VerbosityVerbose": False,
    }


def _sources(profile: Profile) -> tuple[BootSource, ...]:
    sources = [BootSource.HARD_DRIVE, BootSource.NETWORK, BootSource.DISC]
    if profile.has(Feature.DIAGNOSTIC_BOOT):
        sources.append(BootSource.DIAGNOSTIC)
    if profile.has(Feature.HTTPS_BOOT):
        sources.append(BootSource.HTTPS)
    return tuple(sources)


def _parse(name: str, text: str, default: bool | int | str) -> bool | int | str:
    if isinstance(default, str):
        if len(text) > _MAX_TEXT:
            raise BadBootSetting(f"{name} has {len(text)} characters, maximum {_MAX_TEXT}")
        return text
    if isinstance(default, bool):
        if text not in _BOOLEANS:
            raise BadBootSetting(f"{name} is {text[:40]!r}, expected true or false")
        return _BOOLEANS[text]
    if not text.isascii() or not text.isdecimal() or len(text) > 10:
        raise BadBootSetting(f"{name} is {text[:40]!r}, expected a number")
    value = int(text)
    if value > _MAXIMA.get(name, 0xFFFF):
        raise BadBootSetting(f"{name} is {value}, maximum {_MAXIMA.get(name, 0xFFFF)}")
    return value
