"""The flow table's vector operations, on tables as small as they come."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vc5py.dataplane import abi, flows

Table = NDArray[np.void]


def empty(sets: int) -> Table:
    return np.zeros((sets, abi.FLOW_WAYS), dtype=abi.FLOW_ENTRY)


def value_of(service: int, local: int, state: int = 2, tick: int = 7) -> int:
    low = flows.owner(service, local)
    return abi.FLOW_VALID | (tick & 0xFFFF) << abi.FLOW_TICK_SHIFT | state << abi.FLOW_STATE_SHIFT | low


def put(table: Table, set_: int, way: int, flow_hash: int, value: int) -> None:
    table["value"][set_, way], table["tag"][set_, way] = value, value ^ flow_hash


def find(table: Table, flow_hash: int) -> int | None:
    """The value of a flow, looked for in its two sets as xdp/flow.h does; None where it isn't there."""
    for shift in (0, 24):
        for entry in table[flow_hash >> shift & len(table) - 1]:
            value = int(entry["value"])
            if value & abi.FLOW_VALID and int(entry["tag"]) ^ value == flow_hash:
                return value
    return None


def test_owner_does_not_reach_into_the_state() -> None:
    assert flows.owner(0, 1) == 1
    assert flows.owner(1, 0) == 1 << abi.FLOW_SERVICE_SHIFT
    most = flows.owner(abi.MAX_SERVICES - 1, abi.MAX_REALS_PER_SERVICE)
    assert most == (1 << abi.FLOW_STATE_SHIFT) - 1


def test_entries_are_counted_by_owner_whatever_their_state_and_age() -> None:
    table = empty(4)
    put(table, 0, 0, 11, value_of(1, 2, state=0))
    put(table, 3, 3, 12, value_of(1, 2, state=7, tick=65535))
    put(table, 1, 1, 13, value_of(0, 0))
    put(table, 2, 2, 14, value_of(8191, 32767))
    put(table, 2, 3, 15, value_of(5, 5) & ~abi.FLOW_VALID)
    assert flows.count_by_owner(table) == {
        flows.owner(1, 2): 2,
        flows.owner(0, 0): 1,
        flows.owner(8191, 32767): 1,
    }
    assert flows.count_by_owner(empty(2)) == {}


def test_purge_empties_the_entries_of_the_gone_only() -> None:
    table = empty(2)
    for way, (service, local) in enumerate([(1, 1), (1, 2), (2, 1), (1, 1)]):
        put(table, way % 2, way, 100 + way, value_of(service, local))
    gone = np.array([flows.owner(1, 1), flows.owner(9, 9)], dtype=np.uint64)
    assert flows.purge(table, gone) == 2
    assert flows.count_by_owner(table) == {flows.owner(1, 2): 1, flows.owner(2, 1): 1}
    assert flows.purge(table, gone) == 0


def test_purge_all_but_keeps_the_known_only() -> None:
    table = empty(2)
    for way, (service, local) in enumerate([(1, 1), (1, 2), (2, 1), (0, 0)]):
        put(table, way % 2, way, 100 + way, value_of(service, local))
    assert flows.purge_all_but(table, np.array([flows.owner(1, 2)], dtype=np.uint64)) == 3
    assert flows.count_by_owner(table) == {flows.owner(1, 2): 1}
    assert flows.purge_all_but(table, np.array([], dtype=np.uint64)) == 1


def test_zero_is_no_owner_of_empty_entries() -> None:
    assert flows.purge(empty(2), np.array([0], dtype=np.uint64)) == 0


def recorded(table: Table, count: int, seed: int) -> dict[int, int]:
    """Inserts flows as the program does while there is room; by hash, what was recorded."""
    source = random.Random(seed)
    done = {}
    for n in range(count):
        flow_hash = source.getrandbits(64)
        for shift in (0, 24):
            set_ = flow_hash >> shift & len(table) - 1
            free = np.flatnonzero(table["value"][set_] == 0)
            if len(free):
                done[flow_hash] = value_of(n % 5, n % 3, tick=n % 60000)
                put(table, set_, int(free[0]), flow_hash, done[flow_hash])
                break
    return done


@settings(max_examples=40)
@given(st.integers(0, 200), st.integers(0, 2**32), st.sampled_from([16, 64, 256]))
def test_carried_over_flows_are_found_in_the_new_table(count: int, seed: int, sets: int) -> None:
    old, new = empty(64), empty(sets)
    done = recorded(old, count, seed)
    lost = flows.carry_over(old, new)
    found = {flow_hash: find(new, flow_hash) for flow_hash in done}
    assert sum(value is None for value in found.values()) == lost
    assert all(value in (None, done[flow_hash]) for flow_hash, value in found.items())
    assert len(flows.owners(new)) == len(done) - lost
    assert sets < 256 or lost == 0


def test_flow_goes_to_its_second_set_where_the_first_is_full() -> None:
    old, new = empty(8), empty(8)
    hashes = [5 << 24 | way << 60 for way in range(6)]
    for n, flow_hash in enumerate(hashes):
        put(old, n // 4 * 5, n % 4, flow_hash, value_of(1, n))
    assert flows.carry_over(old, new) == 0
    assert np.count_nonzero(new["value"][0]) == 4
    assert np.count_nonzero(new["value"][5]) == 2
    assert all(find(new, flow_hash) for flow_hash in hashes)


def test_what_finds_no_place_is_counted() -> None:
    old, new = empty(8), empty(1)
    assert len(recorded(old, 9, seed=1)) == 9
    assert flows.carry_over(old, new) == 9 - abi.FLOW_WAYS


# Flows against the slots that they are in


BASE, MASK = 64, 255  # of service 1's table in the arena
NOW = 5
TIMEOUTS = np.array([120, 120, 10, 30, 3600, 300, 0, 0], dtype=np.uint16)


def arena(*named: tuple[int, int]) -> NDArray[np.uint16]:
    """Slots that name backend 0, but for the given ones."""
    slots = np.zeros(BASE + MASK + 1 + 32, dtype=np.uint16)
    for slot, local in named:
        slots[BASE + slot] = local
    return slots


def watched() -> flows.Watched:
    base = np.full(abi.MAX_SERVICES, -1, dtype=np.int64)
    mask = np.zeros(abi.MAX_SERVICES, dtype=np.uint64)
    base[1], mask[1] = BASE, MASK
    return flows.Watched(base, mask, TIMEOUTS, NOW)


def in_slot(slot: int, other: int = 0) -> int:
    """A flow's hash in that slot, by bits 40 to 55."""
    return slot << 40 | other << 56 | other


@pytest.mark.parametrize("unstable", [0, abi.SLOT_UNSTABLE])
def test_conflict_is_a_live_flow_of_another_backend(unstable: int) -> None:
    table = empty(4)
    slots = arena((7, 3 | unstable), (8, 3), (255, 3))
    put(table, 0, 0, in_slot(7), value_of(1, 2, state=4, tick=NOW))
    put(table, 0, 1, in_slot(7, 1), value_of(1, 1, state=4, tick=NOW))
    put(table, 1, 0, in_slot(8), value_of(1, 3, state=4, tick=NOW))  # the slot's own
    put(table, 1, 1, in_slot(9), value_of(2, 2, state=4, tick=NOW))  # of a service that isn't watched
    put(table, 2, 0, in_slot(0xFFFF), value_of(1, 2, state=4, tick=NOW))  # the table is smaller
    put(table, 2, 1, in_slot(20), value_of(1, 2, state=abi.FlowState.FRAGMENT, tick=NOW))
    put(table, 3, 0, in_slot(30), value_of(1, 2, state=0, tick=NOW - 121))  # dead
    put(table, 3, 1, in_slot(31), value_of(1, 2, state=0, tick=NOW) & ~abi.FLOW_VALID)
    assert flows.conflicts(table, slots, watched()).tolist() == [BASE + 7, BASE + 255]
    assert flows.conflicts(empty(2), slots, watched()).tolist() == []


def test_strays_are_forgotten_dead_or_not_where_it_is_said() -> None:
    table = empty(2)
    put(table, 0, 0, in_slot(7), value_of(1, 2, state=0, tick=60000))
    put(table, 0, 1, in_slot(7, 1), value_of(1, 0, state=0, tick=60000))
    put(table, 1, 0, in_slot(8), value_of(1, 2, state=4, tick=NOW))
    put(table, 1, 1, in_slot(7), value_of(2, 2))
    put(table, 1, 2, in_slot(7), value_of(1, 2, state=abi.FlowState.FRAGMENT))
    slots = arena()
    where = np.zeros(len(slots), dtype=bool)
    where[BASE + 7] = True
    assert flows.forget_strays(table, slots, watched(), where) == 1
    assert int(table["value"][0, 0]) == 0
    assert np.count_nonzero(table["value"]) == 4


@pytest.mark.parametrize(
    ("age", "state", "alive"),
    [
        (0, 0, True),
        (120, 0, True),
        (121, 0, False),
        (10, 2, True),
        (11, 2, False),
        (3600, 4, True),
        (3601, 4, False),
        (300, 5, True),
        (301, 5, False),
        (-16, 0, True),  # written by a CPU that is a moment ahead
        (-17, 0, False),
        (32768, 4, False),
    ],
)
@pytest.mark.parametrize("now", [NOW, 0, 65535, 40000])
def test_live(age: int, state: int, alive: bool, now: int) -> None:
    value = np.array([value_of(1, 1, state=state, tick=(now - age) & 0xFFFF)], dtype=np.uint64)
    assert flows.live(value, TIMEOUTS, now).tolist() == [alive]


def test_live_share_is_that_of_the_entries() -> None:
    table = empty(64)
    for n in range(64):
        put(table, n, 0, n, value_of(1, 1, state=4, tick=NOW))
        put(table, n, 1, n, value_of(1, 1, state=2, tick=NOW - 100))
    assert flows.live_share(table, 64, TIMEOUTS, NOW) == 0.25
    assert flows.live_share(table, 8, TIMEOUTS, NOW) == 0.25
    assert flows.live_share(empty(4), 64, TIMEOUTS, NOW) == 0
