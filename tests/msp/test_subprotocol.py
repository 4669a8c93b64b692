from gwmodule.errors import Code
from gwmodule.msp.subprotocol import close_code, close_reason, code_of, first_leaf


def test_close_codes_are_private_and_reversible() -> None:
    for code in Code:
        assert code_of(close_code(code)) is code
        assert code is Code.OK or 4000 <= close_code(code) < 5000
    for other in (None, 1006, 1011, 4999):
        assert code_of(other) is Code.CONNECTION_LOST
    assert len(close_reason("ü" * 200)) == 122


def test_the_first_leaf_of_nested_groups() -> None:
    inner = ExceptionGroup("inner", [ValueError("first"), ValueError("second")])
    assert str(first_leaf(ExceptionGroup("outer", [inner, ValueError("third")]))) == "first"
