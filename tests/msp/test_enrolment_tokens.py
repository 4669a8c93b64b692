"""The rules of tokens and renewals, over both engines."""

from __future__ import annotations

import pytest

from gwmodule.msp.database import Database
from gwmodule.msp.enrolment_tokens import EnrolmentRefused, Enrolments
from gwmodule.msp.pki import Issued
from gwmodule.msp.registry import LinkUp, Registry, RegistryConflict

NOW = 1_800_000_000.0


async def redeem(
    enrolments: Enrolments, token: str, key: str, fingerprint: str, at: float = NOW
) -> tuple[str, str]:
    redeemed = await enrolments.redeem(
        token,
        key,
        at,
        lambda name: Issued(f"{name} {fingerprint}", fingerprint, at + 1),
        gateway=None,
        peer="192.0.2.1",
    )
    return redeemed.gateway, redeemed.certificate


async def test_a_token_is_for_one_key_and_for_it_as_often_as_it_asks(database: Database) -> None:
    enrolments = Enrolments(database)
    token = (await enrolments.invite("home-1", NOW, actor="test")).token
    assert await redeem(enrolments, token, "key", "f1") == ("home-1", "home-1 f1")
    assert await redeem(enrolments, token, "key", "f2") == ("home-1", "home-1 f1")
    with pytest.raises(EnrolmentRefused) as refused:
        await redeem(enrolments, token, "other", "f3")
    assert refused.value.error == "TOKEN_USED"
    for wrong in ("", "x" * 1000, "gwe_\x00", "gwe_\u00e9", "gwe_\udcff"):
        with pytest.raises(EnrolmentRefused, match="no such token"):
            await redeem(enrolments, wrong, "key", "f4")
    (row,) = await database.fetch("SELECT * FROM enrolment_tokens")
    assert token not in row["hash"] + row["certificate"] + row["key"]


async def test_two_certificates_are_good_between_renewal_and_first_use(database: Database) -> None:
    enrolments, registry = Enrolments(database), Registry(database)
    token = (await enrolments.invite("home-1", NOW, actor="test")).token
    await redeem(enrolments, token, "key", "f1")

    async def allowed() -> list[str]:
        return [f for f in ("f1", "f2", "f3") if await registry.is_gateway_allowed("home-1", f)]

    async def renew(shown: str, new: str) -> None:
        await enrolments.renew(
            "home-1", shown, NOW, lambda name: Issued(name, new, NOW), peer="192.0.2.1"
        )

    await renew("f1", "f2")
    assert await allowed() == ["f1", "f2"]
    # Its answer was lost, and it asks again with what it has.
    await renew("f1", "f3")
    assert await allowed() == ["f1", "f3"]
    with pytest.raises(EnrolmentRefused, match="another certificate"):
        await renew("f2", "f4")
    await registry.record([LinkUp("home-1", "f3", "192.0.2.1", 1, "test", NOW)])
    assert await allowed() == ["f3"]
    await enrolments.give_back("home-1", "f3", NOW, peer="192.0.2.1")
    assert await allowed() == []
    # Enrolled no longer, it may be invited as a new one.
    await enrolments.invite("home-1", NOW, actor="test")


async def test_tenants_do_not_invite_each_others_gateways(database: Database) -> None:
    enrolments = Enrolments(database)
    await enrolments.invite("home-1", NOW, actor="test", tenant="default")
    with pytest.raises(RegistryConflict, match="another tenant"):
        await enrolments.invite("home-1", NOW, actor="test", tenant="other", replace=True)


async def test_what_was_invited_before_a_revocation_is_void(database: Database) -> None:
    enrolments, registry = Enrolments(database), Registry(database)
    first = (await enrolments.invite("home-1", NOW, actor="test")).token
    await redeem(enrolments, first, "key", "f1")
    second = (await enrolments.invite("home-1", NOW + 1, actor="test", replace=True)).token
    await registry.revoke_gateway("home-1", NOW + 2, actor="test")
    for token in (first, second):
        with pytest.raises(EnrolmentRefused) as refused:
            await redeem(enrolments, token, "key", "f2", NOW + 3)
        assert refused.value.error == "REVOKED"
    third = (await enrolments.invite("home-1", NOW + 4, actor="test", replace=True)).token
    assert await redeem(enrolments, third, "key", "f3", NOW + 5) == ("home-1", "home-1 f3")


async def test_a_revoked_gateway_that_was_invited_since_can_be_revoked_again(
    database: Database,
) -> None:
    enrolments, registry = Enrolments(database), Registry(database)
    await registry.add_gateway("home-1", "f1", NOW)
    assert await registry.revoke_gateway("home-1", NOW + 1, actor="test")
    lost = (await enrolments.invite("home-1", NOW + 2, actor="test", replace=True)).token
    assert await registry.revoke_gateway("home-1", NOW + 3, actor="test")
    assert not await registry.revoke_gateway("home-1", NOW + 4, actor="test")
    with pytest.raises(EnrolmentRefused) as refused:
        await redeem(enrolments, lost, "thief", "f2", NOW + 5)
    assert refused.value.error == "REVOKED"


async def test_a_certificate_is_given_back_without_the_invitation_that_is_to_replace_it(
    database: Database,
) -> None:
    enrolments, registry = Enrolments(database), Registry(database)
    used = (await enrolments.invite("home-1", NOW, actor="test")).token
    await redeem(enrolments, used, "key", "stolen")
    owners = (await enrolments.invite("home-1", NOW + 1, actor="test", replace=True)).token
    await enrolments.give_back("home-1", "stolen", NOW + 2, peer="192.0.2.1")
    with pytest.raises(EnrolmentRefused):
        await redeem(enrolments, used, "key", "f2", NOW + 3)
    assert await redeem(enrolments, owners, "new", "f3", NOW + 4) == ("home-1", "home-1 f3")
    assert await registry.is_gateway_allowed("home-1", "f3")
    assert not await registry.is_gateway_allowed("home-1", "stolen")


@pytest.mark.parametrize("revoked", [True, False])
async def test_a_stolen_token_does_not_outlive_a_certificate_made_by_hand(
    database: Database, revoked: bool
) -> None:
    enrolments, registry = Enrolments(database), Registry(database)
    stolen = (await enrolments.invite("home-1", NOW, actor="test")).token
    if revoked:
        await registry.revoke_gateway("home-1", NOW + 1, actor="test")
    await registry.add_gateway("home-1", "f1", NOW + 2, actor="test", replace=True)
    with pytest.raises(EnrolmentRefused, match="no such token"):
        await redeem(enrolments, stolen, "thief", "f2", NOW + 3)
    assert await registry.is_gateway_allowed("home-1", "f1")


@pytest.mark.parametrize("expiry", [0.0, -1.0, float("nan"), float("inf"), 1e9])
async def test_a_token_does_not_last_for_ever(database: Database, expiry: float) -> None:
    with pytest.raises(ValueError, match="at most"):
        await Enrolments(database).invite("home-1", NOW, actor="test", expiry=expiry)
