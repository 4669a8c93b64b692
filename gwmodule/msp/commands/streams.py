"""`sol` and `forward`: a device's ports on this terminal or this machine."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import Any

from gwmodule.msp.client import ApiClient
from gwmodule.msp.commands.calls import BOOT_DEVICES
from gwmodule.msp.commands.common import (
    OK,
    Command,
    UsageError,
    add_login,
    amt_password,
    gives_login,
    listen_address,
    online,
    port_number,
    resolve,
    seconds,
    user_of,
)
from gwmodule.msp.commands.output import notice, print_json
from gwmodule.msp.console_protocol import Want
from gwmodule.msp.forward import Forward
from gwmodule.msp.lines import TAIL, Attachment, Line, OwnSession
from gwmodule.msp.sol import SolLogin
from gwmodule.msp.terminal import Step, Terminal, TerminalOptions
from gwmodule.telemetry import escape


def add(command: Command) -> None:
    sol = command("sol", online(_sol), "serial line of a device on this terminal; ^] q leaves")
    sol.add_argument("uuid", metavar="UUID", help="or its unique beginning")
    add_login(sol, call=False)
    start = sol.add_mutually_exclusive_group()
    start.add_argument(
        "--boot",
        metavar="DEVICE",
        choices=BOOT_DEVICES,
        help="once the line is open, boot the PC from there, and watch it from its first line on",
    )
    start.add_argument(
        "--reset",
        dest="boot",
        action="store_const",
        const="default",
        help="the same in the BIOS's own order",
    )
    sol.add_argument(
        "--send", dest="steps", action=_StepAction, metavar="TEXT", help="type TEXT and Enter"
    )
    sol.add_argument(
        "--expect", dest="steps", action=_StepAction, metavar="TEXT", help="wait for TEXT"
    )
    sol.add_argument("--timeout", type=seconds, metavar="S", help="(default 60 for scripts)")
    sol.add_argument(
        "--idle",
        type=seconds,
        default=2.0,
        metavar="S",
        help="with stdin as a pipe: leave when it ended and nothing came for S seconds",
    )
    sol.add_argument(
        "--allow-clear-text",
        action="store_true",
        help="no TLS even if the device has it, and a login without digest if it has no other",
    )
    claim = sol.add_mutually_exclusive_group()
    claim.add_argument(
        "--takeover", action="store_true", help="end whoever has the line, or take his seat"
    )
    claim.add_argument(
        "--watch",
        action="store_true",
        help="only look at what somebody else has open at the service",
    )
    sol.add_argument("--no-hold", action="store_true", help="no heartbeats by the gateway")

    forward = command("forward", online(_forward), "make a device's port a local TCP port")
    forward.add_argument("uuid", metavar="UUID", help="or its unique beginning")
    forward.add_argument("port", metavar="PORT", type=port_number)
    forward.add_argument("--listen", metavar="ADDR:PORT", help="(default 127.0.0.1:PORT)")
    forward.add_argument("--hold", action="store_true", help="heartbeats by the gateway (SOL)")


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


async def _sol(options: argparse.Namespace, client: ApiClient) -> int:
    steps: list[Step] = options.steps or []
    if options.watch and (options.boot or any(kind == "send" for kind, _ in steps)):
        raise UsageError("who watches neither types nor boots")
    device = await resolve(client, options.uuid)
    line, login = await _line(options, client, device)
    timeout = options.timeout if options.timeout or not steps else 60.0
    terminal = Terminal(
        client,
        line,
        TerminalOptions(
            guid=device["guid"],
            steps=steps,
            timeout=timeout,
            idle=options.idle,
            boot=options.boot or "",
            login=login,
            types=not options.watch,
        ),
        stdin=sys.stdin.fileno(),
        stdout=sys.stdout.fileno(),
        notice=notice,
    )
    await terminal.run()
    return OK


async def _line(
    options: argparse.Namespace, client: ApiClient, device: Any
) -> tuple[Line, dict[str, Any]]:
    """The line, and the login for a boot: the service's, unless the technician gives his own."""
    guid = device["guid"]
    own = options.allow_clear_text or options.no_hold
    if options.watch or not (own or await gives_login(options, client, guid)):
        want = Want.WATCH if options.watch else Want.TAKEOVER if options.takeover else Want.SEAT
        # What a script waits for, or what goes into a file, begins now.
        tail = TAIL if sys.stdin.isatty() and not options.steps else 0
        return Attachment(client, guid, want, tail=tail), {}
    pin = device["pin"] if not options.allow_clear_text else None
    login = SolLogin(
        user_of(options),
        amt_password(options),
        pin=bytes.fromhex(pin) if pin else None,
        allow_clear_text=options.allow_clear_text,
    )
    line = OwnSession(client, guid, login, hold=not options.no_hold, takeover=options.takeover)
    credential = {"username": login.username, "password": login.password}
    return line, {"credential": credential}


async def _forward(options: argparse.Namespace, client: ApiClient) -> int:
    host, port = "127.0.0.1", options.port
    if options.listen:
        host, port = listen_address(options.listen)
    device = await resolve(client, options.uuid)
    forward = Forward(
        client,
        device["guid"],
        options.port,
        hold=options.hold,
        report=lambda line: notice(f"{escape(line)}\n"),
    )
    address, local_port = forward.listen(host, port)
    if options.json:
        print_json({"guid": device["guid"], "address": address, "port": local_port})
    else:
        print(f"{address}:{local_port} is port {options.port} of {device['guid']}", flush=True)
    if address not in ("127.0.0.1", "::1"):
        notice(f"warning: everybody who reaches {address} reaches the device\n")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(forward.run(), name="forward")
        await stop.wait()
        task.cancel()
    return OK
