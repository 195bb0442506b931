"""Where backends are in the maps: a run of records for each service, a place in it for each backend.

Knows records, who has which, and where the reals are; nothing of tables nor keys. A flow's entry names its
backend by the place within the service's run, so that a run may move and a place may not. Invariant: a place
that was freed rests until no flow names it, and is its backend's again should that come back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vc5py.dataplane import abi
from vc5py.dataplane.allocate import Quarantine, RunAllocator
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.counting import Place
from vc5py.dataplane.housekeeper import Housekeeper
from vc5py.dataplane.installed import Installed, room_for
from vc5py.dataplane.maps import Maps
from vc5py.dataplane.records import Records
from vc5py.model import BackendId, BackendState, IPAddress

Named = tuple[BackendState, int]  # with its identity


class Placing:
    """`places`: of the backends that were wanted last."""

    def __init__(self, maps: Maps, housekeeper: Housekeeper, quarantine_s: float) -> None:
        self.records = Records(maps)
        self.places: dict[BackendId, Place] = {}
        self._services = maps.services
        self._housekeeper = housekeeper
        self._runs = RunAllocator(min(maps.sizes.backends, abi.MAX_BACKENDS), "backends")
        self._free_runs = Quarantine(quarantine_s)
        self._by_real: dict[IPAddress, dict[tuple[int, int], Installed]] = defaultdict(dict)

    # Runs

    def adopt(self, base: int, room: int) -> dict[int, int]:
        """A run that an earlier one left: the places of the backends in it, by identity."""
        self._runs.reserve(base, room)
        identities = self.records.identity[base : base + room].tolist()
        return {identity: local for local, identity in enumerate(identities) if identity}

    def take_run(self, room: int) -> int:
        """The start of a run of empty records. DataplaneError where there is none."""
        base = self._runs.take(room)
        self.records.clear(base, room)
        return base

    def give_back(self, base: int, room: int) -> None:
        """A run to which nothing has led."""
        self._runs.give_back(base, room)

    def retire_run(self, service: Installed, now: float) -> None:
        self._free_runs.add(service.base, service.room, now)

    def release(self, now: float) -> None:
        """Runs that have rested."""
        for start, length in self._free_runs.release(now):
            self._runs.give_back(start, length)

    def make_room(self, service: Installed, named: Sequence[Named], now: float) -> None:
        """Gives a service that outgrows its run a longer one; flows name places within it, and stay."""
        needed = len({name for _, name in named} | service.locals.keys() | service.resting.keys())
        if needed <= service.room:
            return
        room = room_for(needed)
        base = self.take_run(room)
        self.records.copy(service.base, base, service.room)
        self.retire_run(service, now)
        service.base, service.room = base, room
        for backend, name in service.names.items():
            local = service.locals[name]
            self.places[backend] = Place(base + local, service.index, local)
        self._services["backends"][service.index] = base | room << abi.BACKEND_ROOM_SHIFT

    # Places

    def place(self, identity: int, service: Installed, backends: Sequence[Named]) -> None:
        """Gives backends their records; one that is to go up is up before any table names it."""
        taken = {*service.locals.values(), *service.resting.values()}
        free = iter([local for local in range(service.room) if local not in taken])
        for backend, name in backends:
            if name in service.resting:
                service.locals[name] = service.resting.pop(name)
                self._housekeeper.revive((service.index, service.locals[name]))
            elif name not in service.locals:
                service.locals[name] = next(free)
                self.records.begin(service.base + service.locals[name])
            local, real = service.locals[name], backend.id.real
            index = service.base + local
            self.places[backend.id] = Place(index, service.index, local)
            self.records.write_forwarding(index, backend, name)
            self._remember_neighbour(real, index)
            self._by_real[real][identity, name] = service
            if backend.up:
                self.records.write_link(index, True, real)

    def take_down(self, service: Installed, backends: Sequence[Named]) -> None:
        """Those that aren't to be up: no table names them any more."""
        for backend, name in backends:
            if not backend.up:
                self.records.write_link(service.base + service.locals[name], False, backend.id.real)

    def drop(self, identity: int, service: Installed, wanted: dict[BackendId, int], now: float) -> None:
        """Takes all other backends off a service: no packet goes there, their flows are hashed again."""
        kept = set(wanted.values())
        for name in [name for name in service.locals if name not in kept]:
            local = service.locals.pop(name)
            self.records.take_off(service.base + local)
            service.resting[name] = local
            self._housekeeper.retire((service.index, local), now)
        for backend, name in service.names.items():
            if name not in kept:
                self._forget(backend.real, (identity, name))
                del self.places[backend]
        service.names = wanted

    def _forget(self, real: IPAddress, backend: tuple[int, int]) -> None:
        holders = self._by_real[real]
        holders.pop(backend, None)
        if not holders:
            del self._by_real[real]

    def free(self, service: Installed, local: int) -> None:
        """No flow names a place any more that was freed."""
        record = service.base + local
        del service.resting[int(self.records.identity[record])]
        self.records.identity[record] = 0

    # Neighbours

    def _remember_neighbour(self, real: IPAddress, index: int) -> None:
        """What an earlier run knew of the real's place is good until something better is known."""
        if real not in self.records.neighbours:
            neighbour = self.records.neighbour_at(index, real)
            if neighbour is not None:
                self.set_neighbour(real, neighbour)

    def set_neighbour(self, real: IPAddress, neighbour: Neighbour | None) -> None:
        neighbours = self.records.neighbours
        if neighbour == neighbours.get(real):
            return
        if neighbour is None:
            del neighbours[real]
        else:
            neighbours[real] = neighbour
        for (_, name), service in self._by_real.get(real, {}).items():
            index = service.base + service.locals[name]
            self.records.write_link(index, self.records.is_up(index), real)

    # Loads

    def weigh(self, service: Installed, counts: NDArray[np.float64]) -> None:
        """Tells a service that goes by the number of connections how loaded its backends are. `counts`: flows
        by place; may end before the last.
        """
        loads = [
            (backend, local, float(counts[local] if local < len(counts) else 0) / max(1, backend.weight))
            for backend, local in service.backends()
        ]
        scale = max(1.0, max((load for _, _, load in loads), default=0) / 0xFFFF)
        for backend, local, load in loads:
            self.records.write_load(service.base + local, backend, int(load / scale))
