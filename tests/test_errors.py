from __future__ import annotations

import inspect

import pytest

from gwmodule import errors
from gwmodule.errors import Code, ConfigError, GatewayError

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, GatewayError) and cls.__module__ == errors.__name__
]


def test_the_codes_of_links_channels_and_calls_do_not_mix() -> None:
    links, channels, calls = range(1, 32), range(32, 64), range(64, 96)
    assert [code for code in Code if code and code not in {*links, *channels, *calls}] == []
    assert Code.TIMEOUT in links
    assert Code.INTERNAL in channels
    assert Code.UNKNOWN_FUNCTION in calls


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: str(cls.__name__))
def test_an_error_that_travels_says_its_code(cls: type[GatewayError]) -> None:
    code = getattr(cls, "code", None)
    assert code is None or code in set(Code)
    if issubclass(cls, errors.RemoteProtocolError | errors.AmtError | errors.PolicyRefused):
        assert code is not None


def test_the_tree_in_the_docstring_names_every_family() -> None:
    text = errors.__doc__ or ""
    families = [cls for cls in CLASSES if cls.__base__ in (GatewayError, errors.ProtocolError)]
    assert [cls.__name__ for cls in families if cls.__name__ not in text] == []


def test_a_configuration_error_names_file_key_and_problem() -> None:
    assert str(ConfigError("a.toml", "tls.mode", "is 'x'")) == "a.toml: tls.mode: is 'x'"
    assert str(ConfigError("a.toml", "", "not TOML")) == "a.toml: not TOML"


def test_errors_with_parts_read_well() -> None:
    assert str(errors.HandshakeRefused(Code.VERSION, "too old")) == (
        "refused by the peer: too old (VERSION)"
    )
    refused = errors.DeviceRefused("RequestPowerStateChange", 2, "error occurred")
    assert str(refused) == "RequestPowerStateChange returned 2 (error occurred)"
    assert refused.return_value == 2
    fault = errors.WsmanFault("s:Sender", "w:AccessDenied", "no")
    assert str(fault) == "s:Sender/w:AccessDenied: no"
    assert (fault.fault_code, fault.subcode, fault.reason) == ("s:Sender", "w:AccessDenied", "no")
    policy = errors.PolicyRefused("neighbour", "another MAC")
    assert (str(policy), policy.rule) == ("another MAC", "neighbour")
    reset = errors.ChannelReset(Code.LIMIT, "full")
    assert (str(reset), reset.code, reset.reason) == ("full", Code.LIMIT, "full")
