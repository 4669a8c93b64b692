"""`call`, and `power` and `boot` as calls with a name of their own.

A call can be watched on a terminal, and cancelled from the keyboard.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import signal
import sys
from collections.abc import Iterator
from typing import Any

from gwmodule.amt.functions import CATALOGUE
from gwmodule.amt.functions.power import REQUESTS
from gwmodule.errors import GatewayError
from gwmodule.msp.client import GRACE, ApiClient, ApiRefused, ApiUnavailable
from gwmodule.msp.commands.common import (
    INTERRUPTED,
    OK,
    Command,
    OutcomeUnknown,
    add_login,
    arguments_of,
    call_options,
    login_or_stored,
    online,
    resolve,
    whole_number,
)
from gwmodule.msp.commands.output import ProgressBar, notice, print_json, print_tree
from gwmodule.telemetry import escape

BOOT_DEVICES = next(a.names for a in CATALOGUE["boot.once"].arguments if a.name == "device")
# Firmware's own time on top of what --wait asks for.
_POWER_DEADLINE = 30.0
MAX_WAIT = 300
# Answers after which a call that changes something may have done it.
_UNKNOWN = frozenset({"OUTCOME_UNKNOWN", "DEADLINE", "TIMEOUT", "CANCELLED"})


def add(command: Command) -> None:
    call = command("call", online(_call), "run a function of a device through its gateway")
    call.add_argument("uuid", metavar="UUID", help="or its unique beginning")
    call.add_argument(
        "function",
        metavar="FUNCTION",
        help="for example power.get; the command functions lists them all",
    )
    call.add_argument(
        "arguments", metavar="KEY=VALUE", nargs="*", help="VALUE is JSON, or else a string"
    )
    add_login(call)

    power = command("power", online(_power), "show the power state of a PC, or change it")
    power.add_argument("uuid", metavar="UUID", help="or its unique beginning")
    power.add_argument(
        "state", metavar="STATE", nargs="?", choices=tuple(REQUESTS), help="without it: show"
    )
    power.add_argument(
        "--wait",
        type=whole_number(0, MAX_WAIT),
        default=0,
        metavar="S",
        help="wait so many seconds for the new state, and say whether it came",
    )
    power.add_argument(
        "--force",
        action="store_true",
        help="also while another technician has a console open; it is closed",
    )
    add_login(power)

    boot = command("boot", online(_boot), "choose what a PC boots next, once, and start it")
    boot.add_argument("uuid", metavar="UUID", help="or its unique beginning")
    boot.add_argument("device", metavar="DEVICE", choices=BOOT_DEVICES, help="what to boot")
    boot.add_argument(
        "--sol",
        action="store_true",
        help="let the BIOS write to Serial-over-LAN; to watch it: sol --boot DEVICE",
    )
    boot.add_argument("--url", metavar="URL", default="", help="the image, for uefi-https only")
    boot.add_argument(
        "--later", action="store_true", help="do not start the PC now, leave it for its next start"
    )
    add_login(boot)


async def _call(options: argparse.Namespace, client: ApiClient) -> int:
    arguments = arguments_of(options.arguments)
    guid = (await resolve(client, options.uuid))["guid"]
    return await _run(options, client, guid, options.function, arguments)


async def _power(options: argparse.Namespace, client: ApiClient) -> int:
    guid = (await resolve(client, options.uuid))["guid"]
    if options.state is None:
        return await _run(options, client, guid, "power.get", {})
    arguments = {"state": options.state, "wait": options.wait}
    if options.force:
        arguments["force"] = True
    options.deadline = max(options.deadline, options.wait + _POWER_DEADLINE)
    return await _run(options, client, guid, "power.set", arguments)


async def _boot(options: argparse.Namespace, client: ApiClient) -> int:
    guid = (await resolve(client, options.uuid))["guid"]
    arguments = {"device": options.device, "sol": options.sol}
    if options.url:
        arguments["url"] = options.url
    if options.later:
        arguments["power"] = "later"
    return await _run(options, client, guid, "boot.once", arguments)


async def _run(
    options: argparse.Namespace,
    client: ApiClient,
    guid: str,
    function: str,
    arguments: dict[str, Any],
) -> int:
    login = await login_or_stored(options, client, guid)
    body = {"function": function, "arguments": arguments} | login | call_options(options)
    answer = await RunningCall(client, guid, body).run()
    if answer is None:
        return INTERRUPTED
    if options.json:
        print_json(answer)
    else:
        print_tree(answer["result"])
        exchanges = f"{answer['exchanges']} exchanges in {answer['elapsed']:.3f} s"
        notice(f"[{function}: {exchanges}]\n")
    return OK


class RunningCall:
    """One call, from its request to its answer. `run` once.

    The first Ctrl-C cancels it and goes on waiting, because its answer says what became of it; the
    second one leaves without knowing.
    """

    def __init__(self, client: ApiClient, guid: str, body: dict[str, Any]) -> None:
        self._client = client
        self._path = f"/api/v1/devices/{guid}/call"
        self._body = body
        function = CATALOGUE.get(body["function"])
        self._changes = function is None or function.changes_state
        self._id = secrets.token_hex(8)
        self._interrupted = asyncio.Event()
        self._bar = ProgressBar(sys.stderr)

    async def run(self) -> Any:
        """The answer; None when it was cancelled. OutcomeUnknown, ApiRefused, ApiUnavailable."""
        answer: Any = None
        failure: ApiRefused | ApiUnavailable | None = None
        with self._interruptible():
            async with asyncio.TaskGroup() as group:
                beside = [group.create_task(self._cancel_when_asked(), name="cancel")]
                if self._bar.shown:
                    beside.append(group.create_task(self._watch(), name="progress"))
                try:
                    answer = await self._request()
                except (ApiRefused, ApiUnavailable) as exc:
                    failure = exc
                finally:
                    for task in beside:
                        task.cancel()
                    self._bar.clear()
        return answer if failure is None else self._judge(failure)

    async def _request(self) -> Any:
        return await self._client.request(
            "POST",
            self._path,
            self._body,
            headers={"Call-Id": self._id},
            timeout=self._body["deadline"] + GRACE,
        )

    def _judge(self, failure: ApiRefused | ApiUnavailable) -> None:
        error = failure.error if isinstance(failure, ApiRefused) else "OUTCOME_UNKNOWN"
        if error == "CANCELLED" and self._interrupted.is_set():
            notice(f"{escape(str(failure))}; {self._what_is_known()}\n")
        elif error in _UNKNOWN and self._changes:
            raise OutcomeUnknown(f"{failure}; {self._what_is_known()}") from failure
        else:
            raise failure

    def _what_is_known(self) -> str:
        if self._changes:
            return "it may have been carried out: read the state before you repeat it"
        return "it changes nothing and can be repeated"

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - `run` is a coroutine

        def interrupt() -> None:
            if self._interrupted.is_set():
                notice(f"left without an answer; {self._what_is_known()}\n")
                task.cancel()
            self._interrupted.set()

        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    async def _cancel_when_asked(self) -> None:
        await self._interrupted.wait()
        self._bar.clear()
        notice("cancelling; ^C again leaves without an answer\n")
        try:
            await self._client.request("DELETE", f"/api/v1/calls/{self._id}")
        except GatewayError as exc:
            # Also when it has ended meanwhile; then its answer is on its way.
            notice(f"not cancelled: {escape(str(exc))}\n")

    async def _watch(self) -> None:
        # What goes wrong here must not be the call's fault.
        with contextlib.suppress(GatewayError):
            async with contextlib.aclosing(self._client.events()) as events:
                async for kind, data in events:
                    if kind == "call" and data.get("callId") == self._id and "step" in data:
                        self._bar.show(data["done"], data["total"], data["step"])
