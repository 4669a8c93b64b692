import asyncio
import hashlib
import ssl
from pathlib import Path

import pytest

from gwmodule.amt.connection import HandshakeFailed, legacy_context, modern_context
from gwmodule.errors import ChannelReset, Code, TlsPinMismatch
from gwmodule.msp.pki import Authority
from gwmodule.msp.tls import TlsStream

NOW = 1_800_000_000.0


class Wire:
    """A `ClientStream` whose other end is a TLS server in memory."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.server = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.closed: tuple[Code, str] | None = None

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        return self.outgoing.read()

    async def write(self, data: bytes) -> None:
        self.incoming.write(data)
        try:
            self.server.do_handshake()
        except ssl.SSLWantReadError:
            return

    async def close(self, code: Code = Code.OK, reason: str = "") -> None:
        self.closed = (code, reason)


class Garbage(Wire):
    async def read(self) -> bytes:
        return b"HTTP/1.1 400 Bad Request\r\n\r\n"


class Silent(Wire):
    async def read(self) -> bytes:
        return b""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, bytes]:
    directory: Path = tmp_path_factory.mktemp("device")
    authority = Authority.open(directory, NOW)
    authority.ensure_server_certificate([], NOW)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server_certificate_path, authority.server_key_path)
    pem = authority.server_certificate_path.read_text()
    return context, hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest()


def stream(wire: Wire, context: ssl.SSLContext | None = None) -> TlsStream:
    return TlsStream(wire, context or modern_context())


@pytest.mark.parametrize("context", [modern_context(), legacy_context()])
async def test_bytes_pass_when_the_certificate_is_the_pinned_one(
    device: tuple[ssl.SSLContext, bytes], context: ssl.SSLContext
) -> None:
    wire = Wire(device[0])
    tls = stream(wire, context)
    await tls.open(device[1])
    await tls.write(b"to the device")
    assert wire.server.read(100) == b"to the device"
    wire.server.write(b"from the device")
    assert await tls.read() == b"from the device"
    with pytest.raises(ssl.SSLWantReadError):
        wire.server.unwrap()
    assert await tls.read() == b""
    await tls.close(Code.OK, "done")
    assert wire.closed == (Code.OK, "done")


async def test_another_certificate_is_refused_before_anything_is_said(
    device: tuple[ssl.SSLContext, bytes],
) -> None:
    with pytest.raises(TlsPinMismatch, match=device[1].hex()):
        await stream(Wire(device[0])).open(bytes([7]) * 32)


@pytest.mark.parametrize("kind", [Garbage, Silent])
async def test_what_speaks_no_tls_is_a_failed_handshake(
    device: tuple[ssl.SSLContext, bytes], kind: type[Wire]
) -> None:
    with pytest.raises(HandshakeFailed, match="TLS handshake"):
        await stream(kind(device[0])).open()


async def test_a_damaged_record_cuts_the_stream(device: tuple[ssl.SSLContext, bytes]) -> None:
    wire = Wire(device[0])
    tls = stream(wire)
    await tls.open(device[1])
    await tls.write(b"x")
    wire.server.write(b"payload")
    record = bytearray(wire.outgoing.read())
    record[-1] ^= 1
    wire.outgoing.write(bytes(record))
    with pytest.raises(ChannelReset, match="TLS"):
        await tls.read()
