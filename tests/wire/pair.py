"""Gateway and MSP, joined by hand: nothing travels unless a test carries it.

pair.deliver()            both directions until both are silent
pair.cut(); pair.resume() the link breaks; the counts are exchanged over a new one
frames(mux.data_to_send)  what one side says, frame by frame
"""

from __future__ import annotations

import random
from ipaddress import IPv4Address

from gwmodule.config import LivenessConfig, MuxConfig
from gwmodule.wire.codec import Decoder, Frame
from gwmodule.wire.events import Event
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import ResultTarget, StreamTarget
from gwmodule.wire.mux import Mux, Side

TARGET = StreamTarget(IPv4Address("192.168.1.20"), 16994, bytes.fromhex("020000000001"))
EVERYTHING = 1 << 30


class Pair:
    def __init__(
        self, config: MuxConfig | None = None, liveness: LivenessConfig | None = None
    ) -> None:
        self.config = config or MuxConfig()
        self.liveness = liveness or LivenessConfig()
        self.now = 0.0
        self.gateway = self._mux(Side.GATEWAY)
        self.msp = self._mux(Side.MSP)
        self.gateway.attach(0, self.now)
        self.msp.attach(0, self.now)

    def _mux(self, side: Side) -> Mux:
        return Mux(side, self.config, self.liveness, random.Random(1))

    def deliver(self) -> None:
        while True:
            up = self.gateway.data_to_send(EVERYTHING)
            down = self.msp.data_to_send(EVERYTHING)
            if not up and not down:
                return
            self.msp.receive_data(up, self.now)
            self.gateway.receive_data(down, self.now)

    def cut(self) -> None:
        self.gateway.detach()
        self.msp.detach()

    def resume(self) -> None:
        gateway_received, msp_received = self.gateway.received, self.msp.received
        self.gateway.attach(msp_received, self.now)
        self.msp.attach(gateway_received, self.now)

    def open(self, priority: Priority = Priority.INTERACTIVE) -> int:
        """A stream from the MSP that the gateway accepted; both have heard of it."""
        number = self.msp.open(TARGET, priority)
        self.deliver()
        self.gateway.accept(number)
        self.deliver()
        events(self.gateway)
        events(self.msp)
        return number

    def open_result(self, call: int = 1) -> int:
        """A bulk channel from the gateway that the MSP accepted."""
        number = self.gateway.open(ResultTarget(call), Priority.BULK)
        self.deliver()
        self.msp.accept(number)
        self.deliver()
        events(self.gateway)
        events(self.msp)
        return number


def events(mux: Mux) -> list[Event]:
    found = []
    while (event := mux.next_event()) is not None:
        found.append(event)
    return found


def frames(data: bytes) -> list[Frame]:
    decoder = Decoder()
    decoder.receive(data)
    found = []
    while (frame := decoder.next_frame()) is not None:
        found.append(frame)
    assert not decoder.rest()
    return found
