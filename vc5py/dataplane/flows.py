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
    values, hashes = values[used], (values ^ tags)[used]
    mask = np.uint64(len(new) - 1)
    for shift in (0, 24):  # its first set, then its second, as in xdp/flow.h
        for way in range(abi.FLOW_WAYS):
            sets = (hashes >> np.uint64(shift)) & mask
            _, first = np.unique(sets, return_index=True)  # one flow a set and round
            chosen = first[new["value"][sets[first], way] == 0]
            new["value"][sets[chosen], way] = values[chosen]
            new["tag"][sets[chosen], way] = values[chosen] ^ hashes[chosen]
            left = np.ones(len(values), dtype=bool)
            left[chosen] = False
            values, hashes = values[left], hashes[left]
    return len(values)
