"""A long random walk of reloads, results, commands and restarts, against the fake data plane.

Once with a seed that stays and once with one that doesn't; `pytest -s` prints the seeds, and what was done.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import pytest

from tests.unit.directing import REALS
from tests.unit.director_rules import CHECKS, NAMES, VIPS, installed, rules
from vc5py.core import director
from vc5py.core.admin import NO_OVERRIDES, Overrides
from vc5py.core.director import (
    AdminChanged,
    Probed,
    Reloaded,
    State,
    Tick,
    WeightChanged,
)
from vc5py.dataplane.fake import FakeDataplane
from vc5py.model import (
    AdminState,
    BackendId,
    BelowNeed,
    Check,
    Config,
    Damping,
    Protocol,
    Real,
    Service,
    ServiceState,
    Sorry,
    Standby,
    VirtualServiceId,
)

STEPS = 10_000  # reloads and results of one walk; what else happens comes on top
LONGEST_S = 60.0
SEEDS = (1, random.SystemRandom().randrange(1 << 32))


@dataclass
class Walk:
    """A random walk through configurations, results, words of people and restarts, with what must be known
    of health kept apart: checks here go by their last result alone.
    """

    rng: random.Random
    dataplane: FakeDataplane = field(default_factory=FakeDataplane)
    overrides: Overrides = NO_OVERRIDES
    now: float = 1000.0
    good: dict[tuple[BackendId, str], bool] = field(default_factory=dict)
    config: Config = field(default_factory=lambda: Config(()))
    done: Counter[str] = field(default_factory=Counter)

    def service(self, name: str) -> Service:
        rng = self.rng
        sorry = Sorry(self.reals(4, 2), CHECKS[:1]) if rng.random() < 0.4 else None
        return Service(
            name,
            "",
            tuple(rng.sample(VIPS, rng.randint(1, 3))),
            (NAMES.index(name) + 80,),
            (Protocol.TCP,),
            self.reals(0, 4),
            rng.randint(1, 3),
            tuple(replace(c, interval_s=rng.choice([1.0, 2.0])) for c in CHECKS if rng.random() < 0.7),
            below_need=rng.choice(list(BelowNeed)),
            min_up=rng.randint(1, 2),
            standby=rng.choice(list(Standby)),
            sorry=sorry,
            slow_start_s=rng.choice([0.0, 0.0, 20.0]),
            damping=rng.choice([None, Damping(suppress=3.0, half_life_s=5.0, longest_s=20.0)]),
        )

    def reals(self, first: int, count: int) -> tuple[Real, ...]:
        rng = self.rng
        admins = [AdminState.ENABLED] * 6 + list(AdminState)
        return tuple(
            replace(real, weight=rng.randint(0, 3), tier=rng.randint(0, 2), admin=rng.choice(admins))
            for real in rng.sample(REALS[first : first + count], rng.randint(1, count))
        )

    def reconfigure(self) -> Config:
        """One service is made, changed or removed."""
        name = self.rng.choice(NAMES)
        others = [service for service in self.config.services if service.name != name]
        if self.rng.random() < 0.8:
            others.insert(self.rng.randint(0, len(others)), self.service(name))
        return Config(tuple(others))

    def backends(self, config: Config) -> Iterable[tuple[BackendId, tuple[Check, ...]]]:
        for service in config.services:
            sorry = service.sorry or Sorry((), ())
            for vip in service.vips:
                for real in service.reals:
                    yield BackendId(service.name, vip, real.address), service.checks
                for real in sorry.reals:
                    yield BackendId(service.name, vip, real.address), sorry.checks

    def is_up(self, backend: BackendId) -> bool:
        return all(self.good[b, check] for b, check in self.good if b == backend)

    def note_config(self, config: Config, fresh: Callable[[BackendId], bool]) -> None:
        """Checks keep what they know by their names; `fresh` says how the others begin."""
        known, old = self.good, {b for b, _ in self.backends(self.config)}
        was = {b: all(ok for (a, _), ok in known.items() if a == b) for b in old}
        self.good = {
            (b, check.name): known.get((b, check.name), was[b] if b in was else fresh(b))
            for b, checks in self.backends(config)
            for check in checks
        }
        self.config = config

    def start(self) -> State:
        """A restart: what the data plane has up is up."""
        was_up = {b for b, _ in self.backends(self.config) if self.dataplane.was_up(b)}
        self.good = {(b, c.name): b in was_up for b, checks in self.backends(self.config) for c in checks}
        return director.start(self.config, was_up.__contains__, self.now, self.overrides)

    def step(self, state: State) -> tuple[State, set[str]]:
        """One thing happens; the names of the services that it is about."""
        rng, dice = self.rng, self.rng.random()
        self.now += rng.choice([0.0, 0.1, 1.0, 7.0])
        if dice < 0.01:
            self.done["restarts"] += 1
            return self.start(), set(NAMES)
        if dice < 0.16:
            self.done["reloads"] += 1
            config = self.reconfigure()
            before = {service.name: service for service in self.config.services}
            self.note_config(config, lambda _: False)
            state, _ = director.step(state, Reloaded(config), self.now)
            changed = {s.name for s in config.services if before.get(s.name) != s}
            return state, changed
        if dice < 0.26:
            self.done["commands"] += 1
            return self.say(state)
        targets = list(state.targets())
        if dice < 0.36 or not targets:
            self.done["ticks"] += 1
            return director.step(state, Tick(), self.now)[0], {id_.service for id_ in state.wakes}
        backend, check = rng.choice(targets)
        ok = rng.random() < 0.6
        self.good[backend, check.name] = ok
        self.done["results"] += 1
        return director.step(state, Probed(backend, check, ok), self.now)[0], {backend.service}

    def say(self, state: State) -> tuple[State, set[str]]:
        rng = self.rng
        real, name = rng.choice(REALS[:6]).address, rng.choice([None, *NAMES])
        event: director.Event
        if rng.random() < 0.5:
            admin = rng.choice([None, None, *AdminState])
            self.overrides = self.overrides.with_state(real, name, admin)
            event = AdminChanged(real, name, admin)
        else:
            weight = rng.choice([None, None, 0, 5])
            self.overrides = self.overrides.with_weight(real, name, weight)
            event = WeightChanged(real, name, weight)
        return director.step(state, event, self.now)[0], set(NAMES) if name is None else {name}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_long_walk_against_the_fake_data_plane(seed: int) -> None:
    print(f"seed {seed}")
    walk, began = Walk(random.Random(seed)), time.process_time()
    walk.note_config(Config(tuple(walk.service(name) for name in NAMES)), lambda _: False)
    state = walk.start()
    calm = 0
    while walk.done["reloads"] + walk.done["results"] < STEPS:
        before = {s.id: s for s in state.desired.services}
        state, about = walk.step(state)
        walk.dataplane.apply(state.desired)  # refuses what makes no sense, weights below 0 among it
        assert state.overrides == walk.overrides
        assert_untouched(before, state, about)
        assert_sound(state, walk)
        if not state.wakes:
            calm += 1
            weights, announce = rules(walk.config, walk.overrides, walk.is_up)
            assert installed(state.desired) == weights
            assert state.desired.announce == announce
    took_s = time.process_time() - began
    print(f"{dict(walk.done)} in {took_s:.1f} s of CPU time, {calm} times nothing was to come by itself")
    assert calm > STEPS // 20
    assert took_s < LONGEST_S


def assert_untouched(before: dict[VirtualServiceId, ServiceState], state: State, about: set[str]) -> None:
    for service in state.desired.services:
        if service.id.service not in about:
            assert service is before[service.id]


def assert_sound(state: State, walk: Walk) -> None:
    """Whatever flaps or begins slowly: nobody is sent where nobody serves."""
    files = {
        (service.name, real.address): real
        for service in walk.config.services
        for real in (*service.reals, *(service.sorry.reals if service.sorry else ()))
    }
    up = {b for b, _ in walk.backends(walk.config)} - {b for (b, _), ok in walk.good.items() if not ok}
    for service in state.desired.services:
        if service.id.vip in state.desired.announce:
            assert any(backend.weight for backend in service.backends)
        for backend in service.backends:
            admin = walk.overrides.state_of(service.id.service, files[service.id.service, backend.id.real])
            assert backend.up == (backend.id in up and admin is not AdminState.DISABLED)
            assert backend.weight == 0 or admin is AdminState.ENABLED
