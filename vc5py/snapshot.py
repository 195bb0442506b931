"""What the balancer shows of itself at one moment: one frozen value for metrics, console and CLI.

Made by `readings` alone; whoever shows it knows nothing of where the numbers come from. Times are Unix
timestamps in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vc5py.model import AdminState, IPAddress, VirtualServiceId


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
    `sorry`: the sorry reals do.
    """

    id: VirtualServiceId
    healthy: bool
    need: int
    reals: tuple[RealSnapshot, ...]
    ports: tuple[str, ...] = ()
    serving_tier: int | None = None
    sorry: bool = False


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
class OverrideSnapshot:
    """What was commanded at run time of a real, in one service or (None) in all."""

    real: IPAddress
    service: str | None
    state: AdminState | None
    weight: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`vips` says whether each VIP is to be announced, `sessions` whether BGP with each peer is up,
    `probes` counts by (check type, outcome), `interfaces` gives each one's XDP mode, `at` is now."""

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
    at: float = 0.0
