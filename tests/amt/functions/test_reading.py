import pytest

from gwmodule.amt.functions.reading import (
    binary,
    flag,
    named,
    number,
    numbers,
    optional_number,
    text,
)
from gwmodule.errors import DeviceAnswerError


def test_numbers_are_read_with_their_sign() -> None:
    assert number({"A": "-5"}, "A") == -5
    assert optional_number({"A": ""}, "A") is None
    assert optional_number({}, "A") is None


def test_a_missing_number_is_named() -> None:
    with pytest.raises(DeviceAnswerError, match="no A"):
        number({}, "A")


@pytest.mark.parametrize("value", ["x", "1.5", "0x10", "--5", "-", "9" * 21, ["1"], {}, "²"])
def test_what_is_no_number_is_shown(value: object) -> None:
    with pytest.raises(DeviceAnswerError, match="A is "):
        number({"A": value}, "A")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", True), ("FALSE", False), ("1", True), ("0", False), ("", None), (["true"], None)],
)
def test_flags_are_true_false_or_unknown(value: object, expected: bool | None) -> None:
    assert flag({"A": value}, "A") is expected


def test_a_text_that_is_none_is_empty() -> None:
    assert text({"A": {"B": "c"}}, "A") == text({}, "A") == ""


def test_a_number_has_its_name_beside_it() -> None:
    assert named("x", 2, {2: "on"}) == {"x": 2, "x_name": "on"}
    assert named("x", 3, {2: "on"}) == {"x": 3, "x_name": "unknown (3)"}
    assert named("x", None, {2: "on"}) == {"x": None, "x_name": None}


def test_an_array_of_numbers_has_any_length() -> None:
    assert numbers({"A": ["1", "2"], "B": "3"}, "A") == [1, 2]
    assert numbers({"A": ["1", "2"], "B": "3"}, "B") == [3]
    assert numbers({}, "A") == []
    with pytest.raises(DeviceAnswerError, match="A is 'x'"):
        numbers({"A": ["1", "x"]}, "A")


@pytest.mark.parametrize("value", ["*", "AAA", "ä", {}, ["AAAA"]])
def test_what_is_no_base64_is_shown(value: object) -> None:
    with pytest.raises(DeviceAnswerError, match=r"Data is .* expected base64"):
        binary(value, "Data")
