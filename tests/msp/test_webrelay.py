import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from gwmodule.amt.digest import ha1
from gwmodule.amt.redirection import LoginMethod, digest_response, parse_digest_login
from gwmodule.errors import ChannelReset, Code
from gwmodule.msp.subprotocol import SUBPROTOCOL, close_code
from gwmodule.wire.frames import Priority
from tests.amt.transcript import ACCEPTED, CHALLENGE, login_of
from tests.msp.conftest import NOW, PC, REALM, FakeStream, Service

SOL_START = b"\x10\x00\x00\x00SOL "
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"


@asynccontextmanager
async def tool(
    service: Service, query: str = "port=16994", protocols: tuple[str, ...] = ()
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    connector = aiohttp.UnixConnector(str(service.path))
    url = f"http://x/relay/webrelay.ashx?p=2&host={PC}&{query}"
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(url, protocols=protocols, compress=0) as websocket,
    ):
        yield websocket


async def opened(service: Service) -> FakeStream:
    async with asyncio.timeout(5):
        return await service.session.streams.get()


@pytest.mark.parametrize(
    ("query", "first", "priority"),
    [
        ("port=16994", [SOL_START], Priority.INTERACTIVE),
        ("port=16994", [SOL_START[:3], SOL_START[3:]], Priority.INTERACTIVE),
        ("port=16994&mode=kvm", [b"\x10\x01\x00\x00KVMR"], Priority.BULK),
        ("port=16994&mode=sol", [b"\x10\x00\x00\x00IDER"], Priority.BULK),
        ("port=16995&mode=sol", [CLIENT_HELLO], Priority.INTERACTIVE),
        ("port=16995", [CLIENT_HELLO], Priority.BULK),
        ("port=16992", [b"POST /wsman HTTP/1.1\r\n"], Priority.BULK),
        ("port=16994", [], Priority.BULK),
        ("port=16994", [SOL_START[:4]], Priority.BULK),
    ],
)
async def test_the_first_bytes_decide_the_class(
    service: Service, query: str, first: list[bytes], priority: Priority
) -> None:
    async with tool(service, query) as websocket:
        for chunk in first:
            await websocket.send_bytes(chunk)
        stream = await opened(service)
        assert stream.priority is priority
        await stream.wait_for(lambda: stream.written == first)


async def test_chunks_pass_both_ways_as_they_came(service: Service) -> None:
    async with tool(service) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        for chunk in (b"a", b"bc"):
            await websocket.send_bytes(chunk)
            stream.incoming.put_nowait(chunk.upper())
        assert [await websocket.receive_bytes(), await websocket.receive_bytes()] == [b"A", b"BC"]
        await stream.wait_for(lambda: stream.written == [SOL_START, b"a", b"bc"])


async def test_the_target_is_the_recorded_place(service: Service) -> None:
    async with tool(service, "port=16994&hold=1") as websocket:
        await websocket.send_bytes(SOL_START)
        target = (await opened(service)).target
        assert (str(target.address), target.port, target.uuid) == ("192.168.1.10", 16994, PC)
        assert target.mac == bytes.fromhex("020000000001")
        assert target.hold


async def test_a_plain_tool_is_closed_when_the_device_ends(service: Service) -> None:
    async with tool(service) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        stream.incoming.put_nowait(b"bye")
        stream.incoming.put_nowait(b"")
        assert await websocket.receive_bytes() == b"bye"
        message = await websocket.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1000)
        assert stream.eof.is_set()
    assert stream.reset_with is None


async def test_each_direction_ends_by_itself_with_our_subprotocol(service: Service) -> None:
    async with tool(service, protocols=(SUBPROTOCOL,)) as websocket:
        await websocket.send_bytes(SOL_START)
        await websocket.send_bytes(b"")
        stream = await opened(service)
        async with asyncio.timeout(5):
            await stream.eof.wait()
        stream.incoming.put_nowait(b"still here")
        assert await websocket.receive_json() == {"stream": stream.channel}
        assert await websocket.receive_bytes() == b"still here"
        stream.incoming.put_nowait(b"")
        assert await websocket.receive_bytes() == b""
        message = await websocket.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1000)
    assert stream.reset_with is None


async def test_a_tool_that_leaves_in_order_ends_its_direction(service: Service) -> None:
    async with tool(service) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        await websocket.close()
        async with asyncio.timeout(5):
            await stream.eof.wait()
        stream.incoming.put_nowait(b"too late")
        stream.incoming.put_nowait(b"")
        await asyncio.sleep(0.05)
    assert stream.reset_with is None


async def test_a_device_that_does_not_follow_is_reset_after_a_while(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gwmodule.msp.webrelay.LINGER", 0.05)
    async with tool(service) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        await websocket.close()
        await stream.wait_for(lambda: stream.reset_with is not None)
    assert stream.reset_with == (Code.CANCELLED, "the technician's tool went away")


async def test_a_tool_that_dies_resets_the_stream(service: Service) -> None:
    connector = aiohttp.UnixConnector(str(service.path))
    session = aiohttp.ClientSession(connector=connector)
    url = f"http://x/relay/webrelay.ashx?host={PC}"
    websocket = await session.ws_connect(url)
    await websocket.send_bytes(SOL_START)
    stream = await opened(service)
    response = websocket._response
    assert response.connection is not None
    assert response.connection.transport is not None
    response.connection.transport.abort()
    await stream.wait_for(lambda: stream.reset_with is not None)
    assert stream.reset_with is not None
    assert stream.reset_with[0] is Code.CANCELLED
    await session.close()


@pytest.mark.parametrize(
    ("protocols", "send", "reason"),
    [
        ((), "text", "binary messages"),
        ((SUBPROTOCOL,), "after end", "after the end"),
    ],
)
async def test_a_tool_that_breaks_the_rules_is_told(
    service: Service, protocols: tuple[str, ...], send: str, reason: str
) -> None:
    async with tool(service, protocols=protocols) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        if send == "text":
            await websocket.send_str("hello")
        else:
            await websocket.send_bytes(b"")
            await websocket.send_bytes(b"more")
            assert await websocket.receive_json() == {"stream": stream.channel}
        message = await websocket.receive()
        assert message.data == close_code(Code.PROTOCOL_ERROR)
        assert reason in str(message.extra)
    assert stream.reset_with is not None


async def test_a_cut_stream_closes_with_its_reason_and_is_audited(service: Service) -> None:
    async with tool(service) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        stream.incoming.put_nowait(b"x")
        stream.incoming.put_nowait(ChannelReset(Code.POWER_ACTION, "power action by anna"))
        assert await websocket.receive_bytes() == b"x"
        message = await websocket.receive()
        assert (message.data, message.extra) == (
            close_code(Code.POWER_ACTION),
            "power action by anna",
        )
    async with asyncio.timeout(5):
        while (await service.registry.audit_entries())[0].action != "stream.close":
            await asyncio.sleep(0.01)
    close, open_ = await service.registry.audit_entries(limit=2)
    assert (open_.action, open_.detail) == ("stream.open", {"port": 16994})
    assert (close.detail["code"], close.detail["toDevice"]) == ("power_action", 8)
    assert close.detail["fromDevice"] == 1


async def test_a_device_that_takes_no_more_stops_the_tool(service: Service) -> None:
    async with tool(service) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        stream.room.clear()
        chunk = bytes(65536)
        sent = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    await websocket.send_bytes(chunk)
                    sent += len(chunk)
        assert sum(map(len, stream.written)) <= 2 * len(chunk) + 8
        assert sent < 4 * 1024 * 1024
        stream.room.set()
        await stream.wait_for(lambda: sum(map(len, stream.written)) >= sent + 8)


async def test_a_tool_that_does_not_read_stops_the_device(service: Service) -> None:
    async with tool(service) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        for _ in range(256):
            stream.incoming.put_nowait(bytes(65536))
        await asyncio.sleep(0.5)
        assert stream.incoming.qsize() > 128
        async with asyncio.timeout(10):
            for _ in range(256):
                assert len(await websocket.receive_bytes()) == 65536


async def test_a_message_that_is_too_large_ends_the_stream(service: Service) -> None:
    async with tool(service) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        # The service may close while we are still sending.
        with suppress(aiohttp.ClientError, ConnectionError):
            await websocket.send_bytes(bytes(2 * 1024 * 1024))
        await stream.wait_for(lambda: stream.reset_with is not None)
    assert sum(map(len, stream.written)) == len(SOL_START)


async def test_the_service_says_that_it_stops(service: Service) -> None:
    async with tool(service) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        async with asyncio.TaskGroup() as group:
            group.create_task(service.runner.cleanup())
            message = await websocket.receive()
        assert message.data == close_code(Code.SHUTDOWN)
    assert stream.reset_with is not None


# What Open AMT's browser parts send: a login without a name, and a response made of nothing.
NAMELESS = login_of("")
NAMELESS_RESPONSE = login_of("", b"00000002", b"d41d8cd98f00b204e9800998ecf8427e")


async def challenged(
    websocket: aiohttp.ClientWebSocketResponse, stream: FakeStream, realm: str = REALM
) -> bytes:
    """The device's challenge, as it reaches the tool, which asks for it without a name."""
    await websocket.send_bytes(NAMELESS)
    await stream.wait_for(lambda: len(stream.written) == 2)
    data = b"".join(bytes([len(t)]) + t for t in (realm.encode(), b"00" * 16, b"auth"))
    stream.incoming.put_nowait(b"\x14\x01\0\0\x04" + len(data).to_bytes(4, "little") + data)
    return await websocket.receive_bytes()


async def test_a_tool_without_a_login_gets_the_stored_one(service: Service) -> None:
    await service.vault.store("default", PC, "admin", "P@ssw0rd", NOW, actor="test")
    async with tool(service) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        assert (await challenged(websocket, stream))[:5] == b"\x14\x01\0\0\x04"
        assert b"admin" in stream.written[1]
        await websocket.send_bytes(NAMELESS_RESPONSE)
        await stream.wait_for(lambda: len(stream.written) == 3)
        proof = parse_digest_login(LoginMethod.DIGEST, stream.written[2][9:])
        secret = ha1("admin", REALM, "P@ssw0rd")
        assert proof.response == digest_response(LoginMethod.DIGEST, secret, proof)
        assert (proof.username, proof.realm, proof.nonce) == ("admin", REALM, "00" * 16)
        stream.incoming.put_nowait(ACCEPTED)
        assert await websocket.receive_bytes() == ACCEPTED
        # From here on it is the tool's session.
        await websocket.send_bytes(NAMELESS)
        await stream.wait_for(lambda: stream.written[3:] == [NAMELESS])


async def test_a_stored_login_that_the_device_refuses_is_said_to_the_tool(service: Service) -> None:
    await service.vault.store("default", PC, "admin", "old", NOW, actor="test")
    async with tool(service) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        await challenged(websocket, stream)
        await websocket.send_bytes(NAMELESS_RESPONSE)
        await stream.wait_for(lambda: len(stream.written) == 3)
        stream.incoming.put_nowait(CHALLENGE)
        message = await websocket.receive()
        assert message.data == close_code(Code.AUTHENTICATION)
        assert message.extra == "the device refused the login that is stored for it"
    assert stream.reset_with is not None


async def test_another_device_gets_no_stored_login(service: Service) -> None:
    await service.vault.store("default", PC, "admin", "P@ssw0rd", NOW, actor="test")
    async with tool(service) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        await challenged(websocket, stream, "Digest:another")
        await websocket.send_bytes(NAMELESS_RESPONSE)
        assert (await websocket.receive()).data == close_code(Code.IDENTITY_MISMATCH)
    assert len(stream.written) == 2


@pytest.mark.parametrize(
    ("query", "protocols", "stored"),
    [
        ("port=16994", (), False),
        ("port=16995", (), True),
        ("port=16994", (SUBPROTOCOL,), True),
    ],
    ids=["nothing is stored", "inside TLS", "our own tools, end to end"],
)
async def test_no_login_is_changed_elsewhere(
    service: Service, query: str, protocols: tuple[str, ...], stored: bool
) -> None:
    if stored:
        await service.vault.store("default", PC, "admin", "P@ssw0rd", NOW, actor="test")
    async with tool(service, query, protocols) as websocket:
        await websocket.send_bytes(SOL_START)
        stream = await opened(service)
        await websocket.send_bytes(NAMELESS)
        await stream.wait_for(lambda: stream.written == [SOL_START, NAMELESS])
