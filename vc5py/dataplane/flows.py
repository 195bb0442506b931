"""The flow table as the control plane sees it: vector operations on the shared memory, no syscalls.

Every function takes the view of shape (sets, ways) with fields tag and value. Entries change under our
feet; what is read is a value that was true a moment ago, and what is written is a whole entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vc5py.dataplane import abi

_LOCAL_AND_SERVICE = np.uint64((1 << abi.FLOW_LOCAL_BITS + abi.FLOW_SERVICE_BITS) - 1)
_VALID = np.uint64(abi.FLOW_VALID)
_LOCAL = np.uint64((1 << abi.FLOW_LOCAL_BITS) - 1)
_SERVICE = np.uint64((1 << abi.FLOW_SERVICE_BITS) - 1)
_STATE = np.uint64((1 << abi.FLOW_STATE_BITS) - 1)
_AHEAD = np.uint64(0xFFFF - 16)


@dataclass(frozen=True, slots=True)
class Watched:
    """Which services' slots are looked at, and what a live flow is.

    `base` and `mask` by service index: where its table begins in the arena (-1: not looked at) and its number
    of slots less one. `timeouts` by state, and the time, in ticks.
    """

    base: NDArray[np.int64]
    mask: NDArray[np.uint64]
    timeouts: NDArray[np.uint16]
    now: int


def owner(service: int, local: int) -> int:
    """The bits of an entry that say whose flow it is."""
    return service << abi.FLOW_SERVICE_SHIFT | local


def owners(table: NDArray[np.void]) -> NDArray[np.uint64]:
    """The owner of every occupied entry, shape (n,)."""
    values: NDArray[np.uint64] = table["value"].ravel()
    used: NDArray[np.uint64] = values[values & _VALID != 0]
    return used & _LOCAL_AND_SERVICE


def count_by_owner(table: NDArray[np.void]) -> dict[int, int]:
    """How many entries each owner has."""
    found, counts = np.unique(owners(table), return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def purge(table: NDArray[np.void], gone: NDArray[np.uint64]) -> int:
    """Empties the entries of the given owners; returns how many there were."""
    values = table["value"]
    hit = (values & _VALID != 0) & np.isin(values & _LOCAL_AND_SERVICE, gone)
    values[hit] = 0
    return int(hit.sum())


def purge_all_but(table: NDArray[np.void], known: NDArray[np.uint64]) -> int:
    """Empties the entries of all other owners; returns how many there were."""
    return purge(table, np.setdiff1d(owners(table), known))


def live(values: NDArray[np.uint64], timeouts: NDArray[np.uint16], now: int) -> NDArray[np.bool_]:
    """Which entries belong to flows that have been seen within their state's timeout; any shape.

    `timeouts` by state and `now` in ticks.
    """
    state = (values >> np.uint64(abi.FLOW_STATE_SHIFT) & _STATE).astype(np.int64)
    age = (np.uint64(now) - (values >> np.uint64(abi.FLOW_TICK_SHIFT))) & np.uint64(0xFFFF)
    ahead = age > _AHEAD  # a moment newer than our clock
    alive: NDArray[np.bool_] = (values & _VALID != 0) & ((age <= timeouts[state]) | ahead)
    return alive


def live_share(table: NDArray[np.void], sample: int, timeouts: NDArray[np.uint16], now: int) -> float:
    """The share of entries that are live, estimated from about `sample` sets."""
    some = live(table["value"][:: max(1, len(table) // sample)], timeouts, now)
    return float(np.count_nonzero(some) / some.size)


@dataclass(frozen=True, slots=True)
class _Strays:
    """Entries of the watched services whose backend isn't the one that their slot names. Shape (n,) each:
    where in the table, where in the arena, and their values.
    """

    at: NDArray[np.int64]
    position: NDArray[np.int64]
    values: NDArray[np.uint64]


def _strays(table: NDArray[np.void], slots: NDArray[np.uint16], watched: Watched) -> _Strays:
    values = table["value"].ravel()
    service = (values >> np.uint64(abi.FLOW_SERVICE_SHIFT) & _SERVICE).astype(np.int64)
    at = np.flatnonzero((values & _VALID != 0) & (watched.base[service] >= 0))
    values, service = values[at], service[at]
    hashes = values ^ table["tag"].ravel()[at]
    slot = (hashes >> np.uint64(40) & np.uint64(0xFFFF)) & watched.mask[service]
    position = watched.base[service] + slot.astype(np.int64)
    fragment = values >> np.uint64(abi.FLOW_STATE_SHIFT) & _STATE == abi.FlowState.FRAGMENT
    other = ((slots[position] & abi.SLOT_NONE) != (values & _LOCAL)) & ~fragment
    return _Strays(at[other], position[other], values[other])


def conflicts(table: NDArray[np.void], slots: NDArray[np.uint16], watched: Watched) -> NDArray[np.int64]:
    """Positions in `slots` (the whole arena) whose backend isn't that of a live flow in the slot."""
    strays = _strays(table, slots, watched)
    hit = np.zeros(len(slots), dtype=bool)  # cheaper than sorting
    hit[strays.position[live(strays.values, watched.timeouts, watched.now)]] = True
    return np.flatnonzero(hit)


def forget_strays(
    table: NDArray[np.void], slots: NDArray[np.uint16], watched: Watched, where: NDArray[np.bool_]
) -> int:
    """Empties the entries of other backends in the slots of the arena that `where` says; returns how many.

    A flow that comes back after its time, or a client's port used again, then follows the slot from its
    first packet on, as all but its sampled packets would.
    """
    strays = _strays(table, slots, watched)
    gone = strays.at[where[strays.position]]
    table["value"].reshape(-1)[gone] = 0
    return len(gone)


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
