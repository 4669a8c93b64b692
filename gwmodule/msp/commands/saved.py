"""The saved login of `gwmodule-msp login`: which service, its CA, and the token for it.

A JSON file of mode 0600 in $XDG_CONFIG_HOME/gwmodule. The token ends by itself after some hours;
the password is never in it.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

import msgspec

from gwmodule.errors import ConfigError
from gwmodule.files import write_atomically

# A token of at most 4 KiB and a CA's certificates.
MAX_FILE = 256 * 1024


class _Claims(msgspec.Struct):
    exp: float


class SavedLogin(msgspec.Struct, frozen=True):
    """`ca` is PEM text, empty for the system's own list."""

    url: str
    token: str
    ca: str = ""

    def __repr__(self) -> str:
        return f"SavedLogin({self.url!r})"

    @property
    def expires(self) -> float | None:
        """Unix seconds, as the token says it of itself; None when it does not."""
        try:
            claims = self.token.split(".")[1]
            data = base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))
            return msgspec.json.decode(data, type=_Claims).exp
        except (IndexError, ValueError, msgspec.MsgspecError):
            return None


def login_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME", "")
    # XDG Base Directory Specification: a relative path is to be ignored.
    directory = Path(base) if base.startswith("/") else Path.home() / ".config"
    return directory / "gwmodule" / "msp.json"


def load() -> SavedLogin | None:
    """None when nobody has logged in; ConfigError for a file that cannot be trusted or read."""
    path = login_path()
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigError(str(path), "", exc.strerror or str(exc)) from exc
    if mode & 0o077:
        raise ConfigError(str(path), "", "others may read the token in it: log in again")
    if len(data) > MAX_FILE:
        raise ConfigError(str(path), "", f"more than {MAX_FILE} bytes: log in again")
    try:
        return msgspec.json.decode(data, type=SavedLogin)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise ConfigError(str(path), "", f"is no saved login ({exc}): log in again") from exc


def save(login: SavedLogin) -> None:
    path = login_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.encode(login) + b"\n", 0o600)
    except OSError as exc:
        raise ConfigError(str(path), "", exc.strerror or str(exc)) from exc


def forget() -> bool:
    """False when there was none."""
    path = login_path()
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise ConfigError(str(path), "", exc.strerror or str(exc)) from exc
    return True
