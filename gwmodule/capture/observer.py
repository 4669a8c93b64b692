"""From a frame to an observation, in two steps.

`admit` is cheap and is called for every frame as it is read, so that the kernel's queue stays
short in a boot storm; `observe` is dear and is called for what was admitted, whenever there is
time.
"""

from __future__ import annotations

from dataclasses import dataclass

from gwmodule.capture.dhcp import DhcpObserver, Dissect, Verdict, gate
from gwmodule.capture.hello import TransitReassembler
from gwmodule.capture.packet import Packet, TcpSegment, UdpDatagram, parse_frame
from gwmodule.flood import FloodLimit
from gwmodule.wire.notices import Hello, Lease, LeaseEnd

# A PC that boots by PXE and then starts its OS sends about ten DHCP messages within a minute, and
# a server answers each with one. The limit is per sender and client together: a host that forges
# another's messages uses up its own bucket, not the victim's.
DHCP_RATE = 2.0
DHCP_BURST = 30.0
# A Hello is one to ten segments; even byte by byte the usual 841 bytes get through.
HELLO_RATE = 100.0
HELLO_BURST = 1000.0


@dataclass(slots=True)
class ObserverCounters:
    """Frames by what became of them; `malformed` and `limited` are what somebody should look at."""

    frames: int = 0
    malformed: int = 0
    uninteresting: int = 0
    limited: int = 0
    leases: int = 0
    lease_ends: int = 0
    hellos: int = 0
    hello_garbage: int = 0
    hello_truncated: int = 0
    hello_oversized: int = 0
    hello_evicted: int = 0


class Observer:
    """Everything the capture knows about DHCP and Hello, without a socket."""

    def __init__(self, dissect: Dissect) -> None:
        self._dhcp = DhcpObserver(dissect)
        self._transit = TransitReassembler()
        self._dhcp_limit = FloodLimit(DHCP_RATE, DHCP_BURST)
        self._hello_limit = FloodLimit(HELLO_RATE, HELLO_BURST)
        self._counters = ObserverCounters()

    @property
    def counters(self) -> ObserverCounters:
        """The counters as of now."""
        counters, faults = self._counters, self._transit.faults
        for fault, count in faults.items():
            setattr(counters, f"hello_{fault.value}", count)
        counters.hello_evicted = self._transit.evicted
        return counters

    def admit(self, frame: bytes, outgoing: bool, now: float) -> Packet | None:
        """The packet in a frame if it is worth an `observe`; never raises.

        Of our own outgoing frames only DHCP counts (the gateway is the DHCP server). A Hello that
        leaves through this interface came in through another and was seen there, with the device's
        MAC, which it now has no longer.
        """
        self._counters.frames += 1
        packet = parse_frame(frame)
        match packet:
            case UdpDatagram():
                verdict = gate(packet.payload)
                if isinstance(verdict, Verdict):
                    if verdict is Verdict.MALFORMED:
                        self._counters.malformed += 1
                    else:
                        self._counters.uninteresting += 1
                    return None
                admitted = self._dhcp_limit.admits(packet.mac + verdict, now)
            case TcpSegment():
                if outgoing:
                    self._counters.uninteresting += 1
                    return None
                admitted = self._hello_limit.admits(packet.mac, now)
            case _:
                self._counters.malformed += 1
                return None
        if not admitted:
            self._counters.limited += 1
            return None
        return packet

    def observe(self, packet: Packet, now: float) -> Lease | LeaseEnd | Hello | None:
        """What an admitted packet means; never raises. `now` is when it was read."""
        observation: Lease | LeaseEnd | Hello | None
        if isinstance(packet, UdpDatagram):
            malformed = self._dhcp.malformed
            observation = self._dhcp.observe(packet.payload, now)
            self._counters.malformed += self._dhcp.malformed - malformed
        else:
            observation = self._transit.receive_segment(packet, now)
        match observation:
            case Lease():
                self._counters.leases += 1
            case LeaseEnd():
                self._counters.lease_ends += 1
            case Hello():
                self._counters.hellos += 1
        return observation
