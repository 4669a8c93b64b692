import pytest

from gwmodule.msp.console_protocol import (
    Ack,
    Attach,
    Attached,
    FromService,
    FromViewer,
    HangUp,
    Marked,
    NotOurs,
    Ping,
    Pong,
    ReadOnly,
    State,
    StatusTold,
    TakeOver,
    Want,
    encode,
    from_service,
    from_viewer,
)


@pytest.mark.parametrize(
    "message",
    [
        Attach(),
        Attach("c0ffee", "5ea7", 2**53 - 1, 7, Want.WATCH, 0),
        Ack(5),
        Ping(1),
        TakeOver(),
        HangUp(),
    ],
)
def test_what_a_viewer_says_arrives(message: FromViewer) -> None:
    assert from_viewer(encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        Attached("c0ffee", "5ea7", 5, 1, 0),
        Marked(0, 5, "2027-01-15T08:00:00.000Z", "connected", False),
        StatusTold(State.OPEN, "", 6, True, "5ea7", "ann", "2027-01-15T08:00:00.000Z", 2),
        Pong(1, 0.02, None),
        ReadOnly(),
    ],
)
def test_what_the_service_says_arrives(message: FromService) -> None:
    assert from_service(encode(message)) == message


def test_a_browser_of_before_attaches_as_it_did() -> None:
    text = '{"type": "attach", "console": "c0ffee", "seat": "", "offset": 5, "mark": 1}'
    message = from_viewer(text)
    assert isinstance(message, Attach)
    assert (message.want, message.tail) == (Want.SEAT, 2**53 - 1)


def test_a_client_passes_over_what_a_newer_service_says_too() -> None:
    text = '{"type": "pong", "id": 1, "gateway": null, "device": null, "moon": 1.3}'
    assert from_service(text) == Pong(1, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"type": "nothing"}',
        '{"type": "attach", "offset": -1}',
        '{"type": "attach", "mark": 1e300}',
        '{"type": "attach", "seat": "é"}',
        '{"type": "attach", "seat": "a b"}',
        '{"type": "attach", "seat": "' + "a" * 65 + '"}',
        '{"type": "attach", "want": "all"}',
        '{"type": "attach", "tail": -1}',
        '{"type": "attach", "surprise": 1}',
        '{"type": "ack", "offset": "1"}',
        '{"type": "attached", "console": "c", "seat": "", "offset": 0, "mark": 0, "lost": 0}',
    ],
)
def test_anything_else_from_a_viewer_is_refused(text: str) -> None:
    with pytest.raises(NotOurs) as caught:
        from_viewer(text)
    assert 0 < len(str(caught.value)) <= 100


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"type": "hangup"}'])
def test_anything_else_from_a_service_is_refused(text: str) -> None:
    with pytest.raises(NotOurs):
        from_service(text)
