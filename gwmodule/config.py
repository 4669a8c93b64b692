"""Every setting, its default and its bounds, in one tree of frozen dataclasses.

The same schema reads TOML files and OpenWrt UCI sections (docs/configuration.md): a branch is a
table or a section, a leaf is a scalar or a list of strings. Unknown keys are errors, because a
misspelt security setting that is silently ignored is worse than a service that does not start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gwmodule import uci
from gwmodule.errors import ConfigError
from gwmodule.ports import HELLO_PORT

# Seconds: an MSP keeps a silent link for no longer, whatever the gateway says.
MAX_LINK_TIMEOUT = 600
MAX_FILE = 64 * 1024  # A gateway's configuration is under 2 KiB; more is a wrong file.

RUNTIME_DIRECTORY = "/run/gwmodule"
# Settings of [tls], and what the unit calls these files.
CREDENTIALS = {"key": "gateway.key", "certificate": "gateway.crt", "cafile": "ca.crt"}

# A name that every MSP's certificate carries, so that a gateway that trusts its authority alone
# can pin it whatever address it dials.
SERVICE_NAME = "gwmodule-msp"
ENROLMENT_PORT = 8884

# What may be asked of a running relay: here, because the command line knows it as well and does not
# load what a service does. A lockdown that should last longer than a day is `relay.lockdown`; a
# recording is long enough for a PC to boot, and small enough for a router's /tmp.
MAX_LOCKDOWN = 86400
MAX_RECORD_SECONDS = 600
MAX_RECORD_COUNT = 10000


# Longer ones are no ports, and int() refuses those of thousands of digits in its own words.
_PORT = re.compile(r"[0-9]{1,5}")


def setting(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    one_of: tuple[str, ...] = (),
) -> Any:
    """A leaf with a default and the bounds that `load` enforces."""
    return field(default=default, metadata={"low": low, "high": high, "one_of": one_of})


@dataclass(frozen=True, slots=True)
class MuxConfig:
    """Memory and fairness of one session; both ends use the same defaults."""

    # All receive windows of a session together never exceed this.
    memory: int = setting(16 * 1024 * 1024, low=1024 * 1024, high=256 * 1024 * 1024)
    control_window: int = setting(256 * 1024, low=64 * 1024, high=4 * 1024 * 1024)
    # 64 KiB is five seconds of a serial line at 115,200 baud.
    interactive_window: int = setting(64 * 1024, low=16 * 1024, high=1024 * 1024)
    bulk_window: int = setting(256 * 1024, low=64 * 1024, high=4 * 1024 * 1024)
    # A bulk window may grow to this where bandwidth x delay asks for it.
    bulk_window_cap: int = setting(4 * 1024 * 1024, low=64 * 1024, high=64 * 1024 * 1024)
    max_channels: int = setting(128, low=4, high=4096)
    # Bulk is never starved altogether: one byte in this many is bulk's while it waits.
    bulk_share: int = setting(20, low=2, high=1000)

    def __post_init__(self) -> None:
        if self.control_window > self.memory // 2:
            raise ValueError(
                f"control_window {self.control_window} is over half of memory {self.memory}"
            )


@dataclass(frozen=True, slots=True)
class LivenessConfig:
    """Seconds. The deadline runs on received frames and does not care about our writes."""

    interval: float = setting(4.0, low=0.05, high=MAX_LINK_TIMEOUT / 3)
    timeout: float = setting(12.0, low=0.15, high=MAX_LINK_TIMEOUT)

    def __post_init__(self) -> None:
        if self.timeout < 3 * self.interval:
            raise ValueError(
                f"timeout {self.timeout} must be at least three intervals of {self.interval}"
            )


@dataclass(frozen=True, slots=True)
class BackoffConfig:
    """Seconds between attempts to reach the MSP: full jitter up to a doubling cap."""

    first: float = setting(1.0, low=0.01, high=60)
    cap: float = setting(60.0, low=0.05, high=3600)
    # A link that lived this long resets the doubling; a shorter one does not.
    healthy: float = setting(30.0, low=0.05, high=3600)


@dataclass(frozen=True, slots=True)
class MspPeerConfig:
    """Where the MSP is: `HOST:PORT` entries, tried in order, every address of each."""

    address: tuple[str, ...] = ()
    # The name in the MSP's certificate; empty: the host of the address that is dialled.
    server_name: str = ""
    connect_timeout: float = setting(10.0, low=0.1, high=120)
    # `HOST:PORT` where certificates are renewed; `gwmodule provision` writes it.
    enrolment: str = ""


@dataclass(frozen=True, slots=True)
class TlsConfig:
    mode: str = setting("mutual", one_of=("mutual", "off"))
    certificate: str = "/etc/gwmodule/gateway.crt"
    key: str = "/etc/gwmodule/gateway.key"
    cafile: str = "/etc/gwmodule/ca.crt"


@dataclass(frozen=True, slots=True)
class UplinkConfig:
    """Which WAN carries the link; all empty means whatever the main routing table says."""

    interface: str = ""
    source: str = ""
    dscp: int = setting(0, low=0, high=63)


@dataclass(frozen=True, slots=True)
class LanConfig:
    """The LAN is what is named here; nothing is inferred."""

    interface: tuple[str, ...] = ()
    hello_port: int = setting(HELLO_PORT, low=0, high=65535)
    # dnsmasq's lease file, for gateways that run without the capture service.
    lease_file: str = ""


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    enabled: bool = True
    # In a directory of its own: the capture runs as another user, and must not have to trust what
    # the relay can put beside it.
    socket: str = f"{RUNTIME_DIRECTORY}-capture/capture.sock"


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """Seconds. How managed devices, which send no Hello, are found and seen again."""

    enabled: bool = True
    timeout: float = setting(3.0, low=0.05, high=60)
    # A device that answered is asked again after this long; the kernel's neighbour table is
    # watched all the time.
    interval: float = setting(300.0, low=0.2, high=86400)
    concurrency: int = setting(8, low=1, high=64)


@dataclass(frozen=True, slots=True)
class DevicesConfig:
    """Bounds of the table in RAM: what a hostile LAN can make us remember."""

    max_devices: int = setting(1024, low=16, high=65536)
    # Seconds after which an unacknowledged notice is sent again.
    repeat: float = setting(30.0, low=0.2, high=3600)


@dataclass(frozen=True, slots=True)
class StreamsConfig:
    # Beyond 16992-16995; 623, 664 and 5900 are the only sensible ones.
    extra_ports: tuple[str, ...] = ()
    max_streams: int = setting(64, low=1, high=1024)
    connect_timeout: float = setting(5.0, low=0.1, high=120)


@dataclass(frozen=True, slots=True)
class RelayConfig:
    # How the relay starts; `gwmodule lockdown` changes it until it ends.
    lockdown: bool = False


@dataclass(frozen=True, slots=True)
class ControlConfig:
    socket: str = f"{RUNTIME_DIRECTORY}/control.sock"


@dataclass(frozen=True, slots=True)
class LogConfig:
    level: str = setting("info", one_of=("debug", "info", "warning", "error"))


@dataclass(frozen=True, slots=True)
class Config:
    """One gateway."""

    deployment: str = setting("gateway", one_of=("gateway", "standalone"))
    msp: MspPeerConfig = field(default_factory=MspPeerConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    uplink: UplinkConfig = field(default_factory=UplinkConfig)
    lan: LanConfig = field(default_factory=LanConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    devices: DevicesConfig = field(default_factory=DevicesConfig)
    streams: StreamsConfig = field(default_factory=StreamsConfig)
    relay: RelayConfig = field(default_factory=RelayConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    mux: MuxConfig = field(default_factory=MuxConfig)
    liveness: LivenessConfig = field(default_factory=LivenessConfig)
    backoff: BackoffConfig = field(default_factory=BackoffConfig)
    log: LogConfig = field(default_factory=LogConfig)


def load(path: Path) -> Config:
    """Read a TOML file, or a UCI file, which has no suffix: `uci` takes no dot in a name.

    Every problem is a ConfigError that names file, key and cure.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as exc:
        cure = ": `gwmodule provision` writes it" if isinstance(exc, FileNotFoundError) else ""
        raise ConfigError(str(path), "", (exc.strerror or "cannot be read") + cure) from exc
    if len(data) > MAX_FILE:
        raise ConfigError(str(path), "", f"larger than {MAX_FILE} bytes")
    try:
        text = data.decode()
        tree = tomllib.loads(text) if path.suffix else uci.tree(text, Config, str(path))
    except UnicodeDecodeError as exc:
        raise ConfigError(str(path), "", f"not UTF-8: {exc}") from exc
    # Plain ValueError is a number of thousands of digits.
    except (ValueError, RecursionError) as exc:
        raise ConfigError(str(path), "", f"not TOML: {exc}") from exc
    return parse(tree, str(path))


def parse(tree: dict[str, Any], path: str = "config") -> Config:
    """Build a `Config` from a tree of tables, as TOML and UCI both give it."""
    config: Config = _build(Config, tree, path, "")
    _check(config, path)
    return config


def _build(cls: type[Any], table: dict[str, Any], path: str, prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = f"{prefix}{key}"
        if key not in fields:
            known = ", ".join(sorted(fields))
            raise ConfigError(path, where, f"unknown setting (known here: {known})")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ConfigError(path, where, f"must be a table, [{where}], not {value!r}")
            values[key] = _build(typing.cast(type, hints[key]), value, path, f"{where}.")
        else:
            values[key] = _leaf(hints[key], value, fields[key].metadata, path, where)
    try:
        return cls(**values)
    except ValueError as exc:
        raise ConfigError(path, prefix.rstrip("."), str(exc)) from exc


def _leaf(
    hint: Any, value: Any, bounds: types.MappingProxyType[Any, Any], path: str, where: str
) -> Any:
    if hint is bool:
        if not isinstance(value, bool):
            raise ConfigError(path, where, f"must be true or false, not {value!r}")
        return value
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, int if hint is int else (int, float)):
            kind = "a whole number" if hint is int else "a number"
            raise ConfigError(path, where, f"must be {kind}, not {value!r}")
        low, high = bounds.get("low"), bounds.get("high")
        # Written so that a NaN, which compares with nothing, fails too.
        if not (low is None or value >= low) or not (high is None or value <= high):
            raise ConfigError(path, where, f"is {value}, must be between {low} and {high}")
        return hint(value)
    if hint is str:
        if not isinstance(value, str):
            raise ConfigError(path, where, f"must be a string, not {value!r}")
        one_of = bounds.get("one_of") or ()
        if one_of and value not in one_of:
            raise ConfigError(path, where, f"is {value!r}, must be one of {', '.join(one_of)}")
        return value
    # tuple[str, ...]: a single string is accepted as a list of one, as UCI writes it.
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ConfigError(path, where, f"must be a list of strings, not {value!r}")
    return tuple(entries)


def _check(config: Config, path: str) -> None:
    """What no single leaf can know."""
    for entry in config.msp.address:
        try:
            split_address(entry)
        except ValueError as exc:
            raise ConfigError(path, "msp.address", str(exc)) from exc
    if config.msp.enrolment:
        try:
            split_address(config.msp.enrolment)
        except ValueError as exc:
            raise ConfigError(path, "msp.enrolment", str(exc)) from exc
    for port in config.streams.extra_ports:
        if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
            raise ConfigError(path, "streams.extra_ports", f"{port[:20]!r} is no port")
    named = [("lan.interface", name) for name in config.lan.interface]
    if config.uplink.interface:
        named.append(("uplink.interface", config.uplink.interface))
    for key, name in named:
        if not 1 <= len(name.encode()) <= 15 or "/" in name or any(c.isspace() for c in name):
            raise ConfigError(path, key, f"{name[:40]!r} is no interface name")
    if config.uplink.source:
        try:
            ipaddress.ip_address(config.uplink.source)
        except ValueError as exc:
            problem = f"{config.uplink.source!r} is no IP address of this host"
            raise ConfigError(path, "uplink.source", problem) from exc
    shared = bool(config.uplink.interface) and config.uplink.interface in config.lan.interface
    if config.deployment == "gateway" and shared:
        raise ConfigError(path, "uplink.interface", "is also a LAN interface")


def with_credentials(config: Config, directory: Path) -> Config:
    """The configuration with key, certificate and CA from `directory`, as far as they are there.

    For systemd's LoadCredential=, whose copies only the service can read: our unit gives the key,
    and "none" when there is none; a drop-in may give the others.
    """
    tls = config.tls
    for setting_name, name in CREDENTIALS.items():
        path = directory / name
        with contextlib.suppress(OSError):
            with path.open("rb") as file:
                absent = file.read(16).strip() == b"none"
            if not absent:
                tls = dataclasses.replace(tls, **{setting_name: str(path)})
    return dataclasses.replace(config, tls=tls)


def split_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPV6]:PORT` as (host, port); ValueError says what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not _PORT.fullmatch(port):
        raise ValueError(f"{text[:300]!r} is not HOST:PORT")
    if not 1 <= int(port) <= 65535:
        raise ValueError(f"port {port} of {text!r} is not between 1 and 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """What `split_address` takes apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
