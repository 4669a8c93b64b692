import contextlib
import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule import uci
from gwmodule.config import MAX_FILE, Config, load, parse
from gwmodule.errors import ConfigError

PATH = "/etc/config/gwmodule"
FULL = """
package gwmodule

# A gateway as `uci commit` writes it.
config gwmodule 'main'
\toption enabled '1'
\toption provisionserver '0'
\toption deployment 'standalone'

config msp 'msp'
\tlist address 'msp.example:4433'
\tlist address '[2001:db8::1]:4433'
\toption connect_timeout '2.5'

config lan
\tlist interface 'br-lan'
\toption hello_port '9971'

config probe 'probe'
\toption enabled 'off'
"""


def read(text: str) -> Config:
    return parse(uci.tree(text, Config, PATH), PATH)


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value)


def test_sections_become_the_tables_of_the_schema() -> None:
    config = read(FULL)
    assert config.deployment == "standalone"
    assert config.msp.address == ("msp.example:4433", "[2001:db8::1]:4433")
    assert config.msp.connect_timeout == 2.5
    assert config.lan.interface == ("br-lan",)
    assert config.lan.hello_port == 9971
    assert config.probe.enabled is False


def test_sockets_are_where_openwrt_and_the_jails_have_them() -> None:
    assert read("").control.socket == "/var/run/gwmodule/control.sock"
    moved = read("config control\n option socket '/tmp/x.sock'\n")
    assert moved.control.socket == "/tmp/x.sock"
    assert moved.capture.socket == "/var/run/gwmodule-capture/capture.sock"


def test_one_option_is_a_list_of_one() -> None:
    assert read("config lan\n option interface br-lan").lan.interface == ("br-lan",)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("plain", "plain"),
        ("'it has spaces'", "it has spaces"),
        ('"a \\"quoted\\" one"', 'a "quoted" one'),
        ("'single '\\''inside'\\'", "single 'inside'"),
        ("half'and'\"half\"", "halfandhalf"),
        ("back\\ slash", "back slash"),
        ("'# no comment'", "# no comment"),
        ("value # a comment", "value"),
        ("''", ""),
    ],
)
def test_quotes_are_read_as_libuci_reads_them(written: str, value: str) -> None:
    assert read(f"config msp\n option server_name {written}\r\n").msp.server_name == value


@pytest.mark.parametrize("word", ["1", "on", "true", "yes", "enabled"])
def test_every_word_for_true(word: str) -> None:
    assert read(f"config probe\n option enabled {word}").probe.enabled is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("config msp\n option adress x", "msp.adress: line 2: unknown option (known here: address"),
        ("config gwmodule\n option enabeld 1", "gwmodule.enabeld: line 2: unknown option"),
        ("config mps\n", "mps: line 1: unknown section type"),
        ("config msp\n\nconfig msp two\n", "msp: line 3: this section is on line 1 too"),
        ("config tls\n option key a\n option key b", "tls.key: line 3: set on line 2 too"),
        ("config tls\n option key a\n list key b", "tls.key: line 3: set on line 2 too"),
        ("config tls\n list key a", "tls.key: line 2: is a single value"),
        ("config probe\n option enabled maybe", "probe.enabled: line 2: must be 1 or 0"),
        ("config lan\n option hello_port 99x", "lan.hello_port: line 2: must be a whole number"),
        ("config lan\n option hello_port 99999", "lan.hello_port: is 99999, must be between"),
        ("config probe\n option timeout nan", "probe.timeout: line 2: must be a number"),
        ("config probe\n option timeout 1_0", "probe.timeout: line 2: must be a number"),
        ("config lan\n option hello_port \u0663", "lan.hello_port: line 2: must be a whole number"),
        ("option key a", "line 1: option key stands before any section"),
        ("config tls\n option key 'a", "line 2: a quote is not closed"),
        ('config tls\n option key "a\\', "line 2: a quote is not closed"),
        ("config tls\n option key a\\", "line 2: a backslash at the end"),
        ("config tls; option key a", "line 1: put a value with ';' in quotes"),
        ("config tls\n option key", "line 2: is not `config`"),
        ("config tls\n option key a b", "line 2: is not `config`"),
        ("config tls\n option k-y a", "line 2: 'k-y' is no option name"),
        ("config tls a-b", "line 1: the section has no valid type and name"),
        ("config ''", "line 1: the section has no valid type and name"),
        ("configure tls", "line 1: is not `config`"),
        ("config gwmodule\n option deployment both", "deployment: is 'both', must be one of"),
    ],
)
def test_a_problem_is_told_with_file_option_and_line(text: str, said: str) -> None:
    assert f"{PATH}: {said}" in problem(text)


def every_leaf(schema: type[Any]) -> dict[str, Any]:
    """The schema's defaults as the tree that a complete UCI file would give."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[field.name]):
            found[field.name] = every_leaf(typing.cast(type, hints[field.name]))
        else:
            found[field.name] = getattr(schema(), field.name)
    return found


def written(value: Any) -> str:
    return f"'{int(value) if isinstance(value, bool) else value}'"


def test_every_setting_of_the_schema_can_be_written_in_uci() -> None:
    lines = ["config gwmodule"]
    lines += [
        f" option {name} {written(value)}"
        for name, value in every_leaf(Config).items()
        if not isinstance(value, dict)
    ]
    for table, values in every_leaf(Config).items():
        if isinstance(values, dict):
            lines.append(f"config {table}")
            lines += [
                f" option {name} {written(value)}"
                for name, value in values.items()
                if not isinstance(value, tuple)
            ]
    assert read("\n".join(lines)) == Config()


def test_a_file_without_a_suffix_is_uci(tmp_path: Path) -> None:
    file = tmp_path / "gwmodule"
    file.write_text(FULL)
    assert load(file) == read(FULL)


def test_a_file_that_is_too_long_or_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gwmodule"
    file.write_bytes(b"#" * (MAX_FILE + 1))
    with pytest.raises(ConfigError, match="larger than 65536 bytes"):
        load(file)
    file.write_bytes(b"config msp\n option server_name '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(file)


WORDS = st.sampled_from(
    ["config", "option", "list", "package", "msp", "lan", "address", "'a", '"', "\\", ";", "#", "x"]
)
LINES = st.lists(st.lists(WORDS, max_size=5).map(" ".join), max_size=8).map("\n".join)


@given(st.text() | LINES)
def test_garbage_gives_a_configuration_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        read(text)


@given(st.text(st.characters(exclude_characters="'\n", exclude_categories=["Cs"]), max_size=40))
def test_what_uci_quotes_comes_back_unchanged(value: str) -> None:
    assert read(f"config msp\n\toption server_name '{value}'\n").msp.server_name == value


def scalars() -> dict[str, Any]:
    """`section.option` of every single value of the schema, with its default."""
    found: dict[str, Any] = {}
    for table, value in every_leaf(Config).items():
        values = {f"{table}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {}
        found |= values or {f"gwmodule.{table}": value}
    return {name: value for name, value in found.items() if not isinstance(value, tuple)}


@pytest.mark.parametrize("name", scalars())
def test_every_option_of_a_wrong_type_is_told_with_its_line(name: str) -> None:
    section, _, option = name.partition(".")
    said = problem(f"config {section}\n list {option} x")
    assert f"{PATH}: {name}: line 2: is a single value: write `option`" in said
    if not isinstance(scalars()[name], str):
        said = problem(f"config {section}\n option {option} maybe")
        assert f"{PATH}: {name}: line 2: must be " in said
        assert said.isprintable()


SECTIONS = sorted({name.partition(".")[0] for name in scalars()})


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_refuses_an_unknown_option_and_a_second_one(section: str) -> None:
    said = problem(f"config {section}\n option nonsense 1")
    assert f"{PATH}: {section}.nonsense: line 2: unknown option (known here: " in said
    said = problem(f"config {section}\nconfig {section} two\n")
    assert f"{PATH}: {section}: line 2: this section is on line 1 too" in said
