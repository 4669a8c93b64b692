"""The two kinds of JSON Web Token (RFC 7519): for the API, and for one stream to one device.

    api          sub tenant role via epoch iat exp aud="api"               Authorization: Bearer
    redirection  the same, aud="redirection", guid, jti, key: five         Sec-WebSocket-Protocol
                 minutes, one device, one use

A token is never part of a URL, where logs and histories keep it. The algorithm is ours to choose
and not the token's: HS256, whatever its header says.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import lru_cache
from uuid import UUID

import jwt
import msgspec

from gwmodule.msp.accounts import Principal, Role
from gwmodule.msp.database import Database

ALGORITHM = "HS256"
API = "api"
REDIRECTION = "redirection"
DEFAULT_LIFETIME = 8 * 3600.0
REDIRECTION_LIFETIME = 300.0
# A token of ours is some 300 bytes; what is longer is nobody's.
MAX_TOKEN = 4096
# Tokens that need not be taken apart at each request, which would be a third of its work.
MAX_VERIFIED = 1024
# Seconds that the clocks of two nodes may differ without a spent token being good again.
_CLOCKS_APART = 3600.0


class TokenError(Exception):
    """Not a token of ours, or no longer one."""


class Claims(msgspec.Struct, frozen=True):
    """`epoch` is the account's when the token was made: a new password ends all its tokens.

    `key` is the id of the API key that it was made with.
    """

    sub: str
    tenant: str
    role: Role
    via: str
    epoch: int
    iat: float
    exp: float
    aud: str
    jti: str
    guid: UUID | None = None
    key: str = ""

    @property
    def principal(self) -> Principal:
        return Principal(self.sub, self.tenant, self.role, self.via, self.epoch, self.key)


class Tokens:
    def __init__(
        self,
        key: bytes,
        clock: Callable[[], float],
        *,
        lifetime: float = DEFAULT_LIFETIME,
    ) -> None:
        self._key = key
        self._clock = clock
        self._lifetime = lifetime
        # A signature that was good stays good: only time and the account are asked each time.
        self._verified = lru_cache(MAX_VERIFIED)(self._verify)

    def for_api(self, principal: Principal) -> str:
        return self._sign(principal, API, self._lifetime, None)

    def for_redirection(self, principal: Principal, guid: UUID) -> str:
        return self._sign(principal, REDIRECTION, REDIRECTION_LIFETIME, guid)

    def _sign(self, principal: Principal, audience: str, lifetime: float, guid: UUID | None) -> str:
        now = self._clock()
        claims = Claims(
            principal.name,
            principal.tenant,
            principal.role,
            principal.via,
            principal.epoch,
            now,
            now + lifetime,
            audience,
            secrets.token_hex(16),
            guid,
            principal.key,
        )
        return jwt.encode(msgspec.to_builtins(claims), self._key, algorithm=ALGORITHM)

    def read(self, text: str, audience: str) -> Claims:
        """TokenError with the reason, which may be told to whoever sent it."""
        if len(text) > MAX_TOKEN:
            raise TokenError("this is no token of this service")
        claims = self._verified(text, audience)
        if self._clock() >= claims.exp:
            raise TokenError("this token has expired; log in again")
        return claims

    def _verify(self, text: str, audience: str) -> Claims:
        try:
            decoded = jwt.decode(
                text,
                self._key,
                algorithms=[ALGORITHM],
                audience=audience,
                # By our own clock, below.
                options={"verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
            return msgspec.convert(decoded, Claims)
        except jwt.InvalidAudienceError as exc:
            raise TokenError(f"this token is not for {audience}") from exc
        except (jwt.InvalidTokenError, msgspec.ValidationError, ValueError) as exc:
            raise TokenError("this is no token of this service") from exc


class SpentTokens:
    """Tokens of one use that were used: in the database, so on every node and after a restart."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def spend(self, claims: Claims, now: float) -> bool:
        """False when it was spent before."""
        async with self._database.transaction() as db:
            # Late: another node's clock may be behind, and take the token as good still.
            await db.execute("DELETE FROM spent_tokens WHERE expires < $1", now - _CLOCKS_APART)
            changed = await db.execute(
                "INSERT INTO spent_tokens (jti, expires) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                claims.jti,
                claims.exp,
            )
        return changed == 1
