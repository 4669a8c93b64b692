"""The protocol between gateway and MSP, without I/O: bytes and time in, events and bytes out.

    events <-- Mux.next_event            Mux.data_to_send(budget) --> bytes
               |                                   ^
               |  channels, credit, replay         |  classes: control < interactive < bulk
               v                                   |
    frames --> Decoder  <-- receive_data(data, now)

docs/protocol.md describes it for somebody who writes the other end in another language.
"""
