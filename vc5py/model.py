"""The nouns of the load balancer, as frozen values; every other module speaks in these.

Must not know: YAML, sockets, clocks, BPF. Invariant: a value here was validated when it was made from
the configuration; nobody checks again.

Words: a *VIP* is an address clients connect to. A *service* is what the configuration describes (VIPs,
ports, reals, checks); a *virtual service* is one service on one VIP, the unit that has a Maglev table and
a health of its own. A *real* is a server, a *backend* a real within a virtual service. A *check* is
configuration, a *probe* one attempt, a *result* its outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"

    @property
    def number(self) -> int:
        """IP protocol number (IANA)."""
        return {Protocol.TCP: 6, Protocol.UDP: 17}[self]


class ForwardMode(StrEnum):
    """How packets get to a real; all but l2 reach reals that are not on our link."""

    L2 = "l2"
    IPIP = "ipip"
    GRE = "gre"
    FOU = "fou"
    GUE = "gue"
    DSCP = "dscp"

    @property
    def is_tunnel(self) -> bool:
        return self not in (ForwardMode.L2, ForwardMode.DSCP)


class Scheduling(StrEnum):
    """How a service chooses a real for a new flow."""

    MAGLEV = "maglev"
    STICKY = "sticky"
    LEAST_CONNS = "least-conns"


class Unknown(StrEnum):
    """What happens to packets for a VIP that are for no service of it."""

    DROP = "drop"
    PASS = "pass"


class CheckType(StrEnum):
    HTTP = "http"
    HTTPS = "https"
    TCP = "tcp"


@dataclass(frozen=True, slots=True)
class Check:
    """How to find out whether a real serves a VIP. `port` is always filled in; times are in seconds.

    `expect` is the set of accepted HTTP status codes (unused for tcp). `rise` successes in a row bring a
    backend up, `fall` failures in a row take it down.
    """

    name: str
    type: CheckType
    port: int
    path: str = "/"
    host: str | None = None
    method: str = "GET"
    expect: frozenset[int] = frozenset({200})
    interval_s: float = 2.0
    timeout_s: float = 1.0
    rise: int = 2
    fall: int = 3


@dataclass(frozen=True, slots=True)
class Forwarding:
    """A mode with its parameters: `port` is the UDP port of fou and gue, `dscp` (0 to 63) that of dscp mode,
    `mtu` the largest packet, outer headers included, that gets to the real, in bytes.
    """

    mode: ForwardMode = ForwardMode.L2
    port: int = 0
    dscp: int = 0
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class Real:
    """A server that has the VIPs on its loopback and answers clients directly. `weight`: its share."""

    address: IPAddress
    weight: int = 1
    forwarding: Forwarding = Forwarding()


@dataclass(frozen=True, slots=True)
class Service:
    """One entry of `services:`. Ports are in ascending order, reals unique and in the file's order."""

    name: str
    desc: str
    vips: tuple[IPAddress, ...]
    ports: tuple[int, ...]
    protocols: tuple[Protocol, ...]
    reals: tuple[Real, ...]
    need: int
    checks: tuple[Check, ...]
    scheduling: Scheduling = Scheduling.MAGLEV
    unknown: Unknown = Unknown.DROP


@dataclass(frozen=True, slots=True)
class RhiConfig:
    """Route health injection: whom to tell about the VIPs, by BGP."""

    as_number: int
    peers: tuple[IPAddress, ...]
    hold_s: float = 30.0


@dataclass(frozen=True, slots=True)
class MulticastGroup:
    address: IPAddress
    port: int


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that an idle flow keeps its entry in the flow table against newcomers. `unproven`: until it has
    been seen in three different seconds.
    """

    unproven_s: int = 120
    established_s: int = 3600
    closing_s: int = 10
    udp_s: int = 300


@dataclass(frozen=True, slots=True)
class Vlan:
    """Reals of `prefix` are behind the 802.1Q tag `id`, within the 802.1ad tag `outer` if that isn't 0."""

    id: int
    prefix: IPNetwork
    outer: int = 0


@dataclass(frozen=True, slots=True)
class Config:
    """A whole validated configuration. `rhi` is None where nobody is to be told by BGP."""

    services: tuple[Service, ...]
    learn_s: float = 0.0
    multicast: MulticastGroup | None = None
    rhi: RhiConfig | None = None
    metrics_address: IPAddress | None = None
    metrics_port: int = 9955
    flows: int = 1 << 20
    timeouts: Timeouts = Timeouts()
    drop_fragments: bool = False
    vlans: tuple[Vlan, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class VirtualServiceId:
    """Names one service on one VIP."""

    service: str
    vip: IPAddress

    def __str__(self) -> str:
        return f"{self.service}@{self.vip}"


@dataclass(frozen=True, slots=True, order=True)
class BackendId:
    """Names one real within one virtual service; stable over restarts, reloads and nodes."""

    service: str
    vip: IPAddress
    real: IPAddress

    @property
    def virtual_service(self) -> VirtualServiceId:
        return VirtualServiceId(self.service, self.vip)

    def __str__(self) -> str:
        return f"{self.service}@{self.vip}/{self.real}"


@dataclass(frozen=True, slots=True)
class BackendState:
    """What the data plane is to do with one backend.

    `up`: packets of its flows go there. `weight`: its share of new flows; 0 takes none.
    """

    id: BackendId
    up: bool
    weight: int
    forwarding: Forwarding = Forwarding()


@dataclass(frozen=True, slots=True)
class ServiceState:
    """One virtual service as the data plane is to serve it."""

    id: VirtualServiceId
    ports: tuple[tuple[int, Protocol], ...]
    backends: tuple[BackendState, ...]
    scheduling: Scheduling = Scheduling.MAGLEV
    unknown: Unknown = Unknown.DROP


@dataclass(frozen=True, slots=True)
class Desired:
    """What the director wants of the world: the services to install, then the VIPs to announce."""

    services: tuple[ServiceState, ...] = ()
    announce: frozenset[IPAddress] = frozenset()
