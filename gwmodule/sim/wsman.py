"""The device's end of WS-Management, without I/O: one envelope in, one envelope out.

Knows Get, Put, Create, Delete, Enumerate, Pull, methods and Identify; what the classes are is not
its business, they come as a registry of `Resource`. The shape of the answers is real firmware's:
prefixes a, b, c..., MessageID `uuid:00000000-8086-...`, and empty elements written with both tags,
because MeshCentral fails on the short form (reference/amt-protocols.md 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from gwmodule.errors import GatewayError

SOAP = "http://www.w3.org/2003/05/soap-envelope"
ADDRESSING = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
WSMAN = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
TRANSFER = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
ENUMERATION = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
COMMON = "http://schemas.dmtf.org/wbem/wscim/1/common"
IDENTITY = "http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd"
ANONYMOUS = f"{ADDRESSING}/role/anonymous"
FAULT_ACTION = f"{ADDRESSING}/fault"
CLASS_BASES = {
    "AMT_": "http://intel.com/wbem/wscim/1/amt-schema/1/",
    "IPS_": "http://intel.com/wbem/wscim/1/ips-schema/1/",
    "CIM_": "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/",
}
MAX_DEPTH = 24
MAX_ELEMENTS = 4096
# Enumerations that were begun and not pulled; the oldest is forgotten.
MAX_CONTEXTS = 16


@dataclass(frozen=True, slots=True)
class Reference:
    """An endpoint reference: a class and the keys of one instance."""

    name: str
    selectors: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class CimTime:
    """A CIM datetime: `form` is Datetime or Interval, an element of the common namespace."""

    form: str
    text: str


Scalar: TypeAlias = str | int | bool | Reference | CimTime
Properties: TypeAlias = Mapping[str, Scalar | tuple[Scalar, ...]]


@dataclass(slots=True)
class Element:
    """A parsed XML element; names are `{namespace}local`."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element] = field(default_factory=list)
    text: str = ""

    @property
    def local(self) -> str:
        return self.name.rpartition("}")[2]

    def find(self, *path: str) -> Element | None:
        """The first descendant along local names."""
        element: Element | None = self
        for local in path:
            if element is None:
                return None
            element = next((child for child in element.children if child.local == local), None)
        return element

    def read(self, *path: str) -> str:
        element = self.find(*path)
        return element.text.strip() if element else ""

    def number(self, *path: str) -> int:
        """A whole number of at most 32 bits; -1 when it is missing or none."""
        text = self.read(*path)
        wanted = text.isascii() and text.isdecimal() and len(text) <= 10
        return int(text) if wanted and int(text) <= 0xFFFFFFFF else -1

    def texts(self) -> dict[str, str]:
        """The children's texts by local name; of repeated ones the last."""
        return {child.local: child.text.strip() for child in self.children}

    def selectors(self, *path: str) -> dict[str, str]:
        """The SelectorSet of the reference at `path`; empty when there is none."""
        chosen = self.find(*path, "ReferenceParameters", "SelectorSet")
        return _read_selectors(chosen) if chosen else {}


@dataclass(frozen=True, slots=True)
class Invocation:
    """A method call: its `<Method_INPUT>` and the time (seconds) it arrived."""

    input: Element
    now: float


Method: TypeAlias = Callable[[Invocation], Properties]


@dataclass(frozen=True, slots=True)
class Resource:
    """One class: its instances as they are now, its methods, what a Put does.

    `put` and `delete` get the instance that the selectors chose, `create` returns the reference
    to the new one. They raise Fault to refuse. `element` is the class of an instance, where
    instances are of subclasses.
    """

    name: str
    instances: Callable[[], list[Properties]]
    methods: Mapping[str, Method] = field(default_factory=dict)
    put: Callable[[Properties, Element], None] | None = None
    create: Callable[[Element], Reference] | None = None
    delete: Callable[[Properties], None] | None = None
    element: Callable[[Properties], str] | None = None

    @property
    def uri(self) -> str:
        return class_uri(self.name)


class Fault(GatewayError):
    """What becomes a SOAP fault: `subcode` with its prefix, as real firmware writes it."""

    def __init__(self, subcode: str, reason: str, code: str = "Sender") -> None:
        super().__init__(reason)
        self.subcode = subcode
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    action: str
    resource: str
    message_id: str
    selectors: dict[str, str]
    body: Element


def class_uri(name: str) -> str:
    """The resource URI of an AMT_, IPS_ or CIM_ class; KeyError for any other."""
    return CLASS_BASES[name[:4]] + name


def parse_xml(data: bytes) -> Element:
    """The root element; Fault on anything malformed, too deep, too large or with a DTD."""
    root = Element("")
    stack = [root]
    count = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if len(stack) > MAX_DEPTH or count > MAX_ELEMENTS:
            raise Fault("c:EncodingLimit", "too many elements")
        element = Element("{" + name if "}" in name else name, attributes)
        stack[-1].children.append(element)
        stack.append(element)

    def end(name: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        stack[-1].text += data

    def doctype(*_: object) -> None:
        # Entities are how a small document becomes a large one.
        raise Fault("c:SchemaValidationError", "document type definitions are not accepted")

    parser = expat.ParserCreate(namespace_separator="}")
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as exc:
        # The latter two: an encoding that Python does not know, or does not feed to expat.
        raise Fault("c:SchemaValidationError", f"not well-formed: {exc}") from exc
    return root.children[0]


def parse_request(data: bytes) -> Request:
    envelope = parse_xml(data)
    body = envelope.find("Body")
    if envelope.name != f"{{{SOAP}}}Envelope" or body is None:
        raise Fault("c:SchemaValidationError", "not a SOAP 1.2 envelope")
    header = envelope.find("Header") or Element("")
    selectors = header.find("SelectorSet") or Element("")
    return Request(
        header.read("Action"),
        header.read("ResourceURI"),
        header.read("MessageID"),
        _read_selectors(selectors),
        body,
    )


def _read_selectors(selectors: Element) -> dict[str, str]:
    # Some clients write the attribute with a namespace.
    return {
        next((v for k, v in each.attributes.items() if k.endswith("Name")), ""): each.text.strip()
        for each in selectors.children
    }


class WsmanServer:
    """Answers envelopes from a registry; `identify` are the texts of IdentifyResponse.

    `page` is how many instances one Pull returns at most; 0 is as many as the client wants.
    """

    def __init__(
        self, resources: Mapping[str, Resource], identify: Mapping[str, str], *, page: int = 0
    ) -> None:
        self._page = page
        self._resources = {resource.uri: resource for resource in resources.values()}
        self._identify = identify
        self._contexts: dict[str, tuple[str, list[Properties]]] = {}
        self._message = 0

    def respond(self, data: bytes, now: float) -> tuple[int, bytes]:
        """HTTP status and envelope. Never raises for what a client sent."""
        message_id = ""
        try:
            request = parse_request(data)
            message_id = request.message_id
            return 200, self._dispatch(request, now).encode()
        except Fault as fault:
            return 400, self.fault(fault, message_id)

    def fault(self, fault: Fault, message_id: str = "") -> bytes:
        """The envelope of `fault`, for what is refused before it is read too."""
        spaces = {"g": ENUMERATION, "t": TRANSFER}
        return self._envelope(FAULT_ACTION, message_id, "", _fault_body(fault), **spaces).encode()

    def _dispatch(self, request: Request, now: float) -> str:
        if request.body.find("Identify"):
            texts = "".join(_tags("g", name, text) for name, text in self._identify.items())
            body = f"<g:IdentifyResponse>{texts}</g:IdentifyResponse>"
            return self._envelope("", request.message_id, "", body, g=IDENTITY)
        resource = self._resources.get(request.resource)
        if resource is None:
            raise Fault(
                "b:DestinationUnreachable", "No route can be determined to the destination."
            )
        match request.action.removeprefix(TRANSFER).removeprefix(ENUMERATION):
            case "/Get":
                instance = self._select(resource, request.selectors)
                body = _instance("g", resource.name, instance)
                return self._answer(request, resource, body, g=resource.uri)
            case "/Put" if resource.put is not None:
                sent = _sent(request, resource)
                resource.put(self._select(resource, request.selectors), sent)
                instance = self._select(resource, request.selectors)
                body = _instance("g", resource.name, instance)
                return self._answer(request, resource, body, g=resource.uri)
            case "/Create" if resource.create is not None:
                made = _reference("g", "ResourceCreated", resource.create(_sent(request, resource)))
                return self._answer(request, resource, made, g=TRANSFER)
            case "/Delete" if resource.delete is not None:
                resource.delete(self._select(resource, request.selectors))
                return self._answer(request, resource, "")
            case "/Enumerate":
                return self._enumerate(request, resource)
            case "/Pull":
                return self._pull(request, resource)
            case _:
                return self._invoke(request, resource, now)

    def _select(self, resource: Resource, selectors: Mapping[str, str]) -> Properties:
        matching = [
            instance
            for instance in resource.instances()
            if all(_text(instance.get(name)) == value for name, value in selectors.items())
        ]
        if len(matching) != 1:
            raise Fault("c:InvalidSelectors", "The Selectors for the resource were not valid.")
        return matching[0]

    def _enumerate(self, request: Request, resource: Resource) -> str:
        while len(self._contexts) >= MAX_CONTEXTS:
            del self._contexts[next(iter(self._contexts))]
        self._message += 1
        context = f"{self._message & 0xFFFFFFFF:08X}-0000-0000-0000-000000000000"
        self._contexts[context] = (resource.uri, resource.instances())
        inner = _tags("g", "EnumerationContext", context)
        body = f"<g:EnumerateResponse>{inner}</g:EnumerateResponse>"
        return self._answer(request, resource, body, g=ENUMERATION)

    def _pull(self, request: Request, resource: Resource) -> str:
        context = request.body.read("Pull", "EnumerationContext")
        uri, left = self._contexts.pop(context, ("", []))
        if uri != resource.uri:
            raise Fault("g:InvalidEnumerationContext", "The supplied context is not valid.")
        wanted = request.body.read("Pull", "MaxElements")
        count = max(1, int(wanted)) if wanted.isdecimal() and len(wanted) < 8 else 1
        count = min(count, self._page or count)
        items = "".join(_item(resource, instance) for instance in left[:count])
        if left[count:]:
            self._contexts[context] = (uri, left[count:])
            end = _tags("g", "EnumerationContext", context)
        else:
            end = _tags("g", "EndOfSequence", "")
        body = f"<g:PullResponse><g:Items>{items}</g:Items>{end}</g:PullResponse>"
        return self._answer(request, resource, body, g=ENUMERATION, h=resource.uri)

    def _invoke(self, request: Request, resource: Resource, now: float) -> str:
        name = request.action.removeprefix(f"{resource.uri}/")
        method = resource.methods.get(name)
        given = request.body.find(f"{name}_INPUT")
        if method is None:
            raise Fault("b:ActionNotSupported", "The action is not supported by the service.")
        if given is None:
            raise Fault("c:SchemaValidationError", f"no {name}_INPUT in the body")
        if request.selectors:
            self._select(resource, request.selectors)
        output = method(Invocation(given, now))
        body = _instance("g", f"{name}_OUTPUT", output)
        return self._answer(request, resource, body, g=resource.uri)

    def _answer(self, request: Request, resource: Resource, body: str, **spaces: str) -> str:
        action = f"{request.action}Response"
        return self._envelope(action, request.message_id, resource.uri, body, **spaces)

    def _envelope(self, action: str, relates: str, uri: str, body: str, **spaces: str) -> str:
        self._message += 1
        prefixes = {"a": SOAP, "b": ADDRESSING, "c": WSMAN} | spaces
        declared = "".join(f' xmlns:{prefix}="{space}"' for prefix, space in prefixes.items())
        header = _tags("b", "To", ANONYMOUS) + _tags("b", "RelatesTo", relates)
        if action:
            header += f'<b:Action a:mustUnderstand="true">{escape(action)}</b:Action>'
        header += _tags(
            "b", "MessageID", f"uuid:00000000-8086-8086-8086-{self._message & 0xFFFFFFFF:012X}"
        )
        if uri:
            header += _tags("c", "ResourceURI", uri)
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><a:Envelope{declared}>'
            f"<a:Header>{header}</a:Header><a:Body>{body}</a:Body></a:Envelope>"
        )


def _sent(request: Request, resource: Resource) -> Element:
    sent = request.body.find(resource.name)
    if sent is None:
        raise Fault("c:SchemaValidationError", f"no {resource.name} in the body")
    return sent


def _fault_body(fault: Fault) -> str:
    subcode = f"<a:Subcode>{_tags('a', 'Value', fault.subcode)}</a:Subcode>"
    return (
        f"<a:Fault><a:Code>{_tags('a', 'Value', f'a:{fault.code}')}{subcode}</a:Code>"
        f'<a:Reason><a:Text xml:lang="en-US">{escape(str(fault))}</a:Text></a:Reason>'
        "<a:Detail></a:Detail></a:Fault>"
    )


def _item(resource: Resource, properties: Properties) -> str:
    if resource.element is None:
        return _instance("h", resource.name, properties)
    name = resource.element(properties)
    return _instance("h", name, properties, f' xmlns:h="{class_uri(name)}"')


def _instance(prefix: str, name: str, properties: Properties, declared: str = "") -> str:
    parts = []
    # Firmware answers in alphabetical order; array elements repeat the tag.
    for key, value in sorted(properties.items()):
        values = value if isinstance(value, tuple) else (value,)
        parts += [_property(prefix, key, one) for one in values]
    return f"<{prefix}:{name}{declared}>{''.join(parts)}</{prefix}:{name}>"


def _property(prefix: str, name: str, value: Scalar) -> str:
    match value:
        case Reference():
            return _reference(prefix, name, value)
        case CimTime(form, text):
            inner = f'<d:{form} xmlns:d="{COMMON}">{escape(text)}</d:{form}>'
            return f"<{prefix}:{name}>{inner}</{prefix}:{name}>"
        case _:
            return _tags(prefix, name, _text(value))


def _reference(prefix: str, name: str, value: Reference) -> str:
    selectors = "".join(
        f"<c:Selector Name={quoteattr(key)}>{escape(text)}</c:Selector>"
        for key, text in value.selectors
    )
    return (
        f"<{prefix}:{name}>{_tags('b', 'Address', ANONYMOUS)}<b:ReferenceParameters>"
        f"{_tags('c', 'ResourceURI', class_uri(value.name))}"
        f"<c:SelectorSet>{selectors}</c:SelectorSet></b:ReferenceParameters></{prefix}:{name}>"
    )


def _tags(prefix: str, name: str, text: str) -> str:
    return f"<{prefix}:{name}>{escape(text)}</{prefix}:{name}>"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
