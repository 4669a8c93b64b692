"""The ports of Intel AMT and of what speaks beside it, by the field's names.

Sources: IANA's registry for 623 and 16992 to 16995; reference/amt-protocols.md 1 for Hellos.
"""

from __future__ import annotations

RMCP_PORT = 623
HELLO_PORT = 9971
WSMAN_HTTP = 16992
WSMAN_HTTPS = 16993
REDIRECTION_TCP = 16994
REDIRECTION_TLS = 16995
WSMAN_PORTS = (WSMAN_HTTP, WSMAN_HTTPS)
AMT_PORTS = (*WSMAN_PORTS, REDIRECTION_TCP, REDIRECTION_TLS)
