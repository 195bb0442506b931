"""The small world that packets are tested in: services, reals and where they are, as frozen values.

Knows nothing of maps or programs: the harness installs a world in the kernel, the oracle reasons about the
same one. Where a real is depends on its address alone, whatever service it is in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

from vc5py.dataplane.base import Neighbour
from vc5py.model import (
    BackendId,
    BackendState,
    Desired,
    Forwarding,
    ForwardMode,
    IPAddress,
    Protocol,
    Scheduling,
    ServiceState,
    Unknown,
    VirtualServiceId,
)

TCP, UDP = Protocol.TCP, Protocol.UDP


class Side(StrEnum):
    """The balancer's two interfaces."""

    NEAR = "near"  # the routers and most reals
    FAR = "far"


OUR_MAC = {Side.NEAR: "02:00:00:00:00:01", Side.FAR: "02:00:00:00:00:02"}
BOND_MAC = "02:00:00:00:00:03"
ROUTER_MAC = "02:00:00:00:00:fe"
SOURCES: dict[int, IPAddress] = {4: IPv4Address("10.0.0.1"), 6: IPv6Address("fd00::1")}


L2 = Forwarding()


@dataclass(frozen=True, slots=True)
class RealSpec:
    """A real of one service. `mac` None: no neighbour entry; the rest as in `Neighbour`, struct backend."""

    address: IPAddress
    mac: str | None
    side: Side = Side.NEAR
    up: bool = True
    weight: int = 1
    forwarding: Forwarding = L2
    on_link: bool = True
    vlan: int | None = None
    svlan: int = 0
    load: int = 0

    def neighbour(self, ifindex: int) -> Neighbour | None:
        if self.mac is None:
            return None
        source = SOURCES[self.address.version]
        return Neighbour(ifindex, self.mac, self.on_link, self.vlan, self.svlan, source)


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    name: str
    vip: IPAddress
    ports: tuple[tuple[int, Protocol], ...]
    reals: tuple[RealSpec, ...]
    scheduling: Scheduling = Scheduling.MAGLEV
    unknown: Unknown = Unknown.DROP

    @property
    def id(self) -> VirtualServiceId:
        return VirtualServiceId(self.name, self.vip)

    def backend(self, real: RealSpec) -> BackendId:
        return BackendId(self.name, self.vip, real.address)

    def real(self, address: IPAddress) -> RealSpec:
        return next(real for real in self.reals if real.address == address)

    def state(self) -> ServiceState:
        backends = tuple(
            BackendState(self.backend(real), real.up, real.weight, real.forwarding) for real in self.reals
        )
        return ServiceState(self.id, self.ports, backends, self.scheduling, self.unknown)


@dataclass(frozen=True, slots=True)
class World:
    """`answers`: whether "too big" answers are within their rate. `bond`: the interfaces that are members of
    a bond; the reals on their sides are then behind the bond. `cut`: sides that nothing can be sent to: no
    member of the bond there is running, or without a bond the link is none of ours any more. The MTUs are
    those of the links; of a bond that both are members of, they are the same.
    """

    services: tuple[ServiceSpec, ...]
    drop_fragments: bool = False
    answers: bool = True
    bond: frozenset[Side] = frozenset()
    cut: frozenset[Side] = frozenset()
    near_mtu: int = 1500
    far_mtu: int = 1500

    def mtu(self, side: Side) -> int:
        return self.near_mtu if side is Side.NEAR else self.far_mtu

    def service(self, name: str) -> ServiceSpec:
        return next(service for service in self.services if service.name == name)

    def with_real(self, name: str, address: IPAddress, *, up: bool, weight: int, load: int = 0) -> World:
        """The same world with one real of one service changed."""
        service = self.service(name)
        reals = tuple(
            replace(real, up=up, weight=weight, load=load) if real.address == address else real
            for real in service.reals
        )
        changed = replace(service, reals=reals)
        return replace(self, services=tuple(changed if s is service else s for s in self.services))

    def desired(self) -> Desired:
        return Desired(tuple(service.state() for service in self.services))


def _real(
    n: int,
    side: Side = Side.NEAR,
    *,
    up: bool = True,
    weight: int = 1,
    family: int = 4,
    mode: Forwarding = L2,
    on_link: bool = True,
    vlan: int | None = None,
    svlan: int = 0,
    load: int = 0,
) -> RealSpec:
    address = ip_address(f"10.0.0.{n}" if family == 4 else f"fd00::{n:x}")
    mac = f"02:00:00:00:{10 if family == 4 else 16}:{n:02x}"
    return RealSpec(address, mac, side, up, weight, mode, on_link, vlan, svlan, load)


CLIENT: IPAddress = IPv4Address("198.51.100.7")
CLIENT6: IPAddress = IPv6Address("2001:db8:c::7")
NO_VIP: IPAddress = IPv4Address("192.0.2.200")
NO_VIP6: IPAddress = IPv6Address("2001:db8::200")
WEB_VIP: IPAddress = IPv4Address("192.0.2.1")  # of two services: web and shell
FAR_VIP: IPAddress = IPv4Address("192.0.2.2")
DARK_VIP: IPAddress = IPv4Address("192.0.2.3")
LOST_VIP: IPAddress = IPv4Address("192.0.2.4")
DRAINED_VIP: IPAddress = IPv4Address("192.0.2.5")
MIXED_VIP: IPAddress = IPv4Address("192.0.2.6")
STICKY_VIP: IPAddress = IPv4Address("192.0.2.7")
LEAST_VIP: IPAddress = IPv4Address("192.0.2.8")
PASS_VIP: IPAddress = IPv4Address("192.0.2.9")
BEYOND_VIP: IPAddress = IPv4Address("192.0.2.10")  # its real is behind a router and wants L2
WEB_VIP6: IPAddress = IPv6Address("2001:db8::1")
FAR_VIP6: IPAddress = IPv6Address("2001:db8::2")
DARK_VIP6: IPAddress = IPv6Address("2001:db8::3")
STICKY_VIP6: IPAddress = IPv6Address("2001:db8::7")
PASS_VIP6: IPAddress = IPv6Address("2001:db8::9")

WEB_PORTS = ((80, TCP), (443, TCP), (443, UDP))
BOTH_PORTS = ((80, TCP), (53, UDP))

TUNNEL_MTU = 1500
FOU_PORT, GUE_PORT, DSCP = 5555, 6080, 46
# How packets get to a real, and the IP version of the real; a VIP of either version has a service of each.
WAYS: dict[str, tuple[Forwarding, int]] = {
    f"{mode.value}{family}": (Forwarding(mode, port, 0, TUNNEL_MTU), family)
    for mode, port in (
        (ForwardMode.IPIP, 0),
        (ForwardMode.GRE, 0),
        (ForwardMode.FOU, FOU_PORT),
        (ForwardMode.GUE, GUE_PORT),
    )
    for family in (4, 6)
}
# The tags that frames to a real have; None: those that they came with.
TAGS: dict[str, tuple[int | None, int]] = {
    "keep": (None, 0),
    "pop": (0, 0),
    "vlan": (200, 0),
    "qinq": (200, 300),
}


def mode_vip(way: str, family: int) -> IPAddress:
    """The VIP whose only real is reached in this way (`ipip4`, `dscp`...)."""
    number = [*WAYS, "dscp"].index(way) + 32
    return ip_address(f"192.0.2.{number}" if family == 4 else f"2001:db8::{number:x}")


def tags_vip(tags: str, way: str, family: int) -> IPAddress:
    """The VIP whose only real wants these tags and is reached by `l2` or `gue6`."""
    number = 64 + list(TAGS).index(tags) * 2 + (way == "gue6")
    return ip_address(f"192.0.2.{number}" if family == 4 else f"2001:db8::{number:x}")


def _mode_services() -> list[ServiceSpec]:
    services = []
    for family in (4, 6):
        for n, (way, (forwarding, outer)) in enumerate(WAYS.items(), start=32):
            real = _real(n, family=outer, mode=forwarding, on_link=False)
            services.append(ServiceSpec(f"{way}-for-{family}", mode_vip(way, family), BOTH_PORTS, (real,)))
        real = _real(48, family=family, mode=Forwarding(ForwardMode.DSCP, 0, DSCP, 1500))
        services.append(ServiceSpec(f"dscp-for-{family}", mode_vip("dscp", family), BOTH_PORTS, (real,)))
    return services


def _tag_services() -> list[ServiceSpec]:
    services = []
    for family in (4, 6):
        for n, (tags, (vlan, svlan)) in enumerate(TAGS.items(), start=64):
            l2 = _real(n, family=family, vlan=vlan, svlan=svlan)
            gue = _real(n + 8, family=6, mode=WAYS["gue6"][0], vlan=vlan, svlan=svlan)
            for way, real in (("l2", l2), ("gue6", gue)):
                vip = tags_vip(tags, way, family)
                services.append(ServiceSpec(f"{tags}-{way}-for-{family}", vip, BOTH_PORTS, (real,)))
    return services


def _three(family: int = 4) -> tuple[RealSpec, ...]:
    return tuple(_real(n, family=family) for n in (11, 12, 13))


HTTP = ((80, TCP),)
_LOST = RealSpec(IPv4Address("10.0.0.99"), None)
WORLD = World(
    (
        ServiceSpec("web", WEB_VIP, WEB_PORTS, _three()),
        ServiceSpec("shell", WEB_VIP, ((22, TCP),), (_real(12), _real(14))),
        ServiceSpec("far", FAR_VIP, ((53, TCP), (53, UDP)), (_real(21, Side.FAR),)),
        ServiceSpec("dark", DARK_VIP, HTTP, (_real(11, up=False, weight=0),)),
        ServiceSpec("lost", LOST_VIP, HTTP, (_LOST,)),
        ServiceSpec("drained", DRAINED_VIP, HTTP, (_real(11, weight=0), _real(12, up=False, weight=0))),
        ServiceSpec(
            "mixed",
            MIXED_VIP,
            HTTP,
            (_real(11, weight=3), _real(21, Side.FAR, weight=1), _real(13, weight=0)),
        ),
        ServiceSpec("sticky", STICKY_VIP, BOTH_PORTS, _three(), Scheduling.STICKY),
        ServiceSpec("least", LEAST_VIP, BOTH_PORTS, _three(), Scheduling.LEAST_CONNS),
        ServiceSpec("passing", PASS_VIP, HTTP, _three(), unknown=Unknown.PASS),
        ServiceSpec("beyond", BEYOND_VIP, HTTP, (_real(98, on_link=False),)),
        ServiceSpec("web6", WEB_VIP6, WEB_PORTS, _three(6)),
        ServiceSpec("far6", FAR_VIP6, BOTH_PORTS, (_real(21, Side.FAR, family=6),)),
        ServiceSpec("dark6", DARK_VIP6, HTTP, (_real(11, family=6, up=False, weight=0),)),
        ServiceSpec("sticky6", STICKY_VIP6, BOTH_PORTS, _three(6), Scheduling.STICKY),
        ServiceSpec("passing6", PASS_VIP6, HTTP, _three(6), unknown=Unknown.PASS),
        *_mode_services(),
        *_tag_services(),
    )
)
