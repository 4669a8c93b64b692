"""A SOL session, message by message, with which both of its ends are tested."""

from collections.abc import Iterator

from gwmodule.amt.redirection import LoginMethod, SolSettings, build_authenticate

# The worked transcript of reference/amt-protocols.md 2.3, checked there against an independent
# client: user admin, password P@ssw0rd.
REALM = "Digest:0123456789ABCDEF0123456789ABCDEF"
NONCE = "00112233445566778899aabbccddeeff"
CNONCE = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
HA1 = "b6710485f86e6174cca7404518df56da"
START = bytes.fromhex("10000000 534f4c20")
STARTED = bytes.fromhex("11000000 01000c00 57010000 00")
QUERY = bytes.fromhex("13000000 00 00000000")
METHODS = bytes.fromhex("14000000 00 01000000 04")
URI = bytes.fromhex("13 2f5265646972656374696f6e53657276696365")
ADMIN = bytes.fromhex("05 61646d696e")
FIRST = bytes.fromhex("13000000 04 20000000") + ADMIN + b"\0\0" + URI + bytes(4)
CHALLENGE = (
    bytes.fromhex("14010000 04 4e000000")
    + b"\x27" + REALM.encode() + b"\x20" + NONCE.encode() + b"\x04auth"
)  # fmt: skip
SECOND = (
    bytes.fromhex("13000000 04 b3000000") + ADMIN
    + b"\x27" + REALM.encode() + b"\x20" + NONCE.encode() + URI
    + b"\x20" + CNONCE.encode() + b"\x0800000002"
    + b"\x20d0188627ce6559a2cb50b5aeb956d5df" + b"\x04auth"
)  # fmt: skip
ACCEPTED = bytes.fromhex("14000000 04 00000000")
START_SOL = bytes.fromhex("20000000 00000000 e803 6400 0000 1027 0000 8813 00000000")
SOL_STARTED = bytes.fromhex("21000000 00000000") + bytes(15)
CONTROLS = bytes.fromhex("29000000 00000000 02 04")
LOGIN_PROMPT = bytes.fromhex("2a000000 01000000 0700 6c6f67696e3a20")
SOL_ENDED = bytes.fromhex("23000000 00000000")
AMTTERM = SolSettings(
    max_tx_buffer=1000,
    tx_buffer_timeout_ms=100,
    host_session_rx_timeout_ms=10000,
    heartbeat_interval_ms=5000,
)
FROM_DEVICE = [STARTED, METHODS, CHALLENGE, ACCEPTED, SOL_STARTED, CONTROLS, LOGIN_PROMPT]
TO_DEVICE = [START, QUERY, FIRST, SECOND, START_SOL]


def chunks(stream: bytes, sizes: list[int]) -> Iterator[bytes]:
    position, turn = 0, 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        yield stream[position : position + size]
        position += size
        turn += 1


def login_of(name: str, *more: bytes) -> bytes:
    """A tool's AuthenticateSession: its user name and, in `more`, nonce count and response."""
    fields = [name.encode(), b"", b"", URI[1:], b"", *more]
    fields += [b""] * (8 - len(fields))
    data = b"".join(bytes([len(field)]) + field for field in fields)
    return build_authenticate(LoginMethod.DIGEST, data)
