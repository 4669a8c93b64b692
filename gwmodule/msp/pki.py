"""The MSP's own small certificate authority, and the directory in which it lives.

    ca.crt ca.key          signs everything below; gateways trust this file and nothing else
    server.crt server.key  the gateway listener; renewed at start when names change or it ends soon
    registry.db            msp.registry

Keys are ECDSA P-256 and files of mode 0600. A gateway makes its own key and sends a request; for
gateways that are set up by hand a key is made here, handed out once, in their bundle, and not kept.
Time is an argument (`at`, unix seconds).
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gwmodule.errors import ConfigError, GatewayError
from gwmodule.msp.enrolment import SERVICE_NAME, check_gateway_name
from gwmodule.msp.enrolment import write_atomically as write_atomically

CA_LIFETIME = datetime.timedelta(days=20 * 365)
LIFETIME = datetime.timedelta(days=10 * 365)
RENEW_BEFORE = datetime.timedelta(days=90)
# Of a gateway that renews by itself: short enough that a lost one does not matter for long.
GATEWAY_LIFETIME = datetime.timedelta(days=365)
MAX_REQUEST = 16 * 1024
# Verifying a request costs more with every bit, and no gateway needs more.
_RSA_BITS = (2048, 4096)
# A gateway whose clock is some hours slow must not find a certificate that is not valid yet.
BACKDATE = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class GatewayBundle:
    """What one gateway needs to enrol; PEM texts, the fingerprint is SHA-256 of the DER in hex."""

    name: str
    certificate: str
    key: str = field(repr=False)
    ca: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate (PEM) that was signed for a gateway's own key."""

    certificate: str
    fingerprint: str
    not_after: float


GatewayKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


class BadRequest(GatewayError):
    """A certificate request that is none, or asks for a key that we do not sign."""


def requested_key(request: str) -> GatewayKey:
    """The public key of a certificate request (PKCS #10, PEM) whose signature is right.

    P-256, Ed25519, or RSA of 2048 to 4096 bits. Nothing else in it counts, its subject least of
    all: what a gateway is called is not for it to say.
    """
    if len(request) > MAX_REQUEST:
        raise BadRequest(f"a request of {len(request)} bytes, at most {MAX_REQUEST}")
    try:
        parsed = x509.load_pem_x509_csr(request.encode())
        key = parsed.public_key()
        match key:
            case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()) | ed25519.Ed25519PublicKey():
                pass
            case rsa.RSAPublicKey() if _RSA_BITS[0] <= key.key_size <= _RSA_BITS[1]:
                pass
            case _:
                raise BadRequest("the key must be P-256, Ed25519 or RSA of 2048 to 4096 bits")
        if not parsed.is_signature_valid:
            raise BadRequest("the request is not signed with its key")
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise BadRequest("no certificate request in PEM") from exc
    return key


def key_hash(key: GatewayKey) -> str:
    """SHA-256 of the SubjectPublicKeyInfo, in hex."""
    encoded = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(encoded).hexdigest()


def fingerprint(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


class Authority:
    """The CA of one state directory; `open` makes what is missing."""

    def __init__(
        self, directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> None:
        self.directory = directory
        self.certificate = certificate
        self._key = key

    @classmethod
    def open(cls, directory: Path, at: float) -> Authority:
        """ConfigError when the directory or its files cannot be used."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            certificate_path, key_path = directory / "ca.crt", directory / "ca.key"
            if not certificate_path.exists():
                _make_ca(certificate_path, key_path, at)
            certificate = _load_certificate(certificate_path)
            key = _load_key(key_path)
        except OSError as exc:
            where = exc.filename or directory
            raise ConfigError(str(where), "", exc.strerror or "cannot be used") from exc
        if certificate.public_key() != key.public_key():
            raise ConfigError(str(key_path), "", "is not the key of ca.crt")
        return cls(directory, certificate, key)

    @property
    def ca_path(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def server_certificate_path(self) -> Path:
        return self.directory / "server.crt"

    @property
    def server_key_path(self) -> Path:
        return self.directory / "server.key"

    def ensure_server_certificate(self, names: Sequence[str], at: float) -> list[str]:
        """Make or renew the listener's certificate; the names and addresses it carries."""
        wanted = list(dict.fromkeys([SERVICE_NAME, *names]))
        path = self.server_certificate_path
        try:
            if path.exists() and self.server_key_path.exists():
                certificate = _load_certificate(path)
                current = _names_of(certificate) == wanted
                lasting = certificate.not_valid_after_utc - RENEW_BEFORE > _time(at)
                ours = certificate.issuer == self.certificate.subject
                if current and lasting and ours:
                    return wanted
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._sign(
                SERVICE_NAME,
                key.public_key(),
                ExtendedKeyUsageOID.SERVER_AUTH,
                at,
                [_san(name) for name in wanted],
            )
            # Key first: after a crash between the two, the pair does not fit and is made anew.
            path.unlink(missing_ok=True)
            write_atomically(self.server_key_path, _key_pem(key))
            write_atomically(path, _pem(certificate), 0o644)
        except OSError as exc:
            raise ConfigError(str(path), "", exc.strerror or "cannot be written") from exc
        return wanted

    def gateway_bundle(self, name: str, at: float) -> GatewayBundle:
        """A new key and client certificate for gateway `name`; ValueError when it is no name."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(
            check_gateway_name(name), key.public_key(), ExtendedKeyUsageOID.CLIENT_AUTH, at, []
        )
        return GatewayBundle(
            name=name,
            certificate=_pem(certificate).decode(),
            key=_key_pem(key).decode(),
            ca=_pem(self.certificate).decode(),
            fingerprint=fingerprint(certificate),
        )

    def gateway_certificate(
        self,
        name: str,
        key: GatewayKey,
        at: float,
        lifetime: datetime.timedelta = GATEWAY_LIFETIME,
    ) -> Issued:
        """A client certificate for the key that gateway `name` has made itself."""
        certificate = self._sign(
            check_gateway_name(name), key, ExtendedKeyUsageOID.CLIENT_AUTH, at, [], lifetime
        )
        return Issued(
            certificate=_pem(certificate).decode(),
            fingerprint=fingerprint(certificate),
            not_after=certificate.not_valid_after_utc.timestamp(),
        )

    @property
    def ca(self) -> str:
        return _pem(self.certificate).decode()

    def _sign(
        self,
        common_name: str,
        key: GatewayKey,
        usage: x509.ObjectIdentifier,
        at: float,
        names: list[x509.GeneralName],
        lifetime: datetime.timedelta = LIFETIME,
    ) -> x509.Certificate:
        builder = _builder(common_name, key, at, lifetime, self.certificate.subject)
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _make_ca(certificate_path: Path, key_path: Path, at: float) -> None:
    """The key comes first and is never replaced: whoever trusts it goes on trusting it."""
    if key_path.exists():
        key = _load_key(key_path)
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        write_atomically(key_path, _key_pem(key))
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest
    builder = _builder(
        f"gwmodule MSP {identifier.hex()[:8]}", key.public_key(), at, CA_LIFETIME, None
    )
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_atomically(certificate_path, _pem(certificate), 0o644)


def _builder(
    common_name: str,
    key: GatewayKey,
    at: float,
    lifetime: datetime.timedelta,
    issuer: x509.Name | None,
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(at) - BACKDATE)
        .not_valid_after(_time(at) + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as exc:
        raise ConfigError("server.crt", "name", f"{name!r} is neither name nor address") from exc


def _names_of(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in extension.value]


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as exc:
        raise ConfigError(str(path), "", "is no PEM certificate") from exc


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as exc:
        raise ConfigError(str(path), "", "is no PEM private key without a password") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(str(path), "", "is no elliptic curve key")
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _time(at: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at, datetime.UTC)
