"""Which gateway may have a certificate: one-time tokens, renewals, and what ends them.

A token names a gateway and is stored as its hash. The first key that comes with it takes it; the
same key gets the same certificate again, because an answer may be lost after it was redeemed.

A renewal does not replace a certificate at once, for the same reason: the next one is allowed
besides it, and becomes the gateway's own with the first link that uses it (msp.registry).

`at` is the MSP's wall clock in unix seconds.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from gwmodule.errors import GatewayError
from gwmodule.msp.database import Connection, Database, Row
from gwmodule.msp.enrolment import check_gateway_name
from gwmodule.msp.pki import Issued
from gwmodule.msp.records import DEFAULT_TENANT
from gwmodule.msp.registry import RegistryConflict
from gwmodule.msp.tables import Tables

DAY = 86400.0
DEFAULT_EXPIRY = 7 * DAY
MAX_EXPIRY = 366 * DAY
MAX_TOKEN = 128
# How long the audit's reader may wonder what became of a token.
_KEEP = 30 * DAY

Issue = Callable[[str], Issued]


class EnrolmentRefused(GatewayError):
    """Not with this token or certificate; the error names in which way."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error


@dataclass(frozen=True, slots=True)
class Enrolment:
    """An invitation, shown once."""

    gateway: str
    token: str
    expires: float


@dataclass(frozen=True, slots=True)
class Redeemed:
    """`first`: not the repeated answer to a key that has its certificate (PEM) already."""

    gateway: str
    certificate: str
    first: bool


class Enrolments:
    """RegistryError from every method while the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def invite(
        self,
        gateway: str,
        at: float,
        *,
        actor: str,
        expiry: float = DEFAULT_EXPIRY,
        tenant: str = DEFAULT_TENANT,
        replace: bool = False,
    ) -> Enrolment:
        """A new token for `gateway`; its earlier ones are void. ValueError for a bad name.

        With `replace` also for an enrolled one, whose certificate is good until the token is used.
        """
        check_gateway_name(gateway)
        if not 0 < expiry <= MAX_EXPIRY:
            raise ValueError(f"a token lasts at most {MAX_EXPIRY / DAY:.0f} days")
        token = "gwe_" + base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        async with self._database.transaction() as db:
            known = await db.fetch_one("SELECT * FROM gateways WHERE name = $1", gateway)
            if known is not None and known["tenant"] != tenant:
                raise RegistryConflict(f"gateway {gateway} belongs to another tenant")
            if known is not None and known["fingerprint"] is not None and not replace:
                raise RegistryConflict(f"gateway {gateway} exists; ask for a replacement")
            if known is None:
                await db.execute(
                    "INSERT INTO gateways (name, tenant) VALUES ($1, $2)", gateway, tenant
                )
            await db.execute(
                "DELETE FROM enrolment_tokens"
                " WHERE expires_at < $1 OR (gateway = $2 AND used_at IS NULL)",
                at - _KEEP,
                gateway,
            )
            await db.execute(
                "INSERT INTO enrolment_tokens (hash, tenant, gateway, created_at, expires_at)"
                " VALUES ($1, $2, $3, $4, $5)",
                _hash(token),
                tenant,
                gateway,
                at,
                at + expiry,
            )
            await Tables(db).audit(
                tenant, at, actor, "gateway.invite", gateway, detail={"expires": at + expiry}
            )
        return Enrolment(gateway, token, at + expiry)

    async def redeem(
        self, token: str, key: str, at: float, issue: Issue, *, gateway: str | None, peer: str
    ) -> Redeemed:
        """The gateway's certificate, once per token and again for the same key.

        `key` is the hash of the public key, `issue` signs for it; `gateway` is whom the caller
        believes to be. EnrolmentRefused leaves the token as it was.
        """
        async with self._database.transaction() as db:
            found = None
            if len(token) <= MAX_TOKEN and token.isascii():
                # The hash is looked up, so how long this takes says nothing about a token.
                found = await db.fetch_one(
                    "SELECT * FROM enrolment_tokens WHERE hash = $1", _hash(token)
                )
            if found is None:
                raise EnrolmentRefused("TOKEN_UNKNOWN", "no such token: wrong, replaced or old")
            name = str(found["gateway"])
            if found["expires_at"] <= at:
                raise EnrolmentRefused("TOKEN_EXPIRED", "the token has expired: ask for a new one")
            if gateway is not None and gateway != name:
                raise EnrolmentRefused("OTHER_GATEWAY", f"the token is for the gateway {name}")
            if found["used_at"] is not None:
                return Redeemed(name, await self._again(db, found, key), first=False)
            row = await db.fetch_one("SELECT revoked_at FROM gateways WHERE name = $1", name)
            if row is None or (row["revoked_at"] or 0.0) >= found["created_at"]:
                raise EnrolmentRefused("REVOKED", f"the gateway {name} was revoked after that")
            issued = issue(name)
            await db.execute(
                "UPDATE enrolment_tokens SET used_at = $1, key = $2, certificate = $3,"
                " fingerprint = $4 WHERE hash = $5",
                at,
                key,
                issued.certificate,
                issued.fingerprint,
                found["hash"],
            )
            await db.execute(
                "UPDATE gateways SET fingerprint = $1, next_fingerprint = NULL, enrolled_at = $2,"
                " revoked_at = NULL WHERE name = $3",
                issued.fingerprint,
                at,
                name,
            )
            detail = {
                "fingerprint": issued.fingerprint,
                "until": issued.not_after,
                "address": peer,
            }
            await Tables(db).audit(
                found["tenant"], at, f"gateway {name}", "gateway.enrol", name, detail=detail
            )
        return Redeemed(name, issued.certificate, first=True)

    async def renew(
        self, gateway: str, fingerprint: str, at: float, issue: Issue, *, peer: str
    ) -> str:
        """The next certificate (PEM) for whoever has shown one that is allowed."""
        async with self._database.transaction() as db:
            row = await _allowed(db, gateway, fingerprint)
            issued = issue(gateway)
            await db.execute(
                "UPDATE gateways SET fingerprint = $1, next_fingerprint = $2 WHERE name = $3",
                fingerprint,
                issued.fingerprint,
                gateway,
            )
            detail = {
                "fingerprint": issued.fingerprint,
                "until": issued.not_after,
                "address": peer,
            }
            await Tables(db).audit(
                row["tenant"], at, f"gateway {gateway}", "gateway.renew", gateway, detail=detail
            )
        return issued.certificate

    async def give_back(self, gateway: str, fingerprint: str, at: float, *, peer: str) -> None:
        """The gateway is no longer one: neither its certificates nor their tokens are good.

        Except the token that is to replace them: it is the owner's answer to whoever has them.
        """
        async with self._database.transaction() as db:
            row = await _allowed(db, gateway, fingerprint)
            await db.execute(
                "UPDATE gateways SET fingerprint = NULL, next_fingerprint = NULL WHERE name = $1",
                gateway,
            )
            await db.execute(
                "DELETE FROM enrolment_tokens WHERE gateway = $1 AND used_at IS NOT NULL", gateway
            )
            await Tables(db).audit(
                row["tenant"], at, f"gateway {gateway}", "gateway.deprovision", gateway,
                detail={"address": peer},
            )  # fmt: skip

    async def _again(self, db: Connection, found: Row, key: str) -> str:
        if found["key"] != key:
            raise EnrolmentRefused(
                "TOKEN_USED", "the token was used already, with another key: ask for a new one"
            )
        await _allowed(db, found["gateway"], found["fingerprint"])
        return str(found["certificate"])


async def _allowed(db: Connection, gateway: str, fingerprint: str) -> Row:
    row = await db.fetch_one("SELECT * FROM gateways WHERE name = $1", gateway)
    if row is None or row["revoked_at"] is not None:
        raise EnrolmentRefused("REVOKED", f"the gateway {gateway} is not enrolled any more")
    if fingerprint not in (row["fingerprint"], row["next_fingerprint"]):
        raise EnrolmentRefused("REPLACED", f"the gateway {gateway} has another certificate by now")
    return row


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
