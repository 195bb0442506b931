"""Maglev consistent hashing with weights (Eisenbud et al., "Maglev", NSDI 2016, section 3.4).

Pure. Invariants: the table depends on the set of (identity, weight) and its size alone, never on order or
index; every slot is filled when any weight is positive; a real's share differs from its weight's by less
than one slot.

Each real walks through the slots in an order of its own, taking turns until its quota is used up. The paper
makes the size a prime; here it is a power of two and the stride is odd, which visits every slot as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MIN_SLOTS = 256
MAX_SLOTS = 1 << 16
SLOTS_PER_REAL = 128


def table_size(reals: int) -> int:
    """Slots for that many reals: a power of two, at least 100 a real up to MAX_SLOTS."""
    wanted = max(MIN_SLOTS, reals * SLOTS_PER_REAL)
    return min(MAX_SLOTS, 1 << (wanted - 1).bit_length())


def quotas(weights: Sequence[int], size: int) -> NDArray[np.int64]:
    """Splits `size` slots by weight: floors, then one more each to the largest remainders, first first."""
    w = np.asarray(weights, dtype=np.int64)
    total = int(w.sum())
    if total == 0:
        return np.zeros(len(w), dtype=np.int64)
    exact = w * size
    shares = exact // total
    order = np.argsort(-(exact % total), kind="stable")
    shares[order[: size - int(shares.sum())]] += 1
    return shares


def build(identities: Sequence[int], weights: Sequence[int], size: int) -> NDArray[np.int32]:
    """Shape (size,): for each slot the index into `identities` of its real, -1 where there is none.

    `identities` are distinct 64-bit numbers, `weights` whole numbers from 0; `size` is a power of two.
    """
    table = np.full(size, -1, dtype=np.int32)
    ranked = np.argsort(np.asarray(identities, dtype=np.uint64), kind="stable")
    ids = np.asarray(identities, dtype=np.uint64)[ranked]
    left = quotas([weights[i] for i in ranked], size)
    mask = np.uint64(size - 1)
    offset = (ids >> np.uint64(8)) & mask
    stride = (ids >> np.uint64(32)) & mask | np.uint64(1)
    position = np.zeros(len(ids), dtype=np.uint64)
    turn = np.flatnonzero(left > 0)
    while len(turn):
        waiting = turn
        while len(waiting):
            slot = (offset[waiting] + position[waiting] * stride[waiting]) & mask
            position[waiting] += np.uint64(1)
            free = table[slot] < 0
            # Of several that want one slot the first in rank gets it: written last.
            table[slot[free][::-1]] = waiting[free][::-1]
            waiting = waiting[table[slot] != waiting]
        left[turn] -= 1
        turn = turn[left[turn] > 0]
    filled = table >= 0
    table[filled] = ranked[table[filled]]
    return table
