"""Who may look at and write to the PC: redirection, KVM and the user's consent.

AMT_RedirectionService, CIM_KVMRedirectionSAP, IPS_OptInService (reference/amt-protocols.md 3.8).
"""

from __future__ import annotations

from gwmodule.amt.functions.identity import require_identity
from gwmodule.amt.functions.reading import flag, named, number, optional_number
from gwmodule.amt.functions.schema import (
    Argument,
    Arguments,
    Context,
    Field,
    Function,
    Kind,
    NotSupported,
    Result,
    Wsman,
)
from gwmodule.amt.wsman import check_return
from gwmodule.errors import WsmanFault

_SERVICE = "AMT_RedirectionService"
_KVM = "CIM_KVMRedirectionSAP"
_KVM_SETTINGS = "IPS_KVMRedirectionSettingData"
_OPT_IN = "IPS_OptInService"
# EnabledState and RequestedState are this plus 1 for IDE-R and 2 for SOL.
_NONE_ENABLED = 32768
_IDER = 1
_SOL = 2
_ENABLED = 2
_DISABLED = 3
# CIM EnabledState: 2 on, 6 on but nobody looks.
_KVM_ON = frozenset({2, 6})
REDIRECTION_STATES = {32768: "none", 32769: "IDE-R", 32770: "SOL", 32771: "IDE-R and SOL"}
KVM_STATES = {2: "enabled", 3: "disabled", 5: "not applicable", 6: "enabled, not in use"}
CONSENT_REQUIRED = {0: "never", 1: "KVM", 0xFFFFFFFF: "always"}
CONSENT_STATES = {
    0: "not started",
    1: "requested",
    2: "code shown to the user",
    3: "code accepted",
    4: "in session",
}
_CONSENT_RETURN_VALUES = {1: "internal error", 2: "invalid state", 3: "blocked", 4: "failed"}


async def redirection_get(client: Wsman, arguments: Arguments, context: Context) -> Result:
    service = await client.get(_SERVICE)
    state = number(service, "EnabledState")
    result: Result = {
        **named("state", state, REDIRECTION_STATES),
        "sol": bool(state & _SOL),
        "ider": bool(state & _IDER),
        # Without it ports 16994 and 16995 look dead, whatever is enabled.
        "listener": flag(service, "ListenerEnabled"),
        **named("kvm_state", None, KVM_STATES),
        "kvm": None,
        "kvm_port_5900": None,
        "kvm_consent": None,
    }
    try:
        kvm_state = number(await client.get(_KVM), "EnabledState")
        settings = await client.get(_KVM_SETTINGS)
    except WsmanFault:
        # Firmware before AMT 6, or a PC without Intel graphics: no KVM.
        return result
    return result | {
        **named("kvm_state", kvm_state, KVM_STATES),
        "kvm": kvm_state in _KVM_ON,
        "kvm_port_5900": flag(settings, "Is5900PortEnabled"),
        "kvm_consent": flag(settings, "OptInPolicy"),
    }


async def redirection_set(client: Wsman, arguments: Arguments, context: Context) -> Result:
    await require_identity(client, context)
    service = await client.get(_SERVICE)
    before = number(service, "EnabledState")
    state = _with(_with(before, _SOL, arguments["sol"]), _IDER, arguments["ider"])
    if state != before:
        output = await client.invoke(_SERVICE, "RequestStateChange", {"RequestedState": state})
        check_return(_SERVICE, "RequestStateChange", output)
        service["EnabledState"] = str(state)
    wanted = arguments["listener"]
    if wanted is not None and wanted != flag(service, "ListenerEnabled"):
        service["ListenerEnabled"] = wanted
        await client.put(_SERVICE, service)
    return await redirection_get(client, {}, context)


def _with(state: int, bit: int, wanted: bool | None) -> int:
    if wanted is None:
        return state
    return (state | bit if wanted else state & ~bit) | _NONE_ENABLED


async def kvm_set(client: Wsman, arguments: Arguments, context: Context) -> Result:
    await require_identity(client, context)
    requested = _ENABLED if arguments["enabled"] else _DISABLED
    try:
        output = await client.invoke(_KVM, "RequestStateChange", {"RequestedState": requested})
    except WsmanFault as exc:
        raise NotSupported(f"this PC has no KVM redirection ({exc})") from exc
    check_return(_KVM, "RequestStateChange", output)
    state = number(await client.get(_KVM), "EnabledState")
    return {**named("kvm_state", state, KVM_STATES), "kvm": state in _KVM_ON}


async def consent_get(client: Wsman, arguments: Arguments, context: Context) -> Result:
    try:
        service = await client.get(_OPT_IN)
    except WsmanFault as exc:
        raise NotSupported(f"this PC knows no user consent ({exc})") from exc
    return {
        **named("required", number(service, "OptInRequired"), CONSENT_REQUIRED),
        **named("state", number(service, "OptInState"), CONSENT_STATES),
        "code_timeout": optional_number(service, "OptInCodeTimeout"),
        "display_timeout": optional_number(service, "OptInDisplayTimeout"),
        "changeable": flag(service, "CanModifyOptInPolicy"),
    }


async def consent_start(client: Wsman, arguments: Arguments, context: Context) -> Result:
    await require_identity(client, context)
    return await _consent(client, "StartOptIn", {}, context)


async def consent_send(client: Wsman, arguments: Arguments, context: Context) -> Result:
    await require_identity(client, context)
    return await _consent(client, "SendOptInCode", {"OptInCode": arguments["code"]}, context)


async def consent_cancel(client: Wsman, arguments: Arguments, context: Context) -> Result:
    await require_identity(client, context)
    return await _consent(client, "CancelOptIn", {}, context)


async def _consent(
    client: Wsman, method: str, arguments: dict[str, int], context: Context
) -> Result:
    output = await client.invoke(_OPT_IN, method, arguments)
    check_return(_OPT_IN, method, output, _CONSENT_RETURN_VALUES)
    return await consent_get(client, {}, context)


_KVM_STATE = (
    Field("kvm_state", Kind.CHOICE, "KVM, where the PC has it", choices=KVM_STATES),
    Field("kvm", Kind.BOOLEAN, "whether KVM can be used"),
)
_REDIRECTION = (
    Field("state", Kind.CHOICE, "what is enabled", choices=REDIRECTION_STATES),
    Field("sol", Kind.BOOLEAN, "Serial-over-LAN is enabled"),
    Field("ider", Kind.BOOLEAN, "IDE redirection is enabled"),
    Field("listener", Kind.BOOLEAN, "the device listens on 16994 and 16995"),
    *_KVM_STATE,
    Field("kvm_port_5900", Kind.BOOLEAN, "KVM also on port 5900"),
    Field("kvm_consent", Kind.BOOLEAN, "KVM needs the user's consent"),
)
_CONSENT = (
    Field("required", Kind.CHOICE, "for what consent is needed", choices=CONSENT_REQUIRED),
    Field("state", Kind.CHOICE, "how far the request is", choices=CONSENT_STATES),
    Field("code_timeout", Kind.INTEGER, "time to type the code", unit="seconds"),
    Field("display_timeout", Kind.INTEGER, "time the code is shown", unit="seconds"),
    Field("changeable", Kind.BOOLEAN, "whether the policy can be changed remotely"),
)

FUNCTIONS = (
    Function(
        "redirection.get",
        "What of SOL, IDE-R and KVM is enabled, and whether the device listens",
        redirection_get,
        result=_REDIRECTION,
    ),
    Function(
        "redirection.set",
        "Enable or disable SOL, IDE-R and the listener; what is not given stays",
        redirection_set,
        (
            Argument("sol", Kind.BOOLEAN, "Serial-over-LAN", default=None),
            Argument("ider", Kind.BOOLEAN, "IDE redirection", default=None),
            Argument("listener", Kind.BOOLEAN, "listen on 16994 and 16995", default=None),
        ),
        _REDIRECTION,
        changes_state=True,
    ),
    Function(
        "kvm.set",
        "Enable or disable KVM redirection",
        kvm_set,
        (Argument("enabled", Kind.BOOLEAN, "whether KVM can be used"),),
        _KVM_STATE,
        changes_state=True,
    ),
    Function(
        "consent.get",
        "Whether the user at the PC must agree, and whether he has",
        consent_get,
        result=_CONSENT,
    ),
    Function(
        "consent.start",
        "Show a code of six digits on the user's screen",
        consent_start,
        result=_CONSENT,
        changes_state=True,
    ),
    Function(
        "consent.send",
        "Send the code that the user read out",
        consent_send,
        (Argument("code", Kind.INTEGER, "the six digits", high=999_999),),
        _CONSENT,
        changes_state=True,
    ),
    Function(
        "consent.cancel",
        "Withdraw the request, or end the consent",
        consent_cancel,
        result=_CONSENT,
        changes_state=True,
    ),
)
