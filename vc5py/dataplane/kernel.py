"""The kernel's data plane: puts services, backends, tables and neighbours into the maps.

Knows the maps' meaning and the order of stores that keeps packets flowing while they change; not how
programs are attached nor how neighbours are found out. Order matters: a record is complete before anything
points at it, a table is switched before a backend that left it goes down, and what was freed rests a moment
before it is used again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from vc5py.core.identity import backend_identity, real_identity, service_identity
from vc5py.dataplane import abi, counting, flows
from vc5py.dataplane.allocate import Quarantine, RunAllocator
from vc5py.dataplane.base import Counters, Neighbour
from vc5py.dataplane.counting import Place
from vc5py.dataplane.housekeeper import Housekeeper
from vc5py.dataplane.maps import Maps
from vc5py.dataplane.policy import CROWDED, ICMP_PER_SECOND, LOSSY, OCCUPANCY_SAMPLE, Policy, timeouts_s
from vc5py.dataplane.records import Records
from vc5py.dataplane.servicemap import ServiceKey, ServiceMap
from vc5py.dataplane.sweep import Subject
from vc5py.dataplane.tables import NO_TABLES, Members, TableArena, Tables
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
    Unknown,
    VirtualServiceId,
)

QUARANTINE_S = 1.0
MIN_ROOM = 4

_Named = tuple[BackendState, int]  # with its identity

_real_identity = lru_cache(maxsize=1 << 16)(real_identity)


def room_for(backends: int) -> int:
    """How many records a service of that many backends gets, so that it can grow a little in place."""
    return max(MIN_ROOM, 1 << (backends - 1).bit_length())


@dataclass(slots=True)
class _Installed:
    """A virtual service as it is in the maps. `torn`: the last change of it has not come to its end."""

    index: int
    base: int
    room: int
    locals: dict[int, int] = field(default_factory=dict)  # backend identity -> local index
    resting: dict[int, int] = field(default_factory=dict)  # likewise, freed but not yet usable
    names: dict[BackendId, int] = field(default_factory=dict)  # identities of what was wanted last
    tables: Tables = NO_TABLES
    served: bool = False  # not new: there may be flows, even where there is no table
    shape: tuple[Members, int] | None = None  # what the tables were made of
    keys: frozenset[ServiceKey] = frozenset()
    state: ServiceState | None = None
    torn: bool = True

    def backends(self) -> list[tuple[BackendState, int]]:
        """What is wanted of each backend, and its local index."""
        return [(b, self.locals[self.names[b.id]]) for b in self.state.backends] if self.state else []


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
        self._runs = RunAllocator(min(maps.sizes.backends, abi.MAX_BACKENDS), "backends")
        self._tables = TableArena(maps.slots, QUARANTINE_S, policy.settle_s)
        self._housekeeper = Housekeeper(maps, self._tables, QUARANTINE_S, policy.pace)
        self._free_runs = Quarantine(QUARANTINE_S)
        self._records = Records(maps, policy.sources)
        self._services: dict[int, _Installed] = {}  # by identity
        self._identities: dict[VirtualServiceId, int] = {}  # of those wanted last
        self._places: dict[BackendId, Place] = {}  # of those wanted last
        self._applied: tuple[ServiceState, ...] = ()  # what is known to be in the maps
        self._by_real: dict[IPAddress, set[tuple[int, int]]] = defaultdict(set)  # identities
        self._maps4 = ServiceMap(maps.services4)
        self._maps6 = ServiceMap(maps.services6)
        self._holders: dict[ServiceKey, _Installed] = {}
        self._stray_keys = True
        self._lossy_until = float("-inf")
        maps.settings["icmp_per_jiffy"] = max(1, ICMP_PER_SECOND // ticks.hz)
        self._set_timeouts()
        self._adopt()
        self._look_at_occupancy(clock())

    def set_policy(self, config: Config) -> None:
        """Timeouts and what becomes of fragments, from now on."""
        policy = replace(self._policy, timeouts=config.timeouts, drop_fragments=config.drop_fragments)
        if policy != self._policy:
            self._policy = policy
            self._set_timeouts()
            self._housekeeper.start_again()

    def _set_timeouts(self) -> None:
        for state, seconds in timeouts_s(self._policy.timeouts).items():
            self._maps.settings["timeout"][0, state] = self._ticks.ticks(seconds)
        self._set_setting(abi.SETTING_DROP_FRAGMENTS, self._policy.drop_fragments)

    def _set_setting(self, flag: int, on: bool) -> None:
        flags = int(self._maps.settings["flags"][0])
        self._maps.settings["flags"] = flags | flag if on else flags & ~flag

    # What an earlier run left

    def _adopt(self) -> None:
        records = self._maps.services
        for index in np.flatnonzero(records["identity"]):
            row = records[index]
            word = int(row["backends"])
            base, room = word & 0xFFFFFFFF, word >> abi.BACKEND_ROOM_SHIFT
            tables = Tables(int(row["table"]), int(row["previous"]))
            self._indices.reserve(int(index), 1)
            self._runs.reserve(base, room)
            self._tables.adopt(tables, self._clock())
            service = _Installed(int(index), base, room, tables=tables, served=True)
            identities = self._maps.backends["identity"][base : base + room].tolist()
            service.locals = {identity: local for local, identity in enumerate(identities) if identity}
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
        place = self._places.get(backend)
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
        return index is not None and self._records.is_up(index)

    def mark_of(self, backend: BackendId) -> int | None:
        index = self._find(backend)
        return None if index is None else abi.PROBE_MARK | index

    # Making the maps equal to what is wanted

    def apply(self, desired: Desired) -> None:
        """Looks only at services that aren't the very values of the last call."""
        before, self._applied = self._applied, ()  # until all is done
        changed = [(new, old) for new, old in zip_longest(desired.services, before) if new is not old]
        for state, _ in changed:
            if state is not None:
                self._apply_changed(state)
        if not before or any(new is None or old is None or new.id != old.id for new, old in changed):
            self._remove_all_but(desired.services)
        if self._stray_keys:
            self._remove_stray_keys()
        self._applied = desired.services

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
        needed = len({name for _, name in named} | service.locals.keys() | service.resting.keys())
        if needed > service.room:
            self._move(service, room_for(needed))
        changed = [(b, name) for b, name in named if before.get(b.id) != b] if before else named
        names = {b.id: name for b, name in named}
        service.names = known | names
        self._place(identity, service, changed)
        self._switch_table(service, state, named)
        for backend, name in changed:
            if not backend.up:
                self._records.write_link(service.base + service.locals[name], False, backend.id.real)
        self._set_keys(service, state)
        self._drop_backends(identity, service, names)
        service.state, service.torn = state, False

    def _new_service(self, identity: int, state: ServiceState) -> _Installed:
        room = room_for(len(state.backends))
        base = self._runs.take(room)
        try:
            service = _Installed(self._indices.take(1), base, room)
        except DataplaneError:
            self._runs.give_back(base, room)
            raise
        self._records.clear(base, room)
        self._services[identity] = service
        record = self._maps.services[service.index : service.index + 1]
        record["table"] = 0
        record["previous"] = 0
        record["flags"] = abi.SCHEDULING_FLAGS[state.scheduling]
        record["backends"] = service.base | room << abi.BACKEND_ROOM_SHIFT
        record["identity"] = identity
        return service

    def _move(self, service: _Installed, room: int) -> None:
        """Gives a service that has outgrown its run a longer one; flows name local indices and stay."""
        base = self._runs.take(room)
        self._records.clear(base, room)
        self._records.copy(service.base, base, service.room)
        self._free_runs.add(service.base, service.room, self._clock())
        service.base, service.room = base, room
        for backend, name in service.names.items():
            local = service.locals[name]
            self._places[backend] = Place(base + local, service.index, local)
        self._maps.services["backends"][service.index] = base | room << abi.BACKEND_ROOM_SHIFT

    def _place(self, identity: int, service: _Installed, backends: Sequence[_Named]) -> None:
        """Gives backends their records; one that is to go up is up before any table names it."""
        taken = {*service.locals.values(), *service.resting.values()}
        free = iter([local for local in range(service.room) if local not in taken])
        for backend, name in backends:
            if name in service.resting:
                service.locals[name] = service.resting.pop(name)
                self._housekeeper.revive((service.index, service.locals[name]))
            elif name not in service.locals:
                service.locals[name] = next(free)
                self._records.begin(service.base + service.locals[name])
            local, real = service.locals[name], backend.id.real
            index = service.base + local
            self._places[backend.id] = Place(index, service.index, local)
            self._records.write_forwarding(index, backend, name)
            self._remember_neighbour(real, index)
            self._by_real[real].add((identity, name))
            if backend.up:
                self._records.write_link(index, True, real)

    def _remember_neighbour(self, real: IPAddress, index: int) -> None:
        """What an earlier run knew of the real's place is good until something better is known."""
        if real not in self._records.neighbours:
            neighbour = self._records.neighbour_at(index)
            if neighbour is not None:
                self.set_neighbour(real, neighbour)

    def _switch_table(self, service: _Installed, state: ServiceState, named: Sequence[_Named]) -> None:
        members: Members = tuple(
            (service.locals[name], _real_identity(b.id.real), b.weight)
            for b, name in named
            if b.up and b.weight
        )
        flags = self._maps.services["flags"]
        was, will = int(flags[service.index]), abi.SCHEDULING_FLAGS[state.scheduling]
        flags[service.index] = was | will & abi.SERVICE_BY_FLOW  # not less before the slots say so
        by_flow = bool(was & ~will & abi.SERVICE_BY_FLOW)
        if (members, len(state.backends)) != service.shape or by_flow:
            draining = any(b.up for b in state.backends)
            self._exchange_table(service, members, len(state.backends), by_flow, draining)
        flags[service.index] = will

    def _exchange_table(
        self, service: _Installed, members: Members, reals: int, by_flow: bool, draining: bool
    ) -> None:
        """`by_flow`: until now the slots have said nothing of flows. `draining`: somebody is up, so that a
        table of nobody still leads packets of connections to where its slots led before.
        """
        now, before = self._clock(), service.tables
        tables = NO_TABLES
        if members or (draining and before.current):
            tables = self._tables.acquire(
                members,
                reals,
                before,
                now,
                remember=now < self._lossy_until,
                unsure=by_flow or ((service.served or self._policy.shared) and not before.current),
            )
        service.served = True
        record = self._maps.services[service.index : service.index + 1]
        if tables.previous:  # before the slots that refer to it
            record["previous"] = tables.previous
        record["table"] = tables.current
        record["previous"] = tables.previous
        self._tables.release(before, now)
        service.tables, service.shape = tables, (members, reals)

    def _drop_backends(self, identity: int, service: _Installed, wanted: dict[BackendId, int]) -> None:
        """Takes backends off a service: no packet goes there any more, their flows are hashed again."""
        kept = set(wanted.values())
        for name in [name for name in service.locals if name not in kept]:
            local = service.locals.pop(name)
            self._records.take_off(service.base + local)
            service.resting[name] = local
            self._housekeeper.retire((service.index, local), self._clock())
        for backend, name in service.names.items():
            if name not in kept:
                self._by_real[backend.real].discard((identity, name))
                del self._places[backend]
        service.names = wanted

    # The keys that lead packets to a service

    def _map_of(self, vip: IPAddress) -> ServiceMap:
        return self._maps4 if vip.version == 4 else self._maps6

    def _set_keys(self, service: _Installed, state: ServiceState) -> None:
        vip = state.id.vip
        keys = frozenset(ServiceKey(vip, port, protocol.number) for port, protocol in state.ports)
        places = self._map_of(vip)
        flags = abi.VIP_PASS_UNKNOWN if state.unknown is Unknown.PASS else 0
        places.set(ServiceKey(vip, 0, 0), flags)
        for key in keys:
            places.set(key, service.index)
            holder = self._holders.get(key, service)
            if holder is not service:
                holder.torn = True  # should it be wanted as it was once more, the key is to be set again
            self._holders[key] = service
        for key in service.keys - keys:
            if self._holders.get(key) is service:
                del self._holders[key]
        # A key that this service has no use for may be another's by now.
        self._stray_keys = self._stray_keys or bool(service.keys - keys)
        service.keys = keys

    def _remove_stray_keys(self) -> None:
        """Once after adoption, and after a service gave any up: keys that no service wants."""
        wanted = {key for service in self._services.values() for key in service.keys}
        vips = {ServiceKey(key.vip, 0, 0) for key in wanted}
        self._maps4.delete_all_but(frozenset(k for k in wanted | vips if k.vip.version == 4))
        self._maps6.delete_all_but(frozenset(k for k in wanted | vips if k.vip.version == 6))
        self._stray_keys = False

    def _remove_service(self, identity: int) -> None:
        service = self._services.pop(identity)
        self._stray_keys = True
        for key in service.keys:
            if self._holders.get(key) is service:
                del self._holders[key]
        self._drop_backends(identity, service, {})
        record = self._maps.services[service.index : service.index + 1]
        record["identity"] = 0
        record["table"] = 0
        record["previous"] = 0
        now = self._clock()
        self._tables.release(service.tables, now)
        self._free_runs.add(service.base, service.room, now)
        self._housekeeper.retire_service(service.index, now)

    # Flows from elsewhere

    def disturb(self, strays: NDArray[np.uint32]) -> None:
        """The flow table has got flows of other balancers in slots that name other backends. By flow: index
        of the service (high 16 bits) and the bits of the hash that its slot is taken from (low 16 bits).
        """
        by_index = {service.index: service for service in self._services.values()}
        indices = strays >> np.uint32(16)
        for index in np.unique(indices).tolist():
            service = by_index.get(index)
            if service is None or int(self._maps.services["flags"][index]) & abi.SERVICE_BY_FLOW:
                continue
            places = (strays[indices == index] & np.uint32(0xFFFF)).astype(np.int64)
            before = service.tables
            after = self._tables.disturb(before, places, self._clock())
            if after != before:
                self._exchange_previous(before, after)

    def _exchange_previous(self, before: Tables, after: Tables) -> None:
        """Of all services that share the tables."""
        for service in self._services.values():
            if service.tables == before:
                self._maps.services["previous"][service.index] = after.previous
                service.tables = after

    # Neighbours

    def set_neighbour(self, real: IPAddress, neighbour: Neighbour | None) -> None:
        neighbours = self._records.neighbours
        if neighbour == neighbours.get(real):
            return
        if neighbour is None:
            del neighbours[real]
        else:
            neighbours[real] = neighbour
        for identity, name in self._by_real[real]:
            service = self._services[identity]
            index = service.base + service.locals[name]
            self._records.write_link(index, self._records.is_up(index), real)

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
            self._weigh(service)
        if freed.locals:
            by_index = {service.index: service for service in self._services.values()}
            for index, local in freed.locals:
                if index in by_index:
                    self._free_local(by_index[index], local)
        for index in freed.indices:
            self._indices.give_back(index, 1)
        for start, length in self._free_runs.release(now):
            self._runs.give_back(start, length)

    def busy(self) -> bool:
        return self._housekeeper.busy

    def _free_local(self, service: _Installed, local: int) -> None:
        record = service.base + local
        del service.resting[int(self._records.identity[record])]
        self._records.identity[record] = 0

    def _subjects(self) -> list[Subject]:
        """Which services' slots may have flows of other backends than they name: of all but those that go by
        flow.
        """
        by_flow = (self._maps.services["flags"] & abi.SERVICE_BY_FLOW != 0).tolist()
        return [
            Subject(s.index, s.room, 0 if by_flow[s.index] else s.tables.current)
            for s in self._services.values()
        ]

    def _look_at_occupancy(self, now: float) -> None:
        share = flows.live_share(
            self._maps.flows, OCCUPANCY_SAMPLE, self._maps.settings["timeout"][0], self._ticks.now()
        )
        self._set_setting(abi.SETTING_CROWDED, share > CROWDED)
        if share > LOSSY:
            self._lossy_until = now + self._policy.timeouts.established_s

    def _weigh(self, service: _Installed) -> None:
        """Tells a service that goes by the number of connections how loaded its backends are."""
        counts = self._housekeeper.load_of(service.index)
        loads = [
            (backend, local, float(counts[local] if local < len(counts) else 0) / max(1, backend.weight))
            for backend, local in service.backends()
        ]
        scale = max(1.0, max((load for _, _, load in loads), default=0) / 0xFFFF)
        for backend, local, load in loads:
            self._records.write_load(service.base + local, backend, int(load / scale))

    # Readings

    def counters(self) -> Counters:
        return counting.read(self._maps, self._housekeeper, self._places)
