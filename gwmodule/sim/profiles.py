"""Generations of firmware, and what each can do.

Sources: reference/amt-protocols.md 3.3 (power states), 3.9 (storage), 3.10 (EOI); the year in which
consent, several alarms and One-Click Recovery came is general knowledge.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Feature(enum.Enum):
    """What only some generations have."""

    WSMAN = enum.auto()
    EOI = enum.auto()  # The SOAP services before WS-Man.
    PLAIN = enum.auto()  # Ports without TLS.
    STORAGE = enum.auto()  # Third-party data storage.
    CONSENT = enum.auto()
    KVM = enum.auto()
    ALARMS = enum.auto()
    SLEEP = enum.auto()  # Sleep, hibernate and graceful requests, which need the OS.
    POWER_SAVING = enum.auto()  # Connected standby.
    DIAGNOSTIC_BOOT = enum.auto()
    HTTPS_BOOT = enum.auto()  # One-Click Recovery.


_LAST = 99
# Major versions with it, both included.
_SPANS = {
    Feature.WSMAN: (3, _LAST),
    Feature.EOI: (1, 8),
    Feature.PLAIN: (1, 15),
    Feature.STORAGE: (3, 11),
    Feature.CONSENT: (7, _LAST),
    Feature.KVM: (6, _LAST),
    Feature.ALARMS: (8, _LAST),
    Feature.SLEEP: (9, _LAST),
    Feature.POWER_SAVING: (10, _LAST),
    Feature.DIAGNOSTIC_BOOT: (1, 9),
    Feature.HTTPS_BOOT: (16, _LAST),
}


@dataclass(frozen=True, slots=True)
class Mischief:
    """How badly a device behaves: chances for each request, from 0 to 1, and seconds of delay.

    `single_use`: every nonce is good for one request, so that each is answered with 401 first.
    `page` is how many instances one Pull returns; 0 is as many as the client wants.
    """

    drop: float = 0.0
    fault: float = 0.0
    slow: float = 0.0
    delay: float = 0.0
    single_use: bool = False
    page: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """A generation of firmware and the PC around it.

    `client_control`: it was provisioned by its own operating system (CCM), which makes the consent
    of the person in front of it compulsory.
    """

    name: str
    version: str
    build: int
    manufacturer: str
    model: str
    sku: int
    # Methods that the redirection protocol's query answers for digest logins.
    digest_methods: tuple[int, ...]
    client_control: bool = False
    mischief: Mischief = Mischief()

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def has(self, feature: Feature) -> bool:
        first, last = _SPANS[feature]
        return first <= self.major <= last


_FLAKY = Mischief(drop=0.08, fault=0.05, slow=0.1, delay=0.4, single_use=True, page=1)

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("amt2", "2.2.20", 1026, "Contoso", "Tower 965", 16392, (3,)),
        Profile("amt6", "6.2.61", 3535, "Contoso", "Tower 980", 16392, (3, 4)),
        Profile("amt9", "9.1.45", 3000, "Contoso", "Tower 4770", 16392, (3, 4)),
        Profile("amt11", "11.8.55", 3510, "Contoso", "Tower 2017", 16392, (3, 4)),
        Profile("amt12", "12.0.67", 1579, "Contoso", "Mini 12", 16392, (4,)),
        Profile("amt15", "15.0.23", 1706, "Contoso", "Mini 15", 16392, (4,)),
        Profile("amt16", "16.1.25", 2124, "Contoso", "Mini 16", 16392, (4,)),
        Profile("ccm", "12.0.67", 1579, "Contoso", "Mini 12", 16392, (4,), client_control=True),
        Profile("flaky", "11.8.55", 3510, "Contoso", "Tower 13", 16392, (3, 4), mischief=_FLAKY),
    )
}
DEFAULT_PROFILE = PROFILES["amt12"]
