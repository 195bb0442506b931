"""The kernel's data plane: puts services, backends, tables and neighbours into the maps.

Knows the maps' meaning and the order of stores that keeps packets flowing while they change; not how
programs are attached nor how neighbours are found out. Order matters: a record is complete before anything
points at it, a table is switched before a backend that left it goes down, and what was freed rests a moment
before it is used again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vc5py.core.identity import backend_identity, real_identity, service_identity
from vc5py.dataplane import abi, flows, libbpf
from vc5py.dataplane.allocate import Quarantine, RunAllocator
from vc5py.dataplane.base import Counters, Neighbour, Traffic
from vc5py.dataplane.maps import Maps
from vc5py.dataplane.policy import CROWDED, ICMP_PER_SECOND, LOSSY, OCCUPANCY_SAMPLE, Policy, timeouts_s
from vc5py.dataplane.servicemap import ServiceKey, ServiceMap
from vc5py.dataplane.tables import NO_TABLES, Members, TableArena, Tables, first_slot, size
from vc5py.dataplane.ticks import TickClock
from vc5py.errors import DataplaneError
from vc5py.model import (
    BackendId,
    BackendState,
    Desired,
    ForwardMode,
    IPAddress,
    Scheduling,
    ServiceState,
    Unknown,
)

QUARANTINE_S = 1.0
MIN_ROOM = 4


def _flags_of(state: ServiceState) -> int:
    return {
        Scheduling.MAGLEV: 0,
        Scheduling.STICKY: abi.SERVICE_STICKY | abi.SERVICE_BY_FLOW,
        Scheduling.LEAST_CONNS: abi.SERVICE_LEAST_CONNS | abi.SERVICE_BY_FLOW,
    }[state.scheduling]


def room_for(backends: int) -> int:
    """How many records a service of that many backends gets, so that it can grow a little in place."""
    return max(MIN_ROOM, 1 << (backends - 1).bit_length())


@dataclass(slots=True)
class _Installed:
    """A virtual service as it is in the maps."""

    index: int
    base: int
    room: int
    locals: dict[int, int] = field(default_factory=dict)  # backend identity -> local index
    resting: dict[int, int] = field(default_factory=dict)  # likewise, freed but not yet usable
    tables: Tables = NO_TABLES
    served: bool = False  # not new: there may be flows, even where there is no table
    shape: tuple[Members, int] | None = None  # what the tables were made of
    keys: frozenset[ServiceKey] = frozenset()
    state: ServiceState | None = None


@dataclass(frozen=True, slots=True)
class _Scan:
    """The flow table against the slots of the watched services: `tables.FlowScan`."""

    maps: Maps
    watched: flows.Watched

    def conflicts(self) -> NDArray[np.int64]:
        return flows.conflicts(self.maps.flows, self.maps.slots.reshape(-1), self.watched)

    def forget(self, settled: NDArray[np.bool_]) -> None:
        flows.forget_strays(self.maps.flows, self.maps.slots.reshape(-1), self.watched, settled)


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
        self._free_runs = Quarantine(QUARANTINE_S)
        self._free_indices = Quarantine(QUARANTINE_S)
        self._free_locals = Quarantine(QUARANTINE_S)  # (service index, local)
        self._services: dict[int, _Installed] = {}  # by identity
        self._by_real: dict[IPAddress, set[BackendId]] = defaultdict(set)
        self._neighbours: dict[IPAddress, Neighbour] = {}
        self._maps4 = ServiceMap(maps.services4)
        self._maps6 = ServiceMap(maps.services6)
        self._stray_keys = True
        self._lossy_until = float("-inf")
        for state, seconds in timeouts_s(policy.timeouts).items():
            maps.settings["timeout"][0, state] = ticks.ticks(seconds)
        maps.settings["icmp_per_jiffy"] = max(1, ICMP_PER_SECOND // ticks.hz)
        self._set_setting(abi.SETTING_DROP_FRAGMENTS, policy.drop_fragments)
        self._adopt()
        self._look_at_occupancy(clock())

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
        service = self._services.get(service_identity(backend.virtual_service))
        if service is None:
            return None
        local = service.locals.get(backend_identity(backend))
        return None if local is None else service.base + local

    def was_up(self, backend: BackendId) -> bool:
        index = self._find(backend)
        return index is not None and bool(self._flags(index) & abi.BACKEND_UP)

    def mark_of(self, backend: BackendId) -> int | None:
        index = self._find(backend)
        return None if index is None else abi.PROBE_MARK | index

    # Making the maps equal to what is wanted

    def apply(self, desired: Desired) -> None:
        wanted = {service_identity(state.id): state for state in desired.services}
        for identity, state in wanted.items():
            installed = self._services.get(identity)
            if installed is None or installed.state != state:
                self._apply_service(identity, state)
        for identity in [i for i in self._services if i not in wanted]:
            self._remove_service(identity)
        if self._stray_keys:
            self._remove_stray_keys()

    def _apply_service(self, identity: int, state: ServiceState) -> None:
        service = self._services.get(identity) or self._new_service(identity, state)
        wanted = {backend_identity(b.id) for b in state.backends}
        needed = len(wanted | service.locals.keys() | service.resting.keys())
        if needed > service.room:
            self._move(service, room_for(needed))
        for backend in state.backends:
            self._place(service, backend)
        self._switch_table(service, state)
        for backend in state.backends:
            if not backend.up:
                self._write_link(backend, service)
        self._set_keys(service, state)
        self._drop_backends(service, wanted)
        service.state = state

    def _new_service(self, identity: int, state: ServiceState) -> _Installed:
        room = room_for(len(state.backends))
        base = self._runs.take(room)
        try:
            service = _Installed(self._indices.take(1), base, room)
        except DataplaneError:
            self._runs.give_back(base, room)
            raise
        self._maps.backends[service.base : service.base + room] = 0
        self._maps.backend_counts[:, service.base : service.base + room] = 0
        self._services[identity] = service
        record = self._maps.services[service.index : service.index + 1]
        record["table"] = 0
        record["previous"] = 0
        record["flags"] = _flags_of(state)
        record["backends"] = service.base | room << abi.BACKEND_ROOM_SHIFT
        record["identity"] = identity
        return service

    def _move(self, service: _Installed, room: int) -> None:
        """Gives a service that has outgrown its run a longer one; flows name local indices and stay."""
        base, old, length = self._runs.take(room), service.base, service.room
        for array in (self._maps.backends, self._maps.backend_counts.T):
            array[base : base + room] = 0
            array[base : base + length] = array[old : old + length]
        service.base, service.room = base, room
        self._maps.services["backends"][service.index] = base | room << abi.BACKEND_ROOM_SHIFT
        self._free_runs.add(old, length, self._clock())

    def _place(self, service: _Installed, backend: BackendState) -> None:
        """Gives a backend its record; one that is to go up is up before any table names it."""
        identity = backend_identity(backend.id)
        if identity in service.resting:
            service.locals[identity] = local = service.resting.pop(identity)
            self._free_locals.cancel(service.index, local)
        elif identity not in service.locals:
            taken = {*service.locals.values(), *service.resting.values()}
            service.locals[identity] = local = next(i for i in range(service.room) if i not in taken)
            self._maps.backend_counts[:, service.base + local] = 0
        index = service.base + service.locals[identity]
        self._maps.backends["identity"][index] = identity
        self._write_forwarding(index, backend)
        self._remember_neighbour(backend.id.real, index)
        self._by_real[backend.id.real].add(backend.id)
        if backend.up:
            self._write_link(backend, service)

    def _write_forwarding(self, index: int, backend: BackendState) -> None:
        """How packets get there; a real that changes its mode is written before its flags are."""
        records, forwarding = self._maps.backends, backend.forwarding
        if forwarding.mode is not ForwardMode.L2:
            real = backend.id.real
            source = self._policy.sources.get(real.version)
            records["source"][index] = source.packed if source is not None else b""
            records["destination"][index] = real.packed
        records["how"][index] = abi.how_word(forwarding)

    def _remember_neighbour(self, real: IPAddress, index: int) -> None:
        """What an earlier run knew of the real's place is good until something better is known."""
        flags = self._flags(index)
        if real not in self._neighbours and flags & abi.BACKEND_REACHABLE:
            place = int(self._maps.backends["place"][index])
            tagged = bool(flags & abi.BACKEND_SET_TAGS)
            neighbour = Neighbour(
                ifindex=place & 0xFFFFFFFF,
                mac=abi.word_to_mac(int(self._maps.backends["link"][index])),
                on_link=bool(flags & abi.BACKEND_ON_LINK),
                vlan=place >> 32 & 0xFFFF if tagged else None,
                svlan=place >> 48,
            )
            self.set_neighbour(real, neighbour)

    def _flags(self, index: int) -> int:
        return int(self._maps.backends["link"][index]) >> 48

    def _write_link(self, backend: BackendState, service: _Installed) -> None:
        index = service.base + service.locals[backend_identity(backend.id)]
        self._store_link(index, backend.up, backend.id.real)

    def _store_link(self, index: int, up: bool, real: IPAddress) -> None:
        neighbour = self._neighbours.get(real)
        mode = int(self._maps.backends["how"][index]) & 0xFF
        flags, mac = (abi.BACKEND_UP if up else 0), 0
        tunnel = abi.FORWARD_MODES[mode].is_tunnel
        if tunnel and real.version == 6:
            flags |= abi.BACKEND_OUTER6
        if tunnel and real.version not in self._policy.sources:
            neighbour = None  # nothing to send from
        if neighbour is not None and (neighbour.on_link or abi.FORWARD_MODES[mode] is not ForwardMode.L2):
            flags |= abi.BACKEND_REACHABLE
            flags |= abi.BACKEND_ON_LINK if neighbour.on_link else 0
            flags |= abi.BACKEND_SET_TAGS if neighbour.vlan is not None else 0
            mac = abi.mac_to_word(neighbour.mac)
            place = abi.place_word(neighbour.ifindex, neighbour.vlan or 0, neighbour.svlan)
            self._maps.backends["place"][index] = place
        self._maps.backends["link"][index] = mac | flags << 48

    def _switch_table(self, service: _Installed, state: ServiceState) -> None:
        members: Members = tuple(
            (service.locals[backend_identity(b.id)], real_identity(b.id.real), b.weight)
            for b in state.backends
            if b.up and b.weight
        )
        flags = self._maps.services["flags"]
        was, will = int(flags[service.index]), _flags_of(state)
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
                unsure=by_flow or (service.served and not before.current),
            )
        service.served = True
        record = self._maps.services[service.index : service.index + 1]
        if tables.previous:  # before the slots that refer to it
            record["previous"] = tables.previous
        record["table"] = tables.current
        record["previous"] = tables.previous
        self._tables.release(before, now)
        service.tables, service.shape = tables, (members, reals)

    def _drop_backends(self, service: _Installed, wanted: set[int]) -> None:
        """Takes backends off a service: no packet goes there any more, their flows are hashed again."""
        for identity in [i for i in service.locals if i not in wanted]:
            local = service.locals.pop(identity)
            self._maps.backends["link"][service.base + local] = 0
            service.resting[identity] = local
            self._free_locals.add(service.index, local, self._clock())
        if service.state is not None:
            for backend in service.state.backends:
                if backend_identity(backend.id) not in wanted:
                    self._by_real[backend.id.real].discard(backend.id)

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
        self._drop_backends(service, set())
        record = self._maps.services[service.index : service.index + 1]
        record["identity"] = 0
        record["table"] = 0
        record["previous"] = 0
        now = self._clock()
        self._tables.release(service.tables, now)
        self._free_runs.add(service.base, service.room, now)
        self._free_indices.add(service.index, 1, now)

    # Interfaces and neighbours

    def set_interface(self, ifindex: int, mac: str) -> None:
        """Lets frames for VIPs in by this interface, and out to reals that are on it."""
        self._maps.interfaces[ifindex] = abi.mac_to_word(mac) | abi.INTERFACE_OURS << 48
        libbpf.update(self._maps.fds["ports"], ifindex.to_bytes(4, "little"), ifindex.to_bytes(4, "little"))

    def set_neighbour(self, real: IPAddress, neighbour: Neighbour | None) -> None:
        if neighbour == self._neighbours.get(real):
            return
        if neighbour is None:
            del self._neighbours[real]
        else:
            self._neighbours[real] = neighbour
        for backend in self._by_real[real]:
            index = self._find(backend)
            if index is not None:
                self._store_link(index, bool(self._flags(index) & abi.BACKEND_UP), real)

    # Housekeeping

    def maintain(self, now: float) -> None:
        self._tables.maintain(now)
        self._tables.settle(now, _Scan(self._maps, self._watched()))
        self._weigh()
        self._look_at_occupancy(now)
        gone = self._free_locals.release(now)
        if gone:
            owners = [flows.owner(index, local) for index, local in gone]
            flows.purge(self._maps.flows, np.array(owners, dtype=np.uint64))
            by_index = {service.index: service for service in self._services.values()}
            for index, local in gone:
                if index in by_index:
                    service = by_index[index]
                    record = service.base + local
                    del service.resting[int(self._maps.backends["identity"][record])]
                    self._maps.backends["identity"][record] = 0
        for start, length in self._free_runs.release(now):
            self._runs.give_back(start, length)
        for start, length in self._free_indices.release(now):
            self._indices.give_back(start, length)

    def _look_at_occupancy(self, now: float) -> None:
        share = flows.live_share(
            self._maps.flows, OCCUPANCY_SAMPLE, self._maps.settings["timeout"][0], self._ticks.now()
        )
        self._set_setting(abi.SETTING_CROWDED, share > CROWDED)
        if share > LOSSY:
            self._lossy_until = now + self._policy.timeouts.established_s

    def _watched(self) -> flows.Watched:
        """Services whose slots may have flows of other backends than they name.

        A flow seen in two ticks counts as live for as long as an established one: through a stable slot
        few of its packets are seen.
        """
        base = np.full(abi.MAX_SERVICES, -1, dtype=np.int64)
        mask = np.zeros(abi.MAX_SERVICES, dtype=np.uint64)
        for service in self._services.values():
            flags = int(self._maps.services["flags"][service.index])
            if service.tables.previous and not flags & abi.SERVICE_BY_FLOW:
                base[service.index] = first_slot(service.tables.current)
                mask[service.index] = size(service.tables.current) - 1
        timeouts = self._maps.settings["timeout"][0].copy()
        timeouts[abi.FlowState.PROVING] = max(timeouts)
        return flows.Watched(base, mask, timeouts, self._ticks.now())

    def _weigh(self) -> None:
        """Tells services that go by the number of connections how loaded their backends are."""
        by_load = [
            s for s in self._services.values() if s.state and s.state.scheduling is Scheduling.LEAST_CONNS
        ]
        if not by_load:
            return
        counts = flows.count_by_owner(self._maps.flows)
        for service in by_load:
            assert service.state is not None
            loads = {
                b.id: counts.get(flows.owner(service.index, service.locals[backend_identity(b.id)]), 0)
                / max(1, b.weight)
                for b in service.state.backends
            }
            scale = max(1.0, max(loads.values(), default=0) / 0xFFFF)
            for backend in service.state.backends:
                index = service.base + service.locals[backend_identity(backend.id)]
                load = int(loads[backend.id] / scale)
                self._maps.backends["how"][index] = abi.how_word(backend.forwarding, load)

    # Readings

    def counters(self) -> Counters:
        totals_packets = self._maps.backend_counts["packets"].sum(axis=0)
        totals_bytes = self._maps.backend_counts["bytes"].sum(axis=0)
        by_owner = flows.count_by_owner(self._maps.flows)
        traffic, live = {}, {}
        for service in self._services.values():
            for backend in service.state.backends if service.state else ():
                local = service.locals[backend_identity(backend.id)]
                index = service.base + local
                traffic[backend.id] = Traffic(int(totals_packets[index]), int(totals_bytes[index]))
                live[backend.id] = by_owner.get(flows.owner(service.index, local), 0)
        sums = self._maps.verdict_counts.sum(axis=0)
        verdicts = {verdict.name: int(sums[verdict.number]) for verdict in abi.verdicts()}
        return Counters(traffic, verdicts, live)
