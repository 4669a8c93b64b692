import contextlib
import json
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.wire.bodies import BodyError, deflate, inflate


@given(st.binary(max_size=5000))
def test_what_was_deflated_is_inflated_again(body: bytes) -> None:
    assert inflate(deflate(body), len(body)) == body


def test_a_table_of_records_fits_a_frame() -> None:
    records = [
        {"time": f"2026-11-{day % 28 + 1:02}T08:00:00Z", "text": "boot"} for day in range(900)
    ]
    body = json.dumps(records).encode()
    assert len(body) > 2 * 16384
    assert len(deflate(body)) < 16384


def test_a_bomb_is_refused_with_the_numbers() -> None:
    with pytest.raises(BodyError, match=r"holds more than 1000"):
        inflate(zlib.compress(bytes(10_000_000)), 1000)


@given(st.binary(max_size=200))
def test_garbage_is_a_typed_error_or_a_body_within_the_limit(data: bytes) -> None:
    with contextlib.suppress(BodyError):
        assert len(inflate(data, 100)) <= 100


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b""])
def test_a_truncated_or_longer_stream_is_refused(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BodyError):
        inflate(change(deflate(b"{}")), 100)
