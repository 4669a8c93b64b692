from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.sim.boot import BootSource
from gwmodule.sim.eoi import NAMESPACES, SOAP11, EoiServer
from gwmodule.sim.machine import Machine, PowerState
from gwmodule.sim.profiles import PROFILES
from gwmodule.sim.wsman import Element, parse_xml
from tests.sim.test_wsman import PC

REMOTE, NETWORK = "/RemoteControlService", "/NetworkAdministrationService"


@pytest.fixture
def pc() -> Machine:
    return Machine(PC, "x", now=0.0, profile=PROFILES["amt6"], serial_pace=0.0)


def envelope(path: str, call: str, **arguments: object) -> bytes:
    inner = "".join(f"<{k}>{escape(str(v))}</{k}>" for k, v in arguments.items())
    return (
        f'<s:Envelope xmlns:s="{SOAP11}"><s:Body>'
        f'<{call} xmlns="{NAMESPACES[path]}">{inner}</{call}></s:Body></s:Envelope>'
    ).encode()


def ask(pc: Machine, path: str, call: str, **arguments: object) -> Element:
    status, body = EoiServer(pc).respond(path, envelope(path, call, **arguments), 0.0)
    assert status == 200, body
    answer = parse_xml(body).find("Body", f"{call}Response")
    assert answer is not None
    assert answer.name == f"{{{NAMESPACES[path]}}}{call}Response"
    assert answer.children[0].local == "Status", "clients take the rest by its place"
    return answer


def control(pc: Machine, command: int, **arguments: object) -> int:
    wanted = {"Command": command, "IanaOemNumber": 343, **arguments}
    return ask(pc, REMOTE, "RemoteControl", **wanted).number("Status")


def test_the_power_state_is_the_machines(pc: Machine) -> None:
    assert ask(pc, REMOTE, "GetSystemPowerState").read("SystemPowerState") == "0"
    assert control(pc, 18) == 0
    assert pc.power is PowerState.OFF
    assert ask(pc, REMOTE, "GetSystemPowerState").read("SystemPowerState") == "5"


@pytest.mark.parametrize(("command", "boots"), [(16, 1), (19, 0)])
def test_the_pc_is_reset_or_cycled(pc: Machine, command: int, boots: int) -> None:
    assert control(pc, command) == 0
    assert pc.boots == boots


@pytest.mark.parametrize(
    ("special", "source"),
    [
        (1, BootSource.NETWORK),
        (2, BootSource.HARD_DRIVE),
        (4, BootSource.DIAGNOSTIC),
        (5, BootSource.DISC),
        (0, None),
    ],
)
def test_a_special_command_chooses_the_boot(
    pc: Machine, special: int, source: BootSource | None
) -> None:
    assert control(pc, 16, SpecialCommand=special) == 0
    assert pc.last_plan.source is source


def test_the_oem_command_enters_the_setup_with_sol(pc: Machine) -> None:
    arguments = {"SpecialCommand": 0xC1, "SpecialCommandParameter": 8, "OEMparameters": 1}
    assert control(pc, 16, **arguments) == 0
    assert pc.last_plan.setup
    assert pc.last_plan.sol


@pytest.mark.parametrize(
    ("command", "arguments", "status"),
    [
        (99, {}, 0x803),
        (16, {"IanaOemNumber": 1}, 0x801),
        (16, {"SpecialCommand": 3}, 0x804),
        (17, {}, 1),
    ],
)
def test_what_cannot_be_done_has_a_status(
    pc: Machine, command: int, arguments: dict[str, object], status: int
) -> None:
    assert control(pc, command, **arguments) == status
    assert pc.boots == 0


def test_the_network_port_is_described(pc: Machine) -> None:
    assert ask(pc, NETWORK, "EnumerateInterfaces").read("InterfaceHandle") == "0"
    port = ask(pc, NETWORK, "GetInterfaceSettings", InterfaceHandle=0)
    mask = port.read("InterfaceDescriptor", "IPv4Parameters", "SubnetMask")
    assert mask == str(0xFFFFFF00)
    assert ask(pc, NETWORK, "GetInterfaceSettings", InterfaceHandle=1).read("Status") == "36"


def test_names_and_version_are_told(pc: Machine) -> None:
    version = ask(pc, "/SecurityAdministrationService", "GetCoreVersion")
    assert version.read("Version") == "6.2.61"
    assert ask(pc, NETWORK, "GetHostName").read("HostName") == "pc"
    assert ask(pc, NETWORK, "GetDomainName").read("DomainName") == "example.net"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<a/>",
        f'<s:Envelope xmlns:s="{SOAP11}"><s:Body/></s:Envelope>'.encode(),
        envelope(REMOTE, "Explode"),
        envelope(NETWORK, "GetSystemPowerState"),
    ],
)
def test_what_is_no_call_is_a_fault(pc: Machine, body: bytes) -> None:
    status, answer = EoiServer(pc).respond(REMOTE, body, 0.0)
    assert status == 500
    assert parse_xml(answer).read("Body", "Fault", "faultcode") == "s:Client"


@given(st.sampled_from(sorted(NAMESPACES)), st.binary(max_size=100), st.integers(0, 300))
def test_no_request_raises(path: str, garbage: bytes, cut: int) -> None:
    server = EoiServer(Machine(PC, "x", now=0.0, profile=PROFILES["amt6"]))
    good = envelope(path, "RemoteControl", Command=16, IanaOemNumber=343)
    for request in (garbage, good[:cut] + garbage + good[cut:]):
        status, _ = server.respond(path, request, 0.0)
        assert status in (200, 500)
