"""HTTP digest authentication as AMT speaks it (RFC 2617, MD5), both the computation and the header.

The redirection protocol uses the same computation with method POST and URI /RedirectionService
(reference/amt-protocols.md 2.2 and 3.1).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from gwmodule.errors import DeviceAnswerError

MAX_CHALLENGE = 1024
_PARAMETER = re.compile(r'([A-Za-z]+)\s*=\s*(?:"([^"\\]*)"|([^\s,"]+))\s*(?:,|$)')


@dataclass(slots=True)
class Challenge:
    realm: str
    nonce: str
    qop: tuple[str, ...] = ()
    stale: bool = False
    opaque: str = ""


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
    scheme, _, rest = header.strip().partition(" ")
    values = {name.lower(): a or b for name, a, b in _PARAMETER.findall(rest)}
    if scheme.lower() != "digest" or not values.get("realm") or not values.get("nonce"):
        raise DeviceAnswerError("the device did not offer digest authentication")
    if values.get("algorithm", "MD5").upper() != "MD5":
        raise DeviceAnswerError(f"digest algorithm {values['algorithm'][:20]!r}, expected MD5")
    qop = tuple(q.strip().lower() for q in values.get("qop", "").split(",") if q.strip())
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
