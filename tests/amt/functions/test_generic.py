from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.amt import wsman
from gwmodule.amt.functions import generic
from gwmodule.amt.wsman import Embedded
from gwmodule.errors import BadArgument
from tests.amt.device import FakeDevice, run


async def test_any_class_is_read() -> None:
    device = FakeDevice({"CIM_Thing": [{"A": "1"}, {"A": "2"}]})
    one = await run(device, "wsman.get", **{"class": "CIM_Thing", "selectors": {"A": "1"}})
    assert one == {"instance": {"A": "1"}}
    every = await run(device, "wsman.enumerate", **{"class": "CIM_Thing"})
    assert every == {"instances": [{"A": "1"}, {"A": "2"}]}


async def test_any_instance_is_written() -> None:
    device = FakeDevice({"CIM_Thing": [{"A": "1"}]})
    arguments: dict[str, Any] = {"class": "CIM_Thing", "properties": {"A": "2"}}
    assert await run(device, "wsman.put", **arguments) == {"instance": {"A": "2"}}


@pytest.mark.parametrize(
    ("output", "value", "name"),
    [
        ({"ReturnValue": "5", "X": "y"}, 5, "invalid parameter"),
        ({"ReturnValue": "0"}, 0, "completed"),
        ({}, None, None),
    ],
)
async def test_a_return_value_is_told_and_not_judged(
    output: dict[str, str], value: int | None, name: str | None
) -> None:
    device = FakeDevice(methods={"CIM_Thing.Do": lambda arguments: output})
    result = await run(device, "wsman.invoke", **{"class": "CIM_Thing", "method": "Do"})
    assert result == {"output": output, "return_value": value, "return_value_name": name}


async def test_an_object_with_a_class_is_an_instance_of_it() -> None:
    device = FakeDevice(methods={"CIM_Thing.Do": lambda arguments: {}})
    given: dict[str, Any] = {"T": [{"class": "IPS_X", "A": {"Datetime": "2027"}}], "N": 5}
    await run(device, "wsman.invoke", **{"class": "CIM_Thing", "method": "Do", "arguments": given})
    assert device.arguments == [{"T": [Embedded("IPS_X", {"A": {"Datetime": "2027"}})], "N": 5}]


async def test_a_selector_that_is_no_text_is_refused() -> None:
    with pytest.raises(BadArgument, match="selector 'A'"):
        await run(FakeDevice(), "wsman.get", **{"class": "CIM_Thing", "selectors": {"A": 1}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["class", "ResourceURI", "SelectorSet", "A", "b c"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["A", "B", "class", "<"]), JSON))
def test_any_json_is_an_envelope_or_a_bad_argument(arguments: dict[str, Any]) -> None:
    try:
        data = wsman.invoke("CIM_Thing", "Do", "1", generic.to_values(arguments))
    except BadArgument:
        return
    assert wsman.parse_answer(data).name == "Do_INPUT"
