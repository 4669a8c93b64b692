"""`login`, `logout`, `whoami`: who the technician is to a service, and where it is."""

from __future__ import annotations

import argparse
import datetime
import getpass
import os

from gwmodule.msp.client import ApiClient
from gwmodule.msp.commands import saved
from gwmodule.msp.commands.common import (
    OK,
    TOKEN_VARIABLE,
    Command,
    UsageError,
    online,
    read_ca,
    read_password,
    run_coroutine,
)
from gwmodule.msp.commands.output import notice, print_json
from gwmodule.msp.commands.saved import SavedLogin
from gwmodule.telemetry import escape


def add(command: Command) -> None:
    login = command("login", _login, "log in to a service, for all commands from now on")
    login.add_argument(
        "url", metavar="URL", help="https://HOST[:PORT]; http only on this machine itself"
    )
    login.add_argument("--user", metavar="NAME", help="(default: your own name)")
    login.add_argument(
        "--password-file", metavar="FILE", help="first line is the password, - is stdin"
    )
    login.add_argument(
        "--ca-file",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="the CA of the service's certificate in PEM, in place of the system's list",
    )
    command("logout", _logout, "forget the saved login; its token ends by itself")
    command("whoami", online(_whoami), "who the service takes you for, and until when")


def _login(options: argparse.Namespace) -> int:
    if "://" not in options.url:
        raise UsageError(f"{options.url[:80]!r} is not https://HOST[:PORT]")
    return run_coroutine(_log_in(options))


async def _log_in(options: argparse.Namespace) -> int:
    ca = read_ca(options.ca_file) if options.ca_file else ""
    # First of all: the address is checked before anybody types a password for it.
    client = ApiClient(options.url, cadata=ca)
    user = options.user or getpass.getuser()
    password = read_password(options.password_file, f"password of {user}: ")
    async with client:
        token = await client.request(
            "POST", "/api/v1/authorize", {"username": user, "password": password}
        )
    login = SavedLogin(options.url, token["token"], ca)
    async with ApiClient(login.url, token=login.token, cadata=login.ca) as client:
        who = await client.request("GET", "/api/v1/whoami")
    saved.save(login)
    _show(options, who, login.url, login)
    return OK


def _logout(options: argparse.Namespace) -> int:
    if not saved.forget():
        notice("nobody was logged in\n")
    return OK


async def _whoami(options: argparse.Namespace, client: ApiClient) -> int:
    who = await client.request("GET", "/api/v1/whoami")
    login = None if os.environ.get(TOKEN_VARIABLE) or options.api else saved.load()
    _show(options, who, client.address, login)
    return OK


def _show(
    options: argparse.Namespace, who: dict[str, str], address: str, login: SavedLogin | None
) -> None:
    expires = login.expires if login is not None and who["via"] == "password" else None
    until = None
    if expires is not None:
        moment = datetime.datetime.fromtimestamp(expires, datetime.UTC)
        until = moment.isoformat(timespec="seconds").replace("+00:00", "Z")
    if options.json:
        print_json(who | {"api": address, "expires": until})
        return
    end = f" until {until}" if until else ""
    print(
        f"{escape(who['name'])}, {who['role']} of tenant {escape(who['tenantId'])},"
        f" at {escape(address)}{end}"
    )
