"""`gwmodule-msp`: the service and the technician's tools. Data on stdout, messages on stderr.

Exit codes: 0 done, 1 failed, 2 wrong usage, 78 the service's options or files cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import getpass
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from gwmodule import __version__
from gwmodule.config import split_address
from gwmodule.errors import ConfigError, GatewayError
from gwmodule.msp.client import DEFAULT_API, GRACE, ApiClient, ApiRefused
from gwmodule.msp.enrolment import (
    SERVICE_NAME,
    check_gateway_name,
    gateway_config,
    write_atomically,
)
from gwmodule.msp.forward import Forward
from gwmodule.msp.terminal import Sol, SolOptions, Step
from gwmodule.telemetry import escape, start_logging

OK = 0
FAILED = 1
USAGE = 2
CONFIG = 78
INTERRUPTED = 130

DEFAULT_STATE = "/var/lib/gwmodule-msp"
DEFAULT_LISTEN = "[::]:8883"
MAX_PASSWORD = 255
DEFAULT_PORT = 8883


class UsageError(GatewayError):
    """What was asked for cannot be meant."""


def main(arguments: Sequence[str] | None = None) -> int:
    # Not parser defaults: those of a subcommand would overwrite what stands before it.
    defaults = argparse.Namespace(api=DEFAULT_API, json=False)
    options = _parser().parse_args(arguments, defaults)
    try:
        return int(options.run(options))
    except UsageError as exc:
        _complain(options, "USAGE", str(exc))
        return USAGE
    except ConfigError as exc:
        _complain(options, "CONFIG", str(exc))
        return CONFIG if options.run is _serve else FAILED
    except ApiRefused as exc:
        _complain(options, exc.error, str(exc))
        return FAILED
    except GatewayError as exc:
        _complain(options, "FAILED", str(exc))
        return FAILED
    except BrokenPipeError:
        # `gwmodule-msp devices | head`: Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _complain(options: argparse.Namespace, error: str, text: str) -> None:
    if getattr(options, "json", False):
        print(json.dumps({"error": error, "errorDescription": text}), file=sys.stderr)
    else:
        print(f"gwmodule-msp: {escape(text)}", file=sys.stderr)


# The command line.


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--api",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help=f"the service's socket (default {DEFAULT_API})",
    )
    common.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="JSON instead of tables"
    )
    parser = argparse.ArgumentParser(
        prog="gwmodule-msp",
        description="The MSP service for gwmodule gateways, and the technician's tools.",
        epilog=(__doc__ or "").rpartition("\n\n")[2],
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=[common])
        added.set_defaults(run=run)
        return added

    serve = command("serve", _serve, "run the service until SIGTERM")
    serve.add_argument("--state", metavar="DIR", type=Path, default=Path(DEFAULT_STATE))
    serve.add_argument("--listen", metavar="HOST:PORT", default=DEFAULT_LISTEN)
    serve.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name or address for the server certificate; may be repeated",
    )
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")

    command("gateways", _online(_gateways), "list gateways and their links")
    devices = command("devices", _online(_devices), "list devices")
    devices.add_argument("--gateway", metavar="NAME")
    devices.add_argument("--state", choices=("setup", "managed", "found"))
    command("candidates", _online(_candidates), "list AMT hosts whose UUID is unknown")

    identify = command("identify", _online(_identify), "log in to a candidate and learn its UUID")
    identify.add_argument("gateway", metavar="GATEWAY")
    identify.add_argument("mac", metavar="MAC")
    _add_login(identify)

    call = command("call", _online(_call), "run a function of a device through its gateway")
    call.add_argument("uuid", metavar="UUID", help="or its unique beginning")
    call.add_argument("function", metavar="FUNCTION", help="for example power.get")
    call.add_argument(
        "arguments", metavar="KEY=VALUE", nargs="*", help="VALUE is JSON, or else a string"
    )
    _add_login(call)

    sol = command("sol", _online(_sol), "serial line of a device on this terminal; ^] q leaves")
    sol.add_argument("uuid", metavar="UUID")
    _add_login(sol, call=False)
    sol.add_argument(
        "--send", dest="steps", action=_StepAction, metavar="TEXT", help="type TEXT and Enter"
    )
    sol.add_argument(
        "--expect", dest="steps", action=_StepAction, metavar="TEXT", help="wait for TEXT"
    )
    sol.add_argument("--timeout", type=_seconds, metavar="S", help="(default 60 for scripts)")
    sol.add_argument(
        "--idle",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="with stdin as a pipe: leave when it ended and nothing came for S seconds",
    )
    sol.add_argument(
        "--allow-clear-text",
        action="store_true",
        help="no TLS even if the device has it, and a login without digest if it has no other",
    )
    sol.add_argument("--no-hold", action="store_true", help="no heartbeats by the gateway")

    forward = command("forward", _online(_forward), "make a device's port a local TCP port")
    forward.add_argument("uuid", metavar="UUID")
    forward.add_argument("port", metavar="PORT", type=_port)
    forward.add_argument("--listen", metavar="ADDR:PORT", help="(default 127.0.0.1:PORT)")
    forward.add_argument("--hold", action="store_true", help="heartbeats by the gateway (SOL)")

    for name, run, text in (
        ("unpin", _unpin, "trust the next certificate and realm of a device afresh"),
        ("forget", _forget, "remove a device from the registry"),
    ):
        command(name, _online(run), text).add_argument("uuid", metavar="UUID")
    audit = command("audit", _online(_audit), "who did what")
    audit.add_argument("uuid", metavar="UUID", nargs="?")
    audit.add_argument("--limit", type=int, default=100)

    gateway = commands.add_parser("gateway", help="enrol and list gateways", parents=[common])
    verbs = gateway.add_subparsers(required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="the same as `gateways`", parents=[common])
    listing.set_defaults(run=_online(_gateways))
    add = verbs.add_parser("add", help="make what a gateway needs to enrol", parents=[common])
    add.set_defaults(run=_online(_gateway_add))
    add.add_argument("name", metavar="NAME")
    add.add_argument("--out", metavar="DIR", type=Path, help="(default ./NAME)")
    add.add_argument("--msp", metavar="HOST:PORT", help="how the gateway reaches this service")
    add.add_argument(
        "--directory",
        metavar="DIR",
        default="/etc/gwmodule",
        help="where the files will lie on the gateway (default %(default)s)",
    )
    add.add_argument("--lan", metavar="INTERFACE", action="append", help="(default br-lan)")
    add.add_argument("--replace", action="store_true", help="a new certificate for a known name")
    return parser


def _add_login(parser: argparse.ArgumentParser, *, call: bool = True) -> None:
    parser.add_argument("--user", default="admin", help="AMT account (default %(default)s)")
    parser.add_argument(
        "--password-file",
        metavar="FILE",
        help="first line is the password, - is stdin; else AMT_PASSWORD, else a prompt",
    )
    if call:
        parser.add_argument(
            "--allow-password",
            action="store_true",
            help="first contact: the gateway may see the password itself",
        )
        parser.add_argument("--tls", choices=("auto", "off", "modern", "legacy"))
        parser.add_argument("--deadline", type=_seconds, default=30.0, metavar="S")


class _StepAction(argparse.Action):
    """`--send` and `--expect` keep the order in which they were given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        steps: list[Step] = list(getattr(namespace, self.dest) or [])
        steps.append(("send" if option_string == "--send" else "expect", str(values)))
        setattr(namespace, self.dest, steps)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError("between 0.1 and 86400 seconds")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError("between 1 and 65535")
    return value


def _online(
    run: Callable[[argparse.Namespace, ApiClient], Awaitable[int]],
) -> Callable[[argparse.Namespace], int]:
    """A command that talks to the running service."""

    async def with_client(options: argparse.Namespace) -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio.run made one
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
        async with ApiClient(options.api) as client:
            return await run(options, client)

    def start(options: argparse.Namespace) -> int:
        return _run(with_client(options))

    return start


def _run(work: Coroutine[Any, Any, int]) -> int:
    try:
        return asyncio.run(work)
    except asyncio.CancelledError:
        return INTERRUPTED


# The service.


def _serve(options: argparse.Namespace) -> int:
    # Half of this program's weight, and no technician's command needs it.
    from gwmodule.msp import server

    host, port = _listen_address(options.listen)
    start_logging(options.log_level)
    server.run(
        server.ServerOptions(
            state=options.state,
            host=host,
            port=port,
            api=Path(options.api),
            names=tuple(options.name),
        )
    )
    return OK


# Lists.


async def _gateways(options: argparse.Namespace, client: ApiClient) -> int:
    rows = await client.request("GET", "/api/v1/gateways")
    _show(
        options,
        rows,
        {
            "NAME": lambda g: g["name"],
            "LINK": lambda g: "up" if g["connectionStatus"] else "down",
            "ADDRESS": lambda g: f"{g['address']}:{g['port']}" if g["address"] else "",
            "RTT": lambda g: f"{g['rtt'] * 1000:.1f} ms" if g["rtt"] else "",
            "SOFTWARE": lambda g: g["software"],
            "LAST LINK": lambda g: _ago(g["lastLink"]),
        },
    )
    return OK


async def _devices(options: argparse.Namespace, client: ApiClient) -> int:
    query = {name: value for name in ("gateway", "state") if (value := getattr(options, name))}
    rows = await client.request("GET", "/api/v1/devices", query=query)
    _show(
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
            "LAST SEEN": lambda d: _ago(d["lastSeen"]),
            "NOTE": lambda d: d["claim"]["reason"] if d["claim"] else "",
        },
    )
    return OK


async def _candidates(options: argparse.Namespace, client: ApiClient) -> int:
    rows = await client.request("GET", "/api/v1/candidates")
    _show(
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
            "LAST ANSWER": lambda h: _ago(h["lastAnswer"]),
        },
    )
    return OK


async def _audit(options: argparse.Namespace, client: ApiClient) -> int:
    query = {"limit": str(options.limit)}
    if options.uuid is not None:
        query["guid"] = (await _resolve(client, options.uuid))["guid"]
    rows = await client.request("GET", "/api/v1/audit", query=query)
    _show(
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


# Devices.


async def _identify(options: argparse.Namespace, client: ApiClient) -> int:
    device = await client.request(
        "POST",
        f"/api/v1/candidates/{_segment(options.gateway)}/{_segment(options.mac)}/identify",
        _login(options) | _call_options(options),
        timeout=options.deadline + GRACE,
    )
    if options.json:
        _print_json(device)
    else:
        print(device["guid"])
    return OK


async def _call(options: argparse.Namespace, client: ApiClient) -> int:
    arguments = _arguments(options.arguments)
    device = await _resolve(client, options.uuid)
    answer = await client.request(
        "POST",
        f"/api/v1/devices/{device['guid']}/call",
        {"function": options.function, "arguments": arguments}
        | _login(options)
        | _call_options(options),
        timeout=options.deadline + GRACE,
    )
    if options.json:
        _print_json(answer)
    else:
        _print_tree(answer["result"])
        exchanges = f"{answer['exchanges']} exchanges in {answer['elapsed']:.3f} s"
        print(f"[{options.function}: {exchanges}]", file=sys.stderr)
    return OK


async def _sol(options: argparse.Namespace, client: ApiClient) -> int:
    device = await _resolve(client, options.uuid)
    pin = device["pin"] if not options.allow_clear_text else None
    steps: list[Step] = options.steps or []
    timeout = options.timeout if options.timeout or not steps else 60.0
    sol = Sol(
        client,
        SolOptions(
            guid=device["guid"],
            username=options.user,
            password=_password(options),
            pin=bytes.fromhex(pin) if pin else None,
            hold=not options.no_hold,
            allow_clear_text=options.allow_clear_text,
            steps=steps,
            timeout=timeout,
            idle=options.idle,
        ),
        stdin=sys.stdin.fileno(),
        stdout=sys.stdout.fileno(),
        notice=_notice,
    )
    await sol.run()
    return OK


async def _forward(options: argparse.Namespace, client: ApiClient) -> int:
    host, port = "127.0.0.1", options.port
    if options.listen:
        host, port = _listen_address(options.listen)
    device = await _resolve(client, options.uuid)
    forward = Forward(
        client,
        device["guid"],
        options.port,
        hold=options.hold,
        report=lambda line: _notice(f"{escape(line)}\n"),
    )
    address, local_port = forward.listen(host, port)
    if options.json:
        _print_json({"guid": device["guid"], "address": address, "port": local_port})
    else:
        print(f"{address}:{local_port} is port {options.port} of {device['guid']}", flush=True)
    if address not in ("127.0.0.1", "::1"):
        _notice(f"warning: everybody who reaches {address} reaches the device\n")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(forward.run(), name="forward")
        await stop.wait()
        task.cancel()
    return OK


async def _unpin(options: argparse.Namespace, client: ApiClient) -> int:
    guid = (await _resolve(client, options.uuid))["guid"]
    device = await client.request("POST", f"/api/v1/devices/{guid}/unpin")
    if options.json:
        _print_json(device)
    return OK


async def _forget(options: argparse.Namespace, client: ApiClient) -> int:
    guid = (await _resolve(client, options.uuid))["guid"]
    await client.request("DELETE", f"/api/v1/devices/{guid}")
    return OK


async def _resolve(client: ApiClient, text: str) -> Any:
    """The device of a UUID or of the only one that begins so."""
    if not text or len(text) > 36 or not set(text) <= set("0123456789abcdefABCDEF-"):
        raise UsageError(f"{text[:60]!r} is neither a UUID nor its beginning")
    if len(text.replace("-", "")) == 32:
        return await client.request("GET", f"/api/v1/devices/{text}")
    found = await client.request("GET", "/api/v1/devices", query={"guid": text})
    if not found:
        raise UsageError(f"no device begins with {text}")
    if len(found) > 1:
        names = ", ".join(device["guid"] for device in found[:4])
        raise UsageError(f"{len(found)} devices begin with {text}: {names}")
    return found[0]


def _arguments(pairs: list[str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise UsageError(f"{pair!r} is not KEY=VALUE")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = value
    return arguments


def _call_options(options: argparse.Namespace) -> dict[str, Any]:
    tls = {"tls": options.tls} if options.tls else {}
    return {"deadline": options.deadline, "allow_password": options.allow_password} | tls


def _login(options: argparse.Namespace) -> dict[str, Any]:
    return {"credential": {"username": options.user, "password": _password(options)}}


def _password(options: argparse.Namespace) -> str:
    """From a file, stdin, the environment or a prompt; never from the command line."""
    if options.password_file == "-":  # noqa: S105 - that is where it is, not what it is
        return _checked(_read_line(sys.stdin.fileno()))
    if options.password_file:
        try:
            text = Path(options.password_file).read_text()
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "is no text"
            raise UsageError(f"{options.password_file}: {reason}") from exc
        return _checked(text.partition("\n")[0].rstrip("\r"))
    if "AMT_PASSWORD" in os.environ:
        return _checked(os.environ["AMT_PASSWORD"])
    if not sys.stdin.isatty():
        raise UsageError("no password: give --password-file FILE or set AMT_PASSWORD")
    return _checked(getpass.getpass(f"AMT password of {options.user}: "))


def _checked(password: str) -> str:
    if not 1 <= len(password.encode(errors="replace")) <= MAX_PASSWORD:
        raise UsageError(f"a password has 1 to {MAX_PASSWORD} bytes")
    return password


def _read_line(descriptor: int) -> str:
    """Byte by byte: what follows on stdin belongs to the serial line."""
    line = bytearray()
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
        line += byte
        if len(line) > MAX_PASSWORD:
            break
    return line.decode(errors="replace").rstrip("\r")


# Gateways.


async def _gateway_add(options: argparse.Namespace, client: ApiClient) -> int:
    try:
        name = check_gateway_name(options.name)
        if options.msp:
            split_address(options.msp)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
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
        _print_json(
            {
                "name": name,
                "directory": str(out),
                "files": sorted(files),
                "fingerprint": bundle["fingerprint"],
            }
        )
    else:
        print(f"{out}: {' '.join(sorted(files))}")
        _notice(f"copy them to {options.directory} on the gateway and start gwmodule there\n")
    return OK


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
    _notice(f"the gateway will dial {address}; --msp HOST:PORT says otherwise\n")
    return address


# Output.


def _segment(text: str) -> str:
    if not text or not set(text) <= set(
        "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.:_-"
    ):
        raise UsageError(f"{text[:60]!r} is no name")
    return text


def _listen_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if port == "0" and host:
        return host.strip("[]"), 0
    try:
        return split_address(text)
    except ValueError as exc:
        raise UsageError(f"--listen: {exc}") from exc


def _notice(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2), flush=True)


def _print_tree(value: Any, indent: str = "") -> None:
    """A result for people: one `name: value` per line, nested by indentation."""
    match value:
        case dict():
            for key, inner in value.items():
                if isinstance(inner, (dict, list)) and inner:
                    print(f"{indent}{escape(str(key))}:")
                    _print_tree(inner, f"{indent}  ")
                else:
                    print(f"{indent}{escape(str(key))}: {_scalar(inner)}")
        case list():
            for inner in value:
                if isinstance(inner, (dict, list)):
                    print(f"{indent}-")
                    _print_tree(inner, f"{indent}  ")
                else:
                    print(f"{indent}- {_scalar(inner)}")
        case _:
            print(f"{indent}{_scalar(value)}")


def _scalar(value: Any) -> str:
    return escape(value) if isinstance(value, str) else json.dumps(value)


def _show(
    options: argparse.Namespace, rows: list[Any], columns: dict[str, Callable[[Any], str]]
) -> None:
    """A table for people: texts from a LAN are escaped, columns without any entry are left out."""
    if options.json:
        _print_json(rows)
        return
    cells = [[escape(str(cell(row))) for cell in columns.values()] for row in rows]
    kept = [i for i in range(len(columns)) if any(row[i] for row in cells)] if rows else []
    if not rows:
        _notice("none\n")
        return
    table = [[list(columns)[i] for i in kept]] + [[row[i] for i in kept] for row in cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(kept))]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def _ago(text: str | None) -> str:
    if text is None:
        return "never"
    with contextlib.suppress(ValueError):
        moment = datetime.datetime.fromisoformat(text)
        seconds = (datetime.datetime.now(datetime.UTC) - moment).total_seconds()
        for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
            if seconds >= 2 * size:
                return f"{seconds / size:.0f} {unit} ago"
        return f"{max(seconds, 0):.0f} s ago"
    return text


if __name__ == "__main__":
    sys.exit(main())
