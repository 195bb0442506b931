"""Room for Maglev tables in maps of the sizes that a configuration gets: what needs more is refused at once,
so that no change of health is refused later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from tests.bench.scale import Scale, text_of
from vc5py import config
from vc5py.dataplane import maps, sizing
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.maps import Maps
from vc5py.dataplane.policy import Policy
from vc5py.dataplane.ticks import TickClock
from vc5py.errors import DataplaneError
from vc5py.model import (
    BackendId,
    BackendState,
    Desired,
    Protocol,
    ServiceState,
    VirtualServiceId,
)

COUNT = 80  # so many services need more than what there is in any case


def state(n: int, reals: int, *, down: int = 0, name: str = "s") -> ServiceState:
    """`down`: so many of its reals, the first ones."""
    vip, first = IPv4Address("192.0.0.0") + n, IPv4Address("10.0.0.0") + 256 * n
    backends = tuple(
        BackendState(BackendId(f"{name}{n}", vip, first + k), k >= down, int(k >= down)) for k in range(reals)
    )
    return ServiceState(VirtualServiceId(f"{name}{n}", vip), ((80, Protocol.TCP),), backends)


def states(
    reals: int, *, count: int = COUNT, first: int = 0, down: int = 0, name: str = "s"
) -> list[ServiceState]:
    return [state(n, reals, down=down, name=name) for n in range(first, first + count)]


class Bench:
    """A data plane on maps for so many services, and a clock that stands still."""

    def __init__(self, made: Maps, *, shared: bool) -> None:
        self.maps, self.shared, self.now = made, shared, 100.0
        self.restart()

    def restart(self) -> None:
        policy = Policy(shared=self.shared)
        self.dataplane = KernelDataplane(self.maps, TickClock(250), policy, clock=lambda: self.now)

    def apply(self, wanted: Sequence[ServiceState]) -> None:
        self.dataplane.apply(Desired(tuple(wanted)))

    def rest(self) -> None:
        for _ in range(4):
            self.now += 1
            self.dataplane.maintain(self.now)

    def reload(self, old: Sequence[ServiceState], new: Sequence[ServiceState]) -> int:
        """One by one as far as it gets, and back where it is refused; returns how many are new."""
        kept = [one.id for one in old] == [one.id for one in new]
        steps = [[*new[:k], *old[k:]] if kept else [*old, *new[:k]] for k in range(1, len(new) + 1)]
        for n, step in enumerate(steps):
            try:
                self.apply(step)
            except DataplaneError:
                self.apply([*old] if n == 0 else steps[n - 1])
                return n
        self.apply(new)
        return len(new)

    def up(self, services: Sequence[ServiceState]) -> list[bool]:
        return [self.dataplane.was_up(b.id) for one in services for b in one.backends]


@contextmanager
def opened(reals: int, *, shared: bool) -> Iterator[Bench]:
    text = text_of(Scale(COUNT, reals, 1000), 1000)
    sizes = sizing.sizes_for(config.parse(text, "room.yaml"), 10)
    made = maps.create(replace(sizes, flow_sets=64, log=1 << 6 if shared else 1))
    try:
        yield Bench(made, shared=shared)
    finally:
        made.close()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_all_services_are_replaced(shared: bool, restart: bool) -> None:
    """... after all have changed, so that each has its two tables."""
    with opened(2, shared=shared) as bench:
        for down in (0, 1, 0):
            bench.apply(states(2, down=down))
            bench.rest()
        new = states(2, first=1000, name="other")
        if restart:
            bench.restart()
            bench.apply(new)
        else:
            assert bench.reload(states(2), new) == COUNT
        bench.apply(states(2, first=1000, name="other", down=1))
        assert bench.up(new) == [False, True] * COUNT


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("reals", [2, 8, 16, 32])
def test_one_more_real_for_every_service_where_tables_double(reals: int, shared: bool) -> None:
    with opened(reals, shared=shared) as bench:
        old, new = states(reals), states(reals + 1)
        bench.apply(old)
        bench.rest()
        assert bench.reload(old, new) == COUNT
        bench.apply(states(reals + 1, down=1))
        assert bench.up(new) == ([False] + [True] * reals) * COUNT


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("down", [0, 2])
def test_reload_that_is_refused_leaves_room_for_every_change_of_health(shared: bool, down: int) -> None:
    """`down`: of the reals of each at first. Those of which none is up have no table then, and need one."""
    with opened(2, shared=shared) as bench:
        old = states(2, down=down)
        bench.apply(old)
        bench.rest()
        done = bench.reload(old, states(9))
        assert 0 < done < COUNT
        for first_down in (1, 0, 1):
            now = [state(n, 9 if n < done else 2, down=first_down) for n in range(COUNT)]
            bench.apply(now)
            assert bench.up(now) == [b.up for one in now for b in one.backends]
            bench.now += 0.1
        bench.rest()
        bench.apply(states(2))
        assert bench.up(states(2)) == [True, True] * COUNT


def test_new_services_are_refused_before_those_that_share_need_tables_of_their_own() -> None:
    """All have the same reals, so that they have one table as long as all are up."""
    with opened(2, shared=False) as bench:
        reals = states(2, count=1)[0].backends

        def like_first(n: int, up: tuple[bool, bool]) -> ServiceState:
            one = state(n, 2)
            same = [BackendId(one.id.service, one.id.vip, b.id.real) for b in reals]
            pairs = zip(same, up, strict=True)
            return replace(one, backends=tuple(BackendState(id_, is_up, int(is_up)) for id_, is_up in pairs))

        old = [like_first(n, (True, True)) for n in range(COUNT)]
        bench.apply(old)
        many = states(2, first=1000, count=COUNT * 3 // 2, name="other")
        done = next((n for n in range(len(many)) if not accepted(bench, [*old, *many[: n + 1]])), len(many))
        assert COUNT <= done < len(many)
        now = [like_first(n, (n % 2 == 0, n % 2 == 1)) for n in range(COUNT)] + many[:done]
        for n in range(COUNT):
            bench.apply([*now[: n + 1], *old[n + 1 :], *many[:done]])
        assert bench.up(now[:COUNT]) == [True, False, False, True] * (COUNT // 2)


def accepted(bench: Bench, wanted: Sequence[ServiceState]) -> bool:
    try:
        bench.apply(wanted)
    except DataplaneError:
        return False
    return True


def test_a_service_that_is_refused_keeps_no_other_from_changing() -> None:
    with opened(2, shared=False) as bench:
        old = states(2, count=3)
        bench.apply(old)
        refused = [state(1000 + n, 250, name="large") for n in range(9)]
        wanted = [*refused, *states(2, count=3, down=1)]
        with pytest.raises(DataplaneError, match=r"service=large\d+@192\.\S+ and \d more") as raised:
            bench.apply(wanted)
        assert "no room for" in str(raised.value)
        assert bench.up(wanted[-3:]) == [False, True] * 3
        bench.apply(old)
        assert bench.up(old) == [True] * 6
        assert not any(bench.up(refused))
