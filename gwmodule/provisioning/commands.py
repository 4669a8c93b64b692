"""The command lines of `gwmodule provision`, `renew` and `deprovision`.

Exit codes: 0 done or nothing to do, 1 refused or failed, 2 wrong usage, 75 try the same command
again later (no network, no MSP, no clock), 78 a configuration that cannot be used.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gwmodule.config import load
from gwmodule.errors import GatewayError
from gwmodule.provisioning.client import TryLater, normal_fingerprint
from gwmodule.provisioning.provision import Wanted, deprovision, provision, renew, with_port

OK = 0
FAILED = 1
TEMPORARY = 75  # EX_TEMPFAIL of sysexits.h
MAX_WAIT = 86400.0
TARGETS = ("etc", "usr/local/lib", "usr/lib")


def run_provision(arguments: argparse.Namespace) -> int:
    def work() -> dict[str, Any]:
        return provision(
            Wanted(
                config=Path(arguments.config),
                msp=arguments.msp,
                token_file=arguments.token_file,
                ca_fingerprint=arguments.ca_fingerprint,
                gateway=arguments.gateway_id,
                lan=tuple(arguments.lan),
                check=arguments.check,
                wait=arguments.wait,
            )
        )

    def tell(done: dict[str, Any]) -> str:
        if done.get("check"):
            return "would " + "\nwould ".join(done["changes"])
        who = f"gateway {done['gateway']}, certificate until {done['not_after']}"
        if not done["changed"]:
            return f"already provisioned, nothing changed: {who}"
        return f"provisioned: {who}\nnow start the services: {start_command()}"

    return _attempt(arguments, work, tell)


def start_command(root: Path = Path("/")) -> str:
    """What starts the services here, or starts them anew if they run."""
    units = (root / place / "systemd/system/gwmodule.target" for place in TARGETS)
    if (root / "run/systemd/system").is_dir() and any(unit.exists() for unit in units):
        return "systemctl restart gwmodule.target"
    if (root / "etc/init.d/gwmodule").exists():
        return "/etc/init.d/gwmodule reload"
    return "gwmodule run"


def run_renew(arguments: argparse.Namespace) -> int:
    def work() -> dict[str, Any]:
        path = Path(arguments.config)
        done = renew(path, force=arguments.force, wait=arguments.wait)
        if done["changed"] and arguments.deploy_hook:
            done["deploy_hook"] = _run_hook(arguments.deploy_hook)
        elif done["changed"]:
            done["reconnected"] = _reconnect(path)
        return done

    def tell(done: dict[str, Any]) -> str:
        if done["changed"]:
            return f"renewed: gateway {done['gateway']}, certificate until {done['not_after']}"
        return f"not due before {done['renew_at']}, nothing changed"

    return _attempt(arguments, work, tell)


def run_deprovision(arguments: argparse.Namespace) -> int:
    def tell(done: dict[str, Any]) -> str:
        if not done["changed"]:
            return "not provisioned, nothing changed"
        if not done["msp_told"]:
            print(
                "gwmodule: the MSP was not told: revoke the gateway there as well", file=sys.stderr
            )
        return "removed " + " ".join(done["removed"])

    return _attempt(arguments, lambda: deprovision(Path(arguments.config)), tell)


def _attempt(
    arguments: argparse.Namespace,
    work: Callable[[], dict[str, Any]],
    tell: Callable[[dict[str, Any]], str],
) -> int:
    try:
        done = work()
    except (GatewayError, OSError) as exc:
        if arguments.json:
            retry = isinstance(exc, TryLater)
            print(json.dumps({"changed": False, "error": _sentence(exc), "retry": retry}))
        if not isinstance(exc, TryLater):
            raise
        print(f"gwmodule: {exc}; try again", file=sys.stderr)
        return TEMPORARY
    print(json.dumps(done) if arguments.json else tell(done))
    # The certificate is in place all the same: only the hook is to be run again.
    if done.get("deploy_hook"):
        print(f"gwmodule: the deploy hook ended with {done['deploy_hook']}", file=sys.stderr)
        return FAILED
    return OK


def _sentence(exc: Exception) -> str:
    if isinstance(exc, OSError):
        return f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc)
    return str(exc)


def _run_hook(argv: list[str]) -> int:
    """Its exit code, and a shell's 127 for a program that cannot be started."""
    try:
        # Not into stdout: that is our own answer's.
        return subprocess.run(argv, stdout=sys.stderr, check=False).returncode
    except OSError as exc:
        print(f"gwmodule: {argv[0]}: {exc.strerror}", file=sys.stderr)
        return 127


def _reconnect(path: Path) -> bool:
    """A renewed certificate is read for the next link; this makes it now, and loses no stream."""
    from gwmodule.control import ask

    with contextlib.suppress(GatewayError):
        ask(load(path).control.socket, "reconnect")
        return True
    return False


# Types of arguments.


def msp_argument(text: str) -> str:
    try:
        return with_port(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def fingerprint_argument(text: str) -> str:
    try:
        return normal_fingerprint(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def command_argument(text: str) -> list[str]:
    """A command line as a shell splits it; no shell runs it."""
    try:
        argv = shlex.split(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}: {exc}") from exc
    if not argv:
        raise argparse.ArgumentTypeError("no command")
    return argv


def wait_argument(text: str) -> float:
    try:
        value = float(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from exc
    if not 0 <= value <= MAX_WAIT:
        raise argparse.ArgumentTypeError(f"between 0 and {MAX_WAIT:.0f} seconds")
    return value
