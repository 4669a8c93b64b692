from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

import pytest

from gwmodule.amt.functions import Context
from gwmodule.amt.wsman import Instance, Value
from gwmodule.errors import DeviceAnswerError, DeviceRefused, DeviceUnreachable, IdentityMismatch
from tests.amt.device import FakeDevice, no_sleep, run

REQUEST = "CIM_PowerManagementService.RequestPowerStateChange"
STATE = "CIM_AssociatedPowerManagementService"


@dataclass
class PoweredDevice(FakeDevice):
    """Goes through the states of `later`, one a look; "lost" is a connection that broke."""

    later: list[str] = field(default_factory=list)
    value: str = "0"

    def __post_init__(self) -> None:
        self.instances[STATE] = [{"PowerState": "2", "AvailableRequestedPowerStates": "10"}]
        self.methods[REQUEST] = lambda arguments: {"ReturnValue": self.value}

    async def get(self, cls: str, selectors: Mapping[str, str] | None = None) -> Instance:
        if self.later and ("invoke", REQUEST) in self.asked:
            state = self.later.pop(0)
            if state == "lost":
                raise DeviceUnreachable("connection lost")
            self.instances[STATE][0]["PowerState"] = state
        return await super().get(cls, selectors)


async def test_a_state_that_is_a_single_element_is_a_list() -> None:
    result = await run(PoweredDevice(), "power.get")
    assert result["available"] == [{"state": 10, "name": "reset"}]


async def test_numbers_that_our_tables_do_not_know_are_passed_on() -> None:
    device = FakeDevice({STATE: [{"PowerState": "77", "AvailableRequestedPowerStates": ["99"]}]})
    result = await run(device, "power.get")
    assert (result["power_state"], result["power_state_name"]) == (77, "unknown (77)")
    assert result["available"] == [{"state": 99, "name": "unknown (99)"}]


@pytest.mark.parametrize(
    "instance",
    [
        {},
        {"PowerState": "on"},
        {"PowerState": ["2", "3"]},
        {"PowerState": "9" * 30},
        {"PowerState": "2", "AvailableRequestedPowerStates": "x"},
    ],
)
async def test_a_state_that_is_no_number_is_a_bad_answer(instance: dict[str, Value]) -> None:
    with pytest.raises(DeviceAnswerError):
        await run(FakeDevice({STATE: [instance]}), "power.get")


async def test_the_request_names_state_and_system() -> None:
    device = PoweredDevice()
    await run(device, "power.set", state="reset")
    assert list(device.arguments[0]) == ["PowerState", "ManagedElement"]
    assert device.arguments[0]["PowerState"] == 10
    assert device.arguments[0]["ManagedElement"]["SelectorSet"]["Name"] == "ManagedSystem"


async def test_nothing_is_waited_for_by_default() -> None:
    device = PoweredDevice()
    result = await run(device, "power.set", state="off")
    assert (result["verified"], result["power_state"]) == (False, None)
    assert device.steps == [REQUEST]


async def test_the_new_state_is_waited_for_across_a_lost_connection() -> None:
    device = PoweredDevice(later=["2", "lost", "8", "7"])
    seen: list[tuple[int, int]] = []
    context = Context(sleep=no_sleep, progress=lambda done, total, _: seen.append((done, total)))
    result = await run(device, "power.set", context, state="off", wait=10)
    assert (result["verified"], result["power_state_name"]) == (True, "off")
    assert seen == [(1, 10), (2, 10), (3, 10)]


async def test_a_state_that_does_not_come_is_told_as_it_is() -> None:
    result = await run(PoweredDevice(), "power.set", state="hibernate", wait=3)
    assert (result["verified"], result["power_state_name"]) == (False, "on")


async def test_a_refusal_has_number_and_meaning() -> None:
    with pytest.raises(DeviceRefused, match=r"4097.*invalid state transition") as caught:
        await run(PoweredDevice(value="4097"), "power.set", state="off")
    assert caught.value.return_value == 4097


@pytest.mark.parametrize(("state", "closes"), [("off", True), ("cycle", True), ("reset", False)])
async def test_own_streams_end_before_what_they_would_forbid(state: str, closes: bool) -> None:
    reasons: list[str] = []

    def release(reason: str) -> int:
        reasons.append(reason)
        return 2

    context = Context(sleep=no_sleep, release_redirection=release)
    result = await run(PoweredDevice(), "power.set", context, state=state, by="anna")
    assert reasons == (["power action by anna"] if closes else [])
    assert result["released_streams"] == (2 if closes else 0)


async def test_another_device_keeps_its_power_and_its_streams() -> None:
    device = PoweredDevice()
    uuid = "AMT_SetupAndConfigurationService.GetUuid"
    device.methods[uuid] = lambda arguments: {"UUID": "E67jVdK/u2EXoIiu3XA36g=="}

    def release(reason: str) -> int:
        raise AssertionError("the wrong device's streams were closed")

    context = Context(sleep=no_sleep, uuid=UUID(int=1), release_redirection=release)
    with pytest.raises(IdentityMismatch):
        await run(device, "power.set", context, state="off")
    assert device.steps == [uuid]


async def test_the_pause_between_two_requests_comes_first() -> None:
    device = PoweredDevice()
    turns: list[int] = []

    async def turn() -> None:
        turns.append(len(device.asked))

    await run(device, "power.set", Context(sleep=no_sleep, power_turn=turn), state="on")
    assert turns == [0]
