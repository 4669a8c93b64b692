import random
from collections import Counter

from gwmodule.sim.flaky import Mood, Temper, Turn
from gwmodule.sim.profiles import PROFILES, Mischief

FLAKY = PROFILES["flaky"].mischief


def test_the_same_seed_has_the_same_moods() -> None:
    one, two = (Temper(FLAKY, random.Random(7)) for _ in range(2))
    assert [one.next_turn() for _ in range(200)] == [two.next_turn() for _ in range(200)]


def test_every_mood_comes_and_most_are_good() -> None:
    temper = Temper(FLAKY, random.Random(7))
    turns = [temper.next_turn() for _ in range(2000)]
    moods = Counter(turn.mood for turn in turns)
    assert set(moods) == set(Mood)
    assert moods[Mood.GOOD] > 1600
    assert {turn.delay for turn in turns} == {0.0, FLAKY.delay}


def test_a_good_device_is_always_good() -> None:
    temper = Temper(Mischief(), random.Random(7))
    assert {temper.next_turn() for _ in range(100)} == {Turn()}
