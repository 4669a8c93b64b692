"""Logs in to a redirection session for a tool that has no login of its own. No I/O.

    tool                              here                       device
      0x13 digest without a name  -->   with our name        -->
                                  <--                        <--   0x14 challenge
      0x13 whatever it made of it -->   our proof            -->
                                  <--                        <--   0x14 status 0
      everything that follows     <-->                       <-->

Open AMT's ui-toolkit and MeshCommander in a browser log in so, with an empty name or `*`, and leave
the rest to the server. What the device says always passes as it comes. A tool that gives a name of
its own logs in end to end: from there on nothing is looked at.
"""

from __future__ import annotations

from collections.abc import Callable

from gwmodule.amt.redirection import (
    AUTHENTICATE,
    Challenge,
    DigestLogin,
    Direction,
    LoginMethod,
    LoginStatus,
    MessageReader,
    MessageType,
    RedirectionFormatError,
    build_authenticate,
    build_digest_login,
    build_proof,
    parse,
    parse_challenge,
    parse_digest_login,
)
from gwmodule.amt.sol import fresh_cnonce
from gwmodule.errors import AuthenticationFailed

NOBODY = ("", "*")
_DIGESTS = (LoginMethod.DIGEST, LoginMethod.DIGEST_RFC2069)
_BEFORE_LOGIN = (MessageType.START_REDIRECTION_SESSION, MessageType.END_REDIRECTION_SESSION)


class LoginInterceptor:
    """`secret(realm)` is HA1 of `username` there; what it raises ends the session."""

    def __init__(
        self,
        username: str,
        secret: Callable[[str], str],
        *,
        cnonce: Callable[[], str] = fresh_cnonce,
    ) -> None:
        self._username = username
        self._secret = secret
        self._cnonce = cnonce
        self._tool = MessageReader(Direction.TO_DEVICE)
        self._device = MessageReader(Direction.FROM_DEVICE)
        self._challenge: Challenge | None = None
        self._proved = False
        # Nothing is ours to change any more.
        self._direct = False

    def to_device(self, data: bytes) -> bytes:
        """What goes on to the device; nothing while a message of the login is not whole."""
        if self._direct:
            return self._tool.rest() + data
        self._tool.receive(data)
        passed = bytearray()
        try:
            while not self._direct and (message := self._tool.next_message()):
                passed += self._of_tool(message)
        except RedirectionFormatError:
            self._direct = True
        return bytes(passed) + (self._tool.rest() if self._direct else b"")

    def from_device(self, data: bytes) -> None:
        """Look at what passes to the tool. AuthenticationFailed when our login is refused."""
        if self._direct:
            return
        self._device.receive(data)
        try:
            while not self._direct and (message := self._device.next_message()):
                if message[0] == MessageType.AUTHENTICATE_SESSION_REPLY:
                    self._on_reply(message)
        except RedirectionFormatError:
            self._direct = True

    def _of_tool(self, message: bytes) -> bytes:
        if message[0] in _BEFORE_LOGIN:
            return message
        if message[0] == MessageType.AUTHENTICATE_SESSION:
            request = parse(AUTHENTICATE, message)
            if request.method == LoginMethod.QUERY:
                return message
            if request.method in _DIGESTS:
                method = LoginMethod(request.method)
                if parse_digest_login(method, request.data).username in NOBODY:
                    return self._login(method)
        self._direct = True
        return message

    def _login(self, method: LoginMethod) -> bytes:
        challenge, self._challenge = self._challenge, None
        if challenge is None:
            first = DigestLogin(self._username)
            return build_authenticate(method, build_digest_login(method, first))
        self._proved = True
        secret = self._secret(challenge.realm)
        return build_proof(method, challenge, self._username, secret, self._cnonce())

    def _on_reply(self, message: bytes) -> None:
        reply = parse(AUTHENTICATE, message)
        if reply.method not in _DIGESTS:
            return
        if reply.status == LoginStatus.OK:
            self._direct = True
        elif self._proved:
            # Tools answer one challenge after the other, and the device counts failures.
            raise AuthenticationFailed("the device refused the login that is stored for it")
        elif reply.status == LoginStatus.REFUSED:
            challenge = parse_challenge(LoginMethod(reply.method), reply.data)
            self._challenge = challenge if challenge.answerable else None
