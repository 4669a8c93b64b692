"""What both ends of a relayed stream agree on: subprotocol, close codes, sizes.

A WebSocket has no half-close. A tool that offers SUBPROTOCOL gets one: an empty binary message is
the end of that direction, and the connection closes when both have ended. It is also told its
stream's id, as `boot.once` takes it, in a text message before the first byte: `{"stream": 6}`. The
close code is 1000, or 4000 + errors.Code with the reason in words.
"""

from __future__ import annotations

from typing import TypeVar

from gwmodule.errors import Code

_E = TypeVar("_E", bound=BaseException)

SUBPROTOCOL = "gwmodule.stream.1"
CLOSE_NORMAL = 1000
CLOSE_GOING_AWAY = 1001
# Private use (RFC 6455 section 7.4.2); errors.Code is below 256.
CLOSE_BASE = 4000
# A close frame holds 125 bytes, two of them the code.
MAX_CLOSE_REASON = 123
# A tool's message; every known one sends less than 64 KiB at a time.
MAX_MESSAGE = 1024 * 1024


def close_code(code: Code) -> int:
    return CLOSE_NORMAL if code is Code.OK else CLOSE_BASE + code


def code_of(close: int | None) -> Code:
    """The reverse of `close_code`; what is no code of ours counts as a lost connection."""
    if close in (CLOSE_NORMAL, CLOSE_GOING_AWAY):
        return Code.OK
    try:
        return Code((close or 0) - CLOSE_BASE)
    except ValueError:
        return Code.CONNECTION_LOST


def close_reason(reason: str) -> bytes:
    return reason.encode()[:MAX_CLOSE_REASON].decode(errors="ignore").encode()


def first_leaf(group: BaseExceptionGroup[_E]) -> _E:
    """The first error of a task group: what ended it; the others follow from it."""
    error = group.exceptions[0]
    return first_leaf(error) if isinstance(error, BaseExceptionGroup) else error
