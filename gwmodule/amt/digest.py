"""HTTP digest authentication as AMT speaks it (RFC 2617, MD5), both the computation and the header.

    Authenticator    the login of one client at a device (gateway)
    Responder        answers for it in mode CHALLENGE, where the secret stays (MSP)

The redirection protocol uses the same computation with method POST and URI /RedirectionService
(reference/amt-protocols.md 2.2 and 3.1).
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gwmodule.errors import AuthenticationFailed, DeviceAnswerError
from gwmodule.wire.frames import CredentialMode
from gwmodule.wire.messages import Credential

# Real ones are about 150 bytes (reference/amt-protocols.md 3.1).
MAX_CHALLENGE = 1024
# Responses that one question may ask for: more requests than an inventory makes, in 1 KiB.
MAX_COUNT = 64
# Responses for one call: the longest enumeration has 512 pages.
MAX_RESPONSES = 1024
# Where a response is good for: never for /RedirectionService, which would be a console.
ANSWERED_URIS = frozenset({"/wsman", "/RemoteControlService"})
# What travels to the MSP as one text.
_MAX_ASKED = 255
_USABLE_QOP = frozenset({"auth", "auth-int"})
_HA1 = re.compile(r"[0-9a-fA-F]{32}")
# What stands between quotes in the header and before a colon in HA1. HTTP headers are ASCII.
_USERNAME = re.compile(r'(?:(?![":\\])[ -~]){1,255}')
_CNONCE = re.compile(r"[0-9A-Za-z]{1,64}")
_NONCE = re.compile(r'[^\x00-\x1f\x7f":\\]{1,255}')
_PARAMETER = re.compile(r'([A-Za-z]+)\s*=\s*(?:"([^"\\]*)"|([^\s,"]+))\s*(?:,|$)')


@dataclass(slots=True)
class Challenge:
    realm: str
    nonce: str
    qop: tuple[str, ...] = ()
    stale: bool = False
    opaque: str = ""


class Wanted(NamedTuple):
    """`batch` responses for POSTs to `uri`, for the nonce counts from `nonce_count` on."""

    realm: str
    nonce: str
    uri: str
    nonce_count: int
    batch: int


def md5_hex(text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def ha1(username: str, realm: str, password: str) -> str:
    """What stands for the password, within one realm only: keep it as secret as the password."""
    return md5_hex(f"{username}:{realm}:{password}")


def ha2(method: str, uri: str, body: bytes | None = None) -> str:
    """`body` only for qop auth-int."""
    text = f"{method}:{uri}"
    return md5_hex(text if body is None else f"{text}:{md5_hex(body)}")


def response(
    secret: str, nonce: str, second: str, *, nc: str = "", cnonce: str = "", qop: str = ""
) -> str:
    """The digest of RFC 2617; without `qop`, that of RFC 2069."""
    if not qop:
        return md5_hex(f"{secret}:{nonce}:{second}")
    return md5_hex(f"{secret}:{nonce}:{nc}:{cnonce}:{qop}:{second}")


def parse_challenge(header: str) -> Challenge:
    """Read a WWW-Authenticate value; DeviceAnswerError when it is no usable digest challenge."""
    if len(header) > MAX_CHALLENGE:
        raise DeviceAnswerError(f"challenge of {len(header)} bytes, maximum {MAX_CHALLENGE}")
    if not header.isascii():
        raise DeviceAnswerError(f"the challenge is not ASCII: {header[:100]!a}")
    scheme, _, rest = header.strip().partition(" ")
    values = {name.lower(): a or b for name, a, b in _PARAMETER.findall(rest)}
    if scheme.lower() != "digest" or not values.get("realm") or not values.get("nonce"):
        raise DeviceAnswerError("the device did not offer digest authentication")
    if values.get("algorithm", "MD5").upper() != "MD5":
        raise DeviceAnswerError(f"digest algorithm {values['algorithm'][:20]!r}, expected MD5")
    qop = tuple(q.strip().lower() for q in values.get("qop", "").split(",") if q.strip())
    if qop and not _USABLE_QOP.intersection(qop):
        raise DeviceAnswerError(f"digest qop {values['qop'][:40]!r}, expected auth or auth-int")
    stale = values.get("stale", "").lower() == "true"
    return Challenge(values["realm"], values["nonce"], qop, stale, values.get("opaque", ""))


def authorization(
    challenge: Challenge,
    username: str,
    secret: str,
    *,
    method: str,
    uri: str,
    nonce_count: int,
    cnonce: str,
    body: bytes = b"",
) -> str:
    """The Authorization value. qop auth where offered, auth-int where that is all there is."""
    qop = "auth" if "auth" in challenge.qop else "auth-int" if challenge.qop else ""
    nc = f"{nonce_count:08x}"
    second = ha2(method, uri, body if qop == "auth-int" else None)
    digest = response(secret, challenge.nonce, second, nc=nc, cnonce=cnonce, qop=qop)
    return _header(challenge, username, digest, uri=uri, qop=qop, nc=nc, cnonce=cnonce)


def _header(
    challenge: Challenge, username: str, digest: str, *, uri: str, qop: str, nc: str, cnonce: str
) -> str:
    parts = [
        f'username="{username}"',
        f'realm="{challenge.realm}"',
        f'nonce="{challenge.nonce}"',
        f'uri="{uri}"',
        f'response="{digest}"',
    ]
    if qop:
        parts += [f"qop={qop}", f"nc={nc}", f'cnonce="{cnonce}"']
    if challenge.opaque:
        parts.append(f'opaque="{challenge.opaque}"')
    return "Digest " + ", ".join(parts)


class Authenticator:
    """The login of one client: answers challenges, and re-uses a nonce until the device objects.

    A challenge for another realm than an HA1's, or without a credential, is never answered: the
    answer to a forged challenge is what a thief needs to search for the password.

    In mode CHALLENGE each request needs a response from elsewhere: `wanted` says which to ask for,
    `take` gets them.
    """

    def __init__(self, credential: Credential, cnonce: Callable[[], str]) -> None:
        """AuthenticationFailed when the credential cannot be used at all; `cnonce` is random."""
        self._credential = credential
        self._cnonce = cnonce
        self._challenge: Challenge | None = None
        self._secret = ""
        self._nonce_count = 0
        # In mode CHALLENGE: responses for the next counts, the uri and cnonce they were made for.
        self._responses: deque[str] = deque()
        self._made_for = ("", "")
        self._count = MAX_COUNT
        if credential.mode is CredentialMode.NONE:
            return
        if not _USERNAME.fullmatch(credential.username):
            raise AuthenticationFailed(
                "a user name is 1 to 255 ASCII characters, no quotes, no colon"
            )
        if credential.mode is CredentialMode.HA1 and not _HA1.fullmatch(credential.secret):
            raise AuthenticationFailed("an HA1 is 32 hexadecimal digits")
        if not credential.secret and credential.mode is not CredentialMode.CHALLENGE:
            raise AuthenticationFailed("the password is empty")

    @property
    def realm(self) -> str:
        """The realm that the device asked for last; empty before its first challenge."""
        return self._challenge.realm if self._challenge else ""

    def authorize(self, method: str, uri: str, body: bytes) -> str | None:
        """The Authorization of the next request; None before a challenge was accepted."""
        if self._challenge is not None and self._responses and uri == self._made_for[0]:
            self._nonce_count += 1
            nc, cnonce = f"{self._nonce_count:08x}", self._made_for[1]
            digest = self._responses.popleft()
            return _header(
                self._challenge,
                self._credential.username,
                digest,
                uri=uri,
                qop="auth",
                nc=nc,
                cnonce=cnonce,
            )
        if self._challenge is None or not self._secret:
            return None
        self._nonce_count += 1
        return authorization(
            self._challenge,
            self._credential.username,
            self._secret,
            method=method,
            uri=uri,
            nonce_count=self._nonce_count,
            cnonce=self._cnonce(),
            body=body,
        )

    def wanted(self, uri: str) -> Wanted | None:
        """What to ask for before the next `authorize`; None when nothing is missing."""
        challenge = self._challenge
        if challenge is None or self._credential.mode is not CredentialMode.CHALLENGE:
            return None
        if self._responses and self._made_for[0] == uri:
            return None
        self._responses.clear()
        return Wanted(challenge.realm, challenge.nonce, uri, self._nonce_count + 1, self._count)

    def take(self, wanted: Wanted, cnonce: str, responses: Sequence[bytes]) -> None:
        """The answer to `wanted`; AuthenticationFailed when it is none."""
        right_size = all(len(digest) == 16 for digest in responses)
        if not 0 < len(responses) <= wanted.batch or not right_size:
            raise AuthenticationFailed(
                f"{len(responses)} responses from the MSP, expected 1 to {wanted.batch}"
            )
        if not _CNONCE.fullmatch(cnonce):
            raise AuthenticationFailed("the cnonce from the MSP is not 1 to 64 letters and digits")
        self._responses = deque(digest.hex() for digest in responses)
        self._made_for = (wanted.uri, cnonce)

    def challenged(self, headers: list[str]) -> None:
        """Take a 401's WWW-Authenticate values; the next `authorize` answers.

        AuthenticationFailed when it must not be answered, DeviceAnswerError when it cannot.
        """
        digests = [value for value in headers if value.lstrip().lower().startswith("digest")]
        challenge = parse_challenge(digests[0] if digests else "")
        # A device whose nonces live for one request is asked about few at a time.
        if self._made_for[0]:
            self._count = min(max(2 * self._nonce_count, 1), MAX_COUNT)
        self._challenge, self._nonce_count, self._secret = challenge, 0, ""
        self._responses.clear()
        credential = self._credential
        if credential.mode is CredentialMode.NONE:
            raise AuthenticationFailed("the device wants a login and no credential was given")
        if credential.mode is CredentialMode.PASSWORD:
            self._secret = ha1(credential.username, challenge.realm, credential.secret)
        elif challenge.realm == credential.realm and credential.mode is CredentialMode.CHALLENGE:
            _require_batchable(challenge)
        elif challenge.realm == credential.realm:
            self._secret = credential.secret.lower()
        else:
            raise AuthenticationFailed(
                f"the device asks for realm {challenge.realm!r}, the credential is for "
                f"{credential.realm!r}; nothing was answered"
            )


def _require_batchable(challenge: Challenge) -> None:
    """AuthenticationFailed unless responses can be made before the requests exist."""
    if "auth" not in challenge.qop:
        offered = ", ".join(challenge.qop) or "none"
        raise AuthenticationFailed(
            f"mode challenge needs digest qop auth, the device offers {offered}"
        )
    if not _NONCE.fullmatch(challenge.nonce):
        raise AuthenticationFailed(
            f"mode challenge needs a nonce of 1 to {_MAX_ASKED} printable characters, no colon"
        )


class Responder:
    """Makes the responses for one call in mode CHALLENGE.

    Whoever asks is not trusted: a response is only made for the realm of the credential, a uri of
    ANSWERED_URIS and a cnonce of our own, and MAX_RESPONSES in all.
    """

    def __init__(self, credential: Credential, cnonce: Callable[[], str]) -> None:
        """`credential.secret` is the HA1 for `credential.realm`; `cnonce` is random."""
        self._realm = credential.realm
        self._secret = credential.secret
        self._cnonce = cnonce
        self._left = MAX_RESPONSES

    def respond(self, wanted: Wanted) -> tuple[str, tuple[bytes, ...]]:
        """A cnonce and the responses; AuthenticationFailed says why there are none."""
        if wanted.realm != self._realm:
            raise AuthenticationFailed(
                f"the device asks for realm {wanted.realm!r}, recorded is {self._realm!r}"
            )
        if wanted.uri not in ANSWERED_URIS:
            raise AuthenticationFailed(f"no response is made for {wanted.uri[:60]!r}")
        if not _NONCE.fullmatch(wanted.nonce):
            raise AuthenticationFailed("a nonce is 1 to 255 printable characters, no colon")
        last = wanted.nonce_count + wanted.batch - 1
        if not (1 <= wanted.batch <= MAX_COUNT and 1 <= wanted.nonce_count <= last <= 0xFFFFFFFF):
            raise AuthenticationFailed(
                f"{wanted.batch} responses from count {wanted.nonce_count} on, "
                f"at most {MAX_COUNT} and from 1 on"
            )
        if wanted.batch > self._left:
            raise AuthenticationFailed(f"more than {MAX_RESPONSES} responses for one call")
        self._left -= wanted.batch
        cnonce, second = self._cnonce(), ha2("POST", wanted.uri)
        return cnonce, tuple(
            bytes.fromhex(
                response(
                    self._secret, wanted.nonce, second, nc=f"{nc:08x}", cnonce=cnonce, qop="auth"
                )
            )
            for nc in range(wanted.nonce_count, last + 1)
        )
