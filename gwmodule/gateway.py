"""The relay, put together: what is observed goes up, what the MSP asks goes to the LAN.

capture.sock --+                                   +--> Calls ----+
listener ------+--> Devices --notices--> Dialer ---+              +--> LanDialer --> devices
neighbours ----+       ^                 (session) +--> Streams --+
probe <----------------+
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, assert_never
from uuid import UUID

from gwmodule import __version__
from gwmodule.amt.presence import probe
from gwmodule.config import MAX_LOCKDOWN, MAX_RECORD_COUNT, MAX_RECORD_SECONDS, Config
from gwmodule.control import ControlServer
from gwmodule.devices import Devices
from gwmodule.errors import BadArgument, Code
from gwmodule.explain import Explainer, Target, parse_target
from gwmodule.flood import FloodLimit
from gwmodule.lan.model import LanAddressesChanged, LanEvent, NeighbourChanged, WanChanged
from gwmodule.lan.netlink import LanWatcher
from gwmodule.relay.calls import Calls
from gwmodule.relay.capture_client import CaptureClient
from gwmodule.relay.dial import LanDialer
from gwmodule.relay.leases import LeaseFollower
from gwmodule.relay.listener import HelloListener
from gwmodule.relay.policy import LOCKED_DOWN, Lockdown, Policy
from gwmodule.relay.probe import ProbeScheduler
from gwmodule.relay.streams import Streams
from gwmodule.telemetry import Counters, EventLog, memory
from gwmodule.uplink.dialer import Dialer, GatewaySession
from gwmodule.wire.events import (
    ChannelAccepted,
    ChannelEnded,
    ChannelOpened,
    ChannelWritable,
    DataReceived,
    EofReceived,
    Event,
    LinkDead,
    MessageReceived,
    PeerGoingAway,
    RoundTrip,
    SessionReset,
)
from gwmodule.wire.functions import EXPLAIN, STATUS
from gwmodule.wire.messages import (
    Call,
    Cancel,
    Challenge,
    Message,
    Notice,
    NoticeAck,
    Progress,
    Responses,
    Result,
    StreamTarget,
)
from gwmodule.wire.notices import (
    NO_MAC,
    NO_UUID,
    Hello,
    Lease,
    LeaseEnd,
    Observation,
    Presence,
    Source,
)

# Notices that wait in the mux; the rest stays in the outbox, where it still coalesces.
_NOTICES_IN_FLIGHT = 64
# Log lines of Hellos in a second, and at once: a host that sends them for fun must not push
# everything else out of a router's log, which is a small ring in RAM.
_HELLO_LINES = 0.5
_HELLO_LINES_AT_ONCE = 20.0


class Relay:
    def __init__(
        self,
        config: Config,
        rng: random.Random,
        lockdown: Lockdown,
        inherited: Sequence[socket.socket] = (),
    ) -> None:
        self._config = config
        self._log = EventLog("gwmodule.relay")
        self._loop = asyncio.get_running_loop()
        self._started = _process_start()
        self._start_to_link_up: float | None = None
        self._counters = Counters()
        self._devices = Devices(config.devices, config.probe)
        self._policy = Policy(config, lockdown)
        self._watcher = LanWatcher(config.lan, self._on_lan_event)
        self._lan = LanDialer(config, self._watcher, self._policy)
        # Another socket than the configured one is nothing that we asked for.
        port = config.lan.hello_port
        ours = next((s for s in inherited if s.getsockname()[1] == port), None)
        self._listener = HelloListener(port, self._on_hello, inherited=ours)
        self._capture = CaptureClient(
            config.capture.socket, self._on_observation, self._on_capture_counters
        )
        self._capture_counters: dict[str, Any] = {}
        self._prober = ProbeScheduler(config.probe, self._devices, self._probe, self._pump)
        self._control = ControlServer(
            config.control.socket,
            {
                "status": self._status,
                "devices": self._list_devices,
                "reconnect": self._reconnect,
                "explain": self._explain,
                "lockdown": self._lockdown,
                "capture": self._record,
            },
        )
        self._explainer = Explainer(
            self._lan,
            rows=lambda: self._devices.listing(self._loop.time()),
            leases_from=self._leases_from,
            locked=lambda: self._policy.lockdown.active(self._loop.time()),
            activity=self._activity,
        )
        self._lockdown_ends: asyncio.TimerHandle | None = None
        self._hello_lines = FloodLimit(_HELLO_LINES, _HELLO_LINES_AT_ONCE)
        self._leases = LeaseFollower(config.lan.lease_file, self._on_lease)
        self._listen_again = asyncio.Event()
        self._pump_timer: asyncio.TimerHandle | None = None
        self._rng = rng
        self._dialer: Dialer
        self._streams: Streams
        self._calls: Calls

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Until cancelled. `ready` is called once the control socket answers; a link may not be up
        for long after, and a router without WAN has to boot."""
        # A timed lockdown outlives the relay that was asked for it.
        self._expect_end_of_lockdown()
        try:
            await self._run(ready)
        finally:
            self._streams.close()
            if self._lockdown_ends is not None:
                self._lockdown_ends.cancel()

    async def _run(self, ready: Callable[[], None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._dialer = Dialer(self._config, self, tasks, self._rng)
            self._streams = Streams(
                self._dial_for_msp,
                tasks,
                self._config.streams.max_streams,
                self._counters,
            )
            self._calls = Calls(
                self._dial_for_msp,
                self._streams.release_device,
                self._streams.is_open,
                tasks,
                self._counters,
                {EXPLAIN: self._explain_to_msp, STATUS: self._status_to_msp},
            )
            tasks.create_task(self._watcher.run(), name="netlink")
            tasks.create_task(self._control.run(), name="control")
            await self._watcher.ready.wait()
            tasks.create_task(self._listen(), name="listener")
            if self._config.capture.enabled:
                tasks.create_task(self._capture.run(), name="capture")
            if self._config.lan.lease_file:
                tasks.create_task(self._leases.run(), name="leases")
            if self._config.probe.enabled:
                tasks.create_task(self._prober.run(), name="probe")
            tasks.create_task(self._dialer.run(), name="dialer")
            await self._control.listening.wait()
            ready()

    async def _dial_for_msp(self, address: IPv4Address, port: int, mac: bytes) -> socket.socket:
        """What streams and calls dial with: nothing while the gateway is locked down."""
        self._policy.check_access(self._loop.time())
        sock = await self._lan.dial(address, port, mac)
        try:
            # It may have been locked down while the device was slow.
            self._policy.check_access(self._loop.time())
        except BaseException:
            sock.close()
            raise
        return sock

    def reconnect(self, reason: str) -> None:
        self._dialer.reconnect(reason)

    # ---- what is observed ---------------------------------------------------------------------

    def _on_observation(self, observation: Observation, age: float) -> None:
        self._devices.observe(observation, self._loop.time() - age)
        self._observed()

    def _on_lease(self, lease: Lease | LeaseEnd) -> None:
        self._on_observation(lease, 0.0)

    def _on_hello(
        self, uuid: UUID, address: IPv4Address, version: int, retry: int, raw: bytes
    ) -> None:
        ifname = self._watcher.model.on_link(address)
        if ifname is None:
            self._counters["hello_not_from_lan"] += 1
            return
        neighbour = self._watcher.model.neighbour(address, ifname)
        mac = NO_MAC if neighbour is None or neighbour.lladdr is None else neighbour.lladdr
        hello = Hello(uuid, address, mac, version, retry, Source.LISTENER, raw)
        now = self._loop.time()
        # Of the whole LAN, as one host has many addresses; `listener.counters` has them all.
        if self._hello_lines.admits(b"", now):
            self._log.info("hello", uuid=uuid, address=address, version=version, retry=retry)
        self._devices.observe(hello, now)
        self._observed()

    def _on_lan_event(self, event: LanEvent) -> None:
        match event:
            case NeighbourChanged():
                self._devices.neighbour(
                    event.mac, event.address, event.reachable, self._loop.time()
                )
                self._observed()
            case LanAddressesChanged():
                self._listen_again.set()
            case WanChanged(reason):
                self._dialer.wan_changed(reason)
            case _:
                assert_never(event)

    async def _listen(self) -> None:
        try:
            while True:
                # Before the addresses are read: another one may come while these are opened.
                self._listen_again.clear()
                model = self._watcher.model
                wanted = {(model.own_addresses()[a], a) for a in model.listen_addresses()}
                await self._listener.set_addresses(wanted)
                # An address that could not be bound is tried again by itself.
                timeout = 5.0 if self._listener.failed else None
                try:
                    async with asyncio.timeout(timeout):
                        await self._listen_again.wait()
                except TimeoutError:
                    continue
        finally:
            await self._listener.close()

    async def _probe(self, address: IPv4Address, mac: bytes) -> Presence | None:
        return await probe(
            address,
            mac,
            dial=self._lan.dial,
            udp=self._lan.udp_socket,
            timeout=self._config.probe.timeout,
        )

    def _observed(self) -> None:
        self._prober.wake()
        self._pump()

    def _on_capture_counters(self, values: dict[str, Any]) -> None:
        self._capture_counters = values

    # ---- notices ------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Hand the outbox to the session as far as it is up, and come back when one is due."""
        if self._pump_timer is not None:
            self._pump_timer.cancel()
            self._pump_timer = None
        if not self._dialer.connected:
            return
        now = self._loop.time()
        mux = self._dialer.session.mux
        while mux.queued_messages < _NOTICES_IN_FLIGHT:
            notice = self._devices.next_notice(now)
            if notice is None:
                break
            mux.send_message(notice)
        self._dialer.session.flush_soon()
        due = self._devices.next_notice_at()
        if due is not None:
            self._pump_timer = self._loop.call_at(max(due, now + 0.05), self._pump)

    # ---- the session --------------------------------------------------------------------------

    def session_up(self, session: GatewaySession, fresh: bool) -> None:
        now = self._loop.time()
        if self._start_to_link_up is None:
            self._start_to_link_up = _since(self._started)
        if fresh:
            self._devices.session_started(now)
        self._pump()

    def in_use(self, session: GatewaySession) -> bool:
        return self._streams.uses(session) or self._calls.uses(session)

    def session_event(self, session: GatewaySession, event: Event) -> None:
        match event:
            case DataReceived(channel, data):
                self._streams.data_received(session, channel, data)
            case MessageReceived(message):
                self._on_message(session, message)
            case ChannelOpened(channel, _, target):
                if isinstance(target, StreamTarget):
                    self._streams.opened(session, channel, target)
                else:
                    session.mux.refuse(channel, Code.CHANNEL_STATE, "results go to the MSP")
            case ChannelWritable(channel) | ChannelAccepted(channel):
                self._streams.writable(session, channel)
                self._calls.writable(session, channel)
            case EofReceived(channel):
                self._streams.eof_received(session, channel)
            case ChannelEnded(channel, _, reason):
                self._streams.ended(session, channel, reason)
                self._calls.ended(session, channel)
            case SessionReset():
                self._streams.session_over(session)
                self._calls.session_over(session)
            case PeerGoingAway() | RoundTrip() | LinkDead():
                pass
            case _:
                assert_never(event)

    def _on_message(self, session: GatewaySession, message: Message) -> None:
        match message:
            case NoticeAck(sequence, want_snapshot):
                self._devices.acknowledge(sequence)
                if want_snapshot:
                    self._devices.snapshot_wanted(self._loop.time())
                self._pump()
            case Call():
                self._calls.start(session, message)
            case Cancel(number):
                self._calls.cancel(session, number)
            case Responses():
                self._calls.responded(session, message)
            case Notice() | Progress() | Result() | Challenge():
                self._counters["messages_misdirected"] += 1
            case _:
                assert_never(message)

    # ---- control verbs ------------------------------------------------------------------------

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        now = self._loop.time()
        return {
            "version": __version__,
            "deployment": self._config.deployment,
            "uptime_seconds": round(_since(self._started), 3),
            "start_to_link_up_seconds": self._start_to_link_up,
            "link": self._dialer.status(now),
            "memory": {"relay": memory(), "capture": self._capture_memory()},
            "lockdown": self._policy.lockdown.as_json(now),
            "capture": {
                **self._capture_counters,
                # Ours last: the other process parses what strangers send, and may be theirs.
                "enabled": self._config.capture.enabled,
                "connected": self._capture.connected,
                "connections": self._capture.connections,
                "datagrams_malformed": self._capture.malformed,
            },
            "listener": {
                "addresses": [f"{a}:{port}" for a, port in self._listener.listening.items()],
                "failed": {str(a): why for a, why in self._listener.failed.items()},
                "counters": dict(self._listener.counters),
            },
            "devices": self._devices.status(),
            "streams": len(self._streams),
            "calls": len(self._calls),
            "policy_refusals": dict(self._policy.counters),
            "netlink": dict(self._watcher.counters),
            "probe": dict(self._prober.counters),
            "lease_file": self._leases.status(),
            "counters": dict(self._counters),
        }

    def _capture_memory(self) -> dict[str, int]:
        """Its own word for it where the kernel does not let us look (different users)."""
        if not self._capture.connected:
            return {}
        told = self._capture_counters
        pid = told.get("pid")
        seen = memory(pid) if isinstance(pid, int) else {}
        return seen or {name: told[name] for name in ("rss_kib", "pss_kib") if name in told}

    async def _list_devices(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        return self._devices.listing(self._loop.time())

    async def _explain(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return await self._explainer.explain(parse_target(arguments.get("device")))

    async def _explain_to_msp(self, call: Call) -> dict[str, Any]:
        self._policy.check_access(self._loop.time())
        # Without it the checklist would tell who is at any address, and which ports are open there.
        self._policy.check_mac(call.address, call.mac)
        uuid = None if call.uuid == NO_UUID else call.uuid
        return await self._explainer.explain(Target(uuid, call.address, call.mac, call.pin))

    async def _status_to_msp(self, _: Call) -> dict[str, Any]:
        return await self._status({})

    def _leases_from(self) -> str:
        sources = ["the capture service watches"] if self._capture.connected else []
        sources += ["lan.lease_file is read"] if self._config.lan.lease_file else []
        return ", ".join(sources)

    def _activity(self, address: IPv4Address, mac: bytes) -> dict[str, int]:
        streams, held = self._streams.to_device(address)
        return {
            "streams open": streams,
            "of them held": held,
            "calls running": self._calls.on_device(mac),
        }

    async def _lockdown(self, arguments: dict[str, Any]) -> dict[str, Any]:
        on, seconds = arguments.get("on"), arguments.get("seconds")
        now = self._loop.time()
        if on is None:
            return self._policy.lockdown.as_json(now)
        timed = type(seconds) is int and 1 <= seconds <= MAX_LOCKDOWN
        if not isinstance(on, bool) or not (seconds is None or timed):
            raise BadArgument(
                "lockdown takes `on`, true or false, and `seconds`, a whole number up to "
                f"{MAX_LOCKDOWN}"
            )
        self._policy.lockdown.switch(on, now, seconds)
        self._expect_end_of_lockdown()
        ended = {"streams": 0, "calls": 0}
        if on:
            ended["streams"] = self._streams.reset_all(Code.REFUSED_POLICY, LOCKED_DOWN)
            ended["calls"] = self._calls.end_all(LOCKED_DOWN)
        self._log.warning("lockdown", on=on, seconds=seconds or "-", **ended)
        return {**self._policy.lockdown.as_json(now), "ended": ended}

    def _expect_end_of_lockdown(self) -> None:
        """Only the log has to be told: what asks the lockdown looks at the time itself."""
        if self._lockdown_ends is not None:
            self._lockdown_ends.cancel()
            self._lockdown_ends = None
        ends_at = self._policy.lockdown.ends_at(self._loop.time())
        if ends_at is not None:
            self._lockdown_ends = self._loop.call_at(ends_at, self._log.warning, "lockdown_over")

    async def _record(self, arguments: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        count = _whole_number(arguments, "count", MAX_RECORD_COUNT)
        seconds = _whole_number(arguments, "seconds", MAX_RECORD_SECONDS)
        chunks = self._capture.record(count, seconds)
        self._log.info("recording", count=count, seconds=seconds)
        return chunks

    async def _reconnect(self, _: dict[str, Any]) -> dict[str, Any]:
        self.reconnect("asked for by the local control socket")
        return {"dialling": True}


def _whole_number(arguments: dict[str, Any], name: str, most: int) -> int:
    value = arguments.get(name)
    # A bool is an int in Python, and no number in JSON.
    if type(value) is not int or not 1 <= value <= most:
        raise BadArgument(f"`{name}` is a whole number, 1 to {most}")
    return value


def _process_start() -> float:
    """When the kernel started this process, in seconds since boot: imports count too."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _since(start: float) -> float:
    return round(time.clock_gettime(time.CLOCK_BOOTTIME) - start, 3)
