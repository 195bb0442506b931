"""Which BGP neighbors BFD is to watch, by the configuration, and what it shows of them. Pure.

Must not know: how BFD works, or what follows from what it finds.
"""

from __future__ import annotations

from vc5py.bfd.messages import Wish
from vc5py.bfd.protocol import Settings
from vc5py.bfd.supervisor import Supervisor
from vc5py.model import IPAddress, Neighbor, RhiConfig
from vc5py.snapshot import BfdSessionSnapshot, BfdSnapshot

# What the kernel drops by itself, beside the reasons of `bfd.packet.Reject`.
FILTERED = "filtered"


def watch(supervisor: Supervisor, rhi: RhiConfig | None, own: IPAddress) -> None:
    """From now on the neighbors that say so. `own` is where BGP sessions of its IP version come from."""
    neighbors = rhi.neighbors if rhi is not None else ()
    wishes = {n.address: wish for n in neighbors if (wish := _wish(n, own)) is not None}
    supervisor.configure(wishes, rhi.hold_s if rhi is not None else 0.0)


def _wish(neighbor: Neighbor, own: IPAddress) -> Wish | None:
    if neighbor.bfd is None:
        return None
    sources = (source for source in (neighbor.source, own) if source is not None)
    source = next((str(source) for source in sources if source.version == neighbor.address.version), None)
    settings = Settings(neighbor.bfd.interval_ms * 1000, neighbor.bfd.multiplier)
    return Wish(str(neighbor.address), source, settings)


def shown(supervisor: Supervisor, at: float, clock: float) -> BfdSnapshot:
    """What is known; it is now `at` as a Unix timestamp, and `clock` by the monotonic clock."""
    sessions = tuple(
        BfdSessionSnapshot(
            neighbor, status.state, status.reachable, at - clock + status.since, status.transitions
        )
        if status is not None
        else BfdSessionSnapshot(neighbor, "unknown", True, at, 0)
        for neighbor, status in supervisor.sessions().items()
    )
    report = supervisor.report()
    rejected = {**report.rejects, FILTERED: report.dropped} if sessions else {}
    return BfdSnapshot(sessions, rejected, report.late_s, report.scheduling)
