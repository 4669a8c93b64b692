from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.msp.places import Places


def places(most: int, *idle: int) -> Places[int]:
    return Places[int]("connections", "tenant", "http", most, lambda who: who in idle)


def enter(places: Places[int], group: str, *members: int) -> list[int | None]:
    return [places.enter(who, group, 0.0) for who in members]


def test_one_group_has_every_place_while_nobody_else_wants_one() -> None:
    taken = places(4)
    assert enter(taken, "a", 0, 1, 2, 3) == [None] * 4
    assert enter(taken, "a", 4) == [4]
    assert (len(taken), taken.refused, taken.displaced) == (4, 1, 0)


def test_a_newcomer_takes_the_place_of_the_oldest_of_the_largest_group() -> None:
    taken = places(4)
    enter(taken, "a", 0, 1, 2, 3)
    assert enter(taken, "b", 10, 11, 12) == [0, 1, 12]
    assert enter(taken, "a", 4) == [4]
    assert taken.all() == [2, 3, 10, 11]
    assert (taken.refused, taken.displaced) == (2, 2)


def test_the_oldest_that_is_idle_goes_first_for_its_own_group_too() -> None:
    taken = places(4, 2, 3)
    enter(taken, "a", 0, 1, 2, 3)
    assert enter(taken, "b", 10) == [2]
    assert enter(taken, "a", 4) == [3]
    assert enter(taken, "a", 5) == [5]
    assert enter(taken, "b", 11) == [0]
    assert [taken.group_of(who) for who in (4, 11, 0)] == ["a", "b", None]


def test_who_leaves_makes_room() -> None:
    taken = places(1)
    enter(taken, "a", 0)
    taken.leave(0)
    taken.leave(0)
    assert 0 not in taken
    assert enter(taken, "a", 1) == [None]


def test_a_flood_is_one_line_in_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    taken = places(2)
    with caplog.at_level(logging.WARNING):
        for n in range(1000):
            taken.enter(n, "a", n * 0.05)
    assert [record.getMessage() for record in caplog.records] == [
        "event=connections port=http tenant=a connections=2"
    ]


Step = tuple[bool, int]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=200))
def test_there_are_no_more_and_each_group_has_its_share(steps: list[Step]) -> None:
    taken = Places[tuple[int, int]]("x", "group", "x", 6, lambda who: who[1] % 3 == 0)
    inside: dict[tuple[int, int], None] = {}
    for number, (enters, group) in enumerate(steps):
        if not enters:
            for who in [who for who in inside if who[0] == group][:1]:
                taken.leave(who)
                del inside[who]
            continue
        who = (group, number)
        inside[who] = None
        loser = taken.enter(who, str(group), 0.0)
        if loser is not None:
            del inside[loser]
        held = [sum(each[0] == n for each in inside) for n in range(6)]
        # Whoever was turned away had his share already.
        assert loser != who or held[group] + 1 >= max(held)
        assert taken.all() == list(inside)
        assert len(taken) <= 6
