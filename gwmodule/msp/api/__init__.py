"""The technician's API: HTTP and WebSocket, with Open AMT MPS's names (docs/api.md).

routes -> application -> auth, asking -> devices amt gateways accounts ... -> answers
   |                                          |
   +--> openapi                               +--> calls, events, metrics
"""

from gwmodule.msp.api.application import Api, ApiOptions, Parts
from gwmodule.msp.api.listening import api_runner, tcp_socket, unix_socket

__all__ = ["Api", "ApiOptions", "Parts", "api_runner", "tcp_socket", "unix_socket"]
