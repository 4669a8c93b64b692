"""One PC with Intel AMT, without I/O: its power, its provisioning and its serial line.

    on <-----------------> off        request_power(value) -> ReturnValue
     |  power on, cycle     ^
     +--> sleep, hibernate -+         a boot plays POST, then a prompt that echoes and answers

Power values and ReturnValues: reference/amt-protocols.md 3.2 and 3.3. The serial line is the host's
first UART: what it says while no Serial-over-LAN session listens is lost, as on the real thing.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from uuid import UUID

from gwmodule.amt.digest import md5_hex
from gwmodule.amt.redirection import SessionKind

# What the host may say before the SOL session takes it: 5 s of a 115,200 baud line.
MAX_SERIAL = 64 * 1024
MAX_LINE = 256
# Intel asks for ten seconds between two power requests; we count who does not wait.
POWER_PAUSE = 10.0
USERNAME = "admin"


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


@dataclass(frozen=True, slots=True)
class Profile:
    """A generation of firmware and the PC around it."""

    name: str
    version: str
    build: int
    manufacturer: str
    model: str
    sku: int
    # Methods that the redirection protocol's query answers for digest logins.
    digest_methods: tuple[int, ...]


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("amt6", "6.2.61", 3535, "Contoso", "Tower 980", 16392, (3, 4)),
        Profile("amt11", "11.8.55", 3510, "Contoso", "Tower 2017", 16392, (3, 4)),
        Profile("amt12", "12.0.67", 1579, "Contoso", "Mini 12", 16392, (4,)),
        Profile("amt16", "16.1.25", 2124, "Contoso", "Mini 16", 16392, (4,)),
    )
}
DEFAULT_PROFILE = PROFILES["amt12"]


@dataclass(frozen=True, slots=True)
class Nic:
    """What the firmware says about its wired port."""

    mac: bytes
    address: str = ""
    netmask: str = "255.255.255.0"
    gateway: str = ""


def post_script(profile: Profile, os_alive: bool) -> list[tuple[float, str]]:
    """What a booting PC says: seconds since the text before, and the text."""
    script = [
        (0.1, f"\x1b[2J\x1b[H{profile.manufacturer} {profile.model}  BIOS 2.14\r\n"),
        (0.4, f"Management Engine {profile.version}.{profile.build}\r\n"),
        (0.6, "CPU: 4 cores, 2400 MHz\r\nMemory test: "),
        (0.8, "8192 MB OK\r\n"),
        (0.8, "SATA port 0: Contoso SSD 256 GB\r\nPress F2 for setup, F12 for the boot menu\r\n"),
    ]
    if os_alive:
        return [
            *script,
            (1.0, "Booting from SATA port 0\r\n"),
            (0.5, "Linux: starting system services\r\n"),
            (0.8, "\r\nWelcome.\r\n"),
        ]
    return [
        *script,
        (1.0, "Booting from SATA port 0 ... failed\r\n"),
        (0.5, "No bootable device. Starting the recovery console.\r\n"),
    ]


class Machine:
    """A PC. `serial_pace` scales the pauses of the boot texts (0: at once); `now` is seconds.

    As every pure object here it has five verbs; they are the serial line's.
    """

    def __init__(
        self,
        uuid: UUID,
        password: str,
        *,
        now: float,
        realm: str = "",
        provisioning: Provisioning = Provisioning.MANAGED,
        profile: Profile = DEFAULT_PROFILE,
        nic: Nic | None = None,
        hostname: str = "pc",
        os_alive: bool = True,
        serial_pace: float = 1.0,
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
        # Bytes the host said while its transmit buffer was full.
        self.serial_dropped = 0
        self._pace = serial_pace
        self._sessions: set[SessionKind] = set()
        self._last_request = float("-inf")
        self._powers_on_at: float | None = None
        self._script: deque[tuple[float, bytes]] = deque()
        self._serial = bytearray()
        self._line = bytearray()
        # Empty while the machine boots or does not run: nobody reads the line then.
        self._prompt = ""
        self._logged_in = False
        self._now = now
        self._reach_prompt()

    @property
    def server_header(self) -> str:
        """The HTTP Server header of this firmware."""
        version = f"{self.profile.version}.{self.profile.build}"
        return f"Intel(R) Active Management Technology {version}"

    @property
    def available_requests(self) -> tuple[PowerRequest, ...]:
        return AVAILABLE[self.power]

    @property
    def sessions(self) -> frozenset[SessionKind]:
        """The kinds of the redirection sessions that are open."""
        return frozenset(self._sessions)

    def activate(self) -> bool:
        """The person at the PC provisions it; False when it was provisioned already."""
        changed = self.provisioning is Provisioning.SETUP
        self.provisioning = Provisioning.MANAGED
        return changed

    def open_session(self, kind: SessionKind) -> bool:
        """Occupy the one session of this kind; False when it is taken."""
        if kind in self._sessions:
            return False
        self._sessions.add(kind)
        if kind is SessionKind.SOL and self._prompt:
            # The line's carrier came up, so the operating system greets again.
            self._say(f"\r\n{self._prompt}")
        return True

    def close_session(self, kind: SessionKind) -> None:
        self._sessions.discard(kind)
        if kind is SessionKind.SOL:
            self._serial.clear()
            self._line.clear()

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
        if request in NEEDS_OS and not self.os_alive:
            return ReturnValue.FAILED
        self._obey(request)
        return ReturnValue.OK

    def receive_data(self, data: bytes, now: float) -> None:
        """Somebody types on the serial line."""
        self._now = now
        for byte in data:
            if self._prompt:
                self._type(byte)

    def data_to_send(self, budget: int) -> bytes:
        """What the serial line says to the open SOL session."""
        data = bytes(self._serial[:budget])
        del self._serial[:budget]
        return data

    def next_timeout(self) -> float | None:
        if self._powers_on_at is not None:
            return self._powers_on_at
        return self._script[0][0] if self._script else None

    def handle_timeout(self, now: float) -> None:
        self._now = now
        if self._powers_on_at is not None and now >= self._powers_on_at:
            self._powers_on_at = None
            self._boot()
        while self._script and now >= self._script[0][0]:
            self._say(self._script.popleft()[1].decode())
            if not self._script:
                self._reach_prompt()

    def _obey(self, request: PowerRequest) -> None:
        match request:
            case PowerRequest.ON if self.power is PowerState.SLEEP:
                self.power = PowerState.ON
                self._reach_prompt()
            case PowerRequest.ON | PowerRequest.RESET | PowerRequest.RESET_GRACEFUL:
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
                self._say("\r\nNMI received\r\n")

    def _halt(self, power: PowerState) -> None:
        self.power = power
        self._powers_on_at = None
        self._script.clear()
        self._line.clear()
        self._prompt = ""
        if power is not PowerState.SLEEP:
            self._logged_in = False

    def _boot(self) -> None:
        self._halt(PowerState.OFF)
        self.power = PowerState.ON
        self.boots += 1
        at = self._now
        for pause, text in post_script(self.profile, self.os_alive):
            at += pause * self._pace
            self._script.append((at, text.encode()))

    def _reach_prompt(self) -> None:
        if not self.os_alive:
            self._prompt = "recovery> "
        elif self._logged_in:
            self._prompt = f"{self.hostname}:~$ "
        else:
            self._prompt = f"{self.hostname} login: "
        self._say(self._prompt)

    def _type(self, byte: int) -> None:
        match byte:
            case 0x0D | 0x0A:
                self._say("\r\n")
                line = self._line.decode(errors="replace")
                self._line.clear()
                self._answer(line.strip())
            case 0x08 | 0x7F:
                if self._line:
                    self._line.pop()
                    self._say("\b \b")
            case 0x03 | 0x15:
                self._line.clear()
                self._say("^C\r\n" if byte == 0x03 else "^U\r\n")
                self._say(self._prompt)
            case _ if byte >= 0x20 and len(self._line) < MAX_LINE:
                self._line.append(byte)
                self._put(bytes([byte]))

    def _answer(self, line: str) -> None:
        if self.os_alive and not self._logged_in:
            # No password: this system knows nothing worth one.
            self._logged_in = bool(line)
            if line:
                self._say(f"Hello, {line}.\r\n")
        elif line == "exit":
            self._logged_in = False
        elif line == "reset":
            self._boot()
            return
        elif line == "help":
            self._say("help  uuid  reset  exit\r\n")
        elif line == "uuid":
            self._say(f"{self.uuid}\r\n")
        elif line:
            self._say(f"{line}: not found\r\n")
        self._reach_prompt()

    def _say(self, text: str) -> None:
        self._put(text.encode())

    def _put(self, data: bytes) -> None:
        if SessionKind.SOL in self._sessions:
            room = MAX_SERIAL - len(self._serial)
            self._serial += data[:room]
            self.serial_dropped += max(0, len(data) - room)
