import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.sim.machine import Machine, Provisioning
from gwmodule.sim.profiles import PROFILES
from gwmodule.sim.rmcp import pong
from tests.sim.test_wsman import PC

PING = bytes.fromhex("06 00 00 06 00 00 11 be 80 2a 00 00")


def machine(**changes: object) -> Machine:
    return Machine(PC, "x", now=0.0, **changes)  # type: ignore[arg-type]


def test_a_ping_gets_a_pong_with_its_tag() -> None:
    answer = pong(PING, machine(), 16992)
    assert answer is not None
    assert answer[:12] == bytes.fromhex("06 00 00 06 00 00 11 be 40 2a 00 10")
    assert answer[12:20] == bytes.fromhex("00 00 01 57 42 60 c0 06")
    assert len(answer) == 28


def test_the_pong_tells_the_provisioning_state() -> None:
    answer = pong(PING, machine(provisioning=Provisioning.SETUP), 16992)
    assert answer is not None
    assert answer[19] & 3 == 0


def test_versions_beyond_four_bits_are_cut() -> None:
    answer = pong(PING, machine(profile=PROFILES["amt16"]), 16992)
    assert answer is not None
    assert answer[18] == 0xF1


@pytest.mark.parametrize("position", [0, 3, 4, 7, 8])
def test_anything_else_gets_nothing(position: int) -> None:
    other = bytearray(PING)
    other[position] ^= 0xFF
    assert pong(bytes(other), machine(), 16992) is None


@given(st.binary(max_size=11))
def test_a_short_datagram_gets_nothing(data: bytes) -> None:
    assert pong(data, machine(), 16992) is None


def test_a_device_may_be_told_to_say_nothing() -> None:
    pc = machine()
    pc.settings["AMT_GeneralSettings"] = {"RmcpPingResponseEnabled": False}
    assert pong(PING, pc, 16992) is None
