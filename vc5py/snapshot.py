"""What the balancer shows of itself at one moment: one frozen value for metrics, console and CLI.

Made by `readings` alone; whoever shows it knows nothing of where the numbers come from. Times are Unix
timestamps in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vc5py.model import AdminState, IPAddress, VipState, VirtualServiceId


@dataclass(frozen=True, slots=True)
class RealSnapshot:
    """A real in one virtual service. `up`: its checks succeed; `health` is that in a word, with the states
    between. `serving`: it gets new flows now, in proportion to `weight`. `damped`: it flaps, and
    serves only where too few others can.
    `packets` and `bytes` (frames as received) were sent to it; `flows` are live table entries. `why` tells a
    person what its health rests on, `since` when that last changed.
    """

    address: IPAddress
    up: bool
    packets: int
    bytes: int
    flows: int
    health: str = "up"
    admin: AdminState = AdminState.ENABLED
    weight: int = 1
    tier: int = 0
    sorry: bool = False
    serving: bool = True
    damped: bool = False
    why: str = ""
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class ServiceSnapshot:
    """A virtual service. `serving_tier`: the highest tier of reals that gets new flows, None where none does.
    `sorry`: the sorry reals do. `count` tells a person how many reals can serve, and why others can't.
    """

    id: VirtualServiceId
    healthy: bool
    need: int
    reals: tuple[RealSnapshot, ...]
    ports: tuple[str, ...] = ()
    serving_tier: int | None = None
    sorry: bool = False
    count: str = ""


@dataclass(frozen=True, slots=True)
class VerdictSnapshot:
    name: str
    action: str
    packets: int


@dataclass(frozen=True, slots=True)
class ReloadSnapshot:
    """The configuration in force is that of `file` at `loaded_at`; `successful`: the last attempt was."""

    file: str = ""
    successful: bool = True
    loaded_at: float = 0.0


@dataclass(frozen=True, slots=True)
class StartSnapshot:
    """What the start made of an earlier run's maps. `kind`: a `StartKind` of the data plane; `text`: the same
    in words. `flows` were carried over into new maps, the others weren't.
    """

    kind: str = ""
    text: str = ""
    flows: int = 0
    without_backend: int = 0
    without_room: int = 0


@dataclass(frozen=True, slots=True)
class OverrideSnapshot:
    """What was commanded at run time of a real, in one service or (None) in all."""

    real: IPAddress
    service: str | None
    state: AdminState | None
    weight: int | None


@dataclass(frozen=True, slots=True)
class NeighborSnapshot:
    """A BGP neighbor. `state`: down, connecting or established, `since` then; `routes`: how many it was told;
    `why`: what ended the last session, or keeps one from coming up, as far as is known.
    """

    address: IPAddress
    as_number: int
    state: str
    since: float
    routes: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class ToldSnapshot:
    """A VIP's neighbors: `told` of it by BGP now, in sessions that are established, `of` those that are to be
    told whenever it is announced: by the configuration, whether there is a session or not.
    """

    told: int = 0
    of: int = 0


@dataclass(frozen=True, slots=True)
class PeerSnapshot:
    """Another balancer that shares its flows with us, heard of `age_s` seconds ago."""

    node: str
    address: str
    age_s: float


@dataclass(frozen=True, slots=True)
class SharingSnapshot:
    """Flow sharing. `running`: its process reports. Numbers count from the balancer's start: `datagrams` that
    came by what became of them, `sent` and `received` flows, the latter in `results` by what became of them,
    `missed` flows that changed faster than they were read, `lost` datagrams of peers, `dropped` ones that the
    kernel threw away. `ambiguous`: backends whose flows can't be shared. `copied`: all flows of a peer have
    been received since the process began. `why_off` tells a person who may have expected flows to be shared
    why they aren't, if they aren't enabled.
    """

    enabled: bool = False
    running: bool = False
    restarts: int = 0
    datagrams: Mapping[str, int] = field(default_factory=dict)
    datagrams_sent: int = 0
    bytes_sent: int = 0
    send_errors: int = 0
    sent: int = 0
    received: int = 0
    results: Mapping[str, int] = field(default_factory=dict)
    missed: int = 0
    lost: int = 0
    dropped: int = 0
    ambiguous: int = 0
    copied: bool = False
    cpu_s: float = 0.0
    peers: tuple[PeerSnapshot, ...] = ()
    why_off: str = ""


@dataclass(frozen=True, slots=True)
class BfdSessionSnapshot:
    """A BFD session. `state`: up, init, down, admin-down, or unknown where there is no process that has it,
    `since` then; `reachable`: False only where the path was there and was found broken.
    """

    neighbor: IPAddress
    state: str
    reachable: bool
    since: float
    transitions: int


@dataclass(frozen=True, slots=True)
class BfdSnapshot:
    """`rejected`: packets thrown away, by reason. `lag_s`: how late the process woke up, at the worst of the
    last second. `scheduling`: fifo (real-time priority), nice, normal, or "" where there is no process.
    """

    sessions: tuple[BfdSessionSnapshot, ...] = ()
    rejected: Mapping[str, int] = field(default_factory=dict)
    lag_s: float = 0.0
    scheduling: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`vips` says whether each VIP is to be announced, `vip_why` why one isn't, `vip_told` whether any router
    knows, `sessions` whether BGP with
    each peer is up, `probes` counts by (check type, outcome), `interfaces` gives each one's XDP mode, `at` is
    now. `warnings` tell a person what keeps packets from where they should go.
    """

    version: str
    services: tuple[ServiceSnapshot, ...]
    vips: Mapping[IPAddress, bool]
    sessions: Mapping[IPAddress, bool]
    verdicts: tuple[VerdictSnapshot, ...]
    probes: Mapping[tuple[str, str], int]
    probe_lag_s: float
    interfaces: Mapping[str, str]
    flow_capacity: int
    reload: ReloadSnapshot = ReloadSnapshot()
    overrides: tuple[OverrideSnapshot, ...] = ()
    vip_overrides: Mapping[IPAddress, VipState] = field(default_factory=dict)
    neighbors: tuple[NeighborSnapshot, ...] = ()
    bfd: BfdSnapshot = BfdSnapshot()
    at: float = 0.0
    start: StartSnapshot = StartSnapshot()
    sharing: SharingSnapshot = SharingSnapshot()
    vip_why: Mapping[IPAddress, str] = field(default_factory=dict)
    vip_told: Mapping[IPAddress, ToldSnapshot] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
