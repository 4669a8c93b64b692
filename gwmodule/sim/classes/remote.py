"""Redirection, KVM and consent (reference/amt-protocols.md 3.8)."""

from __future__ import annotations

from gwmodule.amt.redirection import SessionKind
from gwmodule.sim import logs
from gwmodule.sim.classes.common import (
    CIM_INVALID_PARAMETER,
    INVALID_PARAMETER,
    MANAGED_SYSTEM,
    OK,
    chosen,
    keep,
    refuse_value,
    returns,
    service,
    singleton,
)
from gwmodule.sim.consent import CODE_TIMEOUT, DISPLAY_TIMEOUT
from gwmodule.sim.machine import Machine, PowerState
from gwmodule.sim.profiles import Feature
from gwmodule.sim.wsman import Element, Fault, Invocation, Properties, Resource

# EnabledState of AMT_RedirectionService: this, and one bit for each kind.
_NONE_ENABLED = 32768
_BITS = {SessionKind.IDER: 1, SessionKind.SOL: 2}
# TerminateSession's SessionType.
_SESSION_TYPES = {0: SessionKind.IDER, 1: SessionKind.SOL}
# CIM_KVMRedirectionSAP.EnabledState; 2 is enabled with a session.
_KVM_IN_SESSION, _KVM_OFF, _KVM_READY = 2, 3, 6
_ENABLE, _DISABLE = 2, 3


def classes(machine: Machine) -> list[Resource]:
    every = [_redirection_service(machine)]
    if machine.profile.has(Feature.KVM):
        every += [_kvm_access_point(machine), _kvm_settings(machine)]
    if machine.profile.has(Feature.CONSENT):
        every.append(_opt_in_service(machine))
    return every


def _redirection_service(machine: Machine) -> Resource:
    name, remote = "AMT_RedirectionService", machine.remote

    def properties() -> Properties:
        bits = sum(bit for kind, bit in _BITS.items() if kind in remote.enabled)
        return service(name, "Intel(r) AMT Redirection Service") | {
            "EnabledState": _NONE_ENABLED + bits,
            "ListenerEnabled": remote.listener,
        }

    def enable(state: int) -> bool:
        if not _NONE_ENABLED <= state <= _NONE_ENABLED + sum(_BITS.values()):
            return False
        for kind, bit in _BITS.items():
            if state & bit:
                remote.enabled.add(kind)
            else:
                remote.enabled.discard(kind)
        return True

    def request_state_change(invocation: Invocation) -> Properties:
        wanted = invocation.input.number("RequestedState")
        return returns(OK if enable(wanted) else CIM_INVALID_PARAMETER)

    def terminate_session(invocation: Invocation) -> Properties:
        kind = _SESSION_TYPES.get(invocation.input.number("SessionType"))
        if kind not in machine.sessions:
            return returns(INVALID_PARAMETER)
        machine.close_session(kind)
        return returns(OK)

    def put(current: Properties, sent: Element) -> None:
        listener = sent.read("ListenerEnabled") or ("true" if remote.listener else "false")
        if listener not in ("true", "false"):
            raise refuse_value("ListenerEnabled", listener)
        if sent.find("EnabledState") and not enable(sent.number("EnabledState")):
            raise refuse_value("EnabledState", sent.read("EnabledState"))
        remote.listener = listener == "true"

    methods = {"RequestStateChange": request_state_change, "TerminateSession": terminate_session}
    return Resource(name, singleton(properties), methods=methods, put=put)


def _kvm_access_point(machine: Machine) -> Resource:
    name, title = "CIM_KVMRedirectionSAP", "KVM Redirection Service Access Point"

    def properties() -> Properties:
        running = SessionKind.KVM in machine.sessions
        state = _KVM_IN_SESSION if running else _KVM_READY
        return {
            "CreationClassName": name,
            "ElementName": title,
            "EnabledState": state if machine.remote.kvm else _KVM_OFF,
            "KVMProtocol": 4,
            "Name": title,
            "RequestedState": _ENABLE if machine.remote.kvm else _DISABLE,
            **MANAGED_SYSTEM,
        }

    def request_state_change(invocation: Invocation) -> Properties:
        wanted = invocation.input.number("RequestedState")
        if wanted not in (_ENABLE, _DISABLE):
            return returns(CIM_INVALID_PARAMETER)
        machine.remote.kvm = wanted == _ENABLE
        return returns(OK)

    methods = {"RequestStateChange": request_state_change}
    return Resource(name, singleton(properties), methods=methods)


def _kvm_settings(machine: Machine) -> Resource:
    name, title = "IPS_KVMRedirectionSettingData", "Intel(r) KVM Redirection Settings"
    defaults = {
        "BackToBackFbMode": False,
        "DefaultScreen": 0,
        "Is5900PortEnabled": False,
        "OptInPolicy": machine.profile.client_control,
        "OptInPolicyTimeout": 300,
        "SessionTimeout": 3,
    }

    def properties() -> Properties:
        return {
            **chosen(machine, name, defaults),
            "ElementName": title,
            "EnabledByMEBx": True,
            "InstanceID": title,
            # Write-only.
            "RFBPassword": "",
        }

    def put(current: Properties, sent: Element) -> None:
        keep(machine, name, sent, current, defaults)

    return Resource(name, singleton(properties), put=put)


def _opt_in_service(machine: Machine) -> Resource:
    name, consent = "IPS_OptInService", machine.consent

    def properties() -> Properties:
        return service(name, "Intel(r) AMT OptIn Service") | {
            "CanModifyOptInPolicy": 0 if consent.forced else 1,
            "OptInCodeTimeout": int(CODE_TIMEOUT),
            "OptInDisplayTimeout": int(DISPLAY_TIMEOUT),
            "OptInRequired": consent.required,
            "OptInState": int(consent.state),
        }

    def start_opt_in(invocation: Invocation) -> Properties:
        screen = machine.power is PowerState.ON
        return returns(consent.start(invocation.now, screen=screen))

    def send_opt_in_code(invocation: Invocation) -> Properties:
        result = consent.send(invocation.input.read("OptInCode"), invocation.now)
        machine.record(logs.CONSENT_CODE, bytes([result]))
        return returns(result)

    def cancel_opt_in(invocation: Invocation) -> Properties:
        return returns(consent.cancel())

    def put(current: Properties, sent: Element) -> None:
        wanted = sent.number("OptInRequired")
        if wanted == consent.required:
            return
        if consent.forced:
            raise Fault("c:AccessDenied", "The consent policy cannot be changed.")
        if not consent.set_policy(wanted):
            raise refuse_value("OptInRequired", sent.read("OptInRequired"))
        machine.record(logs.CONSENT_POLICY)

    methods = {
        "StartOptIn": start_opt_in,
        "SendOptInCode": send_opt_in_code,
        "CancelOptIn": cancel_opt_in,
    }
    return Resource(name, singleton(properties), methods=methods, put=put)
