from __future__ import annotations

import pytest
from aiohttp import web

from gwmodule.msp.api.answers import ApiError
from gwmodule.msp.api.once import MAX_ANSWERS, MAX_KEPT, REMEMBERED, Answers, UsedKeys
from gwmodule.msp.database import Database
from tests.msp.conftest import NOW


async def test_an_answer_is_found_by_who_asked_and_its_key() -> None:
    answers = Answers()
    answer = answers.begin("a", "anna", "k", b"f")
    assert answers.find("a", "anna", "k") is answer
    for other in (("b", "anna", "k"), ("a", "bob", "k"), ("a", "anna", "l")):
        assert answers.find(*other) is None


async def test_what_is_forgotten_begins_anew() -> None:
    answers = Answers()
    answers.end("a", answers.begin("a", "anna", "k", b"f"), web.Response())
    answers.forget("a", "anna", "k")
    assert answers.find("a", "anna", "k") is None
    answers.forget("a", "anna", "k")


async def test_nobody_pushes_out_what_another_tenant_runs() -> None:
    answers = Answers()
    answer = answers.begin("a", "anna", "k", b"f")
    for number in range(2 * MAX_ANSWERS):
        ended = answers.begin("b", "bob", str(number), b"f")
        answers.end("b", ended, web.Response(status=404))
    assert answers.find("a", "anna", "k") is answer
    assert answers.find("b", "bob", "0") is None
    assert answers.find("b", "bob", str(2 * MAX_ANSWERS - 1)) is ended


async def test_what_runs_is_never_forgotten_but_more_is_refused() -> None:
    answers = Answers()
    running = [answers.begin("a", "anna", str(n), b"f") for n in range(MAX_ANSWERS)]
    with pytest.raises(ApiError) as refused:
        answers.begin("a", "anna", "more", b"f")
    assert refused.value.status == 429
    answers.end("a", running[7], web.Response())
    answers.begin("a", "anna", "more", b"f")
    found = [answers.find("a", "anna", str(n)) for n in range(MAX_ANSWERS)]
    assert [n for n, answer in enumerate(found) if answer is None] == [7]


async def test_the_bytes_of_a_tenant_are_bounded() -> None:
    answers = Answers()
    large = MAX_KEPT // 4
    for number in range(20):
        answer = answers.begin("a", "anna", str(number), b"f")
        answers.end("a", answer, web.Response(body=bytes(large)))
    kept = [n for n in range(20) if answers.find("a", "anna", str(n))]
    assert kept == [16, 17, 18, 19]


async def test_a_key_is_used_once_a_day_on_whatever_node(database: Database) -> None:
    assert await UsedKeys(database).use("a", "anna", "k", NOW)
    assert not await UsedKeys(database).use("a", "anna", "k", NOW + REMEMBERED - 1)
    for other in (("b", "anna", "k"), ("a", "bob", "k"), ("a", "anna", "l"), ("a", "annak", "")):
        assert await UsedKeys(database).use(*other, NOW)
    assert await UsedKeys(database).use("a", "anna", "k", NOW + REMEMBERED)
    (row,) = await database.fetch("SELECT count(*) AS keys FROM used_keys")
    assert row["keys"] == 1
