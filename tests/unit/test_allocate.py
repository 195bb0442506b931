"""Runs of indices: never handed out twice, always found again; and the quarantine between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py.dataplane.allocate import Quarantine, RunAllocator
from vc5py.errors import DataplaneError


def test_first_fit_and_what_is_left() -> None:
    runs = RunAllocator(10, "things")
    assert [runs.take(4), runs.take(4)] == [0, 4]
    assert runs.free == 2
    runs.give_back(0, 4)
    assert [runs.take(2), runs.take(2), runs.take(1)] == [0, 2, 8]


def test_runs_at_multiples_of_their_length_leave_room_for_longer_ones() -> None:
    runs = RunAllocator(33, "things", first=1)
    assert runs.reserve(0, 1)
    assert [runs.take(2), runs.take(8), runs.take(2), runs.take(4), runs.take(8)] == [1, 9, 3, 5, 17]
    for start, length in ((1, 2), (5, 4)):
        runs.give_back(start, length)
    assert [runs.take(2), runs.take(8), runs.take(4)] == [1, 25, 5]


def test_runs_whose_multiples_are_taken_are_refused() -> None:
    runs = RunAllocator(9, "things", first=1)
    assert runs.reserve(0, 2)
    assert runs.take(4) == 5
    with pytest.raises(DataplaneError, match=r"no room for 4 more things \(of 9\)"):
        runs.take(4)


def test_no_room_says_of_what_and_takes_nothing() -> None:
    runs = RunAllocator(10, "things")
    runs.take(8)
    with pytest.raises(DataplaneError, match=r"no room for 3 more things \(of 10\)"):
        runs.take(3)
    assert runs.take(2) == 8


def test_neighbouring_free_runs_become_one() -> None:
    runs = RunAllocator(9, "things")
    for _ in range(3):
        runs.take(3)
    for start in (0, 6, 3):
        runs.give_back(start, 3)
    assert runs.take(9) == 0


@pytest.mark.parametrize(("start", "length"), [(0, 2), (3, 2), (8, 2), (0, 10)])
def test_reserved_run_is_not_handed_out(start: int, length: int) -> None:
    runs = RunAllocator(10, "things")
    assert runs.reserve(start, length)
    assert runs.free == 10 - length
    left = {runs.take(1) for _ in range(10 - length)}
    assert left == set(range(10)) - set(range(start, start + length))


@pytest.mark.parametrize(("start", "length"), [(2, 1), (0, 3), (3, 3), (0, 10), (9, 2), (10, 1)])
def test_reserving_what_is_not_wholly_free_takes_nothing(start: int, length: int) -> None:
    runs = RunAllocator(10, "things")
    runs.reserve(2, 2)
    assert not runs.reserve(start, length)
    assert runs.free == 8


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 31), st.integers(1, 9)), max_size=60))
def test_against_a_set_of_numbers(row: list[tuple[int, int, int]]) -> None:
    runs = RunAllocator(32, "things")
    free = set(range(32))
    held: list[tuple[int, int]] = []
    for what, start, length in row:
        if what == 0 and held:
            begin, size = held.pop(start % len(held))
            runs.give_back(begin, size)
            free |= set(range(begin, begin + size))
        elif what == 1:
            wanted = set(range(start, start + length))
            assert runs.reserve(start, length) == (wanted <= free)
            if wanted <= free:
                free -= wanted
                held.append((start, length))
        else:
            fitting = [s for s in range(32) if set(range(s, s + length)) <= free]
            if not fitting:
                with pytest.raises(DataplaneError):
                    runs.take(length)
                continue
            assert runs.take(length) == fitting[0]
            free -= set(range(fitting[0], fitting[0] + length))
            held.append((fitting[0], length))
        assert runs.free == len(free)


def test_quarantine_releases_in_time_and_once() -> None:
    quarantine = Quarantine(1.0)
    quarantine.add(1, 2, now=10.0)
    quarantine.add(5, 6, now=10.5)
    assert quarantine.release(10.99) == []
    assert quarantine.release(11.0) == [(1, 2)]
    assert quarantine.release(100.0) == [(5, 6)]
    assert quarantine.release(100.0) == []


def test_what_is_freed_again_waits_anew_and_holds_up_nobody() -> None:
    quarantine = Quarantine(1.0)
    for start, now in ((1, 10.0), (5, 10.1), (1, 10.5)):
        quarantine.add(start, 2, now)
    assert quarantine.release(11.2) == [(5, 2)]
    assert quarantine.release(11.5) == [(1, 2)]


def test_quarantine_gives_the_oldest_early() -> None:
    quarantine = Quarantine(1.0)
    quarantine.add(1, 2, now=10.0)
    quarantine.add(5, 6, now=10.5)
    assert [quarantine.release_early() for _ in range(3)] == [(1, 2), (5, 6), None]


def test_quarantine_forgets_what_is_in_use_again() -> None:
    quarantine = Quarantine(1.0)
    for start in (1, 5, 1):
        quarantine.add(start, 2, now=10.0)
    quarantine.cancel(1, 2)
    quarantine.cancel(5, 3)
    assert quarantine.release(11.0) == [(5, 2)]
