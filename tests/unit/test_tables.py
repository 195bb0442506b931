"""The arena of Maglev tables: sharing, what is unstable and remembered, and lines that nobody writes while
somebody reads them.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vc5py.core import maglev
from vc5py.dataplane import abi
from vc5py.dataplane.looks import SHARE_S, Look
from vc5py.dataplane.tables import (
    NO_TABLES,
    SETTLE_RETRY_S,
    SETTLE_STEP_S,
    Members,
    TableArena,
    Tables,
    first_slot,
    lines_for,
    size,
)
from vc5py.errors import DataplaneError

ONE: Members = ((0, 111, 1),)
TWO: Members = ((0, 111, 1), (3, 222 << 40, 2))
LINES = lines_for(2)
SETTLE_S = 120.0
NONE, UNSTABLE = abi.SLOT_NONE, abi.SLOT_UNSTABLE


class Arena:
    """An arena and the flow table's part: `live` are positions with a live flow of another backend."""

    def __init__(self, lines: int) -> None:
        self.slots = np.full((lines, abi.SLOTS_PER_LINE), 0xDEAD, dtype=np.uint16)
        self.live: set[int] = set()
        self.forgotten: list[int] = []
        self.looks = 0
        self.reopen()

    def reopen(self) -> None:
        self.tables = TableArena(self.slots, quarantine_s=1.0, settle_s=SETTLE_S)

    def read(self, word: int) -> list[int]:
        """As the XDP program reads it."""
        number = 1 << (word >> abi.TABLE_LOG2_SHIFT & 31)
        flat: list[int] = self.slots.ravel()[(word & 0xFFFFFFFF) * abi.SLOTS_PER_LINE :][:number].tolist()
        return flat

    def unstable(self, tables: Tables) -> set[int]:
        return {n for n, slot in enumerate(self.read(tables.current)) if slot & UNSTABLE}

    def remembered(self, tables: Tables) -> dict[int, int]:
        return {n: slot for n, slot in enumerate(self.read(tables.previous)) if slot != NONE}

    def first(self, members: Members = TWO, reals: int = 2) -> Tables:
        return self.tables.acquire(members, reals, NO_TABLES, 0.0)

    def begin(self, now: float) -> Look | None:
        self.tables.maintain(now)
        look = self.tables.look(now)
        self.looks += look is not None
        return look

    def end(self, look: Look, now: float) -> None:
        """As after a reading of the flow table that has found `live`, and dead flows in all other slots."""
        for word in look.tables():
            start, marks = look.start_of(word), first_slot(word)
            assert start is not None
            numbers = np.arange(start, start + size(word))
            live = np.isin(numbers - start + marks, sorted(self.live))
            look.hit(numbers[live])
            unstable = self.tables.view(word) & UNSTABLE != 0
            emptied = look.calm(numbers) & ~live & unstable
            self.forgotten += (np.flatnonzero(emptied) + marks).tolist()
        for _ in self.tables.conclude(look, now):
            pass

    def settle(self, now: float) -> None:
        look = self.begin(now)
        if look is not None:
            self.end(look, now)

    def settle_fully(self, now: float) -> None:
        self.settle(now)
        self.settle(now + SETTLE_STEP_S)


def expected(members: Members, reals: int) -> list[int]:
    picks = maglev.build([m[1] for m in members], [m[2] for m in members], maglev.table_size(reals))
    return [members[pick][0] for pick in picks]


def changed(before: Members, after: Members, reals: int = 2) -> dict[int, int]:
    """By slot what it named before."""
    pairs = zip(expected(before, reals), expected(after, reals), strict=True)
    return {n: old for n, (old, new) in enumerate(pairs) if old != new}


# What a table holds


def test_word_0_leads_to_an_empty_slot() -> None:
    assert Arena(40).read(0) == [NONE]


@pytest.mark.parametrize(("members", "reals"), [(ONE, 1), (TWO, 2), (TWO, 9)])
def test_first_table_names_the_members_and_is_stable(members: Members, reals: int) -> None:
    arena = Arena(200)
    tables = arena.first(members, reals)
    assert arena.read(tables.current) == expected(members, reals)
    assert len(arena.read(tables.current)) == maglev.table_size(reals)
    assert tables.previous == 0
    assert arena.read(0) == [NONE]


def test_table_without_weight_is_empty() -> None:
    arena = Arena(40)
    assert set(arena.read(arena.first(((0, 1, 0),), 1).current)) == {NONE}


@pytest.mark.parametrize("remember", [True, False])
def test_changed_slots_are_unstable_and_what_they_named_is_remembered(remember: bool) -> None:
    """Whether the flow table has lost flows or not: packets through stable slots weren't recorded."""
    arena = Arena(400)
    tables = arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0, remember=remember)
    assert [slot & ~UNSTABLE for slot in arena.read(tables.current)] == expected(TWO, 2)
    assert arena.unstable(tables) == changed(ONE, TWO).keys()
    assert arena.remembered(tables) == changed(ONE, TWO)


@pytest.mark.parametrize("remember", [True, False])
def test_slot_that_changes_again_remembers_the_first(remember: bool) -> None:
    """... and what it named in between, where its packets were recorded, only if that may have been lost."""
    other: Members = ((5, 333 << 30, 1),)
    arena = Arena(400)
    tables = arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0)
    arena.settle(SETTLE_S)  # the first step: nothing is remembered any more, but all is recorded
    last = arena.tables.acquire(other, 2, tables, 0.0, remember=remember)
    assert arena.unstable(last) == set(range(len(expected(other, 2))))
    waiting, named = changed(ONE, TWO), expected(TWO, 2)
    stable = {n: slot for n, slot in enumerate(named) if n not in waiting}
    assert arena.remembered(last) == (dict(enumerate(named)) if remember else stable)
    again = arena.tables.acquire(ONE, 2, arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0), 0.0)
    assert arena.remembered(again) == changed(ONE, TWO)


def test_unsure_makes_all_unstable_and_remembers_nothing() -> None:
    arena = Arena(400)
    for before in (NO_TABLES, arena.first(TWO)):
        tables = arena.tables.acquire(TWO, 2, before, 0.0, unsure=True)
        assert len(arena.unstable(tables)) == len(expected(TWO, 2))
        assert arena.remembered(tables) == {}


@pytest.mark.parametrize(("before", "after"), [(2, 9), (9, 2)])
def test_table_of_another_size_remembers_by_the_larger(before: int, after: int) -> None:
    arena = Arena(600)
    first = arena.first(TWO, before)
    tables = arena.tables.acquire(TWO, after, first, 0.0)
    old, new = expected(TWO, before), expected(TWO, after)
    length = max(len(old), len(new))
    differ = {n for n in range(length) if old[n % len(old)] != new[n % len(new)]}
    assert arena.unstable(tables) == {n % len(new) for n in differ}
    past = arena.read(tables.previous)
    assert all(past[n % len(past)] == old[n % len(old)] for n in differ)


# Settling


def test_nothing_settles_before_its_time() -> None:
    arena = Arena(400)
    tables = arena.tables.acquire(TWO, 2, arena.first(ONE), 10.0)
    arena.settle(10.0 + SETTLE_S - 0.01)
    assert arena.remembered(tables) == changed(ONE, TWO)


def test_settling_takes_two_steps() -> None:
    arena = Arena(400)
    tables = arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0)
    arena.tables.maintain(SETTLE_S)
    assert arena.remembered(tables) == {}
    arena.settle(SETTLE_S)
    assert arena.unstable(tables) == changed(ONE, TWO).keys()
    assert arena.forgotten == []
    arena.settle(SETTLE_S + SETTLE_STEP_S)
    assert arena.read(tables.current) == expected(TWO, 2)
    start = first_slot(tables.current)
    assert arena.forgotten == [start + n for n in sorted(changed(ONE, TWO))]


@pytest.mark.parametrize("step", [0, 1])
def test_slot_with_a_live_flow_stays_unstable_as_long_as_that_lives(step: int) -> None:
    """Whether it was there all along or comes between the steps; but unknown flows go there no more."""
    arena = Arena(400)
    tables = arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0)
    busy = min(changed(ONE, TWO))
    for number in range(1000):
        if number == step:
            arena.live = {first_slot(tables.current) + busy}
        arena.settle(SETTLE_S + number * SETTLE_STEP_S)
    assert arena.unstable(tables) == {busy}
    assert arena.remembered(tables) == {}
    assert first_slot(tables.current) + busy not in arena.forgotten
    arena.live = set()
    arena.settle_fully(5000.0)
    assert arena.unstable(tables) == set()


def test_live_flows_are_looked_at_now_and_then_only() -> None:
    """A look reads the whole flow table."""
    arena = Arena(400)
    tables = arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0)
    start = first_slot(tables.current)
    arena.live = {start + n for n in range(size(tables.current))}
    for second in range(100):
        arena.settle(SETTLE_S + second)
    assert arena.looks == 100 / SETTLE_RETRY_S


def test_what_settled_once_is_looked_at_no_more() -> None:
    arena = Arena(400)
    arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0)
    arena.settle_fully(SETTLE_S)
    assert arena.begin(10 * SETTLE_S) is None
    assert arena.looks == 2


def test_slot_is_opened_by_a_look_that_began_after_it_was_closed() -> None:
    """Two looks at a time don't happen; but the second must not count what the first one had not known."""
    arena = Arena(400)
    tables = arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0)
    first = arena.begin(SETTLE_S)
    assert first is not None
    arena.end(first, SETTLE_S + 60)
    assert arena.forgotten == []
    assert arena.begin(SETTLE_S + 60 + SETTLE_STEP_S - 0.01) is None
    second = arena.begin(SETTLE_S + 60 + SETTLE_STEP_S)
    assert second is not None
    assert arena.unstable(tables) == changed(ONE, TWO).keys()
    arena.end(second, SETTLE_S + 130)
    assert arena.unstable(tables) == set()


def test_table_that_was_exchanged_meanwhile_is_left_alone() -> None:
    """... even where another one has its place by then, and is settling itself."""
    arena = Arena(1 + 6 * LINES)
    first = arena.first(ONE)
    tables = arena.tables.acquire(TWO, 2, first, 0.0)
    look = arena.begin(SETTLE_S)
    assert look is not None
    for gone in (tables, first):
        arena.tables.release(gone, SETTLE_S)
    arena.tables.maintain(SETTLE_S + 1)
    again = arena.tables.acquire(TWO, 2, arena.first(ONE), SETTLE_S + 1)
    assert again == tables
    arena.end(look, SETTLE_S + 2)
    assert arena.remembered(again) == changed(ONE, TWO)


def test_looked_at_tables_are_shared_no_more_though_the_look_has_not_ended() -> None:
    arena = Arena(600)
    first = arena.first(ONE)
    tables = arena.tables.acquire(TWO, 2, first, 0.0)
    assert arena.begin(SETTLE_S) is not None
    assert arena.tables.acquire(TWO, 2, first, SETTLE_S) != tables


def test_one_look_is_at_a_bounded_number_of_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vc5py.dataplane.tables.LOOK_SLOTS", 2 * maglev.table_size(2))
    arena = Arena(800)
    others = [((n, 1000 + n, 1),) for n in range(5)]
    made = [arena.tables.acquire(other, 2, arena.first(ONE), 0.0) for other in others]
    seen = []
    for second in range(20):
        look = arena.begin(SETTLE_S + second)
        if look is not None:
            seen.append(len(look.tables()))
            arena.end(look, SETTLE_S + second)
    assert max(seen) == 2
    assert all(arena.unstable(tables) == set() for tables in made)


def test_smaller_table_settles_when_all_that_it_folds_is_calm() -> None:
    arena = Arena(600)
    tables = arena.tables.acquire(TWO, 2, arena.first(TWO, 9), 0.0)
    assert size(tables.previous) > size(tables.current)
    arena.settle_fully(SETTLE_S)
    assert arena.read(tables.current) == expected(TWO, 2)


def test_adopted_tables_settle_after_a_full_time() -> None:
    arena = Arena(400)
    tables = arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0)
    arena.reopen()
    arena.tables.adopt(tables, 1000.0)
    arena.settle(1000.0 + SETTLE_S - 0.01)
    assert arena.remembered(tables) == changed(ONE, TWO)
    arena.settle_fully(1000.0 + SETTLE_S)
    assert arena.unstable(tables) == set()


# Sharing


def test_same_members_size_and_past_share_others_do_not() -> None:
    arena = Arena(600)
    first = arena.first()
    assert arena.first() == first
    others = [arena.first(ONE), arena.first(TWO, 9), arena.tables.acquire(TWO, 2, first, 0.0)]
    assert len({first, *others}) == 4


def test_who_comes_later_gets_a_full_time_to_settle() -> None:
    arena = Arena(400)
    first = arena.first(ONE)
    tables = arena.tables.acquire(TWO, 2, first, 0.0)
    assert arena.tables.acquire(TWO, 2, first, SHARE_S) == tables
    arena.settle(SHARE_S + SETTLE_S - 0.01)
    assert arena.remembered(tables) == changed(ONE, TWO)
    arena.settle_fully(SHARE_S + SETTLE_S)
    assert arena.unstable(tables) == set()


def test_who_comes_late_gets_a_table_of_its_own() -> None:
    """Service after service would keep the first one's slots open for ever."""
    arena = Arena(600)
    first = arena.first(ONE)
    tables = arena.tables.acquire(TWO, 2, first, 0.0)
    assert arena.tables.acquire(TWO, 2, first, SHARE_S) == tables
    later = arena.tables.acquire(TWO, 2, first, SHARE_S + 1)
    assert later != tables
    assert arena.tables.acquire(TWO, 2, first, SHARE_S + 2) == later
    arena.settle(SHARE_S + SETTLE_S)
    assert arena.remembered(tables) == {}
    assert arena.remembered(later) == changed(ONE, TWO)


@pytest.mark.parametrize("busy", [False, True])
def test_slot_is_closed_in_time_whatever_else_changes(busy: bool) -> None:
    """A is drained; B's weight changes every while. `busy`: A's slots have live flows all the time."""
    arena = Arena(600)
    tables = arena.first(ONE)
    led = changed(ONE, (TWO[1],))
    for now in range(0, int(SETTLE_S) + 60, 20):
        before, tables = (
            tables,
            arena.tables.acquire(
                (
                    TWO[1],
                    (4, 77, 1 + now),
                ),
                2,
                tables,
                float(now),
            ),
        )
        arena.tables.commit(tables)
        arena.tables.release(before, float(now))
        if busy:
            arena.live = {first_slot(tables.current) + n for n in led}
        arena.settle(now + 1.0)
        assert (0 in arena.remembered(tables).values()) == (now + 1 < SETTLE_S)
    assert set(arena.remembered(tables).values()) <= {3, 4}


def test_slot_of_a_larger_table_keeps_its_time_in_a_smaller_one() -> None:
    arena = Arena(900)
    large = arena.tables.acquire((TWO[1],), 9, arena.first(ONE, 9), 0.0)
    small = arena.tables.acquire((TWO[1],), 2, large, 100.0)
    larger = arena.tables.acquire((TWO[1],), 9, small, 110.0)
    for tables in (small, larger):
        assert set(arena.remembered(tables).values()) == {0}
    arena.tables.maintain(SETTLE_S)
    for tables in (small, larger):
        assert arena.remembered(tables) == {}


def test_so_many_slots_are_closed_at_a_time_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vc5py.dataplane.tables.CLOSE_SLOTS", 2 * maglev.table_size(2))
    arena = Arena(800)
    ages = (3.0, 1.0, 4.0, 0.0, 2.0)
    made = {
        at: arena.tables.acquire(((n, 1000 + n, 1),), 2, arena.first(ONE), at)
        for n, at in enumerate(ages, start=1)
    }
    left = []
    for _ in range(3):
        arena.tables.maintain(SETTLE_S + 10)
        left.append(sorted(at for at, tables in made.items() if arena.remembered(tables)))
    assert left == [[2.0, 3.0, 4.0], [4.0], []]


def test_no_look_is_at_slots_that_are_to_be_closed() -> None:
    arena = Arena(400)
    arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0)
    assert arena.tables.look(SETTLE_S) is None
    assert arena.begin(SETTLE_S) is not None


def test_those_are_looked_at_first_that_have_waited_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables with flows that don't end must not keep the rest waiting, however long a look takes."""
    monkeypatch.setattr("vc5py.dataplane.tables.LOOK_SLOTS", maglev.table_size(2))
    arena = Arena(800)
    made = [arena.tables.acquire(((n, 1000 + n, 1),), 2, arena.first(ONE), 0.0) for n in range(1, 4)]
    arena.live = {first_slot(made[0].current) + n for n in range(size(made[0].current))}
    for number in range(20):
        arena.settle(SETTLE_S + number * SETTLE_RETRY_S)
    assert [bool(arena.unstable(tables)) for tables in made] == [True, False, False]


@pytest.mark.parametrize("steps", [1, 2])
def test_table_that_has_begun_to_settle_is_not_shared(steps: int) -> None:
    """The newcomer's flows are where the shared past says; that table's bits say so no more."""
    arena = Arena(600)
    first = arena.first(ONE)
    tables = arena.tables.acquire(TWO, 2, first, 0.0)
    for step in range(steps):
        arena.settle(SETTLE_S + step * SETTLE_STEP_S)
    later = arena.tables.acquire(TWO, 2, first, 500.0)
    assert later != tables
    assert arena.remembered(later) == changed(ONE, TWO)
    assert arena.unstable(later) == changed(ONE, TWO).keys()


def test_lines_used_again_are_not_taken_for_what_they_were() -> None:
    """A table of another past lies where the past of a shared table was: nothing is shared then."""
    other: Members = ((7, 777 << 33, 1),)
    arena = Arena(1 + 6 * LINES)
    first = arena.first(ONE)
    tables = arena.tables.acquire(TWO, 2, first, 0.0)
    arena.tables.release(first, 0.0)
    arena.tables.maintain(1.0)
    again = arena.first(other)
    assert again == first
    mine = arena.tables.acquire(TWO, 2, again, 2.0)
    assert mine != tables
    assert arena.remembered(mine) == changed(other, TWO)


# Lines


def test_table_is_kept_until_its_last_user_has_left_and_rests_then() -> None:
    arena = Arena(1 + 3 * LINES)
    tables = arena.first(ONE)
    arena.first(ONE)
    arena.tables.release(tables, now=0.0)
    arena.tables.maintain(now=100.0)
    assert arena.first(TWO) != tables
    assert arena.read(tables.current) == expected(ONE, 2)
    arena.tables.release(tables, now=100.0)
    with pytest.raises(DataplaneError, match="Maglev slots"):
        arena.first(TWO, 300)
    arena = Arena(1 + 3 * LINES)
    tables = arena.first(ONE)
    arena.tables.release(tables, now=0.0)
    assert arena.first(TWO) != tables
    arena.tables.maintain(now=0.99)
    assert arena.read(tables.current) == expected(ONE, 2)
    arena.tables.maintain(now=1.0)
    assert arena.first(ONE) == tables


def test_previous_table_is_given_back_with_its_table() -> None:
    arena = Arena(1 + 4 * LINES)
    first = arena.first(ONE)
    tables = arena.tables.acquire(TWO, 2, first, 0.0)
    arena.tables.release(first, 0.0)
    arena.tables.release(tables, 0.0)
    arena.tables.maintain(1.0)
    for n in range(2):
        arena.tables.acquire(((n, 5, 1),), 2, NO_TABLES, 1.0, unsure=True)


def test_oldest_resting_table_makes_room_early() -> None:
    arena = Arena(1 + 6 * LINES)
    held = [arena.tables.acquire(((n, 5, 1),), 2, NO_TABLES, 0.0, unsure=True) for n in range(3)]
    for n in (1, 0):
        arena.tables.release(held[n], now=float(n))
    named = arena.read(held[2].current)
    assert arena.first(TWO).current == held[1].current
    assert arena.read(held[2].current) == named


def test_adopted_table_is_given_back_once_by_the_last_of_its_users() -> None:
    arena = Arena(1 + 5 * LINES)
    tables = arena.first(ONE)
    arena.reopen()
    for each in (tables, tables, NO_TABLES):
        arena.tables.adopt(each, 0.0)
    fresh = arena.first(ONE)
    assert fresh != tables
    arena.tables.release(tables, now=0.0)
    arena.tables.maintain(now=10.0)
    assert arena.first(TWO) not in (tables, fresh)
    arena.tables.release(tables, now=10.0)
    arena.tables.maintain(now=11.0)
    assert arena.first(((7, 7, 7),)) not in (fresh, NO_TABLES)
    with pytest.raises(DataplaneError):
        arena.first(((8, 8, 8),))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30))
def test_tables_in_use_are_never_written(row: list[tuple[int, bool]]) -> None:
    arena = Arena(1 + 10 * LINES)
    held: list[tuple[Tables, Members]] = []
    for now, (which, take) in enumerate(row):
        if take and len(held) < 5:
            members: Members = ((which, which + 1, 1),)
            held.append((arena.first(members), members))
        elif held:
            tables, _ = held.pop(which % len(held))
            arena.tables.release(tables, now / 2)
        arena.tables.maintain(now / 2)
        assert all(arena.read(tables.current) == expected(members, 2) for tables, members in held)
