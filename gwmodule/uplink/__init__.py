"""The link between gateway and MSP: TLS, sockets, and the gateway's dialing."""
