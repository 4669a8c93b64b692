"""`gwmodule-msp`: the service and the technician's tools. Data on stdout, messages on stderr.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nobody knows whether it was done, 77 not logged in,
78 the service's options or files cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from gwmodule import __version__
from gwmodule.errors import ConfigError, GatewayError
from gwmodule.msp.client import DEFAULT_API, ApiRefused
from gwmodule.msp.commands import (
    accounts,
    calls,
    catalogue,
    credentials,
    devices,
    gateways,
    login,
    service,
    streams,
)
from gwmodule.msp.commands.common import (
    API_VARIABLE,
    CONFIG,
    DENIED,
    FAILED,
    INTERRUPTED,
    UNKNOWN,
    USAGE,
    OutcomeUnknown,
    Run,
    UsageError,
)
from gwmodule.telemetry import escape

_SUBJECTS = (
    service, login, devices, calls, streams, gateways, credentials, accounts, catalogue
)  # fmt: skip
# Commands of two words, and what the first of them is about.
_GROUPS = {
    "credential": "AMT logins that the service keeps",
    "gateway": "enrol, list and revoke gateways",
    "key": "API keys for scripts",
    "tenant": "whose gateways and devices they are",
    "user": "who may log in",
}


def main(arguments: Sequence[str] | None = None) -> int:
    # Not parser defaults: those of a subcommand would overwrite what stands before it.
    defaults = argparse.Namespace(api="", json=False, ca_file="", tenant="")
    options = parser().parse_args(arguments, defaults)
    try:
        return int(options.run(options))
    except UsageError as exc:
        _complain(options, "USAGE", str(exc))
        return USAGE
    except ConfigError as exc:
        _complain(options, "CONFIG", str(exc))
        return CONFIG if options.command == "serve" else FAILED
    except ApiRefused as exc:
        denied = exc.status == HTTPStatus.UNAUTHORIZED
        _complain(options, exc.error, str(exc))
        return DENIED if denied else FAILED
    except OutcomeUnknown as exc:
        _complain(options, "OUTCOME_UNKNOWN", str(exc))
        return UNKNOWN
    except GatewayError as exc:
        _complain(options, "FAILED", str(exc))
        return FAILED
    except BrokenPipeError:
        # `gwmodule-msp devices | head`: Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--api",
        metavar="PATH|URL",
        default=argparse.SUPPRESS,
        help=f"the service's socket or https://HOST[:PORT] (default: {API_VARIABLE}, the saved "
        f"login, {DEFAULT_API})",
    )
    common.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="JSON instead of tables"
    )
    whole = argparse.ArgumentParser(
        prog="gwmodule-msp",
        description="The MSP service for gwmodule gateways, and the technician's tools.",
        epilog=(__doc__ or "").rpartition("\n\n")[2],
        parents=[common],
    )
    whole.add_argument(
        "--ca-file", metavar="FILE", help="the CA of the service's certificate in PEM"
    )
    whole.add_argument(
        "--tenant", metavar="NAME", help="whom you work for, at the service's own socket"
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    groups: dict[str, Any] = {"": commands}

    def command(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        group, _, verb = name.rpartition(" ")
        if group not in groups:
            grouped = commands.add_parser(group, help=_GROUPS[group], parents=[common])
            groups[group] = grouped.add_subparsers(required=True, metavar="VERB")
        added: argparse.ArgumentParser = groups[group].add_parser(
            verb, help=text, description=text, parents=[common]
        )
        added.set_defaults(run=run, command=name)
        return added

    for subject in _SUBJECTS:
        subject.add(command)
    return whole


def _complain(options: argparse.Namespace, error: str, text: str) -> None:
    if getattr(options, "json", False):
        print(json.dumps({"error": error, "errorDescription": text}), file=sys.stderr)
    else:
        print(f"gwmodule-msp: {escape(text)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
