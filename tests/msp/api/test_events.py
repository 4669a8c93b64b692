import pytest

from gwmodule.msp.api.events import (
    MAX_QUEUE,
    MAX_WATCHERS_PER_TENANT,
    Events,
    TooManyWatchers,
)


async def test_events_reach_their_tenant_only_and_in_order() -> None:
    events = Events()
    with events.watch("a") as of_a, events.watch("b") as of_b:
        events.publish("a", "device", {"n": 1})
        events.publish("a", "gateway", {"text": "line\nbreak"})
        text = await of_a.next(1.0)
        assert text == (
            b'event: device\ndata: {"n":1}\n\nevent: gateway\ndata: {"text":"line\\nbreak"}\n\n'
        )
        assert await of_b.next(0.01) == b": still here\n\n"


async def test_a_slow_watcher_is_told_that_it_lost_events() -> None:
    events = Events()
    with events.watch("a") as watcher:
        for n in range(MAX_QUEUE + 5):
            events.publish("a", "device", {"n": n})
        text = await watcher.next(1.0)
        assert text.startswith(b'event: lagged\ndata: {"lost":%d}\n\n' % MAX_QUEUE)
        assert text.count(b"event: device") == 5
        events.publish("a", "device", {"n": 0})
        assert b"lagged" not in await watcher.next(1.0)


async def test_watchers_are_bounded_and_leave_their_place() -> None:
    events = Events()
    contexts = [events.watch("a") for _ in range(MAX_WATCHERS_PER_TENANT)]
    for context in contexts:
        context.__enter__()
    with pytest.raises(TooManyWatchers), events.watch("a"):
        pass
    with events.watch("b"):
        pass
    contexts[0].__exit__(None, None, None)
    with events.watch("a"):
        assert len(events) == MAX_WATCHERS_PER_TENANT
