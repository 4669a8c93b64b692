"""An HTTP server that stands for a device in tests: digest, chunked answers, 401 with close.

It shares no code with the client or the simulator. `Recordings` are answers of real devices, served
as they were recorded.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gwmodule.errors import DeviceUnreachable

REALM = "Digest:34BF4B5A0561F95248F58509A406E046"
USERNAME = "admin"
PASSWORD = "P@ssw0rd"
SERVER = "Intel(R) Active Management Technology 15.0.23.1706"
FOLDER = Path(__file__).parents[3] / "shared" / "reference" / "amt-answers"

_FIELD = re.compile(r'(\w+)=(?:"([^"]*)"|([^\s,"]+))')


def md5(text: bytes) -> str:
    return hashlib.md5(text, usedforsecurity=False).hexdigest()


@dataclass
class Request:
    headers: dict[str, str]
    body: bytes

    def authorization(self) -> dict[str, str]:
        return {k: a or b for k, a, b in _FIELD.findall(self.headers.get("authorization", ""))}


Answer = Callable[[Request], bytes]


def soap(body: bytes, status: str = "200 OK") -> bytes:
    """A whole answer in two chunks with zero-padded sizes, as firmware cuts it."""
    first, rest = body[:0x220], body[0x220:]
    chunks = b"".join(b"%04X\r\n%s\r\n" % (len(part), part) for part in (first, rest) if part)
    head = (
        f"HTTP/1.1 {status}\r\nServer: {SERVER}\r\nX-Frame-Options: DENY\r\n"
        "Content-Type: application/soap+xml; charset=UTF-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    return head.encode() + chunks + b"0\r\n\r\n"


@dataclass
class DeviceServer:
    """Answers every authorized request with `answer`; what it saw is in the lists.

    An empty answer is none: the connection is closed instead.
    """

    answer: Answer
    realm: str = REALM
    qop: str = "auth"
    close_on_401: bool = True
    close_after_answer: bool = False
    # Requests a nonce is good for; after them the answer is 401 with stale.
    nonce_uses: int = 1000
    # False: every login is refused, however right it is.
    accepts: bool = True
    # Seconds before each answer.
    delay: float = 0.0
    tls: ssl.SSLContext | None = None
    port: int = 0
    connections: int = 0
    requests: list[Request] = field(default_factory=list)
    authorized: list[Request] = field(default_factory=list)
    _nonce: str = ""
    _uses: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["DeviceServer"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.sleep(0.01)

    def hang_up(self) -> None:
        """Close every idle connection, as firmware does after a minute."""
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                request = await _read_request(reader)
                self.requests.append(request)
                await asyncio.sleep(self.delay)
                if self._is_authorized(request):
                    self.authorized.append(request)
                    data = self.answer(request)
                    writer.write(data)
                    if self.close_after_answer or not data:
                        break
                else:
                    writer.write(self._challenge(request))
                    if self.close_on_401:
                        break
                await writer.drain()
            await writer.drain()
            writer.close()

    def _is_authorized(self, request: Request) -> bool:
        given = request.authorization()
        if not given or given.get("nonce") != self._nonce or not self.accepts:
            return False
        self._uses += 1
        if self._uses > self.nonce_uses or int(given["nc"], 16) != self._uses:
            return False
        first = md5(f"{USERNAME}:{self.realm}:{PASSWORD}".encode())
        second = b"POST:/wsman"
        if given["qop"] == "auth-int":
            second += b":" + md5(request.body).encode()
        middle = f"{self._nonce}:{given['nc']}:{given['cnonce']}:{given['qop']}"
        return given["response"] == md5(f"{first}:{middle}:{md5(second)}".encode())

    def _challenge(self, request: Request) -> bytes:
        stale = "true" if self._uses > self.nonce_uses else "false"
        self._nonce, self._uses = secrets.token_hex(16), 0
        close = "Connection: close\r\n" if self.close_on_401 else ""
        page = b"<html><body>401 Unauthorized</body></html>"
        head = (
            f"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Digest "
            f'realm="{self.realm}", nonce="{self._nonce}",stale="{stale}",qop="{self.qop}"\r\n'
            f"Content-Type: text/html\r\nServer: {SERVER}\r\n{close}"
            f"Content-Length: {len(page)}\r\n\r\n"
        )
        return head.encode() + page


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    line, *fields = head.strip().split("\r\n")
    assert line == "POST /wsman HTTP/1.1"
    headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
    return Request(headers, await reader.readexactly(int(headers["content-length"])))


def dial_to(ports: dict[int, int]) -> Callable[[int], Awaitable[socket.socket]]:
    """A `dial` that finds the device's ports on loopback; those not named refuse."""

    async def dial(port: int) -> socket.socket:
        if port not in ports:
            raise DeviceUnreachable(f"port {port}: Connection refused")
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", ports[port]))
        return sock

    return dial


class Recordings:
    """Recorded answers by class and operation; a missing one is a DestinationUnreachable fault."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], bytes] = {}
        self.asked: set[tuple[str, str]] = set()
        for path in sorted(FOLDER.rglob("*.xml")):
            if path.stem != "getuuid-bad":
                data = path.read_bytes()
                self._answers[_class(data), path.stem] = data

    def __call__(self, request: Request) -> bytes:
        cls = _class(request.body)
        operation = _text(request.body, "Action").strip().rpartition("/")[2].lower()
        self.asked.add((cls, operation))
        if operation == "pull" and b"<EnumerationContext>END<" in request.body:
            return soap(_LAST_PAGE)
        answer = self._answers.get((cls, operation))
        if answer is None:
            return soap(_FAULT, "400 Bad Request")
        if operation == "pull" and b"EndOfSequence" not in answer:
            # Only the first page of this one was recorded.
            answer = re.sub(rb"(EnumerationContext>)[^<]+", rb"\1END", answer)
        return soap(answer)

    def classes(self, operation: str) -> list[str]:
        return [cls for cls, recorded in self._answers if recorded == operation]

    def texts(self, cls: str, operation: str) -> list[str]:
        """The texts of the instances in document order, addresses of references included."""
        body = ElementTree.fromstring(self._answers[cls, operation])[1]
        root = body[0] if operation == "get" else body.find(".//{*}Items")
        assert root is not None
        return [text for text in (each.strip() for each in root.itertext()) if text]


def recordings() -> Recordings:
    """The recordings, or a skip that says why; in CI they must be there."""
    if not FOLDER.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{FOLDER} is missing, and CI must have it")
        pytest.skip(f"no recorded answers at {FOLDER}")
    return Recordings()


def _class(envelope: bytes) -> str:
    return _text(envelope, "ResourceURI").strip().rpartition("/")[2]


def _text(envelope: bytes, name: str) -> str:
    header = ElementTree.fromstring(envelope)[0]
    return next(each.text or "" for each in header if each.tag.endswith(f"}}{name}"))


_LAST_PAGE = (
    b'<a:Envelope xmlns:a="http://www.w3.org/2003/05/soap-envelope" '
    b'xmlns:g="http://schemas.xmlsoap.org/ws/2004/09/enumeration"><a:Header></a:Header><a:Body>'
    b"<g:PullResponse><g:Items></g:Items><g:EndOfSequence></g:EndOfSequence></g:PullResponse>"
    b"</a:Body></a:Envelope>"
)
_FAULT = (
    b'<a:Envelope xmlns:a="http://www.w3.org/2003/05/soap-envelope" '
    b'xmlns:b="http://schemas.xmlsoap.org/ws/2004/08/addressing"><a:Header></a:Header><a:Body>'
    b"<a:Fault><a:Code><a:Value>a:Sender</a:Value><a:Subcode><a:Value>b:DestinationUnreachable"
    b'</a:Value></a:Subcode></a:Code><a:Reason><a:Text xml:lang="en-US">No route can be '
    b"determined to reach the destination role defined by the WS-Addressing To.</a:Text>"
    b"</a:Reason><a:Detail></a:Detail></a:Fault></a:Body></a:Envelope>"
)
