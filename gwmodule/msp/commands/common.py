"""What the commands share: exit codes, options, the password, the device that is meant."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from gwmodule.config import split_address
from gwmodule.errors import GatewayError
from gwmodule.msp.client import ApiClient

OK = 0


FAILED = 1


USAGE = 2


CONFIG = 78


INTERRUPTED = 130

Run = Callable[[argparse.Namespace], int]


MAX_PASSWORD = 255


class UsageError(GatewayError):
    """What was asked for cannot be meant."""


class Command(Protocol):
    """Declares one command; "gateway add" is the verb `add` of `gateway`."""

    def __call__(self, name: str, run: Run, text: str) -> argparse.ArgumentParser: ...


def add_login(parser: argparse.ArgumentParser, *, call: bool = True) -> None:
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
        parser.add_argument(
            "--challenge",
            action="store_true",
            help="answer the device's nonces here: no secret goes to the gateway, "
            "one more round trip",
        )
        parser.add_argument("--tls", choices=("auto", "off", "modern", "legacy"))
        parser.add_argument("--deadline", type=seconds, default=30.0, metavar="S")


def seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError("between 0.1 and 86400 seconds")
    return value


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
        async with ApiClient(options.api) as client:
            return await run(options, client)

    def start(options: argparse.Namespace) -> int:
        return run_coroutine(with_client(options))

    return start


def run_coroutine(work: Coroutine[Any, Any, int]) -> int:
    try:
        return asyncio.run(work)
    except asyncio.CancelledError:
        return INTERRUPTED


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
    mode = "challenge" if options.challenge else "ha1"
    login = {"username": options.user, "password": password_of(options), "mode": mode}
    return {"credential": login}


def password_of(options: argparse.Namespace) -> str:
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
