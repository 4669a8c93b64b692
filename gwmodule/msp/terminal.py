"""`gwmodule-msp sol`: the serial line of a PC on this terminal, or on pipes and scripts.

    stdin --> input ----> msp.sol --> stream (WebSocket) --> service --> gateway --> device
    stdout <- output <--- msp.sol <-- stream

The device's bytes go to the terminal unchanged. When the gateway's session or this service is lost,
or a power action ended the stream, the terminal opens it again by itself.
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
from typing import Literal, TypeAlias

from gwmodule.amt.redirection import SolSettings
from gwmodule.msp.client import GRACE, ApiClient, ApiRefused, ApiUnavailable, ClientStream
from gwmodule.msp.sol import (
    CHUNK,
    REOPEN_DELAYS,
    REOPEN_LIMIT,
    SolFailed,
    SolLogin,
    SolLost,
    SolSession,
)
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
_REOPEN_STATUS = frozenset({503, 504})

Step: TypeAlias = tuple[Literal["send", "expect"], str]


@dataclass(frozen=True, slots=True)
class SolOptions:
    """`steps` make it a script; `idle` ends a piped session that long after stdin ended.

    `boot` names what the PC boots as soon as the line is open, as `boot.once` does.
    With a `pin` (SHA-256 of the device's certificate) the session runs inside TLS on port 16995.
    """

    guid: str
    username: str
    password: str = field(repr=False)
    pin: bytes | None = None
    hold: bool = True
    allow_clear_text: bool = False
    steps: Sequence[Step] = ()
    timeout: float | None = None
    idle: float = 2.0
    boot: str = ""
    takeover: bool = False
    settings: SolSettings = field(default_factory=SolSettings)


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


class Sol:
    """One technician's session, over as many streams as it takes. `run` once."""

    def __init__(
        self,
        client: ApiClient,
        options: SolOptions,
        *,
        stdin: int,
        stdout: int,
        notice: Callable[[str], None],
    ) -> None:
        self._client = client
        self._options = options
        self._stdin = stdin
        self._stdout = stdout
        self._notice = notice
        self._interactive = os.isatty(stdin) and not options.steps
        self._escape = EscapeKeys()
        self._script = Script(options.steps)
        self._login = SolLogin(
            options.username,
            options.password,
            pin=options.pin,
            allow_clear_text=options.allow_clear_text,
            settings=options.settings,
        )
        self._session: SolSession | None = None
        self._stream: ClientStream | None = None
        self._opened = False
        self._heard_at = 0.0
        self._output = bytearray()
        self._output_wake = asyncio.Event()
        self._output_moved = asyncio.Event()
        self._online = asyncio.Event()
        self._quit = asyncio.Event()

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
                            await self._sessions()
                        finally:
                            await self._finish_output()
                        for task in tasks:
                            task.cancel()
            except TimeoutError as exc:
                raise SolFailed(self._timeout_text()) from exc
            except BaseExceptionGroup as group:
                raise first_leaf(group) from group

    # Streams, one after the other.

    async def _sessions(self) -> None:
        loop = asyncio.get_running_loop()
        lost_at, delays = loop.time(), iter(REOPEN_DELAYS)
        while True:
            try:
                await self._run_session()
                return
            except SolLost as exc:
                if self._quit.is_set():
                    return
                if not self._opened:
                    raise SolFailed(str(exc)) from exc
                if self._online.is_set():
                    self._online.clear()
                    lost_at, delays = loop.time(), iter(REOPEN_DELAYS)
                    self._say(f"{exc}; opening the session again")
                elif loop.time() - lost_at > REOPEN_LIMIT:
                    raise SolFailed(f"{exc}; gave up after {REOPEN_LIMIT:.0f} s") from exc
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(next(delays, REOPEN_DELAYS[-1])):
                    await self._quit.wait()
                    return

    async def _run_session(self) -> None:
        """One stream, to its end; SolLost when another one may do better."""
        self._session = SolSession(self._login, self)
        try:
            await self._session.run(self._open_port, again=self._opened)
        except SolFailed:
            if not self._quit.is_set():
                raise
        finally:
            self._session = None

    async def _open_port(self, port: int) -> ClientStream:
        options = self._options
        try:
            self._stream = await self._client.open_stream(
                options.guid,
                port,
                hold=options.hold,
                mode="sol",
                # Who came in while our connection was lost stays.
                takeover=options.takeover and not self._opened,
            )
            return self._stream
        except ApiUnavailable as exc:
            raise SolLost(str(exc)) from exc
        except ApiRefused as exc:
            if exc.status in _REOPEN_STATUS:
                raise SolLost(str(exc)) from exc
            raise

    async def _boot(self) -> None:
        """Once the device sends to us: the BIOS's first line must find the line open."""
        options = self._options
        if not options.boot:
            return
        await self._online.wait()
        if self._stream is None or not self._stream.id:
            raise SolFailed("the service does not tell the stream's id: it is too old to boot so")
        login = {"username": options.username, "password": options.password}
        call = {
            "function": "boot.once",
            "arguments": {"device": options.boot, "stream": self._stream.id},
            "credential": login,
            "deadline": BOOT_DEADLINE,
        }
        path = f"/api/v1/devices/{options.guid}/call"
        try:
            answer = await self._client.request("POST", path, call, timeout=BOOT_DEADLINE + GRACE)
        except (ApiRefused, ApiUnavailable) as exc:
            raise SolFailed(f"boot {options.boot}: {exc}") from exc
        result = answer["result"]
        before, requested = result["power_state_before_name"], result["requested_name"]
        self._say(f"boot {options.boot}: the PC was {before}; {requested}")

    # What a session tells its owner.

    def sol_opened(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._online.set()
        self._say("opened again" if self._opened else self._welcome())
        self._opened = True
        self._advance_script()

    def sol_data(self, data: bytes) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._output += data
        self._output_wake.set()
        if self._options.steps:
            self._script.receive_data(data)
            self._advance_script()

    async def sol_room(self) -> None:
        while len(self._output) > MAX_BACKLOG:
            self._output_moved.clear()
            await self._output_moved.wait()

    def sol_said(self, text: str) -> None:
        self._say(text)

    def _welcome(self) -> str:
        text = f"connected to {self._options.guid}"
        if not self._interactive:
            return text
        size = os.get_terminal_size(self._stdin)
        if 0 < size.columns < 80 or 0 < size.lines < 25:
            text += f"; this window is {size.columns}x{size.lines}, a BIOS draws 80x25"
        return f"{text}; ^] q leaves, ^] ? helps"

    def _advance_script(self) -> None:
        if not self._options.steps or self._session is None:
            return
        while (text := self._script.next_send()) is not None:
            self._session.send(text)
        if self._script.finished:
            self._leave()

    def _leave(self) -> None:
        self._quit.set()
        if self._session is not None:
            self._session.close()

    # Input.

    async def _read_input(self) -> None:
        if self._options.steps:
            return
        while data := await _read(self._stdin):
            if self._interactive:
                data, help_wanted, leave = self._escape.feed(data)
                if help_wanted:
                    self._say("^] q leaves, ^] ^] sends ^]")
                if leave:
                    self._leave()
                    return
            else:
                data = data.replace(b"\n", b"\r")
                await self._online.wait()
            if self._session is not None:
                await self._session.type(data)
        if self._interactive:
            self._leave()
        else:
            await self._leave_when_idle()

    async def _leave_when_idle(self) -> None:
        """Pipes: stdin has ended, but the answer to its last line may still come."""
        loop = asyncio.get_running_loop()
        await self._online.wait()
        ended_at = loop.time()
        left = self._options.idle
        while left > 0:
            await asyncio.sleep(left)
            left = max(self._heard_at, ended_at) + self._options.idle - loop.time()
        self._leave()

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
