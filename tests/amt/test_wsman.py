import codecs
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.amt import wsman
from gwmodule.amt.wsman import Embedded, check_return, class_uri, parse_answer, reference, values
from gwmodule.errors import BadArgument, DeviceAnswerError, DeviceRefused, WsmanFault

SOAP = "{http://www.w3.org/2003/05/soap-envelope}"
ADDRESSING = "{http://schemas.xmlsoap.org/ws/2004/08/addressing}"
WSMAN = "{http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd}"
CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
AMT = "http://intel.com/wbem/wscim/1/amt-schema/1/"
IPS = "http://intel.com/wbem/wscim/1/ips-schema/1/"


def answer(body: str, cls: str = "CIM_Chassis") -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<a:Envelope xmlns:a="http://www.w3.org/2003/05/soap-envelope" '
        'xmlns:b="http://schemas.xmlsoap.org/ws/2004/08/addressing" '
        'xmlns:c="http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd" '
        'xmlns:e="http://schemas.xmlsoap.org/ws/2004/09/enumeration" '
        f'xmlns:g="{class_uri(cls)}" xmlns:h="http://schemas.dmtf.org/wbem/wscim/1/common">'
        "<a:Header><b:Action> urn:x </b:Action></a:Header>"
        f"<a:Body>{body}</a:Body></a:Envelope>"
    ).encode()


# ---- requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "base"), [("CIM_Chassis", CIM), ("AMT_GeneralSettings", AMT), ("IPS_OptInService", IPS)]
)
def test_the_class_chooses_its_schema(cls: str, base: str) -> None:
    assert class_uri(cls) == base + cls


@pytest.mark.parametrize("cls", ["", "Chassis", "CIM_<a>", "cim_Chassis", "CIM_A/B", "CIM_" * 99])
def test_other_names_are_no_classes(cls: str) -> None:
    with pytest.raises(BadArgument):
        class_uri(cls)


def header(data: bytes) -> dict[str, str]:
    found = ElementTree.fromstring(data).find(f"{SOAP}Header")
    assert found is not None
    return {each.tag.rpartition("}")[2]: each.text or "" for each in found}


def body(data: bytes) -> ElementTree.Element:
    found = ElementTree.fromstring(data).find(f"{SOAP}Body")
    assert found is not None
    return found


def test_a_get_names_class_and_message() -> None:
    data = wsman.get("CIM_Chassis", "7", {"Tag": 'a<&"b'})
    assert header(data) | {"ReplyTo": "", "SelectorSet": ""} == {
        "Action": "http://schemas.xmlsoap.org/ws/2004/09/transfer/Get",
        "To": "/wsman",
        "ResourceURI": f"{CIM}CIM_Chassis",
        "MessageID": "7",
        "ReplyTo": "",
        "OperationTimeout": "PT60S",
        "SelectorSet": "",
    }
    selector = ElementTree.fromstring(data).find(f".//{WSMAN}Selector")
    assert selector is not None
    assert (selector.get("Name"), selector.text) == ("Tag", 'a<&"b')
    assert len(body(data)) == 0


def test_a_method_is_called_in_its_class_namespace() -> None:
    system = reference("CIM_ComputerSystem", {"Name": "ManagedSystem"})
    data = wsman.invoke(
        "CIM_PowerManagementService",
        "RequestPowerStateChange",
        "1",
        {"PowerState": 10, "ManagedElement": system},
    )
    namespace = f"{{{CIM}CIM_PowerManagementService}}"
    assert header(data)["Action"] == f"{CIM}CIM_PowerManagementService/RequestPowerStateChange"
    element = body(data)[0]
    assert element.tag == f"{namespace}RequestPowerStateChange_INPUT"
    assert element.findtext(f"{namespace}PowerState") == "10"
    uri = element.findtext(f".//{ADDRESSING}ReferenceParameters/{WSMAN}ResourceURI")
    assert uri == f"{CIM}CIM_ComputerSystem"


def test_an_embedded_instance_keeps_its_own_namespace() -> None:
    occurrence = Embedded("IPS_AlarmClockOccurrence", {"StartTime": {"Datetime": "2030"}})
    data = wsman.invoke("AMT_AlarmClockService", "AddAlarm", "1", {"AlarmTemplate": occurrence})
    start = body(data).find(f".//{{{IPS}IPS_AlarmClockOccurrence}}StartTime")
    assert start is not None
    assert start[0].tag == "{http://schemas.dmtf.org/wbem/wscim/1/common}Datetime"


def test_what_was_read_can_be_put_back() -> None:
    instance = {
        "Text": "a<b>&c",
        "List": ["1", "2"],
        "Nested": {"Datetime": "2020"},
        "Empty": "",
        "Reference": reference("CIM_Chassis", {"Tag": "x"}),
    }
    sent = body(wsman.put("CIM_Chassis", "1", instance, None))[0]
    again = ElementTree.tostring(sent, encoding="unicode")
    assert parse_answer(answer(again)).body == instance


def test_booleans_are_written_as_xml_has_them() -> None:
    data = wsman.put("CIM_Chassis", "1", {"A": True, "B": False, "C": 3, "D": None}, None)
    assert [each.text for each in body(data)[0]] == ["true", "false", "3", None]


@pytest.mark.parametrize("text", ["\0", "\x1b", "\ud800", "￿"])
def test_what_xml_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(BadArgument, match="cannot be written"):
        wsman.put("CIM_Chassis", "1", {"A": text}, None)


@pytest.mark.parametrize("name", ["a b", "<x>", "", "x" * 200])
def test_names_cannot_smuggle_elements(name: str) -> None:
    with pytest.raises(BadArgument):
        wsman.put("CIM_Chassis", "1", {name: "x"}, None)
    with pytest.raises(BadArgument):
        wsman.invoke("CIM_Chassis", name, "1", {})


@given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True), st.text()))
def test_any_text_is_written_so_that_it_is_read_again_or_refused(texts: dict[str, str]) -> None:
    try:
        data = wsman.put("CIM_Chassis", "1", texts, texts)
    except BadArgument:
        return
    # XML itself makes one newline of CR LF, and we cut white space at the ends.
    expected = {k: " ".join(v.split()) for k, v in texts.items()}
    assert {k: " ".join(v.split()) for k, v in parse_answer(data).body.items()} == expected


def test_a_selector_may_be_a_reference() -> None:
    chassis = reference("CIM_Chassis", {"Tag": "x"})
    data = wsman.put("CIM_Chassis", "1", {"R": reference("CIM_Chip", {"Part": chassis})}, None)
    assert parse_answer(data).body["R"]["SelectorSet"] == {"Part": chassis}


@pytest.mark.parametrize("selectors", ["x", ["x"], {"Part": {"Tag": "x"}}])
def test_a_reference_that_is_none_is_refused(selectors: object) -> None:
    broken = {"ResourceURI": "x", "SelectorSet": selectors}
    with pytest.raises(BadArgument, match="elector"):
        wsman.put("CIM_Chassis", "1", {"R": broken}, None)


def test_every_other_request_is_an_envelope() -> None:
    for data, name in (
        (wsman.enumerate_("CIM_Chip", "1"), "Enumerate"),
        (wsman.pull("CIM_Chip", "1", "5E1A"), "Pull"),
        (wsman.delete("CIM_Chip", "1", {"Tag": "x"}), None),
        (wsman.create("CIM_Chip", "1", {"Tag": "x"}), "CIM_Chip"),
        (wsman.identify(), "Identify"),
    ):
        found = [each.tag.rpartition("}")[2] for each in body(data)]
        assert found == ([name] if name else [])


# ---- answers ----------------------------------------------------------------------------------


def test_an_instance_becomes_a_plain_dict() -> None:
    data = answer(
        "<g:CIM_Chassis><g:Empty></g:Empty><g:Short/><g:State> 2 </g:State>"
        "<g:Available>10</g:Available><g:Available>8</g:Available><g:Available>5</g:Available>"
        "<g:ReleaseDate><h:Datetime>2020-08-10T00:00:00Z</h:Datetime></g:ReleaseDate>"
        "<g:System><b:Address>here</b:Address><b:ReferenceParameters><c:ResourceURI>urn:x"
        '</c:ResourceURI><c:SelectorSet><c:Selector Name="Name">pc</c:Selector></c:SelectorSet>'
        "</b:ReferenceParameters></g:System></g:CIM_Chassis>"
    )
    parsed = parse_answer(data)
    assert parsed.action == "urn:x"
    assert parsed.name == "CIM_Chassis"
    assert parsed.body == {
        "Empty": "",
        "Short": "",
        "State": "2",
        "Available": ["10", "8", "5"],
        "ReleaseDate": {"Datetime": "2020-08-10T00:00:00Z"},
        "System": {"Address": "here", "ResourceURI": "urn:x", "SelectorSet": {"Name": "pc"}},
    }


def test_a_page_has_its_items_in_order_and_what_continues_it() -> None:
    items = (
        "<e:Items><g:CIM_Card><g:Tag>1</g:Tag></g:CIM_Card>"
        "<g:CIM_Chip><g:Tag>2</g:Tag></g:CIM_Chip></e:Items>"
    )
    context = "<e:EnumerationContext>D402</e:EnumerationContext>"
    page = parse_answer(answer(f"<e:PullResponse>{context}{items}</e:PullResponse>"))
    assert [item["Tag"] for item in page.items] == ["1", "2"]
    assert page.context == "D402"
    end = "<e:EndOfSequence></e:EndOfSequence>"
    page = parse_answer(answer(f"<e:PullResponse>{context}{items}{end}</e:PullResponse>"))
    assert page.context == ""


def test_an_empty_body_is_an_answer() -> None:
    assert parse_answer(answer("")).name == ""


def test_a_fault_becomes_an_error_without_prefixes() -> None:
    fault = answer(
        "<a:Fault><a:Code><a:Value>a:Sender</a:Value><a:Subcode><a:Value>b:DestinationUnreachable"
        '</a:Value></a:Subcode></a:Code><a:Reason><a:Text xml:lang="en-US">No route.</a:Text>'
        "</a:Reason><a:Detail></a:Detail></a:Fault>"
    )
    with pytest.raises(WsmanFault) as caught:
        parse_answer(fault)
    assert (caught.value.fault_code, caught.value.subcode, caught.value.reason) == (
        "Sender",
        "DestinationUnreachable",
        "No route.",
    )


_LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
BOMB = f'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY l0 "ha">{_LAUGHS}]><l>&l9;</l>'
EXTERNAL = '<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]><l>&x;</l>'


@pytest.mark.parametrize("document", [BOMB, EXTERNAL, "<!DOCTYPE html><html></html>"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_document_type_is_refused_in_every_encoding(document: str, encoding: str) -> None:
    with pytest.raises(DeviceAnswerError, match="DOCTYPE"):
        parse_answer(document.encode(encoding))


@pytest.mark.parametrize("encoding", ["utf-7", "cp037", "utf-32", "x-unknown", "utf-16"])
def test_an_encoding_that_could_hide_something_is_refused(encoding: str) -> None:
    document = f'<?xml version="1.0" encoding="{encoding}"?><a></a>'.encode()
    with pytest.raises(DeviceAnswerError, match=encoding):
        parse_answer(document)


@pytest.mark.parametrize("encoding", ["utf-8", "ISO-8859-1", "windows-1252"])
def test_declared_encodings_are_honoured(encoding: str) -> None:
    text = answer("<g:CIM_Chassis><g:Model>Gerät</g:Model></g:CIM_Chassis>").decode()
    data = text.replace("UTF-8", encoding).encode(encoding)
    assert parse_answer(data).body == {"Model": "Gerät"}


def test_utf_16_is_understood() -> None:
    text = answer("<g:CIM_Chassis><g:Model>x</g:Model></g:CIM_Chassis>").decode()
    for data in (text.encode("utf-16"), codecs.BOM_UTF16_BE + text.encode("utf-16-be")):
        assert parse_answer(data).body == {"Model": "x"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no XML"),
        (b"<a", "no XML"),
        (b"\xff\xff", "byte 0"),
        (b"<a>&undefined;</a>", "no XML"),
        (b"<a>\0</a>", "no XML"),
        (b"<html></html>", "'html'"),
        (b"<" * (1024 * 1024 + 1), "1048577 bytes, maximum 1048576"),
        (b"<a>" * 33, "33 deep, maximum 20000 and 32"),
        (b"<a>" + b"<b/>" * 20_000 + b"</a>", "20001 elements"),
        (b'<a b="' + b"x" * 257 + b'"/>', "attribute of over 256 characters"),
        (b"<a b = '" + b'"' * 257 + b"'/>", "attribute of over 256 characters"),
        (b"<a>" + b'<b c=""/>' * 20_001 + b"</a>", "over 20000 attributes"),
    ],
)
def test_what_is_no_envelope_says_why(data: bytes, message: str) -> None:
    with pytest.raises(DeviceAnswerError, match=message):
        parse_answer(data)


@pytest.mark.parametrize("quote", ['"', "'"])
@pytest.mark.parametrize("space", ["", " ", "\n\t"])
def test_a_long_namespace_is_not_multiplied_by_the_names_in_it(quote: str, space: str) -> None:
    """Let through, this takes over three gigabytes."""
    uri = "u:" + "y" * 300_000 + ("'" if quote == '"' else '"')
    names = "".join(f"<p:a{n}/>" for n in range(10_000))
    attributes = " ".join(f'p:a{n}=""' for n in range(10_000))
    for inside in (f"<b>{names}</b>", f"<b {attributes}/>"):
        bomb = f"<x xmlns:p{space}={space}{quote}{uri}{quote}>{inside}</x>"
        with pytest.raises(DeviceAnswerError, match="attribute of over"):
            parse_answer(answer(bomb))


def test_the_largest_attributes_are_read() -> None:
    uri = "u:" + "y" * (wsman.MAX_ATTRIBUTE - 2)
    assert parse_answer(answer(f'<x xmlns="{uri}"><Model>= "x"</Model></x>')).name == "x"


@given(st.binary(max_size=200))
def test_garbage_is_never_more_than_a_bad_answer(garbage: bytes) -> None:
    with pytest.raises(DeviceAnswerError):
        parse_answer(garbage)


@given(st.data())
def test_a_damaged_answer_is_an_error_or_an_answer(data: st.DataObject) -> None:
    whole = answer("<g:CIM_Chassis><g:Model>NUC9</g:Model></g:CIM_Chassis>")
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] = data.draw(st.integers(0, 255))
    try:
        parse_answer(bytes(damaged))
    except (DeviceAnswerError, WsmanFault):
        return


# ---- return values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "value", "meaning"),
    [
        ("CIM_BootService", "5", "invalid parameter"),
        ("AMT_RedirectionService", "36", "invalid parameter"),
        ("AMT_BootSettingData", "2050", "unsupported boot option"),
        ("IPS_OptInService", "16", "not permitted"),
        ("CIM_BootService", "77", "not in the table"),
    ],
)
def test_a_return_value_is_an_error_with_its_meaning(cls: str, value: str, meaning: str) -> None:
    with pytest.raises(DeviceRefused, match=meaning) as caught:
        check_return(cls, "Method", {"ReturnValue": value})
    assert caught.value.return_value == int(value)


def test_zero_and_none_are_success() -> None:
    check_return("CIM_BootService", "Method", {"ReturnValue": "0"})
    check_return("CIM_BootService", "Method", {})


@pytest.mark.parametrize("value", ["x", "", ["1", "2"], {}])
def test_a_return_value_that_is_none_is_a_bad_answer(value: object) -> None:
    with pytest.raises(DeviceAnswerError):
        check_return("CIM_BootService", "Method", {"ReturnValue": value})


def test_an_array_has_as_many_members_as_elements() -> None:
    instance = {"One": "1", "Two": ["1", "2"]}
    assert [values(instance, name) for name in ("One", "Two", "None")] == [["1"], ["1", "2"], []]
