"""The director under any sequence of events, against a plain restatement of its rules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.directing import REALS
from tests.unit.director_rules import CHECKS, NAMES, VIPS, installed, rules
from vc5py.core import director, virtual
from vc5py.core.admin import MAX_WEIGHT
from vc5py.core.director import (
    AdminChanged,
    Install,
    Pace,
    Probed,
    Reloaded,
    Retarget,
    State,
    Tick,
    Transition,
    WeightChanged,
)
from vc5py.model import (
    AdminState,
    BackendId,
    BelowNeed,
    Config,
    Damping,
    Protocol,
    Real,
    Service,
    Sorry,
    Standby,
)

LATER = 1e6


def is_up(state: State) -> Callable[[BackendId], bool]:
    known = {b.id: b.up for v in state.services.values() for b in v.backends}
    return lambda backend: known[backend]


# Any sequence

weight = st.integers(0, 3)
checks = st.lists(
    st.builds(
        lambda check, interval, quorum: replace(check, interval_s=interval, quorum=quorum),
        st.sampled_from(CHECKS),
        st.sampled_from([1.0, 2.0]),
        st.sampled_from([None, None, (2, 3)]),
    ),
    max_size=2,
    unique_by=lambda check: check.name,
).map(tuple)


def reals(first: int, count: int) -> st.SearchStrategy[tuple[Real, ...]]:
    one = st.builds(
        lambda real, weight, tier, admin: replace(real, weight=weight, tier=tier, admin=admin),
        st.sampled_from(REALS[first : first + count]),
        weight,
        st.integers(0, 2),
        st.sampled_from([AdminState.ENABLED, AdminState.ENABLED, *AdminState]),
    )
    return st.lists(one, min_size=1, max_size=count, unique_by=lambda real: real.address).map(tuple)


def services(name: str) -> st.SearchStrategy[Service]:
    return st.builds(
        Service,
        name=st.just(name),
        desc=st.just(""),
        vips=st.lists(st.sampled_from(VIPS), min_size=1, unique=True).map(tuple),
        ports=st.just((NAMES.index(name) + 80,)),
        protocols=st.just((Protocol.TCP,)),
        reals=reals(0, 4),
        need=st.integers(1, 3),
        checks=checks,
        below_need=st.sampled_from(BelowNeed),
        min_up=st.integers(1, 2),
        standby=st.sampled_from(Standby),
        sorry=st.one_of(st.none(), st.builds(Sorry, reals(4, 2), checks)),
        slow_start_s=st.sampled_from([0.0, 20.0]),
        damping=st.sampled_from([None, Damping(suppress=2.0, half_life_s=10.0, longest_s=30.0)]),
    )


configs = st.lists(st.sampled_from(NAMES[:2]), max_size=2, unique=True).flatmap(
    lambda names: st.builds(
        lambda services: Config(tuple(services), learn_s=5.0), st.tuples(*map(services, names))
    )
)
overriding = st.one_of(
    st.builds(
        AdminChanged,
        st.sampled_from([real.address for real in REALS[:6]]),
        st.sampled_from([None, *NAMES[:2]]),
        st.sampled_from([None, *AdminState]),
    ),
    st.builds(
        WeightChanged,
        st.sampled_from([real.address for real in REALS[:6]]),
        st.sampled_from([None, *NAMES[:2]]),
        st.one_of(st.none(), weight, st.just(MAX_WEIGHT)),
    ),
)


@dataclass(frozen=True)
class Result:
    """Of the n-th target, whichever that is when its time comes."""

    target: int
    ok: bool


results = st.builds(Result, st.integers(0, 50), st.booleans())
happenings = st.lists(
    st.tuples(
        st.one_of(results, results, results, st.just(Tick()), overriding, st.builds(Reloaded, configs)),
        st.floats(0, 8),
    ),
    max_size=40,
)
Happenings = list[tuple[director.Event | Result, float]]


def events(state: State, happening: director.Event | Result) -> list[director.Event]:
    if not isinstance(happening, Result):
        return [happening]
    targets = list(state.targets())
    if not targets:
        return []
    backend, check = targets[happening.target % len(targets)]
    return [Probed(backend, check, happening.ok, "why")]


@given(configs, st.booleans(), happenings)
def test_any_sequence_ends_where_a_start_with_the_same_health_does(
    config: Config, up: bool, row: Happenings
) -> None:
    now = 1000.0
    state = director.start(config, lambda _: up, now)
    for happening, seconds in row:
        now += seconds
        for event in events(state, happening):
            state, _ = director.step(state, event, now)
    ended, _ = director.step(state, Tick(), now + LATER)
    afresh = director.start(state.config, is_up(state), now, state.overrides)
    afresh, _ = director.step(afresh, Tick(), now + LATER)
    assert ended.desired == afresh.desired
    assert (ended.failing, ended.ready) == (afresh.failing, afresh.ready)
    weights, announce = rules(state.config, state.overrides, is_up(state))
    assert installed(ended.desired) == weights
    assert ended.desired.announce == announce
    assert not ended.wakes


@given(configs, st.booleans(), happenings)
def test_actions_tell_every_change_and_nothing_else(config: Config, up: bool, row: Happenings) -> None:
    """Whoever only listens to the actions knows all that there is to know."""
    now = 0.0
    state = director.start(config, lambda _: up, now)
    ear = Ear(state)
    for happening, seconds in row:
        now += seconds
        for event in events(state, happening):
            before, (state, actions) = state, director.step(state, event, now)
            ear.hear(before, state, actions)
            assert (
                state.overrides.reals
                or not before.overrides.reals
                or isinstance(event, AdminChanged | WeightChanged)
            )


class Ear:
    """Knows only what actions say; what a reload brings that is new, it learns from the configuration."""

    def __init__(self, state: State) -> None:
        self.installed = state.desired
        self.targets = set(state.targets())
        self.fast: set[object] = set()
        self.up = {str(b) for b, up in all_up(state).items() if up}
        self.judged: set[str] = set()
        self.conditions = {str(id_): str(v.condition) for id_, v in state.services.items()}
        self.vips = set(map(str, state.desired.announce))

    def hear(self, before: State, state: State, actions: Iterable[director.Action]) -> None:
        for action in actions:
            match action:
                case Install(desired):
                    assert desired != self.installed
                    self.installed = desired
                case Retarget():
                    assert set(state.targets()) != self.targets
                    self.targets = set(state.targets())
                    self.fast &= self.targets
                case Pace(b, check, is_fast):
                    assert ((b, check) in self.fast) != is_fast
                    self.fast ^= {(b, check)}
                case Transition("backend", name, new):
                    if new == "down" and name not in self.up:
                        assert name not in self.judged, "that it never was up is said once"
                    else:
                        assert (name in self.up) == (new == "down")
                        self.up ^= {name}
                    self.judged.add(name)
                case Transition("service", name, new):
                    assert self.conditions[name] != new
                    self.conditions[name] = new
                case Transition("vip", name, new):
                    assert (name in self.vips) == (new == "withdrawn")
                    self.vips ^= {name}
        self.learn(before, state)
        assert self.installed == state.desired
        assert self.targets == set(state.targets())
        assert self.fast == {target for v in state.services.values() for target in v.changing()}
        assert self.up == {str(b) for b, up in all_up(state).items() if up}
        assert self.conditions == {str(id_): str(v.condition) for id_, v in state.services.items()}
        assert self.vips == set(map(str, state.desired.announce))

    def learn(self, before: State, state: State) -> None:
        old, new = all_up(before), all_up(state)
        self.up -= {str(b) for b in old if b not in new}
        self.judged -= {str(b) for b in old if b not in new}
        self.up |= {str(b) for b in new if b not in old and new[b]}
        for id_ in before.services.keys() - state.services.keys():
            del self.conditions[str(id_)]
        for id_ in state.services.keys() - before.services.keys():
            self.conditions[str(id_)] = str(state.services[id_].condition)


def all_up(state: State) -> dict[BackendId, bool]:
    return {b.id: b.up for v in state.services.values() for b in v.backends}


@given(configs, st.booleans(), happenings)
def test_a_step_never_changes_a_state(config: Config, up: bool, row: Happenings) -> None:
    now = 0.0
    state = director.start(config, lambda _: up, now)
    for happening, seconds in row:
        now += seconds
        for event in events(state, happening):
            services, desired, overrides = dict(state.services), copy.deepcopy(state.desired), state.overrides
            after, _ = director.step(state, event, now)
            assert (dict(state.services), state.desired, state.overrides) == (services, desired, overrides)
            state = after


@given(configs, st.booleans(), happenings)
def test_before_its_wake_time_alone_changes_nothing(config: Config, up: bool, row: Happenings) -> None:
    now = 0.0
    state = director.start(config, lambda _: up, now)
    for happening, seconds in row:
        now += seconds
        for event in events(state, happening):
            state, _ = director.step(state, event, now)
        for service in state.services.values():
            if service.wake <= now:  # due, and nothing has happened since
                assert state.wakes[service.id] == service.wake
                continue
            until = min(service.wake, now + LATER)
            between = now + (until - now) * 0.999
            assert virtual.settled(service, between)[0].state is service.state
