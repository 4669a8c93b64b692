"""The line that the bench measures on: its arithmetic, and what UDP probes see of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from gwmodule.sim import isolate
from tests.lab.line import Direction, Line, Namespaces, Profile, device_drops, validate

pytestmark = pytest.mark.lab

# 1 octet takes 1 ms, so that the arithmetic can be read.
SLOW = Profile(rate=8000, delay=0.5, queue=0.2)
PACKET = bytes(100)  # 100 ms


def arrivals(direction: Direction) -> list[float]:
    """When each packet comes out, in order."""
    times: list[float] = []
    while (due := direction.next_due) is not None:
        times.append(round(due, 6))
        assert direction.take(due) is not None
    return times


def test_a_packet_takes_its_time_on_the_wire_and_then_the_delay() -> None:
    direction = Direction(SLOW, seed=0)
    direction.offer(PACKET, now=10.0)
    assert direction.take(10.59) is None
    assert arrivals(direction) == [10.6]


def test_packets_queue_behind_each_other_and_the_queue_drops_its_tail() -> None:
    direction = Direction(SLOW, seed=0)
    for _ in range(4):
        direction.offer(PACKET, now=0.0)
    # The second fills the 200 ms together with the one on the wire; two found no room.
    assert arrivals(direction) == [0.6, 0.7]
    assert direction.report()["dropped"] == 2


def test_a_drained_queue_takes_packets_again() -> None:
    direction = Direction(SLOW, seed=0)
    direction.offer(PACKET, now=0.0)
    direction.offer(PACKET, now=0.0)
    direction.offer(PACKET, now=0.11)
    assert arrivals(direction) == [0.6, 0.7, 0.8]


def test_a_lost_packet_has_used_the_wire() -> None:
    direction = Direction(Profile(rate=8000, delay=0.0, queue=10.0, loss=0.5), seed=3)
    for _ in range(20):
        direction.offer(PACKET, now=0.0)
    report = direction.report()
    assert report["packets"] == 20
    assert 5 <= report["lost"] <= 15
    assert all(at % 0.1 < 1e-6 or 0.1 - at % 0.1 < 1e-6 for at in arrivals(direction))


def test_the_same_seed_loses_the_same_packets() -> None:
    profile = Profile(rate=8e6, delay=0.0, queue=10.0, loss=0.1)
    runs: list[list[float]] = []
    for _ in range(2):
        direction = Direction(profile, seed=7)
        for number in range(200):
            direction.offer(PACKET, now=number / 100)
        runs.append(arrivals(direction))
    assert runs[0] == runs[1]
    assert len(runs[0]) < 200


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    if shutil.which("ip") is None or not isolate.isolated():
        pytest.skip("run it with: make test-lab")
    with Namespaces() as (near, far), Line(near, far) as line:
        yield line


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "profile",
    [
        Profile(rate=8e6, delay=0.025, queue=0.1),
        Profile(rate=8e6, delay=0.025, queue=0.4, loss=0.01),
        Profile(rate=50e6, delay=0.05, queue=0.1),
    ],
    ids=["slow", "lossy", "fast"],
)
def test_probes_see_the_rate_delay_queue_and_loss_that_were_set(
    line: Line, profile: Profile
) -> None:
    line.set(profile)
    measured = validate(line, probes=20)
    assert not measured.problems, str(measured)


@pytest.mark.lab
def test_nothing_waits_or_drops_in_front_of_the_line(line: Line) -> None:
    assert device_drops(line.near) == 0
    assert device_drops(line.far) == 0
    assert line.report()["oversized"] == 0
