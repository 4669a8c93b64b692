import json

from gwmodule.errors import Code
from tests.msp.conftest import Service, answer
from tests.msp.test_cli import run


async def test_a_revoked_gateway_is_let_in_no_more(service: Service) -> None:
    assert await service.registry.is_gateway_allowed("home1", "aa")
    code, out, err = await run(service, "gateway", "revoke", "home1")
    assert (code, out, err) == (0, "", "")
    assert not await service.registry.is_gateway_allowed("home1", "aa")
    code, out, _ = await run(service, "gateway", "list", "--json")
    assert '"revoked": true' in out
    code, _, err = await run(service, "gateway", "revoke", "home9")
    assert (code, err) == (1, "gwmodule-msp: no gateway 'home9'\n")


async def test_replace_is_for_a_known_name(service: Service, tmp_path: object) -> None:
    out = f"{tmp_path}/bundle"
    code, _, err = await run(service, "gateway", "add", "home1", "--out", out, "--msp", "x:1")
    assert (code, "home1" in err) == (1, True)
    code, _, err = await run(service, "gateway", "replace", "home1", "--out", out, "--msp", "x:1")
    assert code == 0, err
    assert not await service.registry.is_gateway_allowed("home1", "aa")


async def test_a_gateway_is_asked_for_its_status(service: Service) -> None:
    service.session.answer = answer(Code.OK, {"link": {"connected": True}, "streams": 0})
    code, out, _ = await run(service, "gateway", "status", "home1")
    assert (code, "connected: true" in out, "streams: 0" in out) == (0, True, True)
    code, out, _ = await run(service, "gateway", "status", "home1", "--json")
    assert json.loads(out) == {"link": {"connected": True}, "streams": 0}
    code, _, err = await run(service, "gateway", "status", "home9")
    assert (code, err) == (1, "gwmodule-msp: no gateway 'home9'\n")
