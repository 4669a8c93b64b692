"""`gwmodule-msp serve`, and `openapi`, which describes what it serves."""

from __future__ import annotations

import argparse
import datetime
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gwmodule.config import split_address
from gwmodule.msp.client import DEFAULT_API
from gwmodule.msp.commands.common import OK, Command, UsageError, listen_address
from gwmodule.telemetry import start_logging

if TYPE_CHECKING:
    from gwmodule.msp.enrolment_site import SiteOptions
    from gwmodule.msp.server import HttpOptions

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
    _add_database(serve)
    _add_enrolment(serve)
    _add_http(serve)
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    openapi = command("openapi", _openapi, "print the OpenAPI document of the API")
    openapi.add_argument("--markdown", action="store_true", help="the page docs/api.md")


def _add_database(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--database",
        metavar="URL",
        default=os.environ.get("GWMODULE_MSP_DATABASE") or None,
        help="postgresql://..., or a file for SQLite (default registry.db in --state)",
    )
    serve.add_argument(
        "--key-file",
        metavar="FILE",
        type=Path,
        help="the key of the stored logins (default registry.key in --state, made at first)",
    )
    serve.add_argument(
        "--node",
        metavar="NAME",
        default="",
        help="tells apart services that share a database (default: the host name)",
    )


def _openapi(options: argparse.Namespace) -> int:
    from gwmodule.msp.api.openapi import document, markdown

    if options.markdown:
        print(markdown(), end="")
    else:
        print(json.dumps(document(), indent=2))
    return OK


def _add_http(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--http",
        metavar="HOST:PORT",
        help="serve the API over TCP too; without a certificate only on a loopback address",
    )
    serve.add_argument("--http-certificate", metavar="FILE", type=Path, help="PEM, with its chain")
    serve.add_argument("--http-key", metavar="FILE", type=Path, help="(default in the certificate)")
    serve.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="believe its X-Forwarded-For; may be repeated",
    )
    serve.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="how browsers reach the API where a proxy changes Host; may be repeated",
    )


def _http(options: argparse.Namespace) -> HttpOptions | None:
    from gwmodule.msp.server import HttpOptions

    if options.http is None:
        return None
    host, port = listen_address(options.http)
    return HttpOptions(
        host,
        port,
        certificate=options.http_certificate,
        key=options.http_key,
        proxies=tuple(options.trusted_proxy),
        origins=tuple(options.origin),
    )


def _add_enrolment(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--enrol", metavar="HOST:PORT", help="where gateways get and renew their certificates"
    )
    serve.add_argument(
        "--link-address",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="what enrolled gateways dial (default: the host they enrolled at, --listen's port)",
    )
    serve.add_argument(
        "--certificate-days",
        type=_days,
        default=365,
        metavar="N",
        help="lifetime of a gateway's certificate (default %(default)s)",
    )
    serve.add_argument(
        "--grace-days",
        type=_days,
        default=30,
        metavar="N",
        help="how long after its end it may still be renewed (default %(default)s)",
    )


def _enrolment(options: argparse.Namespace) -> SiteOptions | None:
    if options.enrol is None:
        return None
    from gwmodule.msp.enrolment_site import SiteOptions

    host, port = listen_address(options.enrol)
    try:
        for address in options.link_address:
            split_address(address)
    except ValueError as exc:
        raise UsageError(f"--link-address: {exc}") from exc
    return SiteOptions(
        host,
        port,
        addresses=tuple(options.link_address),
        lifetime=datetime.timedelta(days=options.certificate_days),
        grace=datetime.timedelta(days=options.grace_days),
    )


def _days(text: str) -> float:
    value = float(text)
    # A test may want a certificate of a minute; ten years is what a hand-made one gets.
    if not 0 <= value <= 3650:
        raise argparse.ArgumentTypeError("between 0 and 3650 days")
    return value


def _serve(options: argparse.Namespace) -> int:
    # Half of this program's weight, and no technician's command needs it.
    from gwmodule.msp import server

    host, port = listen_address(options.listen)
    if "://" in options.api:
        raise UsageError("--api is the path of the socket to serve")
    start_logging(options.log_level)
    server.run(
        server.ServerOptions(
            state=options.state,
            host=host,
            port=port,
            api=Path(options.api or DEFAULT_API),
            names=tuple(options.name),
            http=_http(options),
            enrolment=_enrolment(options),
            database=options.database,
            key_file=options.key_file,
            node=options.node,
        )
    )
    return OK
