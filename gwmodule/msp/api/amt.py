"""Open AMT MPS's paths and payloads, each over functions of our catalogue.

What its clients send is taken as they send it, and what they are answered has the shapes of
`open_amt`. What this service cannot do is refused with 501 NOT_SUPPORTED, never answered as done.
"""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
from aiohttp import web

from gwmodule.amt.functions.logs import MAX_EVENTS
from gwmodule.msp.api import open_amt
from gwmodule.msp.api import payloads as p
from gwmodule.msp.api.answers import ApiError, bad_request, json_response
from gwmodule.msp.api.asking import Asked, device_of
from gwmodule.msp.api.calls import Calls, body_of
from gwmodule.msp.api.open_amt import listed, number
from gwmodule.msp.records import Device
from gwmodule.msp.registry import Registry

SUCCESS = p.ReturnAnswer(p.ReturnBody())
# Open AMT reads the audit log in blocks of this many, as the device gives them.
AUDIT_BLOCK = 10


class Amt:
    """Handlers of group `amt`."""

    def __init__(self, registry: Registry, calls: Calls) -> None:
        self._registry = registry
        self._calls = calls

    async def _device(self, asked: Asked) -> Device:
        return await device_of(self._registry, asked.tenant, asked.path("guid"))

    async def _call(self, asked: Asked, function: str, **arguments: Any) -> dict[str, Any]:
        device = await self._device(asked)
        result = await self._calls.on_device(asked, device, p.CallRequest(function, arguments))
        body = body_of(result)
        if not isinstance(body, dict):
            raise ApiError(502, "DEVICE_ANSWER", "the gateway's answer is no object")
        return body

    async def _act(
        self, asked: Asked, answer: Any, function: str, **arguments: Any
    ) -> web.Response:
        async def act() -> web.Response:
            await self._call(asked, function, **arguments)
            return json_response(answer)

        return await self._calls.once(asked, act)

    # Power.

    async def power_state(self, asked: Asked) -> p.PowerState:
        state = (await self._call(asked, "power.get")).get("power_state")
        if not isinstance(state, int):
            raise ApiError(502, "DEVICE_ANSWER", "the device did not tell its power state")
        return p.PowerState(state)

    async def power_capabilities(self, asked: Asked) -> dict[str, int]:
        power = await self._call(asked, "power.get")
        boots = await self._call(asked, "wsman.get", **{"class": "AMT_BootCapabilities"})
        return open_amt.power_capabilities(power, boots.get("instance"))

    async def power_action(self, asked: Asked) -> web.Response:
        body: p.ActionRequest = asked.body
        _check_supported(body.action)
        return await self._act(asked, SUCCESS, "power.set", state=body.action)

    async def boot_options(self, asked: Asked) -> web.Response:
        body: p.BootRequest = asked.body
        _check_supported(body.action)
        arguments: dict[str, Any] = {"device": open_amt.BOOTS[body.action], "sol": body.useSOL}
        details = body.bootDetails or p.BootDetails()
        if details.username or details.password or details.boot_path:
            raise _not_supported("a login or a path for the boot")
        if not details.enforce_secure_boot:
            raise _not_supported("a boot without secure boot")
        if details.url:
            arguments["url"] = details.url
        return await self._act(asked, SUCCESS, "boot.once", **arguments)

    async def boot_sources(self, asked: Asked) -> list[p.BootSource]:
        return open_amt.boot_sources(await self._instances(asked, "CIM_BootSourceSetting"))

    # Reading.

    async def version(self, asked: Asked) -> dict[str, Any]:
        return open_amt.version(await self._call(asked, "identity.get"))

    async def general_settings(self, asked: Asked) -> dict[str, Any]:
        return open_amt.general_settings(await self._call(asked, "general.get"))

    async def hardware_info(self, asked: Asked) -> dict[str, Any]:
        return open_amt.hardware_info(await self._call(asked, "inventory.get"))

    async def network_settings(self, asked: Asked) -> dict[str, Any]:
        return open_amt.network_settings(await self._call(asked, "network.get"))

    async def certificates(self, asked: Asked) -> dict[str, Any]:
        certificates = await self._instances(asked, "AMT_PublicKeyCertificate")
        keys = await self._instances(asked, "AMT_PublicPrivateKeyPair")
        return open_amt.certificates(certificates, keys)

    async def _instances(self, asked: Asked, cls: str) -> list[dict[str, Any]]:
        return listed(await self._call(asked, "wsman.enumerate", **{"class": cls}), "instances")

    # Logs.

    async def event_log(self, asked: Asked) -> list[dict[str, Any]] | p.EventPage:
        query: p.EventLogQuery = asked.query
        paged = isinstance(query.top, int) or isinstance(query.skip, int)
        skip = query.skip if isinstance(query.skip, int) else 0
        top = query.top if isinstance(query.top, int) else MAX_EVENTS
        # One more than asked for tells whether there are more.
        read = await self._call(asked, "eventlog.get", limit=min(skip + top + 1, MAX_EVENTS))
        records = open_amt.event_records(read)
        return p.EventPage(records[skip:][:top], len(records) > skip + top) if paged else records

    async def audit_log(self, asked: Asked) -> dict[str, Any]:
        """Newest first, as Open AMT does; the device counts from its oldest record, which is 1."""
        query: p.AuditLogQuery = asked.query
        read = await self._audit_block(asked, 1, AUDIT_BLOCK)
        total = number(read.get("total")) or 0
        left = total - query.start_index
        if left > 0 and total > AUDIT_BLOCK:
            first = max(left - AUDIT_BLOCK, 0) + 1
            read = await self._audit_block(asked, first, left - first + 1)
        records = open_amt.audit_records(read)[: max(left, 0)]
        return {"totalCnt": total, "records": records[::-1]}

    async def _audit_block(self, asked: Asked, start: int, limit: int) -> dict[str, Any]:
        return await self._call(asked, "auditlog.get", start=start, limit=limit)

    # Features and consent.

    async def features(self, asked: Asked) -> p.FeaturesAnswer:
        read = await self._call(asked, "redirection.get")
        consent: dict[str, Any] = {}
        try:
            consent = await self._call(asked, "consent.get")
        except ApiError as exc:
            # Firmware before AMT 6 knows no consent, and then none is asked for.
            if exc.error != "NOT_SUPPORTED":
                raise
        return p.FeaturesAnswer(
            userConsent=open_amt.CONSENT.get(consent.get("required", 0), "none"),
            optInState=consent.get("state") or 0,
            redirection=read.get("listener"),
            KVM=bool(read.get("kvm")),
            SOL=bool(read.get("sol")),
            IDER=bool(read.get("ider")),
            kvmAvailable=read.get("kvm_state") is not None,
        )

    async def set_features(self, asked: Asked) -> web.Response:
        body: p.FeaturesRequest = asked.body
        if body.ocr:
            raise _not_supported("switching one-click recovery on")
        if body.rpe or body.enablePlatformErase or body.platformEraseEnabled:
            raise _not_supported("switching remote platform erase on")
        if isinstance(body.userConsent, str):
            # Before anything is switched: half of a request is worse than none.
            self._calls.check_role(asked, "wsman.put")

        async def act() -> web.Response:
            await self._set_features(asked, body)
            return json_response(p.StatusAnswer("Updated AMT Features"))

        return await self._calls.once(asked, act)

    async def _set_features(self, asked: Asked, body: p.FeaturesRequest) -> None:
        wanted: dict[str, bool] = {}
        if isinstance(body.enableSOL, bool):
            wanted["sol"] = body.enableSOL
        if isinstance(body.enableIDER, bool):
            wanted["ider"] = body.enableIDER
        if isinstance(body.redirection, bool):
            wanted["listener"] = body.redirection
        if any(wanted.values()) or body.enableKVM is True:
            # Without the listener ports 16994 and 16995 look dead, whatever is enabled.
            wanted["listener"] = True
        if wanted:
            await self._call(asked, "redirection.set", **wanted)
        if isinstance(body.enableKVM, bool):
            await self._call(asked, "kvm.set", enabled=body.enableKVM)
        if isinstance(body.userConsent, str):
            cls = {"class": "IPS_OptInService"}
            read = (await self._call(asked, "wsman.get", **cls)).get("instance")
            if not isinstance(read, dict):
                raise ApiError(502, "DEVICE_ANSWER", "the device did not show its consent policy")
            read["OptInRequired"] = open_amt.CONSENT_NUMBERS[body.userConsent]
            await self._call(asked, "wsman.put", **cls, properties=read)

    async def start_consent(self, asked: Asked) -> web.Response:
        return await self._act(asked, SUCCESS, "consent.start")

    async def send_consent(self, asked: Asked) -> web.Response:
        body: p.ConsentRequest = asked.body
        return await self._act(asked, SUCCESS, "consent.send", code=int(body.consent_code))

    async def cancel_consent(self, asked: Asked) -> web.Response:
        return await self._act(asked, SUCCESS, "consent.cancel")

    # Alarms and data storage.

    async def alarms(self, asked: Asked) -> list[dict[str, Any]]:
        return open_amt.alarms(await self._call(asked, "alarm.list"))

    async def add_alarm(self, asked: Asked) -> web.Response:
        body: p.AlarmRequest = asked.body
        if isinstance(body.instance_id, str) and body.instance_id != body.element_name:
            raise bad_request("InstanceID must be the ElementName, or left out")
        start = body.start_time
        return await self._act(
            asked,
            p.AlarmAdded(),
            "alarm.add",
            name=body.element_name,
            time=_seconds(start if isinstance(start, str) else start.datetime),
            interval=body.interval,
            once=body.delete_on_completion,
        )

    async def delete_alarm(self, asked: Asked) -> web.Response:
        body: p.AlarmName = asked.body
        return await self._act(asked, p.StatusAnswer("SUCCESS"), "alarm.delete", name=body.name)

    async def nvm(self, asked: Asked) -> dict[str, Any]:
        given: dict[str, Any] = msgspec.to_builtins(asked.query)
        if "block" in given:
            return await self._call(asked, "nvm.read", **given)
        if "offset" in given or "size" in given:
            raise bad_request("offset and size belong to a block")
        return await self._call(asked, "nvm.list", **given)


def _check_supported(action: int) -> None:
    if action in open_amt.UNSUPPORTED:
        raise _not_supported(f"action {action} ({open_amt.UNSUPPORTED[action]})")


def _not_supported(what: str) -> ApiError:
    return ApiError(501, "NOT_SUPPORTED", f"{what} is not supported")


def _seconds(text: str) -> int:
    """AMT's clock in UTC, as seconds since 1970."""
    try:
        moment = datetime.datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError as exc:
        raise bad_request(f"StartTime: {exc}") from exc
    return int(moment.replace(tzinfo=datetime.UTC).timestamp())
