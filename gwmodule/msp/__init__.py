"""The Management Service Provider's side: registry, gateway sessions, API, technician's tools.

      CLI, terminal, forward          amtterm, MeshCommander, wsman
            |  HTTP and WebSocket           |  TCP on loopback
            v  on a unix socket             v
           api, relay <---- client ---- forward
            |       \\
            |        +--> registry (SQLite): gateways, devices, hosts, audit
            v
           seam: locate(gateway) --> session --> listener <==== one TLS link ==== gateway

The live session of a gateway belongs to one process; everything else is in the registry.
"""
