"""scapy's DHCP dissector, loaded lean, behind one typed function.

The only module that imports scapy, and only when the capture starts: the import takes a third of a
second and 17 MiB. Its result is not trusted; `dhcp` decides what a message means. Works with scapy
2.5 to 2.8.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import types
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

from gwmodule.capture.dhcp import (
    OPTION_CLIENT_FQDN,
    OPTION_HOSTNAME,
    OPTION_LEASE_TIME,
    OPTION_MACHINE_ID,
    OPTION_MESSAGE_TYPE,
    OPTION_REQUESTED_ADDRESS,
    OPTION_SERVER_ID,
    DhcpMessage,
    Dissect,
)

# The vendor names of MAC addresses and Bluetooth devices: 18 MiB that nobody here asks for.
_TABLES = ("scapy.libs.manuf", "scapy.libs.bluetoothids")
# scapy takes it along if it is there (5 MiB) for protocols that are not loaded.
_UNWANTED = "cryptography"
# Where scapy would keep a cache and look for a start-up file. Nothing can be made below a device,
# so nothing is written, whatever the home directory is.
_FOLDERS = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
_NOWHERE = "/dev/null/scapy"


def load_dissector() -> Dissect:
    """Import scapy's BOOTP and DHCP layers and return the function that dissects a UDP payload."""
    with _lean_import():
        from scapy.layers.dhcp import BOOTP, DHCP, DHCPRevOptions
    # A dissector's complaint about a stranger's bytes belongs into a counter, not into the log.
    logging.getLogger("scapy").setLevel(logging.CRITICAL)
    numbers = {name: number for name, (number, _) in DHCPRevOptions.items()}

    def dissect(payload: bytes) -> DhcpMessage | None:
        try:
            bootp = BOOTP(payload)
            return _message(bootp, bootp[DHCP].options, numbers)
        # scapy answers hostile bytes with whatever its fields happen to raise: struct.error,
        # IndexError, ValueError, UnicodeError. To us all of them say "not a DHCP message".
        except Exception:
            return None

    return dissect


def _message(bootp: Any, entries: list[Any], numbers: dict[str, int]) -> DhcpMessage | None:
    options = _options(entries, numbers)
    if options is None:
        return None
    return DhcpMessage(
        op=int(bootp.op),
        xid=int(bootp.xid),
        ciaddr=IPv4Address(bootp.ciaddr),
        yiaddr=IPv4Address(bootp.yiaddr),
        chaddr=bytes(bootp.chaddr)[:6],
        message_type=int(_only(options, OPTION_MESSAGE_TYPE)),
        lease_time=_only(options, OPTION_LEASE_TIME),
        server_id=_address(_only(options, OPTION_SERVER_ID)),
        requested_address=_address(_only(options, OPTION_REQUESTED_ADDRESS)),
        hostname=_joined(options, OPTION_HOSTNAME),
        fqdn=_joined(options, OPTION_CLIENT_FQDN),
        machine_id=_joined(options, OPTION_MACHINE_ID),
    )


def _options(entries: list[Any], numbers: dict[str, int]) -> dict[int, list[Any]] | None:
    """Values by option number up to the end option; None where it is missing.

    scapy leaves what it cannot parse as bytes at the end of its list, and reads on behind the end
    option; so only a list with "end" in it was a whole message.
    """
    options: dict[int, list[Any]] = {}
    for entry in entries:
        if entry == "end":
            return options
        if isinstance(entry, tuple):
            name, *values = entry
            number = name if isinstance(name, int) else numbers[name]
            options.setdefault(number, []).extend(values)
    return None


def _only(options: dict[int, list[Any]], number: int) -> Any:
    """The one value of an option, None without it; ValueError when there are two."""
    values = options.get(number)
    if values is None:
        return None
    (value,) = values
    return value


def _address(value: Any) -> IPv4Address | None:
    return None if value is None else IPv4Address(value)


def _joined(options: dict[int, list[Any]], number: int) -> bytes:
    """A text that may come in several pieces (RFC 3396)."""
    return b"".join(bytes(value) for value in options.get(number, ()))


@contextlib.contextmanager
def _lean_import() -> Iterator[None]:
    """Let scapy be imported without its tables, `cryptography`, or a file being written."""
    modules: dict[str, Any] = {name: types.ModuleType(name) for name in _TABLES}
    for module in modules.values():
        module.DATA = ""
    modules[_UNWANTED] = None  # To the import system: there is no such module.
    modules = {name: module for name, module in modules.items() if name not in sys.modules}
    folders = {name: os.environ.get(name) for name in _FOLDERS}
    sys.modules.update(modules)
    os.environ.update(dict.fromkeys(_FOLDERS, _NOWHERE))
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        for name, value in folders.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
