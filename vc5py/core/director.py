"""The director decides: from the configuration, what people say, probe results and time to what the world
should be.

Pure and the only place where such decisions are made; the data plane and the BGP speaker carry out.
`step(state, event, now) -> (state, actions)`; a state is never changed, a step looks at the virtual services
that its event is about and at no other. Times are seconds of one monotonic clock.

A VIP is announced while every service on it serves (see `selection`), or any where its policy says so, and
after the first `learn` seconds, in which a node that starts afresh only listens. A reload doesn't begin them
anew, but being cut off does: flows may have begun on other nodes meanwhile. After a time without any router
it is announced as soon as a copy of those flows has come, or `learn` seconds after a router did. People can
have it withdrawn, or announced while any service on it serves: never one that can't be served at all, and
none while packets come in by an interface that serves none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from vc5py.core import virtual as virtual_
from vc5py.core.admin import NO_OVERRIDES, Overrides
from vc5py.core.backend import Backend
from vc5py.core.events import (
    Action,
    AdminChanged,
    CaughtUp,
    CutOff,
    Event,
    Install,
    Pace,
    Probed,
    Reloaded,
    Retarget,
    RouterBack,
    RoutersLost,
    Tick,
    Transition,
    Unserved,
    VipChanged,
    WeightChanged,
)
from vc5py.core.virtual import BackendStatus, Target, VirtualService
from vc5py.model import BackendId, Config, Desired, IPAddress, VipPolicy, VipState, VirtualServiceId

__all__ = [
    "Action",
    "AdminChanged",
    "BackendStatus",
    "CaughtUp",
    "CutOff",
    "Event",
    "Install",
    "Pace",
    "Probed",
    "Reloaded",
    "Retarget",
    "RouterBack",
    "RoutersLost",
    "State",
    "Target",
    "Tick",
    "Transition",
    "Unserved",
    "VipChanged",
    "VirtualService",
    "WeightChanged",
    "start",
    "step",
]

CUT_OFF = "cut off: listens to the other balancers first"
HELD = "no BGP session; when one is back, it waits for the other balancers' flows first"
CATCHING_UP = "BGP is back after a while without: waits for the other balancers' flows"
NAMED = 3
"""How many services a line names at most."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything the director knows. `desired` is what the edges should have made true by now.

    `hosted`: by VIP, how many services are on it; `failing`: how many of them don't serve. `ready`: the VIPs
    to announce. `vip_since`: when a VIP was last announced or withdrawn. `wakes`: the virtual services that
    time alone will change. `held_until`: nothing is announced before, for lack of routers and what followed.
    `cut_off`: that is why nothing is announced before `announce_from`. `unserved`: why nothing at all is,
    whatever the time.
    """

    config: Config
    overrides: Overrides
    services: MappingProxyType[VirtualServiceId, VirtualService]
    announce_from: float
    desired: Desired
    policies: MappingProxyType[IPAddress, VipPolicy]
    hosted: MappingProxyType[IPAddress, int]
    failing: MappingProxyType[IPAddress, int]
    ready: frozenset[IPAddress]
    vip_since: MappingProxyType[IPAddress, float]
    wakes: MappingProxyType[VirtualServiceId, float]
    held_until: float = float("-inf")
    cut_off: bool = False
    unserved: str = ""

    def may_announce(self, now: float) -> bool:
        return not self.unserved and now >= max(self.announce_from, self.held_until)

    def why_withheld(self, now: float) -> str:
        """Why no VIP at all is announced now; empty if that isn't so."""
        if self.unserved:
            return self.unserved
        if now < self.announce_from:
            why = CUT_OFF if self.cut_off else "learns which flows there are"
            return f"{why}, {math.ceil(self.announce_from - now)} s left"
        if now < self.held_until:
            seconds = self.held_until - now
            return HELD if math.isinf(seconds) else f"{CATCHING_UP}, {math.ceil(seconds)} s left at most"
        return ""

    def why_withdrawn(self, vips: Iterable[IPAddress], now: float) -> dict[IPAddress, str]:
        """Why each of these VIPs isn't announced now; those that are, are left out. Looks at all services."""
        out = [vip for vip in vips if vip in self.failing and vip not in self.desired.announce]
        lacking = _lacking(self, out)
        return {vip: self._why_withdrawn(vip, lacking[vip], now) for vip in out}

    def _why_withdrawn(self, vip: IPAddress, lacking: Sequence[VirtualService], now: float) -> str:
        if self.overrides.vips.get(vip) is VipState.WITHDRAWN:
            return "withdrawn by command"
        return self.why_withheld(now) if vip in self.ready else shortage(lacking)

    def backend(self, id_: BackendId) -> Backend | None:
        virtual = self.services.get(id_.virtual_service)
        position = None if virtual is None else virtual.positions.get(id_.real)
        return None if virtual is None or position is None else virtual.backends[position]

    def targets(self) -> Iterator[Target]:
        """Everything that is to be probed."""
        for virtual in self.services.values():
            yield from virtual.targets()

    def knows(self, real: IPAddress, service: str | None = None) -> bool:
        """Whether the configuration has this real, in that service if one is given."""
        return any(
            real in virtual.positions
            for id_, virtual in self.services.items()
            if service is None or id_.service == service
        )


def start(
    config: Config,
    was_up: Callable[[BackendId], bool],
    now: float,
    overrides: Overrides = NO_OVERRIDES,
    *,
    told: bool = True,
) -> State:
    """The state to begin with. What an earlier run left up is taken to be up until probes say otherwise.
    A node that takes over its own running data plane has nothing to learn first, unless it was out of the
    routers' sight: `told` says whether they still know of it.
    """
    adopted = False

    def noted(backend: BackendId) -> bool:
        nonlocal adopted
        up = was_up(backend)
        adopted = adopted or up
        return up

    services = [
        virtual_.build(service, vip, overrides, now, noted)
        for service in config.services
        for vip in service.vips
    ]
    announce_from = now if adopted and told else now + config.learn_s
    return _assembled(config, overrides, services, announce_from, {}, now)


def step(state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    """Takes in one event."""
    match event:
        case Probed():
            return _probed(state, event, now)
        case Tick():
            return _ticked(state, now)
        case Reloaded(config):
            return _reloaded(state, config, now)
        case VipChanged():
            return _vip_commanded(state, event, now)
        case CutOff():
            after = replace(state, announce_from=now + state.config.learn_s, cut_off=True)
            return _concluded(state, after, now)
        case RoutersLost():
            return _held(state, float("inf") if state.config.learn_s else now, now)
        case RouterBack():
            return _held(state, min(state.held_until, now + state.config.learn_s), now)
        case Unserved(why):
            return _concluded(state, replace(state, unserved=why), now)
        case CaughtUp():
            return _held(state, min(state.held_until, now), now)
        case AdminChanged(real, service, admin):
            overrides = state.overrides.with_state(real, service, admin)
            said = str(admin) if admin is not None else "file"
        case WeightChanged(real, service, weight):
            overrides = state.overrides.with_weight(real, service, weight)
            said = f"weight={weight}" if weight is not None else "weight=file"
    return _administered(state, real, service, overrides, said, now)


def _held(state: State, until: float, now: float) -> tuple[State, tuple[Action, ...]]:
    return _concluded(state, replace(state, held_until=until), now)


def _probed(state: State, event: Probed, now: float) -> tuple[State, tuple[Action, ...]]:
    virtual = state.services.get(event.backend.virtual_service)
    if virtual is None:
        return state, ()  # of a service that has gone meanwhile
    changed, actions = virtual_.probed(virtual, event, now)
    if changed is virtual:
        return state, tuple(actions)
    new, more = _concluded(state, _with(state, [changed]), now)
    return new, (*actions, *more)


def _ticked(state: State, now: float) -> tuple[State, tuple[Action, ...]]:
    due = [id_ for id_, wake in state.wakes.items() if wake <= now]
    actions: list[Action] = []
    changed = []
    for id_ in due:
        virtual, more = virtual_.settled(state.services[id_], now)
        changed.append(virtual)
        actions += more
    new, rest = _concluded(state, _with(state, changed) if changed else state, now)
    return new, (*actions, *rest)


def _administered(
    state: State, real: IPAddress, service: str | None, overrides: Overrides, said: str, now: float
) -> tuple[State, tuple[Action, ...]]:
    if overrides == state.overrides:
        return state, ()
    name = f"{service}/{real}" if service is not None else str(real)
    actions: list[Action] = [Transition("real", name, said, "said at run time")]
    changed = []
    for id_, virtual in state.services.items():
        if service is not None and id_.service != service:
            continue
        new, more = virtual_.administered(virtual, real, overrides, now)
        if new is not virtual:
            changed.append(new)
        actions += more
    after = replace(_with(state, changed) if changed else state, overrides=overrides)
    after, rest = _concluded(state, after, now)
    return after, (*actions, *rest)


def _vip_commanded(state: State, event: VipChanged, now: float) -> tuple[State, tuple[Action, ...]]:
    overrides = state.overrides.with_vip(event.vip, event.state)
    if overrides == state.overrides:
        return state, ()
    said = f"wanted={event.state if event.state is not None else 'health'}"
    after = replace(state, overrides=overrides)
    if event.vip in after.failing:
        after = replace(after, ready=_ready_again(after, [event.vip]))
    after, actions = _concluded(state, after, now)
    return after, (Transition("vip", str(event.vip), said, "said at run time"), *actions)


def _reloaded(state: State, config: Config, now: float) -> tuple[State, tuple[Action, ...]]:
    known = {service.name: service for service in state.config.services}
    same = {service.name for service in config.services if known.get(service.name) == service}
    actions: list[Action] = []
    services = []
    for service in config.services:
        for vip in service.vips:
            old = state.services.get(VirtualServiceId(service.name, vip))
            if old is None:
                services.append(virtual_.build(service, vip, state.overrides, now))
            elif service.name in same:
                services.append(old)
            else:
                virtual, more = virtual_.reloaded(old, service, state.overrides, now)
                services.append(virtual)
                actions += more
    after = _assembled(config, state.overrides, services, state.announce_from, state.vip_since, now)
    after = replace(after, held_until=state.held_until, cut_off=state.cut_off, unserved=state.unserved)
    after, rest = _concluded(state, after, now)
    return after, (*actions, *rest, *_new_targets(state, after))


def _new_targets(before: State, after: State) -> Sequence[Action]:
    """Retarget, if there is anything else to be probed, and the pace of what is new and already changing."""
    pairs = [(before.services.get(i), after.services.get(i)) for i in before.services | after.services]
    pairs = [(old, new) for old, new in pairs if not virtual_.same_targets(old, new)]
    gone = {target for old, _ in pairs if old is not None for target in old.targets()}
    here = {target for _, new in pairs if new is not None for target in new.targets()}
    if gone == here:
        return ()
    changing = [target for _, new in pairs if new is not None for target in new.changing()]
    return Retarget(), *(
        Pace(backend, check, True) for backend, check in changing if (backend, check) not in gone
    )


# From the virtual services to the whole


def _assembled(
    config: Config,
    overrides: Overrides,
    services: Sequence[VirtualService],
    announce_from: float,
    vip_since: Mapping[IPAddress, float],
    now: float,
) -> State:
    hosted = {virtual.id.vip: 0 for virtual in services}
    failing = dict(hosted)
    for virtual in services:
        hosted[virtual.id.vip] += 1
        failing[virtual.id.vip] += not virtual.serves
    state = State(
        config,
        overrides,
        MappingProxyType({virtual.id: virtual for virtual in services}),
        announce_from,
        Desired(tuple([virtual.state for virtual in services])),
        MappingProxyType(dict(config.vip_policies)),
        MappingProxyType(hosted),
        MappingProxyType(failing),
        frozenset(),
        MappingProxyType({vip: vip_since.get(vip, now) for vip in failing}),
        MappingProxyType({virtual.id: virtual.wake for virtual in services if virtual.wake < float("inf")}),
    )
    ready = _ready_again(state, failing)
    announce = ready if now >= announce_from else frozenset()
    return replace(state, ready=ready, desired=replace(state.desired, announce=announce))


def _is_ready(state: State, vip: IPAddress) -> bool:
    """Whether the VIP is to be announced."""
    failing, hosted = state.failing[vip], state.hosted[vip]
    said = state.overrides.vips.get(vip)
    if said is VipState.WITHDRAWN:
        return False
    policy = state.policies.get(vip, state.config.vip_policy)
    any_will_do = said is VipState.ANNOUNCED or policy is VipPolicy.ANY
    return failing < hosted if any_will_do else not failing


def _ready_again(state: State, vips: Iterable[IPAddress]) -> frozenset[IPAddress]:
    """`ready` after something of these VIPs has changed."""
    judged = {vip: _is_ready(state, vip) for vip in vips}
    return (state.ready - judged.keys()) | {vip for vip, good in judged.items() if good}


def _with(state: State, changed: Iterable[VirtualService]) -> State:
    """The state with some virtual services changed, all that is derived from them included but `desired`'s
    announcements, which depend on the time.
    """
    fresh = {virtual.id: virtual for virtual in changed}
    old = [state.services[id_] for id_ in fresh]
    services = MappingProxyType(state.services | fresh)
    desired = state.desired
    if any(virtual.state is not fresh[virtual.id].state for virtual in old):
        desired = replace(desired, services=tuple([virtual.state for virtual in services.values()]))
    wakes = state.wakes
    if any(virtual.wake != fresh[virtual.id].wake for virtual in old):
        merged = wakes | {id_: virtual.wake for id_, virtual in fresh.items()}
        wakes = MappingProxyType({id_: wake for id_, wake in merged.items() if wake < float("inf")})
    after = replace(state, services=services, desired=desired, wakes=wakes)
    turned = [fresh[virtual.id] for virtual in old if virtual.serves != fresh[virtual.id].serves]
    return _turned(after, turned) if turned else after


def _turned(state: State, turned: Iterable[VirtualService]) -> State:
    """After these virtual services began to serve or ceased to."""
    counts: dict[IPAddress, int] = {}
    for virtual in turned:
        vip = virtual.id.vip
        counts[vip] = counts.get(vip, state.failing[vip]) + (-1 if virtual.serves else 1)
    after = replace(state, failing=MappingProxyType(state.failing | counts))
    return replace(after, ready=_ready_again(after, counts))


def _concluded(before: State, after: State, now: float) -> tuple[State, tuple[Action, ...]]:
    """Decides what is announced, and says what has changed since."""
    announce = after.ready if after.may_announce(now) else frozenset()
    if announce != after.desired.announce:
        after = replace(after, desired=replace(after.desired, announce=announce))
    old, new = before.desired, after.desired
    if old == new:
        return (after if old is new else replace(after, desired=old)), ()
    turned = sorted(new.announce ^ old.announce, key=lambda vip: (vip.version, vip))
    lacking = _lacking(after, turned)
    actions: list[Action] = [_vip_change(before, after, vip, lacking[vip], now) for vip in turned]
    if turned:
        since = after.vip_since | {vip: now for vip in turned if vip in after.vip_since}
        after = replace(after, vip_since=MappingProxyType(since))
    return after, (*actions, Install(new))


def _lacking(state: State, vips: Collection[IPAddress]) -> dict[IPAddress, list[VirtualService]]:
    """For each of these VIPs the services on it that don't serve."""
    lacking: dict[IPAddress, list[VirtualService]] = {vip: [] for vip in vips}
    if any(state.failing.get(vip) for vip in lacking):
        for virtual in state.services.values():
            if not virtual.serves and virtual.id.vip in lacking:
                lacking[virtual.id.vip].append(virtual)
    return lacking


def shortage(lacking: Sequence[VirtualService]) -> str:
    """In words, which services can't serve, or not enough of their reals."""
    who = "too few can" if any(virtual.up_count for virtual in lacking) else "nobody can"
    names = [virtual.id.service for virtual in lacking]
    if len(names) > NAMED:
        names = [*names[:NAMED], f"{len(names) - NAMED} more"]
    return f"{who} serve {' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))}"


def _vip_change(
    before: State, after: State, vip: IPAddress, lacking: Sequence[VirtualService], now: float
) -> Transition:
    since = before.vip_since.get(vip)
    if after.unserved:
        why = after.unserved
    elif after.announce_from > now:
        why = CUT_OFF
    elif after.held_until > now:
        why = HELD
    elif before.unserved:
        why = "all interfaces serve again"
    elif before.held_until > now:
        why = "has learned what began elsewhere"
    elif vip not in after.failing:
        why = "no service is on it any more"
    elif before.overrides.vips.get(vip) != after.overrides.vips.get(vip):
        why = "said at run time"
    elif vip not in after.ready:
        why = shortage(lacking)
    else:
        why = "by the health of its services"
    state = "announced" if vip in after.desired.announce else "withdrawn"
    return Transition("vip", str(vip), state, why, None if since is None else now - since)
