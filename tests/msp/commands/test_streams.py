"""`sol` as a technician types it: whose login it takes, who may look on, exit codes."""

# ruff: noqa: F401, F811 - a fixture of test_lines

from tests.msp.commands.conftest import Desk
from tests.msp.conftest import PC
from tests.msp.test_lines import device
from tests.msp.test_terminal import PASSWORD, Device

HELLO = ("sol", "55e3", "--send", "hello", "--expect", "hello")


async def test_sol_takes_the_stored_login_unless_one_is_given(desk: Desk, device: Device) -> None:
    await desk.login("tom")
    code, out, err = await desk.run(*HELLO)
    assert (code, "hello" in out) == (0, True)
    assert err.startswith(f"[attached to {PC} with the login that the service has]\n")
    code, out, err = await desk.run(*HELLO, AMT_PASSWORD=PASSWORD)
    assert (code, "hello" in out) == (0, True)
    assert err.startswith(f"[connected to {PC} with your own login]\n")
    for own in (("--user", "admin"), ("--no-hold",)):
        code, _, err = await desk.run(*HELLO, *own)
        assert (code, "no password: give --password-file" in err) == (2, True)


async def test_a_wrong_stored_login_is_said_and_not_asked_for(desk: Desk, device: Device) -> None:
    await desk.service.vault.store("default", PC, "admin", "wrong", 0.0, actor="test")
    await desk.login("tom")
    code, _, err = await desk.run(*HELLO)
    assert (code, "password" in err, "Traceback" in err) == (1, True, False)


async def test_without_a_stored_login_a_password_is_asked_for(desk: Desk) -> None:
    await desk.login("tom")
    code, _, err = await desk.run(*HELLO)
    assert (code, "store one with `gwmodule-msp credential set`" in err) == (2, True)


async def test_a_viewer_looks_on_and_opens_nothing(desk: Desk, device: Device) -> None:
    await desk.login("vera")
    code, _, err = await desk.run(*HELLO)
    assert (code, "needs role technician" in err) == (1, True)
    code, _, err = await desk.run("sol", "55e3", "--watch")
    assert (code, err) == (1, "gwmodule-msp: nobody has this console open\n")
    await desk.login("tom")
    holder = await desk.start("sol", "55e3")
    assert holder.stdin is not None
    assert holder.stderr is not None
    await holder.stderr.readuntil(b"[connected]\n")
    await desk.login("vera")
    watcher = await desk.start("sol", "55e3", "--watch", "--expect", "Hello, root.")
    assert watcher.stderr is not None
    await watcher.stderr.readuntil(b"held by tom since ")
    holder.stdin.write(b"root\n")
    await holder.stdin.drain()
    await watcher.communicate(b"")
    assert watcher.returncode == 0
    await holder.communicate(b"")
    assert holder.returncode == 0


async def test_who_watches_neither_types_nor_boots_nor_takes_over(desk: Desk) -> None:
    await desk.login("tom")
    for more in (["--reset"], ["--send", "x"], ["--takeover"]):
        code, _, _ = await desk.run("sol", "55e3", "--watch", *more)
        assert code == 2
