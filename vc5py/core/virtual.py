"""One service on one VIP: its backends, and from them what the data plane is to do.

Must not know: other virtual services, routes, the data plane. Everything that happens to one ends in
`_decided`, which looks at all of its backends and at nothing else; so the outcome depends on how the backends
are, and not on the way there.

Invariants: a value is never changed. Whatever stays equal stays the identical object, the `ServiceState`
above all: the data plane goes by that. `up` is never set for a backend that is down or disabled, and a weight
above 0 only for one that takes new flows. Before `wake`, time alone changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from vc5py.core import backend as backends_
from vc5py.core import outcome
from vc5py.core.admin import Overrides
from vc5py.core.backend import Backend, Phase
from vc5py.core.events import Action, Pace, Probed, Transition
from vc5py.core.health import HealthState
from vc5py.core.selection import Condition, select
from vc5py.model import (
    AdminState,
    BackendId,
    BackendState,
    Check,
    IPAddress,
    Protocol,
    Real,
    Service,
    ServiceState,
    VirtualServiceId,
)

Target = tuple[BackendId, Check]


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """A backend as it is shown. `damped`: it flaps. `serving`: it takes new flows now, with the share
    `weight`, in whole numbers (0 if it doesn't). `since`: when it came up or went down, and `why`.
    """

    id: BackendId
    health: HealthState
    admin: AdminState
    tier: int
    sorry: bool
    damped: bool
    serving: bool
    weight: int
    why: str
    since: float


@dataclass(frozen=True, slots=True)
class VirtualService:
    """`backends` are the service's reals in the file's order, then the sorry reals; `positions` finds them by
    address. `up_count`: how many count towards `need`. `tiers`: those that serve. `scale`: by how much all
    weights are multiplied. `since`, `tiers_since`: when `condition` and `tiers` last changed.
    """

    id: VirtualServiceId
    service: Service
    backends: tuple[Backend, ...]
    positions: Mapping[IPAddress, int]
    state: ServiceState
    condition: Condition
    since: float
    up_count: int = 0
    tiers: tuple[int, ...] = ()
    tiers_since: float = 0.0
    scale: int = 1
    wake: float = math.inf

    @property
    def healthy(self) -> bool:
        """At least `need` reals can take new flows."""
        return self.condition is Condition.HEALTHY

    @property
    def serves(self) -> bool:
        """Clients may be told to come, by the VIP's announcement."""
        return self.condition is not Condition.UNHEALTHY

    @property
    def statuses(self) -> tuple[BackendStatus, ...]:
        """Every backend, in the order of `backends`."""
        pairs = zip(self.backends, self.state.backends, strict=True)
        return tuple(self._status(backend, state) for backend, state in pairs)

    def _status(self, backend: Backend, state: BackendState) -> BackendStatus:
        serving = state.weight > 0
        return BackendStatus(
            backend.id,
            backend.health_state,
            backend.admin,
            backend.real.tier,
            backend.sorry,
            backend.phase is not Phase.FREE,
            serving,
            max(1, state.weight // self.scale) if serving else 0,
            backend.why,
            backend.since,
        )

    @property
    def count(self) -> str:
        """For people: how many can serve, what keeps the others from it, and how many are needed."""
        others = Counter(word for word in map(_obstacle, self.backends) if word)
        own = sum(not backend.sorry for backend in self.backends)
        words = [f"{others[word]} {word}" for word in _OBSTACLES if others[word]]
        return ", ".join([f"{self.up_count} of {own} can serve", *words, f"{self.service.need} needed"])

    def targets(self) -> Iterator[Target]:
        """Everything of it that is to be probed, whatever people want of the real."""
        for backend in self.backends:
            for check in backend.checks:
                yield backend.id, check

    def changing(self) -> Iterator[Target]:
        """Those of the targets that are between up and down."""
        for backend in self.backends:
            for check, health in zip(backend.checks, backend.healths, strict=True):
                if health.state.is_changing:
                    yield backend.id, check


_OBSTACLES = ("disabled", "draining", "down", "of weight 0", "damped")


def _obstacle(backend: Backend) -> str:
    """Why a real doesn't count towards `need`; empty where it does, or is a sorry real."""
    if backend.sorry:
        return ""
    if backend.admin is not AdminState.ENABLED:
        return str(backend.admin)
    if not backend.up:
        return "down"
    if not backend.weight:
        return "of weight 0"
    return "damped" if backend.phase is Phase.KEPT_OUT else ""


def build(
    service: Service,
    vip: IPAddress,
    overrides: Overrides,
    now: float,
    was_up: Callable[[BackendId], bool] = lambda _: False,
) -> VirtualService:
    """A virtual service that wasn't there before."""
    id_ = VirtualServiceId(service.name, vip)
    backends = tuple(
        _new(id_, service, member, overrides, now, was_up(BackendId(service.name, vip, member[0].address)))
        for member in _members(service)
    )
    state = ServiceState(id_, _ports(service), (), service.scheduling, service.unknown)
    virtual = VirtualService(
        id_, service, backends, _positions(backends), state, Condition.UNHEALTHY, now, tiers_since=now
    )
    return settled(virtual, now)[0]


def reloaded(
    virtual: VirtualService, service: Service, overrides: Overrides, now: float
) -> tuple[VirtualService, list[Transition]]:
    """The virtual service under a changed configuration of it; what is known of its backends stays known."""
    backends = tuple(_carried(virtual, service, member, overrides, now) for member in _members(service))
    state = replace(
        virtual.state, ports=_ports(service), scheduling=service.scheduling, unknown=service.unknown
    )
    if state == virtual.state:
        state = virtual.state
    changes = _came_up(virtual, backends, now)
    new = replace(virtual, service=service, backends=backends, positions=_positions(backends), state=state)
    new, more = settled(new, now)
    return new, [*changes, *more]


def probed(virtual: VirtualService, event: Probed, now: float) -> tuple[VirtualService, list[Action]]:
    """After a result; of a backend or a check that has gone meanwhile it changes nothing."""
    position = virtual.positions.get(event.backend.real)
    if position is None or event.check not in virtual.backends[position].checks:
        return virtual, []
    old = virtual.backends[position]
    policy = None if old.sorry else virtual.service.damping
    new, before, after = backends_.probed(old, event.check, event.ok, event.why, policy, now)
    if new is old:
        return virtual, []
    pace: list[Action] = []
    if before.state.is_changing != after.state.is_changing:
        pace.append(Pace(event.backend, event.check, after.state.is_changing))
    virtual = _with_backend(virtual, position, new)
    if new.up == old.up:
        # It never was up, as far as is known; that probes say so is news.
        is_news = new.judged and not old.judged and not new.up
        return virtual, [_up_or_down(new, now - old.since), *pace] if is_news else pace
    change = _up_or_down(new, now - old.since)
    virtual, more = settled(virtual, now)
    return virtual, [change, *pace, *more]


def administered(
    virtual: VirtualService, real: IPAddress, overrides: Overrides, now: float
) -> tuple[VirtualService, list[Transition]]:
    """After somebody has said something of a real."""
    position = virtual.positions.get(real)
    if position is None:
        return virtual, []
    old = virtual.backends[position]
    name = virtual.id.service
    new = backends_.wanted(old, overrides.state_of(name, old.real), overrides.weight_of(name, old.real), now)
    if new is old:
        return virtual, []
    return settled(_with_backend(virtual, position, new), now)


def settled(virtual: VirtualService, now: float) -> tuple[VirtualService, list[Transition]]:
    """Makes of the backends what the data plane is to do, and says what has changed by that."""
    selection = select(virtual.service, virtual.backends, now)
    backends, changes = outcome.damped(virtual.backends, selection.in_spite, now)
    state, scale = outcome.installed(virtual.service, virtual.state, backends, selection.serving, now)
    new = replace(
        virtual,
        backends=backends,
        state=state,
        condition=selection.condition,
        up_count=selection.healthy,
        tiers=selection.tiers,
        scale=scale,
        wake=outcome.wake(virtual.service, backends, selection.serving, now),
    )
    if new.condition is not virtual.condition:
        changes.append(_condition_change(virtual, new, now))
        new = replace(new, since=now)
    if new.tiers != virtual.tiers:
        if len({backend.real.tier for backend in backends if not backend.sorry}) > 1:
            changes.append(_tier_change(virtual, new, now))
        new = replace(new, tiers_since=now)
    return virtual if new == virtual else new, changes


def same_targets(one: VirtualService | None, other: VirtualService | None) -> bool:
    """Whether both have the same to be probed, in the same order."""
    if one is None or other is None or len(one.backends) != len(other.backends):
        return one is other
    pairs = zip(one.backends, other.backends, strict=True)
    return all(a is b or (a.id == b.id and a.checks == b.checks) for a, b in pairs)


Member = tuple[Real, tuple[Check, ...], bool]


def _members(service: Service) -> list[Member]:
    """Every real once, with its checks (each once), and whether it is a sorry real only."""
    checks = tuple(dict.fromkeys(service.checks))
    members = [(real, checks, False) for real in service.reals]
    if service.sorry is not None:
        checks = tuple(dict.fromkeys(service.sorry.checks))
        own = {real.address for real in service.reals}
        members += [(real, checks, True) for real in service.sorry.reals if real.address not in own]
    return members


def _ports(service: Service) -> tuple[tuple[int, Protocol], ...]:
    return tuple((port, protocol) for port in service.ports for protocol in service.protocols)


def _positions(backends: Sequence[Backend]) -> Mapping[IPAddress, int]:
    return MappingProxyType({backend.id.real: i for i, backend in enumerate(backends)})


def _new(
    id_: VirtualServiceId,
    service: Service,
    member: Member,
    overrides: Overrides,
    now: float,
    adopted: bool,
) -> Backend:
    real, checks, sorry = member
    wanted = overrides.state_of(service.name, real), overrides.weight_of(service.name, real)
    backend = BackendId(id_.service, id_.vip, real.address)
    return backends_.new(backend, real, checks, sorry=sorry, adopted=adopted, wanted=wanted, now=now)


def _with_backend(virtual: VirtualService, position: int, backend: Backend) -> VirtualService:
    old = virtual.backends
    return replace(virtual, backends=(*old[:position], backend, *old[position + 1 :]))


def _carried(
    virtual: VirtualService, service: Service, member: Member, overrides: Overrides, now: float
) -> Backend:
    real, checks, sorry = member
    position = virtual.positions.get(real.address)
    if position is None:
        return _new(virtual.id, service, member, overrides, now, False)
    policy = None if sorry else service.damping
    old = virtual.backends[position]
    backend = backends_.reconfigured(old, real, checks, sorry=sorry, policy=policy, now=now)
    name = service.name
    return backends_.wanted(backend, overrides.state_of(name, real), overrides.weight_of(name, real), now)


def _up_or_down(backend: Backend, after_s: float) -> Transition:
    return Transition("backend", str(backend.id), "up" if backend.up else "down", backend.why, after_s)


def _came_up(virtual: VirtualService, backends: Sequence[Backend], now: float) -> list[Transition]:
    """By a reload: the check that failed is no longer asked for."""
    changes = []
    for new in backends:
        position = virtual.positions.get(new.id.real)
        if position is not None and new.up and not virtual.backends[position].up:
            changes.append(_up_or_down(new, now - virtual.backends[position].since))
    return changes


def _condition_change(old: VirtualService, new: VirtualService, now: float) -> Transition:
    return Transition("service", str(new.id), str(new.condition), new.count, now - old.since)


def _tier_change(old: VirtualService, new: VirtualService, now: float) -> Transition:
    tiers = "+".join(map(str, new.tiers)) or "none"
    why = f"{new.up_count} up in all tiers, a tier needs {new.service.min_up}"
    return Transition("tier", str(new.id), tiers, why, now - old.tiers_since)
