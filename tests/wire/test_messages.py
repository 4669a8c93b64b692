from __future__ import annotations

from ipaddress import IPv4Address
from uuid import UUID

from gwmodule.wire.frames import CredentialMode, TlsMode
from gwmodule.wire.messages import (
    Call,
    Credential,
    Greeting,
    Responses,
    StreamTarget,
    Welcome,
)
from gwmodule.wire.notices import NO_UUID


def test_neither_secrets_nor_tokens_are_ever_shown() -> None:
    credential = Credential(CredentialMode.HA1, "admin", "5f4dcc3b5aa765d61d8327deb882cf99", "r")
    call = Call(1, 5.0, IPv4Address("10.0.0.1"), bytes(6), NO_UUID, "f", credential=credential)
    token = b"single-use-token"
    greeting = Greeting(bytes(8), token, 0, 12.0, True, "gateway", "s", 1, 1)
    welcome = Welcome(1, True, token, 0, 120, "", 0, "")
    shown = f"{call!r}{greeting!r}{welcome!r}{Responses(1, 'c', (b'a digest: 16 B.',))!r}"
    assert "5f4dcc3b" not in shown
    assert "single-use" not in shown
    assert "a digest" not in shown


def test_a_target_without_details_has_safe_ones() -> None:
    target = StreamTarget(IPv4Address("10.0.0.1"), 16994, bytes(6))
    assert target.uuid == NO_UUID == UUID(int=0)
    assert not target.hold


def test_a_call_without_details_sends_no_credential_and_asks_the_device_for_its_tls() -> None:
    call = Call(1, 5.0, IPv4Address("10.0.0.1"), bytes(6), NO_UUID, "identity.get")
    assert call.credential == Credential(CredentialMode.NONE)
    assert call.tls is TlsMode.AUTO
    assert call.arguments == b"{}"
    assert call.pin == bytes(32)
