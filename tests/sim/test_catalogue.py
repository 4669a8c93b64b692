"""Every function of the catalogue against the simulated PC: one does not know the other's code."""

import base64
from typing import Any
from uuid import UUID

import pytest

from gwmodule.amt.functions import CATALOGUE, Context, NotSupported, find, validate
from gwmodule.amt.functions.schema import REQUIRED
from gwmodule.amt.redirection import SessionKind
from gwmodule.errors import DeviceRefused, WsmanFault
from gwmodule.sim.machine import Machine, PowerState
from gwmodule.sim.profiles import PROFILES, Feature
from gwmodule.sim.serial import Software
from tests.sim.direct import Direct

PC = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
WALL = 1_750_000_000.0
WSMAN_PROFILES = [name for name, each in PROFILES.items() if each.has(Feature.WSMAN)]


def machine(profile: str = "amt12", **changes: Any) -> Machine:
    return Machine(PC, "P@ssw0rd", now=0.0, wall=WALL, profile=PROFILES[profile], **changes)


async def call(pc: Machine | Direct, name: str, /, **arguments: Any) -> dict[str, Any]:
    client = pc if isinstance(pc, Direct) else Direct(pc)

    async def sleep(seconds: float) -> None:
        client.pass_time(seconds)

    function = find(name)
    return await function.run(client, validate(function, arguments), Context(sleep, uuid=PC))


# What only some generations have, or wants arguments, has a test of its own below.
READING = [
    function.name
    for function in CATALOGUE.values()
    if not function.changes_state
    and all(argument.default is not REQUIRED for argument in function.arguments)
    and function.name != "consent.get"
]


@pytest.mark.parametrize("profile", WSMAN_PROFILES)
@pytest.mark.parametrize("name", READING)
async def test_every_reading_function_works_on_every_generation(profile: str, name: str) -> None:
    pc = machine(profile)
    if name == "alarm.list" and not pc.profile.has(Feature.ALARMS):
        with pytest.raises((NotSupported, WsmanFault)):
            await call(pc, name)
        return
    result = await call(pc, name)
    declared = {field.name for field in find(name).result if "." not in field.name}
    assert declared <= result.keys()


async def test_an_inventory_misses_nothing() -> None:
    result = await call(machine(), "inventory.get")
    assert result["missing"] == []
    assert result["uuid"] == str(PC)
    assert [module["size"] for module in result["memory"]] == [4 << 30, 4 << 30]
    assert result["processors"][0]["brand"].startswith("Intel")
    assert result["bios"][0]["released"] == "2020-08-10T00:00:00Z"


@pytest.mark.parametrize(
    ("device", "software"),
    [
        ("pxe", Software.NETWORK),
        ("cd", Software.DISC),
        ("hdd", Software.SYSTEM),
        ("bios", Software.SETUP),
    ],
)
async def test_a_boot_comes_from_where_it_was_sent_and_only_once(
    device: str, software: Software
) -> None:
    pc = Direct(machine())
    await call(pc, "boot.once", device=device)
    pc.pass_time(30.0)
    assert pc.machine.serial.software is software
    await call(pc, "power.set", state="reset")
    pc.pass_time(30.0)
    assert pc.machine.serial.software is Software.SYSTEM


async def test_a_boot_with_sol_shows_a_silent_bios() -> None:
    pc = Direct(machine(bios_speaks=False))
    pc.machine.open_session(SessionKind.SOL)
    for sol in (False, True):
        await call(pc, "boot.once", device="pxe", sol=sol)
        pc.pass_time(30.0)
        assert (b"8192 MB OK" in pc.machine.data_to_send(65536)) is sol


async def test_what_a_pc_cannot_boot_is_refused_with_its_name() -> None:
    with pytest.raises(NotSupported, match="ForceDiagnosticBoot"):
        await call(machine("amt12"), "boot.once", device="diagnostics")
    pc = Direct(machine("amt16"))
    await call(pc, "boot.once", device="uefi-https", url="https://msp.example/image.efi")
    pc.pass_time(30.0)
    assert pc.machine.serial.software is Software.NETWORK


@pytest.mark.parametrize(
    ("state", "power"),
    [("off", PowerState.OFF), ("cycle", PowerState.ON), ("sleep", PowerState.SLEEP)],
)
async def test_a_power_request_is_verified(state: str, power: PowerState) -> None:
    pc = Direct(machine())
    result = await call(pc, "power.set", state=state, wait=20)
    assert result["verified"]
    assert pc.machine.power is power


async def test_the_event_log_grows_and_is_cleared() -> None:
    pc = Direct(machine())
    pc.machine.open_session(SessionKind.SOL)
    await call(pc, "power.set", state="reset")
    pc.pass_time(30.0)
    texts = [record["text"] for record in (await call(pc, "eventlog.get"))["records"]]
    assert texts == [
        "firmware progress: starting the operating system's boot process",
        "firmware progress: PCI resource configuration",
        "Serial-over-LAN session opened",
    ]
    await call(pc, "eventlog.clear")
    assert (await call(pc, "eventlog.get"))["records"] == []


async def test_a_full_event_log_comes_whole() -> None:
    pc = machine()
    pc.events.fill(pc.seconds)
    records = (await call(pc, "eventlog.get"))["records"]
    assert len(records) == 390
    assert records[0]["time"] > records[-1]["time"]


async def test_the_audit_log_tells_who_did_what_over_several_pages() -> None:
    pc = Direct(machine())
    for _ in range(12):
        await call(pc, "power.set", state="reset")
    await call(pc, "boot.once", device="pxe")
    result = await call(pc, "auditlog.get")
    texts = [record["text"] for record in result["records"]]
    assert texts == ["reset"] * 12 + ["boot options set", "reset"]
    assert {record["initiator"] for record in result["records"]} == {"admin"}


async def test_the_listener_is_switched() -> None:
    pc = machine()
    result = await call(pc, "redirection.set", listener=False, sol=False)
    assert (result["listener"], result["sol"]) == (False, False)
    assert not pc.remote.listener
    result = await call(pc, "redirection.set", listener=True, sol=True, ider=True)
    assert result["state"] == 32771


async def test_kvm_is_switched() -> None:
    pc = machine()
    assert (await call(pc, "kvm.set", enabled=True))["kvm"]
    assert not (await call(pc, "kvm.set", enabled=False))["kvm"]


async def test_consent_is_given_with_the_code_on_the_screen() -> None:
    pc = machine("ccm")
    assert (await call(pc, "consent.get"))["required"] == 0xFFFFFFFF
    with pytest.raises(WsmanFault, match="consent"):
        await call(pc, "boot.once", device="pxe")
    assert (await call(pc, "consent.start"))["state"] == 2
    wrong = (int(pc.consent.code) + 1) % 1_000_000
    with pytest.raises(DeviceRefused, match="failed"):
        await call(pc, "consent.send", code=wrong)
    assert (await call(pc, "consent.send", code=int(pc.consent.code)))["state"] == 3
    await call(pc, "boot.once", device="pxe")
    assert (await call(pc, "consent.cancel"))["state"] == 0


async def test_an_alarm_switches_the_pc_on() -> None:
    pc = Direct(machine())
    await call(pc, "alarm.add", name="early", time=int(WALL) + 600, interval=60)
    [alarm] = (await call(pc, "alarm.list"))["alarms"]
    assert (alarm["name"], alarm["interval"]) == ("early", 60)
    await call(pc, "power.set", state="off")
    pc.pass_time(601.0)
    assert pc.machine.power is PowerState.ON
    await call(pc, "alarm.delete", name="early")
    assert (await call(pc, "alarm.list"))["alarms"] == []


async def test_the_clock_is_set() -> None:
    pc = Direct(machine())
    await call(pc, "time.sync", time=int(WALL) + 1000)
    pc.pass_time(5.0)
    assert (await call(pc, "time.get"))["time"] == int(WALL) + 1005


async def test_what_is_written_into_storage_is_read_again() -> None:
    pc = machine("amt11")
    mine = {"enterprise": "Contoso"}
    block = (await call(pc, "nvm.allocate", size=8192, name="notes", **mine))["block"]
    data = base64.b64encode(bytes(range(256)) * 20).decode()
    written = await call(pc, "nvm.write", block=block, data=data, offset=100, **mine)
    assert written["complete"]
    read = await call(pc, "nvm.read", block=block, offset=100, size=5120, **mine)
    assert read["data"] == data
    listed = await call(pc, "nvm.list", **mine)
    assert [each["name"] for each in listed["blocks"]] == ["notes"]
    assert listed["available"] == 8192
    await call(pc, "nvm.free", block=block, **mine)
    assert (await call(pc, "nvm.list", **mine))["blocks"] == []


async def test_storage_ended_with_amt_11() -> None:
    with pytest.raises(NotSupported):
        await call(machine("amt12"), "nvm.list", enterprise="Contoso")


async def test_any_class_can_be_asked_for() -> None:
    pc = machine()
    for name in ("CIM_PhysicalPackage", "CIM_SystemPackaging", "CIM_PowerManagementCapabilities"):
        result = await call(pc, "wsman.enumerate", **{"class": name})
        assert result["instances"]
