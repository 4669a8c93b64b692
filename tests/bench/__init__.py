"""The measurements of docs/benchmarks.md: `python -m tests.bench [--quick]`.

Nothing here is imported by the product. The processes that are measured run the product's own
classes; what surrounds them (device, technician, other tools) lives in this package.

Needs matplotlib for the plot (extra `bench`) and openssh-server, socat and haproxy from Debian.
"""
