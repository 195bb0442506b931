"""The director decides: from the configuration, probe results and time to what the world should be.

Pure and the only place where such decisions are made; the data plane and the BGP speaker carry out.
`step(state, event, now) -> (state, actions)`; a state is never changed, a step copies only the virtual
service that it touches. Times are seconds of one monotonic clock.

A backend is up while all of its checks are. A virtual service is healthy while at least `need` of its
backends are up. A VIP is announced while every service on it is healthy, and after the first `learn`
seconds, in which a node that starts afresh only listens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from vc5py.core import health
from vc5py.core.health import Health
from vc5py.model import (
    BackendId,
    BackendState,
    Check,
    Config,
    Desired,
    IPAddress,
    Real,
    Service,
    ServiceState,
    VirtualServiceId,
)

Target = tuple[BackendId, Check]


@dataclass(frozen=True, slots=True)
class VirtualService:
    """One service on one VIP, with the health of every (backend, check) of it."""

    id: VirtualServiceId
    service: Service
    health: Mapping[Target, Health]
    state: ServiceState

    @property
    def up_count(self) -> int:
        return sum(backend.up for backend in self.state.backends)

    @property
    def healthy(self) -> bool:
        return self.up_count >= self.service.need


@dataclass(frozen=True, slots=True)
class State:
    """Everything the director knows. `desired` is what the edges should have made true by now."""

    services: Mapping[VirtualServiceId, VirtualService]
    announce_from: float
    desired: Desired

    def targets(self) -> Iterator[Target]:
        """Everything that is to be probed."""
        for virtual in self.services.values():
            yield from virtual.health


# Events


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe has ended; `why` tells a person how."""

    backend: BackendId
    check: Check
    ok: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Probed | Tick


# Actions


@dataclass(frozen=True, slots=True)
class Install:
    """Make the data plane equal to this, then the routes."""

    desired: Desired


@dataclass(frozen=True, slots=True)
class Pace:
    """Probe faster while a state is changing, and at the usual interval again afterwards."""

    backend: BackendId
    check: Check
    fast: bool


@dataclass(frozen=True, slots=True)
class Transition:
    """Something worth one line in the log: `what` (backend, service, vip), which, its state, and why."""

    what: str
    name: str
    state: str
    why: str


Action = Install | Pace | Transition


def start(config: Config, was_up: Callable[[BackendId], bool], now: float) -> State:
    """The state to begin with. What an earlier run left up is taken to be up until probes say otherwise,
    and a node that takes over its own running data plane has nothing to learn first.
    """
    services = {}
    adopted = False
    for service in config.services:
        for vip in service.vips:
            virtual = _first_look(service, vip, was_up)
            services[virtual.id] = virtual
            adopted = adopted or any(was_up(b.id) for b in virtual.state.backends)
    announce_from = now if adopted else now + config.learn_s
    return _decided(State(MappingProxyType(services), announce_from, Desired()), now)


def step(state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    """Takes in one event."""
    if isinstance(event, Tick):
        return _conclude(state, state, now)
    return _probed(state, event, now)


def _first_look(service: Service, vip: IPAddress, was_up: Callable[[BackendId], bool]) -> VirtualService:
    id_ = VirtualServiceId(service.name, vip)
    backends = [BackendId(service.name, vip, real.address) for real in service.reals]
    healths = {(b, c): health.initial(was_up(b)) for b in backends for c in service.checks}
    ports = tuple((port, protocol) for port in service.ports for protocol in service.protocols)
    state = ServiceState(id_, ports, (), service.scheduling, service.unknown)
    virtual = VirtualService(id_, service, MappingProxyType(healths), state)
    states = tuple(_backend_state(virtual, real) for real in service.reals)
    return replace(virtual, state=replace(virtual.state, backends=states))


def _backend_state(virtual: VirtualService, real: Real) -> BackendState:
    backend = BackendId(virtual.id.service, virtual.id.vip, real.address)
    up = all(virtual.health[backend, check].is_up for check in virtual.service.checks)
    return BackendState(backend, up, real.weight if up else 0, real.forwarding)


def _probed(state: State, event: Probed, now: float) -> tuple[State, tuple[Action, ...]]:
    virtual = state.services.get(event.backend.virtual_service)
    target = (event.backend, event.check)
    if virtual is None or target not in virtual.health:
        return state, ()  # of a backend that has gone meanwhile
    before = virtual.health[target]
    after = health.step(before, event.ok, event.check.rise, event.check.fall)
    if after == before:
        return state, ()
    actions: list[Action] = []
    if before.state.is_changing != after.state.is_changing:
        actions.append(Pace(event.backend, event.check, after.state.is_changing))
    changed = replace(virtual, health=MappingProxyType({**virtual.health, target: after}))
    changed, transitions = _with_backend(changed, event)
    services = MappingProxyType({**state.services, virtual.id: changed})
    new, more = _conclude(state, replace(state, services=services), now)
    return new, (*transitions, *actions, *more)


def _with_backend(virtual: VirtualService, event: Probed) -> tuple[VirtualService, list[Action]]:
    """Brings the backend of the event up or down where its health says so."""
    real = next(real for real in virtual.service.reals if real.address == event.backend.real)
    fresh = _backend_state(virtual, real)
    if fresh in virtual.state.backends:
        return virtual, []
    backends = tuple(fresh if b.id == event.backend else b for b in virtual.state.backends)
    why = f"{event.check.name}: {event.why}"
    transition = Transition("backend", str(event.backend), "up" if fresh.up else "down", why)
    return replace(virtual, state=replace(virtual.state, backends=backends)), [transition]


def _decided(state: State, now: float) -> State:
    services = tuple(virtual.state for virtual in state.services.values())
    good: set[IPAddress] = set()
    bad: set[IPAddress] = set()
    for virtual in state.services.values():
        (good if virtual.healthy else bad).add(virtual.id.vip)
    announce = frozenset(good - bad) if now >= state.announce_from else frozenset()
    return replace(state, desired=Desired(services, announce))


def _conclude(before: State, after: State, now: float) -> tuple[State, tuple[Action, ...]]:
    """Derives what is desired, and says what has changed since."""
    new = _decided(after, now)
    if new.desired == before.desired:
        return new, ()
    actions: list[Action] = []
    for id_, virtual in new.services.items():
        old = before.services[id_]
        if old.healthy != virtual.healthy:
            need = f"{virtual.up_count} of {len(virtual.state.backends)} up, {virtual.service.need} needed"
            name = "healthy" if virtual.healthy else "unhealthy"
            actions.append(Transition("service", str(id_), name, need))
    for vip in sorted(new.desired.announce ^ before.desired.announce, key=str):
        name = "announced" if vip in new.desired.announce else "withdrawn"
        actions.append(Transition("vip", str(vip), name, "by the health of its services"))
    return new, (*actions, Install(new.desired))
