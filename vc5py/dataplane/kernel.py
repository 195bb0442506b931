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
from ipaddress import IPv4Address

import numpy as np

from vc5py.core.identity import backend_identity, real_identity, service_identity
from vc5py.dataplane import abi, flows, libbpf
from vc5py.dataplane.allocate import Quarantine, RunAllocator
from vc5py.dataplane.base import Counters, Neighbour, Traffic
from vc5py.dataplane.maps import Maps
from vc5py.dataplane.tables import Members, TableArena
from vc5py.dataplane.ticks import TickClock
from vc5py.errors import DataplaneError
from vc5py.model import BackendId, BackendState, Desired, IPAddress, ServiceState

QUARANTINE_S = 1.0
MIN_ROOM = 4

# Seconds an idle flow keeps its entry against newcomers.
TIMEOUTS_S = {
    abi.FlowState.UNPROVEN: 30,
    abi.FlowState.PROVING: 60,
    abi.FlowState.ESTABLISHED: 3600,
    abi.FlowState.CLOSING: 10,
}


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
    table: int = 0
    keys: frozenset[bytes] = frozenset()
    state: ServiceState | None = None


class KernelDataplane:
    """Implements `base.Dataplane` over open maps; adopts whatever an earlier run left in them."""

    def __init__(self, maps: Maps, ticks: TickClock, clock: Callable[[], float] = time.monotonic) -> None:
        self._maps = maps
        self._clock = clock
        self._indices = RunAllocator(min(maps.sizes.services, abi.MAX_SERVICES), "services")
        self._runs = RunAllocator(min(maps.sizes.backends, abi.MAX_BACKENDS), "backends")
        self._tables = TableArena(maps.slots, QUARANTINE_S)
        self._free_runs = Quarantine(QUARANTINE_S)
        self._free_indices = Quarantine(QUARANTINE_S)
        self._free_locals = Quarantine(QUARANTINE_S)  # (service index, local)
        self._services: dict[int, _Installed] = {}  # by identity
        self._by_real: dict[IPAddress, set[BackendId]] = defaultdict(set)
        self._neighbours: dict[IPAddress, Neighbour] = {}
        self._stray_keys = True
        for state, seconds in TIMEOUTS_S.items():
            maps.settings["timeout"][0, state] = ticks.ticks(seconds)
        self._adopt()

    # What an earlier run left

    def _adopt(self) -> None:
        records = self._maps.services
        for index in np.flatnonzero(records["identity"]):
            row = records[index]
            word = int(row["backends"])
            base, room = word & 0xFFFFFFFF, word >> abi.BACKEND_ROOM_SHIFT
            table = int(row["table"])
            self._indices.reserve(int(index), 1)
            self._runs.reserve(base, room)
            self._tables.adopt(table)
            service = _Installed(int(index), base, room, table=table)
            identities = self._maps.backends["identity"][base : base + room].tolist()
            service.locals = {identity: local for local, identity in enumerate(identities) if identity}
            self._services[int(row["identity"])] = service
        self._purge_strays()

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
        service = self._services.get(identity) or self._new_service(identity, len(state.backends))
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

    def _new_service(self, identity: int, backends: int) -> _Installed:
        room = room_for(backends)
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
        self._remember_neighbour(backend.id.real, index)
        self._by_real[backend.id.real].add(backend.id)
        if backend.up:
            self._write_link(backend, service)

    def _remember_neighbour(self, real: IPAddress, index: int) -> None:
        """What an earlier run knew of the real's place is good until something better is known."""
        record = self._maps.backends[index]
        if real not in self._neighbours and self._flags(index) & abi.BACKEND_REACHABLE:
            mac = abi.word_to_mac(int(record["link"]))
            self.set_neighbour(real, Neighbour(int(record["ifindex"]), mac))

    def _flags(self, index: int) -> int:
        return int(self._maps.backends["link"][index]) >> 48

    def _write_link(self, backend: BackendState, service: _Installed) -> None:
        index = service.base + service.locals[backend_identity(backend.id)]
        self._store_link(index, backend.up, self._neighbours.get(backend.id.real))

    def _store_link(self, index: int, up: bool, neighbour: Neighbour | None) -> None:
        flags, mac = (abi.BACKEND_UP if up else 0), 0
        if neighbour is not None:
            flags |= abi.BACKEND_REACHABLE
            mac = abi.mac_to_word(neighbour.mac)
            self._maps.backends["ifindex"][index] = neighbour.ifindex
        self._maps.backends["link"][index] = mac | flags << 48

    def _switch_table(self, service: _Installed, state: ServiceState) -> None:
        members: Members = tuple(
            (service.locals[backend_identity(b.id)], real_identity(b.id.real), b.weight)
            for b in state.backends
            if b.up and b.weight
        )
        word = self._tables.acquire(members, len(state.backends)) if members else 0
        self._maps.services["table"][service.index] = word
        if service.table:
            self._tables.release(service.table, self._clock())
        service.table = word

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

    def _set_keys(self, service: _Installed, state: ServiceState) -> None:
        vip = state.id.vip
        assert isinstance(vip, IPv4Address)
        keys = frozenset(abi.service_key4(vip, port, protocol.number) for port, protocol in state.ports)
        fd = self._maps.fds["services4"]
        libbpf.update(fd, abi.service_key4(vip, 0, 0), b"\xff\xff\xff\xff")
        for key in keys:
            libbpf.update(fd, key, service.index.to_bytes(4, "little"))
        # A key that this service has no use for may be another's by now.
        self._stray_keys = self._stray_keys or bool(service.keys - keys)
        service.keys = keys

    def _remove_stray_keys(self) -> None:
        """Once after adoption, and after a service gave any up: keys that no service wants."""
        fd = self._maps.fds["services4"]
        wanted = {key for service in self._services.values() for key in service.keys}
        vips = {key[:4] for key in wanted}
        for key in libbpf.keys(fd, 8):
            if key not in wanted and not (key[:4] in vips and key[4:] == bytes(4)):
                libbpf.delete(fd, key)
        self._stray_keys = False

    def _remove_service(self, identity: int) -> None:
        service = self._services.pop(identity)
        self._stray_keys = True
        self._drop_backends(service, set())
        record = self._maps.services[service.index : service.index + 1]
        record["identity"] = 0
        record["table"] = 0
        now = self._clock()
        if service.table:
            self._tables.release(service.table, now)
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
                self._store_link(index, bool(self._flags(index) & abi.BACKEND_UP), neighbour)

    # Housekeeping

    def maintain(self, now: float) -> None:
        self._tables.maintain(now)
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
