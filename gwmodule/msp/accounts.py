"""Who may use the service: tenants, their users with passwords, and API keys for scripts.

A user's name is unique over the whole service, because Open AMT's login has no field for a tenant.
Each user has an epoch; what was issued to them, a JWT, carries it and dies when it changes.

An API key is its owner's, the user who made it: it may never do more than he may, rests while he is
locked out, and is revoked when he is removed. A new password does not touch it. Only a key that was
made at the unix socket is the tenant's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass

from gwmodule.msp.database import Connection, Database, RegistryError, Row
from gwmodule.msp.records import DEFAULT_TENANT
from gwmodule.msp.registry import RegistryConflict
from gwmodule.msp.tables import Tables
from gwmodule.msp.vault import Vault

MIN_PASSWORD = 8
MAX_PASSWORD = 255
KEY_PREFIX = "gwm"
_MAX_KEY = 100
# Seconds; a write for each request of a script would be too many.
_LAST_USED_STEP = 3600.0
# Shown in tables and logs, and part of file names and URLs.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
# Each takes 32 MiB and a core for some time; the others wait.
_MAX_HASHES = 4


class Role(enum.StrEnum):
    VIEWER = "viewer"
    TECHNICIAN = "technician"
    ADMIN = "admin"

    def covers(self, other: Role) -> bool:
        """Whether this role may do what `other` may do."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks; `via` is "socket", "password" or "key".

    `epoch` is the user's and `key` the id of the API key, as they were when he was let in: whether
    he still would be is whether the records make an equal one.
    """

    name: str
    tenant: str
    role: Role
    via: str
    epoch: int = 0
    key: str = ""


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str
    created_at: float


@dataclass(frozen=True, slots=True)
class User:
    name: str
    tenant: str
    role: Role
    disabled: bool
    created_at: float


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: str
    name: str
    tenant: str
    role: Role
    created_at: float
    expires: float | None
    revoked_at: float | None
    # Who made it, as the audit names him, and whose it is; "": the tenant's.
    maker: str = ""
    owner: str = ""
    # To the hour.
    last_used: float | None = None

    def is_valid(self, at: float) -> bool:
        return self.revoked_at is None and (self.expires is None or at < self.expires)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of scrypt; OWASP's choice for 32 MiB."""

    log2_n: int = 15
    r: int = 8
    p: int = 3


def hashes_at_once(cores: int) -> int:
    """One core is left to the loop, which carries everybody's keystrokes meanwhile."""
    return max(1, min(cores - 1, _MAX_HASHES))


class Accounts:
    """RegistryError from every method while the database cannot be used; ValueError for names and
    passwords that cannot be, RegistryConflict for what contradicts the records.
    """

    def __init__(self, database: Database, vault: Vault, *, cost: Cost | None = None) -> None:
        self._database = database
        self._vault = vault
        self._cost = cost or Cost()
        self._hashing = asyncio.Semaphore(hashes_at_once(len(os.sched_getaffinity(0))))
        # What an unknown name's password is compared with, so that its answer takes as long.
        self._nobody = _encode(self._cost, bytes(16), bytes(32))

    async def signing_key(self) -> bytes:
        """The HS256 key of all nodes."""
        return await self._vault.secret("jwt")

    # Tenants.

    async def add_tenant(self, name: str, at: float, *, actor: str) -> None:
        _check_name(name)
        async with self._database.transaction() as db:
            if await _tenant(db, name):
                raise RegistryConflict(f"tenant {name} exists")
            await db.execute("INSERT INTO tenants (name, created_at) VALUES ($1, $2)", name, at)
            await Tables(db).audit(name, at, actor, "tenant.add")

    async def tenants(self) -> list[Tenant]:
        rows = await self._database.fetch("SELECT * FROM tenants ORDER BY name")
        return [Tenant(row["name"], row["created_at"]) for row in rows]

    async def remove_tenant(self, name: str, at: float, *, actor: str) -> bool:
        """And what is recorded of its revoked gateways; its audit stays.

        RegistryConflict while it has users, or keys or gateways that are not revoked.
        """
        if name == DEFAULT_TENANT:
            raise RegistryConflict(f"tenant {name} is always there")
        async with self._database.transaction() as db:
            for table, left, what in (
                ("users", "", "users"),
                ("gateways", "AND revoked_at IS NULL", "gateways that are not revoked"),
                ("api_keys", "AND revoked_at IS NULL", "API keys"),
            ):
                found = await db.fetch_one(
                    f"SELECT 1 AS one FROM {table} WHERE tenant = $1 {left} LIMIT 1",  # noqa: S608
                    name,
                )
                if found is not None:
                    raise RegistryConflict(f"tenant {name} still has {what}")
            removed = await db.execute("DELETE FROM tenants WHERE name = $1", name)
            if removed:
                # Hosts have no tenant of their own; gateways' names are unique over all tenants.
                await db.execute(
                    "DELETE FROM hosts WHERE gateway IN"
                    " (SELECT name FROM gateways WHERE tenant = $1)",
                    name,
                )
                gone = {
                    table: await db.execute(
                        f"DELETE FROM {table} WHERE tenant = $1",  # noqa: S608
                        name,
                    )
                    for table in _OF_A_TENANT
                }
                detail = {what: gone[what] for what in ("gateways", "devices")}
                await Tables(db).audit(name, at, actor, "tenant.remove", detail=detail)
        return removed > 0

    # Users.

    async def add_user(
        self, name: str, tenant: str, role: Role, password: str, at: float, *, actor: str
    ) -> None:
        _check_name(name)
        if name in _RESERVED:
            raise ValueError(f"{name!r} would be taken for the service itself in the audit")
        hashed = await self._hash(_checked(password), secrets.token_bytes(16))
        async with self._database.transaction() as db:
            if not await _tenant(db, tenant):
                raise RegistryConflict(f"there is no tenant {tenant}")
            if await db.fetch_one("SELECT 1 AS one FROM users WHERE name = $1", name):
                # Possibly another tenant's: that much a unique name tells.
                raise RegistryConflict(f"user {name} exists")
            await db.execute(
                "INSERT INTO users (name, tenant, role, password, epoch, created_at)"
                " VALUES ($1, $2, $3, $4, $5, $6)",
                name,
                tenant,
                role.value,
                hashed,
                # Not 1: what was issued to a removed user of this name must not be good again.
                secrets.randbits(31),
                at,
            )
            await Tables(db).audit(
                tenant, at, actor, "user.add", detail={"user": name, "role": role.value}
            )

    async def users(self, tenant: str) -> list[User]:
        rows = await self._database.fetch(
            "SELECT * FROM users WHERE tenant = $1 ORDER BY name", tenant
        )
        return [
            User(
                row["name"],
                row["tenant"],
                Role(row["role"]),
                bool(row["disabled"]),
                row["created_at"],
            )
            for row in rows
        ]

    async def set_user(
        self,
        name: str,
        tenant: str,
        *,
        at: float,
        actor: str,
        role: Role | None = None,
        password: str | None = None,
        disabled: bool | None = None,
    ) -> bool:
        """Change what is given; False when the tenant has no such user."""
        hashed = None
        if password is not None:
            hashed = await self._hash(_checked(password), secrets.token_bytes(16))
        async with self._database.transaction() as db:
            changed = await db.execute(
                "UPDATE users SET role = coalesce($1, role), password = coalesce($2, password),"
                " disabled = coalesce($3, disabled), epoch = epoch + 1"
                " WHERE name = $4 AND tenant = $5",
                None if role is None else role.value,
                hashed,
                None if disabled is None else int(disabled),
                name,
                tenant,
            )
            if changed:
                detail: dict[str, object] = {"user": name}
                if role is not None:
                    detail["role"] = role.value
                if password is not None:
                    detail["password"] = "changed"  # noqa: S105 - that it was, not what it is
                if disabled is not None:
                    detail["disabled"] = disabled
                await Tables(db).audit(tenant, at, actor, "user.set", detail=detail)
        return changed > 0

    async def remove_user(self, name: str, tenant: str, at: float, *, actor: str) -> bool:
        """And revoke his keys: a later user of his name must not wake them up."""
        async with self._database.transaction() as db:
            removed = await db.execute(
                "DELETE FROM users WHERE name = $1 AND tenant = $2", name, tenant
            )
            if removed:
                revoked = await db.execute(
                    "UPDATE api_keys SET revoked_at = $1"
                    " WHERE owner = $2 AND tenant = $3 AND revoked_at IS NULL",
                    at,
                    name,
                    tenant,
                )
                detail = {"user": name, "revoked_keys": revoked}
                await Tables(db).audit(tenant, at, actor, "user.remove", detail=detail)
        return removed > 0

    async def verify(self, name: str, password: str) -> Principal | None:
        """None for a wrong password, an unknown name or a disabled user, after the same work."""
        row = await self._user(name)
        stored = self._nobody if row is None else str(row["password"])
        right = await self._matches(password[: MAX_PASSWORD + 1], stored)
        # HMAC, at the bottom of scrypt, fills its key up with NULs: they would not be noticed.
        right = right and "\0" not in password
        return _of_user(row) if row and right and not row["disabled"] else None

    async def principal(self, name: str) -> Principal | None:
        """Who a user is now; None when removed or disabled."""
        row = await self._user(name)
        return None if row is None or row["disabled"] else _of_user(row)

    async def _user(self, name: str) -> Row | None:
        return await self._database.fetch_one("SELECT * FROM users WHERE name = $1", name)

    # API keys.

    async def add_key(
        self,
        name: str,
        tenant: str,
        role: Role,
        at: float,
        expires: float | None,
        *,
        actor: str,
        maker: Principal | None = None,
    ) -> str:
        """The key itself, which nobody can show again; without `maker` it is the tenant's own."""
        _check_name(name)
        if maker is not None and not maker.role.covers(role):
            raise ValueError(f"a key of role {role} needs a maker who may as much")
        if expires is not None and expires <= at:
            raise ValueError("the key would have expired already")
        identifier = secrets.token_hex(6)
        text = f"{KEY_PREFIX}_{identifier}_{secrets.token_urlsafe(32)}"
        async with self._database.transaction() as db:
            if not await _tenant(db, tenant):
                raise RegistryConflict(f"there is no tenant {tenant}")
            same = await db.fetch_one(
                "SELECT 1 AS one FROM api_keys WHERE tenant = $1 AND name = $2"
                " AND revoked_at IS NULL AND (expires IS NULL OR expires > $3)",
                tenant,
                name,
                at,
            )
            if same is not None:
                # The audit names a key by it: one must not act under another's.
                raise RegistryConflict(f"key {name} exists")
            owner = await _owner(db, maker, tenant)
            await db.execute(
                "INSERT INTO api_keys"
                " (id, name, tenant, role, hash, created_at, expires, maker, owner)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                identifier,
                name,
                tenant,
                role.value,
                # Of 256 random bits no dictionary exists: a fast hash will do.
                hashlib.sha256(text.encode()).digest(),
                at,
                expires,
                actor,
                owner,
            )
            detail = {"key": identifier, "name": name, "role": role.value}
            await Tables(db).audit(tenant, at, actor, "key.add", detail=detail)
        return text

    async def keys(self, tenant: str) -> list[ApiKey]:
        rows = await self._database.fetch(
            "SELECT * FROM api_keys WHERE tenant = $1 ORDER BY created_at, id", tenant
        )
        return [
            ApiKey(
                row["id"],
                row["name"],
                row["tenant"],
                Role(row["role"]),
                row["created_at"],
                row["expires"],
                row["revoked_at"],
                row["maker"],
                row["owner"] or "",
                row["last_used"],
            )
            for row in rows
        ]

    async def revoke_key(self, identifier: str, tenant: str, at: float, *, actor: str) -> bool:
        async with self._database.transaction() as db:
            revoked = await db.execute(
                "UPDATE api_keys SET revoked_at = $1"
                " WHERE id = $2 AND tenant = $3 AND revoked_at IS NULL",
                at,
                identifier,
                tenant,
            )
            if revoked:
                await Tables(db).audit(tenant, at, actor, "key.revoke", detail={"key": identifier})
        return revoked > 0

    async def verify_key(self, text: str, at: float) -> Principal | None:
        """None for what is no key, or one that is unknown, expired, revoked or its owner's who may
        not log in.
        """
        prefix, _, rest = text.partition("_")
        identifier, _, secret = rest.partition("_")
        if prefix != KEY_PREFIX or not secret or len(text) > _MAX_KEY or not text.isascii():
            return None
        row = await self._key(identifier, at)
        shown = hashlib.sha256(text.encode()).digest()
        if row is None or not hmac.compare_digest(row["hash"], shown):
            return None
        if row["last_used"] is None or at - row["last_used"] >= _LAST_USED_STEP:
            # A full disk must not keep anybody out.
            with contextlib.suppress(RegistryError):
                await self._database.execute(
                    "UPDATE api_keys SET last_used = $1 WHERE id = $2", at, identifier
                )
        return _of_key(row)

    async def key_principal(self, identifier: str, at: float) -> Principal | None:
        """Who the key of this id is; None when unknown, expired or revoked."""
        row = await self._key(identifier, at)
        return None if row is None else _of_key(row)

    async def _key(self, identifier: str, at: float) -> Row | None:
        return await self._database.fetch_one(
            "SELECT api_keys.*, users.role AS owner_role FROM api_keys LEFT JOIN users"
            " ON users.name = owner AND users.tenant = api_keys.tenant AND users.disabled = 0"
            " WHERE id = $1 AND revoked_at IS NULL AND (expires IS NULL OR expires > $2)"
            " AND (owner IS NULL OR users.name IS NOT NULL)",
            identifier,
            at,
        )

    # Passwords.

    async def _hash(self, password: str, salt: bytes) -> str:
        return _encode(self._cost, salt, await self._scrypt(password, salt, self._cost))

    async def _matches(self, password: str, stored: str) -> bool:
        _, log2_n, r, p, salt, digest = stored.split("$")
        cost = Cost(int(log2_n), int(r), int(p))
        made = await self._scrypt(password, bytes.fromhex(salt), cost)
        return hmac.compare_digest(made, bytes.fromhex(digest))

    async def _scrypt(self, password: str, salt: bytes, cost: Cost) -> bytes:
        async with self._hashing:
            return await asyncio.to_thread(
                hashlib.scrypt,
                password.encode(errors="replace"),
                salt=salt,
                n=1 << cost.log2_n,
                r=cost.r,
                p=cost.p,
                maxmem=128 * cost.r * ((1 << cost.log2_n) + cost.p + 2) + 65536,
                dklen=32,
            )


def _encode(cost: Cost, salt: bytes, digest: bytes) -> str:
    """With its cost, so that a later release can raise it and still verify what is stored."""
    return f"scrypt${cost.log2_n}${cost.r}${cost.p}${salt.hex()}${digest.hex()}"


def _checked(password: str) -> str:
    size = len(password.encode(errors="replace"))
    if not MIN_PASSWORD <= size <= MAX_PASSWORD:
        raise ValueError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} bytes, not {size}")
    if not password.isprintable():
        raise ValueError("a password has no control characters")
    return password


# What goes with a tenant, besides hosts; its users are gone already.
_OF_A_TENANT = (
    "api_keys",
    "credentials",
    "devices",
    "enrolment_tokens",
    "gateways",
    "hellos",
    "labels",
)

# Actors of the audit that are no users.
_RESERVED = frozenset({"gateway", "msp", "root"})


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:70]!r} is no name: 1 to 64 letters, digits, and ._@+- inside")


def _of_user(row: Row) -> Principal:
    role = Role(row["role"])
    return Principal(row["name"], row["tenant"], role, "password", epoch=int(row["epoch"]))


def _of_key(row: Row) -> Principal:
    role = Role(row["role"])
    if row["owner"] is not None and not Role(row["owner_role"]).covers(role):
        role = Role(row["owner_role"])
    return Principal(row["name"], row["tenant"], role, "key", key=row["id"])


async def _owner(db: Connection, maker: Principal | None, tenant: str) -> str | None:
    """The user whose a key of this maker is. RegistryConflict when he has gone just now."""
    if maker is None or maker.via == "socket":
        return None
    owner = maker.name
    if maker.via == "key":
        row = await db.fetch_one("SELECT owner FROM api_keys WHERE id = $1", maker.key)
        if row is not None and row["owner"] is None:
            return None
        owner = "" if row is None else str(row["owner"])
    sql = "SELECT 1 AS one FROM users WHERE name = $1 AND tenant = $2"
    if await db.fetch_one(sql, owner, tenant) is None:
        raise RegistryConflict("who made this key is no user any more")
    return owner


async def _tenant(db: Connection, name: str) -> bool:
    return await db.fetch_one("SELECT 1 AS one FROM tenants WHERE name = $1", name) is not None
