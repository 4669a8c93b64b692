from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.msp.accounts import Principal, Role
from gwmodule.msp.api.tokens import API, REDIRECTION, SpentTokens, TokenError, Tokens
from gwmodule.msp.database import Database

PC = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
KEY = b"k" * 32
NOW = 1_800_000_000.0
ANNA = Principal("anna", "default", Role.TECHNICIAN, "password", epoch=7)


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    return Tokens(KEY, clock, lifetime=100.0)


def test_a_token_says_who_made_it(tokens: Tokens) -> None:
    claims = tokens.read(tokens.for_api(ANNA), API)
    assert (claims.principal, claims.guid) == (ANNA, None)


def test_a_token_expires(tokens: Tokens, clock: Clock) -> None:
    text = tokens.for_api(ANNA)
    clock.now += 99.9
    tokens.read(text, API)
    clock.now += 0.1
    with pytest.raises(TokenError, match="expired"):
        tokens.read(text, API)


def test_a_token_that_was_read_before_expires_all_the_same(tokens: Tokens, clock: Clock) -> None:
    text = tokens.for_api(ANNA)
    assert tokens.read(text, API) == tokens.read(text, API)
    with pytest.raises(TokenError, match="not for redirection"):
        tokens.read(text, REDIRECTION)
    clock.now += 100.0
    with pytest.raises(TokenError, match="expired"):
        tokens.read(text, API)


def test_a_redirection_token_lives_five_minutes_and_is_for_nothing_else(
    tokens: Tokens, clock: Clock
) -> None:
    text = tokens.for_redirection(ANNA, PC)
    assert tokens.read(text, REDIRECTION).guid == PC
    with pytest.raises(TokenError, match="not for api"):
        tokens.read(text, API)
    with pytest.raises(TokenError, match="not for redirection"):
        tokens.read(tokens.for_api(ANNA), REDIRECTION)
    clock.now += 300
    with pytest.raises(TokenError, match="expired"):
        tokens.read(text, REDIRECTION)


def forged(claims: dict[str, Any]) -> dict[str, str]:
    """The same claims, signed as a service must not accept them."""
    rsa_key = rsa.generate_private_key(65537, 2048)
    pem = rsa_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "none": jwt.encode(claims, "", algorithm="none"),
        "RS256": jwt.encode(claims, pem, algorithm="RS256"),
        "HS512": jwt.encode(claims, KEY * 2, algorithm="HS512"),
        "another key": jwt.encode(claims, b"x" * 32, algorithm="HS256"),
    }


@pytest.mark.parametrize("how", ["none", "RS256", "HS512", "another key"])
def test_only_our_algorithm_and_our_key_sign(tokens: Tokens, how: str) -> None:
    claims = jwt.decode(tokens.for_api(ANNA), options={"verify_signature": False})
    with pytest.raises(TokenError, match="no token of this service"):
        tokens.read(forged(claims)[how], API)


@pytest.mark.parametrize(
    "change",
    [
        {"sub": None},
        {"sub": 5},
        {"role": "root"},
        {"exp": "never"},
        {"exp": None},
        {"aud": None},
        {"epoch": 1.5},
        {"guid": "x"},
        {"jti": None},
    ],
)
def test_claims_that_are_not_what_they_must_be_are_refused(
    tokens: Tokens, change: dict[str, Any]
) -> None:
    claims = jwt.decode(tokens.for_api(ANNA), options={"verify_signature": False})
    claims |= change
    text = jwt.encode({k: v for k, v in claims.items() if v is not None}, KEY, "HS256")
    with pytest.raises(TokenError):
        tokens.read(text, API)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_garbage_is_no_token(text: str) -> None:
    with pytest.raises(TokenError):
        Tokens(KEY, Clock()).read(text, API)


def test_a_huge_token_is_not_looked_at(tokens: Tokens) -> None:
    with pytest.raises(TokenError):
        tokens.read("a" * 10_000_000, API)


async def test_a_token_of_one_use_is_spent_once_even_by_another_node(
    tokens: Tokens, clock: Clock, database: Database
) -> None:
    claims = tokens.read(tokens.for_redirection(ANNA, PC), REDIRECTION)
    assert await SpentTokens(database).spend(claims, NOW)
    assert not await SpentTokens(database).spend(claims, NOW + 1)
    # A node whose clock is ahead spends another one, and must not make the first one good again.
    clock.now = NOW + 400
    later = tokens.read(tokens.for_redirection(ANNA, PC), REDIRECTION)
    assert await SpentTokens(database).spend(later, clock.now)
    assert not await SpentTokens(database).spend(claims, NOW + 299)
    clock.now = NOW + 8000
    later = tokens.read(tokens.for_redirection(ANNA, PC), REDIRECTION)
    assert await SpentTokens(database).spend(later, clock.now)
    rows = await database.fetch("SELECT jti FROM spent_tokens")
    assert [row["jti"] for row in rows] == [later.jti]
