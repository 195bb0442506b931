"""One pass over the flow table, in pieces: what it counts, what it says of slots, and what it empties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.test_flows import NOW, TIMEOUTS, empty, put, value_of
from vc5py.dataplane import abi
from vc5py.dataplane.looks import Look
from vc5py.dataplane.sweep import GONE_TICKS, Subject, Turn
from vc5py.dataplane.tables import TableArena, Tables, size

SERVICE, OTHER = 1, 2
ROOM = 4
SETTLE_S = 120.0
PATIENCE = 400


class Bench:
    """A flow table and a Maglev table whose slots have all changed, from backend 1 to backend 0."""

    def __init__(self, sets: int = 8) -> None:
        self.table = empty(sets)
        self.slots = np.zeros((64, abi.SLOTS_PER_LINE), dtype=np.uint16)
        self.arena = TableArena(self.slots, 1.0, SETTLE_S)
        before = self.arena.acquire(((1, 11, 1),), 1, Tables(), 0.0)
        self.tables = self.arena.acquire(((0, 10, 1),), 1, before, 0.0)

    def flow(self, set_: int, way: int, slot: int, value: int, other: int = 0) -> None:
        put(self.table, set_, way, slot << 40 | other << 56 | other, value)

    def turn(
        self,
        look: Look | None = None,
        doomed: tuple[tuple[int, int], ...] = (),
        *,
        sets: int = 3,
        tick: int = NOW,
    ) -> Turn:
        subjects = [Subject(SERVICE, ROOM, self.tables.current), Subject(OTHER, 2)]
        turn = Turn(self.table, self.slots.reshape(-1), subjects, doomed, look, TIMEOUTS, PATIENCE)
        while not turn.done:
            turn.advance(sets, tick)
        return turn

    def look(self, now: float) -> Look:
        self.arena.maintain(now)
        look = self.arena.look(now)
        assert look is not None
        return look

    def unstable(self) -> list[int]:
        return np.flatnonzero(self.arena.view(self.tables.current) & abi.SLOT_UNSTABLE).tolist()

    def settle(self) -> None:
        """Both steps."""
        for now in (SETTLE_S, SETTLE_S + 1):
            look = self.look(now)
            self.turn(look)
            for _ in self.arena.conclude(look, now):
                pass

    def occupied(self) -> list[tuple[int, int]]:
        return [(int(a), int(b)) for a, b in np.argwhere(self.table["value"])]


@pytest.mark.parametrize("sets", [1, 3, 8, 100])
def test_live_flows_are_counted_by_backend(sets: int) -> None:
    bench = Bench()
    bench.flow(0, 0, 1, value_of(SERVICE, 2, state=4, tick=NOW))
    bench.flow(7, 3, 2, value_of(SERVICE, 2, state=0, tick=NOW - 120))
    bench.flow(3, 1, 3, value_of(SERVICE, 2, state=0, tick=NOW - 121))  # dead
    bench.flow(3, 2, 3, value_of(SERVICE, 0, state=2, tick=NOW + 3))  # by a CPU that is ahead
    bench.flow(4, 2, 3, value_of(OTHER, 1, state=5, tick=NOW - 300))
    bench.flow(5, 0, 3, value_of(OTHER, 1, state=4, tick=NOW) & ~abi.FLOW_VALID)
    bench.flow(5, 1, 3, value_of(OTHER, 2, state=4, tick=NOW))  # beyond its room
    bench.flow(5, 2, 3, value_of(8191, 32767, state=4, tick=NOW))  # nobody's
    before = bench.table.copy()
    turn = bench.turn(sets=sets)
    assert turn.counts_of(SERVICE).tolist() == [1, 0, 2, 0]
    assert turn.counts_of(OTHER).tolist() == [0, 1]
    assert turn.counts_of(3).tolist() == []
    assert turn.share >= 1
    assert (bench.table == before).all()


def test_part_of_a_turn_counts_what_it_has_read() -> None:
    bench = Bench()
    bench.flow(0, 0, 1, value_of(SERVICE, 2, state=4, tick=NOW))
    bench.flow(7, 3, 2, value_of(SERVICE, 2, state=4, tick=NOW))
    turn = Turn(bench.table, bench.slots.reshape(-1), [Subject(SERVICE, ROOM)], (), None, TIMEOUTS, PATIENCE)
    turn.advance(4, NOW)
    assert (turn.counts_of(SERVICE)[2], turn.share, turn.done) == (1, 0.5, False)
    turn.advance(4, NOW)
    assert (turn.counts_of(SERVICE)[2], turn.share, turn.done) == (2, 1.0, True)


def test_doomed_are_emptied_and_not_counted_whoever_is_spared_is() -> None:
    """Of a service that is still there, and of one that isn't."""
    bench = Bench()
    for way, (service, local) in enumerate([(SERVICE, 1), (SERVICE, 2), (OTHER, 1), (7, 5)]):
        bench.flow(way, way, 1, value_of(service, local, state=4, tick=NOW))
        bench.flow(way + 4, way, 1, value_of(service, local, state=4, tick=NOW))
    turn = Turn(
        bench.table,
        bench.slots.reshape(-1),
        [Subject(SERVICE, ROOM), Subject(OTHER, 2)],
        [(SERVICE, 1), (OTHER, 1), (7, 5)],
        None,
        TIMEOUTS,
        PATIENCE,
    )
    turn.advance(4, NOW)
    assert bench.occupied() == [(1, 1), (4, 0), (5, 1), (6, 2), (7, 3)]
    turn.spare((OTHER, 1))
    turn.advance(4, NOW)
    assert bench.occupied() == [(1, 1), (5, 1), (6, 2)]
    assert turn.counts_of(SERVICE).tolist() == [0, 0, 2, 0]
    assert turn.counts_of(OTHER).tolist() == [0, 1]


@pytest.mark.parametrize("now", [NOW, 0, 40000, 65535])
def test_what_was_idle_for_too_long_to_be_told_from_young_is_emptied(now: int) -> None:
    ages = {0: 0, 1: 3600, 2: GONE_TICKS, 3: GONE_TICKS + 1, 4: 0xFFFF - 16, 5: -16 & 0xFFFF}
    bench = Bench()
    for set_, age in ages.items():
        bench.flow(set_, 0, 1, value_of(SERVICE, 2, state=4, tick=(now - age) & 0xFFFF))
    turn = bench.turn(tick=now)
    assert [set_ for set_, _ in bench.occupied()] == [0, 1, 2, 5]
    assert turn.counts_of(SERVICE)[2] == 3


def test_idle_entry_never_looks_young_again_across_the_wrap_around() -> None:
    """... with turns hours apart. Without them it would be live again after 65,536 ticks."""
    bench = Bench()
    bench.flow(0, 0, 1, value_of(SERVICE, 2, state=4, tick=60000))
    counted = []
    for tick in range(60000, 60000 + 2 * 65536, 3000):
        counted.append(int(bench.turn(tick=tick & 0xFFFF).counts_of(SERVICE)[2]))
    assert counted == [1, 1] + [0] * (len(counted) - 2)
    assert bench.occupied() == []


# Slots


def test_slots_with_live_flows_of_other_backends_stay_unstable() -> None:
    bench = Bench()
    last = size(bench.tables.current) - 1
    bench.flow(0, 0, 7, value_of(SERVICE, 2, state=4, tick=NOW))
    bench.flow(0, 1, 8, value_of(SERVICE, 0, state=4, tick=NOW))  # the slot's own
    bench.flow(1, 0, 0xFFFF, value_of(SERVICE, 1, state=4, tick=NOW))  # the table is smaller
    bench.flow(1, 1, 9, value_of(OTHER, 1, state=4, tick=NOW))  # its slots say nothing of its flows
    bench.flow(2, 0, 20, value_of(SERVICE, 2, state=abi.FlowState.FRAGMENT, tick=NOW))
    bench.flow(3, 0, 30, value_of(SERVICE, 2, state=0, tick=NOW - PATIENCE - 1))  # dead
    bench.flow(3, 2, 32, value_of(SERVICE, 2, state=0, tick=NOW - PATIENCE))  # seen once
    bench.flow(3, 1, 31, value_of(SERVICE, 2, state=1, tick=NOW - 3600))  # seen in two ticks
    bench.settle()
    assert bench.unstable() == [7, 31, 32, last]


def test_dead_flows_of_other_backends_are_emptied_in_calm_slots_alone() -> None:
    bench = Bench()
    bench.flow(0, 0, 7, value_of(SERVICE, 2, state=0, tick=NOW - 500))
    bench.flow(0, 1, 8, value_of(SERVICE, 0, state=0, tick=NOW - 500))
    bench.flow(1, 0, 7, value_of(SERVICE, 2, state=abi.FlowState.FRAGMENT, tick=NOW - 500))
    bench.flow(1, 1, 9, value_of(SERVICE, 2, state=4, tick=NOW))
    all_of_it = bench.occupied()
    look = bench.look(SETTLE_S)
    bench.turn(look)
    assert bench.occupied() == all_of_it
    for _ in bench.arena.conclude(look, SETTLE_S):
        pass
    bench.turn(bench.look(SETTLE_S + 1))
    assert bench.occupied() == [(0, 1), (1, 0), (1, 1)]


def test_flow_that_comes_back_while_it_is_looked_at_keeps_its_slot_unstable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its entry is neither emptied nor overlooked."""
    bench = Bench()
    bench.flow(0, 0, 7, value_of(SERVICE, 2, state=0, tick=NOW - 500))
    look = bench.look(SETTLE_S)
    bench.turn(look)
    for _ in bench.arena.conclude(look, SETTLE_S):
        pass
    second = bench.look(SETTLE_S + 1)
    calm, alive = Look.calm, value_of(SERVICE, 2, state=0, tick=NOW)

    def comes_back(self: Look, marks: NDArray[np.int64]) -> NDArray[np.bool_]:
        bench.flow(0, 0, 7, alive)
        return calm(self, marks)

    monkeypatch.setattr(Look, "calm", comes_back)
    bench.turn(second)
    for _ in bench.arena.conclude(second, SETTLE_S + 1):
        pass
    assert bench.occupied() == [(0, 0)]
    assert bench.unstable() == [7]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([SERVICE, OTHER, 7]),
            st.integers(0, ROOM),
            st.integers(0, 5),
            st.sampled_from([0, 10, 11, 120, 121, 300, 3600, 3601, 40000, 65530]),
            st.integers(0, 20),
        ),
        max_size=32,
    ),
    st.integers(0, 65535),
)
def test_pieces_find_what_one_reading_of_all_finds(
    entries: list[tuple[int, int, int, int, int]], now: int
) -> None:
    """Whatever is in the table: the same counts, the same slots, the same entries left."""
    outcomes = []
    for sets in (1, 3, 8):
        bench = Bench()
        for n, (service, local, state, age, slot) in enumerate(entries):
            bench.flow(n // 4, n % 4, slot, value_of(service, local, state, (now - age) & 0xFFFF), n)
        marks = []
        for step in (0, 1):
            look = bench.look(SETTLE_S + step)
            turn = bench.turn(look, ((SERVICE, 3),), sets=sets, tick=now)
            marks.append(look.marks_of(bench.tables.current).tolist())
            for _ in bench.arena.conclude(look, SETTLE_S + step):
                pass
        outcomes.append((turn.counts.tolist(), marks, bench.occupied(), bench.unstable()))
    assert outcomes[0] == outcomes[1] == outcomes[2]
