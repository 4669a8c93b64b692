import pytest

from gwmodule.amt.wsman import Embedded
from gwmodule.errors import DeviceRefused
from tests.amt.device import FakeDevice, run

ADD = "AMT_AlarmClockService.AddAlarm"


async def test_an_alarm_is_an_occurrence_with_start_and_interval() -> None:
    device = FakeDevice(methods={ADD: lambda arguments: {"ReturnValue": "0"}})
    result = await run(device, "alarm.add", name="backup", time=1_800_000_000, interval=1501)
    template = device.arguments[0]["AlarmTemplate"]
    assert template == Embedded(
        "IPS_AlarmClockOccurrence",
        {
            "InstanceID": "backup",
            "ElementName": "backup",
            "StartTime": {"Datetime": "2027-01-15T08:00:00Z"},
            "Interval": {"Interval": "P1DT1H1M"},
            "DeleteOnCompletion": True,
        },
    )
    assert result["interval"] == 1501


async def test_a_single_alarm_has_no_interval() -> None:
    device = FakeDevice(methods={ADD: lambda arguments: {"ReturnValue": "0"}})
    await run(device, "alarm.add", name="once", time=1_800_000_000)
    assert "Interval" not in device.arguments[0]["AlarmTemplate"].properties


async def test_a_full_clock_says_so() -> None:
    device = FakeDevice(methods={ADD: lambda arguments: {"ReturnValue": "23"}})
    with pytest.raises(DeviceRefused, match="limit reached"):
        await run(device, "alarm.add", name="sixth", time=1_800_000_000)


@pytest.mark.parametrize(
    ("interval", "minutes"),
    [
        ({"Interval": "P0DT0H1M"}, 1),
        ({"Interval": "P2DT3H4M5S"}, 3064),
        ({"Interval": "PT1H"}, 60),
        ("0", None),
        ("", None),
        ({"Interval": "nonsense"}, None),
        ({"Interval": "P" + "9" * 50 + "D"}, None),
    ],
)
async def test_intervals_are_minutes(interval: object, minutes: int | None) -> None:
    occurrence = {"InstanceID": "x", "StartTime": {"Datetime": "2027"}, "Interval": interval}
    device = FakeDevice({"IPS_AlarmClockOccurrence": [occurrence]})
    alarms = (await run(device, "alarm.list"))["alarms"]
    assert alarms == [{"name": "x", "time_text": "2027", "interval": minutes, "once": None}]


async def test_an_alarm_is_deleted_by_its_name() -> None:
    device = FakeDevice()
    await run(device, "alarm.delete", name="backup")
    assert device.asked == [("delete", "IPS_AlarmClockOccurrence")]
    assert device.arguments == [{"InstanceID": "backup"}]
