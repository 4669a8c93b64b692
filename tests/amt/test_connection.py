import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator

import pytest

from gwmodule.amt.connection import (
    ConnectionLost,
    HandshakeFailed,
    HttpConnection,
    connect_plain,
    connect_tls,
    legacy_context,
    modern_context,
)
from gwmodule.errors import DeviceAnswerError

HEAD = b"HTTP/1.1 200 OK\r\nServer: x\r\nX-A: 1\r\nX-A: 2\r\n"


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[HttpConnection, socket.socket]]:
    """A connection and the device's end of it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    connection = await connect_plain(ours)
    with theirs:
        yield connection, theirs
        connection.close()
        await asyncio.sleep(0)


async def test_a_request_is_one_post_with_a_length() -> None:
    async with connected() as (connection, device):
        device.send(HEAD + b"Content-Length: 2\r\n\r\nok")
        answer = await connection.post([("Host", "amt"), ("X", "y")], b"<a/>")
        assert device.recv(4096) == (
            b"POST /wsman HTTP/1.1\r\nHost: amt\r\nX: y\r\nContent-Length: 4\r\n\r\n<a/>"
        )
        assert (answer.status, answer.body) == (200, b"ok")
        assert (answer.header("server"), answer.header("none")) == ("x", "")
        assert answer.all("x-a") == ["1", "2"]


async def test_the_next_request_goes_over_the_same_connection() -> None:
    async with connected() as (connection, device):
        for body in (b"1", b"2"):
            device.send(HEAD + b"Content-Length: 1\r\n\r\n" + body)
            assert (await connection.post([("Host", "amt")], b"")).body == body
            assert connection.usable


@pytest.mark.parametrize(
    "answer",
    [HEAD + b"Connection: close\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nbody"],
)
async def test_after_a_close_the_connection_is_not_usable(answer: bytes) -> None:
    async with connected() as (connection, device):
        device.send(answer)
        device.shutdown(socket.SHUT_WR)
        await connection.post([("Host", "amt")], b"")
        assert not connection.usable


async def test_a_connection_that_the_device_ended_is_not_usable() -> None:
    async with connected() as (connection, device):
        assert connection.usable
        device.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(5):
            while connection.usable:
                await asyncio.sleep(0)


async def test_chunks_come_in_any_segmentation() -> None:
    answer = HEAD + b"Transfer-Encoding: chunked\r\n\r\n0003\r\nabc\r\n02\r\nde\r\n0\r\n\r\n"
    async with connected() as (connection, device):

        async def drip() -> None:
            for byte in answer:
                device.send(bytes([byte]))
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(drip())
            assert (await connection.post([("Host", "amt")], b"")).body == b"abcde"


async def test_a_close_before_the_answer_is_a_lost_connection() -> None:
    async with connected() as (connection, device):
        device.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionLost, match="without an answer"):
            await connection.post([("Host", "amt")], b"")


@pytest.mark.parametrize("answer", [b"HTTP", b"HTTP/1.1 200 OK\r\nServer: x"])
async def test_a_close_amid_the_headers_is_a_bad_answer(answer: bytes) -> None:
    async with connected() as (connection, device):
        device.send(answer)
        device.shutdown(socket.SHUT_WR)
        with pytest.raises(DeviceAnswerError):
            await connection.post([("Host", "amt")], b"")


async def reset_after(answer: bytes) -> None:
    """A device that sends `answer` and then resets the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await asyncio.sleep(0.05)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, server.sockets[0].getsockname())
    connection = await connect_plain(sock)
    try:
        await connection.post([("Host", "amt")], b"")
    finally:
        connection.close()
        server.close()
        await asyncio.sleep(0.01)


async def test_a_reset_before_the_answer_is_a_lost_connection() -> None:
    with pytest.raises(ConnectionLost, match="reset"):
        await reset_after(b"")


async def test_a_reset_amid_the_answer_tells_how_much_came() -> None:
    with pytest.raises(DeviceAnswerError, match=r"cut after 3 bytes: .*reset"):
        await reset_after(HEAD + b"Content-Length: 9\r\n\r\nabc")


async def test_a_protocol_that_is_switched_is_a_bad_answer() -> None:
    async with connected() as (connection, device):
        device.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
        with pytest.raises(DeviceAnswerError, match=r"HTTP/1\.1"):
            await connection.post([("Host", "amt")], b"")


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_a_handshake_that_fails_says_so(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        theirs.send(said)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(HandshakeFailed, match=r"TLS handshake: ."):
            await connect_tls(ours, modern_context())
    await asyncio.sleep(0)


def test_only_the_legacy_context_takes_old_tls() -> None:
    assert modern_context().minimum_version is ssl.TLSVersion.TLSv1_2
    assert legacy_context().minimum_version < ssl.TLSVersion.TLSv1_2
    for context in (modern_context(), legacy_context()):
        assert context.verify_mode is ssl.CERT_NONE
        assert context.options & ssl.OP_NO_SSLv3
    assert modern_context() is modern_context()
