"""The networks of the lab, as tables.

    pc1 --+                       mgmt        +-----+            +-----+
    pc2 --+-- br-lan  gateway ================| isp |--- core ---| nat |--- wan --- msp
    pc3 --+                    --subscriber---+-----+            +-----+
                                                 |
                                                web     "the internet" of somebody who has logged in

`mgmt` is the WAN of the ISP's own management; `subscriber` carries the PCs, masqueraded, and a
portal in `isp` drops it until somebody logs in. `nat` is a second NAT, so the MSP sees neither of
the gateway's addresses. Variants: `walled-garden` has one WAN, of which the portal lets only the
MSP through; `standalone` has an ordinary router in the gateway's place and a box beside the PCs.

All addresses are private (RFC 1918), shared (RFC 6598) or for documentation (RFC 5737, RFC 7042).
"""

from __future__ import annotations

from dataclasses import dataclass, field

DOMAIN = "lan.example"
LAN = "192.168.77.0/24"
ROUTER_LAN = "192.168.77.1"
BOX_LAN = "192.168.77.2"
LEASES = ("192.168.77.100", "192.168.77.150")
SUBSCRIBER = "100.64.0.2"
SUBSCRIBER_ROUTER = "100.64.0.1"
MANAGEMENT = "10.20.0.2"
MANAGEMENT_ROUTER = "10.20.0.1"
NAT_WAN = "203.0.113.1"
MSP = "203.0.113.10"
WEB = "198.51.100.80"

PCS = ("pc1", "pc2", "pc3")
MACS = {
    "pc1": "00:00:5e:00:53:01",
    "pc2": "00:00:5e:00:53:02",
    "pc3": "00:00:5e:00:53:03",
    "box": "00:00:5e:00:53:10",
}


@dataclass(frozen=True, slots=True)
class Host:
    """One network namespace: `ip` and `nft` input, in the order it is applied."""

    addresses: dict[str, str] = field(default_factory=dict)
    bridge_ports: tuple[str, ...] = ()
    forwards: bool = False
    routes: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    nft: str = ""


@dataclass(frozen=True, slots=True)
class Cable:
    """A veth pair: host and interface at either end."""

    left: tuple[str, str]
    right: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Topology:
    name: str
    hosts: dict[str, Host]
    cables: tuple[Cable, ...]
    # Which host runs gwmodule, its LAN address, and what its configuration says about its place.
    relay: str
    relay_address: str
    settings: dict[str, object]
    dhcp_clients: tuple[str, ...] = PCS


# Ordinary manners of a home gateway: nothing comes in unasked, the LAN goes out masqueraded.
GATEWAY_NFT = """
table ip nat {
  chain postrouting { type nat hook postrouting priority srcnat; oifname "subscriber" masquerade; }
}
table ip filter {
  chain input {
    type filter hook input priority filter;
    iifname { "mgmt", "subscriber" } ct state new drop
  }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    # What stays in the LAN comes by here too where the kernel has bridge netfilter.
    iifname "br-lan" oifname { "subscriber", "br-lan" } accept
  }
}
"""

# Named counters: the proof of what the portal dropped and let through.
PORTAL_NFT = """
table ip portal {
  set admitted { type ipv4_addr; %s }
  set garden { type ipv4_addr; %s }
  counter refused { }
  counter passed { }
  chain forward {
    type filter hook forward priority filter;
    iifname != "subscriber" accept
    ip daddr @garden accept
    ip saddr @admitted counter name passed accept
    counter name refused drop
  }
}
"""
CLOSED_PORTAL = PORTAL_NFT % ("", "")
WALLED_GARDEN = PORTAL_NFT % ("", f"elements = {{ {MSP} }};")
OPEN_PORTAL = PORTAL_NFT % (f"elements = {{ {SUBSCRIBER} }};", "")

NAT_NFT = """
table ip nat {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    oifname "wan" masquerade fully-random
  }
}
table ip filter {
  chain input { type filter hook input priority filter; iifname "wan" ct state new drop; }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname "core" accept
  }
}
"""

PC = Host()

OUTSIDE = {
    "nat": Host(
        addresses={"core": "10.99.0.2/24", "wan": f"{NAT_WAN}/24"},
        routes=("10.20.0.0/24 via 10.99.0.1", "100.64.0.0/24 via 10.99.0.1"),
        forwards=True,
        nft=NAT_NFT,
    ),
    "msp": Host(addresses={"wan": f"{MSP}/24"}, routes=(f"default via {NAT_WAN}",)),
    "web": Host(addresses={"wan": f"{WEB}/24"}, routes=("default via 198.51.100.1",)),
}
OUTSIDE_CABLES = (
    Cable(("isp", "core"), ("nat", "core")),
    Cable(("nat", "wan"), ("msp", "wan")),
    Cable(("isp", "web"), ("web", "wan")),
)
ISP_ADDRESSES = {
    "subscriber": f"{SUBSCRIBER_ROUTER}/24",
    "core": "10.99.0.1/24",
    "web": "198.51.100.1/24",
}
PC_CABLES = tuple(Cable((pc, "eth0"), ("gateway", f"lan{n}")) for n, pc in enumerate(PCS, start=1))
LAN_PORTS = ("lan1", "lan2", "lan3")


def _gateway(
    *, rules: tuple[str, ...] = (), routes: tuple[str, ...] = (), **addresses: str
) -> Host:
    return Host(
        addresses={"br-lan": f"{ROUTER_LAN}/24", "subscriber": f"{SUBSCRIBER}/24", **addresses},
        bridge_ports=LAN_PORTS,
        forwards=True,
        routes=(f"default via {SUBSCRIBER_ROUTER} dev subscriber", *routes),
        rules=rules,
        nft=GATEWAY_NFT,
    )


def _isp(nft: str, **addresses: str) -> Host:
    return Host(
        addresses={**ISP_ADDRESSES, **addresses},
        routes=("default via 10.99.0.2",),
        forwards=True,
        nft=nft,
    )


TWO_WANS = Topology(
    name="two-wans",
    hosts={
        **dict.fromkeys(PCS, PC),
        "gateway": _gateway(
            mgmt=f"{MANAGEMENT}/24",
            routes=(f"default via {MANAGEMENT_ROUTER} dev mgmt table 20",),
            # By source, and by interface for a socket that is bound but has no source yet.
            rules=(f"from {MANAGEMENT} lookup 20", "oif mgmt lookup 20"),
        ),
        "isp": _isp(CLOSED_PORTAL, mgmt=f"{MANAGEMENT_ROUTER}/24"),
        **OUTSIDE,
    },
    cables=(
        *PC_CABLES,
        Cable(("gateway", "mgmt"), ("isp", "mgmt")),
        Cable(("gateway", "subscriber"), ("isp", "subscriber")),
        *OUTSIDE_CABLES,
    ),
    relay="gateway",
    relay_address=ROUTER_LAN,
    settings={
        "lan": {"interface": ["br-lan"]},
        "uplink": {"interface": "mgmt", "source": MANAGEMENT},
    },
)

ONE_WAN_CABLES = (
    *PC_CABLES,
    Cable(("gateway", "subscriber"), ("isp", "subscriber")),
    *OUTSIDE_CABLES,
)

WALLED_GARDEN_WAN = Topology(
    name="walled-garden",
    hosts={
        **dict.fromkeys(PCS, PC),
        "gateway": _gateway(),
        "isp": _isp(WALLED_GARDEN),
        **OUTSIDE,
    },
    cables=ONE_WAN_CABLES,
    relay="gateway",
    relay_address=ROUTER_LAN,
    settings={"lan": {"interface": ["br-lan"]}},
)

STANDALONE = Topology(
    name="standalone",
    hosts={
        **dict.fromkeys(PCS, PC),
        "box": PC,
        "gateway": Host(
            addresses={"br-lan": f"{ROUTER_LAN}/24", "subscriber": f"{SUBSCRIBER}/24"},
            bridge_ports=(*LAN_PORTS, "lan4"),
            forwards=True,
            routes=(f"default via {SUBSCRIBER_ROUTER}",),
            nft=GATEWAY_NFT,
        ),
        "isp": _isp(OPEN_PORTAL),
        **OUTSIDE,
    },
    cables=(*ONE_WAN_CABLES, Cable(("box", "eth0"), ("gateway", "lan4"))),
    relay="box",
    relay_address=BOX_LAN,
    settings={"deployment": "standalone", "lan": {"interface": ["eth0"]}},
    dhcp_clients=("box", *PCS),
)

TOPOLOGIES = {t.name: t for t in (TWO_WANS, WALLED_GARDEN_WAN, STANDALONE)}
