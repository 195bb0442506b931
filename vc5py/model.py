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
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

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
class Bfd:
    """Bidirectional forwarding detection with a neighbor (RFC 5880): gone after `multiplier` intervals."""

    interval_ms: int = 100
    multiplier: int = 3


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is to be read from, never the secret: a file, or a variable of the environment."""

    file: str | None = None
    variable: str | None = None


@dataclass(frozen=True, slots=True)
class PrefixRule:
    """Networks within `prefix` whose length is from `shortest` to `longest`."""

    prefix: IPNetwork
    shortest: int
    longest: int

    def matches(self, network: IPNetwork) -> bool:
        if not self.shortest <= network.prefixlen <= self.longest:
            return False
        if isinstance(network, IPv4Network) and isinstance(self.prefix, IPv4Network):
            return network.subnet_of(self.prefix)
        if isinstance(network, IPv6Network) and isinstance(self.prefix, IPv6Network):
            return network.subnet_of(self.prefix)
        return False


@dataclass(frozen=True, slots=True)
class RouteAttributes:
    """What is said of routes besides the next hop. `prepend`: how many times more our AS number is in the
    path. `communities` are pairs (RFC 1997), `large_communities` triples (RFC 8092) of numbers.
    """

    med: int | None = None
    local_preference: int | None = None
    prepend: int = 0
    communities: tuple[tuple[int, int], ...] = ()
    large_communities: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbor:
    """One BGP session to have, and what is announced over it.

    `hold_time_s` is BGP's (RFC 4271, 4.2). `restart_time_s`: for how long it is to keep the routes of a BGP
    speaker of ours that has died (RFC 4724), 0: not at all. `listen`: the port to take its connection on
    where we are `passive`; else we connect to its `port`. `multihop`: the hops to it, None for one that is
    on our link (eBGP) or wherever it may be (iBGP). `ttl_security`: packets that came over more hops are
    dropped (GTSM, RFC 5082). `source` and `next_hops` None: the kernel's choice. `accept` empty: all VIPs;
    `reject` goes first.
    """

    address: IPAddress
    as_number: int
    local_as: int
    hold_time_s: int = 15
    restart_time_s: int = 0
    port: int = 179
    passive: bool = False
    listen: int = 179
    source: IPAddress | None = None
    multihop: int | None = None
    ttl_security: int | None = None
    password: Secret | None = None
    next_hop4: IPv4Address | None = None
    next_hop6: IPv6Address | None = None
    families: frozenset[int] = frozenset({4, 6})
    attributes: RouteAttributes = RouteAttributes()
    accept: tuple[PrefixRule, ...] = ()
    reject: tuple[PrefixRule, ...] = ()
    bfd: Bfd | None = None

    @property
    def is_internal(self) -> bool:
        """Whether it is of our own autonomous system (iBGP)."""
        return self.as_number == self.local_as

    def admits(self, vip: IPAddress) -> bool:
        """Whether this VIP is to be announced to it."""
        if vip.version not in self.families:
            return False
        network = ip_network(vip)
        if any(rule.matches(network) for rule in self.reject):
            return False
        return not self.accept or any(rule.matches(network) for rule in self.accept)


@dataclass(frozen=True, slots=True)
class RhiConfig:
    """Route health injection: whom to tell about the VIPs, by BGP.

    `hold_s`: routes outlive a director that died or hangs for so long. `graceful_s`: how long routes are
    announced with the graceful-shutdown community (RFC 8326) before they are withdrawn at the end.
    `router_id` None: our address.
    """

    as_number: int
    neighbors: tuple[Neighbor, ...]
    hold_s: float = 30.0
    graceful_s: float = 1.0
    router_id: IPv4Address | None = None

    @property
    def peers(self) -> tuple[IPAddress, ...]:
        return tuple(neighbor.address for neighbor in self.neighbors)


class VipPolicy(StrEnum):
    """When a VIP is announced: while all of the services on it serve, or while any does."""

    ALL = "all"
    ANY = "any"


class VipState(StrEnum):
    """What people want of a VIP at run time, over what the health of its services says."""

    ANNOUNCED = "announced"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class MulticastGroup:
    address: IPAddress
    port: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """The balancers that share flows. Everything of theirs follows from `secret`; `keys`, where given, sign
    their datagrams in its place, and can be exchanged while they run. `peers` get everything by unicast.
    `interface` None: the first that the balancer is on. `datagram`: largest UDP payload, in bytes.
    """

    secret: Secret
    keys: Secret | None = None
    name: str = "vc5"
    peers: tuple[IPAddress, ...] = ()
    port: int = 9999
    interface: str | None = None
    datagram: int = 1400


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
    vip_policy: VipPolicy = VipPolicy.ALL
    vip_policies: tuple[tuple[IPAddress, VipPolicy], ...] = ()
    cluster: Cluster | None = None


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
