"""What a new gateway is given: a name, files written safely, a configuration that loads.

Apart from pki, because the technician's commands need it and not the weight of `cryptography`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from gwmodule.config import SERVICE_NAME as SERVICE_NAME
from gwmodule.config import split_address
from gwmodule.files import write_atomically as write_atomically

_GATEWAY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_gateway_name(name: str) -> str:
    """`name` if it can be a gateway's name (common name, file name, log field); ValueError else."""
    if not _GATEWAY_NAME.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} is no gateway name: up to 63 letters, digits, dots, dashes,"
            " underscores, the first a letter or digit"
        )
    return name


def gateway_config(
    name: str,
    address: str,
    server_names: Sequence[str],
    *,
    directory: str,
    interfaces: Sequence[str],
) -> str:
    """The gwmodule.toml of gateway `name`: whom it dials, where its files lie, which LAN is its."""
    host, _ = split_address(address)
    lines = [f"# gateway {name}", "[msp]", f"address = [{_toml(address)}]"]
    if host not in server_names:
        lines.append(f"server_name = {_toml(SERVICE_NAME)}")
    lines += ["", "[tls]"]
    lines += [
        f"{key} = {_toml(f'{directory}/{file}')}"
        for key, file in (
            ("certificate", "gateway.crt"),
            ("key", "gateway.key"),
            ("cafile", "ca.crt"),
        )
    ]
    listed = ", ".join(_toml(interface) for interface in interfaces)
    return "\n".join([*lines, "", "[lan]", f"interface = [{listed}]", ""])


def _toml(text: str) -> str:
    # A JSON string without characters outside ASCII is a TOML basic string.
    return json.dumps(text)
