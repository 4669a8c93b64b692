import base64
from uuid import UUID
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwmodule.sim.classes import identify, resources
from gwmodule.sim.machine import Machine, PowerState
from gwmodule.sim.profiles import PROFILES
from gwmodule.sim.wsman import (
    IDENTITY,
    MAX_CONTEXTS,
    Element,
    Properties,
    Reference,
    Resource,
    WsmanServer,
    class_uri,
    parse_xml,
)

PC = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
TRANSFER = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
ENUMERATION = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
ENVELOPE = (
    '<?xml version="1.0" encoding="utf-8"?>'
    '<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"'
    ' xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing"'
    ' xmlns:w="http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"><s:Header>'
    "<a:Action>{action}</a:Action><a:To>/wsman</a:To><w:ResourceURI>{uri}</w:ResourceURI>"
    "<a:MessageID>{message_id}</a:MessageID>{selectors}</s:Header><s:Body>{body}</s:Body></s:Envelope>"
)


def envelope(
    name: str, action: str, body: str = "", selectors: dict[str, str] | None = None
) -> bytes:
    chosen = "".join(
        f'<w:Selector Name="{key}">{escape(value)}</w:Selector>'
        for key, value in (selectors or {}).items()
    )
    uri = class_uri(name)
    return ENVELOPE.format(
        action=action if action.startswith("http") else f"{uri}/{action}",
        uri=uri,
        message_id=7,
        selectors=f"<w:SelectorSet>{chosen}</w:SelectorSet>" if chosen else "",
        body=body,
    ).encode()


def get(name: str, selectors: dict[str, str] | None = None) -> bytes:
    return envelope(name, f"{TRANSFER}/Get", selectors=selectors)


def invoke(name: str, method: str, arguments: str = "") -> bytes:
    body = f'<h:{method}_INPUT xmlns:h="{class_uri(name)}">{arguments}</h:{method}_INPUT>'
    return envelope(name, method, body)


@pytest.fixture
def pc() -> Machine:
    return Machine(PC, "P@ssw0rd", now=0.0)


@pytest.fixture
def server(pc: Machine) -> WsmanServer:
    return WsmanServer(resources(pc), identify(pc))


def answer(server: WsmanServer, request: bytes, status: int = 200) -> Element:
    got, body = server.respond(request, 0.0)
    assert got == status, body
    # The short form makes MeshCentral fail.
    assert b"/>" not in body
    return parse_xml(body)


def instance(server: WsmanServer, name: str) -> Element:
    found = answer(server, get(name)).find("Body", name)
    assert found is not None
    return found


def test_an_answer_has_the_header_of_real_firmware(server: WsmanServer) -> None:
    header = answer(server, get("AMT_GeneralSettings")).find("Header")
    assert header is not None
    assert header.read("RelatesTo") == "7"
    assert header.read("Action") == f"{TRANSFER}/GetResponse"
    assert header.read("MessageID").startswith("uuid:00000000-8086-8086-8086-0000000000")
    assert header.read("ResourceURI") == class_uri("AMT_GeneralSettings")


def test_the_uuid_comes_as_raw_bytes_and_as_hex_digits(server: WsmanServer) -> None:
    reply = answer(server, invoke("AMT_SetupAndConfigurationService", "GetUuid"))
    # The pair that proves the byte order (reference/amt-protocols.md 3.4).
    assert reply.read("Body", "GetUuid_OUTPUT", "UUID") == "E67jVdK/u2EXoIiu3XA36g=="
    assert UUID(bytes_le=base64.b64decode("E67jVdK/u2EXoIiu3XA36g==")) == PC
    package = instance(server, "CIM_ComputerSystemPackage")
    assert package.read("PlatformGUID") == "13AEE355D2BFBB6117A088AEDD7037EA"


def test_the_power_state_and_what_may_be_asked_of_it(server: WsmanServer) -> None:
    power = instance(server, "CIM_AssociatedPowerManagementService")
    assert power.read("PowerState") == "2"
    offered = [c.text for c in power.children if c.local == "AvailableRequestedPowerStates"]
    assert offered == ["10", "8", "5", "11", "4", "7", "14", "12"]
    user = power.find("UserOfService", "ReferenceParameters")
    assert user is not None
    assert user.read("ResourceURI").endswith("/CIM_ComputerSystem")


def test_a_power_request_reaches_the_machine(server: WsmanServer, pc: Machine) -> None:
    request = invoke(
        "CIM_PowerManagementService",
        "RequestPowerStateChange",
        "<h:PowerState>8</h:PowerState>",
    )
    reply = answer(server, request)
    assert reply.read("Body", "RequestPowerStateChange_OUTPUT", "ReturnValue") == "0"
    assert pc.power is PowerState.OFF
    reply = answer(server, request)
    assert reply.read("Body", "RequestPowerStateChange_OUTPUT", "ReturnValue") == "4097"


@pytest.mark.parametrize("value", ["", "on", "-1", "99", "9" * 5000])
def test_a_power_value_that_is_none_is_an_invalid_parameter(
    server: WsmanServer, value: str
) -> None:
    request = invoke(
        "CIM_PowerManagementService",
        "RequestPowerStateChange",
        f"<h:PowerState>{value}</h:PowerState>",
    )
    reply = answer(server, request)
    assert reply.read("Body", "RequestPowerStateChange_OUTPUT", "ReturnValue") == "5"


def test_a_method_is_called_on_the_instance_that_the_selectors_name(server: WsmanServer) -> None:
    name = "AMT_SetupAndConfigurationService"
    body = f'<h:GetUuid_INPUT xmlns:h="{class_uri(name)}"/>'
    answer(server, envelope(name, "GetUuid", body, {"SystemName": "Intel(r) AMT"}))
    wrong = envelope(name, "GetUuid", body, {"SystemName": "another"})
    assert fault(server, wrong) == "c:InvalidSelectors"


def test_the_settings_name_realm_and_port(server: WsmanServer, pc: Machine) -> None:
    assert instance(server, "AMT_GeneralSettings").read("DigestRealm") == pc.realm
    port = instance(server, "AMT_EthernetPortSettings")
    assert port.read("MACAddress") == "02-ae-dd-70-37-ea"
    assert [c.text for c in port.children if c.local == "LinkPolicy"] == ["1", "14"]


@pytest.mark.parametrize(
    "name", ["CIM_Chassis", "AMT_RedirectionService", "CIM_PowerManagementService"]
)
def test_other_singletons_answer(server: WsmanServer, name: str) -> None:
    assert instance(server, name).read("CreationClassName") == name


def pull(context: str, count: str = "999") -> bytes:
    body = (
        f'<n:Pull xmlns:n="{ENUMERATION}"><n:EnumerationContext>{context}</n:EnumerationContext>'
        f"<n:MaxElements>{count}</n:MaxElements></n:Pull>"
    )
    return envelope("CIM_SoftwareIdentity", f"{ENUMERATION}/Pull", body)


def enumerate_context(server: WsmanServer) -> str:
    request = envelope("CIM_SoftwareIdentity", f"{ENUMERATION}/Enumerate", "<Enumerate/>")
    return answer(server, request).read("Body", "EnumerateResponse", "EnumerationContext")


def test_versions_are_enumerated_and_pulled_to_the_end(server: WsmanServer) -> None:
    response = answer(server, pull(enumerate_context(server))).find("Body", "PullResponse")
    assert response is not None
    items = response.find("Items")
    assert items is not None
    versions = {item.read("InstanceID"): item.read("VersionString") for item in items.children}
    assert versions["AMT"] == "12.0.67"
    assert versions["VendorID"] == "8086"
    assert len(versions) == 11
    assert response.find("EndOfSequence") is not None


@pytest.mark.parametrize("count", ["4", ""])
def test_a_long_enumeration_is_pulled_in_pieces(server: WsmanServer, count: str) -> None:
    context, seen = enumerate_context(server), 0
    while context:
        response = answer(server, pull(context, count)).find("Body", "PullResponse")
        assert response is not None
        items = response.find("Items")
        assert items is not None
        seen += len(items.children)
        context = response.read("EnumerationContext")
    assert seen == 11


def fault(server: WsmanServer, request: bytes) -> str:
    reply = answer(server, request, status=400)
    assert reply.find("Body", "Nonsense", "Value") is None
    assert reply.read("Header", "Action").endswith("/addressing/fault")
    assert reply.read("Body", "Fault", "Reason", "Text")
    return reply.read("Body", "Fault", "Code", "Subcode", "Value")


def test_an_enumeration_context_is_good_once_and_not_for_ever(server: WsmanServer) -> None:
    context = enumerate_context(server)
    for _ in range(MAX_CONTEXTS):
        enumerate_context(server)
    assert fault(server, pull(context)) == "g:InvalidEnumerationContext"
    assert fault(server, pull("x")) == "g:InvalidEnumerationContext"


def test_an_unknown_class_is_no_destination(server: WsmanServer) -> None:
    assert fault(server, get("CIM_Nonsense")) == "b:DestinationUnreachable"


def test_wrong_selectors_are_a_fault(server: WsmanServer) -> None:
    selectors = {"InstanceID": "Intel(r) AMT: General Settings"}
    answer(server, get("AMT_GeneralSettings", selectors))
    assert fault(server, get("AMT_GeneralSettings", {"InstanceID": "x"})) == "c:InvalidSelectors"
    assert fault(server, get("AMT_GeneralSettings", {"Nonsense": "x"})) == "c:InvalidSelectors"
    assert fault(server, get("CIM_SoftwareIdentity")) == "c:InvalidSelectors"


def test_an_unknown_method_is_a_fault(server: WsmanServer) -> None:
    request = invoke("CIM_PowerManagementService", "Explode")
    assert fault(server, request) == "b:ActionNotSupported"


def test_a_method_without_its_input_is_a_fault(server: WsmanServer) -> None:
    request = envelope("AMT_SetupAndConfigurationService", "GetUuid")
    assert fault(server, request) == "c:SchemaValidationError"


def test_what_cannot_be_put_is_a_fault(server: WsmanServer) -> None:
    request = envelope("CIM_Chassis", f"{TRANSFER}/Put")
    assert fault(server, request) == "b:ActionNotSupported"


def test_a_class_may_be_put() -> None:
    stored = {"InstanceID": "one", "Name": "before"}

    def put(chosen: Properties, sent: Element) -> None:
        stored["Name"] = sent.read("Name")

    note = Resource("AMT_Note", lambda: [stored], put=put)
    server = WsmanServer({"AMT_Note": note}, {})
    body = f'<h:AMT_Note xmlns:h="{note.uri}"><h:Name>a &lt; b</h:Name></h:AMT_Note>'
    reply = answer(server, envelope("AMT_Note", f"{TRANSFER}/Put", body))
    assert reply.read("Body", "AMT_Note", "Name") == stored["Name"] == "a < b"
    assert fault(server, envelope("AMT_Note", f"{TRANSFER}/Put")) == "c:SchemaValidationError"


def test_identify_needs_no_header(server: WsmanServer) -> None:
    request = (
        '<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"><s:Body>'
        f'<i:Identify xmlns:i="{IDENTITY}"/></s:Body></s:Envelope>'
    )
    reply = answer(server, request.encode())
    assert reply.read("Body", "IdentifyResponse", "ProductVersion") == "AMT 12.0.67"


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<a>", id="not well-formed"),
        pytest.param(b"<a/>", id="no envelope"),
        pytest.param(b"<a>" * 100 + b"</a>" * 100, id="too deep"),
        pytest.param(b"<a>" + b"<b/>" * 5000 + b"</a>", id="too many"),
        pytest.param(b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', id="entities"),
        pytest.param(b'<?xml version="1.0" encoding="nonsense"?><a/>', id="encoding"),
    ],
)
def test_what_is_no_envelope_is_a_fault(server: WsmanServer, request_: bytes) -> None:
    assert fault(server, request_).startswith("c:")


@given(st.binary(max_size=200), st.integers(0, 600))
def test_no_request_raises(garbage: bytes, cut: int) -> None:
    pc = Machine(PC, "P@ssw0rd", now=0.0)
    server = WsmanServer(resources(pc), identify(pc))
    good = get("AMT_GeneralSettings")
    for request in (garbage, good[:cut] + garbage, good[:cut] + garbage + good[cut:]):
        status, _ = server.respond(request, 0.0)
        assert status in (200, 400)


def test_an_instance_is_created_and_deleted() -> None:
    notes: list[Properties] = []

    def create(sent: Element) -> Reference:
        notes.append({"InstanceID": sent.read("InstanceID")})
        return Reference("AMT_Note", (("InstanceID", sent.read("InstanceID")),))

    note = Resource("AMT_Note", lambda: notes, create=create, delete=notes.remove)
    server = WsmanServer({"AMT_Note": note}, {})
    body = f'<h:AMT_Note xmlns:h="{note.uri}"><h:InstanceID>one</h:InstanceID></h:AMT_Note>'
    reply = answer(server, envelope("AMT_Note", f"{TRANSFER}/Create", body))
    created = reply.find("Body")
    assert created is not None
    assert created.selectors("ResourceCreated") == {"InstanceID": "one"}
    assert fault(server, envelope("AMT_Note", f"{TRANSFER}/Create")) == "c:SchemaValidationError"
    delete = f"{TRANSFER}/Delete"
    wrong = envelope("AMT_Note", delete, selectors={"InstanceID": "two"})
    assert fault(server, wrong) == "c:InvalidSelectors"
    reply = answer(server, envelope("AMT_Note", delete, selectors={"InstanceID": "one"}))
    assert reply.find("Body", "Fault") is None
    assert notes == []


def test_a_selector_may_have_a_namespace(server: WsmanServer) -> None:
    title = "Intel(r) AMT: General Settings"
    request = get("AMT_GeneralSettings", {"InstanceID": title})
    answer(server, request.replace(b' Name="', b' w:Name="'))


def test_a_time_is_written_in_the_common_namespace(server: WsmanServer) -> None:
    bios = instance(server, "CIM_BIOSElement")
    released = bios.find("ReleaseDate", "Datetime")
    assert released is not None
    assert released.name == "{http://schemas.dmtf.org/wbem/wscim/1/common}Datetime"


def test_a_small_page_is_all_a_pull_gets(pc: Machine) -> None:
    server = WsmanServer(resources(pc), identify(pc), page=1)
    response = answer(server, pull(enumerate_context(server))).find("Body", "PullResponse")
    assert response is not None
    items = response.find("Items")
    assert items is not None
    assert len(items.children) == 1
    assert response.read("EnumerationContext")


def test_instances_of_subclasses_go_by_their_own_names(server: WsmanServer) -> None:
    name = "CIM_PhysicalPackage"
    begun = answer(server, envelope(name, f"{ENUMERATION}/Enumerate", "<Enumerate/>"))
    context = begun.read("Body", "EnumerateResponse", "EnumerationContext")
    body = (
        f'<n:Pull xmlns:n="{ENUMERATION}"><n:EnumerationContext>{context}</n:EnumerationContext>'
        "<n:MaxElements>9</n:MaxElements></n:Pull>"
    )
    items = answer(server, envelope(name, f"{ENUMERATION}/Pull", body)).find(
        "Body", "PullResponse", "Items"
    )
    assert items is not None
    names = [item.name for item in items.children]
    assert names[0] == f"{{{class_uri('CIM_Card')}}}CIM_Card"
    assert len(names) == 5


METHODS = [
    (name, method)
    for profile in ("amt11", "amt16")
    for name, resource in resources(Machine(PC, "x", now=0.0, profile=PROFILES[profile])).items()
    for method in resource.methods
]


ARGUMENTS = [
    *("PowerState", "Role", "Source", "RequestedState", "SessionType", "IterationIdentifier"),
    *("MaxReadRecords", "StartIndex", "OptInCode", "AlarmTemplate", "Ta0", "Tm1", "Tm2"),
    *("SessionHandle", "CallerUUID", "BlockHandle", "ByteOffset", "ByteCount", "Data"),
    *("BytesRequested", "Handle", "TotalAllocationSize", "EnterpriseName"),
]


@settings(max_examples=300)
@given(
    st.sampled_from(METHODS),
    st.dictionaries(
        st.sampled_from(ARGUMENTS),
        st.text("0123456789abcdef-=.\u0660é <&", max_size=40) | st.integers().map(str),
    ),
)
def test_no_argument_of_any_method_raises(
    chosen: tuple[str, str], arguments: dict[str, str]
) -> None:
    name, method = chosen
    given_ = "".join(f"<h:{k}>{escape(v)}</h:{k}>" for k, v in arguments.items())
    for profile in ("amt11", "amt16"):
        pc = Machine(PC, "P@ssw0rd", now=0.0, profile=PROFILES[profile])
        status, _ = WsmanServer(resources(pc), {}).respond(invoke(name, method, given_), 0.0)
        assert status in (200, 400)
