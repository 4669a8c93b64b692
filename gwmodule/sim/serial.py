"""The PC's first UART and who speaks on it, without I/O: boot texts, then a prompt that answers.

What is said while no Serial-over-LAN session listens is lost, as on the real thing.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable

# What the host may say before the SOL session takes it: 5 s of a 115,200 baud line.
MAX_SERIAL = 64 * 1024
MAX_LINE = 256
# What is kept of what was said, for those who compare it with what arrived.
MAX_SPOKEN = 1024 * 1024


class Software(enum.Enum):
    """What runs on the PC and reads the line."""

    SYSTEM = "system"
    RECOVERY = "recovery"
    SETUP = "setup"
    NETWORK = "netboot"
    DISC = "rescue"
    DIAGNOSTICS = "diagnostics"


class SerialLine:
    """`pace` scales the pauses of a script (0: at once). `listening`: a SOL session is open."""

    def __init__(self, hostname: str, uuid: str, pace: float) -> None:
        self._hostname = hostname
        self._uuid = uuid
        self._pace = pace
        self._listening = False
        # None while the machine boots or does not run: nobody reads the line then.
        self.software: Software | None = None
        # Bytes the host said while its transmit buffer was full.
        self.dropped = 0
        # Everything that the sessions took, in order.
        self.spoken = bytearray()
        self._booting = Software.SYSTEM
        self._script: deque[tuple[float, str]] = deque()
        self._output = bytearray()
        self._line = bytearray()
        self._logged_in = False

    def listen(self) -> None:
        """A session opened: the carrier comes up, so whoever reads the line greets again."""
        self._listening = True
        if self.software is not None:
            self.say(f"\r\n{self._prompt}")

    def hang_up(self) -> None:
        self._listening = False
        self._output.clear()
        self._line.clear()

    def start(self, script: Iterable[tuple[float, str]], software: Software, now: float) -> None:
        """Say the script, then run `software`."""
        self.halt()
        self._booting = software
        at = now
        for pause, text in script:
            at += pause * self._pace
            self._script.append((at, text))

    def run(self, software: Software) -> None:
        """Be where a boot has led already."""
        self.software = software
        self.say(self._prompt)

    def halt(self, *, sleep: bool = False) -> None:
        """The PC stops; `sleep` keeps who is logged in."""
        self.software = None
        self._script.clear()
        self._line.clear()
        self._logged_in = self._logged_in and sleep

    def receive_data(self, data: bytes) -> bool:
        """Somebody types; True when that asked the PC to restart."""
        return any([self._type(byte) for byte in data if self.software is not None])

    def data_to_send(self, budget: int) -> bytes:
        data = bytes(self._output[:budget])
        del self._output[:budget]
        self.spoken += data
        del self.spoken[:-MAX_SPOKEN]
        return data

    def next_timeout(self) -> float | None:
        return self._script[0][0] if self._script else None

    def handle_timeout(self, now: float) -> bool:
        """Say what is due; True when the boot ends with it."""
        before = bool(self._script)
        while self._script and now >= self._script[0][0]:
            self.say(self._script.popleft()[1])
        ended = before and not self._script
        if ended:
            self.run(self._booting)
        return ended

    def say(self, text: str) -> None:
        self._put(text.encode())

    @property
    def _prompt(self) -> str:
        match self.software:
            case Software.SYSTEM if self._logged_in:
                return f"{self._hostname}:~$ "
            case Software.SYSTEM:
                return f"{self._hostname} login: "
            case None:
                return ""
            case software:
                return f"{software.value}> "

    def _type(self, byte: int) -> bool:
        match byte:
            case 0x0D | 0x0A:
                self.say("\r\n")
                line = self._line.decode(errors="replace")
                self._line.clear()
                return self._answer(line.strip())
            case 0x08 | 0x7F:
                if self._line:
                    self._line.pop()
                    self.say("\b \b")
            case 0x03 | 0x15:
                self._line.clear()
                self.say("^C\r\n" if byte == 0x03 else "^U\r\n")
                self.say(self._prompt)
            case _ if byte >= 0x20 and len(self._line) < MAX_LINE:
                self._line.append(byte)
                self._put(bytes([byte]))
        return False

    def _answer(self, line: str) -> bool:
        system = self.software is Software.SYSTEM
        if system and not self._logged_in:
            # No password: this system knows nothing worth one.
            self._logged_in = bool(line)
            if line:
                self.say(f"Hello, {line}.\r\n")
        elif line == "exit":
            if self.software not in (Software.SYSTEM, Software.RECOVERY):
                self.software = None
                return True
            self._logged_in = False
        elif line == "reset":
            self.software = None
            return True
        elif line == "help":
            self.say("help  uuid  reset  exit\r\n")
        elif line == "uuid":
            self.say(f"{self._uuid}\r\n")
        elif line:
            self.say(f"{line}: not found\r\n")
        self.say(self._prompt)
        return False

    def _put(self, data: bytes) -> None:
        if self._listening:
            room = MAX_SERIAL - len(self._output)
            self._output += data[:room]
            self.dropped += max(0, len(data) - room)
