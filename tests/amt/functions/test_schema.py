import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.amt.functions import CATALOGUE, find, validate
from gwmodule.errors import BadArgument, UnknownFunction

# Names are API (design: "Calls").
NAMES = """
identity.get power.get power.set boot.once inventory.get general.get network.get eventlog.get
eventlog.clear auditlog.get redirection.get redirection.set kvm.set consent.get consent.start
consent.send consent.cancel alarm.list alarm.add alarm.delete time.get time.sync nvm.list nvm.read
nvm.write nvm.allocate nvm.free wsman.get wsman.put wsman.enumerate wsman.invoke
"""


def test_the_catalogue_has_every_name() -> None:
    assert set(CATALOGUE) == set(NAMES.split())


def test_a_function_is_found_by_its_name() -> None:
    assert find("power.get").summary


def test_only_what_changes_something_says_so() -> None:
    reading = {name for name, function in CATALOGUE.items() if not function.changes_state}
    verbs = {name.rpartition(".")[2] for name in reading}
    assert verbs == {"get", "list", "read", "enumerate"}


def test_the_whole_schema_is_json() -> None:
    described = json.loads(json.dumps([each.as_json() for each in CATALOGUE.values()]))
    power = next(each for each in described if each["name"] == "power.set")
    state, wait, *_ = power["arguments"]
    assert state["required"]
    assert state["choices"]["reset"] == 10
    assert (wait["unit"], wait["default"]) == ("seconds", 0)


@pytest.mark.parametrize(
    ("name", "hint"), [("power.gett", "power.get"), ("pwr.set", "power.set"), ("x", "known: ")]
)
def test_an_unknown_function_names_its_neighbours(name: str, hint: str) -> None:
    with pytest.raises(UnknownFunction, match=hint):
        find(name)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("power.set", {}, "state is missing, must be one of on"),
        ("power.set", {"state": "of"}, r"state is 'of'.*off \(8\)"),
        ("power.set", {"state": 99}, r"state is 99.*reset \(10\)"),
        ("power.set", {"state": True}, "state is True"),
        ("power.set", {"state": "on", "wait": 301}, "wait is 301.*0 and 300 seconds"),
        ("power.set", {"state": "on", "wait": -1}, "wait is -1"),
        ("power.set", {"state": "on", "wait": 1.5}, r"wait is 1\.5"),
        ("power.set", {"state": "on", "by": "x" * 65}, "by is.*64 characters"),
        ("power.set", {"state": "on", "by": "a\nb"}, "by is"),
        ("power.set", {"state": "on", "weit": 1}, "no argument 'weit'.*did you mean wait"),
        ("power.get", {"x": 1}, "it has: none"),
        ("boot.once", {"device": "tape"}, "device is 'tape', must be one of default, pxe"),
        ("kvm.set", {"enabled": "maybe"}, "true or false"),
        ("nvm.write", {"enterprise": "E", "block": 1, "data": "*"}, "data is '\\*'.*base64"),
        ("nvm.write", {"enterprise": "E", "block": 1, "data": ""}, "1 to 65536 bytes"),
        ("nvm.write", {"enterprise": "E", "block": 1, "data": 7}, "data is 7"),
        ("nvm.write", {"enterprise": "E", "block": 1, "data": "ä"}, "data is"),
        ("nvm.list", {"enterprise": "E", "caller": "x"}, "a UUID"),
        ("wsman.get", {"class": "CIM_Chassis", "selectors": []}, "an object"),
    ],
)
def test_a_bad_argument_is_named_with_what_is_allowed(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadArgument, match=message):
        validate(CATALOGUE[name], arguments)


def test_an_object_that_nests_without_end_is_refused() -> None:
    nested: dict[str, Any] = {}
    for _ in range(500):
        nested = {"x": nested}
    with pytest.raises(BadArgument, match="at most 8 deep"):
        validate(CATALOGUE["wsman.get"], {"class": "CIM_Chassis", "selectors": nested})


@pytest.mark.parametrize("state", ["reset", 10, "10"])
def test_a_choice_is_a_name_or_its_number(state: Any) -> None:
    assert validate(CATALOGUE["power.set"], {"state": state})["state"] == 10


def test_texts_of_a_shell_become_numbers_and_flags() -> None:
    given_ = {"state": "on", "wait": "20"}
    assert validate(CATALOGUE["power.set"], given_)["wait"] == 20
    assert validate(CATALOGUE["kvm.set"], {"enabled": "True"})["enabled"] is True


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(CATALOGUE)), st.data())
def test_any_json_is_accepted_or_a_bad_argument(name: str, data: st.DataObject) -> None:
    function = CATALOGUE[name]
    names = st.sampled_from([argument.name for argument in function.arguments] or ["x"])
    arguments = data.draw(st.dictionaries(names, JSON))
    try:
        typed = validate(function, arguments)
    except BadArgument:
        return
    assert set(typed) == {argument.name for argument in function.arguments}
