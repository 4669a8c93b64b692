"""`gwmodule-msp serve`: registry, gateway listener and API in one process and one task group."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from gwmodule import __version__
from gwmodule.config import join_address
from gwmodule.errors import Code, ConfigError
from gwmodule.msp.accounts import Accounts
from gwmodule.msp.api import Api, ApiOptions, Parts, api_runner
from gwmodule.msp.api.listening import tcp_port, tcp_socket, tls_context, unix_socket
from gwmodule.msp.database import open_database
from gwmodule.msp.enrolment_site import EnrolmentSite, SiteOptions
from gwmodule.msp.enrolment_tokens import Enrolments
from gwmodule.msp.http_port import HttpPort
from gwmodule.msp.listener import GatewayListener, ListenerConfig
from gwmodule.msp.pki import Authority
from gwmodule.msp.registry import Registry
from gwmodule.msp.session import Sessions
from gwmodule.msp.strangers import Strangers
from gwmodule.msp.subprotocol import first_leaf
from gwmodule.msp.vault import Vault, vault_key
from gwmodule.notify import Notifier
from gwmodule.privileges import forbid_core_dumps
from gwmodule.telemetry import EventLog


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """The API over TCP. Without a certificate only for loopback; `proxies` are addresses whose
    X-Forwarded-For is believed, `origins` what browsers call it where a proxy changes Host.
    """

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    proxies: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`names` are the host names and addresses by which gateways call this service; `database` is a
    URL or a path, by default a file in `state`; `node` tells apart those that share one database.
    """

    state: Path
    host: str
    port: int
    api: Path
    names: tuple[str, ...] = ()
    enrolment: SiteOptions | None = None
    http: HttpOptions | None = None
    database: str | None = None
    key_file: Path | None = None
    node: str = ""


def wall_clock() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()


def run(options: ServerOptions) -> None:
    """Serve until SIGTERM or SIGINT. ConfigError and RegistryError before anything listens."""
    forbid_core_dumps()
    try:
        import uvloop
    except ImportError:
        loop_factory = None
    else:
        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(options))


async def serve(options: ServerOptions) -> None:
    log = EventLog("gwmodule.msp")
    with _state_lock(options.state):
        authority = Authority.open(options.state, wall_clock())
        names = authority.ensure_server_certificate(
            options.names or (socket.gethostname(), "localhost", "127.0.0.1", "::1"), wall_clock()
        )
        url = options.database or str(options.state / "registry.db")
        async with contextlib.aclosing(await open_database(url)) as database:
            vault = Vault(database, vault_key(options.state, options.key_file, os.environ))
            await vault.check()
            registry = Registry(database, node=options.node or socket.gethostname())
            await registry.start()
            sessions = Sessions()
            listener = GatewayListener(
                ListenerConfig(
                    host=options.host,
                    port=options.port,
                    certificate=str(authority.server_certificate_path),
                    key=str(authority.server_key_path),
                    cafile=str(authority.ca_path),
                ),
                registry,
                sessions,
            )
            site = None
            if options.enrolment is not None:
                enrolments = Enrolments(database)
                site = EnrolmentSite(
                    options.enrolment,
                    enrolments,
                    authority,
                    wall_clock,
                    lambda: listener.port,
                    partial(_end_session, sessions),
                )
            accounts = Accounts(database, vault)
            http = options.http or HttpOptions("", 0)
            api = Api(
                Parts(
                    database=database,
                    registry=registry,
                    accounts=accounts,
                    vault=vault,
                    sessions=sessions,
                    authority=authority,
                    signing_key=await accounts.signing_key(),
                    clock=wall_clock,
                    monotonic=asyncio.get_running_loop().time,
                    enrolment=site,
                ),
                ApiOptions(names=names, proxies=http.proxies, origins=http.origins),
            )
            try:
                await _run_until_signal(options, listener, api, site, log)
            except BaseExceptionGroup as group:
                raise _startup_error(first_leaf(group), options) from group
    log.info("stopped")


def _end_session(sessions: Sessions, gateway: str, reason: str) -> None:
    session = sessions.locate(gateway)
    if session is not None:
        session.end(Code.IDENTITY, reason)


async def _run_until_signal(
    options: ServerOptions,
    listener: GatewayListener,
    api: Api,
    site: EnrolmentSite | None,
    log: EventLog,
) -> None:
    runner = api_runner(api.application())
    await runner.setup()
    stop = asyncio.Event()
    notifier = Notifier(os.environ)
    api_socket: socket.socket | None = None
    http: HttpPort | None = None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: _reload(options.http, http, log))
    try:
        async with asyncio.TaskGroup() as group:
            gateways = group.create_task(listener.run(), name="gateway listener")
            await listener.listening.wait()
            api_socket = unix_socket(options.api)
            await web.SockSite(runner, api_socket).start()
            strangers: list[Strangers[Any]] = [listener.strangers]
            faces = []
            if options.http is not None:
                http = _http_port(options.http, runner, api)
                strangers.append(api.callers.strangers)
                faces.append(group.create_task(http.run(), name="http"))
            if site is not None:
                site.listen()
                strangers.append(site.callers.strangers)
                faces.append(group.create_task(site.run(), name="enrolment"))
                log.info("enrolling", address=join_address(site.host, site.port))
            api.metrics.strangers(strangers)
            log.info(
                "listening",
                gateways=join_address(options.host, listener.port),
                api=options.api,
                http=http.port if http else "off",
                state=options.state,
                version=__version__,
                pid=os.getpid(),
            )
            notifier.feed_watchdog()
            notifier.ready(f"gateways on {join_address(options.host, listener.port)}")
            await stop.wait()
            notifier.stopping()
            for face in faces:
                face.cancel()
            await runner.cleanup()
            gateways.cancel()
    finally:
        notifier.close()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
        await runner.cleanup()
        if api_socket is not None:
            # Ours; when binding failed, the path is another service's.
            with contextlib.suppress(OSError):
                options.api.unlink()


def _http_port(options: HttpOptions, runner: web.AppRunner, api: Api) -> HttpPort:
    tls = _tls(options)
    sock = tcp_socket(options.host, options.port, tls=tls is not None)
    return tcp_port(runner, sock, tls, api.callers)


def _tls(options: HttpOptions) -> ssl.SSLContext | None:
    if options.certificate is None:
        return None
    return tls_context(options.certificate, options.key or options.certificate)


def _reload(options: HttpOptions | None, http: HttpPort | None, log: EventLog) -> None:
    """Show a certificate that was renewed; gateways and streams do not notice."""
    if options is None or http is None or options.certificate is None:
        log.info("reload_unchanged")
        return
    try:
        http.tls = _tls(options)
    except ConfigError as exc:
        log.error("reload_failed", reason=exc)
    else:
        log.info("reload", certificate=options.certificate)


def _startup_error(error: BaseException, options: ServerOptions) -> BaseException:
    if isinstance(error, OSError):
        problem = error.strerror or str(error)
        return ConfigError(join_address(options.host, options.port), "listen", problem)
    return error


@contextlib.contextmanager
def _state_lock(state: Path) -> Iterator[None]:
    """Two services on one registry would each believe that they hold every gateway."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(str(state), "state", exc.strerror or "cannot be used") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ConfigError(str(state), "state", "another service uses this directory") from exc
        yield
    finally:
        os.close(descriptor)
