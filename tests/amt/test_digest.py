from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.amt import digest
from gwmodule.amt.digest import (
    ANSWERED_URIS,
    MAX_COUNT,
    MAX_RESPONSES,
    Authenticator,
    Challenge,
    Responder,
    Wanted,
    parse_challenge,
)
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
        ('Digest realm="r", nonce="n\xe9"', r"not ASCII: 'Digest.*xe9"),
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


def test_a_realm_that_changes_under_a_login_is_not_answered_with_what_answered_the_first() -> None:
    login = authenticator(Credential(CredentialMode.HA1, "admin", HA1, REALM))
    login.challenged([AMT15])
    assert login.authorize("POST", "/wsman", b"") is not None
    with pytest.raises(AuthenticationFailed, match=f"Digest:ELSE.*{REALM}"):
        login.challenged([AMT15.replace(REALM, "Digest:ELSE")])
    assert login.authorize("POST", "/wsman", b"") is None


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
        Credential(CredentialMode.PASSWORD, "j\xf6rg", "x"),
        Credential(CredentialMode.PASSWORD, "a\\b", "x"),
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


# ---- mode challenge ---------------------------------------------------------------------------

KEPT = Credential(CredentialMode.CHALLENGE, "admin", HA1, REALM)
SENT = Credential(CredentialMode.CHALLENGE, "admin", "", REALM)
NONCE = "bQali2IAAAAAAAAAn0xaWCOcxNsRcEHX"


def responder() -> Responder:
    return Responder(KEPT, cnonce=lambda: "0a4f113b")


def asked(login: Authenticator, uri: str = "/wsman") -> Wanted:
    wanted = login.wanted(uri)
    assert wanted is not None
    return wanted


def test_responses_from_elsewhere_are_those_that_the_secret_would_have_made() -> None:
    with_secret = authenticator(Credential(CredentialMode.HA1, "admin", HA1, REALM))
    without, elsewhere = authenticator(SENT), responder()
    for login in (with_secret, without):
        assert login.wanted("/wsman") is None
        login.challenged([AMT15])
    for _ in range(MAX_COUNT + 3):
        if (wanted := without.wanted("/wsman")) is not None:
            without.take(wanted, *elsewhere.respond(wanted))
        expected = with_secret.authorize("POST", "/wsman", b"")
        assert without.authorize("POST", "/wsman", b"") == expected is not None
    assert with_secret.wanted("/wsman") is None


def test_a_new_uri_or_nonce_is_asked_about_and_counts_go_on() -> None:
    login = authenticator(SENT)
    login.challenged([AMT15])
    wanted = asked(login)
    assert wanted == Wanted(REALM, NONCE, "/wsman", 1, MAX_COUNT)
    login.take(wanted, *responder().respond(wanted))
    assert login.authorize("POST", "/RemoteControlService", b"") is None
    login.authorize("POST", "/wsman", b"")
    assert asked(login, "/RemoteControlService").nonce_count == 2
    login.challenged([AMT15.replace("bQ", "cQ")])
    assert login.authorize("POST", "/wsman", b"") is None
    assert asked(login)[1:4] == ("cQ" + NONCE[2:], "/wsman", 1)


def test_nonces_for_one_request_are_asked_about_few_at_a_time() -> None:
    login, elsewhere = authenticator(SENT), responder()
    for number in range(390):
        login.challenged([AMT15.replace("bQ", f"{number:03}")])
        wanted = asked(login)
        assert wanted.batch == (2 if number else MAX_COUNT)
        login.take(wanted, *elsewhere.respond(wanted))
        login.authorize("POST", "/wsman", b"")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"realm": "Digest:ELSE"}, f"Digest:ELSE.*{REALM}"),
        ({"uri": "/RedirectionService"}, "/RedirectionService"),
        ({"uri": ""}, "no response"),
        ({"nonce": ""}, "nonce"),
        ({"nonce": "a:00000001"}, "no colon"),
        ({"nonce": "n" * 256}, "1 to 255"),
        ({"batch": 0}, "0 responses"),
        ({"batch": MAX_COUNT + 1}, "at most 64"),
        ({"nonce_count": 0}, "count 0"),
        ({"nonce_count": 0xFFFFFFFF}, "count 4294967295"),
    ],
)
def test_a_question_that_no_device_would_ask_is_refused(
    change: dict[str, Any], message: str
) -> None:
    wanted = Wanted(REALM, NONCE, "/wsman", 1, 2)._replace(**change)
    with pytest.raises(AuthenticationFailed, match=message) as caught:
        responder().respond(wanted)
    assert HA1 not in str(caught.value)


def test_one_call_gets_a_bounded_number_of_responses() -> None:
    elsewhere = responder()
    for _ in range(MAX_RESPONSES // MAX_COUNT):
        elsewhere.respond(Wanted(REALM, NONCE, "/wsman", 1, MAX_COUNT))
    with pytest.raises(AuthenticationFailed, match="more than 1024"):
        elsewhere.respond(Wanted(REALM, NONCE, "/wsman", 1, 1))


@pytest.mark.parametrize("qop", ['qop="auth-int"', "opaque=o"])
def test_without_qop_auth_there_is_nothing_to_ask_for(qop: str) -> None:
    login = authenticator(SENT)
    with pytest.raises(AuthenticationFailed, match="needs digest qop auth"):
        login.challenged([f'Digest realm="{REALM}", nonce="n", {qop}'])


@pytest.mark.parametrize("nonce", ["n" * 256, "a:b"])
def test_a_nonce_that_the_msp_would_refuse_is_not_sent_to_it(nonce: str) -> None:
    login = authenticator(SENT)
    with pytest.raises(AuthenticationFailed, match="nonce of 1 to 255"):
        login.challenged([f'Digest realm="{REALM}", nonce="{nonce}", qop="auth"'])


def test_another_realm_is_not_even_asked_about() -> None:
    login = authenticator(Credential(CredentialMode.CHALLENGE, "admin", "", "Digest:ELSE"))
    with pytest.raises(AuthenticationFailed, match="nothing was answered"):
        login.challenged([AMT15])


@pytest.mark.parametrize(
    ("cnonce", "responses", "message"),
    [
        ("c", (), "0 responses"),
        ("c", (bytes(16),) * (MAX_COUNT + 1), "expected 1 to 64"),
        ("c", (bytes(15),), "1 responses"),
        ("", (bytes(16),), "cnonce"),
        ('c", x="', (bytes(16),), "cnonce"),
    ],
)
def test_an_answer_that_is_none_is_refused(
    cnonce: str, responses: tuple[bytes, ...], message: str
) -> None:
    login = authenticator(SENT)
    login.challenged([AMT15])
    with pytest.raises(AuthenticationFailed, match=message):
        login.take(asked(login), cnonce, responses)


@given(
    st.builds(
        Wanted,
        st.sampled_from([REALM]) | st.text(),
        st.text(),
        st.sampled_from(["/wsman", "/RedirectionService"]) | st.text(),
        st.integers(0, 2**32 - 1),
        st.integers(0, 255),
    )
)
def test_any_question_is_answered_or_refused(wanted: Wanted) -> None:
    try:
        _, responses = responder().respond(wanted)
    except AuthenticationFailed:
        return
    assert (wanted.realm, len(responses)) == (REALM, wanted.batch)
    assert wanted.uri in ANSWERED_URIS
