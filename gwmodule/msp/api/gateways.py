"""Gateways: enrolment, links, revocation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from gwmodule.errors import AmtError, Code, LinkLost
from gwmodule.msp.api import payloads as p
from gwmodule.msp.api.answers import STATUS, ApiError, not_found, said_by_records
from gwmodule.msp.api.asking import Asked
from gwmodule.msp.api.calls import body_of, description_of, session_of
from gwmodule.msp.api.shown import shown_gateway
from gwmodule.msp.enrolment_site import EnrolmentSite
from gwmodule.msp.pki import Authority
from gwmodule.msp.records import Gateway
from gwmodule.msp.registry import Registry
from gwmodule.msp.seam import SessionsSeam


class Gateways:
    """Handlers of group `gateways`; `server_names` is what the listener is known by."""

    def __init__(
        self,
        registry: Registry,
        sessions: SessionsSeam,
        authority: Authority,
        server_names: Sequence[str],
        clock: Callable[[], float],
        enrolment: EnrolmentSite | None = None,
    ) -> None:
        self._enrolment = enrolment
        self._registry = registry
        self._sessions = sessions
        self._authority = authority
        self._server_names = list(server_names)
        self._clock = clock

    async def _gateway(self, asked: Asked) -> Gateway:
        name = asked.path("name")
        gateway = await self._registry.gateway(name)
        if gateway is None or gateway.tenant != asked.tenant:
            raise not_found(f"no gateway {name[:64]!r}")
        return gateway

    async def all(self, asked: Asked) -> object:
        gateways = await self._registry.gateways(asked.tenant)
        return [shown_gateway(gateway, self._sessions) for gateway in gateways]

    async def get(self, asked: Asked) -> p.GatewayAnswer:
        return shown_gateway(await self._gateway(asked), self._sessions)

    async def health(self, asked: Asked) -> object:
        """What the gateway says of itself now; docs/operation.md tells what each member means."""
        session = session_of(self._sessions, (await self._gateway(asked)).name)
        try:
            result = await session.status()
        except LinkLost as exc:
            raise ApiError(503, "GATEWAY_OFFLINE", str(exc)) from exc
        except AmtError as exc:
            raise ApiError(STATUS.get(exc.code, 502), exc.code.name, str(exc)) from exc
        if result.code is not Code.OK:
            raise ApiError(STATUS.get(result.code, 502), result.code.name, description_of(result))
        return body_of(result)

    async def add(self, asked: Asked) -> p.GatewayBundle:
        body: p.GatewayRequest = asked.body
        at = self._clock()
        with said_by_records():
            bundle = self._authority.gateway_bundle(body.name, at)
        await self._registry.add_gateway(
            bundle.name,
            bundle.fingerprint,
            at,
            tenant=asked.tenant,
            replace=body.replace,
            actor=asked.actor,
        )
        self._end_session(bundle.name, "this gateway has another certificate now")
        return p.GatewayBundle(
            bundle.name,
            bundle.certificate,
            bundle.key,
            bundle.ca,
            bundle.fingerprint,
            self._server_names,
        )

    async def invite(self, asked: Asked) -> p.Invitation:
        known = await self._registry.gateway(asked.path("name"))
        if known is not None and known.tenant != asked.tenant:
            raise not_found(f"no gateway {asked.path('name')[:64]!r}")
        if self._enrolment is None:
            raise ApiError(409, "ENROLMENT_OFF", "the service was started without --enrol")
        body: p.EnrolmentRequest = asked.body
        with said_by_records():
            invitation = await self._enrolment.invitation(
                asked.path("name"),
                tenant=asked.tenant,
                actor=asked.actor,
                expiry=body.expiry,
                replace=body.replace,
                names=self._server_names,
            )
        return msgspec.convert(invitation, p.Invitation)

    async def revoke(self, asked: Asked) -> None:
        gateway = await self._gateway(asked)
        await self._registry.revoke_gateway(
            gateway.name, self._clock(), actor=asked.actor, tenant=asked.tenant
        )
        self._end_session(gateway.name, "this gateway's certificate was revoked")

    def _end_session(self, gateway: str, reason: str) -> None:
        session = self._sessions.locate(gateway)
        if session is not None:
            session.end(Code.IDENTITY, reason)
