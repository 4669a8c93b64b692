import itertools
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.amt import digest
from gwmodule.sim.http import MAX_NONCES, NONCE_LIFETIME, HttpServer, Response
from gwmodule.sim.machine import Machine, Provisioning
from gwmodule.sim.profiles import PROFILES
from tests.sim.test_wsman import PC, get

REQUEST = get("AMT_GeneralSettings")


def server(
    provisioning: Provisioning = Provisioning.MANAGED, uuid: UUID = PC
) -> tuple[HttpServer, Machine]:
    pc = Machine(uuid, "P@ssw0rd", now=0.0, provisioning=provisioning)
    numbers = itertools.count()
    return HttpServer(pc, lambda: f"nonce{next(numbers)}"), pc


def header(response: Response, name: str) -> str:
    return dict(response.headers).get(name, "")


def ask(http: HttpServer, authorization: str = "", now: float = 0.0) -> Response:
    return http.respond("POST", "/wsman", authorization, REQUEST, now)


def challenge(response: Response) -> digest.Challenge:
    return digest.parse_challenge(header(response, "WWW-Authenticate"))


def login(
    given_: digest.Challenge,
    *,
    password: str = "P@ssw0rd",
    username: str = "admin",
    nonce_count: int = 1,
    uri: str = "/wsman",
) -> str:
    return digest.authorization(
        given_,
        username,
        digest.ha1(username, given_.realm, password),
        method="POST",
        uri=uri,
        nonce_count=nonce_count,
        cnonce="cafe",
    )


def test_the_first_answer_is_401_and_ends_the_connection() -> None:
    http, pc = server()
    response = ask(http)
    assert response.status == 401
    assert response.close
    assert not response.chunked
    assert header(response, "Connection") == "close"
    assert header(response, "Content-Type") == "text/html"
    assert header(response, "Server") == "Intel(R) Active Management Technology 12.0.67.1579"
    assert int(header(response, "Content-Length")) == len(response.body)
    assert challenge(response) == digest.Challenge(pc.realm, "nonce0", ("auth",))


def test_the_right_password_is_answered_in_chunks() -> None:
    http, _ = server()
    response = ask(http, login(challenge(ask(http))))
    assert response.status == 200
    assert response.chunked
    assert header(response, "Content-Type") == "application/soap+xml; charset=UTF-8"
    assert header(response, "X-Frame-Options") == "DENY"
    assert b"AMT_GeneralSettings" in response.body


@pytest.mark.parametrize("quoted", [False, True])
def test_clients_may_quote_what_they_like(quoted: bool) -> None:
    http, _ = server()
    value = login(challenge(ask(http)))
    if quoted:
        value = value.replace("qop=auth", 'qop="auth"').replace("nc=00000001", 'nc="00000001"')
    assert ask(http, value).status == 200


def test_a_nonce_serves_rising_counts_only() -> None:
    http, _ = server()
    given_ = challenge(ask(http))
    assert ask(http, login(given_, nonce_count=1)).status == 200
    assert ask(http, login(given_, nonce_count=5)).status == 200
    replayed = ask(http, login(given_, nonce_count=5))
    assert replayed.status == 401
    assert challenge(replayed).stale
    assert ask(http, login(challenge(replayed))).status == 200


def test_an_old_or_forgotten_nonce_is_stale() -> None:
    http, _ = server()
    given_ = challenge(ask(http))
    assert challenge(ask(http, login(given_), now=NONCE_LIFETIME)).stale
    for _ in range(MAX_NONCES):
        ask(http)
    assert challenge(ask(http, login(given_), now=1.0)).stale


def test_a_wrong_login_is_not_stale() -> None:
    http, _ = server()
    given_ = challenge(ask(http))
    for authorization in (
        login(given_, password="wrong"),
        login(given_, username="root"),
        login(given_, uri="/other"),
        login(given_).replace("qop=auth, ", ""),
        login(given_).replace("nc=00000001", "nc=1"),
        login(given_).replace('cnonce="cafe"', 'cnonce=""'),
        "Basic YWRtaW46UEBzc3cwcmQ=",
        "Digest " + "x" * 3000,
    ):
        refused = ask(http, authorization)
        assert refused.status == 401
        assert not challenge(refused).stale


@pytest.mark.parametrize("length", [0, 1, 31])
def test_a_response_that_is_empty_or_short_is_refused(length: int) -> None:
    http, _ = server()
    value = login(challenge(ask(http)))
    start = value.index('response="') + len('response="')
    assert ask(http, value[: start + length] + value[start + 32 :]).status == 401


def test_a_device_in_setup_lets_nobody_in_until_somebody_activates_it() -> None:
    http, pc = server(Provisioning.SETUP)
    given_ = challenge(ask(http))
    assert ask(http, login(given_)).status == 401
    pc.activate()
    assert ask(http, login(given_)).status == 200


def test_other_paths_and_methods_do_not_exist() -> None:
    http, pc = server()
    secret = digest.ha1("admin", pc.realm, "P@ssw0rd")
    for method, target, status in (("GET", "/wsman", 405), ("POST", "/x", 404)):
        given_ = challenge(http.respond(method, target, "", b"", 0.0))
        value = digest.authorization(
            given_, "admin", secret, method=method, uri=target, nonce_count=1, cnonce="c"
        )
        assert http.respond(method, target, value, b"", 0.0).status == status


def test_a_fault_is_http_400() -> None:
    http, _ = server()
    value = login(challenge(ask(http)))
    response = http.respond("POST", "/wsman", value, get("CIM_Nonsense"), 0.0)
    assert response.status == 400
    assert b"DestinationUnreachable" in response.body


def test_what_is_no_request_is_refused_and_ends_the_connection() -> None:
    http, _ = server()
    assert http.refuse(413).close


@given(st.text(max_size=300))
def test_no_authorization_raises(value: str) -> None:
    http, _ = server()
    assert ask(http, value).status == 401
    assert ask(http, f"Digest {value}").status == 401


def test_firmware_before_wsman_answers_eoi_only() -> None:
    pc = Machine(PC, "P@ssw0rd", now=0.0, profile=PROFILES["amt2"])
    http = HttpServer(pc, lambda: "nonce")
    secret = digest.ha1("admin", pc.realm, "P@ssw0rd")
    for method, target, status in (
        ("POST", "/wsman", 404),
        ("POST", "/RemoteControlService", 500),
        ("GET", "/RemoteControlService", 405),
    ):
        given_ = challenge(http.respond(method, target, "", b"", 0.0))
        value = digest.authorization(
            given_, "admin", secret, method=method, uri=target, nonce_count=1, cnonce="c"
        )
        assert http.respond(method, target, value, b"", 0.0).status == status


def test_eoi_can_be_switched_off() -> None:
    pc = Machine(PC, "P@ssw0rd", now=0.0, profile=PROFILES["amt6"])
    pc.settings["AMT_GeneralSettings"] = {"WsmanOnlyMode": True}
    http = HttpServer(pc, lambda: "nonce")
    target = "/RemoteControlService"
    given_ = challenge(http.respond("POST", target, "", b"", 0.0))
    assert http.respond("POST", target, login(given_, uri=target), b"", 0.0).status == 404


def test_failed_logins_are_counted_in_the_event_log() -> None:
    http, pc = server()
    for _ in range(3):
        ask(http, login(challenge(ask(http)), password="wrong"))
    assert pc.failed_logins == 3
    assert len(pc.events) == 3
    ask(http, login(challenge(ask(http))))
    assert pc.failed_logins == 0
