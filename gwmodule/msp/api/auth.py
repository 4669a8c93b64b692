"""Who asks, and whether he may.

    unix socket without Authorization   the local user, admin of the tenant in X-Tenant
    Authorization: Bearer <JWT>         a user who logged in with his password
    Authorization: Bearer gwm_...       an API key
    Sec-WebSocket-Protocol: <JWT>       a redirection token: one WebSocket to one device

Whatever is missing, unknown, expired or for something else is refused; there is no default user.
"""

from __future__ import annotations

import asyncio
import ipaddress
import pwd
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Protocol
from urllib.parse import urlsplit

from aiohttp import web

from gwmodule.errors import Code
from gwmodule.msp.accounts import Principal, Role, Tenant
from gwmodule.msp.api.answers import ApiError, not_found
from gwmodule.msp.api.asking import Asked, guid_of
from gwmodule.msp.api.routes import Route, Scope
from gwmodule.msp.api.tokens import API, MAX_TOKEN, REDIRECTION, Claims, TokenError, Tokens
from gwmodule.msp.database import RegistryError
from gwmodule.msp.records import DEFAULT_TENANT

# How long somebody who was locked out may still type on what he has open.
RECHECK = 15.0
# For the end of a stream to reach a browser; one that takes nothing is cut off.
CLOSE_TIMEOUT = 5.0
KEY_PREFIX = "gwm_"
KEY_GONE = "this API key is unknown, expired or revoked"
ANONYMOUS = Principal("", "", Role.VIEWER, "none")


class AccountsSeam(Protocol):
    async def principal(self, name: str) -> Principal | None: ...

    async def verify_key(self, text: str, at: float) -> Principal | None: ...

    async def key_principal(self, identifier: str, at: float) -> Principal | None: ...

    async def tenants(self) -> Sequence[Tenant]: ...


class Authenticator:
    """`proxies` are the addresses whose X-Forwarded-For is believed; `origins` what browsers call
    the service where a proxy changes the Host header. `recheck` is in seconds.
    """

    def __init__(
        self,
        accounts: AccountsSeam,
        tokens: Tokens,
        clock: Callable[[], float],
        *,
        proxies: Collection[str] = (),
        origins: Collection[str] = (),
        recheck: float = RECHECK,
    ) -> None:
        self._accounts = accounts
        self._tokens = tokens
        self._clock = clock
        self._proxies = frozenset(map(_plain, proxies))
        self._origins = frozenset(origins)
        self._recheck = recheck

    async def admit(self, request: web.Request, route: Route) -> tuple[Principal, Claims | None]:
        """Who asks; ApiError 401 for nobody we know, 403 for somebody who may not."""
        self.check_origin(request)
        if route.role is None:
            return ANONYMOUS, None
        principal, claims = await self._identify(request, route)
        if not principal.role.covers(route.role):
            raise ApiError(
                403,
                "FORBIDDEN",
                f"this needs role {route.role}, {principal.name} is {principal.role}",
            )
        if route.scope is Scope.OPERATOR and principal.via != "socket":
            raise ApiError(403, "FORBIDDEN", "only at the service's unix socket")
        if route.scope is Scope.SERVICE and principal.tenant != DEFAULT_TENANT:
            raise ApiError(403, "FORBIDDEN", f"only for members of tenant {DEFAULT_TENANT}")
        return principal, claims

    async def _identify(
        self, request: web.Request, route: Route
    ) -> tuple[Principal, Claims | None]:
        header = request.headers.get("Authorization")
        if header is not None:
            return await self._bearer(header), None
        if route.websocket and (offered := offered_token(request)):
            return await self._redirection(request, offered)
        user = unix_user(request)
        if user is not None:
            return await self._local(request, user), None
        raise ApiError(401, "UNAUTHORIZED", "log in first: Authorization: Bearer TOKEN")

    async def _bearer(self, header: str) -> Principal:
        scheme, _, text = header.partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or not text or len(text) > MAX_TOKEN:
            raise ApiError(401, "UNAUTHORIZED", "Authorization must be Bearer TOKEN")
        if text.startswith(KEY_PREFIX):
            principal = await self._accounts.verify_key(text, self._clock())
            if principal is None:
                raise ApiError(401, "UNAUTHORIZED", KEY_GONE)
            return principal
        return await self._confirmed(self._read(text, API).principal)

    async def _redirection(self, request: web.Request, text: str) -> tuple[Principal, Claims]:
        claims = self._read(text, REDIRECTION)
        asked = request.match_info.get("guid") or request.query.get("host", "")
        # Boards and tools print a UUID in either byte order; a token is for one string of it.
        if claims.guid != guid_of(asked):
            raise ApiError(403, "FORBIDDEN", "this token is for another device")
        return await self._confirmed(claims.principal), claims

    def _read(self, text: str, audience: str) -> Claims:
        try:
            return self._tokens.read(text, audience)
        except TokenError as exc:
            raise ApiError(401, "UNAUTHORIZED", str(exc)) from exc

    async def _confirmed(self, principal: Principal) -> Principal:
        """ApiError 401 when who was let in once would not be any more.

        Who may open the unix socket is the file system's business, and not asked again.
        """
        match principal.via:
            case "socket":
                return principal
            case "key":
                known = await self._accounts.key_principal(principal.key, self._clock())
                gone = KEY_GONE
            case _:
                known = await self._accounts.principal(principal.name)
                gone = "this account has changed; log in again"
        if known != principal:
            raise ApiError(401, "UNAUTHORIZED", gone)
        return principal

    @asynccontextmanager
    async def watched(
        self, asked: Asked, close: Callable[[Code, str], Awaitable[object]]
    ) -> AsyncIterator[None]:
        """While a stream is open: `close(code, reason)` when who opened it would not be let in now.

        Not by his token: that one is for opening, and a stream outlives it.
        """
        closing = False

        async def watch() -> None:
            nonlocal closing
            reason = await self._lost(asked.principal)
            closing = True
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await close(Code.CANCELLED, reason)
            except TimeoutError:
                if asked.http.transport is not None:
                    asked.http.transport.abort()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(watch(), name="right to a stream")
            try:
                yield
            finally:
                # What is being closed has its reason on the way.
                if not closing:
                    task.cancel()

    async def _lost(self, principal: Principal) -> str:
        """Returns why, once `principal` would not be let in any more."""
        while True:
            await asyncio.sleep(self._recheck)
            try:
                await self._confirmed(principal)
            except ApiError as exc:
                return exc.description
            except RegistryError:
                # While it fails nobody can be locked out, and a PC's repair goes on.
                continue

    async def _local(self, request: web.Request, user: str) -> Principal:
        tenant = request.headers.get("X-Tenant", DEFAULT_TENANT)
        if tenant != DEFAULT_TENANT:
            known = {each.name for each in await self._accounts.tenants()}
            if tenant not in known:
                raise not_found(f"no tenant {tenant[:64]!r}")
        return Principal(user, tenant, Role.ADMIN, "socket")

    def check_origin(self, request: web.Request) -> None:
        """A browser says which site asks; ours is the one that it was given the page from."""
        origin = request.headers.get("Origin")
        if origin is None or origin in self._origins:
            return
        try:
            site = urlsplit(origin).netloc
        except ValueError:
            site = ""
        if not site or site != request.host:
            raise ApiError(403, "CROSS_SITE", "another site may not use this service")

    def address_of(self, request: web.Request) -> str:
        """Where a request comes from: the last hop that is no proxy of ours."""
        address = _plain(request.remote or "unix")
        # Some proxies add a line of their own below the caller's instead of ending his.
        hops = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        while address in self._proxies and hops:
            hop = _address_in(hops.pop())
            if hop is None:
                # Not to be told apart from others is the proxy's callers' loss, not a way around.
                break
            address = hop
        return address


def _address_in(hop: str) -> str | None:
    """The address in an element of X-Forwarded-For, with or without a port."""
    text = hop.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return None
    return _plain(text)


def _plain(address: str) -> str:
    """One text for one address: a socket of both families has IPv4 callers as ::ffff:192.0.2.1."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def offered_token(request: web.Request) -> str | None:
    """The redirection token among the subprotocols: two dots, and no name of ours."""
    offered = request.headers.getall("Sec-WebSocket-Protocol", [])
    names = [name.strip() for line in offered for name in line.split(",")]
    found = [name for name in names if name.count(".") == 2 and not name.startswith("gwmodule.")]
    return found[0] if found else None


def unix_user(request: web.Request) -> str | None:
    """The user at the other end of a unix socket; None for any other socket."""
    peer = request.get_extra_info("socket")
    if peer is None or peer.family != socket.AF_UNIX:
        return None
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
