"""What the commands share: exit codes, the service and the device that are meant, passwords."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import os
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from gwmodule.config import split_address
from gwmodule.errors import ConfigError, GatewayError
from gwmodule.msp.client import DEFAULT_API, ApiClient, ApiRefused
from gwmodule.msp.commands import saved

OK = 0
FAILED = 1
USAGE = 2
# What was asked for may have been done, or not: nobody knows without looking.
UNKNOWN = 3
# Not logged in, or not any more.
DENIED = 77
CONFIG = 78
INTERRUPTED = 130

DEFAULT_USER = "admin"
TOKEN_VARIABLE = "GWMODULE_MSP_TOKEN"  # noqa: S105 - its name
API_VARIABLE = "GWMODULE_MSP_API"
MAX_PASSWORD = 255
# A few CA certificates.
MAX_CA_FILE = 64 * 1024

Run = Callable[[argparse.Namespace], int]


class UsageError(GatewayError):
    """What was asked for cannot be meant."""


class OutcomeUnknown(GatewayError):
    """Something may have been done, and the answer that would say so did not come."""


class Command(Protocol):
    """Declares one command; "gateway add" is the verb `add` of `gateway`."""

    def __call__(self, name: str, run: Run, text: str) -> argparse.ArgumentParser: ...


def add_login(parser: argparse.ArgumentParser, *, call: bool = True) -> None:
    parser.add_argument("--user", metavar="NAME", help=f"AMT account (default {DEFAULT_USER})")
    parser.add_argument(
        "--password-file",
        metavar="FILE",
        help="first line is the password, - is stdin; else AMT_PASSWORD, else the login that is "
        "stored at the service, else a prompt",
    )
    if call:
        parser.add_argument(
            "--allow-password",
            action="store_true",
            help="first contact: the gateway may see the password itself",
        )
        parser.add_argument(
            "--challenge",
            action="store_true",
            help="answer the device's nonces here: no secret goes to the gateway, "
            "one more round trip",
        )
        parser.add_argument(
            "--tls",
            choices=("auto", "off", "modern", "legacy"),
            help="how to speak to the device (default: as it was found)",
        )
        parser.add_argument(
            "--deadline",
            type=seconds,
            default=30.0,
            metavar="S",
            help="seconds until the gateway gives up (default %(default)g)",
        )


def seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError("between 0.1 and 86400 seconds")
    return value


def whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"between {low} and {high}")
        return value

    # argparse names the type in its own complaint.
    parse.__name__ = "whole number"
    return parse


def port_number(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError("between 1 and 65535")
    return value


def online(
    run: Callable[[argparse.Namespace, ApiClient], Awaitable[int]],
) -> Callable[[argparse.Namespace], int]:
    """A command that talks to the running service."""

    async def with_client(options: argparse.Namespace) -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio.run made one
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
        async with service_of(options) as client:
            return await run(options, client)

    def start(options: argparse.Namespace) -> int:
        return run_coroutine(with_client(options))

    return start


def run_coroutine(work: Coroutine[Any, Any, int]) -> int:
    try:
        return asyncio.run(work)
    except asyncio.CancelledError:
        return INTERRUPTED


def service_of(options: argparse.Namespace) -> ApiClient:
    """--api, else GWMODULE_MSP_API, else the saved login, else the service on this machine."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    ca = read_ca(options.ca_file) if options.ca_file else ""
    address = options.api or os.environ.get(API_VARIABLE, "")
    if not address:
        login = saved.load()
        if login is not None:
            return ApiClient(login.url, token=token or login.token, cadata=ca or login.ca)
    return ApiClient(address or DEFAULT_API, token=token, cadata=ca, tenant=options.tenant)


def read_ca(file: str) -> str:
    """The PEM text of a file; ConfigError when it holds no certificate."""
    try:
        with Path(file).open(encoding="ascii") as opened:
            text = opened.read(MAX_CA_FILE + 1)
        if len(text) > MAX_CA_FILE:
            raise ConfigError(file, "", f"more than {MAX_CA_FILE} bytes")
        ssl.create_default_context(cadata=text)
    except UnicodeDecodeError as exc:
        raise ConfigError(file, "", "is no PEM text") from exc
    except (ssl.SSLError, ValueError) as exc:
        raise ConfigError(file, "", "holds no certificate in PEM") from exc
    except OSError as exc:
        raise ConfigError(file, "", exc.strerror or str(exc)) from exc
    return text


async def resolve(client: ApiClient, text: str) -> Any:
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


def arguments_of(pairs: list[str]) -> dict[str, Any]:
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


def call_options(options: argparse.Namespace) -> dict[str, Any]:
    tls = {"tls": options.tls} if options.tls else {}
    return {"deadline": options.deadline, "allow_password": options.allow_password} | tls


def login_of(options: argparse.Namespace) -> dict[str, Any]:
    """The device's login as the technician gives it."""
    mode = "challenge" if options.challenge else "ha1"
    login = {"username": user_of(options), "password": amt_password(options), "mode": mode}
    return {"credential": login}


async def login_or_stored(
    options: argparse.Namespace, client: ApiClient, guid: str | None
) -> dict[str, Any]:
    """Nothing to send where the service has the login, and the technician gives no other.

    `guid` is None for a device that nobody has identified yet: it has the login of all at most.
    """
    if options.challenge or await gives_login(options, client, guid):
        return login_of(options)
    return {}


async def gives_login(options: argparse.Namespace, client: ApiClient, guid: str | None) -> bool:
    """Whether the technician gives the device's login himself, or must: none is stored."""
    gives = options.password_file or "AMT_PASSWORD" in os.environ or options.user
    return bool(gives) or not await _is_stored(client, guid)


async def _is_stored(client: ApiClient, guid: str | None) -> bool:
    own = [] if guid is None else [f"/api/v1/devices/{guid}/credential"]
    for path in (*own, "/api/v1/credential"):
        try:
            await client.request("GET", path)
        except ApiRefused as exc:
            if exc.status != HTTPStatus.NOT_FOUND:
                raise
        else:
            return True
    return False


def user_of(options: argparse.Namespace) -> str:
    return options.user or DEFAULT_USER


def amt_password(options: argparse.Namespace) -> str:
    """From a file, stdin, the environment or a prompt; never from the command line."""
    if not options.password_file and "AMT_PASSWORD" in os.environ:
        return _checked(os.environ["AMT_PASSWORD"])
    return read_password(
        options.password_file,
        f"AMT password of {user_of(options)}: ",
        "no password: give --password-file FILE, set AMT_PASSWORD, or store one with "
        "`gwmodule-msp credential set`",
    )


def read_password(
    file: str | None, prompt: str, missing: str = "no password: give --password-file FILE"
) -> str:
    """The first line of a file (- is stdin), else what is typed; UsageError where nobody can."""
    if file == "-":
        return _checked(_read_line(sys.stdin.fileno()))
    if file:
        try:
            with Path(file).open() as opened:
                # Twice what is allowed, in characters: a longer line is refused all the same.
                line = opened.readline(2 * MAX_PASSWORD)
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "is no text"
            raise UsageError(f"{file}: {reason}") from exc
        return _checked(line.rstrip("\r\n"))
    if not sys.stdin.isatty():
        raise UsageError(missing)
    return _checked(getpass.getpass(prompt))


def new_password(file: str | None, prompt: str) -> str:
    """Typed twice, because nobody sees what he types."""
    password = read_password(file, prompt)
    if not file and getpass.getpass("again: ") != password:
        raise UsageError("these are two different passwords")
    return password


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


def path_segment(text: str) -> str:
    if not text or not set(text) <= set(
        "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.:_-"
    ):
        raise UsageError(f"{text[:60]!r} is no name")
    return text


def listen_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if port == "0" and host:
        return host.strip("[]"), 0
    try:
        return split_address(text)
    except ValueError as exc:
        raise UsageError(f"--listen: {exc}") from exc
