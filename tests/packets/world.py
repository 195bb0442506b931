"""The small world that packets are tested in: services, reals and where they are, as frozen values.

Knows nothing of maps or programs: the harness installs a world in the kernel, the oracle reasons about the
same one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address

from vc5py.model import BackendId, BackendState, Desired, Protocol, ServiceState, VirtualServiceId

TCP, UDP = Protocol.TCP, Protocol.UDP


class Side(StrEnum):
    """The balancer's two interfaces."""

    NEAR = "near"  # the routers and most reals
    FAR = "far"


OUR_MAC = {Side.NEAR: "02:00:00:00:00:01", Side.FAR: "02:00:00:00:00:02"}
ROUTER_MAC = "02:00:00:00:00:fe"


@dataclass(frozen=True, slots=True)
class RealSpec:
    """A real of one service. `mac` None: no neighbour entry."""

    address: IPv4Address
    mac: str | None
    side: Side = Side.NEAR
    up: bool = True
    weight: int = 1


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    name: str
    vip: IPv4Address
    ports: tuple[tuple[int, Protocol], ...]
    reals: tuple[RealSpec, ...]

    @property
    def id(self) -> VirtualServiceId:
        return VirtualServiceId(self.name, self.vip)

    def backend(self, real: RealSpec) -> BackendId:
        return BackendId(self.name, self.vip, real.address)

    def real(self, address: IPv4Address) -> RealSpec:
        return next(real for real in self.reals if real.address == address)


@dataclass(frozen=True, slots=True)
class World:
    services: tuple[ServiceSpec, ...]

    def service(self, name: str) -> ServiceSpec:
        return next(service for service in self.services if service.name == name)

    def with_real(self, name: str, address: IPv4Address, *, up: bool, weight: int) -> World:
        """The same world with one real of one service changed."""
        service = self.service(name)
        reals = tuple(
            replace(real, up=up, weight=weight) if real.address == address else real for real in service.reals
        )
        changed = replace(service, reals=reals)
        return World(tuple(changed if s is service else s for s in self.services))

    def desired(self) -> Desired:
        return Desired(tuple(_state(service) for service in self.services))


def _state(service: ServiceSpec) -> ServiceState:
    backends = tuple(BackendState(service.backend(real), real.up, real.weight) for real in service.reals)
    return ServiceState(service.id, service.ports, backends)


def _real(n: int, side: Side = Side.NEAR, *, up: bool = True, weight: int = 1) -> RealSpec:
    return RealSpec(IPv4Address(f"10.0.0.{n}"), f"02:00:00:00:10:{n:02x}", side, up, weight)


CLIENT = IPv4Address("198.51.100.7")
NO_VIP = IPv4Address("192.0.2.200")
WEB_VIP = IPv4Address("192.0.2.1")  # of two services: web and shell
FAR_VIP = IPv4Address("192.0.2.2")
DARK_VIP = IPv4Address("192.0.2.3")
LOST_VIP = IPv4Address("192.0.2.4")
DRAINED_VIP = IPv4Address("192.0.2.5")
MIXED_VIP = IPv4Address("192.0.2.6")

WORLD = World(
    (
        ServiceSpec("web", WEB_VIP, ((80, TCP), (443, TCP), (443, UDP)), tuple(map(_real, (11, 12, 13)))),
        ServiceSpec("shell", WEB_VIP, ((22, TCP),), (_real(12), _real(14))),
        ServiceSpec("far", FAR_VIP, ((53, TCP), (53, UDP)), (_real(21, Side.FAR),)),
        ServiceSpec("dark", DARK_VIP, ((80, TCP),), (_real(11, up=False, weight=0),)),
        ServiceSpec("lost", LOST_VIP, ((80, TCP),), (RealSpec(IPv4Address("10.0.0.99"), None),)),
        ServiceSpec(
            "drained", DRAINED_VIP, ((80, TCP),), (_real(11, weight=0), _real(12, up=False, weight=0))
        ),
        ServiceSpec(
            "mixed",
            MIXED_VIP,
            ((80, TCP),),
            (_real(11, weight=3), _real(21, Side.FAR, weight=1), _real(13, weight=0)),
        ),
    )
)
