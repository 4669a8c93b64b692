import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.amt import digest
from gwmodule.amt.digest import Authenticator, Challenge, parse_challenge
from gwmodule.errors import AuthenticationFailed, DeviceAnswerError
from gwmodule.wire.frames import CredentialMode
from gwmodule.wire.messages import Credential

# Real answer of AMT 15 (reference/amt-protocols.md 3.1).
AMT15 = (
    'Digest realm="Digest:34BF4B5A0561F95248F58509A406E046", '
    'nonce="bQali2IAAAAAAAAAn0xaWCOcxNsRcEHX",stale="false",qop="auth"'
)
REALM = "Digest:34BF4B5A0561F95248F58509A406E046"
HA1 = digest.ha1("admin", REALM, "P@ssw0rd")


def test_the_vector_of_rfc_2617() -> None:
    secret = digest.ha1("Mufasa", "testrealm@host.com", "Circle Of Life")
    assert secret == "939e7578ed9e3c518a452acee763bce9"
    second = digest.ha2("GET", "/dir/index.html")
    assert second == "39aff3a2bab6126f332b942af96d3366"
    nonce = "dcd98b7102dd2f0e8b11d0f600bfb0c093"
    answer = digest.response(secret, nonce, second, nc="00000001", cnonce="0a4f113b", qop="auth")
    assert answer == "6629fae49393a05397450978507c4ef1"
    assert digest.response(secret, nonce, second) == "670fd8c2df070c60b045671b8b24ff02"


def test_the_vector_of_the_redirection_protocol() -> None:
    secret = digest.ha1("admin", "Digest:0123456789ABCDEF0123456789ABCDEF", "P@ssw0rd")
    assert secret == "b6710485f86e6174cca7404518df56da"
    answer = digest.response(
        secret,
        "00112233445566778899aabbccddeeff",
        digest.ha2("POST", "/RedirectionService"),
        nc="00000002",
        cnonce="0f1e2d3c4b5a69788796a5b4c3d2e1f0",
        qop="auth",
    )
    assert answer == "d0188627ce6559a2cb50b5aeb956d5df"


def test_auth_int_covers_the_body() -> None:
    assert digest.ha2("POST", "/wsman", b"") == digest.md5_hex(
        "POST:/wsman:d41d8cd98f00b204e9800998ecf8427e"
    )


def test_a_real_challenge_is_read() -> None:
    assert parse_challenge(AMT15) == Challenge(REALM, "bQali2IAAAAAAAAAn0xaWCOcxNsRcEHX", ("auth",))


@pytest.mark.parametrize("qop", ['"auth-int, auth"', '"auth,auth-int"', "auth"])
def test_every_spelling_of_qop_is_read(qop: str) -> None:
    assert "auth" in parse_challenge(f'Digest realm="r", nonce="n", qop={qop}').qop


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", "did not offer"),
        ('Basic realm="r"', "did not offer"),
        ('Digest realm="r"', "did not offer"),
        ('Digest nonce="n"', "did not offer"),
        ('Digest realm="r", nonce="n", algorithm=SHA-256', "SHA-256"),
        ('Digest realm="r", nonce="n", qop="auth-conf"', "auth-conf"),
        ("Digest " + "x" * 1024, "maximum 1024"),
    ],
)
def test_an_unusable_challenge_says_why(header: str, message: str) -> None:
    with pytest.raises(DeviceAnswerError, match=message):
        parse_challenge(header)


@given(st.text(max_size=1100))
def test_garbage_is_no_challenge(garbage: str) -> None:
    try:
        challenge = parse_challenge("Digest " + garbage)
    except DeviceAnswerError:
        return
    # What goes back between quotes cannot hold one.
    assert '"' not in challenge.realm + challenge.nonce + challenge.opaque


def authenticator(credential: Credential) -> Authenticator:
    return Authenticator(credential, cnonce=lambda: "0a4f113b")


def test_counts_begin_anew_with_each_nonce() -> None:
    login = authenticator(Credential(CredentialMode.HA1, "admin", HA1, REALM))
    assert login.authorize("POST", "/wsman", b"") is None
    counts = []
    for _ in range(2):
        login.challenged([AMT15])
        for _ in range(2):
            header = login.authorize("POST", "/wsman", b"") or ""
            counts.append(header.partition("nc=")[2][:8])
    assert counts == ["00000001", "00000002", "00000001", "00000002"]


def test_the_digest_is_found_among_other_schemes() -> None:
    login = authenticator(Credential(CredentialMode.HA1, "admin", HA1.upper(), REALM))
    login.challenged(["Negotiate", AMT15])
    header = login.authorize("POST", "/wsman", b"") or ""
    assert header.startswith(f'Digest username="admin", realm="{REALM}"')
    expected = digest.response(
        HA1,
        "bQali2IAAAAAAAAAn0xaWCOcxNsRcEHX",
        digest.ha2("POST", "/wsman"),
        nc="00000001",
        cnonce="0a4f113b",
        qop="auth",
    )
    assert f'response="{expected}"' in header


def test_a_refused_realm_is_remembered_but_never_answered() -> None:
    login = authenticator(Credential(CredentialMode.HA1, "admin", HA1, "Digest:ELSE"))
    with pytest.raises(AuthenticationFailed, match=f"{REALM}.*Digest:ELSE"):
        login.challenged([AMT15])
    assert login.authorize("POST", "/wsman", b"") is None
    assert login.realm == REALM


@pytest.mark.parametrize(
    "credential",
    [
        Credential(CredentialMode.HA1, "admin", "", REALM),
        Credential(CredentialMode.HA1, "admin", "P@ssw0rd", REALM),
        Credential(CredentialMode.PASSWORD, "admin", ""),
        Credential(CredentialMode.PASSWORD, 'ad"min', "x"),
        Credential(CredentialMode.PASSWORD, "ad:min", "x"),
        Credential(CredentialMode.PASSWORD, "", "x"),
        Credential(CredentialMode.PASSWORD, "a\r\nb", "x"),
    ],
)
def test_an_unusable_credential_is_refused_at_once(credential: Credential) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        authenticator(credential)
    assert "P@ssw0rd" not in str(caught.value)


def test_a_challenge_without_qop_is_answered_as_rfc_2069_did() -> None:
    login = authenticator(Credential(CredentialMode.HA1, "admin", HA1, REALM))
    login.challenged([f'Digest realm="{REALM}", nonce="n", opaque="o"'])
    header = login.authorize("POST", "/wsman", b"") or ""
    expected = digest.response(HA1, "n", digest.ha2("POST", "/wsman"))
    assert f'response="{expected}"' in header
    assert header.endswith('opaque="o"')
    assert "nc=" not in header
