"""The flow table as the control plane sees it: vector operations on the shared memory, no syscalls.

Every function takes the view of shape (sets, ways) with fields tag and value. Entries change under our
feet; what is read is a value that was true a moment ago, and what is written is a whole entry.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vc5py.dataplane import abi

_LOCAL_AND_SERVICE = np.uint64((1 << abi.FLOW_LOCAL_BITS + abi.FLOW_SERVICE_BITS) - 1)
_VALID = np.uint64(abi.FLOW_VALID)
_STATE = np.uint64((1 << abi.FLOW_STATE_BITS) - 1)
SET_SHIFTS = (0, 24)  # flow_first_set and flow_second_set in xdp/flow.h
_Words = NDArray[np.uint64]
_AHEAD = np.uint16(0xFFFF - 16)  # CLOCK_SLACK in xdp/flow.h


def owner(service: int, local: int) -> int:
    """The bits of an entry that say whose flow it is."""
    return service << abi.FLOW_SERVICE_SHIFT | local


def purge_all_but(table: NDArray[np.void], known: NDArray[np.uint64]) -> int:
    """Empties the entries of all other owners than the given ones; returns how many there were. Reads the
    whole table at once: for the start, when nobody waits.
    """
    wanted = np.zeros(1 << abi.FLOW_LOCAL_BITS + abi.FLOW_SERVICE_BITS, dtype=bool)  # mapped where touched
    wanted[known] = True
    gone = 0
    for part in pieces(table):
        values = np.ascontiguousarray(part["value"]).reshape(-1)
        at = np.flatnonzero(values.view(np.int64) < 0)
        at = at[~wanted[values[at] & _LOCAL_AND_SERVICE]]
        part["value"].reshape(-1)[at] = 0
        gone += len(at)
    return gone


def pieces(table: NDArray[np.void], sets: int = 1 << 14) -> Iterator[NDArray[np.void]]:
    """Views of so many sets each: what is computed of one stays in the CPU's cache."""
    for start in range(0, len(table), sets):
        yield table[start : start + sets]


def ages(values: NDArray[np.uint64], now: int) -> NDArray[np.uint16]:
    """Ticks since each was seen last, modulo 65,536; 0 for those a moment newer than our clock."""
    age: NDArray[np.uint16] = np.uint16(now) - (values >> np.uint64(abi.FLOW_TICK_SHIFT)).astype(np.uint16)
    age[age > _AHEAD] = 0
    return age


def live(values: NDArray[np.uint64], timeouts: NDArray[np.uint16], now: int) -> NDArray[np.bool_]:
    """Which entries belong to flows that have been seen within their state's timeout; any shape.

    `timeouts` by state and `now` in ticks.
    """
    state = (values >> np.uint64(abi.FLOW_STATE_SHIFT) & _STATE).astype(np.int64)
    alive: NDArray[np.bool_] = (values & _VALID != 0) & (ages(values, now) <= timeouts[state])
    return alive


def live_share(table: NDArray[np.void], sample: int, timeouts: NDArray[np.uint16], now: int) -> float:
    """The share of entries that are live, estimated from about `sample` sets."""
    some = live(table["value"][:: max(1, len(table) // sample)], timeouts, now)
    return float(np.count_nonzero(some) / some.size)


def carry_over(old: NDArray[np.void], new: NDArray[np.void]) -> int:
    """Copies all flows into an (empty) table of another size; returns how many found no place."""
    values, tags = old["value"].ravel(), old["tag"].ravel()
    used = values & _VALID != 0
    hashes, _ = _fill(new, (values ^ tags)[used], values[used])
    return len(hashes)


def _fill(table: NDArray[np.void], hashes: _Words, values: _Words) -> tuple[_Words, _Words]:
    """Puts flows that aren't in the table into its empty entries; returns those that found none."""
    mask = np.uint64(len(table) - 1)
    for shift in SET_SHIFTS:
        for way in range(abi.FLOW_WAYS):
            sets = (hashes >> np.uint64(shift)) & mask
            _, first = np.unique(sets, return_index=True)  # one flow a set and round
            chosen = first[table["value"][sets[first], way] & _VALID == 0]
            table["value"][sets[chosen], way] = values[chosen]
            table["tag"][sets[chosen], way] = values[chosen] ^ hashes[chosen]
            left = np.ones(len(values), dtype=bool)
            left[chosen] = False
            values, hashes = values[left], hashes[left]
    return hashes, values


_MERGED_AT_ONCE = 1 << 14


def merge(
    table: NDArray[np.void], hashes: _Words, values: _Words, timeouts: NDArray[np.uint16], now: int
) -> tuple[int, int]:
    """Takes over entries of another table: they hold where the flow is known, unless what is known is newer;
    others are put in, by the rules of xdp/flow.h but that none is moved. Returns how many were new and how
    many of these found no place.
    """
    new = lost = 0
    for start in range(0, len(hashes), _MERGED_AT_ONCE):
        part = slice(start, start + _MERGED_AT_ONCE)
        unknown = _update(table, hashes[part], values[part], now)
        missing, entries = hashes[part][unknown], values[part][unknown]
        new += len(missing)
        missing, entries = _fill(table, missing, entries)
        lost += _displace(table, missing, entries, timeouts, now)
    return new, lost


def _places(table: NDArray[np.void], hashes: _Words) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Set and way of all the entries that each flow may have: of shape (flows, places)."""
    shifts = np.repeat(np.array(SET_SHIFTS, dtype=np.uint64), abi.FLOW_WAYS)
    ways = np.tile(np.arange(abi.FLOW_WAYS), len(SET_SHIFTS))
    sets = (hashes[:, None] >> shifts & np.uint64(len(table) - 1)).astype(np.int64)
    return sets, np.broadcast_to(ways, sets.shape)


def _update(table: NDArray[np.void], hashes: _Words, values: _Words, now: int) -> NDArray[np.int64]:
    """Writes entries of flows that the table has; returns the numbers of those that it has not."""
    sets, ways = _places(table, hashes)
    known = table["value"][sets, ways]
    hits = (known ^ table["tag"][sets, ways] == hashes[:, None]) & (known & _VALID != 0)
    found = np.flatnonzero(hits.any(axis=1))
    way = hits[found].argmax(axis=1)
    newer = ages(values[found], now) <= ages(known[found, way], now)
    found, way = found[newer], way[newer]
    at = sets[found, way], ways[found, way]
    table["value"][at] = values[found]
    table["tag"][at] = values[found] ^ hashes[found]
    return np.flatnonzero(~hits.any(axis=1))


def _displace(
    table: NDArray[np.void], hashes: _Words, values: _Words, timeouts: NDArray[np.uint16], now: int
) -> int:
    """Puts flows into the places of expired or else of unproven ones; returns how many found none."""
    lost = 0
    while len(hashes):
        sets, ways = _places(table, hashes)
        there = table["value"][sets, ways]
        age = ages(there.reshape(-1), now).reshape(there.shape).astype(np.int64)
        state = (there >> np.uint64(abi.FLOW_STATE_SHIFT) & _STATE).astype(np.int64)
        rank = np.where(age > timeouts[state], 1 << 18, 0)
        rank += np.where(state < abi.FlowState.ESTABLISHED, (1 << 17) + age, 0)
        way = rank.argmax(axis=1)
        each = np.arange(len(hashes))
        room = rank[each, way] > 0
        lost += int(np.count_nonzero(~room))
        _, first = np.unique(sets[each, way][room], return_index=True)  # one flow a set and round
        chosen = np.flatnonzero(room)[first]
        at = sets[chosen, way[chosen]], ways[chosen, way[chosen]]
        table["value"][at] = values[chosen]
        table["tag"][at] = values[chosen] ^ hashes[chosen]
        room[chosen] = False
        hashes, values = hashes[room], values[room]
    return lost
