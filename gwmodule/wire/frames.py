"""The one normative schema of the protocol: every frame, field and limit, as construct layouts.

     0        1        2                 4                                   8
    +--------+--------+-----------------+-----------------------------------+---------...
    | type   | flags  | channel         | length of the payload             | payload
    +--------+--------+-----------------+-----------------------------------+---------...

All integers are in network order. docs/protocol.md is compared with this module by a test. Nothing
here is compiled with `construct.compile()`: compiled parsers accept truncated input.
"""

from __future__ import annotations

import enum

from construct import (
    Bytes,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Pass,
    Prefixed,
    Struct,
    Switch,
    Terminated,
    this,
)

VERSION = 1
ALPN = "gwmodule/1"
HEADER_SIZE = 8
# The most that may stand between a keystroke and the wire: 16 ms at 1 MB/s.
MAX_PAYLOAD = 16384
MAX_REASON = 255
TOKEN_SIZE = 16
RESPONSE_SIZE = 16
NO_TOKEN = bytes(TOKEN_SIZE)
CONTROL_CHANNEL = 0
MAX_CHANNEL = 0xFFFF


class FrameType(enum.IntEnum):
    GREETING = 0x01
    WELCOME = 0x02
    GOAWAY = 0x03
    PING = 0x04
    PONG = 0x05
    ACK = 0x06
    CREDIT = 0x07
    OPEN = 0x10
    ACCEPT = 0x11
    REFUSE = 0x12
    DATA = 0x13
    EOF = 0x14
    RESET = 0x15
    NOTICE = 0x20
    NOTICE_ACK = 0x21
    CALL = 0x22
    PROGRESS = 0x23
    RESULT = 0x24
    CANCEL = 0x25
    CHALLENGE = 0x26
    RESPONSES = 0x27


# Link business, lost with the link; everything else is counted, kept and replayed.
UNSEQUENCED = frozenset(
    {
        FrameType.GREETING,
        FrameType.WELCOME,
        FrameType.GOAWAY,
        FrameType.PING,
        FrameType.PONG,
        FrameType.ACK,
        FrameType.CREDIT,
    }
)
# Their numbers are the low ones, so that the hot path compares instead of looking up.
FIRST_SEQUENCED = int(FrameType.OPEN)
# Control messages: on channel 0 and under its credit.
MESSAGES = frozenset(
    {
        FrameType.NOTICE,
        FrameType.NOTICE_ACK,
        FrameType.CALL,
        FrameType.PROGRESS,
        FrameType.RESULT,
        FrameType.CANCEL,
        FrameType.CHALLENGE,
        FrameType.RESPONSES,
    }
)


class Priority(enum.IntEnum):
    """Strict between classes, round robin within one."""

    CONTROL = 0
    INTERACTIVE = 1
    BULK = 2


class ChannelKind(enum.IntEnum):
    STREAM = 1  # MSP to gateway: raw bytes to a port of a device.
    RESULT = 2  # Gateway to MSP: the body of a result that is larger than one frame.


class CredentialMode(enum.IntEnum):
    NONE = 0
    HA1 = 1  # secret is MD5(user:realm:password) as 32 hex digits, valid for `realm` only.
    PASSWORD = 2  # First contact only, when the technician allows it.
    CHALLENGE = 3  # secret is empty: the MSP answers each nonce itself, for `realm` only.


class TlsMode(enum.IntEnum):
    """How to speak to the device itself; AUTO tries 16993 and 16992 and reports which answered."""

    AUTO = 0
    OFF = 1
    MODERN = 2
    LEGACY = 3  # TLS 1.0 and SECLEVEL 0, for firmware before AMT 12.


HEADER = Struct("type" / Int8ub, "flags" / Int8ub, "channel" / Int16ub, "length" / Int32ub)

_text8 = Prefixed(Int8ub, GreedyBytes)
_text16 = Prefixed(Int16ub, GreedyBytes)

STREAM_TARGET = Struct(
    "address" / Bytes(4),
    "port" / Int16ub,
    "mac" / Bytes(6),
    "uuid" / Bytes(16),
    "hold" / Int8ub,
)
RESULT_TARGET = Struct("call" / Int32ub)

PAYLOADS = {
    FrameType.GREETING: Struct(
        "lowest_version" / Int8ub,
        "highest_version" / Int8ub,
        "boot_id" / Bytes(8),
        "token" / Bytes(TOKEN_SIZE),
        "received" / Int64ub,
        "timeout_ms" / Int32ub,
        "clock_trusted" / Int8ub,
        "deployment" / _text8,
        "software" / _text8,
        Terminated,
    ),
    FrameType.WELCOME: Struct(
        "version" / Int8ub,
        "resumed" / Int8ub,
        "token" / Bytes(TOKEN_SIZE),
        "received" / Int64ub,
        "wait" / Int16ub,
        "observed_port" / Int16ub,
        "observed_address" / _text8,
        "gateway" / _text8,
        Terminated,
    ),
    FrameType.GOAWAY: Struct(
        "code" / Int16ub, "deadline" / Int16ub, "address" / _text8, "reason" / _text8, Terminated
    ),
    FrameType.PING: Struct(
        "cookie" / Int32ub, "received" / Int64ub, "rtt_us" / Int32ub, Terminated
    ),
    FrameType.PONG: Struct("cookie" / Int32ub, "received" / Int64ub, Terminated),
    FrameType.ACK: Struct("received" / Int64ub, Terminated),
    FrameType.CREDIT: Struct("limit" / Int64ub, "received" / Int64ub, Terminated),
    FrameType.OPEN: Struct(
        "kind" / Int8ub,
        "priority" / Int8ub,
        "limit" / Int32ub,
        "target"
        / Switch(
            this.kind,
            {int(ChannelKind.STREAM): STREAM_TARGET, int(ChannelKind.RESULT): RESULT_TARGET},
        ),
        Terminated,
    ),
    FrameType.ACCEPT: Struct("limit" / Int32ub, Terminated),
    FrameType.REFUSE: Struct("code" / Int16ub, "reason" / _text8, Terminated),
    FrameType.DATA: Struct("data" / GreedyBytes),
    FrameType.EOF: Struct(Pass, Terminated),
    FrameType.RESET: Struct("code" / Int16ub, "reason" / _text8, Terminated),
    FrameType.NOTICE: Struct("sequence" / Int64ub, "age_ms" / Int32ub, "observation" / GreedyBytes),
    FrameType.NOTICE_ACK: Struct("sequence" / Int64ub, "want_snapshot" / Int8ub, Terminated),
    FrameType.CALL: Struct(
        "call" / Int32ub,
        "deadline_ms" / Int32ub,
        "address" / Bytes(4),
        "mac" / Bytes(6),
        "uuid" / Bytes(16),
        "tls" / Int8ub,
        "pin" / Bytes(32),
        "function" / _text8,
        "realm" / _text8,
        "credential_mode" / Int8ub,
        "username" / _text8,
        "secret" / _text8,
        "arguments" / _text16,
        Terminated,
    ),
    FrameType.PROGRESS: Struct(
        "call" / Int32ub, "done" / Int32ub, "total" / Int32ub, "step" / _text8, Terminated
    ),
    FrameType.RESULT: Struct(
        "call" / Int32ub,
        "code" / Int16ub,
        "elapsed_ms" / Int32ub,
        "exchanges" / Int16ub,
        # 1: the body did not fit and comes on a bulk channel opened for this call.
        "detached" / Int8ub,
        # 1: the body is a zlib stream (RFC 1950).
        "deflated" / Int8ub,
        "body" / GreedyBytes,
    ),
    FrameType.CANCEL: Struct("call" / Int32ub, Terminated),
    FrameType.CHALLENGE: Struct(
        "call" / Int32ub,
        "nonce_count" / Int32ub,
        "count" / Int8ub,
        "realm" / _text8,
        "nonce" / _text8,
        "uri" / _text8,
        Terminated,
    ),
    FrameType.RESPONSES: Struct(
        "call" / Int32ub,
        "cnonce" / _text8,
        "reason" / _text8,
        "responses" / GreedyBytes,
    ),
}
