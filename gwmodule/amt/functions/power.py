"""Power of the PC: CIM_AssociatedPowerManagementService and CIM_PowerManagementService.

Numbers, names and what tools mean by them: reference/amt-protocols.md 3.3.
"""

from __future__ import annotations

from gwmodule.amt.functions.identity import require_identity
from gwmodule.amt.functions.reading import named, number, numbers
from gwmodule.amt.functions.schema import (
    Argument,
    Arguments,
    Context,
    Field,
    Function,
    Kind,
    Result,
    Wsman,
)
from gwmodule.amt.wsman import check_return, reference
from gwmodule.errors import DeviceUnreachable

_SERVICE = "CIM_PowerManagementService"
_SERVICE_NAME = {"Name": "Intel(r) AMT Power Management Service"}
SYSTEM = reference(
    "CIM_ComputerSystem", {"CreationClassName": "CIM_ComputerSystem", "Name": "ManagedSystem"}
)

POWER_STATES = {
    1: "other",
    2: "on",
    3: "light sleep",
    4: "sleep",
    5: "cycling",
    6: "off (hard)",
    7: "hibernate",
    8: "off",
    9: "off (cycling)",
    10: "resetting",
    11: "diagnostic interrupt",
    12: "off (graceful)",
    13: "off (hard, graceful)",
}
ON = 2
RESET = 10
REQUESTS = {
    "on": ON,
    "light-sleep": 3,
    "sleep": 4,
    "cycle": 5,
    "off-hard": 6,
    "hibernate": 7,
    "off": 8,
    "cycle-hard": 9,
    "reset": RESET,
    "nmi": 11,
    "soft-off": 12,
    "soft-off-hard": 13,
    "soft-reset": 14,
    "soft-cycle": 15,
    "soft-cycle-hard": 16,
}
REQUEST_NAMES = {value: name for name, value in REQUESTS.items()}
# AMT rejects these while a redirection session is open.
ENDS_SESSIONS = frozenset({5, 6, 8, 9, 12, 13, 15, 16})
OFF_STATES = frozenset({6, 8, 9, 12, 13})
_ON_STATES = frozenset({ON})
# What the state is once the request has been carried out; a PC that cycles or resets is on again.
_EXPECTED = {
    3: frozenset({3, 4}),
    4: frozenset({3, 4}),
    6: OFF_STATES,
    7: frozenset({7}),
    8: OFF_STATES,
    12: OFF_STATES,
    13: OFF_STATES,
}
# Seconds between two looks at the state, and before the first: firmware needs a moment itself.
POLL = 1.0
# Closing our sockets is not enough: the device must have noticed before it takes the request.
SESSION_END = 0.5


async def power_state(client: Wsman) -> tuple[int, list[int]]:
    """The state, and the requests that the device takes in this state."""
    service = await client.get("CIM_AssociatedPowerManagementService")
    return number(service, "PowerState"), numbers(service, "AvailableRequestedPowerStates")


async def power_get(client: Wsman, arguments: Arguments, context: Context) -> Result:
    state, available = await power_state(client)
    return {
        **named("power_state", state, POWER_STATES),
        "available": [
            {"state": value, "name": REQUEST_NAMES.get(value, f"unknown ({value})")}
            for value in available
        ],
    }


async def request_power(client: Wsman, state: int, context: Context) -> None:
    """One RequestPowerStateChange, at the distance AMT wants; DeviceRefused says what it minds."""
    await context.power_turn()
    output = await client.invoke(
        _SERVICE,
        "RequestPowerStateChange",
        {"PowerState": state, "ManagedElement": SYSTEM},
        _SERVICE_NAME,
    )
    check_return(_SERVICE, "RequestPowerStateChange", output)


async def power_set(client: Wsman, arguments: Arguments, context: Context) -> Result:
    wanted, wait = arguments["state"], arguments["wait"]
    identified_by = await require_identity(client, context)
    released = 0
    if wanted in ENDS_SESSIONS:
        released = context.release_redirection(f"power action by {arguments['by'] or 'the MSP'}")
        if released:
            await context.sleep(SESSION_END)
    await request_power(client, wanted, context)
    result: Result = {
        **named("requested", wanted, REQUEST_NAMES),
        "identified_by": identified_by,
        "released_streams": released,
        **named("power_state", None, POWER_STATES),
        "verified": False,
    }
    for second in range(1, wait + 1):
        await context.sleep(POLL)
        context.progress(second, wait, f"waiting for the PC to be {REQUEST_NAMES[wanted]}")
        try:
            state, _ = await power_state(client)
        except DeviceUnreachable:
            # The network port changes hands between OS and AMT; it is back in seconds.
            continue
        result |= named("power_state", state, POWER_STATES)
        if state in _EXPECTED.get(wanted, _ON_STATES):
            result["verified"] = True
            break
    return result


_STATE = Field("power_state", Kind.CHOICE, "the PC's power state", choices=POWER_STATES)

FUNCTIONS = (
    Function(
        "power.get",
        "Power state, and what the device can be asked for in it",
        power_get,
        result=(
            _STATE,
            Field("available", Kind.LIST, "requests that power.set can make now: state, name"),
        ),
        without_wsman=True,
    ),
    Function(
        "power.set",
        "Switch, reset or interrupt the PC; checks the device's UUID first",
        power_set,
        (
            Argument("state", Kind.CHOICE, "what to ask for", choices=REQUESTS),
            Argument(
                "wait",
                Kind.INTEGER,
                "how long to wait for the new state",
                default=0,
                high=300,
                unit="seconds",
            ),
            Argument(
                "force",
                Kind.BOOLEAN,
                "also where a stream of another technician must be closed for it; the MSP asks, "
                "because the gateway knows no technicians",
                default=False,
            ),
            Argument(
                "by", Kind.TEXT, "who does this, told to streams it closes", default="", high=64
            ),
        ),
        (
            Field("requested", Kind.CHOICE, "what the device was asked for", choices=REQUEST_NAMES),
            Field(
                "identified_by",
                Kind.TEXT,
                "uuid: the device's own was checked; mac: it has none to ask for (AMT 1, 2), or "
                "none was known",
            ),
            Field("released_streams", Kind.INTEGER, "own redirection streams closed for it"),
            _STATE,
            Field("verified", Kind.BOOLEAN, "whether the new state was seen within `wait`"),
        ),
        changes_state=True,
        without_wsman=True,
    ),
)
