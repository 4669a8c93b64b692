"""`credential`: the AMT logins that the service keeps. It never shows a password again."""

from __future__ import annotations

import argparse

from gwmodule.msp.client import ApiClient
from gwmodule.msp.commands.common import (
    OK,
    Command,
    amt_password,
    online,
    resolve,
    user_of,
)
from gwmodule.msp.commands.output import ago, print_json
from gwmodule.telemetry import escape

# No UUID begins so.
DEFAULT = "default"


def add(command: Command) -> None:
    store = command("credential set", online(_set), "store a device's AMT login at the service")
    _add_device(store)
    store.add_argument("--user", metavar="NAME", help="AMT account (default admin)")
    store.add_argument(
        "--password-file",
        metavar="FILE",
        help="first line is the password, - is stdin; else AMT_PASSWORD, else a prompt",
    )
    store.add_argument(
        "--challenge",
        action="store_true",
        help="no secret of it goes to a gateway, at one more round trip a call",
    )
    _add_device(command("credential show", online(_show), "which login is stored; no password"))
    _add_device(command("credential remove", online(_remove), "forget a stored login"))


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "uuid",
        metavar="UUID",
        help="or its unique beginning, or `default`: for all devices that have none of their own",
    )


async def _path(options: argparse.Namespace, client: ApiClient) -> str:
    if options.uuid == DEFAULT:
        return "/api/v1/credential"
    return f"/api/v1/devices/{(await resolve(client, options.uuid))['guid']}/credential"


async def _set(options: argparse.Namespace, client: ApiClient) -> int:
    path = await _path(options, client)
    body = {
        "username": user_of(options),
        "password": amt_password(options),
        "mode": "challenge" if options.challenge else "ha1",
    }
    answer = await client.request("PUT", path, body)
    if options.json:
        print_json(answer)
    return OK


async def _show(options: argparse.Namespace, client: ApiClient) -> int:
    stored = await client.request("GET", await _path(options, client))
    if options.json:
        print_json(stored)
    else:
        user, mode = escape(stored["username"]), stored["mode"]
        print(f"{user}, mode {mode}, stored {ago(stored['changed'])}")
    return OK


async def _remove(options: argparse.Namespace, client: ApiClient) -> int:
    await client.request("DELETE", await _path(options, client))
    return OK
