import asyncio

import pytest

from gwmodule.sim.resolver import resolve


async def test_names_are_resolved_to_ipv4() -> None:
    assert await resolve("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize("host", ["256.256.256.256.", "a" * 70, "\udcff"])
async def test_a_name_that_is_none_is_an_oserror(host: str) -> None:
    with pytest.raises(OSError):
        await resolve(host)


async def test_nobody_waits_for_a_resolver_that_was_given_up() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await resolve("127.0.0.1")
    # The thread's late answer finds a cancelled future and is dropped.
    await asyncio.sleep(0.05)
