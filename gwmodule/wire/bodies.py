"""Bodies of results: deflated when they would not fit a frame, inflated with a bound.

A table of records in JSON shrinks to a tenth or less; so most results that are too large for a
frame fit one after all, and cost one round trip instead of those of a bulk channel and of TCP's
slow start.
"""

from __future__ import annotations

import zlib

from gwmodule.errors import Code, RemoteProtocolError

# A full audit log is 1 MiB. Parsed, JSON that means harm takes 25 times its size and, for each MiB,
# an eighth of a second in which the MSP's loop does nothing for the other gateways.
MAX_BODY = 2 * 1024 * 1024
# The fastest: the relay's loop waits for it, and on JSON the better ones gain little.
_LEVEL = 1


class BodyError(RemoteProtocolError):
    """A deflated body that is no zlib stream, or a longer one than allowed."""

    code = Code.FRAME_LAYOUT


def deflate(body: bytes) -> bytes:
    """RFC 1950."""
    return zlib.compress(body, _LEVEL)


def inflate(data: bytes, limit: int = MAX_BODY) -> bytes:
    """The whole body, at most `limit` bytes; BodyError otherwise, with no more memory used."""
    stream = zlib.decompressobj()
    try:
        body = stream.decompress(data, limit + 1)
    except zlib.error as exc:
        raise BodyError(f"a deflated body of {len(data)} bytes is broken: {exc}") from exc
    if len(body) > limit:
        raise BodyError(f"a deflated body of {len(data)} bytes holds more than {limit}")
    if not stream.eof or stream.unused_data:
        raise BodyError(f"a deflated body of {len(data)} bytes does not end where it should")
    return body
