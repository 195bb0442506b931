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


def test_purge_all_but_keeps_the_known_only() -> None:
    table = empty(2)
    for way, (service, local) in enumerate([(1, 1), (1, 2), (2, 1), (0, 0)]):
        put(table, way % 2, way, 100 + way, value_of(service, local))
    assert flows.purge_all_but(table, np.array([flows.owner(1, 2)], dtype=np.uint64)) == 3
    assert find(table, 101)
    assert np.count_nonzero(table["value"]) == 1
    assert flows.purge_all_but(table, np.array([], dtype=np.uint64)) == 1
    assert not np.count_nonzero(table["value"])


def test_large_table_is_purged_to_its_end() -> None:
    table = empty(1 << 15)
    put(table, (1 << 15) - 1, 3, 1, value_of(1, 1))
    put(table, 1 << 14, 0, 2, value_of(1, 2))
    assert flows.purge_all_but(table, np.array([flows.owner(1, 2)], dtype=np.uint64)) == 1
    assert np.flatnonzero(table["value"]).tolist() == [(1 << 14) * abi.FLOW_WAYS]


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
    assert np.count_nonzero(new["value"]) == len(done) - lost
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


# Entries of another table, merged


def merge(table: Table, entries: dict[int, int], now: int = 10) -> tuple[int, int]:
    hashes, values = (
        np.array(list(entries), dtype=np.uint64),
        np.array(list(entries.values()), dtype=np.uint64),
    )
    return flows.merge(table, hashes, values, TIMEOUTS, now)


@pytest.mark.parametrize(("ours", "theirs", "taken"), [(7, 8, True), (7, 7, True), (8, 7, False)])
def test_merged_entry_holds_unless_ours_is_newer(ours: int, theirs: int, taken: bool) -> None:
    table = empty(4)
    put(table, 1, 2, 0x501, before := value_of(1, 1, tick=ours))
    assert merge(table, {0x501: (after := value_of(1, 2, tick=theirs))}) == (0, 0)
    assert find(table, 0x501) == (after if taken else before)
    assert np.count_nonzero(table["value"]) == 1


@settings(max_examples=40)
@given(st.integers(0, 150), st.integers(0, 2**32))
def test_merging_into_an_empty_table_is_carrying_over(count: int, seed: int) -> None:
    old, new, other = empty(64), empty(128), empty(128)
    done = recorded(old, count, seed)
    in_order = {int(tag ^ value): int(value) for tag, value in old[old["value"] != 0].tolist()}
    assert merge(new, in_order)[0] == len(done)
    found = {flow_hash: find(new, flow_hash) for flow_hash in done}
    assert all(value in (None, done[flow_hash]) for flow_hash, value in found.items())
    # Where both sets are full one comes for another.
    assert sum(value is None for value in found.values()) == flows.carry_over(old, other)


@pytest.mark.parametrize(
    ("state", "age", "room"),
    [(4, 100, False), (4, 3601, True), (1, 0, True), (5, 301, True), (5, 300, False)],
)
def test_merged_flow_displaces_what_a_packet_would(state: int, age: int, room: bool) -> None:
    """In full sets the expired and the unproven go, others don't."""
    table = empty(1)
    for way in range(abi.FLOW_WAYS):
        put(table, 0, way, 100 + way, value_of(1, way, state=4, tick=5000))
    put(table, 0, 2, 102, value_of(1, 2, state=state, tick=5000 - age))
    assert merge(table, {7: value_of(1, 7, state=4, tick=5000)}, now=5000) == (1, 0 if room else 1)
    assert (find(table, 7) is not None) is room
    assert (find(table, 102) is None) is room
    assert all(find(table, 100 + way) is not None for way in (0, 1, 3))


def test_of_unproven_flows_the_one_unseen_for_longest_goes() -> None:
    for oldest in range(abi.FLOW_WAYS):
        table = empty(1)
        for way in range(abi.FLOW_WAYS):
            tick = 4900 if way == oldest else 4990 - way
            put(table, 0, way, 100 + way, value_of(1, way, state=0, tick=tick))
        assert merge(table, {7: value_of(1, 7, state=4, tick=5000)}, now=5000) == (1, 0)
        assert find(table, 100 + oldest) is None


# What is live


NOW = 5
TIMEOUTS = np.array([120, 120, 10, 30, 3600, 300, 0, 0], dtype=np.uint16)


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
