import pytest

from gwmodule.amt.functions import NotSupported
from gwmodule.errors import DeviceRefused
from tests.amt.device import FakeDevice, run

SERVICE = "AMT_RedirectionService"
KVM = "CIM_KVMRedirectionSAP"
OPT_IN = "IPS_OptInService"


def device_with(state: int = 32768, listener: str = "false", *, kvm: bool = True) -> FakeDevice:
    instances = {SERVICE: [{"EnabledState": str(state), "ListenerEnabled": listener, "Name": "x"}]}
    if kvm:
        instances[KVM] = [{"EnabledState": "3"}]
        instances["IPS_KVMRedirectionSettingData"] = [
            {"Is5900PortEnabled": "false", "OptInPolicy": "true"}
        ]
    device = FakeDevice(instances)

    def request(cls: str, value: object) -> dict[str, str]:
        device.instances[cls][0]["EnabledState"] = str(value)
        return {"ReturnValue": "0"}

    for cls in (SERVICE, KVM) if kvm else (SERVICE,):
        name = f"{cls}.RequestStateChange"
        device.methods[name] = lambda a, cls=cls: request(cls, a["RequestedState"])  # type: ignore[misc]
    return device


async def test_all_of_redirection_is_told_at_once() -> None:
    result = await run(device_with(32770, "true"), "redirection.get")
    assert (result["state_name"], result["sol"], result["ider"]) == ("SOL", True, False)
    assert result["listener"] is True
    assert (result["kvm"], result["kvm_state_name"]) == (False, "disabled")
    assert result["kvm_consent"] is True


async def test_a_pc_without_kvm_tells_the_rest() -> None:
    result = await run(device_with(kvm=False), "redirection.get")
    assert (result["sol"], result["kvm"], result["kvm_state"]) == (False, None, None)


async def test_enabling_sol_opens_the_listener_too() -> None:
    device = device_with(32769)
    result = await run(device, "redirection.set", sol=True, listener=True)
    assert (result["sol"], result["ider"], result["listener"]) == (True, True, True)
    assert device.arguments == [{"RequestedState": 32771}]
    assert device.put_instances == [{"EnabledState": "32771", "ListenerEnabled": True, "Name": "x"}]


async def test_what_is_not_given_or_already_so_is_not_touched() -> None:
    device = device_with(32771, "true")
    result = await run(device, "redirection.set", sol=True, listener=True)
    assert (result["sol"], result["ider"]) == (True, True)
    assert device.arguments == []
    assert device.put_instances == []


async def test_switching_one_off_leaves_the_other() -> None:
    result = await run(device_with(32771), "redirection.set", ider=False)
    assert (result["sol"], result["ider"]) == (True, False)


async def test_kvm_is_switched_and_read_back() -> None:
    result = await run(device_with(), "kvm.set", enabled=True)
    assert (result["kvm"], result["kvm_state"]) == (True, 2)


async def test_kvm_that_is_not_there_is_named_so() -> None:
    with pytest.raises(NotSupported, match="no KVM"):
        await run(device_with(kvm=False), "kvm.set", enabled=True)


def consent(state: int = 0, value: int = 0) -> FakeDevice:
    device = FakeDevice({OPT_IN: [{"OptInRequired": "4294967295", "OptInState": str(state)}]})
    for method in ("StartOptIn", "SendOptInCode", "CancelOptIn"):
        device.methods[f"{OPT_IN}.{method}"] = lambda arguments: {"ReturnValue": str(value)}
    return device


async def test_consent_has_names_and_numbers() -> None:
    result = await run(consent(2), "consent.get")
    assert (result["required"], result["required_name"]) == (0xFFFFFFFF, "always")
    assert (result["state"], result["state_name"]) == (2, "code shown to the user")


async def test_the_code_is_sent_as_a_number() -> None:
    device = consent(3)
    result = await run(device, "consent.send", code="012345")
    assert device.arguments == [{"OptInCode": 12345}]
    assert result["state_name"] == "code accepted"


@pytest.mark.parametrize("name", ["consent.start", "consent.cancel"])
async def test_consent_out_of_turn_is_refused_with_its_own_meaning(name: str) -> None:
    with pytest.raises(DeviceRefused, match=r"2.*invalid state"):
        await run(consent(value=2), name)


async def test_firmware_without_consent_is_named_so() -> None:
    with pytest.raises(NotSupported, match="no user consent"):
        await run(FakeDevice(), "consent.get")
