"""Commands about gateways: their links, and what a new one needs."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
from pathlib import Path

from gwmodule.config import split_address
from gwmodule.errors import ConfigError
from gwmodule.msp.client import ApiClient, ApiRefused
from gwmodule.msp.commands.common import OK, Command, UsageError, online, path_segment
from gwmodule.msp.commands.output import ago, notice, print_json, print_tree, show
from gwmodule.msp.enrolment import (
    SERVICE_NAME,
    check_gateway_name,
    gateway_config,
    write_atomically,
)

DEFAULT_PORT = 8883


def add(command: Command) -> None:
    command("gateways", online(_gateways), "list gateways and their links")
    command("gateway list", online(_gateways), "the same as `gateways`")
    status = command(
        "gateway status", online(_gateway_status), "what a gateway says of itself: its `status`"
    )
    status.add_argument("name", metavar="NAME")
    new = command("gateway add", online(_gateway_add), "make what a gateway needs to enrol")
    _add_new(new)
    new.add_argument("--replace", action="store_true", help="a new certificate for a known name")
    again = command(
        "gateway replace",
        online(_gateway_add),
        "the same for a known name: new box or new key",
    )
    _add_new(again)
    again.set_defaults(replace=True)
    revoke = command(
        "gateway revoke", online(_gateway_revoke), "refuse a gateway from now on, and end its link"
    )
    revoke.add_argument("name", metavar="NAME")


def _add_new(new: argparse.ArgumentParser) -> None:
    new.add_argument("name", metavar="NAME")
    new.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="make its files here instead of a token; without --enrol always (default ./NAME)",
    )
    new.add_argument("--msp", metavar="HOST:PORT", help="how the gateway reaches this service")
    new.add_argument(
        "--directory",
        metavar="DIR",
        default="/etc/gwmodule",
        help="where the files will lie on the gateway (default %(default)s)",
    )
    new.add_argument("--lan", metavar="INTERFACE", action="append", help="(default br-lan)")


async def _gateways(options: argparse.Namespace, client: ApiClient) -> int:
    rows = await client.request("GET", "/api/v1/gateways")
    show(
        options,
        rows,
        {
            "NAME": lambda g: g["name"],
            "LINK": lambda g: "up" if g["connectionStatus"] else "down",
            "ADDRESS": lambda g: f"{g['address']}:{g['port']}" if g["address"] else "",
            "RTT": lambda g: f"{g['rtt'] * 1000:.1f} ms" if g["rtt"] else "",
            "SOFTWARE": lambda g: g["software"],
            "LAST LINK": lambda g: ago(g["lastLink"]),
        },
    )
    return OK


async def _gateway_status(options: argparse.Namespace, client: ApiClient) -> int:
    path = f"/api/v1/gateways/{path_segment(options.name)}/health"
    found = await client.request("GET", path)
    (print_json if options.json else print_tree)(found)
    return OK


async def _gateway_add(options: argparse.Namespace, client: ApiClient) -> int:
    try:
        name = check_gateway_name(options.name)
        if options.msp:
            split_address(options.msp)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
    if options.out is None and await _invite(name, options, client):
        return OK
    out: Path = options.out or Path(name)
    _prepare_directory(out, replace=options.replace)
    bundle = await client.request(
        "POST", "/api/v1/gateways", {"name": name, "replace": options.replace}
    )
    files = {
        "gateway.crt": bundle["certificate"],
        "gateway.key": bundle["key"],
        "ca.crt": bundle["ca"],
        "gwmodule.toml": gateway_config(
            name,
            _msp_address(options, bundle["serverNames"]),
            bundle["serverNames"],
            directory=options.directory.rstrip("/"),
            interfaces=options.lan or ["br-lan"],
        ),
    }
    try:
        for file, text in files.items():
            mode = 0o600 if file == "gateway.key" else 0o644
            write_atomically(out / file, text.encode(), mode)
    except OSError as exc:
        raise ConfigError(str(out), "", exc.strerror or "cannot be written") from exc
    if options.json:
        print_json(
            {
                "name": name,
                "directory": str(out),
                "files": sorted(files),
                "fingerprint": bundle["fingerprint"],
            }
        )
    else:
        print(f"{out}: {' '.join(sorted(files))}")
        notice(f"copy them to {options.directory} on the gateway and start gwmodule there\n")
    return OK


async def _gateway_revoke(options: argparse.Namespace, client: ApiClient) -> int:
    await client.request("DELETE", f"/api/v1/gateways/{path_segment(options.name)}")
    return OK


async def _invite(name: str, options: argparse.Namespace, client: ApiClient) -> bool:
    """Show the command that enrols the gateway; False where the service does not enrol."""
    path = f"/api/v1/gateways/{name}/enrolment"
    try:
        invitation = await client.request("POST", path, {"replace": options.replace})
    except ApiRefused as exc:
        if exc.error != "ENROLMENT_OFF":
            raise
        return False
    for interface in options.lan or []:
        invitation["command"] += f" --lan {shlex.quote(interface)}"
    if options.json:
        print_json(invitation)
    else:
        print(invitation["command"])
        notice(
            f"run this as root on the gateway; the token is good until {invitation['expires']}\n"
        )
        if options.replace:
            notice(
                "the old certificate is good until then; was its key stolen, revoke it first:"
                f" gwmodule-msp gateway revoke {name}\n"
            )
    return True


def _prepare_directory(out: Path, *, replace: bool) -> None:
    """Before the service makes a key that could not be stored here."""
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(str(out), "", exc.strerror or "cannot be made") from exc
    if not os.access(out, os.W_OK | os.X_OK):
        raise ConfigError(str(out), "", "is not writable")
    if (out / "gateway.key").exists() and not replace:
        raise UsageError(f"{out}/gateway.key exists; --replace makes a new one")


def _msp_address(options: argparse.Namespace, server_names: list[str]) -> str:
    if options.msp:
        return str(options.msp)
    names = [name for name in server_names if name != SERVICE_NAME]
    host = names[0] if names else socket.gethostname()
    address = f"[{host}]:{DEFAULT_PORT}" if ":" in host else f"{host}:{DEFAULT_PORT}"
    notice(f"the gateway will dial {address}; --msp HOST:PORT says otherwise\n")
    return address
