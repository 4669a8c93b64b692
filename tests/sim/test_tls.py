import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from gwmodule.sim.tls import certificate_in, device_context, self_signed

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def pem() -> bytes:
    return self_signed("pc", NOW)


def test_the_certificate_is_self_signed_and_valid_now(pem: bytes) -> None:
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.issuer == certificate.subject
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc
    assert isinstance(certificate.public_key(), rsa.RSAPublicKey)


def test_the_key_stands_in_its_certificate(pem: bytes) -> None:
    certificate = certificate_in(pem)
    assert certificate.subject == "CN=pc"
    assert ssl.DER_cert_to_PEM_cert(certificate.der).encode() in pem
    assert certificate.key in certificate.der


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_modern_client_shakes_hands(pem: bytes, version: ssl.TLSVersion) -> None:
    assert shake(pem, version, "DEFAULT") == version.name.replace("_", ".")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_client_of_tls_1_0_with_rsa_key_exchange_shakes_hands(pem: bytes) -> None:
    assert shake(pem, ssl.TLSVersion.TLSv1, "AES128-SHA:@SECLEVEL=0") == "TLSv1"


def shake(pem: bytes, version: ssl.TLSVersion, ciphers: str) -> str | None:
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE
    client_context.set_ciphers(ciphers)
    client_context.minimum_version = client_context.maximum_version = version
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(a, b)
    server = device_context(pem).wrap_bio(b, a, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client.version()
