from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from gwmodule.msp.pki import Authority, key_hash, requested_key
from gwmodule.provisioning import identity
from gwmodule.provisioning.identity import (
    Paths,
    ProvisioningError,
    belong_together,
    describe,
    fingerprint,
    make_key,
    openssl,
    read,
    request,
    usable_key,
)

NOW = 1_800_000_000.0


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "key", tmp_path / "crt", tmp_path / "ca")


def enrolled(paths: Paths, state: Path, name: str = "home-1") -> Authority:
    authority = Authority.open(state, NOW)
    make_key(paths.key)
    key = requested_key(request(paths.key, "whoever"))
    paths.certificate.write_text(authority.gateway_certificate(name, key, NOW).certificate)
    paths.cafile.write_text(authority.ca)
    return authority


def test_what_openssl_makes_the_authority_can_sign(paths: Paths, tmp_path: Path) -> None:
    enrolled(paths, tmp_path / "state")
    certificate = read(paths)
    assert certificate is not None
    assert certificate.name == "home-1"
    assert certificate.not_before.timestamp() == NOW - 86400
    third = (certificate.not_after - certificate.not_before) / 3
    assert certificate.not_after - certificate.renew_at == third
    loaded = x509.load_pem_x509_certificate(paths.certificate.read_bytes())
    assert isinstance(loaded.public_key(), ec.EllipticCurvePublicKey)


def test_a_key_is_for_its_owner_only_and_new_each_time(paths: Paths) -> None:
    hashes = set()
    for _ in range(2):
        make_key(paths.key)
        assert paths.key.stat().st_mode & 0o777 == 0o600
        hashes.add(key_hash(requested_key(request(paths.key, "x"))))
    assert len(hashes) == 2


def test_parts_of_different_identities_are_none(paths: Paths, tmp_path: Path) -> None:
    enrolled(paths, tmp_path / "state")
    other = Paths(tmp_path / "key2", tmp_path / "crt2", tmp_path / "ca2")
    enrolled(other, tmp_path / "state2")
    assert belong_together(paths.key, paths.certificate, paths.cafile)
    assert read(Paths(other.key, paths.certificate, paths.cafile)) is None
    assert read(Paths(paths.key, paths.certificate, other.cafile)) is None
    assert read(Paths(paths.key, tmp_path / "missing", paths.cafile)) is None


@pytest.mark.parametrize("garbage", [b"", b"\0" * 100, b"-----BEGIN CERTIFICATE-----\nxx\n"])
def test_garbage_is_no_identity(paths: Paths, tmp_path: Path, garbage: bytes) -> None:
    enrolled(paths, tmp_path / "state")
    for path in paths.all():
        good = path.read_bytes()
        path.write_bytes(garbage)
        assert read(paths) is None
        path.write_bytes(good)
    paths.certificate.write_bytes(garbage)
    with pytest.raises(ProvisioningError):
        describe(paths.certificate)
    paths.key.write_bytes(garbage)
    assert not usable_key(paths.key)


def test_the_fingerprint_is_openssls(paths: Paths, tmp_path: Path) -> None:
    enrolled(paths, tmp_path / "state")
    printed = openssl("x509", "-noout", "-fingerprint", "-sha256", "-in", str(paths.cafile))
    expected = printed.decode().strip().partition("=")[2].replace(":", "").lower()
    assert fingerprint(paths.cafile.read_text()) == expected
    with pytest.raises(ValueError, match="substring not found"):
        fingerprint("nothing")


def test_a_systems_strange_openssl_configuration_does_not_matter(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cnf").write_text("garbage\n")
    monkeypatch.setenv("OPENSSL_CONF", str(tmp_path / "cnf"))
    make_key(paths.key)
    assert request(paths.key, "x").startswith("-----BEGIN CERTIFICATE REQUEST-----")


def test_a_missing_openssl_is_named(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ProvisioningError, match="openssl is not installed"):
        make_key(paths.key)


def test_the_layers_below_an_overlay_are_looked_at() -> None:
    mounts = (
        "proc /proc proc rw 0 0\noverlay / overlay rw,lowerdir=/a:/b,upperdir=/c,workdir=/d 0 0\n"
    )
    assert identity._lower_layers(mounts) == [Path("/a"), Path("/b")]
    openwrt = "overlayfs:/overlay / overlay rw,lowerdir=/,upperdir=/overlay/upper 0 0\n"
    assert identity._lower_layers(openwrt) == []


def test_the_key_is_never_an_argument(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    run = subprocess.run

    def spy(argv: list[str], **options: object) -> object:
        seen.append(argv)
        assert "OPENSSL_CONF" in options["env"]  # type: ignore[operator]
        return run(argv, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", spy)
    make_key(paths.key)
    request(paths.key, "home-1")
    key = paths.key.read_text().splitlines()[1]
    assert not any(key in word for argv in seen for word in argv)
    assert os.access(paths.key, os.R_OK)
