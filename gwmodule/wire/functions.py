"""Functions of the gateway itself, which the MSP calls like those of a device.

They are not in the catalogue (amt.functions), take no credential and run no WS-Man; the gateway
answers from what it knows and, for `explain`, from what it sees in its LAN.
"""

EXPLAIN = "gateway.explain"
STATUS = "gateway.status"
