"""An arena with little or no room: whatever changes, however often, tables are the right ones, and no change
of health is refused.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_tables import LINES, ONE, SETTLE_S, TWO, Arena, changed, expected
from vc5py.dataplane import abi
from vc5py.dataplane.tables import (
    NO_TABLES,
    SETTLE_STEP_S,
    Members,
    Tables,
    lines_for,
    lines_of_arena,
    lines_promised,
    size,
)
from vc5py.errors import DataplaneError

OTHER: Members = ((5, 333 << 30, 1),)
REALS = (1, 2, 3, 9)  # of services, whose tables have 8, 8, 16 and 64 lines
MOST = 9


@dataclass
class Service:
    """What is in its record, and what it is to be."""

    number: int
    reals: int
    tables: Tables = NO_TABLES
    members: Members = ()


@dataclass
class Balancer:
    """Services on an arena, exchanged in the order of stores that the data plane has."""

    lines: int
    reals: tuple[int, ...]
    shared: bool = False
    now: float = 0.0
    services: list[Service] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arena = Arena(self.lines)
        self.services = [Service(n, reals) for n, reals in enumerate(self.reals)]

    def members(self, service: Service, up: int) -> Members:
        """`up`: a bit for each real; if services share, the reals of one are those of the next."""
        base = 0 if self.shared else 1000 * (1 + service.number)
        all_ = [(n, (base + n) << 33 | n, 1 + n % 3) for n in range(service.reals)]
        return tuple(one for n, one in enumerate(all_) if up >> n & 1)

    def change(self, service: Service, up: int, *, remember: bool = True) -> None:
        members = self.members(service, up)
        if members == service.members:
            return
        before = service.tables
        tables = self.arena.tables.acquire(members, service.reals, before, self.now, remember=remember)
        service.tables, service.members = tables, members
        self.arena.tables.commit(tables)
        self.arena.tables.release(before, self.now)

    def read(self, service: Service) -> tuple[list[int], dict[int, int]]:
        """The slots, with what the unstable ones named before."""
        slots = self.arena.read(service.tables.current)
        past = self.arena.read(service.tables.previous) if service.tables.previous else [abi.SLOT_NONE]
        return slots, {n: past[n % len(past)] for n, slot in enumerate(slots) if slot & abi.SLOT_UNSTABLE}


def least(reals: tuple[int, ...]) -> int:
    """Two tables each, and nothing to spare."""
    return 1 + 2 * sum(map(lines_for, reals))


change = st.tuples(st.integers(0, 31), st.integers(1, (1 << MOST) - 1), st.booleans(), st.integers(0, 3))


@settings(max_examples=60)
@given(st.lists(st.sampled_from(REALS), min_size=1, max_size=6), st.lists(change, max_size=60))
def test_full_arena_has_the_same_tables_as_a_roomy_one(
    reals: list[int], row: list[tuple[int, int, bool, int]]
) -> None:
    """All within the resting time, or with looks between."""
    everything = (1 << MOST) - 1
    reals.sort(reverse=True)  # what comes in the order of sizes leaves no gaps
    tight, roomy = Balancer(least(tuple(reals)), tuple(reals)), Balancer(4096, tuple(reals))
    for one in (tight, roomy):
        for service in one.services:
            one.change(service, everything)
    for which, up, remember, passes in row:
        for one in (tight, roomy):
            service = one.services[which % len(reals)]
            if up & (1 << service.reals) - 1:
                one.change(service, up, remember=remember)
            if passes == 3:
                one.now += SETTLE_S + SETTLE_STEP_S
                one.arena.tables.maintain(one.now)
                one.arena.settle_fully(one.now)
        for mine, theirs in zip(tight.services, roomy.services, strict=True):
            assert tight.read(mine) == roomy.read(theirs)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_all_services_change_again_and_again_within_the_resting_time(seed: int, shared: bool) -> None:
    """In the arena that a configuration gets: tables of all sizes, services that share them and others."""
    source = random.Random(seed)
    reals = tuple(source.choice((1, 2, 2, 3, 3, 9, 33)) for _ in range(60))
    balancer = Balancer(lines_of_arena([lines_for(one) for one in reals]), reals, shared=shared)
    for round_ in range(12):
        source.shuffle(balancer.services)
        for service in balancer.services:
            balancer.change(service, source.randrange(1, 1 << service.reals) if round_ else -1)
            balancer.now += 0.0001
        for service in balancer.services:
            slots, _ = balancer.read(service)
            wanted = expected(service.members, service.reals)
            assert [slot & ~abi.SLOT_UNSTABLE for slot in slots] == wanted
        if round_ % 4 == 3:
            balancer.arena.tables.maintain(balancer.now)
            balancer.arena.settle_fully(balancer.now + round_ * SETTLE_S)


def test_table_that_changes_in_its_place_is_right_at_any_moment() -> None:
    """Nothing changes for packets at first, nor with the service's record; then one slot after another."""
    arena = Arena(1 + 2 * LINES)
    before = arena.first(ONE)
    named = arena.read(before.current)
    after = arena.tables.acquire(TWO, 2, before, 0.0)
    assert after.current == before.current
    assert arena.read(after.current) == named
    assert arena.remembered(after) == changed(ONE, TWO)
    arena.tables.commit(after)
    arena.tables.release(before, 0.0)
    assert [slot & ~abi.SLOT_UNSTABLE for slot in arena.read(after.current)] == expected(TWO, 2)
    assert arena.unstable(after) == changed(ONE, TWO).keys()


def test_unstable_table_that_changes_in_its_place_keeps_what_its_slots_lead_to() -> None:
    arena = Arena(1 + 2 * LINES)
    tables = arena.first(ONE)
    past: dict[int, int] = {}
    for members in (TWO, OTHER):
        before, tables = tables, arena.tables.acquire(members, 2, tables, 0.0)
        assert past.items() <= arena.remembered(tables).items()
        past = arena.remembered(tables)
        arena.tables.commit(tables)
        arena.tables.release(before, 0.0)
    assert set(past.values()) >= {0}
    assert [slot & ~abi.SLOT_UNSTABLE for slot in arena.read(tables.current)] == expected(OTHER, 2)


def test_table_that_changed_in_its_place_settles_and_changes_again() -> None:
    arena = Arena(1 + 2 * LINES)
    tables = arena.first(ONE)
    for now, members in ((0.0, TWO), (1000.0, OTHER), (2000.0, ONE)):
        before, tables = tables, arena.tables.acquire(members, 2, tables, now)
        arena.tables.commit(tables)
        arena.tables.release(before, now)
        arena.settle_fully(now + SETTLE_S)
        assert arena.read(tables.current) == expected(members, 2)
        assert arena.remembered(tables) == {}
    arena.tables.release(tables, 3000.0)
    arena.tables.maintain(3001.0)
    assert arena.first(TWO)


def test_shared_table_is_never_changed_in_its_place() -> None:
    arena = Arena(1 + 2 * LINES)
    tables = arena.first(ONE)
    assert arena.first(ONE) == tables
    with pytest.raises(DataplaneError, match="Maglev slots"):
        arena.tables.acquire(TWO, 2, tables, 0.0)
    assert arena.read(tables.current) == expected(ONE, 2)


def test_table_that_changed_in_its_place_is_not_shared_by_what_it_was() -> None:
    arena = Arena(1 + 2 * LINES)
    before = arena.first(ONE)
    tables = arena.tables.acquire(TWO, 2, before, 0.0)
    arena.tables.commit(tables)
    arena.tables.release(before, 0.0)
    with pytest.raises(DataplaneError, match="Maglev slots"):
        arena.first(ONE)
    assert [slot & ~abi.SLOT_UNSTABLE for slot in arena.read(tables.current)] == expected(TWO, 2)


def test_refused_table_takes_no_lines() -> None:
    """One whose past had found room before it did not."""
    arena = Arena(1 + 4 * LINES)
    held = [arena.first(ONE), arena.first(ONE)]
    for _ in range(3):
        with pytest.raises(DataplaneError, match="Maglev slots"):
            arena.tables.acquire(TWO, 9, held[0], 0.0)
    assert arena.tables.acquire(TWO, 2, NO_TABLES, 0.0, unsure=True).previous


def test_more_reals_than_a_slot_can_name_are_refused() -> None:
    arena = Arena(1 + 2 * LINES)
    last = abi.SLOT_NONE - 1
    tables = arena.first(((last, 111, 1),))
    assert set(arena.read(tables.current)) == {last}
    with pytest.raises(DataplaneError, match="no room for more than 32767 reals of a service"):
        arena.tables.acquire(((last + 1, 222, 1), (0, 111, 1)), 2, tables, 0.0)
    assert set(arena.read(tables.current)) == {last}


@pytest.mark.parametrize("unstable", [False, True])
def test_smaller_table_that_finds_no_room_for_its_past_takes_that_of_the_larger(unstable: bool) -> None:
    """Nothing changes for packets before it is in force; then all is as where there is room."""
    outcome = []
    for lines in (1 + 2 * lines_for(MOST) + LINES, 1000):
        arena = Arena(lines)
        large = arena.first(ONE, MOST)
        if unstable:
            before, large = large, arena.tables.acquire(TWO, MOST, large, 0.0)
            arena.tables.commit(large)
            arena.tables.release(before, 0.0)
            arena.tables.maintain(1.0)
        named, leads = arena.read(large.current), arena.remembered(large)
        waiting = arena.unstable(large)
        small = arena.tables.acquire(OTHER, 2, large, 1.0)
        assert arena.read(large.current) == named
        assert {n: slot for n, slot in arena.remembered(large).items() if n in waiting} == {
            n: slot for n, slot in leads.items() if n in waiting
        }
        arena.tables.commit(small)
        arena.tables.release(large, 1.0)
        outcome.append((arena.read(small.current), arena.remembered(small)))
        assert size(small.previous) == size(large.current)
    assert outcome[0] == outcome[1]
    assert [slot & ~abi.SLOT_UNSTABLE for slot in outcome[0][0]] == expected(OTHER, 2)


# Spares


@pytest.mark.parametrize("unsure", [False, True])
@pytest.mark.parametrize("grows", [False, True])
def test_spares_never_go_to_a_table_that_is_new_or_of_another_size(grows: bool, unsure: bool) -> None:
    """It is refused, so that no change of health of the others is."""
    arena = Arena(1 + 4 * LINES)
    held = [arena.first(((n, 5, 1),)) for n in range(2)]
    before, reals = (held[0], 3) if grows else (NO_TABLES, 2)
    with pytest.raises(DataplaneError, match="Maglev slots"):
        arena.tables.acquire(TWO, reals, before, 0.0, unsure=unsure)
    for tables in held:
        after = arena.tables.acquire(TWO, 2, tables, 1.0)
        assert after.current == tables.current  # in its place: the room is kept for the other one's past
        arena.tables.commit(after)
        arena.tables.release(tables, 1.0)


def test_spares_go_to_tables_that_were_shared_and_part_and_come_back() -> None:
    """Two services have one table; the third one's spare is where one of theirs goes."""
    arena = Arena(1 + 4 * LINES)
    shared = [arena.first(ONE), arena.first(ONE)]
    other = arena.first(OTHER)
    after = arena.tables.acquire(TWO, 2, shared[0], 0.0, unsure=False)
    arena.tables.commit(after)
    arena.tables.release(shared[0], 0.0)
    assert arena.remembered(after) == changed(ONE, TWO)
    assert arena.read(other.current) == expected(OTHER, 2)
    arena.tables.release(after, 0.0)
    arena.tables.maintain(1.0)
    again = arena.tables.acquire(TWO, 2, other, 1.0)
    assert again.current == other.current  # in its place: it has its spare, and none is left beside that
    assert arena.remembered(again) == changed(OTHER, TWO)


def test_promises_are_kept_within_the_arena() -> None:
    arena = Arena(1 + 6 * LINES)
    tables = arena.first(ONE)
    arena.reopen()
    assert arena.tables.adopt(tables, 0.0) == 2 * LINES
    assert arena.tables.adopt(NO_TABLES, 0.0) == 0
    arena.tables.promise(4 * LINES, 0)
    with pytest.raises(DataplaneError, match=f"no room for {LINES} more lines of Maglev slots"):
        arena.tables.promise(3 * LINES, 2 * LINES)
    arena.tables.promise(2 * LINES, 3 * LINES)
    arena.tables.promise(3 * LINES, 2 * LINES)


def test_a_past_of_a_larger_table_is_in_the_promise() -> None:
    assert lines_promised(8, NO_TABLES) == 16
    large, small = (Arena(600).first(TWO, reals).current for reals in (9, 2))
    assert lines_promised(8, Tables(large)) == 8 + lines_for(9)
    assert lines_promised(8, Tables(small, large)) == 8 + lines_for(9)
    assert lines_promised(64, Tables(small)) == 128


def test_disturbed_table_takes_its_spare() -> None:
    arena = Arena(1 + 2 * LINES)
    tables = arena.first(ONE)
    after = arena.tables.disturb(tables, np.array([3]), 0.0)
    assert arena.remembered(after) == {3: 0}


def test_adopted_table_gets_a_spare_once_all_are_adopted() -> None:
    arena = Arena(1 + 2 * LINES)
    tables = arena.first(ONE)
    arena.reopen()
    arena.tables.adopt(tables, 0.0)
    arena.tables.maintain(0.0)
    with pytest.raises(DataplaneError, match="Maglev slots"):
        arena.first(TWO, 9)
    after = arena.tables.acquire(TWO, 2, tables, 0.0)
    assert (after.current, size(after.previous)) == (tables.current, size(tables.current))


# A look that is under way


@pytest.mark.parametrize("lines", [1 + 2 * LINES, 1 + 8 * LINES])
def test_look_has_no_consequences_for_a_table_that_has_changed_since(lines: int) -> None:
    """Neither where it is nor for what lies in its place: entries of flows would be emptied."""
    arena = Arena(lines)
    first = arena.first(ONE)
    tables = arena.tables.acquire(TWO, 2, first, 0.0)
    arena.tables.commit(tables)
    arena.tables.release(first, 0.0)
    arena.settle(SETTLE_S)
    look = arena.begin(SETTLE_S + SETTLE_STEP_S)
    assert look is not None
    start = look.start_of(tables.current)
    assert start is not None
    numbers = np.arange(start, start + size(tables.current))
    assert look.calm(numbers).any()
    after = arena.tables.acquire(OTHER, 2, tables, SETTLE_S + 2)
    arena.tables.commit(after)
    arena.tables.release(tables, SETTLE_S + 2)
    assert not look.calm(numbers).any()
    arena.end(look, SETTLE_S + 3)
    assert arena.unstable(after)
