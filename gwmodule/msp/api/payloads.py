"""What goes in and out, as types. The OpenAPI document and docs/api.md are made of these.

Names are Open AMT's where the meaning is the same. A request with a field that we do not know is
refused: it would say something that nobody listens to.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gwmodule.amt.functions.logs import MAX_EVENTS
from gwmodule.msp.accounts import MAX_PASSWORD, MIN_PASSWORD, Role
from gwmodule.msp.enrolment_tokens import DEFAULT_EXPIRY

# AMT's own limit for both halves of a login; ours for everything people type.
MAX_TEXT = 255

Name = Annotated[str, Meta(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
UserName = Annotated[
    str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]*$")
]
Password = Annotated[str, Meta(min_length=MIN_PASSWORD, max_length=MAX_PASSWORD)]
Tag = Annotated[str, Meta(min_length=1, max_length=63, pattern=r"^[^\x00-\x1f\x7f,]+$")]
Guid = Annotated[
    str,
    Meta(
        pattern=r"^[0-9A-Fa-f]{8}(-?[0-9A-Fa-f]{4}){3}-?[0-9A-Fa-f]{12}$",
        examples=["123e4567-e89b-12d3-a456-426614174000"],
    ),
]
Mac = Annotated[str, Meta(pattern=r"^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$")]
Deadline = Annotated[float, Meta(ge=0.1, le=600)]
TlsName = Literal["auto", "off", "modern", "legacy"]


class Request(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """A body or a query."""


class Answer(msgspec.Struct, rename="camel"):
    """A body that we send."""


class Error(Answer):
    """`error` is for scripts, `errorDescription` for people."""

    error: str
    error_description: str


# Signing in.


class LoginRequest(Request):
    username: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
    password: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]

    def __repr__(self) -> str:
        return f"LoginRequest({self.username!r})"


class TokenAnswer(Answer):
    token: str


class WhoAmI(Answer):
    name: str
    tenant_id: str
    role: Role
    via: str


# Devices.


class DevicesQuery(Request):
    top: Annotated[int, Meta(ge=0, le=100_000)] = msgspec.field(default=100_000, name="$top")
    skip: Annotated[int, Meta(ge=0, le=1_000_000_000)] = msgspec.field(default=0, name="$skip")
    count: bool = msgspec.field(default=False, name="$count")
    guid: Annotated[str, Meta(pattern=r"^[0-9A-Fa-f-]{0,36}$")] = ""
    hostname: str | UnsetType = UNSET
    friendly_name: str | UnsetType = UNSET
    gateway: str | UnsetType = UNSET
    state: Literal["setup", "managed", "found"] | UnsetType = UNSET
    status: Literal["0", "1"] | UnsetType = UNSET
    tags: Annotated[str, Meta(description="separated by commas")] = ""
    method: Annotated[
        Literal["AND", "OR"], Meta(description="whether all tags must match or any")
    ] = "AND"


class Claim(Answer):
    """Who else says that this device is there."""

    reason: str
    gateway: str
    mac: str | None
    address: str
    at: str | None


class DeviceInfo(Answer):
    """Open AMT's place for what the gateway has found out about the device."""

    fw_version: str
    ip_address: str
    last_updated: str | None


class DeviceAnswer(Answer):
    """`hostname` is what the PC told the DHCP server: anybody's text."""

    guid: str
    tenant_id: str
    hostname: str
    friendly_name: str
    tags: list[str]
    connection_status: bool
    state: str
    contested: bool
    claim: Claim | None
    address: str
    mac: str | None
    gateway: str
    gateway_address: str
    gateway_port: int
    source: str
    first_seen: str | None
    last_seen: str | None
    last_answer: str | None
    gone: str | None
    proved: str | None
    realm: str
    server: str
    ports: list[int]
    tls: str
    pin: str | None
    device_info: DeviceInfo


class DevicePage(Answer):
    data: list[DeviceAnswer]
    total_count: int


class DeviceChange(Request, forbid_unknown_fields=False):
    """Open AMT's PATCH names the device in the body; its console sends back all that it was told.

    So members of DeviceAnswer are taken along; other ones are refused, and another host name is.
    """

    guid: Guid
    tags: Annotated[list[Tag], Meta(max_length=32)] | UnsetType = UNSET
    friendly_name: (
        Annotated[str, Meta(max_length=MAX_TEXT, pattern=r"^[^\x00-\x1f\x7f]*$")] | UnsetType
    ) = UNSET


class DeviceStats(Answer):
    total_count: int
    connected_count: int
    disconnected_count: int
    contested_count: int


class RedirectStatus(msgspec.Struct):
    isKVMConnected: bool
    isSOLConnected: bool
    isIDERConnected: bool


class Disconnected(Answer):
    """How many streams to the device were cut."""

    streams: int
    description: str
    success: int = 200


class ForgetQuery(Request):
    """Open AMT can keep the stored login of a device that is forgotten; here it always goes too."""

    is_secret_to_be_deleted: bool = True


class Login(Request):
    """An AMT account; only ever in RAM, and for one call."""

    username: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
    password: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
    mode: Literal["ha1", "challenge"] = "ha1"

    def __post_init__(self) -> None:
        for text in (self.username, self.password):
            if len(text.encode(errors="replace")) > MAX_TEXT or not text.isprintable():
                raise ValueError("user name and password are 1 to 255 printable bytes")
        if '"' in self.username or ":" in self.username:
            raise ValueError("a user name holds neither colon nor quote")

    def __repr__(self) -> str:
        return f"Login({self.username!r})"


class CredentialAnswer(Answer):
    """What is stored; never the password."""

    username: str
    mode: str
    changed: str | None


class CallRequest(Request, rename=None):
    """Without a credential the stored one is used, if there is one."""

    function: Annotated[str, Meta(pattern=r"^[a-z0-9.]{1,64}$", examples=["power.get"])]
    arguments: dict[str, Any] = {}
    credential: Login | None = None
    allow_password: bool = False
    tls: TlsName | None = None
    deadline: Deadline = 30.0


class CallAnswer(Answer):
    ok: bool
    function: str
    result: Any
    elapsed: float
    exchanges: int


class IdentifyRequest(Request, rename=None):
    """Without a credential the tenant's default login is used, if there is one."""

    credential: Login | None = None
    allow_password: bool = False
    tls: TlsName | None = None
    deadline: Deadline = 30.0


class Candidate(Answer):
    """A host that answers as AMT and has not told its UUID."""

    gateway: str
    mac: str
    address: str
    hostname: str
    connection_status: bool
    provisioning: str
    ports: list[int]
    realm: str
    server: str
    pin: str | None
    last_answer: str | None
    lease_until: str | None
    gone: str | None


class ExplainStep(Answer):
    """`advice` says what to do about what was found, in a technician's words."""

    step: str
    result: Literal["ok", "note", "failed", "skipped"]
    found: str
    advice: str = ""


class ExplainAnswer(Answer):
    """Why a device can be reached or not: the MSP's steps, then the gateway's."""

    guid: str
    reachable: bool
    steps: list[ExplainStep]


# Gateways.


class GatewayAnswer(Answer):
    name: str
    tenant_id: str
    connection_status: bool
    address: str
    port: int
    software: str
    fingerprint: str | None
    rtt: float | None
    first_link: str | None
    last_link: str | None
    last_disconnected: str | None
    revoked: bool


class GatewayRequest(Request):
    name: str
    replace: bool = False


class EnrolmentRequest(Request):
    """`expiry` in seconds."""

    expiry: Annotated[float, Meta(ge=60, le=30 * 86400)] = DEFAULT_EXPIRY
    replace: bool = False


class Invitation(Answer):
    """A one-time token, and the command line for the gateway; the only time that it is shown."""

    gateway: str
    token: str
    expires: str
    ca_fingerprint: str
    enrolment: str
    command: str


class GatewayBundle(Answer):
    """The only time that the key is shown."""

    name: str
    certificate: str
    key: str
    ca: str
    fingerprint: str
    server_names: list[str]


# Audit and events.


class AuditQuery(Request):
    guid: Guid | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=0, le=10_000)] = 100


class PruneQuery(Request):
    before: Annotated[datetime.datetime, Meta(tz=True)]


class Pruned(Answer):
    entries: int


class AuditAnswer(Answer):
    id: int
    at: str | None
    actor: str
    action: str
    gateway: str
    guid: str | None
    detail: dict[str, Any]


# Accounts.


class UserRequest(Request):
    name: UserName
    role: Role
    password: Password

    def __repr__(self) -> str:
        return f"UserRequest({self.name!r})"


class UserChange(Request):
    role: Role | UnsetType = UNSET
    password: Password | UnsetType = UNSET
    disabled: bool | UnsetType = UNSET

    def __repr__(self) -> str:
        return "UserChange(...)"


class KeyName(Answer):
    id: str
    name: str


class UserAnswer(Answer):
    """`keys` are those of his API keys that are neither revoked nor expired."""

    name: str
    role: Role
    disabled: bool
    keys: list[KeyName]


class TenantRequest(Request):
    name: Name


class TenantAnswer(Answer):
    name: str


class KeyRequest(Request):
    name: UserName
    role: Role
    days: Annotated[int, Meta(ge=1, le=3650)] = 365


class KeyMade(Answer):
    """The only time that the key is shown."""

    key: str


class KeyAnswer(Answer):
    """Made by `maker`; it ends with its `owner`, and is the tenant's own without one."""

    id: str
    name: str
    role: Role
    maker: str
    owner: str | None
    created: str | None
    expires: str | None
    last_used: str | None
    revoked: str | None


# AMT, in Open AMT's words.


class PowerState(Answer):
    powerstate: int


class BootDetails(Request):
    """`url` for UEFI HTTPS; the rest is what the service cannot do (501), if it asks for it."""

    url: Annotated[str, Meta(max_length=1024)] = ""
    username: Annotated[str, Meta(max_length=MAX_TEXT)] = ""
    password: Annotated[str, Meta(max_length=MAX_TEXT)] = ""
    boot_path: Annotated[str, Meta(max_length=MAX_TEXT)] = ""
    enforce_secure_boot: bool = True

    def __repr__(self) -> str:
        return f"BootDetails({self.url!r})"


class _PowerRequest(Request, rename=None):
    """Open AMT's clients send all of this with every action."""

    useSOL: bool = False
    method: Annotated[str, Meta(max_length=MAX_TEXT)] = ""
    bootDetails: BootDetails | None = None


class ActionRequest(_PowerRequest, kw_only=True):
    """`useSOL` and `bootDetails` are for bootOptions; here Open AMT does not look at them."""

    action: Annotated[
        Literal[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 500, 501],
        Meta(
            description="2 on, 4 sleep, 5 cycle, 7 hibernate, 8 off, 10 reset, 12 soft off,"
            " 14 soft reset; 500, 501 (the system's power saving): not supported"
        ),
    ]


class BootRequest(_PowerRequest, kw_only=True):
    action: Annotated[
        Literal[
            100, 101, 104, 105, 106, 107, 108, 109, 110, 200, 201, 202, 203, 300, 301, 400, 401
        ],
        Meta(
            description="100/101 BIOS, 105/106 UEFI HTTPS, 200/201 IDE-R floppy,"
            " 202/203 IDE-R CD, 300/301 diagnostics, 400/401 PXE; 104 (secure erase), 107-110"
            " (local PBA, WinRE): not supported"
        ),
    ]


class BootSource(Answer):
    bios_boot_string: str
    boot_string: str
    element_name: str
    fail_through_supported: int
    instance_id: str = msgspec.field(name="instanceID")
    structured_bios_boot_string: str


class ReturnBody(msgspec.Struct):
    ReturnValue: int = 0
    ReturnValueStr: str = "SUCCESS"


class ReturnAnswer(msgspec.Struct):
    Body: ReturnBody


class FeaturesAnswer(msgspec.Struct):
    userConsent: str
    optInState: int
    redirection: bool | None
    KVM: bool
    SOL: bool
    IDER: bool
    kvmAvailable: bool


class FeaturesRequest(Request, rename=None):
    """One-click recovery and remote erase are never switched on from here: true is 501."""

    userConsent: Literal["none", "kvm", "all"] | UnsetType = UNSET
    enableSOL: bool | UnsetType = UNSET
    enableIDER: bool | UnsetType = UNSET
    enableKVM: bool | UnsetType = UNSET
    redirection: bool | UnsetType = UNSET
    ocr: bool = False
    rpe: bool = False
    enablePlatformErase: bool = False
    platformEraseEnabled: bool = False


class StatusAnswer(Answer):
    status: str


class AlarmAdded(msgspec.Struct):
    status: str = "SUCCESS"
    ReturnValue: int = 0


class ConsentRequest(Request):
    """A text too: leading zeros are part of what the user reads out."""

    consent_code: (
        Annotated[int, Meta(ge=0, le=999_999)] | Annotated[str, Meta(pattern=r"^[0-9]{6}$")]
    )


AlarmTime = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2})?(\.[0-9]{1,6})?Z?$",
        examples=["2027-01-15T08:00:00Z"],
    ),
]
AlarmId = Annotated[
    str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
]


class AlarmStart(Request, rename="pascal"):
    datetime: AlarmTime


class AlarmRequest(Request, rename="pascal"):
    """`Interval` in minutes, 0 for a single alarm; an alarm has one name, and it is its id."""

    element_name: AlarmId
    start_time: AlarmTime | AlarmStart
    instance_id: AlarmId | UnsetType = msgspec.field(default=UNSET, name="InstanceID")
    interval: Annotated[int, Meta(ge=0, le=527_040)] = 0
    delete_on_completion: bool = True


class AlarmName(Request, rename="pascal"):
    name: Annotated[str, Meta(min_length=1, max_length=64)]


class AuditLogQuery(Request):
    """How many of the newest records to skip; an answer holds ten."""

    start_index: Annotated[int, Meta(ge=0, le=65_534)] = 0


class EventLogQuery(Request):
    """Either makes the answer a page, as Open AMT's Console gives it."""

    top: Annotated[int, Meta(ge=1, le=MAX_EVENTS)] | UnsetType = msgspec.field(
        default=UNSET, name="$top"
    )
    skip: Annotated[int, Meta(ge=0, le=MAX_EVENTS)] | UnsetType = msgspec.field(
        default=UNSET, name="$skip"
    )


class EventPage(Answer):
    records: list[dict[str, Any]]
    has_more_records: bool


class NvmQuery(Request):
    """An application's name in AMT's data storage; without a block the list of them."""

    enterprise: Annotated[str, Meta(min_length=1, max_length=64)]
    vendor: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType = UNSET
    application: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType = UNSET
    caller: Guid | UnsetType = UNSET
    block: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] | UnsetType = UNSET
    offset: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] | UnsetType = UNSET
    size: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] | UnsetType = UNSET


class RelayQuery(Request, rename=None):
    """MeshCommander's `serverauth` says what its empty login says too."""

    p: Literal["2"] = "2"
    host: str = ""
    port: Annotated[int, Meta(ge=1, le=65_535)] = 16994
    tls: Literal["0"] = "0"
    tls1only: str = "0"
    serverauth: Literal["0", "1"] = "0"
    mode: Annotated[str, Meta(max_length=16)] = ""
    hold: Literal["0", "1"] = "0"
    takeover: Literal["0", "1"] = "0"
    tool: Annotated[str, Meta(max_length=32)] = ""


# The service.


class Alive(Answer):
    status: str


class Version(Answer):
    """Open AMT calls it `serviceVersion`."""

    version: str
    service_version: str


class DatabaseHealth(Answer):
    name: str
    status: str


class VaultStatus(Answer):
    initialized: bool
    sealed: bool


class VaultHealth(Answer):
    name: str
    status: VaultStatus


class Health(Answer):
    """Open AMT's form; a database that cannot be read is 503."""

    db: DatabaseHealth
    secret_store: VaultHealth
