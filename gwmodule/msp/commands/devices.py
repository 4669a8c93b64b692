"""Commands about devices: lists, calls, audit."""

from __future__ import annotations

import argparse
import sys

from gwmodule.msp.client import GRACE, ApiClient
from gwmodule.msp.commands.common import (
    OK,
    Command,
    add_login,
    arguments_of,
    call_options,
    login_of,
    online,
    path_segment,
    resolve,
)
from gwmodule.msp.commands.output import ago, print_json, print_tree, show


def add(command: Command) -> None:
    devices = command("devices", online(_devices), "list devices")
    devices.add_argument("--gateway", metavar="NAME")
    devices.add_argument("--state", choices=("setup", "managed", "found"))
    command("candidates", online(_candidates), "list AMT hosts whose UUID is unknown")

    identify = command("identify", online(_identify), "log in to a candidate and learn its UUID")
    identify.add_argument("gateway", metavar="GATEWAY")
    identify.add_argument("mac", metavar="MAC")
    add_login(identify)

    call = command("call", online(_call), "run a function of a device through its gateway")
    call.add_argument("uuid", metavar="UUID", help="or its unique beginning")
    call.add_argument("function", metavar="FUNCTION", help="for example power.get")
    call.add_argument(
        "arguments", metavar="KEY=VALUE", nargs="*", help="VALUE is JSON, or else a string"
    )
    add_login(call)

    for name, run, text in (
        ("unpin", _unpin, "trust the next certificate and realm of a device afresh"),
        ("forget", _forget, "remove a device from the registry"),
    ):
        command(name, online(run), text).add_argument("uuid", metavar="UUID")
    audit = command("audit", online(_audit), "who did what")
    audit.add_argument("uuid", metavar="UUID", nargs="?")
    audit.add_argument("--limit", type=int, default=100)


async def _devices(options: argparse.Namespace, client: ApiClient) -> int:
    query = {name: value for name in ("gateway", "state") if (value := getattr(options, name))}
    rows = await client.request("GET", "/api/v1/devices", query=query)
    show(
        options,
        rows,
        {
            "UUID": lambda d: d["guid"],
            "STATE": lambda d: d["state"] + (" CONTESTED" if d["contested"] else ""),
            "ADDRESS": lambda d: d["address"],
            "MAC": lambda d: d["mac"] or "",
            "HOST": lambda d: d["hostname"],
            "GATEWAY": lambda d: d["gateway"],
            "REACHABLE": lambda d: "yes" if d["connectionStatus"] else "no",
            "LAST SEEN": lambda d: ago(d["lastSeen"]),
            "NOTE": lambda d: d["claim"]["reason"] if d["claim"] else "",
        },
    )
    return OK


async def _candidates(options: argparse.Namespace, client: ApiClient) -> int:
    rows = await client.request("GET", "/api/v1/candidates")
    show(
        options,
        rows,
        {
            "GATEWAY": lambda h: h["gateway"],
            "MAC": lambda h: h["mac"],
            "ADDRESS": lambda h: h["address"],
            "HOST": lambda h: h["hostname"],
            "PROVISIONING": lambda h: h["provisioning"],
            "PORTS": lambda h: ",".join(str(port) for port in h["ports"]),
            "SERVER": lambda h: h["server"],
            "LAST ANSWER": lambda h: ago(h["lastAnswer"]),
        },
    )
    return OK


async def _audit(options: argparse.Namespace, client: ApiClient) -> int:
    query = {"limit": str(options.limit)}
    if options.uuid is not None:
        query["guid"] = (await resolve(client, options.uuid))["guid"]
    rows = await client.request("GET", "/api/v1/audit", query=query)
    show(
        options,
        rows,
        {
            "AT": lambda e: e["at"],
            "ACTOR": lambda e: e["actor"],
            "ACTION": lambda e: e["action"],
            "GATEWAY": lambda e: e["gateway"],
            "UUID": lambda e: e["guid"] or "",
            "DETAIL": lambda e: " ".join(f"{key}={value}" for key, value in e["detail"].items()),
        },
    )
    return OK


async def _identify(options: argparse.Namespace, client: ApiClient) -> int:
    device = await client.request(
        "POST",
        f"/api/v1/candidates/{path_segment(options.gateway)}/{path_segment(options.mac)}/identify",
        login_of(options) | call_options(options),
        timeout=options.deadline + GRACE,
    )
    if options.json:
        print_json(device)
    else:
        print(device["guid"])
    return OK


async def _call(options: argparse.Namespace, client: ApiClient) -> int:
    arguments = arguments_of(options.arguments)
    device = await resolve(client, options.uuid)
    answer = await client.request(
        "POST",
        f"/api/v1/devices/{device['guid']}/call",
        {"function": options.function, "arguments": arguments}
        | login_of(options)
        | call_options(options),
        timeout=options.deadline + GRACE,
    )
    if options.json:
        print_json(answer)
    else:
        print_tree(answer["result"])
        exchanges = f"{answer['exchanges']} exchanges in {answer['elapsed']:.3f} s"
        print(f"[{options.function}: {exchanges}]", file=sys.stderr)
    return OK


async def _unpin(options: argparse.Namespace, client: ApiClient) -> int:
    guid = (await resolve(client, options.uuid))["guid"]
    device = await client.request("POST", f"/api/v1/devices/{guid}/unpin")
    if options.json:
        print_json(device)
    return OK


async def _forget(options: argparse.Namespace, client: ApiClient) -> int:
    guid = (await resolve(client, options.uuid))["guid"]
    await client.request("DELETE", f"/api/v1/devices/{guid}")
    return OK
