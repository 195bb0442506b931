"""The director's state and the edges' counters put together into a snapshot.

`Readings` holds what has to be read at one moment, all of it frozen; `snapshot` is pure and may take long
with many reals, so it is called in a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import vc5py
from vc5py import overriding
from vc5py.core import director
from vc5py.core.director import BackendStatus, VirtualService
from vc5py.dataplane import abi
from vc5py.dataplane.base import Counters, Traffic
from vc5py.dataplane.takeover import Start
from vc5py.model import BackendId, IPAddress, Neighbor
from vc5py.snapshot import (
    BfdSnapshot,
    NeighborSnapshot,
    RealSnapshot,
    ReloadSnapshot,
    ServiceSnapshot,
    SharingSnapshot,
    Snapshot,
    StartSnapshot,
    ToldSnapshot,
    VerdictSnapshot,
)

_NOTHING = Traffic(0, 0)


def _start(start: Start | None) -> StartSnapshot:
    if start is None:
        return StartSnapshot()
    if start.carried is None:
        return StartSnapshot(str(start.kind), str(start))
    carried = start.carried
    return StartSnapshot(
        str(start.kind), str(start), carried.flows, carried.without_backend, carried.without_room
    )


class Reasons:
    """What probes say of reals that stay down, where that is no longer what the director's state has: that
    stays as it is then, so that a changed reason costs the same however many reals there are.
    """

    def __init__(self) -> None:
        self._last: dict[BackendId, str] = {}

    def note(self, state: director.State, event: director.Probed) -> None:
        """After the state has taken in the event."""
        backend = state.backend(event.backend)
        if backend is None or backend.up:
            self._last.pop(event.backend, None)
        elif not event.ok and backend.fails(event.check):
            said = f"{event.check.name}: {event.why}"
            if said == backend.why:
                self._last.pop(event.backend, None)
            else:
                self._last[event.backend] = said

    def current(self) -> Mapping[BackendId, str]:
        return self._last.copy()


@dataclass(frozen=True, slots=True)
class Readings:
    """`now` and `at` are the same moment on the director's clock and as a Unix timestamp. `reasons` stand
    over those that the state has.
    """

    state: director.State
    reasons: Mapping[BackendId, str]
    counters: Counters
    probes: Mapping[tuple[str, str], int]
    probe_lag_s: float
    sessions: Mapping[IPAddress, bool]
    neighbors: tuple[NeighborSnapshot, ...]
    told: Mapping[IPAddress, int]
    bfd: BfdSnapshot
    interfaces: Mapping[str, str]
    warnings: tuple[str, ...]
    flow_capacity: int
    reload: ReloadSnapshot
    start: Start | None
    sharing: SharingSnapshot
    now: float
    at: float

    def snapshot(self) -> Snapshot:
        state, verdicts = self.state, self.counters.verdicts
        vips = {id_.vip: id_.vip in state.desired.announce for id_ in state.services}
        return Snapshot(
            version=vc5py.__version__,
            services=tuple(self._service(virtual) for virtual in state.services.values()),
            vips=vips,
            vip_why=state.why_withdrawn(vips, self.now),
            vip_told=self._told(vips),
            sessions=self.sessions,
            verdicts=tuple(
                VerdictSnapshot(v.name, v.action, verdicts.get(v.name, 0)) for v in abi.verdicts()
            ),
            probes=self.probes,
            probe_lag_s=self.probe_lag_s,
            interfaces=self.interfaces,
            warnings=self.warnings,
            flow_capacity=self.flow_capacity,
            reload=self.reload,
            overrides=overriding.shown(state.overrides),
            vip_overrides=state.overrides.vips,
            neighbors=self.neighbors,
            sharing=self.sharing,
            bfd=self.bfd,
            at=self.at,
            start=_start(self.start),
        )

    def _told(self, vips: Iterable[IPAddress]) -> dict[IPAddress, ToldSnapshot]:
        """Neighbors that admit the same VIPs are asked once: they are many, and so are VIPs."""
        rhi = self.state.config.rhi
        alike: dict[object, list[Neighbor]] = {}
        for neighbor in rhi.neighbors if rhi else ():
            alike.setdefault((neighbor.families, neighbor.accept, neighbor.reject), []).append(neighbor)
        return {
            vip: ToldSnapshot(
                self.told.get(vip, 0), sum(len(group) for group in alike.values() if group[0].admits(vip))
            )
            for vip in vips
        }

    def _service(self, virtual: VirtualService) -> ServiceSnapshot:
        statuses = virtual.statuses
        tiers = [status.tier for status in statuses if status.serving and not status.sorry]
        return ServiceSnapshot(
            virtual.id,
            virtual.healthy,
            virtual.service.need,
            tuple(self._real(status) for status in statuses),
            tuple(f"{port}/{protocol}" for port, protocol in virtual.state.ports),
            max(tiers, default=None),
            any(status.sorry and status.serving for status in statuses),
            virtual.count,
        )

    def _real(self, status: BackendStatus) -> RealSnapshot:
        traffic = self.counters.traffic.get(status.id, _NOTHING)
        return RealSnapshot(
            status.id.real,
            status.health.is_up,
            traffic.packets,
            traffic.bytes,
            self.counters.flows.get(status.id, 0),
            str(status.health),
            status.admin,
            status.weight,
            status.tier,
            status.sorry,
            status.serving,
            status.damped,
            self.reasons.get(status.id, status.why),
            self.at - (self.now - status.since),
        )
