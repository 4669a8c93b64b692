"""The capture service: what a gateway sees on its LAN, as typed observations.

    AF_PACKET socket --> packet --> observer --+--> dhcp --> dissect (scapy) --> Lease, LeaseEnd
      kernel filter: bpf                       +--> hello (reassembly) --------> Hello
                                                                                   |
    relay.capture_client <-- SOCK_SEQPACKET, one datagram each <-- service <-------+

A process of its own without any capability: it parses what everybody in the LAN may send, so a
fault in it costs neither the relay's latency nor its keys. `sniffer`, `dissect` and `service`
touch the system; the rest is pure. `rmcp` (presence ping and pong) and `hello` are used by the
relay as well.
"""
