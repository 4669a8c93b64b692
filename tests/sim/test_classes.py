from uuid import UUID

from gwmodule.sim.classes import identify, resources
from gwmodule.sim.machine import Machine, Nic, Provisioning

PC = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")


def test_every_class_is_listed_under_its_own_name() -> None:
    for name, resource in resources(Machine(PC, "x", now=0.0)).items():
        assert resource.name == name
        assert resource.uri.endswith(f"/{name}")
        # A PC begins without alarms.
        assert resource.instances() or name == "IPS_AlarmClockOccurrence"


def test_instances_follow_the_machine() -> None:
    pc = Machine(PC, "x", now=0.0, provisioning=Provisioning.SETUP)
    service = resources(pc)["AMT_SetupAndConfigurationService"]
    assert service.instances()[0]["ProvisioningState"] == 0
    pc.activate()
    assert service.instances()[0]["ProvisioningState"] == 2


def test_the_port_shows_address_and_gateway_when_they_are_known() -> None:
    nic = Nic(bytes.fromhex("c8d9d27a1e33"), "192.0.2.10", gateway="192.0.2.1")
    pc = Machine(PC, "x", now=0.0, nic=nic)
    [port] = resources(pc)["AMT_EthernetPortSettings"].instances()
    assert port["MACAddress"] == "c8-d9-d2-7a-1e-33"
    assert (port["IPAddress"], port["DefaultGateway"]) == ("192.0.2.10", "192.0.2.1")


def test_identify_names_the_version() -> None:
    assert identify(Machine(PC, "x", now=0.0))["ProductVersion"] == "AMT 12.0.67"
