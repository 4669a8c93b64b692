import pytest

from gwmodule.sim.classes import resources
from gwmodule.sim.machine import Machine, PowerRequest
from gwmodule.sim.profiles import PROFILES, Feature
from tests.sim.test_wsman import PC


def classes(profile: str) -> set[str]:
    return set(resources(Machine(PC, "x", now=0.0, profile=PROFILES[profile])))


def test_generations_differ_in_what_they_have() -> None:
    storage = "AMT_ThirdPartyDataStorageService"
    assert storage in classes("amt11")
    assert storage not in classes("amt12")
    assert "IPS_OptInService" not in classes("amt6")
    assert "IPS_AlarmClockOccurrence" in classes("amt9")
    assert "IPS_PowerManagementService" not in classes("amt9")


@pytest.mark.parametrize(
    ("profile", "feature", "has"),
    [
        ("amt2", Feature.WSMAN, False),
        ("amt6", Feature.EOI, True),
        ("amt9", Feature.EOI, False),
        ("amt15", Feature.PLAIN, True),
        ("amt16", Feature.PLAIN, False),
    ],
)
def test_a_feature_has_its_time(profile: str, feature: Feature, has: bool) -> None:
    assert PROFILES[profile].has(feature) is has


def test_old_firmware_knows_no_sleep() -> None:
    old = Machine(PC, "x", now=0.0, profile=PROFILES["amt6"])
    assert PowerRequest.SLEEP not in old.available_requests
    assert old.request_power(PowerRequest.SLEEP, 0.0).name == "INVALID_TRANSITION"


def test_every_profile_goes_by_its_name() -> None:
    assert all(name == profile.name for name, profile in PROFILES.items())
