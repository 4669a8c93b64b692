"""One PC with Intel AMT, without I/O: its power, its provisioning, and all that its firmware keeps.

    on <-----------------> off        request_power(value) -> ReturnValue
     |  power on, cycle     ^
     +--> sleep, hibernate -+         a boot plays POST, then a prompt that echoes and answers

    Machine --- serial, boot, consent, alarms, storage, events, audit, clock: a module each

Power values and ReturnValues: reference/amt-protocols.md 3.2 and 3.3.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, field
from uuid import UUID

from gwmodule.amt.digest import md5_hex
from gwmodule.amt.redirection import SessionKind
from gwmodule.sim import logs
from gwmodule.sim.alarms import AlarmClock, DeviceClock
from gwmodule.sim.boot import BootSettings, Plan, boot_script
from gwmodule.sim.consent import Consent
from gwmodule.sim.profiles import DEFAULT_PROFILE, Feature, Profile
from gwmodule.sim.serial import SerialLine, Software
from gwmodule.sim.storage import Storage

# Intel asks for ten seconds between two power requests; we count who does not wait.
POWER_PAUSE = 10.0
USERNAME = "admin"
# What the clock of a PC says that nobody has set: 2023-11-14.
FACTORY_TIME = 1_700_000_000.0


class PowerState(enum.IntEnum):
    """What CIM_AssociatedPowerManagementService.PowerState says."""

    ON = 2
    SLEEP = 4
    HIBERNATE = 7
    OFF = 8


class PowerRequest(enum.IntEnum):
    """RequestPowerStateChange.PowerState."""

    ON = 2
    SLEEP = 4
    CYCLE_SOFT = 5
    HIBERNATE = 7
    OFF = 8
    CYCLE_HARD = 9
    RESET = 10
    NMI = 11
    OFF_GRACEFUL = 12
    RESET_GRACEFUL = 14


class ReturnValue(enum.IntEnum):
    OK = 0
    FAILED = 4
    INVALID_PARAMETER = 5
    INVALID_TRANSITION = 4097


class Provisioning(enum.Enum):
    SETUP = "setup"
    MANAGED = "managed"


# The order is the one real firmware answers with; 9 is taken although nobody offers it.
AVAILABLE: dict[PowerState, tuple[PowerRequest, ...]] = {
    PowerState.ON: (
        PowerRequest.RESET,
        PowerRequest.OFF,
        PowerRequest.CYCLE_SOFT,
        PowerRequest.NMI,
        PowerRequest.SLEEP,
        PowerRequest.HIBERNATE,
        PowerRequest.RESET_GRACEFUL,
        PowerRequest.OFF_GRACEFUL,
    ),
    PowerState.SLEEP: (
        PowerRequest.ON,
        PowerRequest.RESET,
        PowerRequest.OFF,
        PowerRequest.CYCLE_SOFT,
    ),
    PowerState.HIBERNATE: (PowerRequest.ON,),
    PowerState.OFF: (PowerRequest.ON,),
}
# Refused as invalid while somebody looks at the screen or the serial line.
ENDS_SESSIONS = frozenset({PowerRequest.OFF, PowerRequest.CYCLE_SOFT, PowerRequest.CYCLE_HARD})
# The operating system must help, so it must live.
NEEDS_OS = frozenset(
    {
        PowerRequest.SLEEP,
        PowerRequest.HIBERNATE,
        PowerRequest.OFF_GRACEFUL,
        PowerRequest.RESET_GRACEFUL,
    }
)
CYCLE_PAUSE = 2.0


_AUDITED = {
    PowerRequest.ON: logs.POWER_UP,
    PowerRequest.OFF: logs.POWER_DOWN,
    PowerRequest.OFF_GRACEFUL: logs.POWER_DOWN,
    PowerRequest.CYCLE_SOFT: logs.POWER_CYCLE,
    PowerRequest.CYCLE_HARD: logs.POWER_CYCLE,
    PowerRequest.RESET: logs.RESET,
    PowerRequest.RESET_GRACEFUL: logs.RESET,
}


@dataclass(frozen=True, slots=True)
class Nic:
    """What the firmware says about its wired port."""

    mac: bytes
    address: str = ""
    netmask: str = "255.255.255.0"
    gateway: str = ""


@dataclass(slots=True)
class Remote:
    """Redirection as its switches stand. `listener`: whether the ports are open at all."""

    enabled: set[SessionKind] = field(default_factory=lambda: {SessionKind.SOL})
    listener: bool = True
    kvm: bool = False


@dataclass(frozen=True, slots=True)
class Certificate:
    """What its TLS ports show: X.509 and, as PKCS #1, the public key, both in DER."""

    der: bytes
    key: bytes
    subject: str


class Machine:
    """A PC. `serial_pace` scales the pauses of the boot texts (0: at once); `now` is seconds.

    `wall` is what its clock says at `now`, in seconds since 1970. `bios_speaks`: the BIOS writes to
    the serial line at every boot; otherwise only when the boot was asked to (UseSOL), as a BIOS
    without a console setting of its own does. `settings` are what Puts changed, by class.

    As every pure object here it has five verbs; they are the serial line's.
    """

    def __init__(
        self,
        uuid: UUID,
        password: str,
        *,
        now: float,
        wall: float = FACTORY_TIME,
        realm: str = "",
        provisioning: Provisioning = Provisioning.MANAGED,
        profile: Profile = DEFAULT_PROFILE,
        nic: Nic | None = None,
        hostname: str = "pc",
        os_alive: bool = True,
        bios_speaks: bool = True,
        serial_pace: float = 1.0,
        rng: random.Random | None = None,
    ) -> None:
        self.uuid = uuid
        self.password = password
        # Fixed for the life of a provisioning; here, of the PC.
        self.realm = realm or f"Digest:{md5_hex(uuid.bytes).upper()}"
        self.provisioning = provisioning
        self.profile = profile
        # Locally administered, so that no real card has it.
        self.nic = nic or Nic(b"\x02" + uuid.bytes[-5:])
        self.hostname = hostname
        self.os_alive = os_alive
        self.power = PowerState.ON
        self.power_requests = 0
        self.hurried_requests = 0
        self.boots = 0
        self.failed_logins = 0
        # What the boot before did differently.
        self.last_plan = Plan()
        self.remote = Remote()
        self.settings: dict[str, dict[str, str | int | bool]] = {}
        # Of who gives it TLS ports.
        self.certificate: Certificate | None = None
        # The same PC shows the same codes and is as moody in every run.
        self.rng = rng or random.Random(uuid.int)
        self.serial = SerialLine(hostname, str(uuid), serial_pace)
        self.clock = DeviceClock(now, wall)
        self.boot = BootSettings(profile)
        self.consent = Consent(self.rng, forced=profile.client_control)
        self.alarms = AlarmClock()
        self.storage = Storage(profile.manufacturer)
        self.events = logs.EventLog()
        self.audit = logs.AuditLog()
        self._bios_speaks = bios_speaks
        self._pace = serial_pace
        self._sessions: set[SessionKind] = set()
        self._last_request = float("-inf")
        self._powers_on_at: float | None = None
        self._now = now
        self.serial.run(Software.SYSTEM if os_alive else Software.RECOVERY)

    @property
    def now(self) -> float:
        """The time of the last thing that happened."""
        return self._now

    @property
    def seconds(self) -> int:
        """What the device's clock says."""
        return self.clock.seconds(self._now)

    @property
    def server_header(self) -> str:
        """The HTTP Server header of this firmware."""
        version = f"{self.profile.version}.{self.profile.build}"
        return f"Intel(R) Active Management Technology {version}"

    @property
    def available_requests(self) -> tuple[PowerRequest, ...]:
        helped = self.profile.has(Feature.SLEEP)
        return tuple(r for r in AVAILABLE[self.power] if helped or r not in NEEDS_OS)

    @property
    def sessions(self) -> frozenset[SessionKind]:
        """The kinds of the redirection sessions that are open."""
        return frozenset(self._sessions)

    @property
    def serial_dropped(self) -> int:
        return self.serial.dropped

    def activate(self) -> bool:
        """The person at the PC provisions it; False when it was provisioned already."""
        changed = self.provisioning is Provisioning.SETUP
        self.provisioning = Provisioning.MANAGED
        return changed

    def general(self, name: str, default: str | bool) -> str | bool:
        """A setting of AMT_GeneralSettings, or what it is as long as nobody has set it."""
        value = self.settings.get("AMT_GeneralSettings", {}).get(name, default)
        return value if isinstance(value, str | bool) else default

    def record(self, action: logs.Action, extended: bytes = b"") -> None:
        """Into the audit log: the administrator did this."""
        self.audit.add(self.seconds, action, USERNAME, extended)

    def login_judged(self, *, proved: bool) -> None:
        """Somebody tried to log in; failures in a row are counted in the event log."""
        self.failed_logins = 0 if proved else self.failed_logins + 1
        if not proved:
            self.events.add(self.seconds, logs.login_failed(self.failed_logins))

    def open_session(self, kind: SessionKind) -> bool:
        """Occupy the one session of this kind; False when it is taken."""
        if kind in self._sessions:
            return False
        self._sessions.add(kind)
        self.consent.session_opened()
        if kind is SessionKind.SOL:
            self.serial.listen()
            self.events.add(self.seconds, logs.redirection_session(0))
            self.record(logs.SOL_OPENED)
        return True

    def close_session(self, kind: SessionKind) -> None:
        """The session is over, also when the device's administrator ended it."""
        if kind not in self._sessions:
            return
        self._sessions.discard(kind)
        if not self._sessions:
            self.consent.sessions_ended(self._now)
        if kind is SessionKind.SOL:
            self.serial.hang_up()
            self.events.add(self.seconds, logs.redirection_session(1))
            self.record(logs.SOL_CLOSED)

    def request_power(self, requested: int, now: float) -> ReturnValue:
        """RequestPowerStateChange; requests that came within POWER_PAUSE are only counted."""
        self._now = now
        try:
            request = PowerRequest(requested)
        except ValueError:
            return ReturnValue.INVALID_PARAMETER
        self.power_requests += 1
        self.hurried_requests += now - self._last_request < POWER_PAUSE
        self._last_request = now
        offered = request in self.available_requests or (
            request is PowerRequest.CYCLE_HARD and self.power is PowerState.ON
        )
        if not offered or (request in ENDS_SESSIONS and self._sessions):
            return ReturnValue.INVALID_TRANSITION
        if request in NEEDS_OS and self.serial.software is not Software.SYSTEM:
            return ReturnValue.FAILED
        if action := _AUDITED.get(request):
            self.record(action)
        self._obey(request)
        return ReturnValue.OK

    def receive_data(self, data: bytes, now: float) -> None:
        """Somebody types on the serial line."""
        self._now = now
        if self.serial.receive_data(data):
            self._boot()

    def data_to_send(self, budget: int) -> bytes:
        """What the serial line says to the open SOL session."""
        return self.serial.data_to_send(budget)

    def next_timeout(self) -> float | None:
        alarm = self.alarms.next_wall()
        deadlines = (
            self._powers_on_at,
            self.serial.next_timeout(),
            self.consent.next_timeout(),
            None if alarm is None else self.clock.loop_time(alarm),
        )
        return min((each for each in deadlines if each is not None), default=None)

    def handle_timeout(self, now: float) -> None:
        """Do what is due. To be called also before anything else that happens at `now`."""
        self._now = now
        self.consent.handle_timeout(now)
        if self.alarms.ring(self.clock.wall(now)):
            self._wake()
        if self._powers_on_at is not None and now >= self._powers_on_at:
            self._powers_on_at = None
            self._boot()
        if self.serial.handle_timeout(now):
            self.events.add(self.seconds, self._boot_event())

    def _obey(self, request: PowerRequest) -> None:
        match request:
            case PowerRequest.ON:
                self._wake()
            case PowerRequest.RESET | PowerRequest.RESET_GRACEFUL:
                self._boot()
            case PowerRequest.OFF | PowerRequest.OFF_GRACEFUL:
                self._halt(PowerState.OFF)
            case PowerRequest.CYCLE_SOFT | PowerRequest.CYCLE_HARD:
                self._halt(PowerState.OFF)
                self._powers_on_at = self._now + CYCLE_PAUSE * self._pace
            case PowerRequest.SLEEP:
                self._halt(PowerState.SLEEP)
            case PowerRequest.HIBERNATE:
                self._halt(PowerState.HIBERNATE)
            case _:  # NMI
                self.serial.say("\r\nNMI received\r\n")

    def _wake(self) -> None:
        if self.power is PowerState.SLEEP:
            self.power = PowerState.ON
            self.serial.run(Software.SYSTEM)
        elif self.power is not PowerState.ON:
            self._boot()

    def _halt(self, power: PowerState) -> None:
        self.power = power
        self._powers_on_at = None
        self.serial.halt(sleep=power is PowerState.SLEEP)

    def _boot(self) -> None:
        self._halt(PowerState.OFF)
        self.power = PowerState.ON
        self.boots += 1
        plan = self.last_plan = self.boot.take()
        speaks = self._bios_speaks or plan.sol
        script, software = boot_script(
            self.profile, plan, os_alive=self.os_alive, bios_speaks=speaks
        )
        self.serial.start(script, software, self._now)
        self.events.add(self.seconds, logs.firmware_progress(logs.BOOT_STARTED))

    def _boot_event(self) -> logs.Event:
        if self.serial.software is Software.RECOVERY:
            return logs.no_bootable_media()
        return logs.firmware_progress(logs.BOOT_HANDED_OVER)
