"""What the balancer shows of itself at one moment: one frozen value for metrics, console and CLI.

Made by `app` alone; whoever shows it knows nothing of where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vc5py.model import IPAddress, VirtualServiceId


@dataclass(frozen=True, slots=True)
class RealSnapshot:
    """`packets` and `bytes` (frames as received) were sent to it; `flows` are live table entries."""

    address: IPAddress
    up: bool
    packets: int
    bytes: int
    flows: int


@dataclass(frozen=True, slots=True)
class ServiceSnapshot:
    id: VirtualServiceId
    healthy: bool
    need: int
    reals: tuple[RealSnapshot, ...]


@dataclass(frozen=True, slots=True)
class VerdictSnapshot:
    name: str
    action: str
    packets: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`vips` says whether each VIP is to be announced, `sessions` whether BGP with each peer is up,
    `probes` counts by (check type, outcome), `interfaces` gives each one's XDP mode."""

    version: str
    services: tuple[ServiceSnapshot, ...]
    vips: Mapping[IPAddress, bool]
    sessions: Mapping[IPAddress, bool]
    verdicts: tuple[VerdictSnapshot, ...]
    probes: Mapping[tuple[str, str], int]
    probe_lag_s: float
    interfaces: Mapping[str, str]
    flow_capacity: int
