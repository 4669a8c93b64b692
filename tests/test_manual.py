"""Manual pages and shell completion, as `make man` makes them."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import shtab

from gwmodule.cli import parser

ROOT = Path(__file__).parents[1]
PAGES = ("gwmodule.8", "gwmodule-msp.8", "gwmodule-sim.1", "gwmodule.toml.5")

# What readline does when somebody presses Tab: the words so far, and the function for them.
PRESS_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
"$(complete -p gwmodule | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    script = str(ROOT / "docs" / "generate.py")
    subprocess.run([sys.executable, script, str(directory)], check=True, cwd=ROOT)
    return directory


def test_the_pages_of_the_gateway_need_no_library_but_shtab(tmp_path: Path) -> None:
    shutil.copytree(Path(shtab.__file__).parent, tmp_path / "shtab")
    # -S: nothing that is installed is there.
    argv = [sys.executable, "-S", str(ROOT / "docs/generate.py"), str(tmp_path / "out"), "gwmodule"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run(argv, check=True, cwd=tmp_path, env=environment)
    assert sorted(path.name for path in (tmp_path / "out" / "man").iterdir()) == [
        "gwmodule.8",
        "gwmodule.toml.5",
    ]


def test_without_shtab_it_says_where_to_get_it(tmp_path: Path) -> None:
    argv = [sys.executable, "-S", str(ROOT / "docs/generate.py"), str(tmp_path), "gwmodule"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "python3-shtab" in done.stderr
    assert "Traceback" not in done.stderr


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{name} must be there in CI")
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def test_every_page_is_there(made: Path) -> None:
    assert sorted(path.name for path in (made / "man").iterdir()) == sorted(PAGES)


@pytest.mark.parametrize("manual", PAGES)
def test_mandoc_finds_nothing_to_warn_of(made: Path, manual: str) -> None:
    lint = [program("mandoc"), "-T", "lint", "-W", "warning", str(made / "man" / manual)]
    done = subprocess.run(lint, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def read(made: Path, page: str) -> str:
    argv = [program("mandoc"), "-T", "ascii", str(made / "man" / page)]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return re.sub(".\b", "", text)


def test_a_reader_finds_every_verb_with_its_options_and_the_exit_codes(made: Path) -> None:
    text = read(made, "gwmodule.8")
    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name in commands.choices:
        assert f"gwmodule {name}" in text
    for words in ("--for SECONDS", "-w FILE", "EXIT STATUS", "configuration"):
        assert words in text


def test_every_setting_has_its_entry(made: Path) -> None:
    text = read(made, "gwmodule.toml.5")
    for words in ("lockdown", "hello_port", 'Default: "9971"; 0 to 65535', "[relay]"):
        assert words in " ".join(text.split())


def tab(made: Path, *words: str) -> list[str]:
    script = str(made / "completion" / "gwmodule.bash")
    argv = [program("bash"), "-c", PRESS_TAB, "tab", script, "gwmodule", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("exp",), ["explain"]),
        (("lockdown", "o"), ["off", "on"]),
        (("capture", "--s"), ["--seconds"]),
        (("status", "--j"), ["--json"]),
        (("check-config", "--config", "/etc/hostn"), ["/etc/hostname"]),
        (("nonsense",), []),
    ],
)
def test_bash_completes(made: Path, words: tuple[str, ...], offered: list[str]) -> None:
    assert sorted(tab(made, *words)) == offered


@pytest.mark.parametrize("name", ["gwmodule", "gwmodule-msp", "gwmodule-sim"])
def test_the_shells_accept_the_scripts(made: Path, name: str) -> None:
    for shell, script in (("bash", f"{name}.bash"), ("zsh", f"_{name}")):
        argv = [program(shell), "-n", str(made / "completion" / script)]
        assert subprocess.run(argv, capture_output=True).stderr == b""
