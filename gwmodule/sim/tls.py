"""The TLS of old firmware: a self-signed RSA certificate, every version OpenSSL still speaks."""

from __future__ import annotations

import datetime
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from gwmodule.sim.machine import Certificate

# RSA, because the TLS of AMT before 12 exchanges keys with it.
KEY_SIZE = 2048


def self_signed(name: str, now: datetime.datetime) -> bytes:
    """A PEM file: a new key and its certificate for `name`, valid from a year before `now`."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_SIZE)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=365))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


def certificate_in(pem: bytes) -> Certificate:
    certificate = x509.load_pem_x509_certificate(pem)
    return Certificate(
        certificate.public_bytes(serialization.Encoding.DER),
        certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.PKCS1
        ),
        certificate.subject.rfc4514_string(),
    )


def device_context(pem: bytes) -> ssl.SSLContext:
    """A server context that also takes TLS 1.0 and weak ciphers, as devices in the field do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # MINIMUM_SUPPORTED: naming TLS 1.0 would be a DeprecationWarning.
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:!aNULL:@SECLEVEL=0")
    # The ssl module reads certificates from files only.
    with tempfile.TemporaryDirectory(prefix="gwmodule-sim-") as directory:
        path = Path(directory, "device.pem")
        path.write_bytes(pem)
        context.load_cert_chain(path)
    return context
