"""The one table of routes.

The router, the OpenAPI document, docs/api.md and the test of who is refused where are all made from
it, so a new route cannot be forgotten in any of them. A row names the least role, what the route is
about, and the types of query, body and answer; `handler` is GROUP.METHOD of an object that `Api` is
given. Nothing is reachable that has no row.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from gwmodule.msp.accounts import Role
from gwmodule.msp.api import payloads as p

NONE: Any = type(None)


class Scope(enum.Enum):
    """What a route is about; what belongs to another tenant does not exist (404)."""

    PUBLIC = "everybody"
    TENANT = "the caller's tenant"
    GATEWAY = "a gateway of the caller's tenant"
    DEVICE = "a device of the caller's tenant"
    SERVICE = "the whole service: members of tenant default"
    OPERATOR = "the whole service: its unix socket"


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    handler: str
    summary: str
    role: Role | None
    scope: Scope = Scope.TENANT
    query: Any = None
    body: Any = None
    answer: Any = NONE
    status: int = 200
    media: str = "application/json"
    # Takes a redirection token too, as the WebSocket's subprotocol.
    websocket: bool = False
    # With an Idempotency-Key it acts once.
    acts: bool = False

    @property
    def parameters(self) -> list[str]:
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]


_ANY = dict[str, Any]
_V, _T, _A = Role.VIEWER, Role.TECHNICIAN, Role.ADMIN
_GUID = "/api/v1/devices/{guid}"
_AMT = "/api/v1/amt"


def _device(method: str, path: str, handler: str, summary: str, role: Role, **more: Any) -> Route:
    return Route(method, path, handler, summary, role, Scope.DEVICE, **more)


def _amt(path: str, handler: str, summary: str, role: Role = _V, **more: Any) -> Route:
    more.setdefault("answer", _ANY)
    method = more.pop("method", "GET")
    acts = method != "GET"
    return _device(
        method, f"{_AMT}/{path}/{{guid}}", f"amt.{handler}", summary, role, acts=acts, **more
    )


ROUTES: tuple[Route, ...] = (
    # The service itself.
    Route("GET", "/healthz", "service.healthz", "The process lives", None, Scope.PUBLIC,
          answer=p.Alive),
    Route("GET", "/readyz", "service.readyz", "The registry can be read", None, Scope.PUBLIC,
          answer=p.Alive),
    Route("GET", "/metrics", "service.metrics", "Numbers for Prometheus; no device is named", _V,
          Scope.SERVICE, answer=str, media="text/plain"),
    Route("GET", "/api/v1/health", "service.health", "Database and store of logins", _V,
          answer=p.Health),
    Route("GET", "/api/v1/version", "service.version", "The program's version", _V,
          answer=p.Version),
    Route("GET", "/api/v1/openapi.json", "service.openapi", "This document", _V, answer=_ANY),
    Route("GET", "/api/v1/events", "service.events",
          "Server-sent events: device, gateway, call, lagged", _V, answer=str,
          media="text/event-stream"),
    # Signing in.
    Route("POST", "/api/v1/authorize", "accounts.authorize", "Exchange a password for a token",
          None, Scope.PUBLIC, body=p.LoginRequest, answer=p.TokenAnswer),
    Route("GET", "/api/v1/authorize/redirection/{guid}", "accounts.redirection",
          "A token for one WebSocket to this device: five minutes, one use", _V, Scope.DEVICE,
          answer=p.TokenAnswer),
    Route("GET", "/api/v1/whoami", "accounts.whoami", "Who the service takes the caller for", _V,
          answer=p.WhoAmI),
    # Devices.
    Route("GET", "/api/v1/devices", "devices.all",
          "Devices; with $count=true a page and how many there are", _V, query=p.DevicesQuery,
          answer=list[p.DeviceAnswer] | p.DevicePage),
    Route("PATCH", "/api/v1/devices", "devices.change", "Set tags and friendly name", _T,
          Scope.DEVICE, body=p.DeviceChange, answer=p.DeviceAnswer),
    Route("GET", "/api/v1/devices/stats", "devices.stats", "How many, and how many connected", _V,
          answer=p.DeviceStats),
    Route("GET", "/api/v1/devices/tags", "devices.tags", "Every tag in use", _V,
          answer=list[str]),
    _device("GET", "/api/v1/devices/redirectStatus/{guid}", "devices.redirect_status",
            "Which redirection streams run", _V, answer=p.RedirectStatus),
    _device("DELETE", "/api/v1/devices/disconnect/{guid}", "devices.disconnect",
            "Cut every stream to the device", _T, answer=p.Disconnected),
    _device("GET", _GUID, "devices.get", "One device", _V, answer=p.DeviceAnswer),
    _device("DELETE", _GUID, "devices.forget", "Forget it and its login", _A,
            query=p.ForgetQuery, status=204),
    _device("POST", f"{_GUID}/call", "devices.call",
            "Run a function of the catalogue; wsman.put and wsman.invoke ask for an admin", _T,
            body=p.CallRequest, answer=p.CallAnswer, acts=True),
    _device("POST", f"{_GUID}/unpin", "devices.unpin",
            "Trust the next certificate and realm afresh", _A, answer=p.DeviceAnswer),
    _device("GET", f"{_GUID}/explain", "devices.explain", "Why it can be reached or not", _V,
            answer=p.ExplainAnswer),
    _device("GET", f"{_GUID}/credential", "devices.credential",
            "What login is stored; never the password", _T, answer=p.CredentialAnswer),
    _device("PUT", f"{_GUID}/credential", "devices.store_credential", "Store its AMT login", _A,
            body=p.Login, answer=p.CredentialAnswer),
    _device("DELETE", f"{_GUID}/credential", "devices.remove_credential",
            "Forget the stored login", _A, status=204),
    Route("GET", "/api/v1/credential", "devices.default_credential",
          "The login of devices that have none of their own", _T, answer=p.CredentialAnswer),
    Route("PUT", "/api/v1/credential", "devices.store_default_credential",
          "Store the tenant's default AMT login", _A, body=p.Login, answer=p.CredentialAnswer),
    Route("DELETE", "/api/v1/credential", "devices.remove_default_credential",
          "Forget the tenant's default login", _A, status=204),
    Route("DELETE", "/api/v1/calls/{id}", "devices.cancel",
          "Cancel a running call by its Call-Id", _T, status=204),
    Route("GET", "/api/v1/candidates", "devices.candidates",
          "Hosts that answer as AMT and whose UUID is unknown", _V, answer=list[p.Candidate]),
    Route("POST", "/api/v1/candidates/{gateway}/{mac}/identify", "devices.identify",
          "Log in to a candidate and learn its UUID", _T, Scope.GATEWAY, body=p.IdentifyRequest,
          answer=p.DeviceAnswer, status=201, acts=True),
    Route("GET", "/api/v1/audit", "audit.entries", "Who did what, newest first", _T,
          query=p.AuditQuery, answer=list[p.AuditAnswer]),
    Route("DELETE", "/api/v1/audit", "audit.prune",
          "Delete the audit of all tenants from before a moment; it says so itself", _A,
          Scope.OPERATOR, query=p.PruneQuery, answer=p.Pruned),
    # Gateways.
    Route("GET", "/api/v1/gateways", "gateways.all", "Gateways and their links", _V,
          answer=list[p.GatewayAnswer]),
    Route("POST", "/api/v1/gateways", "gateways.add",
          "Enrol a gateway: its certificate and key, shown once", _A, body=p.GatewayRequest,
          answer=p.GatewayBundle, status=201),
    Route("GET", "/api/v1/gateways/{name}", "gateways.get", "One gateway", _V, Scope.GATEWAY,
          answer=p.GatewayAnswer),
    Route("GET", "/api/v1/gateways/{name}/health", "gateways.health",
          "What the gateway says of itself now (`gwmodule status`)", _V, Scope.GATEWAY,
          answer=_ANY),
    Route("POST", "/api/v1/gateways/{name}/enrolment", "gateways.invite",
          "A one-time token for a gateway that is to enrol", _A, body=p.EnrolmentRequest,
          answer=p.Invitation, status=201),
    Route("DELETE", "/api/v1/gateways/{name}", "gateways.revoke",
          "Refuse its certificate from now on, and end its session", _A, Scope.GATEWAY,
          status=204),
    # Accounts.
    Route("GET", "/api/v1/users", "accounts.users", "Users of the tenant", _A,
          answer=list[p.UserAnswer]),
    Route("POST", "/api/v1/users", "accounts.add_user", "Add a user", _A, body=p.UserRequest,
          answer=p.UserAnswer, status=201),
    Route("PATCH", "/api/v1/users/{user}", "accounts.change_user",
          "Change role or password, or lock him out, with his API keys; ends his tokens", _A,
          body=p.UserChange,
          answer=p.UserAnswer),
    Route("DELETE", "/api/v1/users/{user}", "accounts.remove_user",
          "Remove a user and revoke his API keys, which are told", _A, answer=p.UserAnswer),
    Route("GET", "/api/v1/keys", "accounts.keys", "API keys of the tenant", _A,
          answer=list[p.KeyAnswer]),
    Route("POST", "/api/v1/keys", "accounts.add_key", "Make an API key, shown once", _A,
          body=p.KeyRequest, answer=p.KeyMade, status=201),
    Route("DELETE", "/api/v1/keys/{key}", "accounts.revoke_key", "Revoke an API key", _A,
          status=204),
    Route("GET", "/api/v1/tenants", "accounts.tenants", "Tenants", _A, Scope.OPERATOR,
          answer=list[p.TenantAnswer]),
    Route("POST", "/api/v1/tenants", "accounts.add_tenant", "Add a tenant", _A, Scope.OPERATOR,
          body=p.TenantRequest, answer=p.TenantAnswer, status=201),
    Route("DELETE", "/api/v1/tenants/{tenant}", "accounts.remove_tenant",
          "Remove a tenant without users, whose API keys and gateways are revoked, with its devices"
          " and logins", _A, Scope.OPERATOR, status=204),
    # AMT, as Open AMT MPS names it.
    _amt("power/state", "power_state", "Power state of the PC", answer=p.PowerState),
    _amt("power/capabilities", "power_capabilities", "Power and boot actions it takes now"),
    _amt("power/action", "power_action", "Power action", _T, method="POST", body=p.ActionRequest,
         answer=p.ReturnAnswer),
    _amt("power/bootOptions", "boot_options", "Boot once from elsewhere", _T, method="POST",
         body=p.BootRequest, answer=p.ReturnAnswer),
    _amt("power/bootSources", "boot_sources", "What the PC can boot from",
         answer=list[p.BootSource]),
    _amt("version", "version", "AMT version and provisioning"),
    _amt("generalSettings", "general_settings", "General settings"),
    _amt("hardwareInfo", "hardware_info", "What the PC is made of"),
    _amt("networkSettings", "network_settings", "AMT's network ports"),
    _amt("features", "features", "Redirection, KVM and user consent", answer=p.FeaturesAnswer),
    _amt("features", "set_features", "Switch them; what is not given stays", _T, method="POST",
         body=p.FeaturesRequest, answer=p.StatusAnswer),
    _amt("certificates", "certificates", "Certificates and public keys that the device keeps"),
    _amt("log/event", "event_log", "Event log, decoded; with $top or $skip a page",
         query=p.EventLogQuery, answer=list[_ANY] | p.EventPage),
    _amt("log/audit", "audit_log", "Audit log, decoded, newest first", query=p.AuditLogQuery),
    _amt("alarmOccurrences", "alarms", "Alarms that switch the PC on", answer=list[_ANY]),
    _amt("alarmOccurrences", "add_alarm", "Add an alarm", _T, method="POST", body=p.AlarmRequest,
         answer=p.AlarmAdded),
    _amt("alarmOccurrences", "delete_alarm", "Delete an alarm", _T, method="DELETE",
         body=p.AlarmName, answer=p.StatusAnswer),
    # Open AMT asks for it with GET, although it changes what the user sees.
    _amt("userConsentCode", "start_consent", "Show a code to the user at the PC", _T,
         answer=p.ReturnAnswer),
    _amt("userConsentCode", "send_consent", "Send the code he read out", _T, method="POST",
         body=p.ConsentRequest, answer=p.ReturnAnswer),
    _amt("userConsentCode/cancel", "cancel_consent", "Withdraw the request", _T,
         answer=p.ReturnAnswer),
    _amt("nvm", "nvm", "AMT's data storage: blocks, or what is in one", query=p.NvmQuery),
    # Streams.
    _device("GET", f"{_AMT}/sol/{{guid}}", "consoles.sol",
            "The serial line, held by the service (WebSocket gwmodule.console.1)", _V, status=101,
            websocket=True),
    Route("GET", "/relay/webrelay.ashx", "streams.webrelay",
          "A stream to a port of a device (WebSocket, binary)", _T, Scope.DEVICE,
          query=p.RelayQuery, status=101, websocket=True),
)  # fmt: skip
