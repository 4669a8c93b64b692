from pathlib import Path

import pytest

from gwmodule.errors import ConfigError
from gwmodule.msp.commands import saved
from gwmodule.msp.commands.saved import SavedLogin

LOGIN = SavedLogin("https://msp.example", "a.eyJleHAiOiAxODAwMDAwMDAwfQ.c", "PEM")


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "gwmodule" / "msp.json"


def test_what_is_saved_is_loaded_by_its_owner_only(path: Path) -> None:
    assert saved.load() is None
    saved.save(LOGIN)
    assert saved.load() == LOGIN
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert saved.forget()
    assert not saved.forget()


def test_the_token_says_when_it_ends() -> None:
    assert LOGIN.expires == 1_800_000_000


@pytest.mark.parametrize("token", ["", "gwm_1_2", "a.b.c", "a.W10.c", "a.\xff.c", "..", "a.e30.c"])
def test_a_token_that_does_not_say_so_has_no_end(token: str) -> None:
    assert SavedLogin("u", token).expires is None


def test_the_token_is_in_no_traceback() -> None:
    assert LOGIN.token not in repr(LOGIN)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is no saved login"),
        (b"[]", "is no saved login"),
        (b'{"url": 1, "token": "t"}', "is no saved login"),
        (b'{"url": "\xff"}', "is no saved login"),
        (b"{" * 300_000, "more than 262144 bytes"),
    ],
)
def test_a_file_of_garbage_is_one_sentence(path: Path, content: bytes, text: str) -> None:
    saved.save(LOGIN)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        saved.load()


def test_a_file_that_others_can_read_is_not_used(path: Path) -> None:
    saved.save(LOGIN)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read the token"):
        saved.load()


def test_a_relative_directory_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert saved.login_path() == tmp_path / ".config" / "gwmodule" / "msp.json"
