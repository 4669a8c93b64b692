import json

from tests.msp.commands.conftest import Desk
from tests.msp.conftest import NOW, PC, Service
from tests.msp.test_cli import run


async def test_a_login_is_stored_shown_without_its_password_and_removed(service: Service) -> None:
    code, _, err = await run(service, "credential", "show", "55e3")
    assert (code, err) == (1, "gwmodule-msp: no login is stored\n")
    code, out, err = await run(service, "credential", "set", "55e3", "--user", "shop")
    assert (code, out, err) == (0, "", "")
    code, out, _ = await run(service, "credential", "show", "55e3", "--json")
    shown = json.loads(out)
    assert (shown["username"], shown["mode"]) == ("shop", "ha1")
    assert "P@ssw0rd" not in out
    stored = await service.vault.load("default", PC)
    assert stored is not None
    assert stored.password == "P@ssw0rd"
    assert (await run(service, "credential", "remove", "55e3"))[0] == 0
    assert await service.vault.load("default", PC) is None


async def test_one_login_can_be_for_all_devices(service: Service) -> None:
    code, _, _ = await run(service, "credential", "set", "default", "--challenge")
    assert code == 0
    stored = await service.vault.load("default", None)
    assert stored is not None
    assert (stored.username, stored.mode) == ("admin", "challenge")
    code, out, _ = await run(service, "credential", "show", "default")
    assert out.startswith("admin, mode challenge, stored ")


async def test_only_an_admin_stores_and_nobody_reads_it_back(desk: Desk) -> None:
    await desk.service.vault.store("default", PC, "admin", "secret", NOW, actor="test")
    await desk.login("tom")
    code, _, err = await desk.run("credential", "set", "55e3", AMT_PASSWORD="x")
    assert (code, err) == (1, "gwmodule-msp: this needs role admin, tom is technician\n")
    code, out, _ = await desk.run("credential", "show", "55e3", "--json")
    assert (code, "secret" in out) == (0, False)
    code, _, err = await desk.run("credential", "set", "55e3")
    assert code == 2
    assert "no password" in err
