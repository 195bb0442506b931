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


class AdminState(StrEnum):
    """What people want of a real, apart from its health. Draining: no new flows; disabled: no packets."""

    ENABLED = "enabled"
    DRAINING = "draining"
    DISABLED = "disabled"


class Standby(StrEnum):
    """What the next tier of reals does when too few of the tiers before it are up."""

    REPLACE = "replace"
    JOIN = "join"


class BelowNeed(StrEnum):
    """What becomes of a service with fewer healthy reals than it needs."""

    WITHDRAW = "withdraw"
    SERVE = "serve"


class CheckType(StrEnum):
    HTTP = "http"
    HTTPS = "https"
    TCP = "tcp"
    SYN = "syn"
    DNS = "dns"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The request of an http or https check, and which responses are good.

    `expect`: the accepted status codes. `body`: the first 64 KiB of the body must contain this; `body_regex`:
    they must match this somewhere (RE2's syntax, on bytes). `verify`: the certificate must be good for `host`
    by the authorities in `ca_file` (None: the system's); unused for http.
    """

    path: str = "/"
    host: str | None = None
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    expect: frozenset[int] = frozenset({200})
    body: str | None = None
    body_regex: str | None = None
    verify: bool = False
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class DnsQuestion:
    """The question of a dns check, and which answers are good.

    `record`: the type by name (A, AAAA, ...). `answer`: one of the answers must be this, in presentation form
    (None: any). `rcode`: the response code by name (RFC 1035, RFC 2136), in lower case.
    """

    name: str = "."
    record: str = "NS"
    transport: Protocol = Protocol.UDP
    answer: str | None = None
    rcode: str = "noerror"


@dataclass(frozen=True, slots=True)
class UdpExchange:
    """The datagram of a udp check, and what the reply must begin with (None: any reply is good)."""

    payload: bytes = b""
    reply: bytes | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """How to find out whether a real serves a VIP. `port` is always filled in; times are in seconds.

    `rise` successes in a row bring a backend up, `fall` failures in a row take it down. `quorum` (m, n) is
    instead of both: up while at least m of the last n probes succeeded. `detail` is what the type
    of the check needs to know, None for tcp and syn.
    """

    name: str
    type: CheckType
    port: int
    detail: HttpRequest | DnsQuestion | UdpExchange | None = None
    interval_s: float = 2.0
    timeout_s: float = 1.0
    rise: int = 2
    fall: int = 3
    quorum: tuple[int, int] | None = None


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
    """A server that has the VIPs on its loopback and answers clients directly. `weight`: its share of new
    flows. `tier`: 0 serves, a higher one stands by for those before it.
    """

    address: IPAddress
    weight: int = 1
    forwarding: Forwarding = Forwarding()
    tier: int = 0
    admin: AdminState = AdminState.ENABLED


@dataclass(frozen=True, slots=True)
class Damping:
    """When a real that flaps is kept out, as routers do with routes (RFC 2439).

    Every time it goes down costs one point, points halve every `half_life_s`; from `suppress` points on it is
    kept out until they fall to `reuse`, at most for `longest_s` after it last went down.
    """

    suppress: float = 4.0
    reuse: float = 1.0
    half_life_s: float = 60.0
    longest_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Sorry:
    """Reals, with checks of their own, that serve while fewer than `need` of the service's are healthy."""

    reals: tuple[Real, ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Service:
    """One entry of `services:`. Ports are in ascending order, reals unique and in the file's order.

    `min_up`: a tier stands in for those before it when fewer of them are up. `slow_start_s`: how long the
    share of a real takes to grow from nothing to its weight after it came up. `damping`: None means that
    reals may flap.
    """

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
    below_need: BelowNeed = BelowNeed.WITHDRAW
    min_up: int = 1
    standby: Standby = Standby.REPLACE
    sorry: Sorry | None = None
    slow_start_s: float = 0.0
    damping: Damping | None = Damping()


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
