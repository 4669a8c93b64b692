import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.sim.boot import (
    DEFAULTS,
    NO_ROLE,
    SINGLE_USE,
    BadBootSetting,
    BootSettings,
    BootSource,
    Plan,
    boot_script,
)
from gwmodule.sim.profiles import DEFAULT_PROFILE, PROFILES
from gwmodule.sim.serial import Software


def settings(profile: str = "amt12") -> BootSettings:
    return BootSettings(PROFILES[profile])


def test_an_armed_boot_happens_once() -> None:
    boot = settings()
    assert boot.change_order(BootSource.NETWORK)
    boot.put({"UseSOL": "true"})
    assert boot.arm(SINGLE_USE)
    assert boot.take() == Plan(source=BootSource.NETWORK, sol=True)
    assert boot.take() == Plan()
    assert boot.cleared


def test_what_was_not_armed_does_not_happen_and_is_used_up_all_the_same() -> None:
    boot = settings()
    boot.change_order(BootSource.DISC)
    boot.put({"BIOSSetup": "true"})
    assert boot.take() == Plan()
    assert (boot.source, boot.settings["BIOSSetup"], boot.role) == (None, False, NO_ROLE)


def test_the_role_can_be_taken_back() -> None:
    boot = settings()
    boot.change_order(BootSource.DISC)
    assert boot.arm(SINGLE_USE)
    assert boot.arm(NO_ROLE)
    assert not boot.arm(7)
    assert boot.take() == Plan()


def test_an_empty_source_clears_the_order() -> None:
    boot = settings()
    boot.change_order(BootSource.DISC)
    assert boot.change_order("")
    assert boot.source is None
    assert not boot.change_order("Intel(r) AMT: Force Nonsense Boot")


def test_the_redirected_device_is_told_apart() -> None:
    boot = settings()
    boot.put({"UseIDER": "true", "IDERBootDevice": "1"})
    boot.arm(SINGLE_USE)
    assert boot.take().ider == 1


def test_what_a_put_leaves_out_goes_back() -> None:
    boot = settings()
    boot.put({"UseSOL": "true"})
    boot.put({"BIOSSetup": "1"})
    assert (boot.settings["UseSOL"], boot.settings["BIOSSetup"]) == (False, True)
    assert not boot.cleared


@pytest.mark.parametrize(
    "sent",
    [
        {"UseSOL": "yes"},
        {"FirmwareVerbosity": "4"},
        {"IDERBootDevice": "-1"},
        {"BootMediaIndex": "1" * 40},
        {"RSEPassword": "x" * 5000},
        {"BIOSPause": "true"},
        {"SecureErase": "true"},
    ],
)
def test_a_bad_setting_changes_nothing(sent: dict[str, str]) -> None:
    boot = settings()
    with pytest.raises(BadBootSetting):
        boot.put({"UseSOL": "true", **sent})
    assert boot.settings["UseSOL"] is False


def test_generations_differ_in_what_they_boot() -> None:
    assert BootSource.DIAGNOSTIC in settings("amt6").sources
    assert BootSource.DIAGNOSTIC not in settings("amt12").sources
    assert BootSource.HTTPS in settings("amt16").sources
    assert not settings("amt12").change_order(BootSource.HTTPS)
    assert "PlatformErase" not in settings("amt6").settings
    assert settings("amt16").settings.keys() == DEFAULTS.keys()


@pytest.mark.parametrize(
    ("plan", "os_alive", "text", "software"),
    [
        (Plan(), True, "Welcome.", Software.SYSTEM),
        (Plan(), False, "No bootable device", Software.RECOVERY),
        (Plan(source=BootSource.HARD_DRIVE), True, "SATA port 0", Software.SYSTEM),
        (Plan(source=BootSource.NETWORK), False, "PXE", Software.NETWORK),
        (Plan(source=BootSource.HTTPS), True, "HTTPS", Software.NETWORK),
        (Plan(source=BootSource.DISC), False, "Rescue disc", Software.DISC),
        (Plan(source=BootSource.DIAGNOSTIC), True, "diagnostics", Software.DIAGNOSTICS),
        (Plan(setup=True), True, "BIOS setup", Software.SETUP),
        (Plan(pause=True), True, "Paused", Software.SETUP),
        (Plan(ider=0), True, "redirected floppy", Software.SYSTEM),
        (Plan(ider=1), True, "redirected CD", Software.SYSTEM),
    ],
)
def test_the_serial_line_tells_what_is_booted(
    plan: Plan, os_alive: bool, text: str, software: Software
) -> None:
    script, runs = boot_script(DEFAULT_PROFILE, plan, os_alive=os_alive, bios_speaks=True)
    said = "".join(each for _, each in script)
    assert "8192 MB OK" in said
    assert text in said
    assert runs is software


@pytest.mark.parametrize("os_alive", [True, False])
def test_a_silent_bios_leaves_the_line_to_the_system(os_alive: bool) -> None:
    script, _ = boot_script(DEFAULT_PROFILE, Plan(), os_alive=os_alive, bios_speaks=False)
    said = "".join(each for _, each in script)
    assert "BIOS" not in said
    assert "SATA" not in said
    assert said


@given(st.dictionaries(st.sampled_from(sorted(DEFAULTS)), st.text(max_size=8)))
def test_no_put_breaks_the_types(sent: dict[str, str]) -> None:
    boot = settings("amt16")
    try:
        boot.put(sent)
    except BadBootSetting:
        assert boot.settings == DEFAULTS
    assert {name: type(value) for name, value in boot.settings.items()} == {
        name: type(value) for name, value in DEFAULTS.items()
    }
