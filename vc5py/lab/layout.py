"""The lab on paper: who is there, under which names and addresses, and where their files are.

Must not know: how any of it is built or started. Pure values; nothing here touches the machine.

    client ---- router ---- br0 (one L2 segment) ---- lb1, lb2, real1, real2, real3, real5 (in a VLAN)
                   |
                 real4

A third balancer, lb3, is there only where a layout asks for it.

Everything speaks IPv4 and IPv6, but for real5 and the BGP sessions, which are IPv4.

Invariant: everything the lab leaves on a machine carries the lab's name, so that all of it can be found
again from the name alone: namespaces `NAME-*`, and one directory that holds files and mounts.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, ip_address
from pathlib import Path

IPAddress = IPv4Address | IPv6Address

VIP = IPv4Address("192.168.101.1")
VIP6 = IPv6Address("fd00:101::1")
FAR_VIPS: tuple[IPAddress, ...] = (ip_address("192.168.101.2"), ip_address("fd00:101::2"))
TAGGED_VIP = IPv4Address("192.168.101.3")
ALL_VIPS: tuple[IPAddress, ...] = (VIP, VIP6, *FAR_VIPS, TAGGED_VIP)
VIP_RANGE = "192.168.101.0/24"
VIP6_RANGE = "fd00:101::/64"
DSCP_VIP = IPv4Address("192.168.101.0")  # with the DSCP added to it, the VIP that real4 takes it for
DSCP_VIP6 = IPv6Address("fd00:101::")
VLAN = 10
OUTER_VLAN = 100
GUE_PORT = 6080
FOU_PORT = 5555
PROGRAM_MACROS = {
    "GUE_PORT": GUE_PORT,
    "FOU_PORT": FOU_PORT,
    "VLAN": VLAN,
    "OUTER_VLAN": OUTER_VLAN,
    "DSCP_VIP": int(DSCP_VIP),
    "DSCP_VIP6": int(DSCP_VIP6) >> 96,
}
PORTS = (80, 443)
AS_NUMBER = 65000
METRICS_PORT = 9955
SERVICE = "nginx"  # of real1 to real3, on VIP
SERVICE6 = "nginx6"  # of the same, on VIP6
BIG_BYTES = 20_000_000
SWITCH = "lan"  # the node that holds the bridge


@dataclass(frozen=True, slots=True)
class Host:
    """A node with one interface, called eth0, and a default route."""

    name: str
    interface: IPv4Interface
    gateway: IPv4Address
    interface6: IPv6Interface | None = None
    gateway6: IPv6Address | None = None

    @property
    def address(self) -> IPv4Address:
        return self.interface.ip

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        return (self.address, self.interface6.ip) if self.interface6 else (self.address,)

    @property
    def mac(self) -> str:
        """A locally administered MAC made of the address, so that a node keeps it over a power cut."""
        return ":".join(f"{byte:02x}" for byte in (2, 0, *self.address.packed))


ROUTER = "router"
ROUTER_LAN = IPv4Interface("10.10.100.3/24")
ROUTER_CLIENTS = IPv4Interface("10.10.200.1/24")
ROUTER_LAN6 = IPv6Interface("fd00:100::3/64")
ROUTER_CLIENTS6 = IPv6Interface("fd00:200::1/64")
ROUTER_FAR = IPv4Interface("10.10.150.1/24")
ROUTER_FAR6 = IPv6Interface("fd00:150::1/64")
ROUTER_TAGGED = IPv4Interface("10.10.110.1/24")
TAGGED_NETWORK: IPv4Network = ROUTER_TAGGED.network


def _lan_host(name: str, address: str) -> Host:
    """Its IPv6 address ends as the IPv4 one is written: 10.10.100.200 and fd00:100::200."""
    interface6 = IPv6Interface(f"fd00:100::{address.rpartition('.')[2]}/64")
    return Host(name, IPv4Interface(f"{address}/24"), ROUTER_LAN.ip, interface6, ROUTER_LAN6.ip)


CLIENT = Host(
    "client",
    IPv4Interface("10.10.200.2/24"),
    ROUTER_CLIENTS.ip,
    IPv6Interface("fd00:200::2/64"),
    ROUTER_CLIENTS6.ip,
)
BALANCERS = (_lan_host("lb1", "10.10.100.200"), _lan_host("lb2", "10.10.100.201"))
THREE_BALANCERS = (*BALANCERS, _lan_host("lb3", "10.10.100.202"))
REALS = (
    _lan_host("real1", "10.10.100.10"),
    _lan_host("real2", "10.10.100.11"),
    _lan_host("real3", "10.10.100.12"),
)
FAR_REAL = Host(
    "real4",
    IPv4Interface("10.10.150.10/24"),
    ROUTER_FAR.ip,
    IPv6Interface("fd00:150::10/64"),
    ROUTER_FAR6.ip,
)
TAGGED_REAL = Host("real5", IPv4Interface("10.10.110.10/24"), ROUTER_TAGGED.ip)
ALL_REALS = (*REALS, FAR_REAL, TAGGED_REAL)
NODES = (CLIENT.name, ROUTER, SWITCH, *(host.name for host in (*BALANCERS, *ALL_REALS)))


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one lab lives. Labs of different names can stand side by side. `bfd`: the router speaks BFD with
    balancers that do. `hold_s`: BGP's, how long the router goes on using one that died without a word.
    """

    name: str = "vc5"
    balancers: tuple[Host, ...] = BALANCERS
    bfd: bool = False
    hold_s: int = 4

    @property
    def directory(self) -> Path:
        return Path("/run/vc5py-lab" if self.name == "vc5" else f"/run/vc5py-lab-{self.name}")

    @property
    def standing(self) -> Path:
        """Exists while the lab was put up for a person and is not to be swept away as a leftover."""
        return self.directory / "standing"

    @property
    def namespaces(self) -> tuple[str, ...]:
        more = (host.name for host in self.balancers if host not in BALANCERS)
        return tuple(map(self.namespace, (*NODES, *more)))

    @property
    def possible_namespaces(self) -> tuple[str, ...]:
        """Those that a lab of this name can have, with whichever balancers it was put up."""
        more = (host.name for host in THREE_BALANCERS if host not in BALANCERS)
        return tuple(map(self.namespace, (*NODES, *more)))

    def namespace(self, node: str) -> str:
        return f"{self.name}-{node}"

    def node_directory(self, node: str) -> Path:
        return self.directory / node

    def bpffs(self, node: str) -> Path:
        """Mount point of the node's own BPF file system: bpffs is not divided by network namespaces."""
        return self.directory / node / "bpf"


def _octet(index: int) -> int:
    return (*BALANCERS, *REALS)[index].address.packed[-1]


MAP = f"""\
   client {CLIENT.address}
     |
   router {ROUTER_CLIENTS.ip} / {ROUTER_LAN.ip}   BIRD: BGP from both balancers, ECMP to the VIPs
     |  |
     |  +-- real4 {FAR_REAL.address}   reached by tunnels, which a small program there takes apart
     |
   --+---------+-----------+-----------+-----------+-----------+------   br0: {ROUTER_LAN.network}
     |         |           |           |           |           |
     lb1       lb2         real1       real2       real3       real5 (VLAN {VLAN}: {TAGGED_REAL.address})
     vc5py     vc5py       nginx       nginx       nginx       nginx        the reals have the VIPs on lo
     .{_octet(0)}      .{_octet(1)}        .{_octet(2)}         .{_octet(3)}         .{_octet(4)}
   VIPs: {VIP} and {VIP6} on real1 to real3; {FAR_VIPS[0]} and {FAR_VIPS[1]} on real4; {TAGGED_VIP} on real5
"""
