"""Intel AMT relay for ISP gateways, with its reference MSP service and a device simulator."""

__version__ = "0.1.0"
