from __future__ import annotations

import pytest

from tests.wire.pair import Pair


@pytest.fixture
def pair() -> Pair:
    return Pair()
