"""The arena of Maglev tables: sharing, and lines that nobody writes while somebody reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vc5py.core import maglev
from vc5py.dataplane import abi
from vc5py.dataplane.tables import Members, TableArena, lines_for
from vc5py.errors import DataplaneError

ONE: Members = ((0, 111, 1),)
TWO: Members = ((0, 111, 1), (3, 222 << 40, 2))
LINES = lines_for(2)


class Arena:
    def __init__(self, lines: int) -> None:
        self.slots = np.full((lines, abi.SLOTS_PER_LINE), 0xDEAD, dtype=np.uint16)
        self.tables = TableArena(self.slots, quarantine_s=1.0)

    def read(self, word: int) -> list[int]:
        """As the XDP program reads it."""
        size = 1 << (word >> abi.TABLE_LOG2_SHIFT & 31)
        flat: list[int] = self.slots.ravel()[(word & 0xFFFFFFFF) * abi.SLOTS_PER_LINE :][:size].tolist()
        return flat


def expected(members: Members, reals: int) -> list[int]:
    picks = maglev.build([m[1] for m in members], [m[2] for m in members], maglev.table_size(reals))
    return [members[pick][0] for pick in picks]


def test_word_0_leads_to_an_empty_slot() -> None:
    assert Arena(40).read(0) == [abi.SLOT_NONE]


@pytest.mark.parametrize(("members", "reals"), [(ONE, 1), (TWO, 2), (TWO, 9)])
def test_table_names_the_members(members: Members, reals: int) -> None:
    arena = Arena(200)
    word = arena.tables.acquire(members, reals)
    assert arena.read(word) == expected(members, reals)
    assert len(arena.read(word)) == maglev.table_size(reals)
    assert arena.read(0) == [abi.SLOT_NONE]


def test_table_without_weight_is_empty() -> None:
    arena = Arena(40)
    assert set(arena.read(arena.tables.acquire(((0, 1, 0),), 1))) == {abi.SLOT_NONE}


def test_same_members_and_size_share_others_do_not() -> None:
    arena = Arena(400)
    word = arena.tables.acquire(TWO, 2)
    assert arena.tables.acquire(TWO, 2) == word
    assert len({word, arena.tables.acquire(ONE, 2), arena.tables.acquire(TWO, 9)}) == 3


def test_table_is_kept_until_its_last_user_has_left_and_rests_then() -> None:
    arena = Arena(1 + 2 * LINES)
    word = arena.tables.acquire(ONE, 2)
    arena.tables.acquire(ONE, 2)
    arena.tables.release(word, now=0.0)
    arena.tables.maintain(now=100.0)
    assert arena.tables.acquire(TWO, 2) != word
    assert arena.read(word) == expected(ONE, 2)
    arena.tables.release(word, now=100.0)
    with pytest.raises(DataplaneError, match="Maglev slots"):
        arena.tables.acquire(TWO, 300)
    arena = Arena(1 + 2 * LINES)
    word = arena.tables.acquire(ONE, 2)
    arena.tables.release(word, now=0.0)
    assert arena.tables.acquire(TWO, 2) != word
    arena.tables.maintain(now=0.99)
    assert arena.read(word) == expected(ONE, 2)
    arena.tables.maintain(now=1.0)
    assert arena.tables.acquire(ONE, 2) == word


def test_oldest_resting_table_makes_room_early() -> None:
    arena = Arena(1 + 3 * LINES)
    words = [arena.tables.acquire(((n, 5, 1),), 2) for n in range(3)]
    for n in (1, 0):
        arena.tables.release(words[n], now=float(n))
    assert arena.tables.acquire(TWO, 2) == words[1]
    assert arena.read(words[2]) == expected(((2, 5, 1),), 2)


def test_adopted_table_is_given_back_once_by_the_last_of_its_users() -> None:
    arena = Arena(1 + 3 * LINES)
    word = arena.tables.acquire(ONE, 2)
    arena.tables = TableArena(arena.slots, quarantine_s=1.0)
    for each in (word, word, 0):
        arena.tables.adopt(each)
    fresh = arena.tables.acquire(ONE, 2)
    assert fresh != word
    arena.tables.release(word, now=0.0)
    arena.tables.maintain(now=10.0)
    assert arena.tables.acquire(TWO, 2) not in (word, fresh)
    arena.tables.release(word, now=10.0)
    arena.tables.maintain(now=11.0)
    assert arena.tables.acquire(((7, 7, 7),), 2) == word
    with pytest.raises(DataplaneError):
        arena.tables.acquire(((8, 8, 8),), 2)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30))
def test_tables_in_use_are_never_written(row: list[tuple[int, bool]]) -> None:
    arena = Arena(1 + 6 * LINES)
    held: list[tuple[int, Members]] = []
    for now, (which, take) in enumerate(row):
        if take and len(held) < 5:
            members: Members = ((which, which + 1, 1),)
            held.append((arena.tables.acquire(members, 2), members))
        elif held:
            word, _ = held.pop(which % len(held))
            arena.tables.release(word, now / 2)
        arena.tables.maintain(now / 2)
        assert all(arena.read(word) == expected(members, 2) for word, members in held)
