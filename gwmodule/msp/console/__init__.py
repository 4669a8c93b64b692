"""The console in the browser: static files, and what their answers say to the browser.

The files are read once and served by their exact names, so there is no path to walk out of. The
policy allows nothing inline and nothing from elsewhere; with Trusted Types the browser itself
refuses every string that would become markup.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

_HERE = Path(__file__).parent
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".svg": "image/svg+xml",
}
# From package.json; `make setup` fetches them.
_LIBRARY = {
    "lib/xterm.css": "node_modules/@xterm/xterm/css/xterm.css",
    "lib/xterm.mjs": "node_modules/@xterm/xterm/lib/xterm.mjs",
    "lib/addon-fit.mjs": "node_modules/@xterm/addon-fit/lib/addon-fit.mjs",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), usb=(), serial=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # A file is asked for each time, and sent only when it is another one.
    "Cache-Control": "no-cache",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_console(application: web.Application) -> None:
    """Serve the console at `/`; the terminal itself needs what `make setup` fetches."""
    for name, path in _files().items():
        handler = _serve(path.read_bytes(), _TYPES[path.suffix])
        application.router.add_get(f"/console/{name}", handler)
        if name == "index.html":
            application.router.add_get("/", handler)


def _files() -> dict[str, Path]:
    own = [
        path
        for pattern in ("*.html", "*.css", "*.js", "*.svg", "views/*.js")
        for path in _HERE.glob(pattern)
    ]
    files = {str(path.relative_to(_HERE)): path for path in own}
    files |= {name: _HERE / path for name, path in _LIBRARY.items() if (_HERE / path).is_file()}
    return files


def _serve(body: bytes, content_type: str) -> Handler:
    tag = hashlib.sha256(body).hexdigest()[:32]

    async def serve(request: web.Request) -> web.StreamResponse:
        known = request.if_none_match or ()
        if any(other.value in (tag, "*") for other in known):
            response = web.Response(status=304)
        else:
            response = web.Response(body=body, content_type=content_type, charset="utf-8")
            response.enable_compression()
        response.headers.update(HEADERS)
        response.etag = tag
        return response

    return serve
