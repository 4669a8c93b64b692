"""What stands for a device's password appears nowhere, however a call with it fails."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import sys
import traceback
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest

from gwmodule.amt import digest
from gwmodule.amt.functions import CATALOGUE, Function
from gwmodule.errors import Code, GatewayError
from gwmodule.msp.api.payloads import CallRequest, Login
from gwmodule.msp.session import Session
from gwmodule.sim.machine import Provisioning
from gwmodule.wire import control, frames
from gwmodule.wire.frames import CredentialMode, TlsMode
from gwmodule.wire.messages import Call, Credential
from tests.relay.home import ADDRESS, MAC, PASSWORD, UUID_1, Home, home

WRONG = "Sesame-0pen!"
THIEF = "Digest:THIEF"


def forms(secret: str) -> set[str]:
    """The ways in which a text may turn up elsewhere."""
    raw = secret.encode()
    return {secret, secret.upper(), raw.hex(), base64.b64encode(raw).decode(), repr(raw)[2:-1]}


def at_hand() -> str:
    """The reprs of everything that our own code on the stack, and in other tasks, has at hand."""
    frames = [frame for task in asyncio.all_tasks() for frame in task.get_stack()]
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    ours = [each for each in frames if "/gwmodule/" in each.f_code.co_filename]
    return "\n".join(repr(value) for each in ours for value in each.f_locals.values())


Failure = Callable[[Home, Session, pytest.MonkeyPatch], str]


def _run(patch: pytest.MonkeyPatch, run: Any) -> str:
    patch.setitem(CATALOGUE, "test.stub", Function("test.stub", "For the test.", run=run))
    return "test.stub"


def wrong_password(made: Home, session: Session, patch: pytest.MonkeyPatch) -> str:
    return "power.get"


def policy(made: Home, session: Session, patch: pytest.MonkeyPatch) -> str:
    made.forbidden = True
    return "power.get"


def in_setup(made: Home, session: Session, patch: pytest.MonkeyPatch) -> str:
    made.device.machine.provisioning = Provisioning.SETUP
    return "power.get"


def other_realm(made: Home, session: Session, patch: pytest.MonkeyPatch) -> str:
    made.device.machine.realm = THIEF
    return "power.get"


def dropped(made: Home, session: Session, patch: pytest.MonkeyPatch) -> str:
    server = made.device._http
    respond = server.respond

    def drop(*arguments: Any) -> Any:
        answer = respond(*arguments)
        answer.drop = answer.status != 401
        return answer

    patch.setattr(server, "respond", drop)
    return "power.get"


def garbage(made: Home, session: Session, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(made.device._http._wsman, "respond", lambda *arguments: (200, b"<garbage"))
    return "power.get"


def silence(made: Home, session: Session, patch: pytest.MonkeyPatch) -> str:
    server = made.device._http
    respond = server.respond

    def late(*arguments: Any) -> Any:
        answer = respond(*arguments)
        answer.delay = 60.0
        return answer

    patch.setattr(server, "respond", late)
    return "power.get"


def a_bug(made: Home, session: Session, patch: pytest.MonkeyPatch) -> str:
    async def broken(client: Any, arguments: Any, context: Any) -> Any:
        await client.get("CIM_Chassis")
        raise KeyError(client)

    return _run(patch, broken)


def session_lost(made: Home, session: Session, patch: pytest.MonkeyPatch) -> str:
    async def lose(client: Any, arguments: Any, context: Any) -> Any:
        await client.get("CIM_Chassis")
        session.end(Code.SESSION_LOST, "the test says so")
        return {}

    return _run(patch, lose)


def unknown_class(made: Home, session: Session, patch: pytest.MonkeyPatch) -> str:
    async def absent(client: Any, arguments: Any, context: Any) -> Any:
        await client.get("CIM_Nothing")

    return _run(patch, absent)


FAILURES: list[Failure] = [
    wrong_password,
    policy,
    in_setup,
    other_realm,
    dropped,
    garbage,
    silence,
    a_bug,
    session_lost,
    unknown_class,
]
MODES = [CredentialMode.HA1, CredentialMode.CHALLENGE, CredentialMode.PASSWORD]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("failure", FAILURES)
async def test_no_secret_is_shown(
    failure: Failure,
    mode: CredentialMode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    password = WRONG if failure is wrong_password else PASSWORD
    async with home(tmp_path) as (made, session):
        realm = made.device.machine.realm
        secret = digest.ha1("admin", realm, password)
        function = failure(made, session, monkeypatch)
        dial = made.dial

        async def watched(address: IPv4Address, port: int, mac: bytes) -> socket.socket:
            shown.append(at_hand())
            return await dial(address, port, mac)

        monkeypatch.setattr(made.calls, "_dial", watched)
        if mode is CredentialMode.PASSWORD:
            credential = Credential(mode, "admin", password)
        else:
            credential = Credential(mode, "admin", secret, realm)
        try:
            result = await session.call(
                function=function,
                arguments=b"{}",
                address=ADDRESS,
                mac=MAC,
                uuid=UUID_1,
                credential=credential,
                tls=TlsMode.OFF,
                deadline=0.5,
            )
            shown.append(f"{result!r} {json.dumps(json.loads(result.body))}")
            # The password itself is good for any realm; that is why it has to be allowed.
            good = failure is other_realm and mode is CredentialMode.PASSWORD
            assert (result.code is Code.OK) == good
        except GatewayError as exc:
            shown.append("".join(traceback.format_exception(exc)))
        shown += [repr(made), repr(session), repr(vars(made.calls))]
        shown += [json.dumps(made.counters), repr(vars(session))]
    shown.append(caplog.text)
    everything = "\n".join(shown)
    # The credential was there to be shown, and the call did fail on the gateway.
    assert f"Credential(mode={mode!r}, username='admin', realm=" in everything
    assert "event=call " in caplog.text
    for wanted in map(forms, (password, secret, digest.ha1("admin", THIEF, password))):
        assert not [form for form in wanted if form in everything]


@pytest.mark.parametrize("size", [1, 60, 255])
def test_a_call_that_is_cut_anywhere_does_not_quote_its_secret(size: int) -> None:
    secret = "Sesame-0pen!" + "x" * (size - 1)
    call = Call(
        1,
        5.0,
        ADDRESS,
        MAC,
        UUID_1,
        "power.get",
        credential=Credential(CredentialMode.PASSWORD, "admin", secret[:255]),
    )
    data = control.build_message(call)[8:]
    for end in range(len(data)):
        with pytest.raises(GatewayError) as caught:
            control.parse_message(frames.FrameType.CALL, data[:end])
        text = "".join(traceback.format_exception(caught.value))
        assert "Sesame" not in text


@pytest.mark.parametrize(
    "body",
    [
        {"function": "power.get", "credential": {"username": "admin", "password": "x" * 256}},
        {"function": "power.get", "credential": {"username": "admin", "password": 7}},
        {"function": "power.get", "credential": {"username": "a:b", "password": "Sesame-0pen!"}},
        {"function": "POWER", "credential": {"username": "a", "password": "Sesame-0pen!"}},
        {
            "function": "power.get",
            "credential": {"username": "a", "password": "Sesame-0pen!", "mode": "plain"},
        },
    ],
)
def test_a_request_that_is_refused_does_not_quote_its_password(body: dict[str, Any]) -> None:
    with pytest.raises(msgspec.MsgspecError) as caught:
        msgspec.json.decode(json.dumps(body), type=CallRequest)
    text = "".join(traceback.format_exception(caught.value))
    assert "Sesame" not in text
    assert "xxxx" not in text


def test_a_login_and_its_request_do_not_show_the_password() -> None:
    request = CallRequest("power.get", credential=Login("admin", "Sesame-0pen!", "challenge"))
    assert "admin" in repr(request)
    assert "Sesame" not in repr(request)
