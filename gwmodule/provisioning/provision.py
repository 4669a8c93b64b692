"""`gwmodule provision`, `renew` and `deprovision`: the gateway's identity, from start to end.

Each step leaves a state that the next run goes on from, and the configuration comes last:

    key --> (the MSP redeems the token for this key) --> authority --> certificate --> configuration

Killed before the certificate there is no identity, as before; the key is taken up again, and the
MSP answers the same token and key with the same certificate. Killed before the configuration, no
service knows of the identity yet. `renew` replaces one file, and keeps the key: two files cannot
be replaced in one step, and the relay may read them at any moment.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gwmodule.config import ENROLMENT_PORT, Config, parse, split_address
from gwmodule.errors import ConfigError, GatewayError
from gwmodule.files import remove_leftovers, sync_directory
from gwmodule.provisioning import settings
from gwmodule.provisioning.client import Enrolled, EnrolmentClient, TryLater
from gwmodule.provisioning.identity import (
    Certificate,
    Paths,
    ProvisioningError,
    belong_together,
    describe,
    fingerprint,
    make_key,
    read,
    request,
    scratch,
    usable_key,
    write_public,
)
from gwmodule.uplink.tls import clock_is_trusted

MAX_TOKEN = 1024
# A first try at once, then in random steps up to the last: an estate that boots after a power
# cut must not come in one moment.
_PAUSES = (2.0, 4.0, 8.0, 15.0)

Clock = Callable[[], datetime.datetime]


def wall_clock() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for. `ca_fingerprint` is 64 hex digits."""

    config: Path
    msp: str
    token_file: str
    ca_fingerprint: str | None = None
    gateway: str | None = None
    lan: tuple[str, ...] = ()
    check: bool = False
    wait: float = 0.0


def with_port(address: str) -> str:
    """`HOST[:PORT]` with the port of enrolment where none is given. ValueError."""
    bare = address.endswith("]") if address.startswith("[") else ":" not in address
    complete = f"{address}:{ENROLMENT_PORT}" if bare else address
    split_address(complete)
    return complete


def provision(wanted: Wanted, clock: Clock = wall_clock) -> dict[str, Any]:
    """Enrol this gateway; what was done, for people and scripts. A second run does nothing.

    TryLater when the same command may succeed later; ConfigError, OSError, ProvisioningError.
    """
    config, paths = _open(wanted.config)
    lan = _lan(wanted, config)
    with _alone(paths, make=not wanted.check):
        certificate = read(paths)
        missing = settings.changes(config, lan)
        if certificate is not None and not _expired(certificate, clock()):
            _require_same(wanted, config, certificate, paths)
            if config.msp.enrolment and not missing:
                return _said(certificate, config, changed=[])
        plan = _plan(wanted, paths)
        if wanted.check:
            return {"changed": True, "check": True, "changes": plan}
        _require_writable(wanted.config, paths)
        # With the settings that will come; what they are does not matter for this.
        sample = Enrolled("gateway", "", "", ("msp.example:1",), "msp.example")
        settings.rehearse(wanted.config, _settings(wanted, sample) | lan)
        for file in (*paths.all(), wanted.config):
            remove_leftovers(file)
        if not usable_key(paths.key):
            make_key(paths.key)
        enrolled = _enrol(wanted, config, paths, clock)
        new = _settings(wanted, enrolled) | lan
        _install(enrolled, paths, wanted.gateway)
        settings.write(wanted.config, settings.changes(config, new))
        return _said(describe(paths.certificate), settings.current(wanted.config), changed=plan)


def renew(
    path: Path, clock: Clock = wall_clock, *, force: bool = False, wait: float = 0.0
) -> dict[str, Any]:
    """The next certificate for the same key, at two thirds of the lifetime of this one.

    TryLater when it is due and the MSP cannot be reached, or while the clock is not set.
    """
    config, paths = _open(path)
    certificate = read(paths)
    if certificate is None:
        raise ConfigError(str(path), "tls.certificate", "this gateway is not provisioned")
    if not force:
        if not clock_is_trusted(clock()):
            raise TryLater("the clock is not set: it cannot be told whether renewal is due")
        if clock() < certificate.renew_at:
            return _said(certificate, config, changed=[])
    if not config.msp.enrolment:
        raise ConfigError(
            str(path), "msp.enrolment", "is empty: nobody to ask for the next certificate"
        )
    with _alone(paths):
        _require_writable(path, paths)
        remove_leftovers(paths.certificate)
        renewed = _patiently(
            wait,
            lambda: _client(config, paths, clock).renew(
                request(paths.key, certificate.name), paths.certificate, paths.key
            ),
        )
        _require_ours(renewed, paths, certificate.name, paths.cafile.read_text())
        write_public(paths.certificate, renewed.certificate.encode())
    return _said(describe(paths.certificate), config, changed=["certificate"])


def deprovision(path: Path, clock: Clock = wall_clock) -> dict[str, Any]:
    """Give the identity back and remove it; the key first. Goes on where it was interrupted."""
    config, paths = _open(path)
    removed: list[str] = []
    with _alone(paths):
        told = _give_back(config, paths, clock)
        remove_leftovers(path)
        for file in paths.all():
            remove_leftovers(file)
            if file.exists():
                file.unlink()
                sync_directory(file.parent)
                removed.append(str(file))
        nothing: settings.Settings = {
            ("msp", "address"): None,
            ("msp", "server_name"): None,
            ("msp", "enrolment"): None,
        }
        if path.exists() and (left := settings.changes(config, nothing)):
            settings.write(path, left)
            removed += [f"{table}.{key}" for table, key in left]
    return {"changed": bool(removed), "removed": removed, "msp_told": told}


def token_from(source: str) -> str:
    """The one line of a file, or of standard input for `-`. ProvisioningError."""
    try:
        if source == "-":
            data = sys.stdin.buffer.read(MAX_TOKEN + 1)
        else:
            with open(source, "rb") as file:
                data = file.read(MAX_TOKEN + 1)
    except OSError as exc:
        raise ProvisioningError(f"token file {source}: {exc.strerror}") from exc
    token = data.decode("ascii", "replace").strip()
    if not token or len(data) > MAX_TOKEN or not token.isascii() or not token.isprintable():
        raise ProvisioningError(f"token file {source}: not one line of at most {MAX_TOKEN} bytes")
    if " " in token:
        raise ProvisioningError(f"token file {source}: the token has spaces in it")
    return token


# What there is.


def _open(path: Path) -> tuple[Config, Paths]:
    config = settings.current(path)
    if config.tls.mode == "off":
        raise ConfigError(str(path), "tls.mode", "is off: a link without TLS has no certificate")
    paths = Paths.of(config.tls)
    if not path.exists() and not settings.is_uci(path):
        # A new file elsewhere takes its key and certificates along.
        paths = Paths(
            path.parent / paths.key.name,
            path.parent / paths.certificate.name,
            path.parent / paths.cafile.name,
        )
    return config, paths


@contextlib.contextmanager
def _alone(paths: Paths, *, make: bool = False) -> Iterator[None]:
    """Two at once, for example cron and somebody's hand, would each ask for a certificate."""
    if make:
        for path in paths.all():
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not paths.key.parent.exists():
        yield
        return
    descriptor = os.open(paths.key.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise TryLater(f"{paths.key.parent}: another command is at work there") from exc
        yield
    finally:
        os.close(descriptor)


def _expired(certificate: Certificate, now: datetime.datetime) -> bool:
    return clock_is_trusted(now) and now >= certificate.not_after


def _require_same(wanted: Wanted, config: Config, certificate: Certificate, paths: Paths) -> None:
    """An identity is not replaced by the way: that the MSP is another one may be a mistake."""
    is_ca = wanted.ca_fingerprint in (None, fingerprint(paths.cafile.read_text()))
    for what, differs in (
        (f"gateway {certificate.name}", wanted.gateway not in (None, certificate.name)),
        (f"the MSP {config.msp.enrolment}", config.msp.enrolment not in ("", wanted.msp)),
        ("an MSP with another authority", not is_ca),
    ):
        if differs:
            raise ProvisioningError(
                f"this gateway is provisioned for {what}; to change that: gwmodule deprovision"
            )


def _lan(wanted: Wanted, config: Config) -> dict[tuple[str, str], settings.Value]:
    if wanted.lan:
        parse({"lan": {"interface": list(wanted.lan)}}, "--lan")
        return {("lan", "interface"): wanted.lan}
    if not config.lan.interface:
        raise ConfigError(
            str(wanted.config), "lan.interface", "is empty: name the LAN with --lan INTERFACE"
        )
    return {}


def _require_writable(path: Path, paths: Paths) -> None:
    """Asked before the token is spent; what fails later can be repeated with the same token."""
    for file in (*paths.all(), path):
        directory = file.parent
        while not directory.exists():
            directory = directory.parent
        if os.statvfs(directory).f_flag & os.ST_RDONLY:
            raise ProvisioningError(f"{directory}: is on a read-only file system")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise ProvisioningError(f"{directory}: cannot be written to")


# Steps.


def _plan(wanted: Wanted, paths: Paths) -> list[str]:
    steps = [] if usable_key(paths.key) else [f"make a key: {paths.key}"]
    steps += [
        f"ask {wanted.msp} for a certificate: {paths.certificate}, {paths.cafile}",
        f"set msp and what differs in {wanted.config}",
    ]
    return steps


def _enrol(wanted: Wanted, config: Config, paths: Paths, clock: Clock) -> Enrolled:
    token = token_from(wanted.token_file)

    def attempt() -> Enrolled:
        trusted = clock_is_trusted(clock())
        ca = paths.cafile.read_text() if paths.cafile.exists() else None
        pin = wanted.ca_fingerprint
        if pin is not None and (ca is None or _fingerprint_of(ca) != pin):
            stranger = EnrolmentClient(wanted.msp, config.uplink, None, clock_trusted=trusted)
            ca = stranger.fetch_ca(pin)
        client = EnrolmentClient(wanted.msp, config.uplink, ca, clock_trusted=trusted)
        name = wanted.gateway or "gwmodule"
        return client.enrol(request(paths.key, name), token, wanted.gateway)

    enrolled = _patiently(wanted.wait, attempt)
    if wanted.ca_fingerprint not in (None, _fingerprint_of(enrolled.ca)):
        raise ProvisioningError("the MSP's answer names another authority than the pinned one")
    return enrolled


def _fingerprint_of(ca: str) -> str:
    try:
        return fingerprint(ca)
    except ValueError:
        return ""


def _patiently(wait: float, attempt: Callable[[], Enrolled]) -> Enrolled:
    deadline = time.monotonic() + wait
    for number in range(sys.maxsize):
        try:
            return attempt()
        except TryLater:
            pause = random.uniform(0.5, 1.0) * _PAUSES[min(number, len(_PAUSES) - 1)]
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
    raise AssertionError("unreachable")


def _client(config: Config, paths: Paths, clock: Clock) -> EnrolmentClient:
    return EnrolmentClient(
        config.msp.enrolment,
        config.uplink,
        paths.cafile.read_text(),
        clock_trusted=clock_is_trusted(clock()),
    )


def _install(enrolled: Enrolled, paths: Paths, gateway: str | None) -> None:
    _require_ours(enrolled, paths, gateway, enrolled.ca)
    if not paths.cafile.exists() or paths.cafile.read_text() != enrolled.ca:
        write_public(paths.cafile, enrolled.ca.encode())
    write_public(paths.certificate, enrolled.certificate.encode())


def _require_ours(enrolled: Enrolled, paths: Paths, gateway: str | None, ca: str) -> None:
    """A certificate that would not make a link does not replace anything."""
    with scratch(enrolled.certificate.encode()) as new, scratch(ca.encode()) as authority:
        if not belong_together(paths.key, new, authority):
            raise ProvisioningError("the MSP's certificate does not fit our key and its authority")
        if describe(new).name != (gateway or enrolled.gateway):
            raise ProvisioningError(f"the MSP's certificate is for {describe(new).name!r}")


def _settings(wanted: Wanted, enrolled: Enrolled) -> dict[tuple[str, str], settings.Value]:
    result: dict[tuple[str, str], settings.Value] = {
        ("msp", "address"): enrolled.addresses,
        ("msp", "server_name"): enrolled.server_name,
        ("msp", "enrolment"): wanted.msp,
    }
    _, paths = _open(wanted.config)
    for key, path in (
        ("certificate", paths.certificate),
        ("key", paths.key),
        ("cafile", paths.cafile),
    ):
        result["tls", key] = str(path)
    return result


def _give_back(config: Config, paths: Paths, clock: Clock) -> bool:
    """Whether the MSP knows that this identity is over. It is asked once; removal goes on."""
    if not config.msp.enrolment:
        return False
    with contextlib.suppress(GatewayError, OSError):
        if read(paths) is not None:
            _client(config, paths, clock).deprovision(paths.certificate, paths.key)
            return True
    return False


def _said(certificate: Certificate, config: Config, changed: list[str]) -> dict[str, Any]:
    return {
        "changed": bool(changed),
        "changes": changed,
        "gateway": certificate.name,
        "msp": list(config.msp.address),
        "enrolment": config.msp.enrolment,
        "not_after": certificate.not_after.isoformat(),
        "renew_at": certificate.renew_at.isoformat(timespec="seconds"),
    }
