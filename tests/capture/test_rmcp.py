from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.capture.rmcp import Pong, build_presence_ping, parse_pong
from gwmodule.wire.notices import Provisioning

# ASF presence pong: Intel's enterprise number, port 16992, AMT 11.8, state, eight bytes unused.
PONG = bytes.fromhex("06000006 000011be 40070010 00000157 4260 b8 06 000000000000 0000")


def pong(at: int, value: int) -> bytes:
    return PONG[:at] + bytes((value,)) + PONG[at + 1 :]


def test_the_ping_is_the_one_of_the_reference() -> None:
    assert build_presence_ping(0x2A) == bytes.fromhex("06000006 000011be 802a0000")


@pytest.mark.parametrize("tag", [-1, 255])
def test_a_ping_without_an_answer_is_not_built(tag: int) -> None:
    with pytest.raises(ValueError, match=f"tag {tag}, must be between 0 and 254"):
        build_presence_ping(tag)


def test_a_pong_tells_state_ports_and_version() -> None:
    assert parse_pong(PONG, tag=7) == Pong(7, Provisioning.POST, (16992, 16993), (11, 8))


@pytest.mark.parametrize(
    ("state", "provisioning", "ports"),
    [
        (0, Provisioning.PRE, (16992,)),
        (1, Provisioning.IN, (16992,)),
        (2, Provisioning.POST, (16992,)),
        (3, Provisioning.UNKNOWN, (16992,)),
        (0xF8, Provisioning.PRE, (16992,)),
    ],
)
def test_the_state_is_two_bits(
    state: int, provisioning: Provisioning, ports: tuple[int, ...]
) -> None:
    assert parse_pong(pong(19, state), tag=7) == Pong(7, provisioning, ports, (11, 8))


def test_a_port_that_is_not_amt_s_is_not_believed() -> None:
    answer = parse_pong(PONG[:16] + b"\0\x16\xb8\2" + PONG[20:], tag=7)
    assert answer is not None
    assert answer.ports == ()


@pytest.mark.parametrize(
    "data",
    [
        *(PONG[:n] for n in range(20)),
        *(pong(at, 0x55) for at in (0, 1, 3, 4, 8, 9, 11, 12)),
        pong(11, 7),
        pong(11, 17),
        build_presence_ping(7),
    ],
)
def test_anything_else_is_no_pong(data: bytes) -> None:
    assert parse_pong(data, tag=7) is None


@given(st.binary(max_size=64), st.integers(0, 254))
def test_garbage_never_raises(data: bytes, tag: int) -> None:
    parse_pong(data, tag)
    parse_pong(PONG[:8] + data, tag)
