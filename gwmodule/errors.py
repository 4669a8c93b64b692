"""Every error the package raises on purpose.

    GatewayError
      ConfigError                       message and exit code 78, before anything starts
      ProtocolError
        LocalProtocolError              our bug: crash the task
        RemoteProtocolError             GOAWAY(code), drop the link, back off
          FrameSizeError  FrameLayoutError  FlowControlError  ChannelStateError
      ChannelReset                      that channel only
      LinkLost  HandshakeRefused        the dialer decides
      PolicyRefused                     a target the gateway does not connect to
      AmtError                          the answer of a call
        DeviceUnreachable  AuthenticationFailed  WsmanFault  IdentityMismatch  ...
      CaptureError                      no permission or no such interface

The code that travels on the wire is a class attribute (docs/protocol.md, "Codes").
"""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """Why a link, a channel or a call ended. One number space (docs/protocol.md)."""

    OK = 0
    # links and sessions
    PROTOCOL_ERROR = 1
    FRAME_SIZE = 2
    FRAME_LAYOUT = 3
    FLOW_CONTROL = 4
    CHANNEL_STATE = 5
    VERSION = 6
    IDENTITY = 7
    DUPLICATE_IDENTITY = 8
    REPLACED = 9
    SHUTDOWN = 10
    SESSION_LOST = 11
    TIMEOUT = 12
    # channels
    CANCELLED = 32
    REFUSED_POLICY = 33
    UNREACHABLE = 34
    CONNECTION_REFUSED = 35
    CONNECTION_LOST = 36
    LIMIT = 37
    POWER_ACTION = 38
    INTERNAL = 39
    # calls
    UNKNOWN_FUNCTION = 64
    BAD_ARGUMENT = 65
    DEADLINE = 66
    AUTHENTICATION = 67
    WSMAN_FAULT = 68
    IDENTITY_MISMATCH = 69
    NOT_PROVISIONED = 70
    DEVICE_ANSWER = 71
    NOT_SUPPORTED = 72
    DEVICE_REFUSED = 73
    TLS_PIN = 74


class GatewayError(Exception):
    """Base of all errors this package raises on purpose."""


class ConfigError(GatewayError):
    """A configuration that cannot be used: which file, which key, what is wrong with it."""

    def __init__(self, path: str, key: str, problem: str) -> None:
        super().__init__(f"{path}: {key}: {problem}" if key else f"{path}: {problem}")
        self.path = path
        self.key = key
        self.problem = problem


class ProtocolError(GatewayError):
    code = Code.PROTOCOL_ERROR


class LocalProtocolError(ProtocolError):
    """We were about to break the protocol ourselves."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; the link cannot be trusted any longer."""


class FrameSizeError(RemoteProtocolError):
    code = Code.FRAME_SIZE


class FrameLayoutError(RemoteProtocolError):
    code = Code.FRAME_LAYOUT


class FlowControlError(RemoteProtocolError):
    code = Code.FLOW_CONTROL


class ChannelStateError(RemoteProtocolError):
    code = Code.CHANNEL_STATE


class ChannelReset(GatewayError):
    """One channel ended early; the others do not notice."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class LinkLost(GatewayError):
    """The TCP or TLS connection is gone; the session may survive it."""


class HandshakeRefused(GatewayError):
    """The peer answered the greeting with GOAWAY."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(f"refused by the peer: {reason} ({code.name})")
        self.code = code


class PolicyRefused(GatewayError):
    """The gateway does not connect there, whoever asks."""

    code = Code.REFUSED_POLICY

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


class CaptureError(GatewayError):
    """No permission to sniff, or the interface is gone."""


class AmtError(GatewayError):
    """A call that a device or our own check ended; `code` goes into the result."""

    code = Code.INTERNAL


class UnknownFunction(AmtError):
    code = Code.UNKNOWN_FUNCTION


class BadArgument(AmtError):
    code = Code.BAD_ARGUMENT


class DeadlineExceeded(AmtError):
    code = Code.DEADLINE


class DeviceUnreachable(AmtError):
    code = Code.UNREACHABLE


class AuthenticationFailed(AmtError):
    code = Code.AUTHENTICATION


class NotProvisioned(AmtError):
    code = Code.NOT_PROVISIONED


class IdentityMismatch(AmtError):
    code = Code.IDENTITY_MISMATCH


class TlsPinMismatch(AmtError):
    code = Code.TLS_PIN


class DeviceAnswerError(AmtError):
    """The device answered something that is no WS-Man answer: wrong type, too large, not XML."""

    code = Code.DEVICE_ANSWER


class DeviceRefused(AmtError):
    """The device understood and said no: a method's ReturnValue other than 0."""

    code = Code.DEVICE_REFUSED

    def __init__(self, method: str, return_value: int, meaning: str) -> None:
        super().__init__(f"{method} returned {return_value} ({meaning})")
        self.return_value = return_value


class WsmanFault(AmtError):
    """A SOAP fault (DSP0226): code, subcode and the device's reason text."""

    code = Code.WSMAN_FAULT

    def __init__(self, fault_code: str, subcode: str, reason: str) -> None:
        super().__init__(f"{fault_code}/{subcode}: {reason}")
        self.fault_code = fault_code
        self.subcode = subcode
        self.reason = reason
