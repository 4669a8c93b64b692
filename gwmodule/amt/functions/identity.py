"""Who the device is. Also the check that every function makes before it changes something."""

from __future__ import annotations

from uuid import UUID

from gwmodule.amt.functions.reading import binary, named, optional_number, text
from gwmodule.amt.functions.schema import Arguments, Context, Field, Function, Kind, Result, Wsman
from gwmodule.amt.wsman import Instance, check_return
from gwmodule.errors import DeviceAnswerError, IdentityMismatch, WsmanFault

_SETUP = "AMT_SetupAndConfigurationService"
PROVISIONING_MODES = {1: "admin control", 4: "client control"}
PROVISIONING_STATES = {0: "pre", 1: "in", 2: "post"}


async def device_uuid(client: Wsman) -> UUID:
    """The system UUID, as in the Hello and in SMBIOS (reference/amt-protocols.md 3.4)."""
    try:
        output = await client.invoke(_SETUP, "GetUuid", reads=True)
    except WsmanFault:
        package = await client.get("CIM_ComputerSystemPackage")
        return _uuid(_bytes_of_hex(text(package, "PlatformGUID")), "PlatformGUID")
    check_return(_SETUP, "GetUuid", output)
    return _uuid(binary(text(output, "UUID"), "UUID"), "UUID")


async def require_identity(client: Wsman, context: Context) -> str:
    """IdentityMismatch when another device answers at this address than the call is for.

    "uuid" when the device's own was compared; "mac" when there was none to compare, and all that is
    known is what the gateway's policy and the login's realm have checked.
    """
    if context.uuid is None:
        return "mac"
    found = await device_uuid(client)
    if found != context.uuid:
        raise IdentityMismatch(f"the device is {found}, the call is for {context.uuid}")
    return "uuid"


def _uuid(data: bytes, name: str) -> UUID:
    if len(data) != 16:
        raise DeviceAnswerError(f"{name} holds {len(data)} bytes, expected 16")
    return UUID(bytes_le=data)


def _bytes_of_hex(value: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except ValueError as exc:
        raise DeviceAnswerError(f"PlatformGUID is {value[:40]!r}, expected hex digits") from exc


async def identity_get(client: Wsman, arguments: Arguments, context: Context) -> Result:
    uuid = await device_uuid(client)
    general = await client.get("AMT_GeneralSettings")
    setup = await client.get(_SETUP)
    versions = software_versions(await client.enumerate("CIM_SoftwareIdentity"))
    mode = optional_number(setup, "ProvisioningMode")
    state = optional_number(setup, "ProvisioningState")
    return {
        "uuid": str(uuid),
        "version": versions.get("AMT", ""),
        "build": versions.get("Build Number", ""),
        "sku": versions.get("Sku", ""),
        **named("provisioning_mode", mode, PROVISIONING_MODES),
        **named("provisioning_state", state, PROVISIONING_STATES),
        "realm": text(general, "DigestRealm"),
        "host_name": text(general, "HostName"),
        "domain_name": text(general, "DomainName"),
    }


def software_versions(instances: list[Instance]) -> dict[str, str]:
    """CIM_SoftwareIdentity as names and versions."""
    return {text(each, "InstanceID"): text(each, "VersionString") for each in instances}


FUNCTIONS = (
    Function(
        "identity.get",
        "UUID, AMT version, provisioning, digest realm and host name",
        identity_get,
        result=(
            Field("uuid", Kind.UUID, "the PC's system UUID"),
            Field("version", Kind.TEXT, "AMT version, as 12.0.67"),
            Field("build", Kind.TEXT, "firmware build number"),
            Field("sku", Kind.TEXT, "bit mask of what Intel sold, as decimal text"),
            Field("provisioning_mode", Kind.CHOICE, "who may do what", choices=PROVISIONING_MODES),
            Field(
                "provisioning_state", Kind.CHOICE, "how far setup is", choices=PROVISIONING_STATES
            ),
            Field("realm", Kind.TEXT, "the digest realm; changes with every provisioning"),
            Field("host_name", Kind.TEXT, "the host name AMT was given"),
            Field("domain_name", Kind.TEXT, "the domain name AMT was given"),
        ),
    ),
)
