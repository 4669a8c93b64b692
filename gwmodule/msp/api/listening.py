"""Where the API listens: a unix socket always, TCP where it is asked for.

Over TCP passwords and tokens pass, so it is TLS, or loopback with a reverse proxy in front.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
import stat
from pathlib import Path

from aiohttp import web

from gwmodule.errors import ConfigError
from gwmodule.msp.acceptor import listening_socket
from gwmodule.msp.api.asking import MAX_BODY
from gwmodule.msp.api.streams import SHUTDOWN_TIMEOUT
from gwmodule.msp.http_port import Callers, HttpPort

# Connections over TCP of those who have logged in, and of those who have not; each costs some
# 20 KiB before it has said anything.
MAX_CONNECTIONS = 1024
MAX_STRANGERS = 512
# Without a request. Reverse proxies keep theirs for up to a minute, and would lose a request that
# meets our end of it.
KEEPALIVE = 75.0
# A browser sends its request at once; what connects and says nothing is no browser.
FIRST_REQUEST = 10.0


def unix_socket(path: Path) -> socket.socket:
    """A listening unix socket of mode 0600; ConfigError when another service answers on it."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The mode must hold from the first moment, and only the umask can do that.
        mask = os.umask(0o177)
        try:
            sock.bind(str(path))
            sock.listen(128)
        except OSError:
            sock.close()
            raise
        finally:
            os.umask(mask)
    except OSError as exc:
        raise ConfigError(str(path), "api", exc.strerror or str(exc)) from exc
    sock.setblocking(False)
    return sock


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another service answers here")


def tcp_socket(host: str, port: int, *, tls: bool) -> socket.socket:
    """A listening socket; without TLS only on a loopback address, which must be a literal."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError as exc:
        raise ConfigError("--http", "", f"{host!r} is no IP address") from exc
    if not tls and not address.is_loopback:
        raise ConfigError(
            "--http",
            "",
            f"{host} is no loopback address: give --http-certificate and --http-key, or listen on"
            " 127.0.0.1 behind a reverse proxy",
        )
    try:
        return listening_socket(host, port)
    except OSError as exc:
        raise ConfigError(f"{host}:{port}", "http", exc.strerror or str(exc)) from exc


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise ConfigError(str(certificate), "http-certificate", reason) from exc
    return context


def api_runner(application: web.Application) -> web.AppRunner:
    """What serves the API, at every socket."""
    return web.AppRunner(
        application,
        access_log=None,
        handle_signals=False,
        keepalive_timeout=KEEPALIVE,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
        max_line_size=8190,
        read_bufsize=MAX_BODY,
    )


def tcp_port(
    runner: web.AppRunner, sock: socket.socket, tls: ssl.SSLContext | None, callers: Callers
) -> HttpPort:
    """The API on `sock`; whoever sends no whole request soon is sent away."""
    return HttpPort(runner, sock, tls, callers, patience=FIRST_REQUEST)
