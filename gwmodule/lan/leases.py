"""dnsmasq's lease file as observations: how a gateway without the capture service sees leases.

One line for each IPv4 lease, `EXPIRY MAC ADDRESS NAME CLIENT-ID` (dnsmasq(8), --dhcp-leasefile);
IPv6 leases and the server's own DUID stand in the same file and are passed over. Names are what
clients call themselves.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address

from gwmodule.wire.notices import MAX_HOSTNAME, Lease, LeaseEnd, parse_mac

# 1,024 leases of the longest kind are about 600 KiB.
MAX_FILE = 1024 * 1024


class LeaseFile:
    """Remembers the last reading; only what is new, changed or gone is told."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[IPv4Address, int, str]] = {}
        self.counters = {"malformed": 0, "oversized": 0}

    def changes(self, data: bytes, now: float) -> list[Lease | LeaseEnd]:
        """What the file's new content says; `now` is unix time, as the file's times are.

        A file over MAX_FILE is counted and changes nothing; so does each line that is no lease.
        """
        if len(data) > MAX_FILE:
            self.counters["oversized"] += 1
            return []
        found: dict[bytes, tuple[IPv4Address, int, str]] = {}
        for line in data.decode(errors="replace").splitlines():
            entry = self._parse(line)
            if entry is not None:
                found[entry[0]] = entry[1:]
        told: list[Lease | LeaseEnd] = [
            LeaseEnd(mac, address)
            for mac, (address, _, _) in self._known.items()
            if mac not in found or found[mac][0] != address
        ]
        for mac, (address, expiry, name) in found.items():
            if self._known.get(mac) != (address, expiry, name):
                # An expiry of 0 is a lease without end.
                seconds = 0xFFFFFFFF if expiry == 0 else min(max(0, expiry - int(now)), 0xFFFFFFFF)
                told.append(Lease(mac, address, seconds, name))
        self._known = found
        return told

    def _parse(self, line: str) -> tuple[bytes, IPv4Address, int, str] | None:
        fields = line.split()
        if len(fields) < 4 or fields[0] == "duid" or ":" in fields[2]:
            return None
        try:
            expiry = int(fields[0])
            # A hardware type other than Ethernet stands in front of its address: `06-02:..`.
            mac, address = parse_mac(fields[1]), IPv4Address(fields[2])
        except (ValueError, AddressValueError):
            self.counters["malformed"] += 1
            return None
        name = "" if fields[3] == "*" else fields[3][:MAX_HOSTNAME]
        return mac, address, max(expiry, 0), name
