"""The technician's API: HTTP and WebSocket, with Open AMT MPS's names (docs/api.md).

routes -> application -> auth, asking -> devices amt gateways accounts ... -> answers
   |                                          |
   +--> openapi                               +--> calls, events, metrics
"""

from gwmodule.msp.api.application import Api, ApiOptions, Parts
from gwmodule.msp.api.asking import MAX_BODY
from gwmodule.msp.api.listening import tcp_socket, unix_socket
from gwmodule.msp.api.streams import SHUTDOWN_TIMEOUT

__all__ = [
    "MAX_BODY", "SHUTDOWN_TIMEOUT", "Api", "ApiOptions", "Parts", "tcp_socket", "unix_socket",
]  # fmt: skip
