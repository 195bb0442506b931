"""The director's state and the edges' counters put together into a snapshot.

`Readings` holds what has to be read at one moment, all of it frozen; `snapshot` is pure and may take long
with many reals, so it is called in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import vc5py
from vc5py import overriding
from vc5py.core import director
from vc5py.core.director import BackendStatus, VirtualService
from vc5py.dataplane import abi
from vc5py.dataplane.base import Counters, Traffic
from vc5py.dataplane.takeover import Start
from vc5py.model import IPAddress
from vc5py.snapshot import (
    BfdSnapshot,
    NeighborSnapshot,
    RealSnapshot,
    ReloadSnapshot,
    ServiceSnapshot,
    SharingSnapshot,
    Snapshot,
    StartSnapshot,
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


@dataclass(frozen=True, slots=True)
class Readings:
    """`now` and `at` are the same moment on the director's clock and as a Unix timestamp."""

    state: director.State
    counters: Counters
    probes: Mapping[tuple[str, str], int]
    probe_lag_s: float
    sessions: Mapping[IPAddress, bool]
    neighbors: tuple[NeighborSnapshot, ...]
    bfd: BfdSnapshot
    interfaces: Mapping[str, str]
    flow_capacity: int
    reload: ReloadSnapshot
    start: Start | None
    sharing: SharingSnapshot
    now: float
    at: float

    def snapshot(self) -> Snapshot:
        state, verdicts = self.state, self.counters.verdicts
        return Snapshot(
            version=vc5py.__version__,
            services=tuple(self._service(virtual) for virtual in state.services.values()),
            vips={id_.vip: id_.vip in state.desired.announce for id_ in state.services},
            sessions=self.sessions,
            verdicts=tuple(
                VerdictSnapshot(v.name, v.action, verdicts.get(v.name, 0)) for v in abi.verdicts()
            ),
            probes=self.probes,
            probe_lag_s=self.probe_lag_s,
            interfaces=self.interfaces,
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
            status.why,
            self.at - (self.now - status.since),
        )
