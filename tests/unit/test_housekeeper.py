"""The flow table's housekeeping over time: when turns begin, what they free, what is known between them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.test_flows import TIMEOUTS, put, value_of
from tests.unit.test_stability_model import SIZES, array_maps
from vc5py.dataplane import abi
from vc5py.dataplane.housekeeper import Freed, Housekeeper
from vc5py.dataplane.policy import Pace
from vc5py.dataplane.sweep import Subject
from vc5py.dataplane.tables import TableArena, Tables

WEB, DNS = 3, 5  # service indices
TICK = 100
PIECES = 8
PATIENCE = 600


class Bench:
    """A flow table that is read in eight calls, and two services."""

    def __init__(self, pieces: int = PIECES) -> None:
        self.maps = array_maps()
        self.maps.settings["timeout"][0] = TIMEOUTS
        self.arena = TableArena(self.maps.slots, 1.0, 120.0)
        pace = Pace(sets=SIZES.flow_sets // pieces, budget_s=0.0, rest_s=10.0)
        self.keeper = Housekeeper(self.maps, self.arena, 1.0, pace, PATIENCE)
        self.tables = Tables()
        self.turns = 0

    def subjects(self) -> list[Subject]:
        self.turns += 1
        return [Subject(WEB, 4, self.tables.current), Subject(DNS, 2)]

    def work(self, now: float, *weighed: int) -> Freed:
        self.arena.maintain(now)
        return self.keeper.work(now, TICK, self.subjects, weighed)

    def turn(self, now: float) -> Freed:
        """All calls of one turn."""
        out = Freed()
        for _ in range(PIECES):
            freed = self.work(now)
            out.locals += freed.locals
            out.indices += freed.indices
        return out

    def flows(self, service: int, local: int, sets: range) -> None:
        for set_ in sets:
            way = int(np.flatnonzero(self.maps.flows["value"][set_] == 0)[0])
            put(self.maps.flows, set_, way, set_, value_of(service, local, state=4, tick=TICK))

    def counted(self, service: int, local: int) -> int | None:
        counted = self.keeper.counted
        return None if counted is None else counted.count_of(service, local)


def test_counts_are_those_of_the_last_whole_turn() -> None:
    bench = Bench()
    bench.flows(WEB, 1, range(0, SIZES.flow_sets, 4))
    for _ in range(PIECES - 1):
        bench.work(50.0)
        assert (bench.counted(WEB, 1), bench.keeper.counted_at) == (None, None)
    bench.work(51.0)
    assert bench.counted(WEB, 1) == SIZES.flow_sets // 4
    assert bench.counted(WEB, 7) == bench.counted(DNS, 0) == bench.counted(99, 0) == 0
    assert bench.keeper.counted_at == 50.0
    bench.maps.flows[:] = 0
    bench.work(60.0)
    assert bench.counted(WEB, 1) == SIZES.flow_sets // 4


def test_turns_that_nobody_waits_for_rest_between() -> None:
    bench = Bench()
    for second in range(100):
        bench.work(float(second))
    assert bench.turns == 10
    for second in range(100, 100 + 3 * PIECES):
        bench.work(float(second), WEB)
    assert bench.turns == 13


def test_place_is_freed_by_a_turn_that_began_after_its_quarantine_and_emptied_it() -> None:
    bench = Bench()
    bench.flows(WEB, 1, range(0, SIZES.flow_sets, 4))
    bench.turn(0.0)
    bench.work(10.0)
    bench.keeper.retire((WEB, 1), 10.5)
    bench.keeper.retire_service(DNS, 10.5)
    for _ in range(PIECES - 1):
        assert bench.work(20.0) == Freed()  # began before
    for _ in range(PIECES - 1):
        assert bench.work(20.0) == Freed()
    assert bench.work(20.0) == Freed([(WEB, 1)], [DNS])
    assert not np.count_nonzero(bench.maps.flows["value"])


def test_turn_begins_at_once_for_what_waits_but_not_before_its_quarantine() -> None:
    bench = Bench()
    bench.turn(0.0)
    bench.keeper.retire((WEB, 1), 1.0)
    bench.work(1.9)
    assert bench.turns == 1
    assert bench.turn(2.0).locals == [(WEB, 1)]
    assert bench.turns == 2


@pytest.mark.parametrize("calls", range(PIECES))
def test_who_is_there_again_keeps_its_place_and_the_flows_not_read_yet(calls: int) -> None:
    bench = Bench()
    bench.flows(WEB, 1, range(SIZES.flow_sets))
    bench.keeper.retire((WEB, 1), 0.0)
    bench.keeper.retire((WEB, 2), 0.0)
    freed = [bench.work(1.0) for _ in range(calls)]
    bench.keeper.revive((WEB, 1))
    freed += [bench.work(1.0) for _ in range(calls, PIECES)]
    assert [one.locals for one in freed] == [[]] * (PIECES - 1) + [[(WEB, 2)]]
    kept = np.flatnonzero(bench.maps.flows["value"].any(axis=1))
    assert kept.tolist() == list(range(SIZES.flow_sets * calls // PIECES, SIZES.flow_sets))


def test_turn_that_starts_again_frees_what_the_broken_off_one_was_to() -> None:
    bench = Bench()
    bench.keeper.retire((WEB, 1), 0.0)
    for _ in range(PIECES - 1):
        bench.work(1.0)
    bench.keeper.start_again()
    assert [bench.work(2.0).locals for _ in range(PIECES)] == [[]] * (PIECES - 1) + [[(WEB, 1)]]


def test_turn_that_was_broken_off_begins_again_without_a_rest() -> None:
    bench = Bench()
    bench.work(0.0)
    bench.keeper.start_again()
    for _ in range(PIECES):
        bench.work(0.1)
    assert bench.keeper.counted_at == 0.1


def test_tables_settle_one_a_call_where_there_is_no_time_for_more() -> None:
    bench = Bench(pieces=1)
    before = bench.arena.acquire(((1, 11, 1),), 1, Tables(), 0.0)
    bench.tables = bench.arena.acquire(((0, 10, 1),), 1, before, 0.0)
    others = [bench.arena.acquire(((n, 10 + n, 1),), 1, before, 0.0) for n in range(2, 5)]
    for _ in range(5):
        bench.work(120.0)
    unstable = [bool((bench.arena.view(t.current) & abi.SLOT_UNSTABLE).any()) for t in others]
    assert all(unstable)
    assert all((bench.arena.view(t.previous) == abi.SLOT_NONE).all() for t in [bench.tables, *others])
    for _ in range(5):
        bench.work(121.0 + 5)
    assert not any((bench.arena.view(t.current) & abi.SLOT_UNSTABLE).any() for t in [bench.tables, *others])


def test_loads_are_told_from_the_part_that_was_read() -> None:
    bench = Bench()
    bench.flows(WEB, 1, range(SIZES.flow_sets))
    bench.flows(WEB, 2, range(0, SIZES.flow_sets, 2))
    assert bench.keeper.load_of(WEB).tolist() == []
    for _ in range(3 * PIECES):
        bench.work(0.0, WEB)
        expected = [0, SIZES.flow_sets, SIZES.flow_sets // 2, 0]
        assert bench.keeper.load_of(WEB).tolist() == expected
    bench.maps.flows[:] = 0
    loads = []
    for _ in range(4 * PIECES):
        bench.work(0.0, WEB)
        loads.append(float(bench.keeper.load_of(WEB)[1]))
    assert loads == sorted(loads, reverse=True)
    assert loads[-1] < SIZES.flow_sets / 100


def test_service_that_begins_to_be_weighed_in_the_middle_of_a_turn() -> None:
    bench = Bench()
    bench.flows(WEB, 1, range(SIZES.flow_sets))
    for _ in range(5):
        bench.work(0.0)
    bench.work(0.0, WEB)
    assert bench.keeper.load_of(WEB).tolist() == [0, SIZES.flow_sets, 0, 0]
    assert bench.keeper.load_of(DNS).tolist() == []
