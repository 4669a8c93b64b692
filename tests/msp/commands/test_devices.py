import datetime
import json
from typing import Any

import pytest

from gwmodule.errors import Code
from gwmodule.wire.messages import Result
from gwmodule.wire.notices import Lease
from tests.msp.commands.conftest import Desk
from tests.msp.conftest import IP, MAC, NOW, PC, Service, result
from tests.msp.test_cli import run

STEP = {"step": "ports", "result": "failed", "found": "none\x1b[2J", "advice": "look at the cable"}


async def test_tags_and_a_name_are_given_and_taken(service: Service) -> None:
    code, out, _ = await run(service, "tag", "55e3", "shop", "berlin", "--name", "till 3")
    assert (code, out) == (0, "shop\nberlin\n")
    code, out, _ = await run(service, "tag", "55e3", "berlin", "north", "--remove", "shop")
    assert out == "berlin\nnorth\n"
    code, out, _ = await run(service, "tag", "55e3", "--json")
    assert json.loads(out) == {
        "guid": str(PC),
        "friendlyName": "till 3",
        "tags": ["berlin", "north"],
    }
    code, out, _ = await run(service, "tag", "55e3", "--remove", "berlin", "--remove", "north")
    assert (code, out) == (0, "")
    code, _, err = await run(service, "tag", "55e3", "a,b")
    assert code == 1
    assert "tags" in err


async def test_the_audit_is_shortened_at_the_services_socket_only(
    service: Service, desk: Desk
) -> None:
    await desk.login("ada")
    code, out, err = await desk.run("audit-prune", "--before", "2020-01-01")
    assert (code, out) == (1, "")
    assert "only at the service's unix socket" in err
    await service.registry.audit("anna", "call", NOW - 86400.0)
    day = datetime.datetime.fromtimestamp(NOW - 3600.0, datetime.UTC)
    code, out, _ = await run(service, "audit-prune", "--before", day.isoformat())
    assert (code, out) == (0, "1 entries deleted\n")
    code, out, _ = await run(service, "audit-prune", "--before", f"{day:%Y-%m-%d}", "--json")
    assert (code, json.loads(out)) == (0, {"entries": 0})
    code, out, _ = await run(service, "audit", "--json")
    (entry,) = [entry for entry in json.loads(out) if entry["action"] == "audit.prune"]
    assert entry["detail"] == {"before": day.isoformat(), "entries": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "required: --before"),
        (["--before", "yesterday"], 2, "invalid date value: 'yesterday'"),
        (["--before", "9999-12-31"], 1, "before lies in the future"),
    ],
)
async def test_what_is_no_day_of_the_past_is_refused(
    service: Service, arguments: list[str], code: int, text: str
) -> None:
    found, out, err = await run(service, "audit-prune", *arguments)
    assert (found, out) == (code, "")
    assert text in err


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["TILL"], True),
        (["55e3ae13"], True),
        (["192.168.1.10"], True),
        (["02:00:00"], True),
        (["berl"], True),
        (["--tag", "berlin", "--tag", "shop"], True),
        (["--tag", "berlin", "--tag", "paris"], False),
        (["paris"], False),
        (["--gateway", "home2"], False),
        (["--state", "managed"], True),
        (["--state", "setup"], False),
    ],
)
async def test_devices_are_searched(service: Service, arguments: list[str], found: bool) -> None:
    await service.tell(Lease(MAC, IP, 60, "till-3"))
    await run(service, "tag", "55e3", "shop", "berlin")
    code, out, _ = await run(service, "devices", *arguments, "--json")
    assert code == 0
    assert bool(json.loads(out)) is found


async def test_a_checklist_is_printed_as_the_gateway_does(service: Service) -> None:
    async def explain(**_: Any) -> Result:
        return result({"ok": False, "steps": [STEP]})

    service.session.explain = explain  # type: ignore[method-assign]
    code, out, _ = await run(service, "explain", "55e3")
    lines = out.splitlines()
    assert code == 1
    assert lines[0].startswith("ok       record")
    assert "failed   ports        none\\x1b[2J" in lines
    assert "                      -> look at the cable" in lines
    assert lines[-1] == "fails at: ports"
    code, out, _ = await run(service, "explain", "55e3", "--json")
    assert (code, json.loads(out)["reachable"]) == (1, False)


async def test_a_device_in_order_has_nothing_in_the_way(service: Service) -> None:
    async def explain(**_: Any) -> Result:
        return result({"ok": True, "steps": [STEP | {"result": "note"}]})

    service.session.explain = explain  # type: ignore[method-assign]
    code, out, _ = await run(service, "explain", "55e3")
    assert (code, out.splitlines()[-1]) == (0, "nothing stands in the way")
    service.session.explain = _refused  # type: ignore[method-assign]
    code, out, _ = await run(service, "explain", "55e3")
    assert code == 1


async def _refused(**_: Any) -> Result:
    return result({"error": "locked down"}, Code.REFUSED_POLICY)
