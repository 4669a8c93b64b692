"""`user`, `key`, `tenant`: who may use the service."""

from __future__ import annotations

import argparse
from typing import Any

from gwmodule.msp.client import ApiClient
from gwmodule.msp.commands.common import (
    OK,
    Command,
    UsageError,
    new_password,
    online,
    path_segment,
    whole_number,
)
from gwmodule.msp.commands.output import notice, print_json, show

ROLES = ("viewer", "technician", "admin")
MAX_DAYS = 3650


def add(command: Command) -> None:
    user = command("user add", online(_user_add), "add a user to the tenant")
    user.add_argument("name", metavar="NAME")
    _add_role(user)
    _add_password(user)
    command("user list", online(_user_list), "list the users of the tenant")
    change = command("user set", online(_user_set), "change a user; it ends his logins")
    change.add_argument("name", metavar="NAME")
    change.add_argument("--role", choices=ROLES, help="the new role")
    change.add_argument("--password", action="store_true", help="ask for a new password")
    _add_password(change)
    lock = change.add_mutually_exclusive_group()
    lock.add_argument(
        "--disable", dest="disabled", action="store_true", default=None, help="lock him out"
    )
    lock.add_argument("--enable", dest="disabled", action="store_false", default=None,
                      help="let him in again")  # fmt: skip
    remove = command("user remove", online(_user_remove), "remove a user and revoke his API keys")
    remove.add_argument("name", metavar="NAME")

    key = command("key add", online(_key_add), "make an API key for a script; it is shown once")
    key.add_argument("name", metavar="NAME", help="what it is for")
    _add_role(key)
    key.add_argument(
        "--days",
        type=whole_number(1, MAX_DAYS),
        default=365,
        metavar="N",
        help="how long it is good (default %(default)s)",
    )
    command("key list", online(_key_list), "list the API keys of the tenant")
    revoke = command("key revoke", online(_key_revoke), "make an API key worthless")
    revoke.add_argument("id", metavar="ID", help="as `key list` shows it")

    for name, run, text in (
        ("tenant add", _tenant_add, "add a tenant; only at the service's own socket"),
        (
            "tenant remove",
            _tenant_remove,
            "remove a tenant whose gateways are revoked, with its devices",
        ),
    ):
        command(name, online(run), text).add_argument("name", metavar="NAME")
    command("tenant list", online(_tenant_list), "list tenants")


def _add_role(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--role", choices=ROLES, default="technician", help="(default %(default)s)")


def _add_password(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--password-file",
        metavar="FILE",
        help="first line is the new password, - is stdin; else a prompt",
    )


async def _user_add(options: argparse.Namespace, client: ApiClient) -> int:
    password = new_password(options.password_file, f"new password of {options.name}: ")
    body = {"name": options.name, "role": options.role, "password": password}
    return _done(options, await client.request("POST", "/api/v1/users", body))


async def _user_list(options: argparse.Namespace, client: ApiClient) -> int:
    show(
        options,
        await client.request("GET", "/api/v1/users"),
        {
            "NAME": lambda u: u["name"],
            "ROLE": lambda u: u["role"],
            "KEYS": lambda u: str(len(u["keys"]) or ""),
            "NOTE": lambda u: "disabled" if u["disabled"] else "",
        },
    )
    return OK


async def _user_set(options: argparse.Namespace, client: ApiClient) -> int:
    body: dict[str, Any] = {}
    if options.role is not None:
        body["role"] = options.role
    if options.disabled is not None:
        body["disabled"] = options.disabled
    if options.password or options.password_file:
        body["password"] = new_password(options.password_file, f"new password of {options.name}: ")
    if not body:
        raise UsageError("nothing to change: give --role, --password, --disable or --enable")
    path = f"/api/v1/users/{path_segment(options.name)}"
    user = await client.request("PATCH", path, body)
    if options.disabled:
        _tell_keys(user, "rest until he is let in again")
    return _done(options, user)


async def _user_remove(options: argparse.Namespace, client: ApiClient) -> int:
    user = await client.request("DELETE", f"/api/v1/users/{path_segment(options.name)}")
    _tell_keys(user, "are revoked")
    return _done(options, user)


def _tell_keys(user: dict[str, Any], what: str) -> None:
    """Scripts somewhere may stop for it."""
    if user["keys"]:
        names = ", ".join(f"{key['name']} ({key['id']})" for key in user["keys"])
        notice(f"API keys of {user['name']} {what}: {names}\n")


async def _key_add(options: argparse.Namespace, client: ApiClient) -> int:
    body = {"name": options.name, "role": options.role, "days": options.days}
    made = await client.request("POST", "/api/v1/keys", body)
    if options.json:
        print_json(made)
    else:
        print(made["key"])
        notice("it is not shown again; scripts take it from GWMODULE_MSP_TOKEN\n")
    return OK


async def _key_list(options: argparse.Namespace, client: ApiClient) -> int:
    show(
        options,
        await client.request("GET", "/api/v1/keys"),
        {
            "ID": lambda k: k["id"],
            "NAME": lambda k: k["name"],
            "ROLE": lambda k: k["role"],
            "MAKER": lambda k: k["maker"],
            "OWNER": lambda k: k["owner"] or "the tenant",
            "CREATED": lambda k: k["created"] or "",
            "EXPIRES": lambda k: k["expires"] or "never",
            "LAST USED": lambda k: k["lastUsed"] or "never",
            "NOTE": lambda k: "revoked" if k["revoked"] else "",
        },
    )
    return OK


async def _key_revoke(options: argparse.Namespace, client: ApiClient) -> int:
    await client.request("DELETE", f"/api/v1/keys/{path_segment(options.id)}")
    return OK


async def _tenant_add(options: argparse.Namespace, client: ApiClient) -> int:
    return _done(options, await client.request("POST", "/api/v1/tenants", {"name": options.name}))


async def _tenant_list(options: argparse.Namespace, client: ApiClient) -> int:
    rows = await client.request("GET", "/api/v1/tenants")
    show(options, rows, {"NAME": lambda t: t["name"]})
    return OK


async def _tenant_remove(options: argparse.Namespace, client: ApiClient) -> int:
    await client.request("DELETE", f"/api/v1/tenants/{path_segment(options.name)}")
    return OK


def _done(options: argparse.Namespace, answer: Any) -> int:
    """Silence is success; scripts get what the service said."""
    if options.json:
        print_json(answer)
    return OK
