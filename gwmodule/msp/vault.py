"""The devices' logins, sealed with a key that is not in the database.

AES-256-GCM with a fresh nonce each; tenant, UUID, user name and mode are authenticated with it, so
that a row that somebody moves to another device, or changes, no longer opens. A stolen database is
worth nothing without the key, and neither is a backup.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gwmodule.errors import ConfigError
from gwmodule.files import write_atomically
from gwmodule.msp.database import Connection, Database, RegistryError, Row
from gwmodule.msp.tables import Tables

KEY_SIZE = 32
_NONCE_SIZE = 12
# What systemd's LoadCredential= calls it, and what is made in the state directory.
CREDENTIAL_NAME = "registry-key"
KEY_FILE = "registry.key"
_MAX_KEY_FILE = 256
# AMT takes 255 bytes at most.
MAX_LOGIN = 255

Mode = Literal["ha1", "challenge"]


@dataclass(frozen=True, slots=True)
class StoredLogin:
    username: str
    password: str = field(repr=False)
    mode: Mode


@dataclass(frozen=True, slots=True)
class CredentialInfo:
    """What may be shown of a stored login."""

    username: str
    mode: Mode
    changed_at: float


class Vault:
    """`check` first; RegistryError from every method while the database cannot be used."""

    def __init__(self, database: Database, key: bytes) -> None:
        self._database = database
        self._cipher = AESGCM(key)

    async def check(self) -> None:
        """ConfigError when the database was sealed with another key."""
        await self.secret("check")

    async def secret(self, name: str) -> bytes:
        """32 random bytes of the service itself, made at the first call and shared by all nodes."""
        async with self._database.transaction() as db:
            row = await db.fetch_one("SELECT sealed FROM secrets WHERE name = $1", name)
            if row is None:
                made = secrets.token_bytes(32)
                await db.execute(
                    "INSERT INTO secrets (name, sealed) VALUES ($1, $2)",
                    name,
                    self._seal(made, "secret", name),
                )
                return made
        try:
            return self._open(row["sealed"], "secret", name)
        except InvalidTag as exc:
            raise ConfigError("--key-file", "", "is not the key of this database") from exc

    async def store(
        self,
        tenant: str,
        uuid: UUID | None,
        username: str,
        password: str,
        at: float,
        *,
        actor: str,
        mode: Mode = "ha1",
    ) -> None:
        """Keep the login of a device, or with None that of all the tenant's others.

        ValueError for what AMT could not take.
        """
        for text in (username, password):
            if not text.isprintable() or not 1 <= len(text.encode(errors="replace")) <= MAX_LOGIN:
                raise ValueError(f"user name and password are 1 to {MAX_LOGIN} printable bytes")
        if '"' in username or ":" in username:
            raise ValueError("a user name holds neither colon nor quote")
        if mode not in get_args(Mode):
            raise ValueError(f"mode {mode[:20]!r} is neither ha1 nor challenge")
        sealed = self._seal(password.encode(), *_names(tenant, uuid, username, mode))
        async with self._database.transaction() as db:
            await db.execute(
                "INSERT INTO credentials (tenant, uuid, username, mode, sealed, changed_at)"
                " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant, uuid) DO UPDATE SET"
                " username = excluded.username, mode = excluded.mode, sealed = excluded.sealed,"
                " changed_at = excluded.changed_at",
                tenant,
                _key(uuid),
                username,
                mode,
                sealed,
                at,
            )
            detail = {"user": username, "mode": mode}
            await Tables(db).audit(tenant, at, actor, "credential.set", uuid=uuid, detail=detail)

    async def load(self, tenant: str, uuid: UUID | None) -> StoredLogin | None:
        """The login of this device; without one of its own, the tenant's default."""
        row = await self._row(self._database, tenant, uuid)
        if row is None and uuid is not None:
            uuid, row = None, await self._row(self._database, tenant, None)
        if row is None:
            return None
        names = _names(tenant, uuid, row["username"], row["mode"])
        try:
            password = self._open(row["sealed"], *names).decode()
        except InvalidTag as exc:
            raise RegistryError(
                f"the stored login of {uuid or 'the tenant'} was changed in the database"
            ) from exc
        return StoredLogin(row["username"], password, row["mode"])

    async def describe(self, tenant: str, uuid: UUID | None) -> CredentialInfo | None:
        """This device's own login, never the default one; the password never."""
        row = await self._row(self._database, tenant, uuid)
        if row is None:
            return None
        return CredentialInfo(row["username"], row["mode"], row["changed_at"])

    async def remove(self, tenant: str, uuid: UUID | None, at: float, *, actor: str) -> bool:
        async with self._database.transaction() as db:
            removed = await db.execute(
                "DELETE FROM credentials WHERE tenant = $1 AND uuid = $2", tenant, _key(uuid)
            )
            if removed:
                await Tables(db).audit(tenant, at, actor, "credential.remove", uuid=uuid)
        return removed > 0

    async def _row(self, db: Connection, tenant: str, uuid: UUID | None) -> Row | None:
        return await db.fetch_one(
            "SELECT * FROM credentials WHERE tenant = $1 AND uuid = $2", tenant, _key(uuid)
        )

    def _seal(self, data: bytes, *names: str) -> bytes:
        nonce = secrets.token_bytes(_NONCE_SIZE)
        return nonce + self._cipher.encrypt(nonce, data, _associated(names))

    def _open(self, sealed: bytes, *names: str) -> bytes:
        if len(sealed) < _NONCE_SIZE:
            raise InvalidTag
        return self._cipher.decrypt(sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:], _associated(names))


def vault_key(state: Path, key_file: Path | None, environment: Mapping[str, str]) -> bytes:
    """The key from `key_file`, else from systemd, else from the state directory, made once there.

    A file holds 32 bytes or 64 hexadecimal digits. ConfigError when it cannot be used.
    """
    if key_file is not None:
        return _read_key(key_file)
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if directory is not None and (Path(directory) / CREDENTIAL_NAME).exists():
        return _read_key(Path(directory) / CREDENTIAL_NAME)
    path = state / KEY_FILE
    if not path.exists():
        _make_key(path)
    return _read_key(path)


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o037:
                raise ConfigError(str(path), "", "is open to others; its mode must be 0600 or 0640")
            data = file.read(_MAX_KEY_FILE + 1)
    except OSError as exc:
        raise ConfigError(str(path), "", exc.strerror or "cannot be read") from exc
    if len(data) == KEY_SIZE:
        return data
    try:
        key = bytes.fromhex(data.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_SIZE:
        raise ConfigError(
            str(path), "", f"holds {len(data)} bytes, not a key of 32 bytes or 64 hex digits"
        )
    return key


def _make_key(path: Path) -> None:
    # Whole under its name or not at all: half a key would seal what nobody opens again.
    try:
        write_atomically(path, f"{secrets.token_hex(KEY_SIZE)}\n".encode())
    except OSError as exc:
        raise ConfigError(str(path), "", exc.strerror or "cannot be made") from exc


def _key(uuid: UUID | None) -> bytes:
    return b"" if uuid is None else uuid.bytes


def _names(tenant: str, uuid: UUID | None, username: str, mode: str) -> tuple[str, ...]:
    return ("credential", tenant, "" if uuid is None else str(uuid), username, mode)


def _associated(names: tuple[str, ...]) -> bytes:
    # JSON, so that no two lists of names give the same bytes.
    return json.dumps(names).encode()
