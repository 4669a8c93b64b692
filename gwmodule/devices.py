"""What the gateway knows about the PCs of its LAN: a bounded table in RAM, rebuilt from the wire.

    leases, Hellos (capture, listener) --> observe ---+            +--> next_probe --> relay.probe
    neighbours (lan.netlink) ------------> neighbour -+--> table --+         |
    answers (relay.probe) ---------------> probed ----+     |      +--- probed <---+
                                                            v
             session_started, acknowledge, snapshot_wanted, Outbox --> next_notice --> MSP

A device is keyed by its MAC; one that only sent a Hello, before ARP knew it, by its UUID until its
MAC turns up. Nothing here is believed: a forged lease or Hello costs a place in the table and a
probe, and a device that answers its probes is never pushed out by one that does not.
"""

from __future__ import annotations

import enum
import hashlib
import heapq
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any, TypeAlias, assert_never
from uuid import UUID

from gwmodule.config import DevicesConfig, ProbeConfig
from gwmodule.wire.messages import Notice
from gwmodule.wire.notices import (
    NO_MAC,
    Digest,
    Gone,
    Hello,
    Lease,
    LeaseEnd,
    Observation,
    Presence,
    Provisioning,
    format_mac,
)

Key: TypeAlias = bytes | UUID

# Soft-off takes AMT off the wire for some seconds and ARP answers get lost: one miss says nothing.
MISSES_UNTIL_GONE = 3
# Seconds to the first repeated probe, doubling up to the probe interval. It is also the least time
# between two probes of one device, whatever leases, Hellos and ARP say in the meantime.
FIRST_RETRY = 10.0


class State(enum.Enum):
    """What a device last showed. The values are words of `gwmodule devices`."""

    HOST = "host"  # On the LAN; nothing says that it has AMT.
    SETUP = "setup"  # Has AMT, not provisioned: sent a Hello, or its pong says so.
    MANAGED = "managed"  # Answered as a provisioned device.
    SILENT = "silent"  # Missed one or two probes: asleep, or gone soon.
    GONE = "gone"  # Missed three.


class Input(enum.Enum):
    HELLO = enum.auto()
    SETUP_ANSWER = enum.auto()
    MANAGED_ANSWER = enum.auto()
    MISS = enum.auto()
    LOST = enum.auto()


_ALIVE = {
    Input.HELLO: State.SETUP,
    Input.SETUP_ANSWER: State.SETUP,
    Input.MANAGED_ANSWER: State.MANAGED,
}
_FADING = {Input.MISS: State.SILENT, Input.LOST: State.GONE}
# MISS and LOST are for devices that have answered before; a HOST misses nothing.
TRANSITIONS: dict[State, dict[Input, State]] = {
    State.HOST: _ALIVE,
    State.SETUP: _ALIVE | _FADING,
    State.MANAGED: _ALIVE | _FADING,
    State.SILENT: _ALIVE | _FADING,
    State.GONE: _ALIVE,
}

# What a newer observation makes untrue, so that a snapshot does not repeat it.
_REPLACES: dict[type[Observation], type[Observation]] = {
    Lease: LeaseEnd,
    LeaseEnd: Lease,
    Presence: Gone,
    Gone: Presence,
}


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask whether the device with `mac` at `address` has AMT."""

    mac: bytes
    address: IPv4Address


@dataclass(slots=True)
class Seen:
    """An observation and when it was made, on the loop's clock."""

    observation: Observation
    at: float


@dataclass(slots=True)
class Device:
    """One row. Times are the loop's clock; None is never."""

    key: Key
    address: IPv4Address
    seen: float
    hostname: str = ""
    uuid: UUID | None = None
    state: State = State.HOST
    # The newest of each kind that still holds, for snapshots.
    latest: dict[type[Observation], Seen] = field(default_factory=dict)
    # The kernel's neighbour table has our MAC at our address.
    reachable: bool = False
    # Where it last answered, until it is gone. A forged lease may have moved `address` elsewhere.
    proved: IPv4Address | None = None
    answered: float | None = None
    reported: float | None = None
    probed: float | None = None
    misses: int = 0
    probing: bool = False
    probe_at: float | None = None

    @property
    def mac(self) -> bytes:
        return self.key if isinstance(self.key, bytes) else NO_MAC


class Devices:
    """The table and its outbox: at most `config.max_devices` rows of some hundred bytes, and the
    last Hello of each (under 1 KiB from real firmware, 8 KiB at the very most).

    What is true is not decided here: every observation becomes a notice, and the MSP judges.
    """

    def __init__(self, config: DevicesConfig, probe: ProbeConfig) -> None:
        self._config = config
        self._probe = probe
        self._retry = min(FIRST_RETRY, probe.interval)
        # Least recently seen first.
        self._table: OrderedDict[Key, Device] = OrderedDict()
        # Hellos whose MAC nobody knows yet; their keys in the table.
        self._unplaced: dict[UUID, Hello] = {}
        self._outbox = Outbox(config.repeat)
        # (due, tie breaker, key); an entry is void unless the device's probe_at is still `due`.
        self._due: list[tuple[float, int, bytes]] = []
        self._ticket = 0
        self.counters = dict.fromkeys(
            ("observed", "ignored", "evicted", "refused_full", "merged", "probes", "answers"), 0
        )

    def __len__(self) -> int:
        return len(self._table)

    # -- what was seen ---------------------------------------------------------------------------

    def observe(self, observation: Observation, now: float) -> None:
        """A lease, its end, or a Hello, seen at `now`, which may be a while ago: what was seen
        earlier never overwrites what was seen later. Anything else, and anything from an
        impossible MAC, is counted as ignored: capture events come from a process that parses
        hostile input.
        """
        self.counters["observed"] += 1
        match observation:
            case Lease() | LeaseEnd():
                self._on_lease(observation, now)
            case Hello():
                self._on_hello(observation, now)
            case Presence() | Gone() | Digest():
                self.counters["ignored"] += 1
            case _:
                assert_never(observation)

    def neighbour(self, mac: bytes, address: IPv4Address, reachable: bool, now: float) -> None:
        """The kernel found `mac` at `address`, or lost it there."""
        if not _is_device(mac):
            self.counters["ignored"] += 1
            return
        device = self._find(mac, address, now) if reachable else self._table.get(mac)
        if device is None:
            return
        if reachable:
            # A MAC may have many addresses (aliases, proxy ARP): one with a lease, or one that ARP
            # still sees, is not given up for another.
            if not device.reachable and not self._leased(device, now):
                self._move(device, address)
            self._merge_unplaced(device, address, now)
        if device.address == address and device.reachable != reachable:
            device.reachable = reachable
            # A host that never answered is not worth a probe when it leaves.
            if reachable or device.proved:
                self._probe_soon(device, now)

    # -- probes ----------------------------------------------------------------------------------

    def next_probe(self, now: float) -> Probe | None:
        """The next probe that is due. Answer each with `probed`; until then its device is left
        alone. How many run at a time is the caller's business.
        """
        due = self.next_probe_at()
        if due is None or due > now:
            return None
        _, _, key = heapq.heappop(self._due)
        device = self._table[key]
        device.probing, device.probe_at = True, None
        self.counters["probes"] += 1
        return Probe(key, self._target(device))

    def next_probe_at(self) -> float | None:
        """When `next_probe` has something again; None while nothing is planned."""
        while self._due:
            due, _, key = self._due[0]
            device = self._table.get(key)
            if device is not None and device.probe_at == due:
                return due
            heapq.heappop(self._due)
        return None

    def probed(self, probe: Probe, presence: Presence | None, now: float) -> None:
        """The outcome of a probe; None is no answer, or an answer from another MAC."""
        device = self._table.get(probe.mac)
        if device is None or not device.probing:
            return
        device.probing, device.probed = False, now
        if probe.address not in (device.address, device.proved):
            # It moved meanwhile; this says nothing about where it is now.
            self._plan(device, now)
        elif presence is not None:
            self._on_answer(device, probe, presence, now)
        else:
            self._on_miss(device, probe, now)

    # -- notices ---------------------------------------------------------------------------------

    def next_notice(self, now: float) -> Notice | None:
        """The next notice to send: new ones, then those unacknowledged for `config.repeat`."""
        return self._outbox.next_notice(now)

    def acknowledge(self, sequence: int) -> None:
        """The MSP has committed the notice with this number. One number, not all below it: a
        notice whose commit failed must not be covered by a later one that succeeded.
        """
        self._outbox.acknowledge(sequence)

    def session_started(self, now: float) -> None:
        """A fresh session: a digest of the table first, then everything unacknowledged again, with
        new sequence numbers: an acknowledgement of the old session that comes late means nothing.
        """
        if self._outbox.holds(None, Digest):
            # The MSP never confirmed the last digest, so its wish for a snapshot may be lost.
            self.snapshot_wanted(now)
        self._outbox.restart(Seen(self.digest(), now))

    def snapshot_wanted(self, now: float) -> None:
        """Queue the whole table, each observation with the age it really has."""
        for device in self._table.values():
            for seen in sorted(device.latest.values(), key=lambda seen: seen.at):
                if not self._outbox.holds(device.key, type(seen.observation)):
                    self._outbox.put(device.key, seen)

    def digest(self) -> Digest:
        """A hash over what a snapshot would say, in any order, without times and counters.

        The MSP keeps the last one of each gateway and compares: it cannot compute it. Equal means
        that nothing has changed since that session, and no snapshot is needed.
        """
        rows = sorted(map(_row_digest, self._table.values()))
        return Digest(len(rows), hashlib.sha256(b"".join(rows)).digest())

    def next_notice_at(self) -> float | None:
        """When an unacknowledged notice is due again; new ones do not wait for it."""
        return self._outbox.next_repeat()

    # -- for people ------------------------------------------------------------------------------

    def listing(self, now: float) -> list[dict[str, Any]]:
        """For `gwmodule devices`: JSON-able rows, least recently seen first; ages in seconds."""
        return [self._row(device, now) for device in self._table.values()]

    def status(self) -> dict[str, int]:
        """Counters since the start, and what is waiting now."""
        return {
            "devices": len(self._table),
            "unacknowledged": len(self._outbox),
            **self.counters,
            **self._outbox.counters,
        }

    # -- private: observations -------------------------------------------------------------------

    def _on_lease(self, lease: Lease | LeaseEnd, now: float) -> None:
        if not _is_device(lease.mac):
            self.counters["ignored"] += 1
            return
        device = self._find(lease.mac, lease.address, now)
        if device is None or _outdated(device, type(lease), now):
            return
        if isinstance(lease, Lease):
            device.hostname = lease.hostname or device.hostname
            device.uuid = lease.uuid or device.uuid
            self._move(device, lease.address)
            self._merge_unplaced(device, lease.address, now)
        # An ended lease is no proof of absence: AMT often keeps the address when the OS leaves.
        self._record(device, lease, now)
        self._probe_soon(device, now)

    def _on_hello(self, hello: Hello, now: float) -> None:
        if hello.mac == NO_MAC:
            hello = replace(hello, mac=self._mac_at(hello.address))
        if hello.mac != NO_MAC and not _is_device(hello.mac):
            self.counters["ignored"] += 1
            return
        key = hello.uuid if hello.mac == NO_MAC else hello.mac
        device = self._find(key, hello.address, now)
        if device is None or _outdated(device, Hello, now):
            return
        if isinstance(key, UUID):
            self._unplaced[key] = hello
        elif (before := self._unplaced.get(hello.uuid)) and before.address == hello.address:
            self._forget(hello.uuid)
        self._move(device, hello.address)
        self._take_hello(device, hello, now)
        self._probe_soon(device, now)

    def _mac_at(self, address: IPv4Address) -> bytes:
        here = (d.mac for d in self._table.values() if d.address == address and d.reachable)
        return next(here, NO_MAC)

    def _merge_unplaced(self, device: Device, address: IPv4Address, now: float) -> None:
        """A Hello came from `address` before anybody knew whose it was: it is this device's."""
        here = [hello for hello in self._unplaced.values() if hello.address == address]
        for hello in here:
            at = self._table[hello.uuid].latest[Hello].at
            self._forget(hello.uuid)
            self.counters["merged"] += 1
            self._move(device, address)
            self._take_hello(device, replace(hello, mac=device.mac), at)
            self._probe_soon(device, now)

    def _take_hello(self, device: Device, hello: Hello, at: float) -> None:
        device.uuid = hello.uuid
        device.state = TRANSITIONS[device.state][Input.HELLO]
        self._record(device, hello, at)

    def _record(self, device: Device, observation: Observation, at: float) -> None:
        kind = type(observation)
        device.latest.pop(_REPLACES.get(kind, kind), None)
        device.latest[kind] = Seen(observation, at)
        self._outbox.put(device.key, device.latest[kind])

    def _move(self, device: Device, address: IPv4Address) -> None:
        if device.address != address:
            device.address, device.reachable = address, False
            # Say where it really is, even if that is where it answered before.
            device.reported = None

    def _leased(self, device: Device, now: float) -> bool:
        seen = device.latest.get(Lease)
        return (
            seen is not None
            and isinstance(seen.observation, Lease)
            and seen.at + seen.observation.seconds > now
        )

    # -- private: rows ---------------------------------------------------------------------------

    def _find(self, key: Key, address: IPv4Address, now: float) -> Device | None:
        """The row of `key`, made if need be; None when only rows that must stay are left."""
        device = self._table.get(key)
        if device is None:
            if len(self._table) >= self._config.max_devices and not self._evict():
                self.counters["refused_full"] += 1
                return None
            device = self._table[key] = Device(key, address, seen=now)
        device.seen = max(device.seen, now)
        self._table.move_to_end(key)
        return device

    def _evict(self) -> bool:
        # A device that answers stays, and so does a Hello that the MSP has not got yet: it may be
        # the only one for hours. Newcomers find the door shut rather than push one of these out.
        for key, device in self._table.items():
            if device.proved is None and not self._outbox.holds(key, Hello):
                self._forget(key)
                self.counters["evicted"] += 1
                return True
        return False

    def _forget(self, key: Key) -> None:
        if self._table.pop(key, None) is not None:
            self._outbox.forget(key)
            if isinstance(key, UUID):
                self._unplaced.pop(key, None)

    # -- private: probes -------------------------------------------------------------------------

    def _probe_soon(self, device: Device, now: float) -> None:
        due = now if device.probed is None else max(now, device.probed + self._retry)
        if device.probe_at is None or due < device.probe_at:
            self._plan(device, due)

    def _plan(self, device: Device, due: float) -> None:
        if not self._probe.enabled or device.probing:
            return
        if isinstance(device.key, UUID):
            return  # Without a MAC the answer could be anybody's.
        device.probe_at = due
        self._ticket += 1
        heapq.heappush(self._due, (due, self._ticket, device.key))
        if len(self._due) > 2 * self._config.max_devices + 64:
            self._due = [entry for entry in self._due if self._holds(entry)]
            heapq.heapify(self._due)

    def _holds(self, entry: tuple[float, int, bytes]) -> bool:
        due, _, key = entry
        device = self._table.get(key)
        return device is not None and device.probe_at == due

    def _target(self, device: Device) -> IPv4Address:
        """Every other attempt goes where the device last answered."""
        if device.proved is not None and device.misses % 2:
            return device.proved
        return device.address

    def _on_answer(self, device: Device, probe: Probe, presence: Presence, now: float) -> None:
        self.counters["answers"] += 1
        device.seen = now
        self._table.move_to_end(device.key)
        if device.address != probe.address:
            self._move(device, probe.address)
        setup = presence.provisioning in (Provisioning.PRE, Provisioning.IN)
        answer = Input.SETUP_ANSWER if setup else Input.MANAGED_ANSWER
        device.state = TRANSITIONS[device.state][answer]
        device.proved, device.answered, device.misses = probe.address, now, 0
        presence = replace(
            presence, mac=probe.mac, address=probe.address, uuid=presence.uuid or device.uuid
        )
        known = device.latest.get(Presence)
        stale = device.reported is None or now - device.reported >= self._probe.interval
        if known is None or known.observation != presence or stale:
            device.reported = now
            self._record(device, presence, now)
        else:
            known.at = now
        self._plan(device, now + self._probe.interval)

    def _on_miss(self, device: Device, probe: Probe, now: float) -> None:
        device.misses += 1
        if device.proved is not None:
            lost = device.misses >= MISSES_UNTIL_GONE
            device.state = TRANSITIONS[device.state][Input.LOST if lost else Input.MISS]
            if lost:
                gone = Gone(probe.mac, device.proved)
                device.proved = device.reported = None
                self._record(device, gone, now)
        # The exponent only keeps the number small; the interval is the bound.
        delay = self._retry * 2 ** min(device.misses - 1, 16)
        self._plan(device, now + min(delay, self._probe.interval))

    # -- private: listing ------------------------------------------------------------------------

    def _row(self, device: Device, now: float) -> dict[str, Any]:
        seen = device.latest.get(Presence)
        presence = seen.observation if seen is not None else None
        lease = device.latest.get(Lease)
        left: float | None = None
        if lease is not None and isinstance(lease.observation, Lease):
            left = _seconds(lease.at + lease.observation.seconds - now)
        row: dict[str, Any] = {
            "mac": None if device.mac == NO_MAC else format_mac(device.mac),
            "address": str(device.address),
            "hostname": printable(device.hostname),
            "uuid": None if device.uuid is None else str(device.uuid),
            "state": device.state.value,
            "reachable": device.reachable,
            "seen_ago": _seconds(now - device.seen),
            "answered_ago": None if device.answered is None else _seconds(now - device.answered),
            "lease_left": left,
            "provisioning": None,
            "ports": [],
            "realm": "",
            "unacknowledged": [
                kind.__name__ for kind in device.latest if self._outbox.holds(device.key, kind)
            ],
        }
        if isinstance(presence, Presence):
            row["provisioning"] = presence.provisioning.name.lower()
            row["ports"] = list(presence.ports)
            row["realm"] = printable(presence.realm)
        return row


@dataclass(slots=True)
class _Entry:
    seen: Seen
    sequence: int = 0
    sent: float = 0.0


class Outbox:
    """Observations on their way to the MSP: at least once, at most one of each device and kind.

    Numbers are given at the first sending, so what is in flight is always in their order.
    """

    def __init__(self, repeat: float) -> None:
        self._repeat = repeat
        self._last = 0
        self._waiting: dict[tuple[Key | None, type[Observation]], _Entry] = {}
        # In flight; the same by number, and by the time of their last sending.
        self._sent: dict[tuple[Key | None, type[Observation]], _Entry] = {}
        self._numbers: dict[int, tuple[Key | None, type[Observation]]] = {}
        self._by_time: OrderedDict[tuple[Key | None, type[Observation]], _Entry] = OrderedDict()
        self.counters = dict.fromkeys(("notices", "repeated", "coalesced", "acknowledged"), 0)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent)

    def holds(self, key: Key | None, kind: type[Observation]) -> bool:
        """Whether that observation has not been acknowledged yet."""
        return (key, kind) in self._waiting or (key, kind) in self._sent

    def put(self, key: Key | None, seen: Seen) -> None:
        slot = (key, type(seen.observation))
        if self._drop(slot):
            self.counters["coalesced"] += 1
        self._waiting[slot] = _Entry(seen)

    def forget(self, key: Key) -> None:
        for kind in (Lease, LeaseEnd, Hello, Presence, Gone):
            self._drop((key, kind))

    def next_notice(self, now: float) -> Notice | None:
        if self._waiting:
            slot = next(iter(self._waiting))
            entry = self._waiting.pop(slot)
            self._last += 1
            entry.sequence = self._last
            self._sent[slot] = entry
            self._numbers[entry.sequence] = slot
            self.counters["notices"] += 1
        else:
            due = self.next_repeat()
            if due is None or due > now:
                return None
            slot, entry = next(iter(self._by_time.items()))
            self.counters["repeated"] += 1
        entry.sent = now
        self._by_time[slot] = entry
        self._by_time.move_to_end(slot)
        return Notice(entry.sequence, max(0.0, now - entry.seen.at), entry.seen.observation)

    def next_repeat(self) -> float | None:
        if not self._by_time:
            return None
        return next(iter(self._by_time.values())).sent + self._repeat

    def acknowledge(self, sequence: int) -> None:
        slot = self._numbers.get(sequence)
        if slot is not None:
            self._drop(slot)
            self.counters["acknowledged"] += 1

    def restart(self, digest: Seen) -> None:
        """Everything unacknowledged waits again, in the old order, behind the digest."""
        waiting = self._sent | self._waiting
        waiting.pop((None, Digest), None)
        self._waiting = {(None, Digest): _Entry(digest), **waiting}
        self._sent = {}
        self._numbers.clear()
        self._by_time.clear()

    def _drop(self, slot: tuple[Key | None, type[Observation]]) -> bool:
        self._by_time.pop(slot, None)
        waited, sent = self._waiting.pop(slot, None), self._sent.pop(slot, None)
        if sent is not None:
            del self._numbers[sent.sequence]
        return waited is not None or sent is not None


def printable(text: str) -> str:
    """Names come from strangers: control and unprintable characters are shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_device(mac: bytes) -> bool:
    # The lowest bit of the first octet marks a group (IEEE 802): nobody has such an address.
    return len(mac) == 6 and mac != NO_MAC and not mac[0] & 1


def _outdated(device: Device, kind: type[Observation], at: float) -> bool:
    """Something newer is known: the capture tells all that it kept to a relay that connects, which
    may have heard from the device otherwise by then.
    """
    known = device.latest.get(kind) or device.latest.get(_REPLACES.get(kind, kind))
    return known is not None and at < known.at


def _row_digest(device: Device) -> bytes:
    # Row by row: the text of a full table of the largest Hellos would be 32 MiB.
    row = repr((device.key, sorted(map(_timeless, device.latest.values()))))
    return hashlib.sha256(row.encode()).digest()


def _timeless(seen: Seen) -> str:
    match seen.observation:
        case Lease() as lease:
            return repr(replace(lease, seconds=0))
        case Hello() as hello:
            # Bytes 4 to 7 of every version are the retry counter again. As text the message would
            # be four times as long, and take ten times as long to hash.
            raw = hashlib.sha256(hello.raw[:4] + hello.raw[8:]).digest()
            return repr(replace(hello, retry=0, raw=raw))
        case other:
            return repr(other)


def _seconds(value: float) -> float:
    return round(value, 1)
