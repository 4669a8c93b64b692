"""`gwmodule-msp sol`: the serial line of a PC on this terminal, or on pipes and scripts.

    stdin --> input ----> msp.lines --> service --> gateway --> device
    stdout <- output <--- msp.lines

The device's bytes go to the terminal unchanged. Where the line comes from, and how it goes on after
a loss, is the line's business (`msp.lines`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from gwmodule.msp.client import GRACE, ApiClient, ApiRefused, ApiUnavailable
from gwmodule.msp.lines import Line
from gwmodule.msp.sol import CHUNK, SolFailed
from gwmodule.msp.subprotocol import first_leaf
from gwmodule.telemetry import escape

ESCAPE = 0x1D  # ^]
# Twelve minutes of a serial line at 115,200 baud behind a terminal that was stopped with ^S.
MAX_BACKLOG = 8 * 1024 * 1024
# What `expect` can still look back at.
MAX_SCRIPT_BUFFER = 256 * 1024
# What stdout may take at the end, before we leave with the rest unwritten.
FINISH_TIMEOUT = 5.0
# Some eight exchanges with a slow ME, after its turn has come.
BOOT_DEADLINE = 60.0

Step: TypeAlias = tuple[Literal["send", "expect"], str]


@dataclass(frozen=True, slots=True)
class TerminalOptions:
    """`steps` make it a script; `idle` ends a piped session that long after stdin ended.

    `boot` names what the PC boots as soon as the line is open, as `boot.once` does, with `login`,
    which is empty where the service has it. `types`: there is something to be typed.
    """

    guid: str
    steps: Sequence[Step] = ()
    timeout: float | None = None
    idle: float = 2.0
    boot: str = ""
    login: dict[str, Any] = field(default_factory=dict, repr=False)
    types: bool = True


class EscapeKeys:
    """Finds ^] in what is typed. `feed` gives what is for the device and whether to leave."""

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> tuple[bytes, bool, bool]:
        """(bytes for the device, help wanted, quit)."""
        out = bytearray()
        for byte in data:
            if not self._escaped:
                if byte == ESCAPE:
                    self._escaped = True
                else:
                    out.append(byte)
                continue
            self._escaped = False
            if byte in b"q.Q":
                return bytes(out), False, True
            if byte == ESCAPE:
                out.append(byte)
            else:
                return bytes(out), True, False
        return bytes(out), self._escaped, False


class Script:
    """Send and expect in order; pure."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = list(steps)
        self._seen = bytearray()

    @property
    def waits_for(self) -> str | None:
        return self._steps[0][1] if self._steps and self._steps[0][0] == "expect" else None

    @property
    def finished(self) -> bool:
        return not self._steps

    def receive_data(self, data: bytes) -> None:
        self._seen += data
        del self._seen[:-MAX_SCRIPT_BUFFER]

    def next_send(self) -> bytes | None:
        """What to type now, with Enter; None while an expected text is missing."""
        while self._steps:
            kind, text = self._steps[0]
            if kind == "send":
                del self._steps[0]
                return text.encode() + b"\r"
            found = self._seen.find(text.encode())
            if found < 0:
                return None
            del self._seen[: found + len(text.encode())]
            del self._steps[0]
        return None


class Terminal:
    """One technician's session, to its end. `run` once."""

    def __init__(
        self,
        client: ApiClient,
        line: Line,
        options: TerminalOptions,
        *,
        stdin: int,
        stdout: int,
        notice: Callable[[str], None],
    ) -> None:
        self._client = client
        self._line = line
        self._options = options
        self._stdin = stdin
        self._stdout = stdout
        self._notice = notice
        self._interactive = os.isatty(stdin) and not options.steps
        self._escape = EscapeKeys()
        self._script = Script(options.steps)
        self._script_wake = asyncio.Event()
        self._opened = False
        self._heard_at = 0.0
        self._output = bytearray()
        self._output_wake = asyncio.Event()
        self._output_moved = asyncio.Event()
        self._online = asyncio.Event()

    async def run(self) -> None:
        """Until the technician leaves, the script is through or the device ends; SolFailed."""
        with self._raw_mode():
            try:
                async with asyncio.timeout(self._options.timeout):
                    async with asyncio.TaskGroup() as group:
                        tasks = [
                            group.create_task(self._write_output(), name="output"),
                            group.create_task(self._read_input(), name="input"),
                            group.create_task(self._boot(), name="boot"),
                        ]
                        try:
                            await self._line.run(self)
                        finally:
                            await self._finish_output()
                        for task in tasks:
                            task.cancel()
            except TimeoutError as exc:
                raise SolFailed(self._timeout_text()) from exc
            except BaseExceptionGroup as group:
                raise first_leaf(group) from group

    async def _boot(self) -> None:
        """Once the device sends to us: the BIOS's first line must find the line open."""
        options = self._options
        if not options.boot:
            return
        await self._online.wait()
        stream = self._line.stream
        if not stream:
            raise SolFailed("the service does not tell the stream's id: it is too old to boot so")
        call = {
            "function": "boot.once",
            "arguments": {"device": options.boot, "stream": stream},
            "deadline": BOOT_DEADLINE,
        } | options.login
        path = f"/api/v1/devices/{options.guid}/call"
        try:
            answer = await self._client.request("POST", path, call, timeout=BOOT_DEADLINE + GRACE)
        except (ApiRefused, ApiUnavailable) as exc:
            raise SolFailed(f"boot {options.boot}: {exc}") from exc
        result = answer["result"]
        before, requested = result["power_state_before_name"], result["requested_name"]
        self._say(f"boot {options.boot}: the PC was {before}; {requested}")

    # What the line tells its owner.

    def line_greets(self, text: str) -> None:
        if self._interactive:
            size = os.get_terminal_size(self._stdin)
            if 0 < size.columns < 80 or 0 < size.lines < 25:
                text += f"; this window is {size.columns}x{size.lines}, a BIOS draws 80x25"
            text += "; ^] q leaves, ^] ? helps"
        self._say(text)

    def line_lost(self) -> None:
        self._online.clear()

    def sol_opened(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._opened = True
        self._online.set()

    def sol_data(self, data: bytes) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._output += data
        self._output_wake.set()
        self._script.receive_data(data)
        self._script_wake.set()

    async def sol_room(self) -> None:
        while len(self._output) > MAX_BACKLOG:
            self._output_moved.clear()
            await self._output_moved.wait()

    def sol_said(self, text: str, *, gap: bool = False) -> None:
        self._say(text)

    # Input.

    async def _read_input(self) -> None:
        if self._options.steps:
            await self._run_script()
        elif self._interactive:
            await self._read_keys()
            self._line.close()
        elif self._options.types:
            await self._read_pipe()
            await self._leave_when_idle()

    async def _run_script(self) -> None:
        await self._online.wait()
        while True:
            self._script_wake.clear()
            while (text := self._script.next_send()) is not None:
                await self._line.type(text)
            if self._script.finished:
                self._line.close()
                return
            await self._script_wake.wait()

    async def _read_keys(self) -> None:
        while data := await _read(self._stdin):
            data, help_wanted, leave = self._escape.feed(data)
            if help_wanted:
                self._say("^] q leaves, ^] ^] sends ^]")
            if leave:
                return
            await self._line.type(data)

    async def _read_pipe(self) -> None:
        while data := await _read(self._stdin):
            await self._online.wait()
            await self._line.type(data.replace(b"\n", b"\r"))

    async def _leave_when_idle(self) -> None:
        """Pipes: stdin has ended, but the answer to its last line may still come."""
        loop = asyncio.get_running_loop()
        await self._online.wait()
        ended_at = loop.time()
        left = self._options.idle
        while left > 0:
            await asyncio.sleep(left)
            left = max(self._heard_at, ended_at) + self._options.idle - loop.time()
        self._line.close()

    # Output.

    async def _write_output(self) -> None:
        while True:
            self._output_wake.clear()
            while self._output:
                await _writable(self._stdout)
                try:
                    written = os.write(self._stdout, self._output[:CHUNK])
                except OSError as exc:
                    raise SolFailed(f"output: {exc.strerror}") from exc
                del self._output[:written]
                self._output_moved.set()
            await self._output_wake.wait()

    async def _finish_output(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_TIMEOUT):
                while self._output:
                    self._output_moved.clear()
                    await self._output_moved.wait()

    def _say(self, text: str) -> None:
        line = f"[{escape(text)}]"
        self._notice(f"\r\n{line}\r\n" if self._interactive else f"{line}\n")

    def _timeout_text(self) -> str:
        waited = f"within {self._options.timeout:.0f} s"
        if not self._opened:
            return f"the session did not open {waited}"
        if self._script.waits_for is not None:
            return f"{self._script.waits_for!r} did not come {waited}"
        return f"the session did not end {waited}"

    @contextlib.contextmanager
    def _raw_mode(self) -> Iterator[None]:
        if not self._interactive:
            yield
            return
        before = termios.tcgetattr(self._stdin)
        try:
            tty.setraw(self._stdin)
            yield
        finally:
            termios.tcsetattr(self._stdin, termios.TCSANOW, before)
            if os.isatty(self._stdout):
                # A BIOS leaves colours on and the cursor off.
                os.write(self._stdout, b"\x1b[0m\x1b[?25h\r\n")


async def _read(descriptor: int) -> bytes:
    """The next bytes of a terminal, pipe or file; b"" at its end."""
    await _ready(descriptor, writing=False)
    try:
        return os.read(descriptor, CHUNK)
    except OSError as exc:
        if exc.errno == errno.EIO:
            # The other side of a pseudo terminal is gone.
            return b""
        raise SolFailed(f"input: {exc.strerror}") from exc


async def _writable(descriptor: int) -> None:
    # Not O_NONBLOCK: the shell shares this terminal's file description.
    if not select.select([], [descriptor], [], 0)[1]:
        await _ready(descriptor, writing=True)


async def _ready(descriptor: int, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add, remove = (
        (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    )
    try:
        add(descriptor, wake)
    except PermissionError:
        # A regular file: epoll refuses it because it is always ready.
        return
    try:
        await ready
    finally:
        remove(descriptor)
