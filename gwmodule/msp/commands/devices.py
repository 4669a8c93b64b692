"""Commands about devices: what is known of them, why they can be reached or not, who did what."""

from __future__ import annotations

import argparse
import datetime
from typing import Any

from gwmodule.msp.client import GRACE, ApiClient
from gwmodule.msp.commands.common import (
    FAILED,
    OK,
    Command,
    add_login,
    call_options,
    login_or_stored,
    online,
    path_segment,
    resolve,
    whole_number,
)
from gwmodule.msp.commands.output import ago, print_checklist, print_json, show
from gwmodule.telemetry import escape

# What the gateway needs for its part.
EXPLAIN_LIMIT = 20.0
MAX_AUDIT = 10_000
# For hundreds of millions of entries; the service goes on without us.
PRUNE_LIMIT = 3600.0


def add(command: Command) -> None:
    devices = command("devices", online(_devices), "list devices")
    devices.add_argument(
        "text", metavar="TEXT", nargs="?", default="",
        help="only those with it in UUID, name, address, MAC, gateway or tags",
    )  # fmt: skip
    devices.add_argument(
        "--tag", metavar="TAG", action="append", default=[], help="only those with all these tags"
    )
    devices.add_argument("--gateway", metavar="NAME", help="only those behind it")
    devices.add_argument(
        "--state",
        choices=("setup", "managed", "found"),
        help="not provisioned yet; provisioned; known by its login only",
    )
    command("candidates", online(_candidates), "list AMT hosts whose UUID is unknown")

    identify = command("identify", online(_identify), "log in to a candidate and learn its UUID")
    identify.add_argument("gateway", metavar="GATEWAY", help="as `candidates` shows it")
    identify.add_argument("mac", metavar="MAC", help="as `candidates` shows it")
    add_login(identify)

    explain = command("explain", online(_explain), "why a device can be reached or not")
    explain.add_argument("uuid", metavar="UUID", help="or its unique beginning")

    tag = command("tag", online(_tag), "show or change the tags of a device, and its name for us")
    tag.add_argument("uuid", metavar="UUID", help="or its unique beginning")
    tag.add_argument("tags", metavar="TAG", nargs="*", help="a tag to add")
    tag.add_argument(
        "--remove",
        metavar="TAG",
        action="append",
        default=[],
        help="a tag to take away; may be repeated",
    )
    tag.add_argument("--name", metavar="TEXT", help="what you call it; empty for nothing")

    for name, run, text in (
        ("unpin", _unpin, "trust the next certificate and realm of a device afresh"),
        ("forget", _forget, "remove a device from the registry"),
    ):
        parser = command(name, online(run), text)
        parser.add_argument("uuid", metavar="UUID", help="or its unique beginning")
    audit = command("audit", online(_audit), "who did what")
    audit.add_argument("uuid", metavar="UUID", nargs="?", help="or its unique beginning")
    audit.add_argument(
        "--limit",
        type=whole_number(0, MAX_AUDIT),
        default=100,
        metavar="N",
        help="at most so many, the newest first (default %(default)s)",
    )
    prune = command(
        "audit-prune",
        online(_audit_prune),
        "delete old audit entries of all tenants; only at the service's own socket",
    )
    prune.add_argument(
        "--before",
        type=_moment,
        required=True,
        metavar="DATE",
        help="as 2026-01-31, or with a time; UTC unless it says otherwise",
    )


async def _devices(options: argparse.Namespace, client: ApiClient) -> int:
    query = {name: value for name in ("gateway", "state") if (value := getattr(options, name))}
    if options.tag:
        query["tags"] = ",".join(options.tag)
    rows = await client.request("GET", "/api/v1/devices", query=query)
    rows = [row for row in rows if _has(row, options.text)]
    show(
        options,
        rows,
        {
            "UUID": lambda d: d["guid"],
            "STATE": lambda d: d["state"] + (" CONTESTED" if d["contested"] else ""),
            "ADDRESS": lambda d: d["address"],
            "MAC": lambda d: d["mac"] or "",
            "HOST": lambda d: d["hostname"],
            "NAME": lambda d: d["friendlyName"],
            "TAGS": lambda d: ",".join(d["tags"]),
            "GATEWAY": lambda d: d["gateway"],
            "REACHABLE": lambda d: "yes" if d["connectionStatus"] else "no",
            "LAST SEEN": lambda d: ago(d["lastSeen"]),
            "NOTE": lambda d: d["claim"]["reason"] if d["claim"] else "",
        },
    )
    return OK


def _has(device: dict[str, Any], text: str) -> bool:
    names = ("guid", "hostname", "friendlyName", "address", "mac", "gateway")
    shown = [str(device[name] or "") for name in names] + device["tags"]
    return any(text.casefold() in each.casefold() for each in shown)


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


def _moment(text: str) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


# argparse names the type in its own complaint.
_moment.__name__ = "date"


async def _audit_prune(options: argparse.Namespace, client: ApiClient) -> int:
    query = {"before": options.before.isoformat()}
    pruned = await client.request("DELETE", "/api/v1/audit", query=query, timeout=PRUNE_LIMIT)
    if options.json:
        print_json(pruned)
    else:
        print(f"{pruned['entries']} entries deleted")
    return OK


async def _identify(options: argparse.Namespace, client: ApiClient) -> int:
    device = await client.request(
        "POST",
        f"/api/v1/candidates/{path_segment(options.gateway)}/{path_segment(options.mac)}/identify",
        await login_or_stored(options, client, None) | call_options(options),
        timeout=options.deadline + GRACE,
    )
    if options.json:
        print_json(device)
    else:
        print(device["guid"])
    return OK


async def _explain(options: argparse.Namespace, client: ApiClient) -> int:
    guid = (await resolve(client, options.uuid))["guid"]
    path = f"/api/v1/devices/{guid}/explain"
    found = await client.request("GET", path, timeout=EXPLAIN_LIMIT + GRACE)
    if options.json:
        print_json(found)
    else:
        print_checklist(found)
    return OK if found["reachable"] else FAILED


async def _tag(options: argparse.Namespace, client: ApiClient) -> int:
    device = await resolve(client, options.uuid)
    changes: dict[str, Any] = {}
    if options.tags or options.remove:
        kept = [tag for tag in device["tags"] if tag not in options.remove]
        changes["tags"] = list(dict.fromkeys([*kept, *options.tags]))
    if options.name is not None:
        changes["friendlyName"] = options.name
    if changes:
        body = {"guid": device["guid"]} | changes
        device = await client.request("PATCH", "/api/v1/devices", body)
    if options.json:
        print_json({name: device[name] for name in ("guid", "friendlyName", "tags")})
    else:
        print("\n".join(escape(tag) for tag in device["tags"]), end="\n" if device["tags"] else "")
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
