from gwmodule.amt.functions import Context
from tests.amt.device import FakeDevice, no_sleep, run


async def test_a_device_that_knows_nothing_still_gives_an_answer() -> None:
    result = await run(FakeDevice(), "inventory.get")
    assert result["uuid"] is None
    assert [each["class"] for each in result["missing"]] == [
        "AMT_SetupAndConfigurationService",
        "CIM_SoftwareIdentity",
        "CIM_Chassis",
        "CIM_Card",
        "CIM_BIOSElement",
        "CIM_Processor",
        "CIM_Chip",
        "CIM_PhysicalMemory",
        "CIM_MediaAccessDevice",
    ]
    assert "DestinationUnreachable" in result["missing"][0]["reason"]


async def test_a_class_with_nonsense_is_missing_and_the_rest_is_there() -> None:
    device = FakeDevice(
        {
            "CIM_PhysicalMemory": [{"Capacity": "much"}],
            "CIM_Processor": [{"DeviceID": "CPU 0", "MaxClockSpeed": "2400"}],
        }
    )
    result = await run(device, "inventory.get")
    assert "memory" not in result
    assert result["processors"][0]["max_clock"] == 2400
    assert result["processors"][0]["brand"] == ""
    reasons = {each["class"]: each["reason"] for each in result["missing"]}
    assert "'much'" in reasons["CIM_PhysicalMemory"]


async def test_old_firmware_tells_the_speed_elsewhere() -> None:
    modules = [{"Speed": "1333", "IsSpeedInMhz": "true"}, {"Speed": "60"}]
    result = await run(FakeDevice({"CIM_PhysicalMemory": list(modules)}), "inventory.get")
    assert [module["speed"] for module in result["memory"]] == [1333, None]


async def test_progress_names_each_class() -> None:
    steps: list[str] = []
    context = Context(sleep=no_sleep, progress=lambda done, total, step: steps.append(step))
    await run(FakeDevice(), "inventory.get", context)
    assert len(steps) == 9
    assert "reading CIM_Chassis" in steps
