"""Signing in, users, API keys, tenants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from gwmodule.msp.accounts import Accounts as Directory
from gwmodule.msp.accounts import ApiKey, Principal, Role, User
from gwmodule.msp.api import payloads as p
from gwmodule.msp.api.answers import ApiError, not_found, said_by_records, time_text
from gwmodule.msp.api.asking import Asked, device_of
from gwmodule.msp.api.auth import Authenticator
from gwmodule.msp.api.limits import LoginLimits
from gwmodule.msp.api.tokens import Tokens
from gwmodule.msp.database import RegistryError
from gwmodule.msp.registry import Registry
from gwmodule.telemetry import EventLog

# Password checks that run or wait at once: each takes a core for some tenths of a second, and who
# waits longer than a few of them tries again by himself.
MAX_CHECKS = 8


class Accounts:
    """Handlers of group `accounts`; `monotonic` is the clock of the login limits."""

    def __init__(
        self,
        directory: Directory,
        registry: Registry,
        tokens: Tokens,
        authenticator: Authenticator,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        count_login: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._directory = directory
        self._registry = registry
        self._tokens = tokens
        self._authenticator = authenticator
        self._clock = clock
        self._monotonic = monotonic
        self._count_login = count_login
        self._limits = LoginLimits()
        self._checking = 0
        self._log = EventLog("gwmodule.msp.api")

    # Signing in.

    async def authorize(self, asked: Asked) -> p.TokenAnswer:
        body: p.LoginRequest = asked.body
        address = self._authenticator.address_of(asked.http)
        wait = self._limits.charge(address, body.username, self._monotonic())
        if wait:
            self._count_login("limited")
            raise ApiError(
                429, "TOO_MANY_REQUESTS", f"too many logins; wait {wait} s", retry_after=wait
            )
        with self._check_slot():
            principal = await self._directory.verify(body.username, body.password)
        if principal is None:
            self._count_login("refused")
            self._log.warning("login_refused", user=body.username, address=address)
            raise ApiError(401, "UNAUTHORIZED", "unknown user or wrong password")
        self._limits.succeeded(address, body.username)
        self._count_login("ok")
        await self._record_login(principal, address)
        self._log.info("login", user=principal.name, tenant=principal.tenant, address=address)
        return p.TokenAnswer(self._tokens.for_api(principal))

    async def _record_login(self, who: Principal, address: str) -> None:
        try:
            await self._registry.audit(
                who.name, "login", self._clock(), detail={"from": address}, tenant=who.tenant
            )
        except RegistryError as exc:
            # A full disk must not keep a technician from a dead PC: the log has the entry then.
            self._log.error("audit_failed", action="login", actor=who.name, reason=exc)

    @contextmanager
    def _check_slot(self) -> Iterator[None]:
        if self._checking >= MAX_CHECKS:
            raise ApiError(429, "TOO_MANY_REQUESTS", "too many logins at once", retry_after=1)
        self._checking += 1
        try:
            yield
        finally:
            self._checking -= 1

    async def redirection(self, asked: Asked) -> p.TokenAnswer:
        device = await device_of(self._registry, asked.tenant, asked.path("guid"))
        return p.TokenAnswer(self._tokens.for_redirection(asked.principal, device.uuid))

    async def whoami(self, asked: Asked) -> p.WhoAmI:
        who = asked.principal
        return p.WhoAmI(who.name, who.tenant, who.role, who.via)

    # Users.

    async def users(self, asked: Asked) -> list[p.UserAnswer]:
        keys = await self._valid_keys(asked)
        return [_user(user, keys) for user in await self._directory.users(asked.tenant)]

    async def _valid_keys(self, asked: Asked) -> list[ApiKey]:
        at = self._clock()
        return [key for key in await self._directory.keys(asked.tenant) if key.is_valid(at)]

    async def add_user(self, asked: Asked) -> p.UserAnswer:
        body: p.UserRequest = asked.body
        with said_by_records(), self._check_slot():
            await self._directory.add_user(
                body.name, asked.tenant, body.role, body.password, self._clock(), actor=asked.actor
            )
        return p.UserAnswer(body.name, body.role, False, [])

    async def change_user(self, asked: Asked) -> p.UserAnswer:
        body: p.UserChange = asked.body
        name = asked.path("user")
        await self._find_user(asked, name)
        with said_by_records(), self._check_slot():
            await self._directory.set_user(
                name,
                asked.tenant,
                role=body.role if isinstance(body.role, Role) else None,
                password=body.password if isinstance(body.password, str) else None,
                disabled=body.disabled if isinstance(body.disabled, bool) else None,
                at=self._clock(),
                actor=asked.actor,
            )
        return _user(await self._find_user(asked, name), await self._valid_keys(asked))

    async def remove_user(self, asked: Asked) -> p.UserAnswer:
        name = asked.path("user")
        user = await self._find_user(asked, name)
        keys = await self._valid_keys(asked)
        await self._directory.remove_user(name, asked.tenant, self._clock(), actor=asked.actor)
        return _user(user, keys)

    async def _find_user(self, asked: Asked, name: str) -> User:
        for user in await self._directory.users(asked.tenant):
            if user.name == name:
                return user
        raise not_found(f"no user {name[:64]!r}")

    # Keys.

    async def keys(self, asked: Asked) -> list[p.KeyAnswer]:
        return [
            p.KeyAnswer(
                key.id,
                key.name,
                key.role,
                key.maker,
                key.owner or None,
                time_text(key.created_at),
                time_text(key.expires),
                time_text(key.last_used),
                time_text(key.revoked_at),
            )
            for key in await self._directory.keys(asked.tenant)
        ]

    async def add_key(self, asked: Asked) -> p.KeyMade:
        body: p.KeyRequest = asked.body
        at = self._clock()
        with said_by_records():
            key = await self._directory.add_key(
                body.name,
                asked.tenant,
                body.role,
                at,
                at + body.days * 86400.0,
                actor=asked.actor,
                maker=asked.principal,
            )
        return p.KeyMade(key)

    async def revoke_key(self, asked: Asked) -> None:
        key = asked.path("key")
        if not await self._directory.revoke_key(
            key, asked.tenant, self._clock(), actor=asked.actor
        ):
            raise not_found(f"no key {key[:64]!r}")

    # Tenants.

    async def tenants(self, asked: Asked) -> list[p.TenantAnswer]:
        return [p.TenantAnswer(tenant.name) for tenant in await self._directory.tenants()]

    async def add_tenant(self, asked: Asked) -> p.TenantAnswer:
        body: p.TenantRequest = asked.body
        with said_by_records():
            await self._directory.add_tenant(body.name, self._clock(), actor=asked.actor)
        return p.TenantAnswer(body.name)

    async def remove_tenant(self, asked: Asked) -> None:
        name = asked.path("tenant")
        if not await self._directory.remove_tenant(name, self._clock(), actor=asked.actor):
            raise not_found(f"no tenant {name[:64]!r}")


def _user(user: User, keys: Sequence[ApiKey]) -> p.UserAnswer:
    of_user = [p.KeyName(key.id, key.name) for key in keys if key.owner == user.name]
    return p.UserAnswer(user.name, user.role, user.disabled, of_user)
