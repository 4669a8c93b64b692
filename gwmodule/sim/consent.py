"""The consent of the person in front of the PC: IPS_OptInService, without I/O.

    NOT_STARTED --start--> DISPLAYED --right code--> RECEIVED --session--> IN_SESSION
         ^                     |  300 s, cancel         |  120 s, cancel       | last one ends
         +---------------------+------------------------+      RECEIVED <------+

Names, numbers and both times: reference/amt-protocols.md 3.8. That three wrong codes block for a
minute is this simulator's choice.
"""

from __future__ import annotations

import enum
import random

from gwmodule.amt.redirection import SessionKind

DISPLAY_TIMEOUT = 300.0
CODE_TIMEOUT = 120.0
MAX_WRONG_CODES = 3
BLOCKED_FOR = 60.0

NOBODY = 0
KVM_ONLY = 1
EVERYTHING = 0xFFFFFFFF


class ConsentState(enum.IntEnum):
    """IPS_OptInService.OptInState."""

    NOT_STARTED = 0
    REQUESTED = 1
    DISPLAYED = 2
    RECEIVED = 3
    IN_SESSION = 4


class ConsentResult(enum.IntEnum):
    """The ReturnValue of its methods."""

    OK = 0
    INTERNAL = 1
    INVALID_STATE = 2
    BLOCKED = 3
    FAILED = 4


class Consent:
    """`required` is the policy, OptInRequired; `forced` says that nobody may change it."""

    def __init__(self, rng: random.Random, *, forced: bool) -> None:
        self.forced = forced
        self.required = EVERYTHING if forced else NOBODY
        self.state = ConsentState.NOT_STARTED
        # Six digits while they are on the screen.
        self.code = ""
        self._rng = rng
        self._wrong = 0
        self._deadline: float | None = None
        self._blocked_until = float("-inf")

    def wants(self, kind: SessionKind) -> bool:
        """Whether a session of this kind needs a consent that is not there."""
        needed = self.required == EVERYTHING or (
            self.required == KVM_ONLY and kind is SessionKind.KVM
        )
        return needed and self.state not in (ConsentState.RECEIVED, ConsentState.IN_SESSION)

    @property
    def bars_boot(self) -> bool:
        """Whether boot options need a consent that is not there."""
        return self.wants(SessionKind.SOL)

    def set_policy(self, required: int) -> bool:
        """False when it may not be changed or is none."""
        if self.forced or required not in (NOBODY, KVM_ONLY, EVERYTHING):
            return False
        self.required = required
        return True

    def start(self, now: float, *, screen: bool) -> ConsentResult:
        """Show a code, if the `screen` can show one."""
        if now < self._blocked_until:
            return ConsentResult.BLOCKED
        idle = self.state is ConsentState.NOT_STARTED
        if self.required == NOBODY or not idle or not screen:
            return ConsentResult.INVALID_STATE
        self.code = f"{self._rng.randrange(1_000_000):06d}"
        self._wrong = 0
        self._enter(ConsentState.DISPLAYED, now + DISPLAY_TIMEOUT)
        return ConsentResult.OK

    def send(self, code: str, now: float) -> ConsentResult:
        if self.state is not ConsentState.DISPLAYED:
            return ConsentResult.INVALID_STATE
        # It is a number on the wire: leading zeros may have gone.
        if code.zfill(6) == self.code:
            self.code = ""
            self._enter(ConsentState.RECEIVED, now + CODE_TIMEOUT)
            return ConsentResult.OK
        self._wrong += 1
        if self._wrong == MAX_WRONG_CODES:
            self._blocked_until = now + BLOCKED_FOR
            self._forget()
        return ConsentResult.FAILED

    def cancel(self) -> ConsentResult:
        if self.state in (ConsentState.NOT_STARTED, ConsentState.IN_SESSION):
            return ConsentResult.INVALID_STATE
        self._forget()
        return ConsentResult.OK

    def session_opened(self) -> None:
        if self.state is ConsentState.RECEIVED:
            self._enter(ConsentState.IN_SESSION, None)

    def sessions_ended(self, now: float) -> None:
        """The last one is over; another may follow while the code is still good."""
        if self.state is ConsentState.IN_SESSION:
            self._enter(ConsentState.RECEIVED, now + CODE_TIMEOUT)

    def next_timeout(self) -> float | None:
        return self._deadline

    def handle_timeout(self, now: float) -> None:
        if self._deadline is not None and now >= self._deadline:
            self._forget()

    def _enter(self, state: ConsentState, deadline: float | None) -> None:
        self.state = state
        self._deadline = deadline

    def _forget(self) -> None:
        self.code = ""
        self._enter(ConsentState.NOT_STARTED, None)
