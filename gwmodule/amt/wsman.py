"""WS-Management envelopes (DSP0226) for AMT, both directions, without I/O.

    get("CIM_Chassis", message_id) -> bytes           parse_answer(bytes) -> Answer | WsmanFault

An instance is a plain dict: text values, a list where an element repeats, a dict where it nests,
names without namespaces. An endpoint reference is a dict too:

    {"Address": ..., "ResourceURI": ..., "SelectorSet": {"Name": "ManagedSystem"}}

Envelope layout, namespaces and ReturnValue tables: reference/amt-protocols.md 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from gwmodule.errors import BadArgument, DeviceAnswerError, DeviceRefused, WsmanFault

SOAP = "http://www.w3.org/2003/05/soap-envelope"
ADDRESSING = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
WSMAN = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
TRANSFER = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
ENUMERATION = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
IDENTITY = "http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd"
COMMON = "http://schemas.dmtf.org/wbem/wscim/1/common"
ANONYMOUS = f"{ADDRESSING}/role/anonymous"
CLASS_BASES = {
    "AMT_": "http://intel.com/wbem/wscim/1/amt-schema/1/",
    "IPS_": "http://intel.com/wbem/wscim/1/ips-schema/1/",
    "CIM_": "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/",
}

# A full event log of 390 records is about 60 KiB; nothing a PC says about itself is larger.
MAX_ANSWER = 1024 * 1024
# The deepest real answers, references inside an Items list, are 9 deep.
MAX_DEPTH = 32
# Elements cost about 100 bytes of memory each and 4 on the wire, so size alone is no bound.
MAX_ELEMENTS = 20_000
# The parser writes a namespace into the name of each element and attribute that is in it: one of
# 200 KB and 3,000 names are 600 MB. Real values have up to 90 characters.
MAX_ATTRIBUTE = 256
MAX_ATTRIBUTES = 20_000
# What MeshCentral asks for; the device sends what fits its buffer and a context for the rest.
PULL_ELEMENTS = 999
PULL_CHARACTERS = 99_999

Value: TypeAlias = Any  # str, Instance, or a list of either; building takes int and bool too.
Instance: TypeAlias = dict[str, Value]

CIM_RETURN_VALUES = {
    0: "completed",
    1: "not supported",
    2: "unknown error",
    3: "timeout",
    4: "failed",
    5: "invalid parameter",
    6: "in use",
    4096: "job started",
    4097: "invalid state transition",
    4098: "use of timeout parameter not supported",
    4099: "busy",
}
PT_STATUS = {
    0x0: "success",
    0x1: "internal error",
    0x2: "not ready",
    0x3: "invalid mode",
    0xC: "invalid name",
    0x10: "not permitted",
    0x17: "limit reached",
    0x20: "invalid provisioning state",
    0x23: "invalid index",
    0x24: "invalid parameter",
    0x26: "flash write limit exceeded",
    0x802: "unsupported boot option",
    0x805: "invalid handle",
    0x809: "data missing",
    0x80A: "duplicate",
    0x80B: "log frozen",
    0x812: "unsupported",
    0x814: "not found",
    0x815: "invalid credentials",
}

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# What XML 1.0 cannot hold, escaped or not.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LONG_ATTRIBUTE = re.compile(
    rf"""=\s*(?:"[^"<]{{{MAX_ATTRIBUTE + 1}}}|'[^'<]{{{MAX_ATTRIBUTE + 1}}})"""
)
_ENCODING = re.compile(
    rb"""^\s*<\?xml[^>]{0,200}?\bencoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']"""
)
_ENCODINGS = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "ascii",
    "ascii": "ascii",
    "iso-8859-1": "latin-1",
    "latin-1": "latin-1",
    "windows-1252": "cp1252",
}
_BYTE_ORDERS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"<\x00", "utf-16-le"),
    (b"\x00<", "utf-16-be"),
)


@dataclass(frozen=True, slots=True)
class Embedded:
    """A parameter that is an instance of another class, in that class's namespace."""

    cls: str
    properties: Mapping[str, Value]


@dataclass(slots=True)
class Answer:
    """`name` is the body's element without namespace, empty for an empty body; `body` its content.

    `items` are a pull's instances in the device's order, `context` what continues the enumeration
    (empty when it has ended).
    """

    action: str = ""
    name: str = ""
    body: Instance = field(default_factory=dict)
    items: list[Instance] = field(default_factory=list)
    context: str = ""


# ---- names ------------------------------------------------------------------------------------


def class_uri(cls: str) -> str:
    """The resource URI of an AMT_, IPS_ or CIM_ class; BadArgument for any other name."""
    base = CLASS_BASES.get(cls[:4])
    if base is None or not _NAME.fullmatch(cls):
        raise BadArgument(f"{cls[:80]!r} is no class: names begin with {', '.join(CLASS_BASES)}")
    return base + cls


def reference(cls: str, selectors: Mapping[str, Value]) -> Instance:
    """An endpoint reference to one instance, as a parameter of a method."""
    return {"Address": ANONYMOUS, "ResourceURI": class_uri(cls), "SelectorSet": dict(selectors)}


# ---- requests ---------------------------------------------------------------------------------


def get(cls: str, message_id: str, selectors: Mapping[str, str] | None = None) -> bytes:
    return _request(f"{TRANSFER}/Get", cls, message_id, "", selectors)


def put(
    cls: str, message_id: str, properties: Mapping[str, Value], selectors: Mapping[str, str] | None
) -> bytes:
    """Send the whole instance back: what a Put leaves out, AMT resets."""
    body = _instance(cls, cls, properties)
    return _request(f"{TRANSFER}/Put", cls, message_id, body, selectors)


def create(cls: str, message_id: str, properties: Mapping[str, Value]) -> bytes:
    return _request(f"{TRANSFER}/Create", cls, message_id, _instance(cls, cls, properties), None)


def delete(cls: str, message_id: str, selectors: Mapping[str, str]) -> bytes:
    return _request(f"{TRANSFER}/Delete", cls, message_id, "", selectors)


def enumerate_(cls: str, message_id: str) -> bytes:
    body = f'<Enumerate xmlns="{ENUMERATION}"></Enumerate>'
    return _request(f"{ENUMERATION}/Enumerate", cls, message_id, body, None)


def pull(cls: str, message_id: str, context: str) -> bytes:
    body = (
        f'<Pull xmlns="{ENUMERATION}"><EnumerationContext>{_text(context)}</EnumerationContext>'
        f"<MaxElements>{PULL_ELEMENTS}</MaxElements>"
        f"<MaxCharacters>{PULL_CHARACTERS}</MaxCharacters></Pull>"
    )
    return _request(f"{ENUMERATION}/Pull", cls, message_id, body, None)


def invoke(
    cls: str,
    method: str,
    message_id: str,
    arguments: Mapping[str, Value],
    selectors: Mapping[str, str] | None = None,
) -> bytes:
    """A method call; arguments are written in the order given, as AMT wants the schema's order."""
    uri = class_uri(cls)
    body = _instance(cls, f"{_name(method)}_INPUT", arguments)
    return _request(f"{uri}/{method}", cls, message_id, body, selectors)


def identify() -> bytes:
    """Who answers on this port; the one request without addressing headers (DSP0226 11)."""
    body = f'<Identify xmlns="{IDENTITY}"></Identify>'
    return _ENVELOPE.format(header="", body=body).encode()


_ENVELOPE = (
    '<?xml version="1.0" encoding="utf-8"?>'
    f'<Envelope xmlns="{SOAP}" xmlns:a="{ADDRESSING}" xmlns:w="{WSMAN}">'
    "<Header>{header}</Header><Body>{body}</Body></Envelope>"
)


def _request(
    action: str, cls: str, message_id: str, body: str, selectors: Mapping[str, str] | None
) -> bytes:
    header = (
        f"<a:Action>{action}</a:Action><a:To>/wsman</a:To>"
        f"<w:ResourceURI>{class_uri(cls)}</w:ResourceURI>"
        f"<a:MessageID>{_text(message_id)}</a:MessageID>"
        f"<a:ReplyTo><a:Address>{ANONYMOUS}</a:Address></a:ReplyTo>"
        "<w:OperationTimeout>PT60S</w:OperationTimeout>"
    )
    if selectors:
        header += _selector_set(selectors)
    return _ENVELOPE.format(header=header, body=body).encode()


def _instance(cls: str, name: str, properties: Mapping[str, Value]) -> str:
    content = "".join(_property("r", key, value) for key, value in properties.items())
    return f'<r:{name} xmlns:r="{class_uri(cls)}">{content}</r:{name}>'


def _property(prefix: str, name: str, value: Value) -> str:
    tag = f"{prefix}:{_name(name)}"
    if isinstance(value, Embedded):
        content = "".join(_property("e", key, each) for key, each in value.properties.items())
        return f'<{tag} xmlns:e="{class_uri(value.cls)}">{content}</{tag}>'
    if isinstance(value, Mapping):
        if "ResourceURI" in value:
            return f"<{tag}>{_reference(value)}</{tag}>"
        content = "".join(_nested(prefix, key, each) for key, each in value.items())
        return f"<{tag}>{content}</{tag}>"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "".join(_property(prefix, name, each) for each in value)
    return f"<{tag}>{_text(value)}</{tag}>"


def _nested(prefix: str, name: str, value: Value) -> str:
    if name in ("Datetime", "Interval"):
        # The two forms of a CIM datetime; they belong to DSP0230's common namespace.
        return f'<c:{name} xmlns:c="{COMMON}">{_text(value)}</c:{name}>'
    return _property(prefix, name, value)


def _reference(value: Mapping[str, Value]) -> str:
    selectors = value.get("SelectorSet") or {}
    if not isinstance(selectors, Mapping):
        raise BadArgument(f"SelectorSet is {selectors!r:.80}, must be names and values")
    return (
        f"<a:Address>{_text(value.get('Address', ANONYMOUS))}</a:Address><a:ReferenceParameters>"
        f"<w:ResourceURI>{_text(value['ResourceURI'])}</w:ResourceURI>"
        f"{_selector_set(selectors)}</a:ReferenceParameters>"
    )


def _selector_set(selectors: Mapping[str, Value]) -> str:
    written = [
        f"<w:Selector Name={quoteattr(_writable(name))}>{_selector(value)}</w:Selector>"
        for name, value in selectors.items()
    ]
    return f"<w:SelectorSet>{''.join(written)}</w:SelectorSet>"


def _selector(value: Value) -> str:
    """A key may itself be a reference, as in associations."""
    if isinstance(value, Mapping):
        if "ResourceURI" not in value:
            raise BadArgument(f"a selector is {dict(value)!r:.80}, must be a text or a reference")
        return f"<a:EndpointReference>{_reference(value)}</a:EndpointReference>"
    return _text(value)


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadArgument(f"{name[:80]!r} is no name of a method or property")
    return name


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return escape(_writable("" if value is None else str(value)))


def _writable(text: str) -> str:
    found = _UNWRITABLE.search(text)
    if found:
        raise BadArgument(f"character U+{ord(found[0]):04X} cannot be written in XML")
    return text


# ---- answers ----------------------------------------------------------------------------------


def parse_answer(data: bytes) -> Answer:
    """One envelope; WsmanFault when it is a fault, DeviceAnswerError when it is no envelope."""
    envelope = parse_xml(data)
    body = envelope.find(f"{{{SOAP}}}Body")
    if envelope.tag != f"{{{SOAP}}}Envelope" or body is None:
        raise DeviceAnswerError(
            f"the answer is a {local_name(envelope)[:40]!r}, not a SOAP 1.2 body"
        )
    action = (envelope.findtext(f"{{{SOAP}}}Header/{{{ADDRESSING}}}Action") or "").strip()
    if len(body) == 0:
        return Answer(action)
    element = body[0]
    if element.tag == f"{{{SOAP}}}Fault":
        raise _fault(element)
    answer = Answer(action, local_name(element))
    if element.tag == f"{{{ENUMERATION}}}PullResponse":
        items = element.find(f"{{{ENUMERATION}}}Items")
        answer.items = [instance_from(item) for item in (() if items is None else items)]
        if element.find(f"{{{ENUMERATION}}}EndOfSequence") is None:
            context = element.findtext(f"{{{ENUMERATION}}}EnumerationContext") or ""
            answer.context = context.strip()
    else:
        answer.body = instance_from(element)
        answer.context = str(answer.body.get("EnumerationContext", ""))
    return answer


def parse_xml(data: bytes) -> ElementTree.Element:
    """The root of a document without DTD, at most MAX_ANSWER bytes; DeviceAnswerError otherwise."""
    if len(data) > MAX_ANSWER:
        raise DeviceAnswerError(f"answer of {len(data)} bytes, maximum {MAX_ANSWER}")
    text = _decode(data)
    # Entities are how a small document becomes a large one; no device sends a DTD.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DeviceAnswerError("the answer holds a DOCTYPE or ENTITY declaration")
    # Before the parser sees it: an element is reported with all its attributes expanded.
    if _LONG_ATTRIBUTE.search(text):
        raise DeviceAnswerError(f"the answer has an attribute of over {MAX_ATTRIBUTE} characters")
    if text.count("=") > MAX_ATTRIBUTES:
        raise DeviceAnswerError(f"the answer has over {MAX_ATTRIBUTES} attributes")
    # The gates above and the bounded builder are what defusedxml would do, and more.
    parser = ElementTree.XMLParser(target=_BoundedBuilder())  # noqa: S314
    try:
        parser.feed(text)
        root: ElementTree.Element = parser.close()
    except ElementTree.ParseError as exc:
        raise DeviceAnswerError(f"the answer of {len(data)} bytes is no XML: {exc}") from exc
    return root


class _BoundedBuilder(ElementTree.TreeBuilder):
    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self._elements = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ElementTree.Element:
        self._depth += 1
        self._elements += 1
        if self._depth > MAX_DEPTH or self._elements > MAX_ELEMENTS:
            raise DeviceAnswerError(
                f"answer of {self._elements} elements, {self._depth} deep, "
                f"maximum {MAX_ELEMENTS} and {MAX_DEPTH}"
            )
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)


def _decode(data: bytes) -> str:
    """Text in the encoding the document names. Ours, not the parser's: the gate must see through
    every encoding the parser would.
    """
    encoding = next((name for mark, name in _BYTE_ORDERS if data.startswith(mark)), "")
    if not encoding:
        declared = _ENCODING.match(data)
        named = declared[1].decode().lower() if declared else "utf-8"
        if named not in _ENCODINGS:
            raise DeviceAnswerError(f"the answer is encoded in {named!r}, expected utf-8")
        encoding = _ENCODINGS[named]
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as exc:
        raise DeviceAnswerError(
            f"byte {exc.start} of the answer is no {encoding}: {exc.reason}"
        ) from exc


def local_name(element: ElementTree.Element) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def instance_from(element: ElementTree.Element) -> Instance:
    """What stands in `element`, as an instance."""
    found: Instance = {}
    for child in element:
        name, value = local_name(child), _value(child)
        known = found.get(name)
        if isinstance(known, list):
            known.append(value)
        else:
            found[name] = value if known is None else [known, value]
    return found


def _value(element: ElementTree.Element) -> Value:
    parameters = element.find(f"{{{ADDRESSING}}}ReferenceParameters")
    if parameters is not None:
        return {
            "Address": (element.findtext(f"{{{ADDRESSING}}}Address") or "").strip(),
            "ResourceURI": (parameters.findtext(f"{{{WSMAN}}}ResourceURI") or "").strip(),
            "SelectorSet": {
                selector.get("Name", ""): _value(selector[0] if len(selector) else selector)
                for selector in parameters.iterfind(f"{{{WSMAN}}}SelectorSet/{{{WSMAN}}}Selector")
            },
        }
    if len(element):
        return instance_from(element)
    return (element.text or "").strip()


def _fault(element: ElementTree.Element) -> WsmanFault:
    def read(path: str) -> str:
        text = element.findtext("/".join(f"{{{SOAP}}}{name}" for name in path.split("/"))) or ""
        return text.strip()[:500]

    # Codes are qualified names; which prefix the device chose says nothing.
    code = read("Code/Value").rpartition(":")[2]
    subcode = read("Code/Subcode/Value").rpartition(":")[2]
    return WsmanFault(code, subcode, read("Reason/Text"))


# ---- return values ----------------------------------------------------------------------------


def return_meaning(cls: str, value: int) -> str:
    """What a method of `cls` says with `value`: CIM's numbers, or Intel's PT_STATUS."""
    table = CIM_RETURN_VALUES if cls.startswith("CIM_") else PT_STATUS
    return table.get(value, "not in the table")


def check_return(
    cls: str, method: str, output: Instance, meanings: Mapping[int, str] | None = None
) -> None:
    """DeviceRefused when a method's output says anything but 0.

    An output without a ReturnValue is a success. `meanings` is for methods that number their own.
    """
    text = output.get("ReturnValue", "0")
    try:
        value = int(text)
    except (TypeError, ValueError) as exc:
        raise DeviceAnswerError(f"{method} returned {str(text)[:40]!r}, not a number") from exc
    if value:
        meaning = (meanings or {}).get(value) or return_meaning(cls, value)
        raise DeviceRefused(f"{cls}.{method}", value, meaning)


def values(instance: Instance, name: str) -> list[Value]:
    """An array property: firmware writes one element per member, so one member looks like none."""
    value = instance.get(name, [])
    return value if isinstance(value, list) else [value]
