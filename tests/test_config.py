from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.config import (
    MAX_FILE,
    Config,
    LivenessConfig,
    MuxConfig,
    join_address,
    load,
    parse,
    split_address,
    with_credentials,
)
from gwmodule.errors import ConfigError


def write(directory: Path, text: str | bytes) -> Path:
    path = directory / "gwmodule.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def problem(tree: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as info:
        parse(tree, "gwmodule.toml")
    return str(info.value)


def test_an_empty_file_gives_every_default(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")) == Config()


def test_a_file_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        deployment = "standalone"
        [msp]
        address = ["msp.example:4433", "[2001:db8::1]:4433"]
        [lan]
        interface = "br-lan"
        [liveness]
        interval = 2
        [streams]
        extra_ports = ["623", "5900"]
        [capture]
        enabled = false
        """,
    )
    config = load(path)
    assert config.deployment == "standalone"
    assert config.msp.address == ("msp.example:4433", "[2001:db8::1]:4433")
    assert config.lan.interface == ("br-lan",)
    assert config.liveness == LivenessConfig(interval=2.0)
    assert isinstance(config.liveness.interval, float)
    assert config.streams.extra_ports == ("623", "5900")
    assert not config.capture.enabled
    assert config.mux == MuxConfig()


def test_a_uci_file_has_no_suffix_and_the_same_schema(tmp_path: Path) -> None:
    path = tmp_path / "gwmodule"
    path.write_text("config msp 'msp'\n\tlist address 'msp.example:4433'\n")
    assert load(path).msp.address == ("msp.example:4433",)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().mux.memory = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff", "not UTF-8: "),
        ("deployment =", "not TOML: "),
        ("a = " + "[" * 5000, "not TOML: "),
        ("a = " + "9" * 5000, "not TOML: "),
        ("#" * (MAX_FILE + 1), "larger than 65536 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as info:
        load(path)
    assert (info.value.path, info.value.key) == (str(path), "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file .*: `gwmodule provision`"):
        load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"tsl": {}}, "gwmodule.toml: tsl: unknown setting (known here: backoff, capture, "),
        ({"tls": {"mod": "off"}}, "tls.mod: unknown setting (known here: cafile, certificate,"),
        ({"tls": "off"}, "tls: must be a table"),
        ({"tls": {"mode": "none"}}, "tls.mode: is 'none', must be one of mutual, off"),
        ({"tls": {"mode": True}}, "tls.mode: must be a string, not True"),
        ({"capture": {"enabled": 1}}, "capture.enabled: must be true or false, not 1"),
        ({"mux": {"memory": "big"}}, "mux.memory: must be a whole number, not 'big'"),
        ({"mux": {"memory": 1.5e6}}, "mux.memory: must be a whole number"),
        ({"mux": {"memory": True}}, "mux.memory: must be a whole number, not True"),
        ({"mux": {"memory": 5}}, "mux.memory: is 5, must be between 1048576 and 268435456"),
        ({"backoff": {"cap": "1"}}, "backoff.cap: must be a number, not '1'"),
        ({"backoff": {"cap": 3601}}, "backoff.cap: is 3601, must be between 0.05 and 3600"),
        ({"lan": {"interface": 3}}, "lan.interface: must be a list of strings, not 3"),
        ({"lan": {"interface": ["a", 3]}}, "lan.interface: must be a list of strings"),
        ({"lan": {"interface": ["a b"]}}, "lan.interface: 'a b' is no interface name"),
        ({"lan": {"interface": ["x" * 16]}}, "is no interface name"),
        ({"uplink": {"interface": "a/b"}}, "'a/b' is no interface name"),
        ({"msp": {"address": "msp"}}, "msp.address: 'msp' is not HOST:PORT"),
        ({"msp": {"address": "msp:0"}}, "port 0 of 'msp:0' is not between 1 and 65535"),
        ({"msp": {"address": "2001:db8::1:44"}}, "write an IPv6 address in brackets"),
        ({"streams": {"extra_ports": ["x"]}}, "streams.extra_ports: 'x' is no port"),
        ({"streams": {"extra_ports": ["65536"]}}, "'65536' is no port"),
        ({"streams": {"extra_ports": ["٣"]}}, "'٣' is no port"),
        ({"streams": {"extra_ports": ["9" * 5000]}}, "streams.extra_ports: '9999"),
        ({"msp": {"address": "msp:" + "9" * 5000}}, "is not HOST:PORT"),
        ({"lan": {"interface": [""]}}, "lan.interface: '' is no interface name"),
        ({"liveness": {"interval": 5}}, "liveness: timeout 12.0 must be at least three intervals"),
        (
            {"uplink": {"interface": "eth0"}, "lan": {"interface": ["br-lan", "eth0"]}},
            "uplink.interface: is also a LAN interface",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(
    tree: dict[str, Any], message: str
) -> None:
    assert message in problem(tree)


def test_a_standalone_box_has_its_uplink_in_the_lan() -> None:
    both = {"uplink": {"interface": "eth0"}, "lan": {"interface": "eth0"}}
    assert parse({"deployment": "standalone", **both}).uplink.interface == "eth0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("msp.example:4433", ("msp.example", 4433)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
    ],
)
def test_an_address_is_split(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected
    assert join_address(*expected) == text


@pytest.mark.parametrize("text", ["", ":1", "host", "host:", "host:x", "host:65536", "a:b:1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|port|brackets"):
        split_address(text)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TREES = st.dictionaries(
    st.sampled_from([field.name for field in dataclasses.fields(Config)]),
    SCALARS
    | st.dictionaries(
        st.sampled_from(["mode", "interval", "address", "interface", "memory", "enabled", "x"]),
        SCALARS | st.lists(SCALARS, max_size=2),
        max_size=3,
    ),
    max_size=3,
)


@given(tree=TREES)
def test_any_tree_gives_a_configuration_or_a_named_problem(tree: dict[str, Any]) -> None:
    try:
        config = parse(tree)
    except ConfigError as exc:
        assert str(exc).startswith("config: ")  # noqa: PT017 - either outcome is right
    else:
        assert isinstance(config, Config)


def test_a_bad_interface_name_is_reported_under_its_own_key() -> None:
    for table in ("lan", "uplink"):
        with pytest.raises(ConfigError, match=f"{table}.interface: 'no such name'"):
            parse({table: {"interface": "no such name"}})


def test_credentials_replace_what_they_hold_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "gateway.key").write_text("key")
    # What the unit gives for a file that does not exist.
    (tmp_path / "gateway.crt").write_text("none")
    tls = with_credentials(Config(), tmp_path).tls
    assert tls.key == str(tmp_path / "gateway.key")
    assert (tls.certificate, tls.cafile) == (Config().tls.certificate, Config().tls.cafile)


# Every key of the schema, so that a new one cannot be forgotten.


def leaves(schema: type[Any] = Config, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each setting as (`table.name`, type, metadata)."""
    hints = typing.get_type_hints(schema)
    for leaf in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[leaf.name]):
            yield from leaves(typing.cast(type, hints[leaf.name]), f"{leaf.name}.")
        else:
            yield prefix + leaf.name, hints[leaf.name], leaf.metadata


LEAVES = {name: (hint, bounds) for name, hint, bounds in leaves()}
TABLES = sorted({name.partition(".")[0] for name in LEAVES if "." in name})
WRONG: dict[Any, tuple[object, ...]] = {
    bool: (1, "true", [], {}),
    int: ("1", 1.5, True, [], {}),
    float: ("1", True, [], {}),
    str: (1, True, ["a"], {}),
    tuple[str, ...]: (1, True, [1], ["a", 1], {}),
}


def nested(name: str, value: object) -> dict[str, Any]:
    table, dot, key = name.rpartition(".")
    return {table: {key: value}} if dot else {key: value}


@pytest.mark.parametrize("name", LEAVES)
def test_every_setting_of_a_wrong_type_is_named_in_one_line(name: str) -> None:
    for value in WRONG[LEAVES[name][0]]:
        said = problem(nested(name, value))
        assert said.startswith(f"gwmodule.toml: {name}: must be ")
        assert said.isprintable()


@pytest.mark.parametrize("name", [n for n, (_, m) in LEAVES.items() if m.get("low") is not None])
def test_every_setting_out_of_bounds_is_told_its_bounds(name: str) -> None:
    low, high = (LEAVES[name][1][bound] for bound in ("low", "high"))
    kind = LEAVES[name][0]
    for value in (kind(low - 1), kind(high + 1), *((float("nan"),) if kind is float else ())):
        assert f"{name}: is {value}, must be between {low} and {high}" in problem(
            nested(name, value)
        )


@pytest.mark.parametrize("name", [n for n, (_, m) in LEAVES.items() if m.get("one_of")])
def test_every_setting_with_a_choice_tells_it(name: str) -> None:
    assert f"{name}: is 'x', must be one of " in problem(nested(name, "x"))


@pytest.mark.parametrize("table", TABLES)
def test_every_table_refuses_an_unknown_key_and_what_is_no_table(table: str) -> None:
    assert f"{table}.nonsense: unknown setting (known here: " in problem({table: {"nonsense": 1}})
    assert f"{table}: must be a table, [{table}], not 1" in problem({table: 1})


@pytest.mark.parametrize("table", TABLES)
def test_every_table_may_stand_there_once(tmp_path: Path, table: str) -> None:
    path = write(tmp_path, f"[{table}]\n[{table}]\n")
    with pytest.raises(ConfigError, match=f"{table}.*twice.*line 2"):
        load(path)


def test_a_source_that_is_no_address_is_named() -> None:
    assert "uplink.source: 'eth0' is no IP address" in problem({"uplink": {"source": "eth0"}})
