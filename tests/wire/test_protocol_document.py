"""docs/protocol.md says what the code does: every table and every example is compared."""

from __future__ import annotations

import enum
import random
import re
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from construct import Bytes, Const, GreedyBytes, Prefixed, Struct, Switch, Terminated

from gwmodule.config import LivenessConfig, MuxConfig
from gwmodule.errors import Code
from gwmodule.wire import codec, handshake, mux, notices
from gwmodule.wire.channel import TRANSITIONS
from gwmodule.wire.codec import Frame
from gwmodule.wire.events import MessageReceived
from gwmodule.wire.frames import (
    ALPN,
    HEADER,
    HEADER_SIZE,
    MAX_CHANNEL,
    MAX_PAYLOAD,
    MAX_REASON,
    MESSAGES,
    NO_TOKEN,
    PAYLOADS,
    RESULT_TARGET,
    STREAM_TARGET,
    TOKEN_SIZE,
    UNSEQUENCED,
    VERSION,
    ChannelKind,
    CredentialMode,
    FrameType,
    Priority,
    TlsMode,
)
from gwmodule.wire.handshake import Handshake
from gwmodule.wire.liveness import MAX_PINGS
from gwmodule.wire.messages import (
    Call,
    Challenge,
    Credential,
    GoAway,
    Greeting,
    Notice,
    NoticeAck,
    Responses,
    Result,
    StreamTarget,
    Welcome,
)
from gwmodule.wire.mux import Mux, Side
from gwmodule.wire.notices import Lease
from tests.wire.pair import EVERYTHING, events, frames

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
_EXAMPLE = re.compile(r"^    (gateway|msp) +([A-Z_]+) +([0-9a-f ]+)$", re.MULTILINE)


def section(title: str) -> str:
    """The text under the one heading that begins with this title, up to the next heading."""
    found = re.findall(rf"^##+ {re.escape(title)}(?![\w]).*?$(.*?)(?=^##|\Z)", TEXT, re.M | re.S)
    assert len(found) == 1, f"{title}: {len(found)} sections"
    return str(found[0])


def rows(title: str) -> list[list[str]]:
    """The cells of the section's table, without its head; code marks are taken off."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def sizes(layout: Any) -> list[list[str]]:
    """Field names and sizes in order, as the tables write them."""
    fields = [field for field in layout.subcons if field.name]
    return [[field.name, size(field.subcon)] for field in fields]


def size(field: Any) -> str:
    if isinstance(field, Prefixed):
        return f"{field.lengthfield.sizeof()} + n"
    if isinstance(field, Switch):
        return "by kind"
    return "rest" if field is GreedyBytes else str(field.sizeof())


# ---- tables -----------------------------------------------------------------------------------


def test_the_frame_types_are_those_of_the_schema() -> None:
    def place(frame_type: FrameType) -> str:
        if frame_type is FrameType.CREDIT:
            return "any"
        return "0" if frame_type in UNSEQUENCED | MESSAGES else "1-65535"

    assert [row[:4] for row in rows("Frame types")] == [
        [f"{t:#04x}", t.name, place(t), "no" if t in UNSEQUENCED else "yes"] for t in FrameType
    ]


def test_the_header_is_that_of_the_schema() -> None:
    assert [row[:2] for row in rows("Header")] == sizes(HEADER)


@pytest.mark.parametrize("frame_type", list(FrameType))
def test_the_fields_of_each_frame_are_those_of_the_schema(frame_type: FrameType) -> None:
    assert [row[:2] for row in rows(frame_type.name)] == sizes(PAYLOADS[frame_type])


@pytest.mark.parametrize(
    ("title", "layout"), [("Target STREAM", STREAM_TARGET), ("Target RESULT", RESULT_TARGET)]
)
def test_the_targets_are_those_of_the_schema(title: str, layout: Any) -> None:
    assert [row[:2] for row in rows(title)] == sizes(layout)


def test_the_observations_are_those_of_the_schema() -> None:
    assert [row[:2] for row in rows("Observation")] == sizes(notices.OBSERVATION)
    kinds = notices._KINDS
    assert [row[:2] for row in rows("Kinds of observation")] == [
        [str(number), cls.__name__] for number, (cls, _) in kinds.items()
    ]
    for cls, layout in kinds.values():
        assert [row[:2] for row in rows(f"Body of {cls.__name__}")] == sizes(layout)


@pytest.mark.parametrize(
    ("title", "members"),
    [
        ("Codes", Code),
        ("Priority", Priority),
        ("Channel kind", ChannelKind),
        ("Credential mode", CredentialMode),
        ("TLS mode", TlsMode),
        ("Source", notices.Source),
        ("Provisioning", notices.Provisioning),
    ],
)
def test_the_numbers_are_those_of_the_code(title: str, members: type[enum.IntEnum]) -> None:
    assert [row[:2] for row in rows(title)] == [[str(m.value), m.name] for m in members]


def test_the_limits_are_those_of_the_code() -> None:
    defaults, liveness = MuxConfig(), LivenessConfig()
    assert {row[0]: row[1] for row in rows("Limits")} == {
        "version": str(VERSION),
        "header": str(HEADER_SIZE),
        "payload": str(MAX_PAYLOAD),
        "first frame": str(handshake.MAX_FIRST_FRAME),
        "text": str(MAX_REASON),
        "token": str(TOKEN_SIZE),
        "channel number": str(MAX_CHANNEL),
        "Hello": str(notices.MAX_HELLO),
        "observation": str(notices.MAX_OBSERVATION),
        "control window": str(defaults.control_window),
        "interactive window": str(defaults.interactive_window),
        "bulk window": str(defaults.bulk_window),
        "bulk window, grown": str(defaults.bulk_window_cap),
        "all windows of a session": str(defaults.memory),
        "replay": str(defaults.memory),
        "channels": str(defaults.max_channels),
        "answers waiting": str(mux.MAX_ANSWERS),
        "messages waiting": str(mux.MAX_MESSAGES),
        "PINGs unanswered": str(MAX_PINGS),
        "frames to an ACK": str(mux.ACK_FRAMES),
        "bytes to an ACK": str(mux.ACK_BYTES),
        "share of bulk": f"1/{defaults.bulk_share}",
        "PING interval": f"{liveness.interval:g} s",
        "silence": f"{liveness.timeout:g} s",
    }


def test_the_states_are_those_of_the_code() -> None:
    written = {(state, event): to for state, event, to in rows("Channel states")}
    assert written == {
        (state.name, event.name): to.name
        for state, row in TRANSITIONS.items()
        for event, to in row.items()
    }


def test_the_transport_is_named_as_the_code_does() -> None:
    assert f"`{ALPN}`" in section("Transport")


def test_only_known_kinds_of_fields_are_in_the_schema() -> None:
    # `size` must not guess when a layout learns something new.
    for layout in [*PAYLOADS.values(), notices.OBSERVATION]:
        assert isinstance(layout, Struct)
        for field in layout.subcons:
            inner = getattr(field, "subcon", field)
            fixed = isinstance(inner, Bytes | Const) or hasattr(inner, "fmtstr")
            known = isinstance(inner, Prefixed | Switch) or inner in (GreedyBytes, Terminated)
            assert fixed or known or not field.name


# ---- examples ---------------------------------------------------------------------------------


GREETING = Greeting(
    boot_id=bytes.fromhex("0102030405060708"),
    token=NO_TOKEN,
    received=0,
    timeout=12.0,
    clock_trusted=True,
    deployment="gateway",
    software="gwmodule/0.1.0",
    lowest_version=1,
    highest_version=1,
)
WELCOME = Welcome(
    version=1,
    resumed=False,
    token=bytes.fromhex("a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"),
    received=0,
    wait=120,
    observed_address="203.0.113.9",
    observed_port=40112,
    gateway="gw-0007",
)
DEVICE = UUID("4c4c4544-0034-5210-8056-b5c04f4a4e31")
ADDRESS, MAC = IPv4Address("192.168.1.20"), bytes.fromhex("02000000000a")


class Recorder:
    """Two ends and a line that keeps each frame it carries."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Frame]] = []
        self.muxes = {
            "gateway": Mux(Side.GATEWAY, MuxConfig(), LivenessConfig(), random.Random(1)),
            "msp": Mux(Side.MSP, MuxConfig(), LivenessConfig(), random.Random(1)),
        }
        self.gateway, self.msp = self.muxes["gateway"], self.muxes["msp"]

    def record(self, sender: str, data: bytes) -> None:
        self.sent += [(sender, frame) for frame in frames(data)]

    def turn(self, now: float = 0.0) -> None:
        for sender, receiver in (("gateway", self.msp), ("msp", self.gateway)):
            data = self.muxes[sender].data_to_send(EVERYTHING)
            self.record(sender, data)
            receiver.receive_data(data, now)


def conversation() -> list[tuple[str, Frame]]:
    """First contact, a lease, two power calls, a SOL stream, a resumed link, the end."""
    line = Recorder()
    line.record("gateway", codec.build_greeting(GREETING))
    line.record("msp", codec.build_welcome(WELCOME))
    line.gateway.attach(0, 0.0)
    line.msp.attach(0, 0.0)
    line.turn()
    line.gateway.send_message(Notice(1, 0.25, Lease(MAC, ADDRESS, 3600, "pc-1")))
    line.turn()
    line.msp.send_message(NoticeAck(1))
    secret = Credential(CredentialMode.HA1, "admin", "0" * 32, "Digest:A1")
    line.msp.send_message(
        Call(1, 30.0, ADDRESS, MAC, DEVICE, "power.get", credential=secret, tls=TlsMode.OFF)
    )
    line.turn()
    line.gateway.send_message(Result(1, Code.OK, 0.021, 2, b'{"state":"on"}'))
    line.turn()
    kept = Credential(CredentialMode.CHALLENGE, "admin", "", "Digest:A1")
    line.msp.send_message(
        Call(2, 30.0, ADDRESS, MAC, DEVICE, "power.get", credential=kept, tls=TlsMode.OFF)
    )
    line.turn()
    line.gateway.send_message(Challenge(2, "Digest:A1", "n0nce", "/wsman", 1, 2))
    line.turn()
    line.msp.send_message(Responses(2, "c0ffee", (b"\x0a" * 16, b"\x0b" * 16)))
    line.turn()
    line.gateway.send_message(Result(2, Code.OK, 0.071, 2, b'{"state":"on"}'))
    stream = line.msp.open(StreamTarget(ADDRESS, 16994, MAC, DEVICE), Priority.INTERACTIVE)
    line.turn()
    line.gateway.accept(stream)
    line.turn()
    # StartRedirectionSession for SOL; its way back is cut.
    line.msp.send(stream, bytes.fromhex("10000000534f4c20"), 0.0)
    line.record("msp", line.msp.data_to_send(EVERYTHING))
    line.gateway.detach()
    line.msp.detach()
    again = Greeting(**{name: getattr(GREETING, name) for name in Greeting.__slots__})
    again.token, again.received = WELCOME.token, line.gateway.received
    line.record("gateway", codec.build_greeting(again))
    back = Welcome(**{name: getattr(WELCOME, name) for name in Welcome.__slots__})
    back.resumed, back.received = True, line.msp.received
    back.token = bytes.fromhex("b0b1b2b3b4b5b6b7b8b9babbbcbdbebf")
    line.record("msp", codec.build_welcome(back))
    line.gateway.attach(line.msp.received, 0.0, rtt=0.05)
    line.msp.attach(line.gateway.received, 0.0)
    line.turn()
    line.gateway.handle_timeout(4.0)
    line.turn(4.0)
    line.gateway.send_eof(stream)
    line.turn()
    line.msp.send_eof(stream)
    line.turn()
    line.msp.go_away(GoAway(Code.SHUTDOWN, "maintenance", "msp2.example:4433", 60))
    line.turn()
    return line.sent


def as_written(sent: list[tuple[str, Frame]]) -> list[tuple[str, str, str]]:
    def words(frame: Frame) -> str:
        data = codec.build_frame(*frame)
        head = data[:HEADER_SIZE].hex()
        return f"{head[:4]} {head[4:8]} {head[8:]} {data[HEADER_SIZE:].hex()}".rstrip()

    return [(sender, frame.type.name, words(frame)) for sender, frame in sent]


def test_the_example_is_what_our_two_ends_say() -> None:
    examples = [(m[1], m[2], m[3].rstrip()) for m in _EXAMPLE.finditer(section("Example"))]
    assert examples == as_written(conversation())


def test_the_example_replays_through_the_codec() -> None:
    welcome, welcomes = Handshake(FrameType.WELCOME, 10.0), 0
    gateway = Mux(Side.GATEWAY, MuxConfig(), LivenessConfig(), random.Random(1))
    for match in _EXAMPLE.finditer(section("Example")):
        sender, name, data = match[1], match[2], bytes.fromhex(match[3])
        (frame,) = frames(data)
        assert frame.type.name == name
        if name == "GREETING":
            greeting = codec.parse_greeting(frame.payload)
            assert greeting.boot_id == GREETING.boot_id
        elif name == "WELCOME":
            welcome = Handshake(FrameType.WELCOME, 10.0)
            welcome.receive_data(data, 0.0)
            parsed = welcome.next_event()
            assert isinstance(parsed, Welcome)
            assert parsed.resumed == bool(welcomes)
            gateway.attach(parsed.received, 0.0) if not welcomes else None
            welcomes += 1
        elif sender == "msp" and frame.type in MESSAGES:
            gateway.receive_data(codec.build_frame(*frame), 0.0)
            (event,) = events(gateway)
            assert isinstance(event, MessageReceived)
    assert welcomes == 2


def test_every_frame_that_the_example_leaves_out_is_known_to_be_left_out() -> None:
    shown = {frame.type for _, frame in conversation()}
    assert set(FrameType) - shown == {
        FrameType.ACK,
        FrameType.REFUSE,
        FrameType.RESET,
        FrameType.PROGRESS,
        FrameType.CANCEL,
    }
