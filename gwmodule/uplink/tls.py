"""TLS for the link: contexts, and an engine on memory buffers.

asyncio's own TLS keeps a buffer of 256 KiB for each connection and adds latency; here both buffers
stay as short as the scheduler wants them.
"""

from __future__ import annotations

import datetime
import hashlib
import ssl
from typing import Any, NamedTuple

from gwmodule import BUILD_DATE
from gwmodule.config import TlsConfig
from gwmodule.errors import ConfigError, LinkLost
from gwmodule.wire.frames import ALPN

# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python's ssl has no name for.
_NO_CHECK_TIME = 0x200000
_READ = 65536


class PeerIdentity(NamedTuple):
    """What the peer's verified certificate says."""

    name: str
    fingerprint: str


def clock_is_trusted(now: datetime.datetime | None = None) -> bool:
    """False on a router without a clock chip before NTP: the wall clock is older than this code."""
    return (now or datetime.datetime.now(datetime.UTC)).date() >= BUILD_DATE


def client_context(config: TlsConfig, clock_trusted: bool) -> ssl.SSLContext:
    """The gateway's side: our certificate, their CA only. ConfigError names the file at fault.

    With an untrusted clock the validity dates are not checked; CA and name always are.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _common(context, config.cafile, config.certificate, config.key)
    context.check_hostname = True
    if not clock_trusted:
        forgive_dates(context)
    return context


def forgive_dates(context: ssl.SSLContext) -> None:
    """Authority and name are verified as ever; from when until when is not."""
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | _NO_CHECK_TIME)


def server_context(cafile: str, certificate: str, key: str) -> ssl.SSLContext:
    """The MSP's side: a client certificate of our CA is required before a byte is read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _common(context, cafile, certificate, key)
    # A resumed TLS session would skip the certificate; our own resumption is in the greeting.
    context.num_tickets = 0
    return context


def _common(context: ssl.SSLContext, cafile: str, certificate: str, key: str) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([ALPN])
    for path, name in ((cafile, "tls.cafile"), (certificate, "tls.certificate"), (key, "tls.key")):
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as exc:
            raise ConfigError(path, name, exc.strerror or "cannot be read") from exc
    try:
        context.load_verify_locations(cafile)
    except ssl.SSLError as exc:
        raise ConfigError(cafile, "tls.cafile", f"no PEM certificates: {exc.reason}") from exc
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as exc:
        raise ConfigError(certificate, "tls.certificate", f"not a pair: {exc.reason}") from exc


class TlsEngine:
    """One TLS connection on memory buffers. Any failure is a LinkLost that says why."""

    def __init__(self, context: ssl.SSLContext, server_name: str | None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_name is None,
            server_hostname=server_name,
        )
        self.ready = False

    def receive(self, data: bytes) -> bytes:
        """Ciphertext in, plaintext out (empty while the handshake goes on)."""
        self._incoming.write(data)
        if not self.ready and not self.handshake():
            return b""
        parts: list[bytes] = []
        try:
            while True:
                part = self._object.read(_READ)
                if not part:
                    break
                parts.append(part)
                # Looking costs less than the exception that says there is nothing more.
                if not self._incoming.pending and not self._object.pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as exc:
            # OpenSSL gives up on the connection, and so nothing that came with it counts.
            raise LinkLost(f"TLS: {exc.reason or exc}") from exc
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def handshake(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLCertVerificationError as exc:
            raise LinkLost(f"certificate of the peer: {exc.verify_message}") from exc
        except ssl.SSLError as exc:
            raise LinkLost(f"TLS handshake: {exc.reason or exc}") from exc
        if self._object.selected_alpn_protocol() != ALPN:
            raise LinkLost(f"the peer does not speak {ALPN}")
        self.ready = True
        return True

    def encrypt(self, data: bytes) -> bytes:
        """Plaintext in, ciphertext out."""
        try:
            self._object.write(data)
        except ssl.SSLError as exc:
            raise LinkLost(f"TLS: {exc.reason or exc}") from exc
        return self._outgoing.read()

    def close_notify(self) -> None:
        try:
            self._object.unwrap()
        except ssl.SSLError:
            # The peer's own close_notify will not come; ours is written, which is what counts.
            return

    def data_to_send(self) -> bytes:
        """What TLS itself has to say: handshake, answers to what was received, close_notify."""
        return self._outgoing.read()

    def peer_identity(self) -> PeerIdentity:
        """Common name and SHA-256 fingerprint of the peer's leaf certificate."""
        der = self._object.getpeercert(binary_form=True) or b""
        subject: Any = (self._object.getpeercert() or {}).get("subject", ())
        names = [value for rdn in subject for key, value in rdn if key == "commonName"]
        return PeerIdentity(str(names[0]) if names else "", hashlib.sha256(der).hexdigest())
