"""A data plane in memory, for tests of whoever decides what is to be installed.

Keeps what `apply` was given as the kernel's would: marks stay while a backend is installed, what was up is
still known after a restart, and what the kernel's data plane has no room for is refused. Beyond that it
refuses what nobody may ever ask for (`check`). Knows nothing of packets, nor of time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from vc5py.dataplane.abi import MAX_BACKENDS, MAX_REALS_PER_SERVICE, MAX_SERVICES, PROBE_MARK
from vc5py.dataplane.base import Counters, Neighbour, Traffic
from vc5py.errors import DataplaneError
from vc5py.model import BackendId, Config, Desired, IPAddress, Protocol, ServiceState, VirtualServiceId


@dataclass(frozen=True, slots=True)
class Room:
    """How much fits: virtual services, and backends in all of them."""

    services: int = MAX_SERVICES
    backends: int = MAX_BACKENDS


def check(desired: Desired) -> None:
    """Raises ValueError for what makes no sense, whatever the room."""
    keys: Counter[tuple[IPAddress, int, Protocol]] = Counter()
    for state in desired.services:
        keys.update((state.id.vip, port, protocol) for port, protocol in state.ports)
        _check_backends(state)
    names = [state.id for state in desired.services]
    if len(set(names)) < len(names):
        raise ValueError("a virtual service is there twice")
    twice = [key for key, times in keys.items() if times > 1]
    if twice:
        raise ValueError(f"two services want {twice[0]}")
    if not desired.announce <= {name.vip for name in names}:
        raise ValueError("a VIP is to be announced that no service is on")


def _check_backends(state: ServiceState) -> None:
    reals = [backend.id for backend in state.backends]
    if len(set(reals)) < len(reals):
        raise ValueError(f"a real is in {state.id} twice")
    for backend in state.backends:
        if backend.id.virtual_service != state.id:
            raise ValueError(f"{backend.id} is not of {state.id}")
        if backend.weight < 0 or (backend.weight and not backend.up):
            raise ValueError(
                f"{backend.id} has weight {backend.weight} and is {'up' if backend.up else 'down'}"
            )


@dataclass
class FakeDataplane:
    """Implements `base.Dataplane`. Whoever looks: `installed` and `visible` say what is there now; `traffic`
    and `flows` are what `counters` tells of it.
    """

    room: Room = field(default_factory=Room)
    installed: Mapping[VirtualServiceId, ServiceState] = field(default_factory=dict)
    neighbours: dict[IPAddress, Neighbour] = field(default_factory=dict)
    traffic: dict[BackendId, Traffic] = field(default_factory=dict)
    flows: dict[BackendId, int] = field(default_factory=dict)
    policy: Config | None = None
    applied: int = 0
    _marks: dict[BackendId, int] = field(default_factory=dict)

    def apply(self, desired: Desired) -> None:
        """As the kernel's, but for all or nothing: what is refused changes nothing."""
        check(desired)
        services = desired.services
        if len(services) > self.room.services or any(
            len(s.backends) > MAX_REALS_PER_SERVICE for s in services
        ):
            raise DataplaneError(f"no room for {len(services)} services (of {self.room.services})")
        backends = [backend for state in services for backend in state.backends]
        if len(backends) > self.room.backends:
            raise DataplaneError(f"no room for {len(backends)} backends (of {self.room.backends})")
        self.applied += 1
        self.installed = {state.id: state for state in services}
        wanted = {backend.id for backend in backends}
        self._marks = {backend: mark for backend, mark in self._marks.items() if backend in wanted}
        free = iter(sorted(set(range(len(wanted))) - set(self._marks.values())))
        for backend in backends:
            if backend.id not in self._marks:
                self._marks[backend.id] = next(free)

    def set_policy(self, config: Config) -> None:
        self.policy = config

    def was_up(self, backend: BackendId) -> bool:
        state = self.installed.get(backend.virtual_service)
        return state is not None and any(b.id == backend and b.up for b in state.backends)

    def mark_of(self, backend: BackendId) -> int | None:
        mark = self._marks.get(backend)
        return None if mark is None else PROBE_MARK | mark

    def set_neighbour(self, real: IPAddress, neighbour: Neighbour | None) -> None:
        if neighbour is None:
            self.neighbours.pop(real, None)
        else:
            self.neighbours[real] = neighbour

    def maintain(self, now: float) -> None:
        """There is nothing to keep up."""

    def busy(self) -> bool:
        return False

    def counters(self) -> Counters:
        return Counters(
            {backend: self.traffic.get(backend, Traffic(0, 0)) for backend in self._marks},
            {},
            {backend: self.flows.get(backend, 0) for backend in self._marks},
        )

    def visible(self) -> dict[tuple[IPAddress, int, Protocol], tuple[VirtualServiceId, frozenset[object]]]:
        """What a packet can find out: by (VIP, port, protocol) the service and its backends that are up."""
        return {
            (id_.vip, port, protocol): (
                id_,
                frozenset((b.id.real, b.weight, b.forwarding) for b in state.backends if b.up),
            )
            for id_, state in self.installed.items()
            for port, protocol in state.ports
        }
