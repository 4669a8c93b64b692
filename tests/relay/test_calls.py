from __future__ import annotations

import asyncio
import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from gwmodule.amt import digest
from gwmodule.amt.functions import CATALOGUE, Function
from gwmodule.errors import Code, LinkLost
from gwmodule.relay.calls import MAX_CALLS
from gwmodule.sim.profiles import PROFILES, Mischief
from gwmodule.wire.bodies import MAX_BODY
from gwmodule.wire.frames import CredentialMode, TlsMode
from gwmodule.wire.functions import EXPLAIN, STATUS
from gwmodule.wire.messages import (
    Call,
    Cancel,
    Challenge,
    Progress,
    Responses,
)
from tests.relay.home import ADDRESS, MAC, UUID_1, Home, ask, home
from tests.uplink.peers import until


async def test_a_function_runs_on_the_lan_and_its_result_comes_back(tmp_path: Path) -> None:
    async with home(tmp_path) as (made, session):
        code, body, result = await ask(session, made.device, "identity.get")
        assert code is Code.OK
        assert body["uuid"] == str(UUID_1)
        assert result.exchanges > 1
        assert made.counters["calls_ok"] == 1


async def test_an_unknown_function_names_its_neighbours(tmp_path: Path) -> None:
    async with home(tmp_path) as (made, session):
        code, body, _ = await ask(session, made.device, "power.got")
        assert code is Code.UNKNOWN_FUNCTION
        assert "power.get" in body["error"]
        assert made.dialled == 0


async def test_an_argument_out_of_range_never_reaches_the_device(tmp_path: Path) -> None:
    async with home(tmp_path) as (made, session):
        code, body, _ = await ask(session, made.device, "power.set", arguments={"state": "explode"})
        assert code is Code.BAD_ARGUMENT
        assert "explode" in body["error"]
        code, body, _ = await ask(session, made.device, "power.get", arguments=[1])
        assert code is Code.BAD_ARGUMENT
        assert made.dialled == 0


async def test_a_wrong_password_is_said_once_and_kept_out_of_everything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with home(tmp_path) as (made, session):
        secret = digest.ha1("admin", made.device.machine.realm, "wrong")
        code, body, _ = await ask(session, made.device, "power.get", password="wrong")
        assert code is Code.AUTHENTICATION
        assert secret not in json.dumps(body)
        assert secret not in caplog.text


async def test_another_pc_at_the_address_is_refused_before_power(tmp_path: Path) -> None:
    other = UUID("00112233-4455-6677-8899-aabbccddeeff")
    async with home(tmp_path) as (made, session):
        code, body, _ = await ask(
            session, made.device, "power.set", uuid=other, arguments={"state": "reset"}
        )
        assert code is Code.IDENTITY_MISMATCH
        assert str(UUID_1) in body["error"]
        assert str(other) in body["error"]


async def test_what_the_policy_forbids_is_refused_by_name(tmp_path: Path) -> None:
    async with home(tmp_path) as (made, session):
        made.forbidden = True
        code, body, _ = await ask(session, made.device, "power.get")
        assert code is Code.REFUSED_POLICY
        assert body["rule"] == "other-mac"


def stub(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    function = Function("test.stub", "For the test.", run=run)
    monkeypatch.setitem(CATALOGUE, "test.stub", function)


async def test_a_call_ends_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(client: Any, arguments: Any, context: Any) -> Any:
        await asyncio.sleep(60)

    stub(monkeypatch, never)
    async with home(tmp_path) as (made, session):
        code, body, _ = await ask(session, made.device, "test.stub", deadline=0.2)
        assert code is Code.DEADLINE
        assert "0.2 s" in body["error"]


async def test_a_cancelled_call_stops_on_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = asyncio.Event()

    async def never(client: Any, arguments: Any, context: Any) -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    stub(monkeypatch, never)
    async with home(tmp_path) as (made, session):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await ask(session, made.device, "test.stub")
        await asyncio.wait_for(stopped.wait(), 5)
        await until(lambda: made.counters["calls_cancelled"] == 1)


async def test_a_cancel_right_behind_its_call_frees_the_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(client: Any, arguments: Any, context: Any) -> Any:
        await asyncio.sleep(60)

    stub(monkeypatch, never)
    async with home(tmp_path) as (made, session):
        for number in (1001, 1002, 1003):
            session.mux.send_message(
                Call(number, 5.0, ADDRESS, MAC, UUID_1, "test.stub", tls=TlsMode.OFF)
            )
            session.mux.send_message(Cancel(number))
        session.flush()
        await until(lambda: made.counters["calls_cancelled"] == 3)
        assert len(made.calls) == 0


async def test_one_call_at_a_time_for_each_device_and_a_bound_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most = 0, 0

    async def count(client: Any, arguments: Any, context: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        return {}

    stub(monkeypatch, count)
    async with home(tmp_path) as (made, session):
        calls = [ask(session, made.device, "test.stub") for _ in range(MAX_CALLS + 10)]
        codes = [code for code, _, _ in await asyncio.gather(*calls)]
        assert most == 1
        assert codes.count(Code.OK) == MAX_CALLS
        assert codes.count(Code.LIMIT) == 10
        assert len(made.calls) == 0


async def test_a_call_under_a_number_that_runs_is_neither_executed_nor_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, finish = 0, asyncio.Event()

    async def slow(client: Any, arguments: Any, context: Any) -> Any:
        nonlocal started
        started += 1
        await finish.wait()
        return {}

    stub(monkeypatch, slow)
    async with home(tmp_path) as (made, session):
        for _ in range(2):
            session.mux.send_message(
                Call(1001, 5.0, ADDRESS, MAC, UUID_1, "test.stub", tls=TlsMode.OFF)
            )
        session.flush()
        await until(lambda: made.counters["calls_doubled"] == 1)
        assert len(made.calls) == 1
        finish.set()
        await until(lambda: not len(made.calls))
        assert (started, made.counters["calls_ok"], made.counters["calls_limit"]) == (1, 1, 0)


async def test_a_bug_in_a_function_is_an_answer_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(client: Any, arguments: Any, context: Any) -> Any:
        raise KeyError("a bug")

    stub(monkeypatch, broken)
    async with home(tmp_path) as (made, session):
        code, body, _ = await ask(session, made.device, "test.stub")
        assert code is Code.INTERNAL
        assert "see its log" in body["error"]
        code, _, _ = await ask(session, made.device, "power.get")
        assert code is Code.OK


async def test_progress_and_a_large_result_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = ["r" * 100] * 5000
    heard: list[Progress] = []

    async def long(client: Any, arguments: Any, context: Any) -> Any:
        context.progress(1, 2, "half")
        return {"records": records}

    stub(monkeypatch, long)
    async with home(tmp_path) as (made, session):
        code, body, _ = await ask(session, made.device, "test.stub", on_progress=heard.append)
        assert code is Code.OK
        assert body["records"] == records
        assert [(p.done, p.total, p.step) for p in heard] == [(1, 2, "half")]


async def test_a_result_that_no_msp_takes_is_an_answer_and_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def huge(client: Any, arguments: Any, context: Any) -> Any:
        return {"text": "x" * MAX_BODY}

    stub(monkeypatch, huge)
    async with home(tmp_path) as (made, session):
        code, body, result = await ask(session, made.device, "test.stub")
        assert code is Code.LIMIT
        assert f"maximum {MAX_BODY}" in body["error"]
        assert not result.detached


# ---- mode challenge ---------------------------------------------------------------------------

CHALLENGE = CredentialMode.CHALLENGE


def heard(monkeypatch: pytest.MonkeyPatch, made: Home) -> list[Call | Responses]:
    """Everything about credentials that reaches the gateway from now on."""
    messages: list[Call | Responses] = []
    start, responded = made.calls.start, made.calls.responded

    def on_call(session: Any, call: Call) -> None:
        messages.append(call)
        start(session, call)

    def on_responses(session: Any, responses: Responses) -> None:
        messages.append(responses)
        responded(session, responses)

    monkeypatch.setattr(made.calls, "start", on_call)
    monkeypatch.setattr(made.calls, "responded", on_responses)
    return messages


async def test_in_mode_challenge_one_answer_serves_a_whole_inventory_and_no_secret_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home(tmp_path) as (made, session):
        messages = heard(monkeypatch, made)
        code, _, result = await ask(session, made.device, "inventory.get", mode=CHALLENGE)
        assert code is Code.OK
        assert result.exchanges > 10
        call, responses = messages
        assert isinstance(call, Call)
        assert (call.credential.mode, call.credential.secret) == (CHALLENGE, "")
        assert isinstance(responses, Responses)
        assert len(responses.responses) == digest.MAX_COUNT


async def test_in_mode_challenge_nonces_of_single_use_are_asked_about_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = dataclasses.replace(PROFILES["flaky"], mischief=Mischief(single_use=True))
    monkeypatch.setitem(PROFILES, "single-use", calm)
    async with home(tmp_path, "single-use") as (made, session):
        messages = heard(monkeypatch, made)
        code, _, _ = await ask(session, made.device, "identity.get", mode=CHALLENGE)
        assert code is Code.OK
        assert len(messages) > 4


@pytest.mark.parametrize("function", ["power.get", "power.set"])
async def test_in_mode_challenge_a_wrong_password_is_said_and_tried_once(
    tmp_path: Path, function: str
) -> None:
    async with home(tmp_path) as (made, session):
        arguments = {"state": "off"} if function == "power.set" else {}
        code, _, result = await ask(
            session,
            made.device,
            function,
            password="wrong",
            mode=CHALLENGE,
            arguments=arguments,
        )
        assert code is Code.AUTHENTICATION
        assert result.exchanges == 2
        assert made.device.machine.power_requests == 0


async def test_in_mode_challenge_another_realm_is_not_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home(tmp_path) as (made, session):
        messages = heard(monkeypatch, made)
        code, body, _ = await ask(
            session, made.device, "power.get", mode=CHALLENGE, realm="Digest:OLD"
        )
        assert code is Code.AUTHENTICATION
        assert "Digest:OLD" in body["error"]
        assert made.device.machine.realm in body["error"]
        assert len(messages) == 1


async def test_the_msp_refuses_what_a_hostile_gateway_asks_and_the_call_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home(tmp_path) as (made, session):
        honest = made.calls._ask

        async def hostile(session: Any, challenge: Challenge) -> Responses:
            challenge.uri = "/RedirectionService"
            return await honest(session, challenge)

        monkeypatch.setattr(made.calls, "_ask", hostile)
        code, body, _ = await ask(session, made.device, "power.get", mode=CHALLENGE)
        assert code is Code.AUTHENTICATION
        assert "/RedirectionService" in body["error"]
        assert body["error"].startswith("Get ")


async def test_the_msp_answers_no_nonce_for_a_call_of_another_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def curious(client: Any, arguments: Any, context: Any) -> Any:
        ((gateway_session, number),) = made.calls._running
        asked = Challenge(number, made.device.machine.realm, "n", "/wsman", 1, 1)
        return {"reason": (await made.calls._ask(gateway_session, asked)).reason}

    stub(monkeypatch, curious)
    async with home(tmp_path) as (made, session):
        code, body, _ = await ask(session, made.device, "test.stub")
        assert (code, body["reason"]) == (Code.OK, "this call is not in mode challenge")


async def test_an_msp_that_never_answers_a_nonce_costs_the_call_its_deadline_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home(tmp_path) as (made, session):
        monkeypatch.setattr(session, "_on_challenge", lambda asked: None)
        code, _, _ = await ask(session, made.device, "power.get", mode=CHALLENGE, deadline=0.3)
        assert code is Code.DEADLINE
        assert len(made.calls) == 0


async def test_a_call_that_waits_for_an_answer_ends_with_its_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home(tmp_path) as (made, session):
        seen: list[Challenge] = []
        monkeypatch.setattr(session, "_on_challenge", seen.append)
        waiting = asyncio.ensure_future(  # noqa: TID251
            ask(session, made.device, "power.get", mode=CHALLENGE)
        )
        await until(lambda: seen)
        session.end(Code.SESSION_LOST, "the test says so")
        with pytest.raises(LinkLost, match="outcome unknown"):
            await waiting
        await until(lambda: len(made.calls) == 0)
        assert made.counters["results_dropped"] == 1


# ---- AMT 1 and 2, without WS-Man --------------------------------------------------------------


async def test_the_end_of_another_session_ends_no_waiting_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home(tmp_path) as (made, session):
        answer, seen = session._on_challenge, list[Challenge]()
        monkeypatch.setattr(session, "_on_challenge", seen.append)
        waiting = asyncio.ensure_future(  # noqa: TID251
            ask(session, made.device, "power.get", mode=CHALLENGE)
        )
        await until(lambda: seen)
        made.calls.session_over(session)
        monkeypatch.setattr(session, "_on_challenge", answer)
        for challenge in seen:
            answer(challenge)
        code, _, _ = await waiting
        assert code is Code.OK


async def test_two_power_requests_to_a_device_keep_the_distance_that_amt_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: list[float] = []

    async def power(client: Any, arguments: Any, context: Any) -> Any:
        await context.power_turn()
        at.append(asyncio.get_running_loop().time())
        return {}

    stub(monkeypatch, power)
    monkeypatch.setattr("gwmodule.relay.calls.POWER_DISTANCE", 0.2)
    async with home(tmp_path) as (made, session):
        for _ in range(3):
            await ask(session, made.device, "test.stub")
    assert min(later - earlier for earlier, later in pairwise(at)) >= 0.199


@pytest.mark.parametrize("mode", [CredentialMode.HA1, CHALLENGE])
async def test_power_of_a_pc_without_wsman_is_read_and_changed(
    tmp_path: Path, mode: CredentialMode
) -> None:
    async with home(tmp_path, "amt2") as (made, session):
        code, body, _ = await ask(session, made.device, "power.get", mode=mode)
        assert (code, body["power_state_name"]) == (Code.OK, "on")
        code, body, _ = await ask(
            session, made.device, "power.set", mode=mode, arguments={"state": "off"}
        )
        assert (code, body["identified_by"]) == (Code.OK, "mac")
        assert made.device.machine.power_requests == 1
        code, body, _ = await ask(session, made.device, "power.get", mode=mode)
        assert (code, body["power_state_name"]) == (Code.OK, "off")


async def test_what_needs_wsman_says_so_on_a_pc_without_it(tmp_path: Path) -> None:
    async with home(tmp_path, "amt2") as (made, session):
        for function in ("inventory.get", "eventlog.get"):
            code, body, _ = await ask(session, made.device, function)
            assert (code, body["kind"]) == (Code.NOT_SUPPORTED, "WsmanAbsent")
            assert "no WS-Man" in body["error"]


async def test_with_wsman_the_uuid_identifies_the_pc(tmp_path: Path) -> None:
    async with home(tmp_path) as (made, session):
        code, body, _ = await ask(session, made.device, "power.set", arguments={"state": "off"})
        assert (code, body["identified_by"]) == (Code.OK, "uuid")


async def test_a_wsman_that_disappears_in_a_call_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = CATALOGUE["power.set"]

    async def half(client: Any, arguments: Any, context: Any) -> Any:
        await client.get("CIM_AssociatedPowerManagementService")
        made.device.machine.profile = PROFILES["amt2"]
        return await function.run(client, arguments, context)

    monkeypatch.setitem(CATALOGUE, "power.set", dataclasses.replace(function, run=half))
    async with home(tmp_path) as (made, session):
        code, body, _ = await ask(session, made.device, "power.set", arguments={"state": "off"})
        assert (code, body["kind"]) == (Code.NOT_SUPPORTED, "WsmanAbsent")
        assert made.device.machine.power_requests == 0


async def test_the_gateways_own_functions_need_no_login_and_no_device(tmp_path: Path) -> None:
    heard: list[Call] = []

    async def answer(call: Call) -> dict[str, Any]:
        heard.append(call)
        return {"asked": call.function}

    async with home(tmp_path) as (made, session):
        made.own |= {EXPLAIN: answer, STATUS: answer}
        explained = await session.explain(
            address=ADDRESS, mac=MAC, uuid=UUID_1, pin=b"\x11" * 32, deadline=5.0
        )
        told = await session.status(deadline=5.0)
        assert made.dialled == 0
    assert json.loads(explained.body) == {"asked": "gateway.explain"}
    assert json.loads(told.body) == {"asked": "gateway.status"}
    assert (heard[0].address, heard[0].mac, heard[0].pin) == (ADDRESS, MAC, b"\x11" * 32)
    assert {call.credential.mode for call in heard} == {CredentialMode.NONE}


async def test_a_call_that_runs_when_the_msp_sends_us_on_is_answered(tmp_path: Path) -> None:
    finish = asyncio.Event()

    async def slow(call: Call) -> dict[str, Any]:
        await finish.wait()
        return {"done": True}

    async with home(tmp_path) as (made, session):
        made.own |= {STATUS: slow}
        asked = asyncio.ensure_future(session.status(deadline=10.0))  # noqa: TID251
        await until(lambda: len(made.calls) == 1)
        session.send_away("maintenance", "", 30)
        await until(lambda: made.ups == [True, True])
        finish.set()
        assert json.loads((await asked).body) == {"done": True}
        await until(lambda: session.ended)


async def test_an_own_function_has_its_deadline_and_does_not_wait_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any) -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def at_once(call: Call) -> dict[str, Any]:
        return {"calls": made.calls.on_device(call.mac)}

    stub(monkeypatch, never)
    async with home(tmp_path) as (made, session):
        made.own |= {EXPLAIN: at_once, STATUS: never}
        busy = asyncio.ensure_future(ask(session, made.device, "test.stub"))  # noqa: TID251
        await until(lambda: made.calls.on_device(MAC) == 1)
        explained = await session.explain(address=ADDRESS, mac=MAC, uuid=UUID_1)
        assert json.loads(explained.body) == {"calls": 1}
        assert (await session.status(deadline=0.1)).code is Code.DEADLINE
        assert made.calls.end_all("locked down at the gateway") == 1
        code, body, _ = await busy
    assert (code, body["error"]) == (Code.CANCELLED, "locked down at the gateway")
    assert made.calls.on_device(MAC) == 0
