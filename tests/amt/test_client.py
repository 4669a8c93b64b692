import asyncio
import contextlib
import datetime
import socket
import ssl
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from gwmodule.amt import client as client_module
from gwmodule.amt import wsman
from gwmodule.amt.client import WsmanAbsent, WsmanClient
from gwmodule.amt.wsman import Answer
from gwmodule.errors import (
    AmtError,
    AuthenticationFailed,
    DeadlineExceeded,
    DeviceAnswerError,
    DeviceUnreachable,
    PolicyRefused,
    TlsPinMismatch,
    WsmanFault,
)
from gwmodule.sim.tls import self_signed
from gwmodule.wire.frames import CredentialMode, TlsMode
from gwmodule.wire.messages import Credential
from tests.amt.replay import (
    PASSWORD,
    REALM,
    USERNAME,
    DeviceServer,
    Request,
    dial_to,
    md5,
    soap,
)

HA1 = md5(f"{USERNAME}:{REALM}:{PASSWORD}".encode())
GOOD = Credential(CredentialMode.HA1, USERNAME, HA1, REALM)
CLS = "CIM_Chassis"
URI = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_Chassis"


def envelope(body: str) -> bytes:
    return (
        '<a:Envelope xmlns:a="http://www.w3.org/2003/05/soap-envelope" '
        f'xmlns:e="http://schemas.xmlsoap.org/ws/2004/09/enumeration" xmlns:g="{URI}">'
        f"<a:Header></a:Header><a:Body>{body}</a:Body></a:Envelope>"
    ).encode()


CHASSIS = soap(envelope(f"<g:{CLS}><g:Model>NUC9</g:Model></g:{CLS}>"))


def chassis(request: Request) -> bytes:
    return CHASSIS


def always(answer: bytes) -> Callable[[Request], bytes]:
    return lambda request: answer


def client_to(
    ports: dict[int, int],
    credential: Credential = GOOD,
    *,
    within: float = 5.0,
    tls: TlsMode = TlsMode.AUTO,
    pin: bytes = bytes(32),
    parsing: asyncio.Lock | None = None,
) -> WsmanClient:
    deadline = asyncio.get_running_loop().time() + within
    return WsmanClient(
        dial_to(ports), credential, deadline=deadline, tls=tls, pin=pin, parsing=parsing
    )


@asynccontextmanager
async def talking_to(
    server: DeviceServer, credential: Credential = GOOD, *, within: float = 5.0
) -> AsyncIterator[WsmanClient]:
    async with server.serving(), client_to({16992: server.port}, credential, within=within) as it:
        yield it


# ---- login ------------------------------------------------------------------------------------


async def test_one_challenge_serves_many_requests_on_one_connection() -> None:
    server = DeviceServer(chassis)
    async with talking_to(server) as client:
        for _ in range(5):
            assert await client.get(CLS) == {"Model": "NUC9"}
    counts = [request.authorization()["nc"] for request in server.authorized]
    assert counts == [f"{n:08x}" for n in range(1, 6)]
    # The firmware closes the connection with its 401; everything after it shares another.
    assert server.connections == 2
    assert client.facts.exchanges == 6


async def test_clients_that_share_a_loop_parse_one_after_the_other() -> None:
    servers, parsing = [DeviceServer(chassis), DeviceServer(chassis)], asyncio.Lock()
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for server in servers:
            await stack.enter_async_context(server.serving())
            client = client_to({16992: server.port}, parsing=parsing)
            clients.append(await stack.enter_async_context(client))
        async with asyncio.TaskGroup() as tasks, parsing:
            asking = [tasks.create_task(client.get(CLS)) for client in clients]
            done, _ = await asyncio.wait(asking, timeout=0.3)
            assert not done
            assert all(server.authorized for server in servers)
        assert [task.result() for task in asking] == [{"Model": "NUC9"}] * 2


async def test_a_401_without_close_keeps_the_connection() -> None:
    server = DeviceServer(chassis, close_on_401=False)
    async with talking_to(server) as client:
        await client.get(CLS)
    assert server.connections == 1


async def test_auth_int_is_answered_where_it_is_all_there_is() -> None:
    server = DeviceServer(chassis, qop="auth-int")
    async with talking_to(server) as client:
        await client.get(CLS)
    assert server.authorized[0].authorization()["qop"] == "auth-int"


async def test_auth_is_preferred_to_auth_int() -> None:
    server = DeviceServer(chassis, qop="auth-int, auth")
    async with talking_to(server) as client:
        await client.get(CLS)
    assert server.authorized[0].authorization()["qop"] == "auth"


async def test_a_stale_nonce_is_replaced_without_ado() -> None:
    server = DeviceServer(chassis, nonce_uses=2)
    async with talking_to(server) as client:
        for _ in range(5):
            await client.get(CLS)
    assert len(server.authorized) == 5


async def test_the_password_computes_the_ha1_for_the_realm_that_is_asked() -> None:
    server = DeviceServer(chassis, realm="Digest:OTHER")
    credential = Credential(CredentialMode.PASSWORD, USERNAME, PASSWORD)
    async with talking_to(server, credential) as client:
        await client.get(CLS)
    assert client.facts.realm == "Digest:OTHER"


async def test_a_wrong_password_is_tried_once() -> None:
    server = DeviceServer(chassis)
    credential = Credential(CredentialMode.PASSWORD, USERNAME, "guess")
    async with talking_to(server, credential) as client:
        with pytest.raises(AuthenticationFailed, match="refused the login"):
            await client.get(CLS)
    assert len(server.requests) == 2


async def test_an_endless_401_ends_after_one_answer() -> None:
    server = DeviceServer(chassis, accepts=False, close_on_401=False)
    async with talking_to(server) as client:
        with pytest.raises(AuthenticationFailed):
            await client.get(CLS)
    assert len(server.requests) == 2


async def test_another_realm_is_not_answered_and_both_are_named() -> None:
    server = DeviceServer(chassis, realm="Digest:THIEF")
    async with talking_to(server) as client:
        with pytest.raises(AuthenticationFailed) as caught:
            await client.get(CLS)
    assert "Digest:THIEF" in str(caught.value)
    assert REALM in str(caught.value)
    assert [request.headers.get("authorization") for request in server.requests] == [None]
    assert client.facts.realm == "Digest:THIEF"


async def test_without_a_credential_the_first_401_is_the_end() -> None:
    server = DeviceServer(chassis)
    async with talking_to(server, Credential()) as client:
        with pytest.raises(AuthenticationFailed, match="no credential"):
            await client.get(CLS)
    assert [request.headers.get("authorization") for request in server.requests] == [None]


async def test_no_error_and_no_repr_shows_a_secret() -> None:
    server = DeviceServer(chassis, accepts=False)
    credential = Credential(CredentialMode.PASSWORD, USERNAME, PASSWORD)
    async with talking_to(server, credential) as client:
        with pytest.raises(AuthenticationFailed) as caught:
            await client.get(CLS)
    shown = f"{caught.value!r} {caught.value} {client!r} {credential!r} {client.facts!r}"
    assert PASSWORD not in shown
    assert HA1 not in shown


# ---- connections ------------------------------------------------------------------------------


async def test_an_idle_connection_that_the_device_closed_is_replaced() -> None:
    server = DeviceServer(chassis)
    async with talking_to(server) as client:
        await client.get(CLS)
        server.hang_up()
        await asyncio.sleep(0.05)
        await client.get(CLS)
    assert server.connections == 3


async def test_a_read_is_sent_again_when_its_idle_connection_breaks() -> None:
    answers = iter([CHASSIS, b"", CHASSIS])
    server = DeviceServer(lambda request: next(answers))
    async with talking_to(server) as client:
        await client.get(CLS)
        assert await client.get(CLS) == {"Model": "NUC9"}


async def test_a_change_is_never_sent_twice() -> None:
    answers = iter([CHASSIS, b"", CHASSIS])
    server = DeviceServer(lambda request: next(answers))
    async with talking_to(server) as client:
        await client.get(CLS)
        with pytest.raises(DeviceUnreachable, match=r"CIM_Chassis\.Destroy"):
            await client.invoke(CLS, "Destroy")
    assert sum(b"Destroy_INPUT" in request.body for request in server.authorized) == 1


async def test_a_read_that_breaks_on_a_fresh_connection_is_not_sent_again() -> None:
    server = DeviceServer(always(b""))
    async with talking_to(server) as client:
        with pytest.raises(DeviceUnreachable, match="Get CIM_Chassis"):
            await client.get(CLS)
        # The first ends with the challenge, which closes it; the second was fresh.
        assert server.connections == 2


async def test_a_closed_port_is_unreachable() -> None:
    async with client_to({}, tls=TlsMode.OFF) as client:
        with pytest.raises(DeviceUnreachable, match="Get CIM_Chassis: port 16992"):
            await client.get(CLS)


async def test_two_closed_ports_are_both_named() -> None:
    async with client_to({}) as client:
        with pytest.raises(DeviceUnreachable, match=r"16993.*16992|16992.*16993"):
            await client.get(CLS)


async def test_a_refusal_of_the_policy_is_passed_on() -> None:
    async def refuse(port: int) -> socket.socket:
        raise PolicyRefused("other-mac", "another PC has this address")

    client = WsmanClient(refuse, GOOD, deadline=asyncio.get_running_loop().time() + 5)
    async with client:
        with pytest.raises(PolicyRefused):
            await client.get(CLS)


async def test_a_device_that_never_answers_ends_with_the_deadline_and_the_step() -> None:
    server = DeviceServer(chassis, delay=60)
    async with talking_to(server, within=0.3) as client:
        with pytest.raises(DeadlineExceeded, match="Get CIM_Chassis"):
            await client.get(CLS)


async def test_a_client_past_its_deadline_sends_nothing() -> None:
    server = DeviceServer(chassis)
    async with talking_to(server, within=-1) as client:
        with pytest.raises(DeadlineExceeded):
            await client.get(CLS)
    assert server.connections == 0


async def test_exchanges_do_not_overlap() -> None:
    server = DeviceServer(chassis, delay=0.02)
    async with talking_to(server) as client:
        await asyncio.gather(*(client.get(CLS) for _ in range(5)))
    assert [request.authorization()["nc"] for request in server.authorized] == [
        f"{n:08x}" for n in range(1, 6)
    ]


# ---- answers ----------------------------------------------------------------------------------

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/soap+xml\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]><x>&a;</x>'


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://evil/\r\nContent-Length: 0\r\n\r\n", "redirect"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", "text/html"),
        (b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n", "HTTP 405"),
        (_HEAD + b"Content-Length: 10485760\r\n\r\n", "10485760 bytes announced"),
        (_CHUNKED + b"100000\r\n" + b"x" * 0x100000 + b"\r\n10\r\n" + b"x" * 16, "maximum 1048576"),
        (_HEAD + b"\r\n" + b"x" * 3 * 1024 * 1024, "maximum 1048576"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 65536, "HTTP/1.1"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "HTTP/1.1"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 9, "interim"),
        (_CHUNKED + b"zz\r\n", "after 0 bytes"),
        (_HEAD + b"Content-Length: 5\r\n\r\n<a>b", "cut after 4 bytes"),
        (_HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", "does not speak HTTP/1.1"),
        (_HEAD + b"Content-Length: 3\r\n\r\n<a>", "no XML"),
        (soap(_BOMB), "DOCTYPE"),
        (soap(_BOMB.decode().encode("utf-16")), "DOCTYPE"),
        (soap(b"<a>\xff\xfe</a>"), "byte 3"),
        (soap(b'<?xml version="1.0" encoding="klingon"?><a/>'), "klingon"),
        (soap(b"<a></a>"), "not a SOAP"),
        (soap(envelope("<g:CIM_Card></g:CIM_Card>")), "CIM_Card"),
    ],
)
async def test_what_is_no_answer_is_an_error_with_its_numbers(answer: bytes, message: str) -> None:
    server = DeviceServer(always(answer), close_after_answer=True)
    async with talking_to(server) as client:
        with pytest.raises(DeviceAnswerError, match=message) as caught:
            await client.get(CLS)
    assert str(caught.value).startswith("Get CIM_Chassis: ")


async def test_a_truncated_chunk_tells_how_much_came() -> None:
    server = DeviceServer(always(_CHUNKED + b"0220\r\n" + b"x" * 100), close_after_answer=True)
    async with talking_to(server) as client:
        with pytest.raises(DeviceAnswerError, match="cut after 100 bytes"):
            await client.get(CLS)


async def test_a_large_answer_is_parsed_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    parse = wsman.parse_answer

    def watched(data: bytes) -> Answer:
        threads.append(threading.get_ident())
        return parse(data)

    monkeypatch.setattr(wsman, "parse_answer", watched)
    notes = "".join(f"<g:Notes>{number:060}</g:Notes>" for number in range(1000))
    large = soap(envelope(f"<g:{CLS}>{notes}</g:{CLS}>"))
    async with talking_to(DeviceServer(always(large))) as client:
        assert len((await client.get(CLS))["Notes"]) == 1000
    async with talking_to(DeviceServer(chassis)) as client:
        await client.get(CLS)
    assert [each == threading.get_ident() for each in threads] == [False, True]


async def test_a_large_answer_that_is_broken_names_its_step() -> None:
    broken = soap(b"<a>" + b" " * 100_000)
    async with talking_to(DeviceServer(always(broken))) as client:
        with pytest.raises(DeviceAnswerError, match=f"Get {CLS}"):
            await client.get(CLS)


async def test_after_a_bad_answer_the_next_call_works() -> None:
    answers = iter([b"garbage\r\n\r\n", CHASSIS])
    async with talking_to(DeviceServer(lambda request: next(answers))) as client:
        with pytest.raises(DeviceAnswerError):
            await client.get(CLS)
        assert await client.get(CLS) == {"Model": "NUC9"}


async def test_a_fault_names_step_code_and_reason() -> None:
    fault = soap(
        envelope(
            "<a:Fault><a:Code><a:Value>a:Sender</a:Value><a:Subcode><a:Value>e:AccessDenied"
            "</a:Value></a:Subcode></a:Code><a:Reason><a:Text>no</a:Text></a:Reason></a:Fault>"
        ),
        "400 Bad Request",
    )
    async with talking_to(DeviceServer(always(fault))) as client:
        with pytest.raises(WsmanFault, match="Get CIM_Chassis: Sender/AccessDenied: no") as caught:
            await client.get(CLS)
    assert (caught.value.fault_code, caught.value.subcode) == ("Sender", "AccessDenied")


def paged(pages: int) -> Callable[[Request], bytes]:
    """An enumeration of `pages` pages with one instance each."""

    def answer(request: Request) -> bytes:
        if b"/Enumerate</a:Action>" in request.body:
            body = "<e:EnumerationContext>0</e:EnumerationContext>"
            return soap(envelope(f"<e:EnumerateResponse>{body}</e:EnumerateResponse>"))
        page = int(request.body.split(b"<EnumerationContext>")[1].split(b"<")[0]) + 1
        end = "<e:EndOfSequence></e:EndOfSequence>"
        if page < pages:
            end = f"<e:EnumerationContext>{page}</e:EnumerationContext>"
        items = f"<e:Items><g:{CLS}><g:Tag>{page}</g:Tag></g:{CLS}></e:Items>"
        return soap(envelope(f"<e:PullResponse>{items}{end}</e:PullResponse>"))

    return answer


@pytest.mark.parametrize("pages", [1, 2, 40])
async def test_an_enumeration_is_pulled_to_its_end(pages: int) -> None:
    async with talking_to(DeviceServer(paged(pages))) as client:
        found = await client.enumerate(CLS)
    assert found == [{"Tag": str(page)} for page in range(1, pages + 1)]


async def test_an_endless_enumeration_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_PAGES", 20)
    async with talking_to(DeviceServer(paged(1_000_000))) as client:
        with pytest.raises(DeviceAnswerError, match="no end after 20 pages"):
            await client.enumerate(CLS)


async def test_an_enumeration_without_a_context_is_a_bad_answer() -> None:
    body = soap(envelope("<e:EnumerateResponse></e:EnumerateResponse>"))
    async with talking_to(DeviceServer(always(body))) as client:
        with pytest.raises(DeviceAnswerError, match="no enumeration context"):
            await client.enumerate(CLS)


async def test_the_other_operations_are_sent_and_answered() -> None:
    answers = iter(
        [
            soap(envelope("")),
            soap(envelope("<g:IdentifyResponse><g:A>b</g:A></g:IdentifyResponse>")),
        ]
    )
    server = DeviceServer(lambda request: next(answers))
    async with talking_to(server) as client:
        await client.delete(CLS, {"Tag": "1"})
        assert await client.identify() == {"A": "b"}
    operations = (b"/Delete</a:Action>", b"<Identify ")
    assert [o in r.body for o, r in zip(operations, server.authorized, strict=True)] == [True] * 2


# ---- TLS --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "device.pem"
    path.write_bytes(self_signed("device", datetime.datetime.now(datetime.UTC)))
    return path


@pytest.fixture(scope="session")
def fingerprint(pem: Path) -> bytes:
    certificate = x509.load_pem_x509_certificate(pem.read_bytes())
    return certificate.fingerprint(hashes.SHA256())


def modern(pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def tls10(pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("AES128-SHA:@SECLEVEL=0")
    context.options |= ssl.OP_NO_TLSv1_2 | ssl.OP_NO_TLSv1_3 | ssl.OP_NO_TLSv1_1
    context.load_cert_chain(pem)
    return context


@pytest.fixture
def legacy_server(pem: Path) -> DeviceServer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return DeviceServer(chassis, tls=tls10(pem))


async def test_tls_wins_when_both_ports_answer(pem: Path, fingerprint: bytes) -> None:
    plain, tls = DeviceServer(chassis), DeviceServer(chassis, tls=modern(pem))
    async with (
        plain.serving(),
        tls.serving(),
        client_to({16992: plain.port, 16993: tls.port}) as client,
    ):
        await client.get(CLS)
    facts = client.facts
    assert (facts.port, facts.tls, facts.pin) == (16993, TlsMode.MODERN, fingerprint)
    assert plain.requests == []
    assert facts.as_json()["pin"] == fingerprint.hex()


async def test_plain_is_taken_when_it_is_all_there_is() -> None:
    server = DeviceServer(chassis)
    async with talking_to(server) as client:
        await client.get(CLS)
    assert (client.facts.port, client.facts.tls) == (16992, TlsMode.OFF)
    assert client.facts.as_json()["pin"] == ""


@pytest.mark.parametrize("mode", [TlsMode.AUTO, TlsMode.LEGACY])
async def test_old_firmware_is_reached_with_old_tls(
    legacy_server: DeviceServer, mode: TlsMode
) -> None:
    async with legacy_server.serving(), client_to({16993: legacy_server.port}, tls=mode) as client:
        assert await client.get(CLS) == {"Model": "NUC9"}
    assert client.facts.tls is TlsMode.LEGACY


async def test_modern_mode_refuses_old_tls(legacy_server: DeviceServer) -> None:
    async with (
        legacy_server.serving(),
        client_to({16993: legacy_server.port}, tls=TlsMode.MODERN) as client,
    ):
        with pytest.raises(DeviceUnreachable, match="handshake"):
            await client.get(CLS)


@pytest.mark.parametrize("mode", [TlsMode.AUTO, TlsMode.MODERN])
async def test_another_certificate_than_the_pinned_one_gets_no_byte(
    pem: Path, fingerprint: bytes, mode: TlsMode
) -> None:
    server = DeviceServer(chassis, tls=modern(pem))
    pin = bytes(31) + b"\1"
    async with server.serving():
        async with client_to({16993: server.port}, tls=mode, pin=pin) as client:
            with pytest.raises(TlsPinMismatch) as caught:
                await client.get(CLS)
        await asyncio.sleep(0.05)
    assert pin.hex() in str(caught.value)
    assert fingerprint.hex() in str(caught.value)
    assert server.requests == []


async def test_the_pinned_certificate_is_accepted(pem: Path, fingerprint: bytes) -> None:
    server = DeviceServer(chassis, tls=modern(pem))
    async with server.serving(), client_to({16993: server.port}, pin=fingerprint) as client:
        assert await client.get(CLS)


@pytest.mark.parametrize(
    ("mode", "error"), [(TlsMode.AUTO, DeviceUnreachable), (TlsMode.OFF, TlsPinMismatch)]
)
async def test_a_pinned_device_is_never_spoken_to_in_plain(
    mode: TlsMode, error: type[AmtError]
) -> None:
    server = DeviceServer(chassis)
    async with (
        server.serving(),
        client_to({16992: server.port}, tls=mode, pin=b"\1" * 32) as client,
    ):
        with pytest.raises(error):
            await client.get(CLS)
    assert server.connections == 0


async def test_within_a_call_the_certificate_may_not_change(pem: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(self_signed("other", datetime.datetime.now(datetime.UTC)))
    server = DeviceServer(chassis, tls=modern(pem))
    thief = DeviceServer(chassis, tls=modern(other))
    async with server.serving(), thief.serving():
        ports = {16993: server.port}
        async with client_to(ports) as client:
            await client.get(CLS)
            server.hang_up()
            await asyncio.sleep(0.05)
            ports[16993] = thief.port
            with pytest.raises(TlsPinMismatch):
                await client.get(CLS)
    assert thief.requests == []


async def test_a_silent_plain_port_does_not_hold_tls_up(pem: Path) -> None:
    server = DeviceServer(chassis, tls=modern(pem))
    async with server.serving():
        dial = dial_to({16993: server.port})

        async def slow(port: int) -> socket.socket:
            if port == 16992:
                await asyncio.sleep(60)
            return await dial(port)

        deadline = asyncio.get_running_loop().time() + 5
        async with WsmanClient(slow, GOOD, deadline=deadline) as client:
            assert await client.get(CLS)


async def test_plain_is_taken_when_tls_stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "TLS_GRACE", 0.1)
    server = DeviceServer(chassis)
    async with server.serving():
        dial = dial_to({16992: server.port})

        async def slow(port: int) -> socket.socket:
            if port == 16993:
                await asyncio.sleep(60)
            return await dial(port)

        deadline = asyncio.get_running_loop().time() + 5
        async with WsmanClient(slow, GOOD, deadline=deadline) as client:
            assert await client.get(CLS)
    assert client.facts.tls is TlsMode.OFF
    assert client.facts.port == 16992


# ---- without WS-Man ---------------------------------------------------------------------------

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n"


async def test_a_web_server_without_wsman_is_a_typed_error() -> None:
    async with talking_to(DeviceServer(always(NOT_FOUND))) as client:
        with pytest.raises(WsmanAbsent, match="Get CIM_Chassis: HTTP 404"):
            await client.get(CLS)
    assert not client.facts.understood


async def test_another_service_is_posted_to_with_the_same_login() -> None:
    server = DeviceServer(chassis)
    async with talking_to(server) as client:
        answer = await client.post("/wsman", [("SOAPAction", '"x"')], b"<x/>", reads=True)
    assert answer.status == 200
    assert server.authorized[0].headers["soapaction"] == '"x"'
    assert server.authorized[0].body == b"<x/>"


# ---- devices that take their time -------------------------------------------------------------


@asynccontextmanager
async def speaking(chunks: list[bytes]) -> AsyncIterator[int]:
    """A port that accepts, listens to nothing and says a chunk now and then."""
    over = asyncio.Event()
    handlers: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        for chunk in chunks:
            writer.write(chunk)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 0.05)
                break
        await over.wait()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        over.set()
        if running := [task for task in handlers if task is not None]:
            await asyncio.wait(running)
        await asyncio.sleep(0)


SLOW = {
    "nothing": [],
    "an answer byte by byte": [bytes([byte]) for byte in CHASSIS],
    "headers without end": [b"HTTP/1.1 200 OK\r\n", *(b"X: y\r\n" for _ in range(100))],
}


@pytest.mark.parametrize("chunks", SLOW)
@pytest.mark.parametrize("tls", list(TlsMode))
async def test_a_device_that_is_too_slow_in_any_way_costs_the_deadline_and_no_more(
    chunks: str, tls: TlsMode
) -> None:
    loop = asyncio.get_running_loop()
    async with speaking(SLOW[chunks]) as port:
        began = loop.time()
        async with client_to({16992: port, 16993: port}, tls=tls, within=0.3) as client:
            # What is no TLS is noticed at once, everything else at the end.
            with pytest.raises((DeadlineExceeded, DeviceUnreachable), match=r"^Get CIM_Chassis: "):
                await client.get(CLS)
        assert loop.time() - began < 1.0


async def test_a_login_that_is_stale_for_ever_ends() -> None:
    server = DeviceServer(chassis, nonce_uses=0, close_on_401=False)
    async with talking_to(server) as client:
        with pytest.raises(AuthenticationFailed, match="Get CIM_Chassis"):
            await client.get(CLS)
    assert len(server.requests) == 2
