"""Intel AMT relay for ISP gateways, with its reference MSP service and a device simulator."""

import datetime

__version__ = "0.1.0"
# A wall clock before this day was never set (uplink.tls).
BUILD_DATE = datetime.date(2026, 11, 24)
