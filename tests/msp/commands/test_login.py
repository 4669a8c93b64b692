import json
from pathlib import Path

import pytest

from gwmodule.msp.accounts import Role
from tests.msp.commands.conftest import PASSWORD, Desk
from tests.msp.conftest import NOW, PC


async def test_a_login_serves_every_command_until_logout(desk: Desk) -> None:
    await desk.login("tom")
    assert desk.saved.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in desk.saved.read_text()
    code, out, err = await desk.run("devices")
    assert (code, err) == (0, "")
    assert str(PC) in out
    code, out, _ = await desk.run("whoami")
    assert out.startswith(f"tom, technician of tenant default, at {desk.url} until 2027-")
    code, out, _ = await desk.run("whoami", "--json")
    shown = json.loads(out)
    assert (shown["name"], shown["role"], shown["api"]) == ("tom", "technician", desk.url)
    # Somebody else's command line still reaches the socket.
    code, out, _ = await desk.run("--api", str(desk.service.path), "whoami", "--json")
    assert json.loads(out)["via"] == "socket"
    assert (await desk.run("logout"))[0] == 0
    assert not desk.saved.exists()
    assert await desk.run("logout") == (0, "", "nobody was logged in\n")


async def test_a_stranger_is_told_so_in_one_sentence(desk: Desk) -> None:
    code, out, err = await desk.run(
        "login", desk.url, "--user", "tom", "--ca-file", str(desk.ca), "--password-file", "-",
        typed=b"wrong\n",
    )  # fmt: skip
    assert (code, out, err) == (77, "", "gwmodule-msp: unknown user or wrong password\n")
    assert not desk.saved.exists()


async def test_an_expired_login_is_one_sentence_and_a_code_of_its_own(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.login("tom")
    monkeypatch.setattr(desk.service.api.tokens, "_clock", lambda: NOW + 9 * 3600)
    code, out, err = await desk.run("devices")
    assert (code, out, err) == (77, "", "gwmodule-msp: this token has expired; log in again\n")
    code, _, err = await desk.run("devices", "--json")
    assert (code, json.loads(err)["error"]) == (77, "UNAUTHORIZED")


async def test_a_login_ends_with_the_password_that_made_it(desk: Desk) -> None:
    await desk.login("tom")
    await desk.service.accounts.set_user(
        "tom", "default", password="another long password", at=NOW, actor="test"
    )
    code, _, err = await desk.run("devices")
    assert (code, err) == (77, "gwmodule-msp: this account has changed; log in again\n")


async def test_who_may_not_is_told_which_role_it_takes(desk: Desk) -> None:
    await desk.login("vera")
    code, _, err = await desk.run("forget", str(PC))
    assert (code, err) == (1, "gwmodule-msp: this needs role admin, vera is viewer\n")


async def test_a_script_uses_an_api_key_and_no_file(desk: Desk) -> None:
    key = await desk.service.accounts.add_key(
        "list", "default", Role.VIEWER, NOW, NOW + 86400, actor="test"
    )
    code, out, err = await desk.run(
        "--ca-file", str(desk.ca), "devices", "--json",
        GWMODULE_MSP_TOKEN=key, GWMODULE_MSP_API=desk.url,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert json.loads(out)[0]["guid"] == str(PC)
    code, _, err = await desk.run(
        "--ca-file", str(desk.ca), "--api", desk.url, "devices", GWMODULE_MSP_TOKEN="gwm_1_2"
    )
    assert code == 77
    assert "this API key is unknown, expired or revoked" in err
    code, _, err = await desk.run("--ca-file", str(desk.ca), "--api", desk.url, "devices")
    assert (code, err) == (77, "gwmodule-msp: log in first: Authorization: Bearer TOKEN\n")


async def test_a_service_that_the_ca_does_not_vouch_for_gets_no_password(desk: Desk) -> None:
    code, _, err = await desk.run(
        "login", desk.url, "--user", "tom", "--password-file", "-", typed=f"{PASSWORD}\n".encode()
    )
    assert code == 1
    assert "certificate verify failed" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "code", "text"),
    [
        ("http://msp.example", 1, "use https"),
        ("https://tom:secret@msp.example", 1, "no login and no token belongs into a URL"),
        ("https://msp.example/path", 1, "is not https://HOST"),
        ("ftp://msp.example", 1, "is not https://HOST"),
        ("msp.example", 2, "is not https://HOST"),
    ],
)
async def test_an_address_that_would_not_do_is_refused_before_the_password(
    desk: Desk, url: str, code: int, text: str
) -> None:
    found, out, err = await desk.run("login", url)
    assert (found, out) == (code, "")
    assert text in err
    assert "secret" not in err


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"no certificate", "holds no certificate in PEM"),
        (b"\xff\xfe\x00", "is no PEM text"),
        (b"x" * 70_000, "more than 65536 bytes"),
    ],
)
async def test_a_ca_file_of_garbage_is_refused(
    desk: Desk, tmp_path: Path, content: bytes, text: str
) -> None:
    file = tmp_path / "garbage.pem"
    file.write_bytes(content)
    code, _, err = await desk.run("login", desk.url, "--ca-file", str(file))
    assert code == 1
    assert text in err
