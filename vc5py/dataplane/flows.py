"""The flow table as the control plane sees it: vector operations on the shared memory, no syscalls.

Every function takes the view of shape (sets, ways) with fields tag and value. Entries change under our
feet; what is read is a value that was true a moment ago, and what is written is a whole entry.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vc5py.dataplane import abi

_LOCAL_AND_SERVICE = np.uint64((1 << abi.FLOW_LOCAL_BITS + abi.FLOW_SERVICE_BITS) - 1)
_VALID = np.uint64(abi.FLOW_VALID)


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
