"""The flow table's vector operations, on tables as small as they come."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vc5py.dataplane import abi, flows

Table = NDArray[np.void]


def empty(sets: int) -> Table:
    return np.zeros((sets, abi.FLOW_WAYS), dtype=abi.FLOW_ENTRY)


def value_of(service: int, local: int, state: int = 2, tick: int = 7) -> int:
    low = flows.owner(service, local)
    return abi.FLOW_VALID | tick << abi.FLOW_TICK_SHIFT | state << abi.FLOW_STATE_SHIFT | low


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
