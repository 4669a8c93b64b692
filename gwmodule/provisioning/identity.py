"""The gateway's key, certificate and authority as files, read and made with `openssl`.

A gateway has an identity when all three are there, the certificate is the key's and the authority
has signed it. Dates are left to the caller, whose clock may not be set yet.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gwmodule.config import TlsConfig
from gwmodule.errors import GatewayError
from gwmodule.files import write_atomically

# Where OpenWrt shows what is in the image, below whatever was written since.
ROM = Path("/rom")
# A first boot may have to gather entropy for the key.
_OPENSSL_TIMEOUT = 120.0
_MAX_PEM = 64 * 1024
# `openssl req` wants a configuration, whatever the distribution has put into its own.
_REQUEST_CONFIG = b"[req]\ndistinguished_name=dn\n[dn]\n"


class ProvisioningError(GatewayError):
    """It cannot be done; the state is what it was before."""


class ImageKey(ProvisioningError):
    """The private key is part of the firmware image, so every box with that image has it."""

    def __init__(self, key: Path, image: Path) -> None:
        super().__init__(
            f"{key}: this private key is part of the image ({image}), so every box made from the"
            " image has it. Build the image without it (docs/provisioning.md) and remove it here:"
            " gwmodule deprovision"
        )


@dataclass(frozen=True, slots=True)
class Paths:
    key: Path
    certificate: Path
    cafile: Path

    @classmethod
    def of(cls, tls: TlsConfig) -> Paths:
        return cls(Path(tls.key), Path(tls.certificate), Path(tls.cafile))

    def all(self) -> tuple[Path, Path, Path]:
        return self.key, self.certificate, self.cafile


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says: the gateway's name, and from when until when."""

    name: str
    not_before: datetime.datetime
    not_after: datetime.datetime

    @property
    def renew_at(self) -> datetime.datetime:
        """Two thirds of the lifetime: the rest is for an MSP that cannot be reached."""
        return self.not_before + (self.not_after - self.not_before) * 2 / 3


def read(paths: Paths) -> Certificate | None:
    """The certificate of a whole identity; None when there is none. ImageKey, OSError."""
    for path in paths.all():
        if not path.exists():
            return None
    refuse_image_key(paths.key)
    if not belong_together(paths.key, paths.certificate, paths.cafile):
        return None
    return describe(paths.certificate)


def belong_together(key: Path, certificate: Path, cafile: Path) -> bool:
    """Whether the certificate is the key's, and signed by the authority for clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError:
        return False
    with contextlib.suppress(ProvisioningError):
        openssl(
            "verify", "-no_check_time", "-purpose", "sslclient", "-CAfile", str(cafile),
            str(certificate),
        )  # fmt: skip
        return True
    return False


def describe(certificate: Path) -> Certificate:
    """ProvisioningError when it is no certificate with a name and dates."""
    printed = openssl(
        "x509", "-noout", "-subject", "-startdate", "-enddate",
        "-nameopt", "sep_multiline,utf8,esc_ctrl", "-in", str(certificate),
    ).decode(errors="replace")  # fmt: skip
    values = dict(
        line.strip().split("=", 1) for line in printed.splitlines() if "=" in line.strip()
    )
    try:
        return Certificate(
            values["CN"].strip(), _date(values["notBefore"]), _date(values["notAfter"])
        )
    except (KeyError, ValueError) as exc:
        raise ProvisioningError(f"{certificate}: no name or no dates in it") from exc


def make_key(path: Path) -> None:
    """A new P-256 key for its owner's eyes; the service manager hands it to the relay."""
    key = openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    write_atomically(path, key, 0o600)


def request(key: Path, name: str) -> str:
    """A certificate request (PEM). Its subject is a courtesy: the MSP decides the name."""
    made = openssl(
        "req", "-new", "-batch", "-config", "/dev/stdin", "-subj", f"/CN={name}", "-key", str(key),
        stdin=_REQUEST_CONFIG,
    )  # fmt: skip
    return made.decode()


def usable_key(path: Path) -> bool:
    """Whether there is a private key; one that an interrupted run has left is taken up again."""
    if not path.exists():
        return False
    refuse_image_key(path)
    try:
        openssl("pkey", "-noout", "-in", str(path))
    except ProvisioningError:
        return False
    return True


def fingerprint(pem: str) -> str:
    """SHA-256 of the first certificate in `pem`, in hex. ValueError when there is none."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start = pem.index(begin)
    first = pem[start : pem.index(end, start) + len(end)]
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()


def write_public(path: Path, data: bytes) -> None:
    write_atomically(path, data, 0o644)


@contextlib.contextmanager
def scratch(data: bytes) -> Iterator[Path]:
    """A file for `openssl` to read, in RAM where /tmp is."""
    with tempfile.NamedTemporaryFile(prefix="gwmodule.") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def refuse_image_key(key: Path) -> None:
    """ImageKey if the same key lies in the read-only image below.

    Three ways to see it: OpenWrt's /rom, the lower layers of an overlay, a read-only file system.
    """
    own = key.read_bytes()
    for below in (ROM, *_lower_layers(Path("/proc/self/mounts").read_text())):
        image = below / key.relative_to("/") if key.is_absolute() else below / key
        with contextlib.suppress(OSError):
            if image.read_bytes() == own and not image.samefile(key):
                raise ImageKey(key, image)
    if os.statvfs(key).f_flag & os.ST_RDONLY and _is_image(key):
        raise ImageKey(key, key)


def _is_image(key: Path) -> bool:
    """A read-only file system that could not be written to anyway, not one remounted read-only."""
    kind, best = "", -1
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, this, *_ = line.split(" ")
        if key.resolve().is_relative_to(where) and len(where) > best:
            kind, best = this, len(where)
    return kind in ("squashfs", "erofs", "cramfs", "iso9660")


def _lower_layers(mounts: str) -> list[Path]:
    """The read-only layers of the overlay that is the root file system (proc(5), mounts)."""
    for line in mounts.splitlines():
        _, where, kind, options, *_ = line.split(" ")
        if (where, kind) == ("/", "overlay"):
            for option in options.split(","):
                name, _, value = option.partition("=")
                if name == "lowerdir":
                    return [Path(layer) for layer in value.split(":") if layer not in ("", "/")]
    return []


def openssl(*arguments: str, stdin: bytes = b"") -> bytes:
    """What the command prints. ProvisioningError with its first complaint."""
    try:
        done = subprocess.run(
            ["openssl", *arguments],
            input=stdin,
            capture_output=True,
            timeout=_OPENSSL_TIMEOUT,
            check=False,
            # The system's own configuration may name engines or providers that are not there.
            env={"PATH": os.environ.get("PATH", os.defpath), "OPENSSL_CONF": "/dev/null"},
        )
    except FileNotFoundError as exc:
        raise ProvisioningError("the command openssl is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise ProvisioningError(f"openssl {arguments[0]} did not end") from exc
    if done.returncode != 0 or len(done.stdout) > _MAX_PEM:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ProvisioningError(f"openssl {arguments[0]}: {said[0] if said else 'failed'}")
    return done.stdout


def _date(text: str) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(text), datetime.UTC)
