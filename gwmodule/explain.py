"""`explain`: what has to be right before the MSP can work with a device, step by step.

known access policy lease neighbour ports tls amt provisioned redirection uuid sessions

Nothing here logs in or changes anything, and all of it ends within LIMIT seconds. Each step says
what was found; one that failed or is worth a look says what to do, in a technician's words. What
builds on a failed step is skipped, so the first failure is the one to cure.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, Protocol
from uuid import UUID

from gwmodule.amt import presence
from gwmodule.amt.connection import (
    NO_PIN,
    HandshakeFailed,
    HttpConnection,
    connect_plain,
    connect_tls,
    legacy_context,
)
from gwmodule.errors import BadArgument, Code, DeviceUnreachable, GatewayError, PolicyRefused
from gwmodule.ports import (
    AMT_PORTS,
    REDIRECTION_TCP,
    REDIRECTION_TLS,
    RMCP_PORT,
    WSMAN_HTTP,
    WSMAN_HTTPS,
)
from gwmodule.wire.notices import NO_MAC, NO_UUID, Provisioning, format_mac, parse_mac

# All of it: under the control socket's ten seconds, and the parts add up to less.
LIMIT = 9.0
ARP_TIMEOUT = 2.0
# A lost SYN is sent again after one second, and once more after another two.
PORT_TIMEOUT = 2.5
PINGS = 3
# An ME of 2008 needs almost two seconds for its RSA operation.
TLS_TIMEOUT = 4.0
MAX_DEVICE_TEXT = 64

_RESTART = "try again; if it stays so, take the PC off mains power for a minute: its ME hangs"
_VERSION = re.compile(r"\d+(?:\.\d+)+")
_OLD_TLS = ("TLSv1", "TLSv1.1")


class Result(enum.StrEnum):
    OK = "ok"
    NOTE = "note"  # Works, or may work; somebody should look at it.
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(slots=True)
class Step:
    step: str
    result: Result
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom the question is about: what is given must fit together."""

    uuid: UUID | None = None
    address: IPv4Address | None = None
    mac: bytes | None = None
    # SHA-256 of the certificate that the MSP expects on 16993.
    pin: bytes = NO_PIN


class Lan(Protocol):
    """What `relay.dial.LanDialer` is to the checklist."""

    def interface(self, address: IPv4Address) -> str: ...

    async def resolve(self, address: IPv4Address, ifname: str, within: float) -> bytes: ...

    async def dial(
        self, address: IPv4Address, port: int, mac: bytes, within: float | None = None
    ) -> socket.socket: ...

    async def udp_socket(
        self, address: IPv4Address, port: int, mac: bytes, within: float | None = None
    ) -> socket.socket: ...


def parse_target(text: object) -> Target:
    """A UUID, an IPv4 or a MAC address as somebody types it; BadArgument for anything else."""
    if isinstance(text, str) and len(text) <= MAX_DEVICE_TEXT:
        with contextlib.suppress(ValueError):
            return Target(address=IPv4Address(text))
        with contextlib.suppress(ValueError):
            if len(text) in (12, 17):
                return Target(mac=parse_mac(text))
        with contextlib.suppress(ValueError):
            return Target(uuid=UUID(text))
    raise BadArgument(f"{str(text)[:MAX_DEVICE_TEXT]!r} is no UUID, IPv4 address or MAC address")


class Explainer:
    """`rows` are those of `gwmodule devices`. `leases_from` says where leases come from, empty for
    nowhere; `locked` whether the MSP is locked out; `activity` how many streams, held streams and
    calls a device (address, MAC) has now.
    """

    def __init__(
        self,
        lan: Lan,
        *,
        rows: Callable[[], list[dict[str, Any]]],
        leases_from: Callable[[], str],
        locked: Callable[[], bool],
        activity: Callable[[IPv4Address, bytes], Mapping[str, int]],
        limit: float = LIMIT,
    ) -> None:
        self._lan = lan
        self._rows = rows
        self._leases_from = leases_from
        self._locked = locked
        self._activity = activity
        self._limit = limit

    async def explain(self, target: Target) -> dict[str, Any]:
        """The checklist as JSON: `ok`, `failed` (name of a step or None), `advice`, `steps`."""
        started = asyncio.get_running_loop().time()
        check = _Checklist(self._lan, target, _find(self._rows(), target))
        check.known()
        check.access(self._locked())
        if check.address is not None:
            check.policy()
            check.lease(self._leases_from())
            try:
                async with asyncio.timeout(self._limit):
                    await check.look()
            except TimeoutError:
                check.failed(
                    "time",
                    f"the device took longer than {self._limit:g} s",
                    _RESTART,
                )
            check.uuid()
            if check.mac is not None:
                check.sessions(self._activity(check.address, check.mac))
        wrong = next((s for s in check.steps if s.result is Result.FAILED), None)
        return {
            "ok": wrong is None,
            "failed": wrong.step if wrong else None,
            "advice": wrong.advice if wrong else "",
            "device": {
                "uuid": check.row.get("uuid"),
                "address": None if check.address is None else str(check.address),
                "mac": None if check.mac is None else format_mac(check.mac),
                "hostname": check.row.get("hostname", ""),
            },
            "steps": [dataclasses.asdict(step) for step in check.steps],
            "seconds": round(asyncio.get_running_loop().time() - started, 3),
        }


def _find(rows: list[dict[str, Any]], target: Target) -> dict[str, Any]:
    """The row that is meant: by MAC, else by UUID, else by address; empty if there is none."""
    wanted = (
        ("mac", None if target.mac is None else format_mac(target.mac)),
        ("uuid", None if target.uuid is None else str(target.uuid)),
        ("address", None if target.address is None else str(target.address)),
    )
    for name, value in wanted:
        if value is not None:
            # A device that answers is rather meant than what had its address before.
            found = [row for row in rows if row[name] == value]
            found.sort(key=lambda row: row["reachable"])
            if found:
                return found[-1]
    return {}


@dataclass(slots=True)
class _Checklist:
    """One run. Each method is one step, or several, and adds to `steps`."""

    lan: Lan
    target: Target
    row: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    address: IPv4Address | None = None
    mac: bytes | None = None
    ifname: str = ""
    provisioning: Provisioning = Provisioning.UNKNOWN
    _open: dict[int, socket.socket | str] = field(default_factory=dict)
    _answered: bool = False

    def failed(self, step: str, found: str, advice: str) -> None:
        self.steps.append(Step(step, Result.FAILED, found, advice))

    def _ok(self, step: str, found: str) -> None:
        self.steps.append(Step(step, Result.OK, found))

    def _note(self, step: str, found: str, advice: str) -> None:
        self.steps.append(Step(step, Result.NOTE, found, advice))

    def _skip(self, *steps: str) -> None:
        why = next(s.step for s in self.steps if s.result is Result.FAILED)
        self.steps += [Step(step, Result.SKIPPED, f"after {why}") for step in steps]

    def known(self) -> None:
        mac = self.row.get("mac")
        self.mac = self.target.mac or (parse_mac(mac) if mac else None)
        if self.mac == NO_MAC:
            self.mac = None
        self.address = self.target.address
        if self.address is None and self.row:
            self.address = IPv4Address(self.row["address"])
        name = f" ({self.row['hostname']})" if self.row.get("hostname") else ""
        if self.row:
            self._ok("known", f"{self.row['state']}{name}, seen {self.row['seen_ago']:.0f} s ago")
        elif self.address is not None:
            self._note(
                "known",
                f"no PC at {self.address} has been noticed yet",
                "it is asked all the same; a PC that is off or newly plugged in shows up later",
            )
        else:
            self.failed(
                "known",
                "no PC with this UUID or MAC has been noticed in this LAN",
                "plug the PC's network cable into this LAN and power it on once; then look for its "
                "MAC in `gwmodule devices`: AMT that was never logged in to has no UUID there",
            )

    def access(self, locked: bool) -> None:
        if locked:
            self.failed(
                "access",
                "the MSP is locked out at the gateway",
                "whoever owns the gateway ends it with `gwmodule lockdown off`",
            )
        else:
            self._ok("access", "the MSP may use this gateway")

    def policy(self) -> None:
        assert self.address is not None  # noqa: S101 - the caller looked
        try:
            self.ifname = self.lan.interface(self.address)
        except PolicyRefused as exc:
            self.failed(
                "policy",
                f"{exc} (rule {exc.rule})",
                "only PCs that are directly in a network named by lan.interface are connected to",
            )
        else:
            self._ok("policy", f"{self.address} is in the LAN on {self.ifname}")

    def lease(self, leases_from: str) -> None:
        left = self.row.get("lease_left")
        if left is not None and left > 0:
            self._ok("lease", f"DHCP lease seen, {left:.0f} s left")
        elif left is not None:
            self._note(
                "lease",
                f"the DHCP lease ended {-left:.0f} s ago",
                "the PC is off the network, or it has another address by now",
            )
        elif leases_from:
            self._note(
                "lease",
                f"no DHCP lease seen ({leases_from})",
                "nothing to do if the PC has a fixed address or got its lease before the gateway "
                "was started",
            )
        else:
            self._note(
                "lease",
                "leases are not watched here",
                "start the capture service, or set lan.lease_file",
            )

    async def look(self) -> None:
        """What has to be asked in the LAN."""
        if not self.ifname:
            self._skip("neighbour", "ports", "tls", "amt", "provisioned", "redirection")
            return
        if not await self._neighbour():
            self._skip("ports", "tls", "amt", "provisioned", "redirection")
            return
        try:
            await self._knock()
            if not self._ports():
                self._skip("tls", "amt")
            else:
                await self._tls_and_amt()
        finally:
            for opened in self._open.values():
                if isinstance(opened, socket.socket):
                    opened.close()
        self._provisioned()
        self._redirection()

    async def _neighbour(self) -> bool:
        assert self.address is not None  # noqa: S101 - the caller looked
        try:
            found = await self.lan.resolve(self.address, self.ifname, ARP_TIMEOUT)
        except DeviceUnreachable as exc:
            self.failed(
                "neighbour",
                str(exc),
                "the PC is off the network: check its cable and mains power, and whether AMT may "
                "use the network while the PC is off (MEBx, power policy)",
            )
            return False
        if self.mac is not None and found != self.mac:
            self.failed(
                "neighbour",
                f"{self.address} is {format_mac(found)} now, not {format_mac(self.mac)}",
                "another PC has this address: wait until the right one has shown up with its new "
                "address, or free the address",
            )
            return False
        self.mac = found
        self._ok("neighbour", f"{self.address} is {format_mac(found)} on {self.ifname}")
        return True

    async def _knock(self) -> None:
        """All ports and the presence ping at once: silence costs its time only once."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ping(), name="explain-ping")
            for port in AMT_PORTS:
                tasks.create_task(self._dial(port), name=f"explain-{port}")

    async def _ping(self) -> None:
        assert self.address is not None and self.mac is not None  # noqa: S101, PT018
        with contextlib.suppress(OSError, GatewayError):
            sock = await self.lan.udp_socket(self.address, RMCP_PORT, self.mac, ARP_TIMEOUT)
            with sock:
                pong = await presence.ping(sock, PORT_TIMEOUT / PINGS, PINGS)
            if pong is not None:
                self.provisioning = pong.provisioning
                self._answered = True

    async def _dial(self, port: int) -> None:
        assert self.address is not None and self.mac is not None  # noqa: S101, PT018
        try:
            self._open[port] = await self.lan.dial(self.address, port, self.mac, PORT_TIMEOUT)
        except DeviceUnreachable as exc:
            refused = exc.code is Code.CONNECTION_REFUSED
            self._open[port] = "refused" if refused else "silent"
        except PolicyRefused as exc:
            self._open[port] = f"forbidden ({exc.rule})"

    def _states(self, *ports: int) -> str:
        states = (self._open.get(port, "silent") for port in ports)
        return ", ".join(
            f"{port} {state if isinstance(state, str) else 'open'}"
            for port, state in zip(ports, states, strict=True)
        )

    def _is_open(self, port: int) -> bool:
        return isinstance(self._open.get(port), socket.socket)

    def _ports(self) -> bool:
        found = self._states(WSMAN_HTTP, WSMAN_HTTPS)
        if self._is_open(WSMAN_HTTP) or self._is_open(WSMAN_HTTPS):
            self._ok("ports", found)
            return True
        if "refused" in self._open.values():
            self.failed(
                "ports",
                found,
                "the PC is there, but AMT does not listen: is this a vPro PC with AMT enabled and "
                "provisioned (MEBx), and is this its wired port?",
            )
        elif self._answered:
            self.failed(
                "ports",
                f"{found}; the presence ping is answered",
                "AMT is there but not provisioned: finish its setup (MEBx, or a setup server)",
            )
        else:
            self.failed(
                "ports",
                found,
                "the PC is there, but nothing answers for AMT: a firewall of the PC, AMT switched "
                "off, or no vPro; over Wi-Fi it needs a profile in AMT",
            )
        return False

    async def _tls_and_amt(self) -> None:
        """TLS first, as calls do; the answer over it counts, and plain only where there is none."""
        server = realm = ""
        try:
            async with asyncio.timeout(TLS_TIMEOUT):
                if self._is_open(WSMAN_HTTPS):
                    connection = await self._tls()
                else:
                    self._note(
                        "tls",
                        "16993 is closed: this device is spoken to in plain",
                        "switch TLS on in AMT if it can; in plain, everything in the LAN can "
                        "listen",
                    )
                    connection = await connect_plain(self._take(WSMAN_HTTP))
                if connection is None:
                    self._skip("amt")
                    return
                try:
                    server, realm = await presence.ask(connection, str(self.address))
                finally:
                    connection.close()
        except TimeoutError:
            if self.steps[-1].step == "ports":
                self.failed("tls", f"no TLS within {TLS_TIMEOUT:g} s", _RESTART)
                self._skip("amt")
                return
            self.failed("amt", f"no answer within {TLS_TIMEOUT:g} s", _RESTART)
            return
        except GatewayError as exc:
            self.failed("amt", str(exc), _RESTART)
            return
        if not realm:
            self.failed(
                "amt",
                f"the port answers, but not as AMT ({server or 'no server name'})",
                "something else listens on this port of the PC",
            )
            return
        version = _VERSION.search(server)
        self._ok("amt", f"AMT {version[0] if version else '(version not told)'}, realm {realm}")

    async def _tls(self) -> HttpConnection | None:
        try:
            # Any version and cipher: this reads a certificate, it protects nothing.
            connection = await connect_tls(self._take(WSMAN_HTTPS), legacy_context())
        except HandshakeFailed as exc:
            self.failed("tls", str(exc), _RESTART)
            return None
        pin, version = connection.pin.hex(), connection.tls_version
        if self.target.pin not in (NO_PIN, connection.pin):
            connection.close()
            self.failed(
                "tls",
                f"{version}, certificate {pin}, but {self.target.pin.hex()} is pinned",
                "a new board, a reset of AMT, or somebody in between: find out which, then "
                "`gwmodule-msp unpin UUID`",
            )
            return None
        if version in _OLD_TLS:
            self._note(
                "tls",
                f"{version}, certificate {pin}",
                "old firmware: calls need TLS mode `legacy`; look for an update of the BIOS",
            )
        else:
            self._ok("tls", f"{version}, certificate {pin}")
        return connection

    def _take(self, port: int) -> socket.socket:
        sock = self._open[port]
        assert isinstance(sock, socket.socket)  # noqa: S101 - the caller looked
        # A detached copy belongs to the connection, which closes it; the state stays `open`.
        return sock.dup()

    def _provisioned(self) -> None:
        state = self.provisioning
        if state is Provisioning.UNKNOWN and self.row.get("provisioning"):
            state = Provisioning[self.row["provisioning"].upper()]
        if state is Provisioning.POST:
            self._ok("provisioned", "AMT is provisioned")
        elif state is Provisioning.UNKNOWN:
            self._note(
                "provisioned",
                "the presence ping (UDP 623) is not answered",
                "nothing to do if calls work; AMT can have it switched off",
            )
        else:
            self.failed(
                "provisioned",
                "AMT is in setup state: it has no administrator's login yet",
                "provision it, by hand in MEBx or with a setup server through `gwmodule-msp "
                "forward`",
            )

    def uuid(self) -> None:
        known = UUID(self.row["uuid"]) if self.row.get("uuid") else None
        asked = None if self.target.uuid == NO_UUID else self.target.uuid
        if known is None:
            self._note(
                "uuid",
                "not told: no Hello, and DHCP option 97 was not seen",
                "`gwmodule-msp identify GATEWAY MAC` logs in and learns it",
            )
        elif asked is not None and asked != known:
            self.failed(
                "uuid",
                f"this PC is {known}, not {asked}",
                "the record of the MSP is of another PC: look for the MAC in `gwmodule-msp "
                "candidates` and identify it",
            )
        else:
            self._ok("uuid", str(known))

    def _redirection(self) -> None:
        found = self._states(REDIRECTION_TCP, REDIRECTION_TLS)
        if any(map(self._is_open, (REDIRECTION_TCP, REDIRECTION_TLS))):
            self._ok("redirection", found)
        else:
            self._note(
                "redirection",
                found,
                "SOL and IDE-R are switched off in AMT: `redirection.set` switches them on",
            )

    def sessions(self, activity: Mapping[str, int]) -> None:
        texts = [f"{count} {name}" for name, count in activity.items() if count]
        self._ok("sessions", ", ".join(texts) or "no stream and no call now")
