"""The kernel's data plane: makes what is in the maps equal to what is wanted, whatever an earlier run left.

Knows the order of stores that keeps packets flowing while they change, and leaves what is stored to others:
`placing` the backends, `switching` the tables, `keys` the keys, `settings` what holds for all. Must not know:
how programs are attached, how neighbours are found out. Order matters: a record is complete before anything
points at it, a table is switched before a backend that left it goes down, and what was freed rests a moment
before it is used again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from vc5py.core.identity import backend_identity, service_identity
from vc5py.dataplane import abi, counting, flows
from vc5py.dataplane.allocate import RunAllocator
from vc5py.dataplane.base import Counters, Neighbour
from vc5py.dataplane.housekeeper import Freed, Housekeeper
from vc5py.dataplane.installed import Installed, room_for
from vc5py.dataplane.keys import Keys
from vc5py.dataplane.maps import Maps
from vc5py.dataplane.placing import Placing
from vc5py.dataplane.policy import Policy
from vc5py.dataplane.settings import Settings
from vc5py.dataplane.sweep import Subject
from vc5py.dataplane.switching import Switching
from vc5py.dataplane.tables import TableArena, Tables
from vc5py.dataplane.ticks import TickClock
from vc5py.errors import DataplaneError
from vc5py.model import (
    BackendId,
    BackendState,
    Config,
    Desired,
    IPAddress,
    Scheduling,
    ServiceState,
    VirtualServiceId,
)

QUARANTINE_S = 1.0


class KernelDataplane:
    """Implements `base.Dataplane` over open maps; adopts whatever an earlier run left in them."""

    def __init__(
        self,
        maps: Maps,
        ticks: TickClock,
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._maps = maps
        self._ticks = ticks
        self._policy = policy = policy or Policy()
        self._clock = clock
        self._indices = RunAllocator(min(maps.sizes.services, abi.MAX_SERVICES), "services")
        self._tables = TableArena(maps.slots, QUARANTINE_S, policy.settle_s)
        patience = ticks.ticks(policy.settle_s)
        self._housekeeper = Housekeeper(maps, self._tables, QUARANTINE_S, policy.pace, patience)
        self._placing = Placing(maps, self._housekeeper, QUARANTINE_S)
        self._switching = Switching(
            maps, self._tables, shared=policy.shared, lossy=lambda now: now < self._lossy_until
        )
        self._keys = Keys(maps)
        self._settings = Settings(maps, ticks)
        self._services: dict[int, Installed] = {}  # by identity
        self._identities: dict[VirtualServiceId, int] = {}  # of those wanted last
        self._applied: tuple[ServiceState, ...] = ()  # what is known to be in the maps
        self._lossy_until = float("-inf")
        self._settings.set(policy)
        self._adopt()
        self._look_at_occupancy(clock())

    def set_policy(self, config: Config) -> None:
        """Timeouts and what becomes of fragments, from now on."""
        policy = replace(self._policy, timeouts=config.timeouts, drop_fragments=config.drop_fragments)
        if policy != self._policy:
            self._policy = policy
            self._settings.set(policy)
            self._housekeeper.start_again()

    # What an earlier run left

    def _adopt(self) -> None:
        records = self._maps.services
        for index in np.flatnonzero(records["identity"]):
            row = records[index]
            word = int(row["backends"])
            base, room = word & 0xFFFFFFFF, word >> abi.BACKEND_ROOM_SHIFT
            tables = Tables(int(row["table"]), int(row["previous"]))
            self._indices.reserve(int(index), 1)
            service = Installed(int(index), base, room, tables=tables, served=True)
            service.promised = self._tables.adopt(tables, self._clock())
            service.locals = self._placing.adopt(base, room)
            self._services[int(row["identity"])] = service
        self._purge_strays()

    def rest(self) -> None:
        """Takes every backend down and keeps all else: after the next start none is used before its checks
        succeed, and flows then go on where they went. Nothing may be attached any more.
        """
        self._maps.backends["link"] &= np.uint64(~(abi.BACKEND_UP << 48) & (1 << 64) - 1)

    def _purge_strays(self) -> None:
        """Flows whose place was still resting when the earlier run ended: it is nobody's now."""
        known = [flows.owner(s.index, local) for s in self._services.values() for local in s.locals.values()]
        flows.purge_all_but(self._maps.flows, np.array(known, dtype=np.uint64))

    def _find(self, backend: BackendId) -> int | None:
        place = self._placing.places.get(backend)
        if place is not None or not self._services:
            return place.record if place is not None else None
        service = self._services.get(self._identity(backend.virtual_service))
        if service is None:
            return None
        local = service.locals.get(backend_identity(backend))
        return None if local is None else service.base + local

    def _identity(self, service: VirtualServiceId) -> int:
        return self._identities.get(service) or service_identity(service)

    def was_up(self, backend: BackendId) -> bool:
        index = self._find(backend)
        return index is not None and self._placing.records.is_up(index)

    def mark_of(self, backend: BackendId) -> int | None:
        index = self._find(backend)
        return None if index is None else abi.PROBE_MARK | index

    # Making the maps equal to what is wanted

    def apply(self, desired: Desired) -> None:
        """Looks only at services that aren't the very values of the last call. One that is refused keeps none
        of the others from changing; but nothing is removed then, as what goes may have what it is to get.
        """
        before, self._applied = self._applied, ()  # until all is done
        changed = [(new, old) for new, old in zip_longest(desired.services, before) if new is not old]
        self._apply_each([state for state, _ in changed if state is not None])
        if not before or any(new is None or old is None or new.id != old.id for new, old in changed):
            self._remove_all_but(desired.services)
        self._keys.tidy(self._services.values())
        self._applied = desired.services

    def _apply_each(self, states: Sequence[ServiceState]) -> None:
        refused: dict[VirtualServiceId, DataplaneError] = {}
        for state in states:
            try:
                self._apply_changed(state)
            except DataplaneError as error:
                refused[state.id] = error
        if refused:
            first, why = next(iter(refused.items()))
            others = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
            raise DataplaneError(f"{why} service={first}{others}") from why

    def _apply_changed(self, state: ServiceState) -> None:
        identity = self._identities.setdefault(state.id, self._identity(state.id))
        installed = self._services.get(identity)
        if installed is None or installed.torn or installed.state != state:
            self._apply_service(identity, state)

    def _remove_all_but(self, wanted: Sequence[ServiceState]) -> None:
        self._identities = {state.id: self._identity(state.id) for state in wanted}
        kept = set(self._identities.values())
        for identity in [identity for identity in self._services if identity not in kept]:
            self._remove_service(identity)

    def _apply_service(self, identity: int, state: ServiceState) -> None:
        service = self._services.get(identity) or self._new_service(identity, state)
        before: dict[BackendId, BackendState] = {}
        if service.state is not None and not service.torn:
            before = {b.id: b for b in service.state.backends}
        service.torn = True
        known = service.names
        named = [(b, known.get(b.id) or backend_identity(b.id)) for b in state.backends]
        self._placing.make_room(service, named, self._clock())
        changed = [(b, name) for b, name in named if before.get(b.id) != b] if before else named
        names = {b.id: name for b, name in named}
        service.names = known | names
        self._placing.place(identity, service, changed)
        self._switching.switch(service, state, named, self._clock())
        self._placing.take_down(service, changed)
        self._keys.set(service, state)
        self._placing.drop(identity, service, names, self._clock())
        service.state, service.torn = state, False

    def _new_service(self, identity: int, state: ServiceState) -> Installed:
        room = room_for(len(state.backends))
        base = self._placing.take_run(room)
        try:
            service = Installed(self._indices.take(1), base, room)
        except DataplaneError:
            self._placing.give_back(base, room)
            raise
        self._services[identity] = service
        record = self._maps.services[service.index : service.index + 1]
        record["table"] = 0
        record["previous"] = 0
        record["flags"] = abi.SCHEDULING_FLAGS[state.scheduling]
        record["backends"] = service.base | room << abi.BACKEND_ROOM_SHIFT
        record["identity"] = identity
        return service

    def _remove_service(self, identity: int) -> None:
        service = self._services.pop(identity)
        self._keys.remove(service)
        self._placing.drop(identity, service, {}, self._clock())
        record = self._maps.services[service.index : service.index + 1]
        record["identity"] = 0
        record["table"] = 0
        record["previous"] = 0
        now = self._clock()
        self._switching.leave(service, now)
        self._placing.retire_run(service, now)
        self._housekeeper.retire_service(service.index, now)

    def disturb(self, strays: NDArray[np.uint32]) -> None:
        """Flows of other balancers have come into slots that name other backends: see `Switching`."""
        self._switching.disturb(self._services.values(), strays, self._clock())

    def set_neighbour(self, real: IPAddress, neighbour: Neighbour | None) -> None:
        self._placing.set_neighbour(real, neighbour)

    # Housekeeping

    def maintain(self, now: float) -> None:
        self._tables.maintain(now)
        self._look_at_occupancy(now)
        by_load = [
            s for s in self._services.values() if s.state and s.state.scheduling is Scheduling.LEAST_CONNS
        ]
        freed = self._housekeeper.work(
            now, self._ticks.now(), self._subjects, [service.index for service in by_load]
        )
        for service in by_load:
            self._placing.weigh(service, self._housekeeper.load_of(service.index))
        self._take_back(freed)
        self._placing.release(now)

    def busy(self) -> bool:
        return self._housekeeper.busy

    def _take_back(self, freed: Freed) -> None:
        if freed.locals:
            by_index = {service.index: service for service in self._services.values()}
            for index, local in freed.locals:
                if index in by_index:
                    self._placing.free(by_index[index], local)
        for index in freed.indices:
            self._indices.give_back(index, 1)

    def _subjects(self) -> list[Subject]:
        return self._switching.subjects(self._services.values())

    def _look_at_occupancy(self, now: float) -> None:
        if self._settings.look_at_occupancy():
            self._lossy_until = now + self._policy.timeouts.established_s

    # Readings

    def counters(self) -> Counters:
        return counting.read(self._maps, self._housekeeper, self._placing.places)
