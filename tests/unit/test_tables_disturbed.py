"""Slots that get flows of other backends from outside: what becomes of them in the arena of Maglev tables."""

from __future__ import annotations

import numpy as np

from tests.unit.test_tables import LINES, ONE, SETTLE_S, TWO, Arena, changed, expected
from vc5py.dataplane.tables import NO_TABLES, SETTLE_RETRY_S, SETTLE_STEP_S, Tables, size


def disturb(arena: Arena, tables: Tables, *places: int, now: float = 0.0) -> Tables:
    return arena.tables.disturb(tables, np.array(places, dtype=np.int64), now)


def test_stable_slot_becomes_unstable_and_remembers_what_it_names() -> None:
    arena = Arena(400)
    tables = arena.first()
    named = arena.read(tables.current)
    after = disturb(arena, tables, 5, 9)
    assert after.current == tables.current
    assert arena.unstable(after) == {5, 9}
    assert arena.remembered(after) == {5: named[5], 9: named[9]}
    assert disturb(arena, after, 5) == after  # once more changes nothing
    assert arena.remembered(after) == {5: named[5], 9: named[9]}


def test_places_are_taken_modulo_the_size_of_the_table() -> None:
    arena = Arena(400)
    tables = arena.first()
    slots = size(tables.current)
    assert arena.unstable(disturb(arena, tables, 7 + slots, 0xFFFF)) == {7, slots - 1}


def test_service_without_a_table_has_nothing_to_disturb() -> None:
    arena = Arena(400)
    assert disturb(arena, NO_TABLES, 3) == NO_TABLES


def test_unstable_slot_keeps_what_it_remembers() -> None:
    arena = Arena(400)
    tables = arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0)
    slot = min(changed(ONE, TWO))
    before = arena.remembered(tables)
    assert disturb(arena, tables, slot) == tables
    assert arena.remembered(tables) == before


def test_disturbed_slot_settles_after_a_full_time() -> None:
    """Though the rest of the table was about to."""
    arena = Arena(400)
    tables = arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0)
    slot = next(n for n in range(size(tables.current)) if n not in changed(ONE, TWO))
    tables = disturb(arena, tables, slot, now=SETTLE_S - 1)
    arena.settle_fully(SETTLE_S)
    assert arena.unstable(tables) == {slot}
    assert set(arena.remembered(tables)) == {slot}
    arena.settle_fully(2 * SETTLE_S)
    arena.settle_fully(2 * SETTLE_S + 2 * SETTLE_RETRY_S)
    assert arena.read(tables.current) == expected(TWO, 2)


def test_what_comes_during_a_look_counts_in_it() -> None:
    """The look may have read that part of the flow table already."""
    arena = Arena(400)
    tables = arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0)
    slot = min(changed(ONE, TWO))
    arena.settle(SETTLE_S)  # closed
    look = arena.begin(SETTLE_S + SETTLE_STEP_S)
    assert look is not None
    disturb(arena, tables, slot, now=SETTLE_S + SETTLE_STEP_S)
    arena.end(look, SETTLE_S + SETTLE_STEP_S)
    assert arena.unstable(tables) == {slot}
    now = SETTLE_S + 2 * SETTLE_STEP_S
    arena.settle(now)  # closed anew, not opened
    assert arena.unstable(tables) == {slot}
    arena.settle(now + SETTLE_RETRY_S)
    assert arena.unstable(tables) == set()


def test_what_comes_between_two_looks_takes_two_more() -> None:
    """The second one alone may miss it: entries are moved."""
    arena = Arena(400)
    tables = arena.tables.acquire(TWO, 2, arena.first(ONE), 0.0)
    slot = min(changed(ONE, TWO))
    arena.settle(SETTLE_S)
    disturb(arena, tables, slot, now=SETTLE_S)
    arena.settle(SETTLE_S + SETTLE_STEP_S)
    assert arena.unstable(tables) == {slot}
    arena.settle(SETTLE_S + 2 * SETTLE_STEP_S)
    assert arena.unstable(tables) == set()


def test_disturbed_table_is_not_shared_with_newcomers_but_by_those_that_have_it() -> None:
    arena = Arena(400)
    tables = arena.first()
    assert arena.first() == tables
    after = disturb(arena, tables, 5)
    assert arena.first().current not in (tables.current, after.previous)
    arena.tables.release(after, 0.0)
    assert arena.remembered(after).keys() == {5}
    arena.tables.release(after, 0.0)  # the last of its users
    arena.tables.maintain(2.0)
    lines = arena.slots.copy()
    again = [arena.tables.acquire(((n, 7 * n, 1),), 2, NO_TABLES, 3.0) for n in range(1, 3)]
    assert {tables.current & 0xFFFFFFFF, after.previous & 0xFFFFFFFF} & {
        t.current & 0xFFFFFFFF for t in again
    }
    assert not (arena.slots == lines).all()
    assert LINES


def test_next_table_remembers_what_the_disturbed_slot_led_to() -> None:
    """Its flows of before weren't recorded, whoever else's are there now."""
    arena = Arena(400)
    tables = disturb(arena, arena.first(ONE), *range(size(arena.first(ONE).current)))
    after = arena.tables.acquire(TWO, 2, tables, 1.0, remember=False)
    remembered = arena.remembered(after)
    assert all(remembered[n] == 0 for n in changed(ONE, TWO))
