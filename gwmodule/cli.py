"""The command `gwmodule`: runs the gateway's services and asks the running one.

Exit codes: 0 success, 1 failed, 2 wrong usage, 78 a configuration that cannot be used.
Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import sys
from pathlib import Path
from typing import Any

from gwmodule import __version__
from gwmodule.config import Config, load, with_credentials
from gwmodule.errors import ConfigError, GatewayError

OK = 0
FAILED = 1
BAD_CONFIG = 78  # EX_CONFIG of sysexits.h; systemd and procd do not restart on it.
UCI_CONFIG = "/etc/config/gwmodule"
TOML_CONFIG = "/etc/gwmodule/gwmodule.toml"
DEFAULT_CONFIG = UCI_CONFIG if Path("/etc/openwrt_release").exists() else TOML_CONFIG
OOM_SCORE = 500


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        config = load(Path(arguments.config))
        return int(arguments.run(config, arguments))
    except ConfigError as exc:
        print(f"gwmodule: {exc}", file=sys.stderr)
        return BAD_CONFIG
    except (GatewayError, OSError) as exc:
        print(f"gwmodule: {exc}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gwmodule", description="Intel AMT relay for ISP gateways."
    )
    parser.add_argument("--version", action="version", version=f"gwmodule {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("run", _run, "run relay and capture, without an init system"),
        ("relay", _relay, "run the relay alone"),
        ("capture", _capture, "run the capture service alone (needs CAP_NET_RAW at start)"),
        ("check-config", _check_config, "say whether the configuration can be used"),
        ("status", _status, "what the running relay is doing"),
        ("devices", _devices, "the devices it sees"),
        ("reconnect", _reconnect, "dial the MSP again, now"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument(
            "--config", default=DEFAULT_CONFIG, metavar="FILE", help=f"default {DEFAULT_CONFIG}"
        )
        verb.set_defaults(run=run)
        if name == "capture":
            verb.add_argument(
                "--allow-user",
                action="append",
                default=[],
                type=_uid,
                metavar="USER",
                help="who may connect besides our own user and root",
            )
        if name in ("check-config", "status", "devices", "reconnect"):
            verb.add_argument("--json", action="store_true", help="for scripts")
    return parser


# The services import what they need only when they are asked for: the parent process of `run`
# and the one-shot verbs stay small.


def _run(config: Config, arguments: argparse.Namespace) -> int:
    from gwmodule.supervisor import supervise

    _require_runnable(config, arguments.config)
    services = ["relay", *(["capture"] if config.capture.enabled else [])]
    return supervise(services, arguments.config)


def _relay(config: Config, arguments: argparse.Namespace) -> int:
    from gwmodule.gateway import run_relay
    from gwmodule.telemetry import start_logging

    def runnable(config: Config) -> Config:
        # Of LoadCredential= in the unit.
        if credentials := os.environ.get("CREDENTIALS_DIRECTORY"):
            config = with_credentials(config, Path(credentials))
        _require_runnable(config, arguments.config)
        return config

    config = runnable(config)
    _be_expendable()
    start_logging(config.log.level)
    return run_relay(config, lambda: runnable(load(Path(arguments.config))))


def _capture(config: Config, arguments: argparse.Namespace) -> int:
    try:
        from gwmodule.capture.service import main as run_capture
    except ModuleNotFoundError as exc:
        raise ConfigError(
            arguments.config, "capture.enabled", "gwmodule-capture is not installed"
        ) from exc
    from gwmodule.telemetry import start_logging

    _be_expendable()
    start_logging(config.log.level)
    return run_capture(config, frozenset(arguments.allow_user))


def _uid(user: str) -> int:
    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"no user {user!r}") from None


def _be_expendable() -> None:
    """The router must outlive us; procd has no setting for this. Raising it needs no privilege."""
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        if int(score.read_text()) < OOM_SCORE:
            score.write_text(str(OOM_SCORE))


def _check_config(config: Config, arguments: argparse.Namespace) -> int:
    from gwmodule.lan.facts import facts

    _require_runnable(config, arguments.config)
    here = facts()
    missing = [name for name in config.lan.interface if name not in here.addresses]
    answer = {
        "ok": True,
        "deployment": config.deployment,
        "authentication": "client certificate" if config.tls.mode == "mutual" else "none",
        "missing_interfaces": missing,
    }
    if arguments.json:
        print(json.dumps(answer))
    else:
        print(f"{arguments.config}: good ({answer['authentication']})")
    for name in missing:
        print(f"gwmodule: interface {name} does not exist now", file=sys.stderr)
    return OK


def _require_runnable(config: Config, path: str) -> None:
    """What a service cannot start without. ConfigError names it."""
    if not config.msp.address:
        raise ConfigError(path, "msp.address", "is empty: where is the MSP?")
    if not config.lan.interface:
        raise ConfigError(path, "lan.interface", "is empty: which interface is the LAN?")
    if config.tls.mode == "mutual":
        from gwmodule.uplink.tls import client_context

        client_context(config.tls, clock_trusted=True)


def _status(config: Config, arguments: argparse.Namespace) -> int:
    from gwmodule.control import ask

    status = ask(config.control.socket, "status")
    if arguments.json:
        print(json.dumps(status))
    else:
        _print_tree(status)
    return OK


def _print_tree(tree: dict[str, Any], indent: str = "") -> None:
    for key, value in tree.items():
        if isinstance(value, dict):
            print(f"{indent}{key}")
            _print_tree(value, indent + "  ")
        else:
            print(f"{indent}{key:<24} {value}")


def _devices(config: Config, arguments: argparse.Namespace) -> int:
    from gwmodule.control import ask

    devices = ask(config.control.socket, "devices")
    if arguments.json:
        print(json.dumps(devices))
        return OK
    row = "{:<18} {:<16} {:<10} {:<37} {}"
    print(row.format("MAC", "ADDRESS", "STATE", "UUID", "HOST NAME"))
    for device in devices:
        print(
            row.format(
                device["mac"],
                device.get("address") or "-",
                device.get("state") or "-",
                device.get("uuid") or "-",
                device.get("hostname") or "",
            )
        )
    return OK


def _reconnect(config: Config, arguments: argparse.Namespace) -> int:
    from gwmodule.control import ask

    answer = ask(config.control.socket, "reconnect")
    if arguments.json:
        print(json.dumps(answer))
    return OK
