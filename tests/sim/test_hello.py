from gwmodule.sim.hello import RETRIES, HelloTarget, build_hello
from tests.sim.test_wsman import PC


def test_a_hello_has_the_layout_of_version_3() -> None:
    message = build_hello(PC, 2)
    assert message[:8] == bytes.fromhex("0100 0300 02000000")
    assert message[8:24] == bytes.fromhex("13aee355d2bfbb6117a088aedd7037ea")
    assert message[24] == 3
    lengths, rest = [], message[25:]
    while rest:
        lengths.append((rest[0], rest[1]))
        rest = rest[2 + rest[1] :]
    assert lengths == [(1, 20), (2, 32), (3, 48)]


def test_the_retry_counter_rises_and_begins_a_new_cycle() -> None:
    counters = [build_hello(PC, attempt)[4] for attempt in range(RETRIES + 1)]
    assert counters == [*range(15), 0]


def test_the_port_is_the_standard_one_unless_given() -> None:
    assert HelloTarget("gateway").port == 9971
