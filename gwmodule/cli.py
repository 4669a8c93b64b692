"""The command `gwmodule`: runs the gateway's services and asks the running one.

Exit codes: 0 done, 1 failed, 2 wrong usage, 77 no permission to capture, 78 a configuration that
cannot be used. Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gwmodule import __version__
from gwmodule.config import (
    MAX_LOCKDOWN,
    MAX_RECORD_COUNT,
    MAX_RECORD_SECONDS,
    Config,
    load,
    with_credentials,
)
from gwmodule.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

OK = 0
FAILED = 1
USAGE = 2
BAD_CONFIG = 78  # EX_CONFIG of sysexits.h; systemd and procd do not restart on it.
UCI_CONFIG = "/etc/config/gwmodule"
TOML_CONFIG = "/etc/gwmodule/gwmodule.toml"
DEFAULT_CONFIG = UCI_CONFIG if Path("/etc/openwrt_release").exists() else TOML_CONFIG
OOM_SCORE = 500

RECORD_SECONDS = 60
RECORD_COUNT = 1000


class UsageError(GatewayError):
    """What was asked for cannot be meant."""


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except UsageError as exc:
        print(f"gwmodule: {exc}", file=sys.stderr)
        return USAGE
    except ConfigError as exc:
        print(f"gwmodule: {exc}", file=sys.stderr)
        return BAD_CONFIG
    except BrokenPipeError:
        # `gwmodule devices | head`: Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (GatewayError, OSError) as exc:
        print(f"gwmodule: {exc}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line; manual page and shell completion are made from it (docs/generate.py)."""
    root = argparse.ArgumentParser(prog="gwmodule", description="Intel AMT relay for ISP gateways.")
    root.add_argument("--version", action="version", version=f"gwmodule {__version__}")
    verbs = root.add_subparsers(required=True, metavar="COMMAND")
    add_service_verbs(verbs)
    add_capture_verb(verbs)
    add_check_config_verb(verbs)
    add_question_verbs(verbs)
    add_explain_verb(verbs)
    add_lockdown_verb(verbs)
    add_provisioning_verbs(verbs)
    return root


def add_verb(
    verbs: Verbs,
    name: str,
    run: Callable[[Config, argparse.Namespace], int],
    text: str,
    description: str = "",
) -> argparse.ArgumentParser:
    """A command that works with the configuration of `--config`."""
    verb = verbs.add_parser(name, help=text, description=description or f"{_sentence(text)}.")
    verb.add_argument(
        "--config", default=DEFAULT_CONFIG, metavar="FILE", help=f"default {DEFAULT_CONFIG}"
    )
    verb.set_defaults(run=lambda arguments: run(load(Path(arguments.config)), arguments))
    return verb


def add_json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="for scripts")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


# The services import what they need only when they are asked for: the parent process of `run`
# and the one-shot verbs stay small.


def add_service_verbs(verbs: Verbs) -> None:
    add_verb(verbs, "run", _run, "run relay and capture, without an init system")
    add_verb(verbs, "relay", _relay, "run the relay alone")


def _run(config: Config, arguments: argparse.Namespace) -> int:
    from gwmodule.supervisor import supervise

    _require_runnable(config, arguments.config)
    services = ["relay", *(["capture"] if config.capture.enabled else [])]
    return supervise(services, arguments.config)


def _relay(config: Config, arguments: argparse.Namespace) -> int:
    from gwmodule.process import run_relay
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


def add_capture_verb(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "capture",
        _capture,
        "run the capture service; with -w, record what the running one sees",
        "Without -w: run the capture service alone (it needs CAP_NET_RAW at its start). With -w: "
        "ask the running services for the frames that the sniffer matches from now on, DHCP and "
        "Hello messages, and write them as a pcap file. Nothing is kept by the services.",
    )
    verb.add_argument(
        "--allow-user",
        action="append",
        default=[],
        type=_uid,
        metavar="USER",
        help="service: who may connect besides our own user and root",
    )
    verb.add_argument(
        "-w", dest="file", metavar="FILE", help="record into FILE, or to standard output (-)"
    )
    verb.add_argument(
        "--seconds",
        type=_number(1, MAX_RECORD_SECONDS),
        metavar="N",
        help=f"record for so long (default {RECORD_SECONDS}, at most {MAX_RECORD_SECONDS})",
    )
    verb.add_argument(
        "--count",
        type=_number(1, MAX_RECORD_COUNT),
        metavar="N",
        help=f"record so many frames (default {RECORD_COUNT}, at most {MAX_RECORD_COUNT})",
    )


def _capture(config: Config, arguments: argparse.Namespace) -> int:
    if arguments.file is not None:
        return _record(config, arguments)
    if arguments.seconds is not None or arguments.count is not None:
        raise UsageError("--seconds and --count are for a recording: add -w FILE")
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


def _record(config: Config, arguments: argparse.Namespace) -> int:
    from gwmodule.control import record

    if arguments.allow_user:
        raise UsageError("--allow-user is for the service, not for a recording")
    if arguments.file == "-" and sys.stdout.isatty():
        raise UsageError("a pcap is no text for a terminal: name a file, or pipe it on")
    wanted = {
        "seconds": arguments.seconds or RECORD_SECONDS,
        "count": arguments.count or RECORD_COUNT,
    }
    chunks = record(config.control.socket, "capture", wanted, wanted["seconds"] + 10.0)
    # The service's answer first: a refusal leaves a file that is there alone.
    first = next(chunks)
    with contextlib.ExitStack() as stack:
        if arguments.file == "-":
            write = sys.stdout.buffer
        else:
            # It names the subscriber's devices, and is his business.
            opened = os.open(arguments.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            write = stack.enter_context(os.fdopen(opened, "wb"))
        print(
            f"gwmodule: recording for {wanted['seconds']} s or {wanted['count']} frames; "
            "Ctrl-C ends it",
            file=sys.stderr,
        )
        write.write(first)
        write.flush()
        with contextlib.suppress(KeyboardInterrupt):
            for chunk in chunks:
                write.write(chunk)
                write.flush()
    return OK


def _number(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not between {low} and {high}")
        return int(text)

    return number


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


def add_check_config_verb(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "check-config",
        _check_config,
        "say whether the configuration can be used",
        "Read the configuration, key and certificates and say whether the services could start. "
        "What may change by itself, an interface that does not exist yet or a port in use, is a "
        "warning; with --strict it is an error like the others.",
    )
    verb.add_argument(
        "--strict", action="store_true", help="interfaces must exist and ports be free, now"
    )
    add_json(verb)


def _check_config(config: Config, arguments: argparse.Namespace) -> int:
    from gwmodule.lan.facts import addresses

    _require_runnable(config, arguments.config)
    here = addresses()
    named = {"lan.interface": config.lan.interface, "uplink.interface": (config.uplink.interface,)}
    passing = [
        ConfigError(
            arguments.config,
            key,
            f"interface {name} does not exist now; there are {', '.join(here)}",
        )
        for key, names in named.items()
        for name in names
        if name and name not in here
    ]
    own = {address.ip for name in config.lan.interface for address in here.get(name, ())}
    passing += _ports_in_use(config, arguments.config, sorted(map(str, own)))
    if arguments.strict and passing:
        raise passing[0]
    answer = {
        "ok": True,
        "deployment": config.deployment,
        "authentication": "client certificate" if config.tls.mode == "mutual" else "none",
        "missing_interfaces": [name for name in config.lan.interface if name not in here],
        "warnings": [str(problem) for problem in passing],
    }
    if arguments.json:
        print(json.dumps(answer))
    else:
        print(f"{arguments.config}: good ({answer['authentication']})")
    for problem in passing:
        print(f"gwmodule: {problem}", file=sys.stderr)
    return OK


def _ports_in_use(config: Config, path: str, addresses: list[str]) -> list[ConfigError]:
    """The Hello port on our LAN addresses, unless it is our own running relay that has it."""
    import socket

    from gwmodule.control import ControlError, ask

    with contextlib.suppress(ControlError):
        ask(config.control.socket, "status")
        return []
    problems = []
    for address in addresses:
        try:
            socket.create_server((address, config.lan.hello_port)).close()
        except OSError as exc:
            problem = (
                f"port {config.lan.hello_port} on {address}: {exc.strerror}; stop what uses it "
                "(ss -ltnp shows it) or choose another port"
            )
            problems.append(ConfigError(path, "lan.hello_port", problem))
    return problems


def _require_runnable(config: Config, path: str) -> None:
    """What a service cannot start without. ConfigError names it."""
    if not config.msp.address:
        raise ConfigError(path, "msp.address", "is empty: where is the MSP?")
    if not config.lan.interface:
        raise ConfigError(path, "lan.interface", "is empty: which interface is the LAN?")
    if config.tls.mode == "mutual":
        from gwmodule.uplink.tls import client_context

        client_context(config.tls, clock_trusted=True)
        _require_private(config.tls.key)


def _require_private(key: str) -> None:
    mode = stat.S_IMODE(Path(key).stat().st_mode)
    if mode & 0o007:
        raise ConfigError(key, "tls.key", f"everybody may use it (mode {mode:04o}): chmod o= {key}")


def add_question_verbs(verbs: Verbs) -> None:
    add_json(add_verb(verbs, "status", _status, "what the running relay is doing"))
    add_json(add_verb(verbs, "devices", _devices, "the devices it sees"))
    add_json(add_verb(verbs, "reconnect", _reconnect, "dial the MSP again, now"))


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
                device["mac"] or "-",
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


def add_explain_verb(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "explain",
        _explain,
        "why a device can be reached, or which step fails",
        "Go through everything that has to be right before the MSP can work with a device, without "
        "a login and within ten seconds, and say what to do about the first step that fails. The "
        "exit code is 1 if one does.",
    )
    verb.add_argument("device", metavar="UUID|IP|MAC", help="as `gwmodule devices` shows it")
    add_json(verb)


def _explain(config: Config, arguments: argparse.Namespace) -> int:
    from gwmodule.control import ask

    answer = ask(config.control.socket, "explain", {"device": arguments.device})
    if arguments.json:
        print(json.dumps(answer))
    else:
        for step in answer["steps"]:
            print(f"{step['result']:<8} {step['step']:<12} {step['found']}")
            if step["advice"]:
                print(f"{'':<21} -> {step['advice']}")
        where = answer["failed"]
        print(f"\nfails at: {where}" if where else "\nnothing stands in the way")
    return OK if answer["ok"] else FAILED


def add_lockdown_verb(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "lockdown",
        _lockdown,
        "cut off the MSP's access to the LAN, or give it back",
        "While it is on, every stream and call of the MSP is refused and those that run are ended; "
        "the link stays up. It lasts until it is switched off, for the time of --for, or until the "
        "relay ends; relay.lockdown in the configuration decides how the relay starts.",
    )
    verb.add_argument("state", choices=("on", "off"), nargs="?", help="without it: say which it is")
    verb.add_argument(
        "--for",
        dest="seconds",
        type=_number(1, MAX_LOCKDOWN),
        metavar="SECONDS",
        help=f"with `on`: ends by itself (at most {MAX_LOCKDOWN})",
    )
    add_json(verb)


def _lockdown(config: Config, arguments: argparse.Namespace) -> int:
    from gwmodule.control import ask

    if arguments.seconds is not None and arguments.state != "on":
        raise UsageError("--for needs `on`")
    wanted: dict[str, Any] = {}
    if arguments.state is not None:
        wanted = {"on": arguments.state == "on", "seconds": arguments.seconds}
    answer = ask(config.control.socket, "lockdown", wanted)
    if arguments.json:
        print(json.dumps(answer))
    else:
        left = answer["seconds_left"]
        print(("on" if answer["on"] else "off") + (f", {left:.0f} s left" if left else ""))
    return OK


def add_provisioning_verbs(verbs: Verbs) -> None:
    """One-shot commands of root, which also work where there is no configuration yet."""
    provision = _add_provisioning_verb(
        verbs,
        "provision",
        lambda arguments: _provisioning().run_provision(arguments),
        "enrol this gateway with the MSP",
        "Make a key, have the MSP sign a certificate for it in exchange for a one-time token, and "
        "write key, certificate, authority and configuration. A second run changes nothing. The "
        "exit code is 75 when the same command may succeed later: no network, no MSP, no clock.",
    )
    provision.add_argument(
        "--msp",
        required=True,
        type=lambda text: _provisioning().msp_argument(text),
        metavar="HOST[:PORT]",
        help="where the MSP enrols gateways (default port 8884)",
    )
    provision.add_argument(
        "--token-file",
        required=True,
        metavar="FILE",
        help="the one-time token, - is standard input; read only if it is needed",
    )
    provision.add_argument(
        "--ca-fingerprint",
        type=lambda text: _provisioning().fingerprint_argument(text),
        metavar="SHA256",
        help="of the MSP's authority; without it, the system's own list must know the MSP",
    )
    provision.add_argument(
        "--gateway-id", metavar="NAME", help="refuse a token that is for another gateway"
    )
    provision.add_argument(
        "--lan", action="append", default=[], metavar="INTERFACE", help="set lan.interface"
    )
    provision.add_argument("--check", action="store_true", help="say what would change, and stop")
    _add_wait(provision)
    renew = _add_provisioning_verb(
        verbs,
        "renew",
        lambda arguments: _provisioning().run_renew(arguments),
        "renew the certificate if it is time",
        "At two thirds of the certificate's lifetime, ask the MSP for the next one, with the same "
        "key, and dial again with it. Before that, do nothing: for a daily timer.",
    )
    renew.add_argument("--force", action="store_true", help="renew now")
    renew.add_argument(
        "--deploy-hook",
        type=lambda text: _provisioning().command_argument(text),
        metavar="COMMAND",
        help="run after a renewal, without a shell, instead of dialling again",
    )
    _add_wait(renew)
    _add_provisioning_verb(
        verbs,
        "deprovision",
        lambda arguments: _provisioning().run_deprovision(arguments),
        "remove key, certificate and the MSP's settings",
        "Tell the MSP, if it can be reached, that this gateway's certificate is over, and remove "
        "key, certificate, authority and the settings that `provision` wrote.",
    )


def _add_provisioning_verb(
    verbs: Verbs,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    description: str,
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=description)
    verb.add_argument(
        "--config", default=DEFAULT_CONFIG, metavar="FILE", help=f"default {DEFAULT_CONFIG}"
    )
    verb.set_defaults(run=run)
    add_json(verb)
    return verb


def _add_wait(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--wait",
        type=lambda text: _provisioning().wait_argument(text),
        default=0.0,
        metavar="SECONDS",
        help="try again for so long before giving up with 75",
    )


def _provisioning() -> ModuleType:
    # HTTP and subprocesses: nothing that a service should carry.
    from gwmodule.provisioning import commands

    return commands
