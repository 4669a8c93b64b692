import tomllib
from pathlib import Path

import pytest

from gwmodule import config
from gwmodule.msp.enrolment import (
    SERVICE_NAME,
    check_gateway_name,
    gateway_config,
    write_atomically,
)


@pytest.mark.parametrize(
    ("address", "server_name"),
    [
        ("msp.example:8883", ""),
        ("192.0.2.7:1", SERVICE_NAME),
        ("[2001:db8::1]:8883", SERVICE_NAME),
    ],
)
def test_the_configuration_loads_and_pins_a_name_the_service_has(
    address: str, server_name: str
) -> None:
    text = gateway_config(
        "home1", address, ["msp.example"], directory="/etc/gwmodule", interfaces=['a"b', "br0"]
    )
    loaded = config.parse(tomllib.loads(text))
    assert loaded.msp.address == (address,)
    assert loaded.msp.server_name == server_name
    assert loaded.lan.interface == ('a"b', "br0")
    assert loaded.tls == config.TlsConfig()


@pytest.mark.parametrize("name", ["", "a/b", "..", "-a", "a" * 64, "a b", "a\n"])
def test_what_is_no_gateway_name(name: str) -> None:
    with pytest.raises(ValueError, match="no gateway name"):
        check_gateway_name(name)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_atomically(path, b"first")
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "directory", b"second")
    assert path.read_bytes() == b"first"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["directory", "key"]
