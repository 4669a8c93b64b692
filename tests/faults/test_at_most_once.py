"""Whatever breaks, and when: the device does at most once what a technician asked for once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gwmodule.amt.functions import CATALOGUE
from gwmodule.errors import Code, LinkLost
from gwmodule.msp.session import Session
from gwmodule.wire.frames import CredentialMode
from tests.faults.line import Line
from tests.relay.home import Home, ask, home_of
from tests.uplink.peers import peers, until

# power.set asks three times: 401, GetUuid, RequestPowerStateChange. The last one does it.
REQUESTS = 3


@contextlib.asynccontextmanager
async def broken_line(directory: Path) -> AsyncIterator[tuple[Home, Session, Line]]:
    async with peers(directory) as msp, Line(msp.port).carrying() as line:
        config = msp.config()
        way = dataclasses.replace(config.msp, address=(f"127.0.0.1:{line.port}",))
        async with home_of(msp, dataclasses.replace(config, msp=way)) as made:
            session = msp.sessions.locate("gw-1")
            assert session is not None
            yield made, session, line


Step = Callable[[Home, Session, Line, pytest.MonkeyPatch], None]


def before_the_call_arrives(
    made: Home, session: Session, line: Line, patch: pytest.MonkeyPatch
) -> None:
    line.cut_after("down", 0)


def with_half_a_call_there(
    made: Home, session: Session, line: Line, patch: pytest.MonkeyPatch
) -> None:
    line.cut_after("down", 40)


def when_the_call_has_arrived(
    made: Home, session: Session, line: Line, patch: pytest.MonkeyPatch
) -> None:
    start = made.calls.start

    def started(*arguments: Any) -> None:
        start(*arguments)
        line.cut()

    patch.setattr(made.calls, "start", started)


def at_request(number: int, act: Callable[[Line], None]) -> Step:
    """Act when the device has done what its HTTP request `number` asks, before it answers."""

    def arrange(made: Home, session: Session, line: Line, patch: pytest.MonkeyPatch) -> None:
        server = made.device._http
        respond, seen = server.respond, 0

        def responded(*arguments: Any) -> Any:
            nonlocal seen
            seen += 1
            answer = respond(*arguments)
            if seen == number:
                act(line)
            return answer

        patch.setattr(server, "respond", responded)

    return arrange


STEPS: dict[str, Step] = {
    "before the CALL arrives": before_the_call_arrives,
    "half a CALL is there": with_half_a_call_there,
    "the CALL is there": when_the_call_has_arrived,
    **{f"SOAP exchange {n}": at_request(n, lambda line: line.cut()) for n in range(1, REQUESTS)},
    "after the action, before the RESULT": at_request(REQUESTS, lambda line: line.cut()),
    "half a RESULT is sent": at_request(REQUESTS, lambda line: line.cut_after("up", 30)),
    "most of a RESULT is sent": at_request(REQUESTS, lambda line: line.cut_after("up", 100)),
}


async def switch_off(session: Session, made: Home, mode: CredentialMode) -> Code:
    code, _, _ = await ask(session, made.device, "power.set", arguments={"state": "off"}, mode=mode)
    return code


@pytest.mark.parametrize("mode", [CredentialMode.HA1, CredentialMode.CHALLENGE])
@pytest.mark.parametrize("step", STEPS)
async def test_a_session_that_resumes_brings_the_one_result_of_the_one_action(
    step: str, mode: CredentialMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with broken_line(tmp_path) as (made, session, line):
        STEPS[step](made, session, line, monkeypatch)
        assert await switch_off(session, made, mode) is Code.OK
        assert line.cuts == 1
        assert made.device.machine.power_requests == 1


@pytest.mark.parametrize("mode", [CredentialMode.HA1, CredentialMode.CHALLENGE])
@pytest.mark.parametrize("step", STEPS)
async def test_a_session_that_is_lost_leaves_the_outcome_unknown_and_nothing_is_repeated(
    step: str, mode: CredentialMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with broken_line(tmp_path) as (made, session, line):
        cut = line.cut

        def lose() -> None:
            cut()
            session.end(Code.SESSION_LOST, "the MSP lost it")

        monkeypatch.setattr(line, "cut", lose)
        STEPS[step](made, session, line, monkeypatch)
        with pytest.raises(LinkLost, match="outcome unknown: the MSP lost it"):
            await switch_off(session, made, mode)
        # The gateway comes back with a fresh session, and what ran there comes to its end.
        await until(lambda: made.ups[-1] and len(made.ups) > 1 and len(made.calls) == 0)
        await asyncio.sleep(0.05)
        assert made.device.machine.power_requests <= 1
        if step in ("after the action, before the RESULT", "half a RESULT is sent"):
            assert made.device.machine.power_requests == 1
        if step in ("before the CALL arrives", "half a CALL is there"):
            assert made.device.machine.power_requests == 0


async def test_a_device_that_drops_the_connection_after_the_action_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with broken_line(tmp_path) as (made, session, _):
        server = made.device._http
        respond = server.respond

        def dropped(*arguments: Any) -> Any:
            answer = respond(*arguments)
            answer.drop = made.device.machine.power_requests > 0
            return answer

        monkeypatch.setattr(server, "respond", dropped)
        code = await switch_off(session, made, CredentialMode.HA1)
        assert code is Code.UNREACHABLE
        assert made.device.machine.power_requests == 1


def test_everything_that_changes_state_says_so() -> None:
    changing = {name for name, function in CATALOGUE.items() if function.changes_state}
    reading = {name for name in CATALOGUE if name.endswith((".get", ".list", ".read"))}
    assert {"power.set", "boot.once", "nvm.write", "redirection.set"} <= changing
    assert not changing & reading
