"""Devices and candidates: what is recorded, what people say about them, and calls to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from uuid import UUID

import msgspec
from aiohttp import web

from gwmodule.errors import AmtError, Code, LinkLost
from gwmodule.msp.api import payloads as p
from gwmodule.msp.api.answers import (
    ApiError,
    bad_request,
    json_response,
    list_response,
    not_found,
    said_by_records,
    time_text,
)
from gwmodule.msp.api.asking import Asked, device_of
from gwmodule.msp.api.calls import (
    Calls,
    Place,
    body_of,
    description_of,
    is_connected,
    member_of,
    realm_of,
    session_of,
    uuid_of,
)
from gwmodule.msp.api.events import Events
from gwmodule.msp.api.shown import shown_device, shown_host
from gwmodule.msp.api.streams import OpenStreams
from gwmodule.msp.labels import NO_LABEL, Label, Labels
from gwmodule.msp.records import Device, State
from gwmodule.msp.registry import ALL, Registry, RegistryConflict
from gwmodule.msp.seam import SessionsSeam
from gwmodule.msp.vault import Vault
from gwmodule.wire.notices import NO_MAC, NO_UUID, format_mac, parse_mac

_MEMBERS = frozenset(field.encode_name for field in msgspec.structs.fields(p.DeviceAnswer))
# Devices that are read and written out in one turn of the loop: some three milliseconds.
PART = 64


class Devices:
    """Handlers of group `devices`."""

    def __init__(
        self,
        registry: Registry,
        labels: Labels,
        vault: Vault,
        sessions: SessionsSeam,
        calls: Calls,
        streams: OpenStreams,
        events: Events,
        clock: Callable[[], float],
    ) -> None:
        self._events = events
        self._registry = registry
        self._labels = labels
        self._vault = vault
        self._sessions = sessions
        self._calls = calls
        self._streams = streams
        self._clock = clock

    async def _device(self, asked: Asked) -> Device:
        return await device_of(self._registry, asked.tenant, asked.path("guid"))

    async def _shown(self, device: Device) -> p.DeviceAnswer:
        label = await self._labels.of(device.tenant, device.uuid)
        return shown_device(device, self._sessions, label)

    async def all(self, asked: Asked) -> web.Response:
        query: p.DevicesQuery = asked.query
        equal = _given(query, "hostname", "gateway", "state")
        wanted = _criteria(query)
        if wanted is not None:
            page = _Page(query.skip, query.top)
            found = self._found(asked.tenant, equal, wanted, page, to_end=query.count)
            return await list_response(found, (lambda: page.seen) if query.count else None)
        parts = self._parts(asked.tenant, equal, query.skip, query.top)
        if not query.count:
            return await list_response(parts)
        number = await self._registry.count_devices(asked.tenant, equal=equal)
        return await list_response(parts, lambda: number)

    async def _found(
        self,
        tenant: str,
        equal: Mapping[str, str],
        wanted: Callable[[p.DeviceAnswer], bool],
        page: _Page,
        *,
        to_end: bool,
    ) -> AsyncIterator[list[p.DeviceAnswer]]:
        """Those of the page; `to_end` when somebody wants to know how many there are."""
        async for part in self._parts(tenant, equal, 0, ALL):
            yield page.cut([shown for shown in part if wanted(shown)])
            if page.full and not to_end:
                return

    async def _parts(
        self, tenant: str, equal: Mapping[str, str], skip: int, most: int
    ) -> AsyncIterator[list[p.DeviceAnswer]]:
        """A long list in parts: no link waits for more than one of them."""
        after = None
        while most > 0:
            size = min(most, PART)
            devices = await self._registry.devices(
                tenant, equal=equal, after=after, skip=skip, most=size
            )
            if not devices:
                return
            labels = await self._labels.between(tenant, devices[0].uuid, devices[-1].uuid)
            yield [
                shown_device(device, self._sessions, labels.get(device.uuid, NO_LABEL))
                for device in devices
            ]
            if len(devices) < size:
                return
            # SQLite answers inline.
            await asyncio.sleep(0)
            after, skip, most = devices[-1].uuid, 0, most - size

    async def stats(self, asked: Asked) -> p.DeviceStats:
        total = connected = contested = 0
        for census in await self._registry.census(asked.tenant):
            total += census.devices
            contested += census.devices * census.contested
            if not census.gone and is_connected(self._sessions, census.gateway):
                connected += census.devices
        return p.DeviceStats(total, connected, total - connected, contested)

    async def tags(self, asked: Asked) -> object:
        labels = await self._labels.all(asked.tenant)
        return sorted({tag for label in labels.values() for tag in label.tags})

    async def get(self, asked: Asked) -> p.DeviceAnswer:
        return await self._shown(await self._device(asked))

    async def change(self, asked: Asked) -> p.DeviceAnswer:
        body: p.DeviceChange = asked.body
        device = await device_of(self._registry, asked.tenant, body.guid)
        _check_sent_back(await asked.http.read(), device)
        label = await self._labels.of(asked.tenant, device.uuid)
        tags, name = label.tags, label.friendly_name
        if not isinstance(body.tags, msgspec.UnsetType):
            tags = tuple(dict.fromkeys(body.tags))
        if isinstance(body.friendly_name, str):
            name = body.friendly_name
        if await self._labels.put(asked.tenant, device.uuid, Label(tags, name)):
            await self._calls.record(
                asked.principal,
                "device.labelled",
                device.gateway,
                device,
                {"tags": list(tags), "friendlyName": name},
            )
        return await self._shown(device)

    async def forget(self, asked: Asked) -> None:
        query: p.ForgetQuery = asked.query
        if not query.is_secret_to_be_deleted:
            raise bad_request("the login of a device is forgotten with it")
        device = await self._device(asked)
        await self._registry.forget(
            device.uuid, self._clock(), actor=asked.actor, tenant=asked.tenant
        )
        self._events.publish(asked.tenant, "device", {"guid": str(device.uuid), "forgotten": True})
        # After the record: what is left over names no device any more.
        await self._labels.remove(asked.tenant, device.uuid)
        await self._vault.remove(asked.tenant, device.uuid, self._clock(), actor=asked.actor)

    async def unpin(self, asked: Asked) -> p.DeviceAnswer:
        device = await self._device(asked)
        changed = await self._registry.unpin(
            device.uuid, self._clock(), actor=asked.actor, tenant=asked.tenant
        )
        return await self._shown(changed or device)

    async def redirect_status(self, asked: Asked) -> p.RedirectStatus:
        device = await self._device(asked)
        kinds = {stream.kind for stream in self._streams.to(asked.tenant, device.uuid)}
        return p.RedirectStatus("kvm" in kinds, "sol" in kinds, "ider" in kinds)

    async def disconnect(self, asked: Asked) -> p.Disconnected:
        device = await self._device(asked)
        streams = self._streams.to(asked.tenant, device.uuid)
        for stream in streams:
            await stream.close(Code.CANCELLED, f"disconnected by {asked.actor}")
        detail = {"streams": len(streams)}
        await self._calls.record(
            asked.principal, "device.disconnected", device.gateway, device, detail
        )
        return p.Disconnected(len(streams), f"streams cut: {len(streams)}")

    # Calls.

    async def call(self, asked: Asked) -> web.Response:
        device = await self._device(asked)
        body: p.CallRequest = asked.body

        async def act() -> web.Response:
            result = await self._calls.on_device(asked, device, body)
            return json_response(
                p.CallAnswer(True, body.function, body_of(result), result.elapsed, result.exchanges)
            )

        return await self._calls.once(asked, act)

    async def cancel(self, asked: Asked) -> None:
        if not self._calls.cancel(asked.principal, asked.path("id")):
            raise not_found("no such call is running")

    async def candidates(self, asked: Asked) -> web.Response:
        return await list_response(self._candidates(asked.tenant))

    async def _candidates(self, tenant: str) -> AsyncIterator[list[p.Candidate]]:
        after = "", b""
        while hosts := await self._registry.candidates(tenant, after=after, most=PART):
            yield [shown_host(host, self._sessions) for host in hosts]
            await asyncio.sleep(0)
            after = hosts[-1].gateway, hosts[-1].mac

    async def identify(self, asked: Asked) -> web.Response:
        async def act() -> web.Response:
            device = await self._identify(asked, asked.body)
            return json_response(await self._shown(device), 201)

        return await self._calls.once(asked, act)

    async def _identify(self, asked: Asked, body: p.IdentifyRequest) -> Device:
        gateway = asked.path("gateway")
        try:
            mac = parse_mac(asked.path("mac"))
        except ValueError as exc:
            raise bad_request(str(exc)) from exc
        record = await self._registry.gateway(gateway)
        host = await self._registry.host(gateway, mac)
        if host is None or record is None or record.tenant != asked.tenant:
            raise not_found(f"gateway {gateway[:64]} has not reported {format_mac(mac)} yet")
        call = p.CallRequest(
            "identity.get",
            credential=body.credential,
            allow_password=body.allow_password,
            tls=body.tls,
            deadline=body.deadline,
        )
        result = await self._calls.run(asked, Place(gateway, mac, None, host), call)
        uuid = uuid_of(result)
        if uuid is None or uuid == NO_UUID:
            raise ApiError(502, "DEVICE_ANSWER", "the device did not tell its UUID")
        try:
            return await self._registry.identified(
                gateway, mac, uuid, self._clock(), actor=asked.actor, realm=realm_of(result)
            )
        except RegistryConflict as exc:
            # An answer, and kept as one: a repetition of the request must hear it too.
            raise ApiError(409, "CONFLICT", str(exc)) from exc

    # Stored logins.

    async def credential(self, asked: Asked) -> p.CredentialAnswer:
        return await self._described(asked.tenant, (await self._device(asked)).uuid)

    async def store_credential(self, asked: Asked) -> p.CredentialAnswer:
        return await self._store(asked, (await self._device(asked)).uuid)

    async def remove_credential(self, asked: Asked) -> None:
        device = await self._device(asked)
        await self._vault.remove(asked.tenant, device.uuid, self._clock(), actor=asked.actor)

    async def default_credential(self, asked: Asked) -> p.CredentialAnswer:
        return await self._described(asked.tenant, None)

    async def store_default_credential(self, asked: Asked) -> p.CredentialAnswer:
        return await self._store(asked, None)

    async def remove_default_credential(self, asked: Asked) -> None:
        await self._vault.remove(asked.tenant, None, self._clock(), actor=asked.actor)

    async def _store(self, asked: Asked, uuid: UUID | None) -> p.CredentialAnswer:
        body: p.Login = asked.body
        with said_by_records():
            await self._vault.store(
                asked.tenant,
                uuid,
                body.username,
                body.password,
                self._clock(),
                actor=asked.actor,
                mode=body.mode,
            )
        return await self._described(asked.tenant, uuid)

    async def _described(self, tenant: str, uuid: UUID | None) -> p.CredentialAnswer:
        found = await self._vault.describe(tenant, uuid)
        if found is None:
            raise not_found("no login is stored")
        return p.CredentialAnswer(found.username, found.mode, time_text(found.changed_at))

    # Looking closer.

    async def explain(self, asked: Asked) -> p.ExplainAnswer:
        device = await self._device(asked)
        steps = [_recorded(device), _settled(device), self._linked(device)]
        if steps[-1].result == "ok":
            steps += await self._seen_from_the_gateway(device)
        reachable = all(step.result != "failed" for step in steps)
        return p.ExplainAnswer(str(device.uuid), reachable, steps)

    def _linked(self, device: Device) -> p.ExplainStep:
        session = self._sessions.locate(device.gateway)
        if session is None or not session.connected:
            return p.ExplainStep(
                "gateway",
                "failed",
                f"gateway {device.gateway} is not connected",
                "look at the gateway's power and its line: `gwmodule status` on it tells more",
            )
        rtt = f", round trip {session.rtt * 1000:.0f} ms" if session.rtt else ""
        return p.ExplainStep("gateway", "ok", f"gateway {device.gateway} is connected{rtt}")

    async def _seen_from_the_gateway(self, device: Device) -> list[p.ExplainStep]:
        session = session_of(self._sessions, device.gateway)
        try:
            result = await session.explain(
                address=device.address,
                mac=device.mac or NO_MAC,
                uuid=device.uuid,
                pin=device.pin,
            )
            found = member_of(result, "steps")
            if result.code is not Code.OK:
                raise LinkLost(description_of(result))
            return msgspec.convert(found, list[p.ExplainStep])
        except (AmtError, LinkLost, msgspec.ValidationError) as exc:
            return [p.ExplainStep("gateway's view", "failed", str(exc)[:300])]


class _Page:
    """Which of those that were found are asked for; `seen` counts them all."""

    def __init__(self, skip: int, top: int) -> None:
        self._skip = skip
        self._end = skip + top
        self.seen = 0

    @property
    def full(self) -> bool:
        return self.seen >= self._end

    def cut(self, part: list[p.DeviceAnswer]) -> list[p.DeviceAnswer]:
        start, end = (max(0, limit - self.seen) for limit in (self._skip, self._end))
        self.seen += len(part)
        return part[start:end]


def _criteria(query: p.DevicesQuery) -> Callable[[p.DeviceAnswer], bool] | None:
    """What is asked for beyond the columns of a device's record; None when nothing is."""
    prefix = query.guid.replace("-", "").lower()
    tags = frozenset(tag for tag in query.tags.split(",") if tag)
    match_tags = tags.issubset if query.method == "AND" else _meets(tags)
    names = _given(query, "friendly_name")
    if not prefix and not tags and not names and query.status not in ("0", "1"):
        return None

    def wanted(shown: p.DeviceAnswer) -> bool:
        if query.status in ("0", "1") and shown.connection_status != (query.status == "1"):
            return False
        if not shown.guid.replace("-", "").startswith(prefix):
            return False
        if tags and not match_tags(shown.tags):
            return False
        return not names or shown.friendly_name == names["friendly_name"]

    return wanted


def _given(query: p.DevicesQuery, *names: str) -> dict[str, str]:
    return {name: given for name in names if isinstance(given := getattr(query, name), str)}


def _meets(wanted: frozenset[str]) -> Callable[[list[str]], bool]:
    return lambda tags: not wanted.isdisjoint(tags)


def _check_sent_back(body: bytes, device: Device) -> None:
    sent: dict[str, object] = msgspec.json.decode(body)
    if unknown := sorted(sent.keys() - _MEMBERS):
        raise bad_request(f"Object contains unknown field `{unknown[0][:64]}`")
    if sent.get("hostname", device.hostname) != device.hostname:
        raise bad_request("hostname is what the PC calls itself; give it a friendlyName")


def _recorded(device: Device) -> p.ExplainStep:
    where = f"{device.address} at gateway {device.gateway}"
    if device.state is State.SETUP:
        return p.ExplainStep(
            "record",
            "failed",
            f"in setup mode, {where}",
            "it has no admin login yet: provision it first",
        )
    if device.mac is None:
        return p.ExplainStep(
            "record", "failed", f"{where}, MAC not known", "wait for its next DHCP lease"
        )
    return p.ExplainStep("record", "ok", f"{device.state}, {where}, {format_mac(device.mac)}")


def _settled(device: Device) -> p.ExplainStep:
    if device.contested:
        claim = f"{device.claim_reason}: {device.claim_address} at gateway {device.claim_gateway}"
        return p.ExplainStep(
            "claims",
            "note",
            f"contested; it stays where it was proved. {claim}",
            "if it has moved, forget it here or unpin it",
        )
    if device.gone_at is not None:
        return p.ExplainStep("claims", "note", "it has stopped to answer at its last address")
    return p.ExplainStep("claims", "ok", "nobody else claims to be this device")
