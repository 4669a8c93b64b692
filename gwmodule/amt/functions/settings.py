"""What AMT itself is set to: general settings, network ports, clock."""

from __future__ import annotations

import datetime

from gwmodule import BUILD_DATE
from gwmodule.amt.functions.identity import require_identity
from gwmodule.amt.functions.reading import flag, named, number, numbers, optional_number, text
from gwmodule.amt.functions.records import iso
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
from gwmodule.amt.wsman import Instance, check_return
from gwmodule.errors import BadArgument, DeviceAnswerError

_TIME = "AMT_TimeSynchronizationService"
_BUILT = datetime.datetime.combine(BUILD_DATE, datetime.time(), datetime.UTC).timestamp()
POWER_SOURCES = {0: "AC", 1: "DC"}
CONNECTIONS = {0: "wired", 1: "wired (discrete)", 2: "wired (Thunderbolt dock)", 3: "wireless"}
# When AMT may use the port: PC on (S0) or not (Sx), on mains (AC) or battery (DC).
LINK_POLICIES = {1: "S0/AC", 14: "Sx/AC", 16: "S0/DC", 224: "Sx/DC"}


async def general_get(client: Wsman, arguments: Arguments, context: Context) -> Result:
    general = await client.get("AMT_GeneralSettings")
    return {
        "host_name": text(general, "HostName"),
        "domain_name": text(general, "DomainName"),
        "os_name": text(general, "HostOSFQDN"),
        "realm": text(general, "DigestRealm"),
        "network_enabled": flag(general, "AMTNetworkEnabled"),
        "interface_enabled": flag(general, "NetworkInterfaceEnabled"),
        "ping_response": flag(general, "PingResponseEnabled"),
        "rmcp_ping_response": flag(general, "RmcpPingResponseEnabled"),
        "shared_fqdn": flag(general, "SharedFQDN"),
        "wsman_only": flag(general, "WsmanOnlyMode"),
        "ddns_enabled": flag(general, "DDNSUpdateEnabled"),
        "idle_wake_timeout": optional_number(general, "IdleWakeTimeout"),
        "privacy_level": optional_number(general, "PrivacyLevel"),
        **named("power_source", optional_number(general, "PowerSource"), POWER_SOURCES),
    }


async def network_get(client: Wsman, arguments: Arguments, context: Context) -> Result:
    ports = await client.enumerate("AMT_EthernetPortSettings")
    return {"ports": [_port(each) for each in ports]}


def _port(port: Instance) -> Result:
    return {
        "name": text(port, "InstanceID"),
        **named("connection", optional_number(port, "PhysicalConnectionType"), CONNECTIONS),
        "mac": text(port, "MACAddress").replace("-", ":").lower(),
        "link": flag(port, "LinkIsUp"),
        "dhcp": flag(port, "DHCPEnabled"),
        # Firmware leaves out what DHCP has not told it.
        "address": text(port, "IPAddress"),
        "netmask": text(port, "SubnetMask"),
        "gateway": text(port, "DefaultGateway"),
        "dns": [text(port, name) for name in ("PrimaryDNS", "SecondaryDNS") if text(port, name)],
        "shared_mac": flag(port, "SharedMAC"),
        "ip_sync": flag(port, "IpSyncEnabled"),
        "link_policy": [
            {"policy": value, "name": LINK_POLICIES.get(value, f"unknown ({value})")}
            for value in numbers(port, "LinkPolicy")
        ],
    }


async def device_time(client: Wsman) -> int:
    output = await client.invoke(_TIME, "GetLowAccuracyTimeSynch", reads=True)
    check_return(_TIME, "GetLowAccuracyTimeSynch", output)
    seconds = number(output, "Ta0")
    if not 0 <= seconds <= 0xFFFFFFFF:
        raise DeviceAnswerError(f"Ta0 is {seconds}, expected seconds since 1970")
    return seconds


async def time_get(client: Wsman, arguments: Arguments, context: Context) -> Result:
    seconds = await device_time(client)
    return {"time": seconds, "time_text": iso(seconds)}


async def time_sync(client: Wsman, arguments: Arguments, context: Context) -> Result:
    wanted = arguments["time"] or _gateway_time(context)
    await require_identity(client, context)
    before = await device_time(client)
    # Ta0 is the device's clock at its answer, Tm1 and Tm2 ours before and after it.
    output = await client.invoke(
        _TIME, "SetHighAccuracyTimeSynch", {"Ta0": before, "Tm1": wanted, "Tm2": wanted}
    )
    check_return(_TIME, "SetHighAccuracyTimeSynch", output)
    return {"before": before, "before_text": iso(before), "time": wanted, "time_text": iso(wanted)}


def _gateway_time(context: Context) -> int:
    """BadArgument on a router without a clock chip that NTP has not reached yet."""
    now = 0 if context.wall_clock is None else int(context.wall_clock())
    if now < _BUILT:
        raise BadArgument(f"the gateway's clock says {iso(now)}, which is wrong; time is needed")
    return now


_FLAGS = (
    ("network_enabled", "AMT uses the network at all"),
    ("interface_enabled", "the wired port is enabled for AMT"),
    ("ping_response", "answers ICMP ping"),
    ("rmcp_ping_response", "answers the RMCP presence ping"),
    ("shared_fqdn", "shares its name with the operating system"),
    ("wsman_only", "the old EOI interface is off"),
    ("ddns_enabled", "updates DNS by itself"),
)

FUNCTIONS = (
    Function(
        "general.get",
        "AMT's general settings",
        general_get,
        result=(
            Field("host_name", Kind.TEXT, "the host name AMT was given"),
            Field("domain_name", Kind.TEXT, "the domain name AMT was given"),
            Field("os_name", Kind.TEXT, "the operating system's full name, as it told AMT"),
            Field("realm", Kind.TEXT, "the digest realm"),
            *(Field(name, Kind.BOOLEAN, summary) for name, summary in _FLAGS),
            Field("idle_wake_timeout", Kind.INTEGER, "awake after the last use", unit="minutes"),
            Field("privacy_level", Kind.INTEGER, "0 default, 1 enhanced, 2 extreme"),
            Field("power_source", Kind.CHOICE, "what powers the PC", choices=POWER_SOURCES),
        ),
    ),
    Function(
        "network.get",
        "AMT's network ports and their addresses",
        network_get,
        result=(
            Field("ports", Kind.LIST, "name, mac, link, dhcp, address, netmask, gateway, dns, ..."),
            Field("ports.connection", Kind.CHOICE, "kind of port", choices=CONNECTIONS),
            Field("ports.link_policy", Kind.LIST, "when AMT may use it: policy, name"),
        ),
    ),
    Function(
        "time.get",
        "The device's clock",
        time_get,
        result=(
            Field("time", Kind.INTEGER, "the clock", unit="seconds since 1970"),
            Field("time_text", Kind.TEXT, "the same as ISO 8601 in UTC"),
        ),
    ),
    Function(
        "time.sync",
        "Set the device's clock",
        time_sync,
        (
            Argument(
                "time",
                Kind.INTEGER,
                "the time now; else the gateway's",
                default=None,
                low=1_000_000_000,
                unit="seconds since 1970",
            ),
        ),
        (
            Field("before", Kind.INTEGER, "what the clock said", unit="seconds since 1970"),
            Field("time", Kind.INTEGER, "what it was set to", unit="seconds since 1970"),
        ),
        changes_state=True,
    ),
)
