"""`gwmodule-msp serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

from gwmodule.msp.commands.common import OK, Command, listen_address
from gwmodule.telemetry import start_logging

DEFAULT_STATE = "/var/lib/gwmodule-msp"


DEFAULT_LISTEN = "[::]:8883"


def add(command: Command) -> None:
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


def _serve(options: argparse.Namespace) -> int:
    # Half of this program's weight, and no technician's command needs it.
    from gwmodule.msp import server

    host, port = listen_address(options.listen)
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
