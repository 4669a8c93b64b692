"""`gwmodule-msp sol`: the serial line of a PC on this terminal, or on pipes and scripts.

    stdin --> input ----> SolClient --> drive ---> stream (WebSocket) --> gateway --> device
    stdout <- output <-- SolClient <-- receive <-- stream

The device's bytes go to the terminal unchanged. Keepalives go on while stdout does not take more,
because only `receive` waits for it. When the gateway's session or this service is lost, or a power
action ended the stream, the terminal opens it again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import ssl
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, assert_never

from gwmodule.amt.connection import HandshakeFailed, legacy_context, modern_context
from gwmodule.amt.redirection import (
    ControlStatus,
    SessionStatus,
    SolClient,
    SolClosed,
    SolControls,
    SolData,
    SolOpened,
    SolRefused,
    SolSettings,
)
from gwmodule.errors import ChannelReset, Code, GatewayError
from gwmodule.msp.client import ApiClient, ApiRefused, ApiUnavailable, ClientStream
from gwmodule.msp.subprotocol import first_leaf
from gwmodule.msp.tls import TlsStream
from gwmodule.telemetry import escape

REDIRECTION_TCP = 16994
REDIRECTION_TLS = 16995
# An ME of 2008 needs almost two seconds for its RSA operation.
HANDSHAKE_TIMEOUT = 15.0
ESCAPE = 0x1D  # ^]
CHUNK = 4096
# Twelve minutes of a serial line at 115,200 baud behind a terminal that was stopped with ^S.
MAX_BACKLOG = 8 * 1024 * 1024
# What may wait for the device: a paste is slowed down here, not collected.
MAX_PENDING = 16 * 1024
# What `expect` can still look back at.
MAX_SCRIPT_BUFFER = 256 * 1024
# The device sends a heartbeat every 5 s; three missing ones are worth a word.
SILENCE_NOTICE = 15.0
# Longer than a gateway's session survives without a link, which is what breaks a stream.
SILENCE_LIMIT = 150.0
# What stdout may take at the end, before we leave with the rest unwritten.
FINISH_TIMEOUT = 5.0
REOPEN_DELAYS = (0.5, 1.0, 2.0, 5.0)
REOPEN_LIMIT = 300.0
# Ends after which the same stream can be had again.
_REOPEN = frozenset(
    {
        Code.SESSION_LOST,
        Code.SHUTDOWN,
        Code.REPLACED,
        Code.CONNECTION_LOST,
        Code.POWER_ACTION,
        Code.UNREACHABLE,
        Code.CONNECTION_REFUSED,
    }
)
_REOPEN_STATUS = frozenset({503, 504})

Step: TypeAlias = tuple[Literal["send", "expect"], str]


class SolFailed(GatewayError):
    """The session could not be opened, ended early, or the script did not see what it expected."""


class _Passing(Exception):
    """The stream ended, or could not be opened, for a reason that passes."""


@dataclass(frozen=True, slots=True)
class SolOptions:
    """`steps` make it a script; `idle` ends a piped session that long after stdin ended.

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
        self._sol: SolClient | None = None
        self._ending: SolClosed | SolRefused | None = None
        self._opened = False
        self._heard_at = 0.0
        self._output = bytearray()
        self._output_wake = asyncio.Event()
        self._output_moved = asyncio.Event()
        self._drive_wake = asyncio.Event()
        self._driven = asyncio.Event()
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
                await self._session()
                return
            except _Passing as exc:
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

    async def _session(self) -> None:
        """One stream, to its end; _Passing when another one may do better."""
        try:
            stream = await self._open()
        except ApiUnavailable as exc:
            raise _Passing(str(exc)) from exc
        except HandshakeFailed as exc:
            raise _Passing(str(exc)) from exc
        except ChannelReset as exc:
            raise _passing_or_not(exc) from exc
        except ApiRefused as exc:
            if exc.status in _REOPEN_STATUS:
                raise _Passing(str(exc)) from exc
            raise
        if self._quit.is_set():
            await stream.close()
            return
        options = self._options
        sol = self._sol = SolClient(
            options.username,
            now=asyncio.get_running_loop().time(),
            password=options.password,
            settings=options.settings,
            allow_clear_text=options.allow_clear_text,
            # `_receive` watches the device, because it knows when we do not read on purpose.
            silence_timeout=0,
        )
        self._ending = None
        try:
            async with asyncio.TaskGroup() as group:
                receive = group.create_task(self._receive(stream, sol), name="receive")
                await self._drive(stream, sol)
                receive.cancel()
        except BaseExceptionGroup as group:
            error = first_leaf(group)
            raise _passing_or_not(error) from group
        finally:
            self._sol = None
            await stream.close()
        self._judge_end()

    async def _open(self) -> ClientStream | TlsStream:
        options = self._options
        if options.pin is None:
            return await self._open_port(REDIRECTION_TCP)
        try:
            return await self._open_tls(modern_context(), options.pin)
        except HandshakeFailed:
            # Firmware before AMT 12; the pin is the same.
            return await self._open_tls(legacy_context(), options.pin)

    async def _open_tls(self, context: ssl.SSLContext, pin: bytes) -> TlsStream:
        stream = await self._open_port(REDIRECTION_TLS)
        tls = TlsStream(stream, context)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await tls.open(pin)
        except TimeoutError as exc:
            await stream.close(Code.TIMEOUT, "no TLS handshake")
            raise SolFailed(f"no TLS handshake within {HANDSHAKE_TIMEOUT:.0f} s") from exc
        except BaseException:
            await stream.close(Code.CANCELLED, "the TLS handshake failed")
            raise
        return tls

    async def _open_port(self, port: int) -> ClientStream:
        return await self._client.open_stream(
            self._options.guid, port, hold=self._options.hold, mode="sol"
        )

    def _judge_end(self) -> None:
        match self._ending:
            case SolRefused(status, reason):
                if self._opened and status == SessionStatus.BUSY:
                    # The device has not noticed yet that our last session is over.
                    raise _Passing(reason)
                raise SolFailed(reason)
            case SolClosed(reason):
                if not self._quit.is_set():
                    raise SolFailed(reason)
            case None:
                pass
            case _:
                assert_never(self._ending)

    async def _drive(self, stream: ClientStream | TlsStream, sol: SolClient) -> None:
        """Send what the client has to say, and keep its time, until it has ended."""
        loop = asyncio.get_running_loop()
        while True:
            while data := sol.data_to_send(CHUNK):
                await stream.write(data)
                self._driven.set()
            if self._ending is not None:
                return
            self._drive_wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(sol.next_timeout()):
                    await self._drive_wake.wait()
            sol.handle_timeout(loop.time())
            self._deliver(sol)

    async def _receive(self, stream: ClientStream | TlsStream, sol: SolClient) -> None:
        loop = asyncio.get_running_loop()
        silent = 0.0
        while True:
            try:
                async with asyncio.timeout(SILENCE_NOTICE):
                    data = await stream.read()
            except TimeoutError as exc:
                silent += SILENCE_NOTICE
                if silent >= SILENCE_LIMIT:
                    raise SolFailed(f"the device has been silent for {silent:.0f} s") from exc
                if silent == SILENCE_NOTICE and self._online.is_set():
                    self._say(f"no sign of the device for {silent:.0f} s")
                continue
            silent = 0.0
            sol.receive_data(data, loop.time())
            self._deliver(sol)
            self._drive_wake.set()
            if not data:
                return
            while len(self._output) > MAX_BACKLOG:
                self._output_moved.clear()
                await self._output_moved.wait()

    def _deliver(self, sol: SolClient) -> None:
        while (event := sol.next_event()) is not None:
            match event:
                case SolOpened():
                    self._on_opened()
                case SolData(data):
                    self._heard_at = asyncio.get_running_loop().time()
                    self._output += data
                    self._output_wake.set()
                    if self._options.steps:
                        self._script.receive_data(data)
                case SolControls(_, status):
                    if ControlStatus.TX_OVERFLOW in status:
                        self._say("the device's buffer ran over: some output is missing")
                case SolClosed() | SolRefused():
                    self._ending = event
                case _:
                    assert_never(event)
        self._advance_script(sol)

    def _on_opened(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._online.set()
        self._say("opened again" if self._opened else self._welcome())
        self._opened = True

    def _welcome(self) -> str:
        text = f"connected to {self._options.guid}"
        if not self._interactive:
            return text
        size = os.get_terminal_size(self._stdin)
        if 0 < size.columns < 80 or 0 < size.lines < 25:
            text += f"; this window is {size.columns}x{size.lines}, a BIOS draws 80x25"
        return f"{text}; ^] q leaves, ^] ? helps"

    def _advance_script(self, sol: SolClient) -> None:
        if not self._options.steps or not self._online.is_set() or self._ending is not None:
            return
        while (text := self._script.next_send()) is not None:
            sol.send(text)
            self._drive_wake.set()
        if self._script.finished:
            self._leave()

    def _leave(self) -> None:
        self._quit.set()
        if self._sol is not None:
            self._sol.close()
            self._drive_wake.set()

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
            await self._type(data)
        if self._interactive:
            self._leave()
        else:
            await self._leave_when_idle()

    async def _type(self, data: bytes) -> None:
        # What is typed while no session is open is dropped: nobody saw where it would go.
        for start in range(0, len(data), MAX_PENDING):
            if self._sol is None or not self._online.is_set():
                return
            self._sol.send(data[start : start + MAX_PENDING])
            self._drive_wake.set()
            while self._sol is not None and self._sol.pending > MAX_PENDING:
                self._driven.clear()
                await self._driven.wait()

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


def _passing_or_not(error: BaseException) -> BaseException:
    if isinstance(error, ChannelReset) and error.code in _REOPEN:
        return _Passing(str(error))
    return error


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
