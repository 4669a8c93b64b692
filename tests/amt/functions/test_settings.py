import pytest

from gwmodule.amt.functions import Context
from gwmodule.errors import BadArgument, DeviceAnswerError
from tests.amt.device import FakeDevice, no_sleep, run

TIME = "AMT_TimeSynchronizationService"


def clock(seconds: str = "1704586865") -> FakeDevice:
    return FakeDevice(
        methods={
            f"{TIME}.GetLowAccuracyTimeSynch": lambda arguments: {"Ta0": seconds},
            f"{TIME}.SetHighAccuracyTimeSynch": lambda arguments: {"ReturnValue": "0"},
        }
    )


async def test_the_clock_is_set_to_the_time_that_is_given() -> None:
    device = clock()
    await run(device, "time.sync", time=1_800_000_000)
    assert device.arguments[-1] == {"Ta0": 1704586865, "Tm1": 1_800_000_000, "Tm2": 1_800_000_000}


async def test_else_it_is_set_to_the_gateways() -> None:
    context = Context(sleep=no_sleep, wall_clock=lambda: 1_900_000_000.9)
    result = await run(clock(), "time.sync", context)
    assert result["time"] == 1_900_000_000


@pytest.mark.parametrize("context", [None, Context(sleep=no_sleep, wall_clock=lambda: 86400.0)])
async def test_a_gateway_that_does_not_know_the_time_sets_no_clock(context: Context | None) -> None:
    device = clock()
    with pytest.raises(BadArgument, match="time is needed"):
        await run(device, "time.sync", context)
    assert device.asked == []


@pytest.mark.parametrize("seconds", ["", "noon", "-1", "99999999999"])
async def test_a_clock_that_is_no_number_is_a_bad_answer(seconds: str) -> None:
    with pytest.raises(DeviceAnswerError):
        await run(clock(seconds), "time.get")


@pytest.mark.parametrize(
    ("kind", "wireless"), [("0", False), ("1", False), ("2", False), ("3", True)]
)
async def test_only_kind_3_of_a_port_is_wireless(kind: str, wireless: bool) -> None:
    device = FakeDevice({"AMT_EthernetPortSettings": [{"PhysicalConnectionType": kind}]})
    (port,) = (await run(device, "network.get"))["ports"]
    assert (port["connection_name"] == "wireless") is wireless


async def test_a_port_that_dhcp_told_nothing_has_no_address() -> None:
    device = FakeDevice({"AMT_EthernetPortSettings": [{"InstanceID": "x", "LinkPolicy": "77"}]})
    (port,) = (await run(device, "network.get"))["ports"]
    assert (port["address"], port["dns"], port["link"]) == ("", [], None)
    assert port["link_policy"] == [{"policy": 77, "name": "unknown (77)"}]
