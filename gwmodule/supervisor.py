"""`gwmodule run`: starts the services, starts them again when they die, and does nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_BAD_CONFIG = 78
# Seconds before a service that died starts again; one that lives a minute starts at the first.
_FIRST_DELAY = 0.5
_MAX_DELAY = 15.0
_HEALTHY = 60.0
_STOP_TIMEOUT = 5.0


class _Service:
    def __init__(self, name: str, config: str) -> None:
        self.name = name
        self._argv = [sys.executable, "-B", "-m", "gwmodule", name, "--config", config]
        self.process: subprocess.Popen[bytes] | None = None
        self.start_at = 0.0
        self._delay = _FIRST_DELAY
        self._started = 0.0

    def start(self, now: float) -> None:
        self._started = now
        self.start_at = float("inf")
        try:
            self.process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent
            )
        except (OSError, subprocess.SubprocessError) as exc:
            # Out of memory or processes, which passes; the other service would die with us.
            self.died(f'"not started: {exc}"', now)

    def died(self, status: int | str, now: float) -> None:
        sys.stderr.write(
            f"WARNING gwmodule event=service_died service={self.name} status={status}\n"
        )
        if now - self._started > _HEALTHY:
            self._delay = _FIRST_DELAY
        self.start_at = now + self._delay
        self._delay = min(self._delay * 2, _MAX_DELAY)
        self.process = None


def supervise(names: list[str], config: str) -> int:
    """Until SIGTERM or SIGINT; 78 when a service says that its configuration is bad."""
    services = [_Service(name, config) for name in names]
    stopping = False
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD}
    # Blocked and waited for: no handler runs in the middle of anything.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    status = 0
    while not stopping:
        now = time.monotonic()
        for service in services:
            if service.start_at <= now:
                service.start(now)
        wake_at = min(service.start_at for service in services)
        timeout = min(max(wake_at - now, 0.0), 3600.0)
        received = signal.sigtimedwait(signals, timeout)
        number = received.si_signo if received is not None else None
        if number in (signal.SIGHUP, signal.SIGUSR1):
            _forward(services, number)
        elif number in (signal.SIGTERM, signal.SIGINT):
            stopping = True
        for service in services:
            code = None if service.process is None else service.process.poll()
            if code == _BAD_CONFIG:
                stopping, status = True, _BAD_CONFIG
            elif code is not None:
                service.died(code, time.monotonic())
    _stop(services)
    return status


def _forward(services: list[_Service], number: int) -> None:
    for service in services:
        if service.name == "relay" and service.process is not None:
            service.process.send_signal(number)


def _stop(services: list[_Service]) -> None:
    running = [service.process for service in services if service.process is not None]
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    """In the child, before exec: no service outlives a supervisor that was killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    # A terminal's Ctrl-C reaches the services as their supervisor's SIGTERM, once.
    with contextlib.suppress(OSError):
        os.setsid()
    # The router must outlive us; the services raise their oom_score_adj themselves.
    os.nice(5)
